"""The graph says what the run did: generated from it, the code equals the module, at other batch sizes too."""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from regbn_surgery import UnseenCallError
from regbn_surgery._trace._recorder import UnrecordableError

from .replay import captured, check_repeats, make, run_graph, same

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass
class Bundle:
    image: Tensor
    text: Tensor | None = None
    scale: float = 1.0


class Pair(NamedTuple):
    image: Tensor
    text: Tensor | None


class Mode(enum.Enum):
    ADD = 1


class LookAlike(OrderedDict):  # as transformers' ModelOutput: attributes and keys
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def x(batch: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, *(shape or (6,)), generator=torch.Generator().manual_seed(seed + 10 * batch))


def two(batch: int) -> Call:
    return (x(batch), x(batch, seed=1)), {}


def one(batch: int) -> Call:
    return (x(batch),), {}


# -- signatures -------------------------------------------------------------------------------------------------------


def positional(self: Any, a: Tensor, b: Tensor) -> Tensor:
    return self.lin(a) + b


def keyword_only(self: Any, a: Tensor, *, b: Tensor, flip: bool = False) -> Tensor:
    return b - self.lin(a) if flip else self.lin(a) - b


def defaults(self: Any, a: Tensor, b: Tensor | None = None, scale: float = 2.0, mode: Mode = Mode.ADD) -> Tensor:
    out = self.lin(a) * scale
    return out + b if b is not None and mode is Mode.ADD else out


def star_args(self: Any, first: Tensor, *rest: Tensor) -> Tensor:
    for item in rest:
        first = first + self.lin(item)
    return first


def star_kwargs(self: Any, a: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {name: self.lin(a) * item for name, item in more.items()}


def everything(self: Any, a: Tensor, *rest: Tensor, bias: Tensor | None = None, **more: Tensor) -> Tensor:
    total = self.lin(a) + sum(rest)
    if bias is not None:
        total = total + bias
    return total * more["gain"]


def list_in(self: Any, items: list[Tensor]) -> list[Tensor]:
    return [self.lin(item) for item in items]


def nested_in(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
    left, (right, none) = batch["left"], batch["rest"]
    assert none is None
    return {"sum": left + self.lin(right), "none": None, "many": (left, [right, 3]), "name": "x"}


def dataclass_in(self: Any, bundle: Bundle) -> Bundle:
    return Bundle(self.lin(bundle.image) * bundle.scale, bundle.text, scale=3.0)


def namedtuple_in(self: Any, pair: Pair) -> Pair:
    return Pair(self.lin(pair.image), None if pair.text is None else pair.text + 1)


def mapping_out(self: Any, a: Tensor) -> LookAlike:
    out = LookAlike(logits=self.lin(a), hidden=(a, a * 2))
    out["late"] = out.logits + out["hidden"][1]
    return out


def int_keys(self: Any, a: Tensor) -> dict[int, Tensor]:
    return {0: self.lin(a), 1: a}


def returns_its_input(self: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a, self.lin(b)


SIGNATURES: list[tuple[Callable[..., Any], Callable[[int], Call]]] = [
    (positional, two),
    (keyword_only, lambda n: ((x(n),), {"b": x(n, seed=1)})),
    (keyword_only, lambda n: ((), {"b": x(n, seed=1), "flip": True, "a": x(n)})),
    (defaults, one),
    (defaults, lambda n: ((x(n), x(n, seed=1)), {"scale": 0.5})),
    (star_args, one),
    (star_args, lambda n: ((x(n), x(n, seed=1), x(n, seed=2)), {})),
    (star_kwargs, lambda n: ((x(n),), {"left": x(n, seed=1), "right": x(n, seed=2)})),
    (everything, lambda n: ((x(n), x(n, seed=1)), {"gain": x(n, seed=2), "bias": x(n, seed=3)})),
    (list_in, lambda n: (([x(n), x(n, seed=1)],), {})),
    (nested_in, lambda n: (({"left": x(n), "rest": (x(n, seed=1), None)},), {})),
    (dataclass_in, lambda n: ((Bundle(x(n), x(n, seed=1), 0.5),), {})),
    (dataclass_in, lambda n: ((Bundle(x(n)),), {})),
    (namedtuple_in, lambda n: ((Pair(x(n), x(n, seed=1)),), {})),
    (namedtuple_in, lambda n: ((Pair(x(n), None),), {})),
    (mapping_out, one),
    (int_keys, one),
    (returns_its_input, two),
]


# -- what a forward does ----------------------------------------------------------------------------------------------


def augmented(self: Any, a: Tensor, b: Tensor) -> Tensor:
    a = self.lin(a)
    a += b
    a *= 2
    a -= 1
    a.mul_(b).add_(1)
    return F.relu(a, inplace=True)


def index_assignment(self: Any, a: Tensor, b: Tensor) -> Tensor:
    a = self.lin(a)
    a[:, 0] = b[:, 1]
    a[a > 0] = 0.5
    a[..., 2:4] += b[:, :2]
    return a


def write_through_view(self: Any, a: Tensor, b: Tensor) -> Tensor:
    a = self.lin(a)
    view = a[:, :3]
    view.copy_(b[:, :3])
    a.view(-1)[:2].zero_()
    return a


def write_to_the_input(self: Any, a: Tensor, b: Tensor) -> Tensor:
    a.add_(b)
    return self.lin(a)


def out_argument(self: Any, a: Tensor, b: Tensor) -> Tensor:
    result = torch.empty_like(a)
    with torch.no_grad():
        torch.add(self.lin(a), b, out=result)
    return result


def sizes(self: Any, a: Tensor) -> list[Any]:
    batch, width = a.shape
    return [
        a.reshape(batch * 2, -1),
        a.view(a.size(0), 2, a.size(-1) // 2),
        a.new_zeros(*a.shape[:-1], 3),
        torch.ones(a.shape) + torch.arange(a.size(dim=0))[:, None],
        a[:1].expand(batch, width),
        a[: batch - 1],
        torch.zeros(a.numel() // width, 2),
        torch.cat([a, torch.zeros(batch, 1)], dim=-1).shape,
        (batch, -batch, batch % 2),
    ]


def iterates(self: Any, a: Tensor) -> Tensor:
    total = torch.zeros(a.shape[0])
    for column in a.transpose(0, 1):
        total = total + column
    first, *_, last = a.unbind(1)
    return total * first + last


def operators(self: Any, a: Tensor, b: Tensor) -> list[Tensor]:
    mask = (a > 0) & ~(b >= 0.5) | (a == b)
    return [1 - a, 2 / (a.abs() + 1), -a, a**2, 2**b, a @ b.T, a // 2, a % 0.7, mask, a[mask.any(1)], a.mT, abs(a)]


def grad_modes(self: Any, a: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        frozen = self.lin(a)
    return frozen, self.lin(a).detach() + self.lin(a)


def packed(self: Any, a: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    sequence = pack_padded_sequence(a, lengths, batch_first=True, enforce_sorted=False)
    out, hidden = self.rnn(sequence)
    padded, sizes = pad_packed_sequence(out, batch_first=True)
    return padded.sum(1) + sizes[:, None], hidden


def same_memory(self: Any, a: Tensor) -> Tensor:
    return self.lin(a.data) + torch.autograd.Variable(a) * a.detach()


def checkpointed(self: Any, a: Tensor, b: Tensor) -> Tensor:
    return checkpoint(lambda p, q: torch.tanh(self.lin(p)) * q, a, b, use_reentrant=False)


def branches(self: Any, a: Tensor, b: Tensor) -> Tensor:
    if a.shape == b.shape and a.dim() == 2 and not isinstance(a, list):
        a = F.dropout(a, 0.3, self.training)
    return self.norm(self.drop(a)) if self.training else a - b


def einsums(self: Any, a: Tensor, b: Tensor) -> Tensor:
    scores = torch.einsum("bi,bj->bij", a, b).softmax(dim=-1)
    return torch.baddbmm(torch.zeros(a.shape[0], 1, 1), scores, scores.transpose(1, 2)).flatten(1)


FORWARDS: list[tuple[Callable[..., Any], Callable[[int], Call]]] = [
    (augmented, two),
    (index_assignment, two),
    (write_through_view, two),
    (write_to_the_input, two),
    (out_argument, two),
    (sizes, one),
    (iterates, one),
    (operators, two),
    (grad_modes, one),
    (packed, lambda n: ((x(n, 5, 6), torch.arange(n) % 4 + 2), {})),
    (same_memory, one),
    (checkpointed, two),
    (branches, two),
    (einsums, two),
]


def module_for(forward: Callable[..., Any], training: bool) -> nn.Module:
    torch.manual_seed(0)
    module = make(
        forward,
        lin=nn.Linear(6, 6),
        rnn=nn.GRU(6, 3, batch_first=True, bidirectional=True),
        norm=nn.BatchNorm1d(6),
        drop=nn.Dropout(0.5),
    )
    return module.train(training)


@pytest.mark.parametrize("strict", [False, True], ids=["model", "host"])
@pytest.mark.parametrize(
    ("forward", "inputs"), SIGNATURES, ids=[f"{i}-{f.__name__}" for i, (f, _) in enumerate(SIGNATURES)]
)
def test_the_graph_takes_and_gives_what_the_module_does(
    forward: Callable[..., Any], inputs: Callable[[int], Call], strict: bool
) -> None:
    module = module_for(forward, training=True)
    args, kwargs = inputs(2)
    trace = captured(module, *args, strict=strict, **kwargs)
    for batch in (2, 5) if strict else (2,):  # the record of a whole model has its sizes as numbers
        check_repeats(module, trace, inputs(batch))


@pytest.mark.parametrize("strict", [False, True], ids=["model", "host"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("forward", "inputs"), FORWARDS, ids=[f.__name__ for f, _ in FORWARDS])
def test_the_graph_repeats_what_the_forward_does(
    forward: Callable[..., Any], inputs: Callable[[int], Call], training: bool, strict: bool
) -> None:
    if forward is sizes and not strict:
        pytest.skip("returns a size, which the record of a whole model has as numbers")
    module = module_for(forward, training)
    args, kwargs = copy.deepcopy(inputs(2))
    trace = captured(module, *args, strict=strict, **kwargs)
    for batch in (2, 5) if strict else (2,):  # the record of a whole model has its sizes as numbers
        check_repeats(module, trace, inputs(batch))


def test_a_child_may_have_the_name_of_the_module_itself() -> None:
    """BERT's attention has a child `self`, and reads other attributes after calling it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.self(x) + self.bias

    module = make(forward, self=nn.Linear(4, 4), bias=nn.Parameter(torch.randn(4)))
    x = torch.randn(3, 4)
    torch.testing.assert_close(run_graph(module, captured(module, x, strict=True), x), module(x))


def test_the_captured_run_itself_is_the_models_own() -> None:
    from regbn_surgery._trace import capture

    module = module_for(positional, training=False)
    (a, b), _ = two(2)
    _, output = capture(module, (a, b), {})
    same(output, module(a, b))


def test_the_graph_has_gradients_for_parameters_and_inputs() -> None:
    module = module_for(checkpointed, training=True)
    (a, b), _ = two(2)
    trace = captured(module, a, b)

    def gradients(call: Callable[..., Any]) -> list[Tensor]:
        leaf = a.clone().requires_grad_()
        return list(torch.autograd.grad(call(leaf, b).square().sum(), [leaf, *module.lin.parameters()]))

    same(gradients(lambda *inputs: run_graph(module, trace, *inputs)), gradients(module))


def test_no_grad_inside_the_forward_puts_back_what_was_there_when_the_graph_runs() -> None:
    module = module_for(grad_modes, training=True)
    with torch.no_grad():
        trace = captured(module, x(2))
    frozen, live = run_graph(module, trace, x(2))
    assert torch.is_grad_enabled()
    assert (frozen.requires_grad, live.requires_grad) == (False, True)
    with torch.no_grad():
        assert not run_graph(module, trace, x(2))[1].requires_grad
        assert not torch.is_grad_enabled()


def test_an_autocast_inside_the_forward_is_in_the_graph() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = self.lin(a)
            with torch.autocast("cpu", enabled=False):
                high = a @ a.T
        return self.lin(a) + low.float() + high.sum(1, keepdim=True)

    module = module_for(forward, training=False)
    for strict in (False, True):
        trace = captured(module, x(2), strict=strict)
        check_repeats(module, trace, one(3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check_repeats(module, trace, one(3))


# -- the records ------------------------------------------------------------------------------------------------------


def test_torch_modules_are_leaves_and_the_users_are_frames() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 6)

        def forward(self, a: Tensor) -> Tensor:
            return torch.relu(self.lin(a))

    def forward(self: Any, a: Tensor) -> Tensor:
        return self.tail(self.inner(a)) + self.inner(a)

    module = make(forward, inner=Inner(), tail=nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    trace = captured(module, x(2))
    assert [(frame.path, frame.class_name, frame.call) for frame in trace.frames] == [
        ("", "Made", 0), ("inner", "Inner", 0), ("tail", "Sequential", 0), ("inner", "Inner", 1),
    ]  # fmt: skip
    assert [(op.name, op.module, trace.path_of(op)) for op in trace.calls] == [
        ("Linear", "inner.lin", "inner"), ("relu", None, "inner"),
        ("Linear", "tail.0", "tail"), ("Tanh", "tail.1", "tail"),
        ("Linear", "inner.lin", "inner"), ("relu", None, "inner"),
        ("add", None, ""),
    ]  # fmt: skip
    host = captured(module, x(2), strict=True)
    assert [(op.name, op.module) for op in host.calls] == [
        ("Inner", "inner"), ("Sequential", "tail"), ("Inner", "inner"), ("add", None),
    ]  # fmt: skip


def test_operations_know_their_line_and_tensors_their_parameter() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        return torch.matmul(a, self.weight)

    module = make(forward, weight=nn.Parameter(torch.randn(6, 2)))
    trace = captured(module, x(2))
    op = trace.calls[-1]
    assert op.source is not None
    assert (op.source.file, op.source.line) == (__file__, forward.__code__.co_firstlineno + 1)
    assert trace.tensors[op.inputs[1]].parameter == "weight"
    assert trace.tensors[op.inputs[0]].parameter is None
    assert trace.tensors[op.outputs[0]].shape == (2, 2)


def test_the_same_line_of_two_runs_has_the_same_key_and_each_call_its_own() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        for _ in range(3):
            a = torch.relu(self.lin(a))
        return a

    module = module_for(forward, training=False)
    first, second = captured(module, x(2)), captured(module, x(5))
    assert [op.key for op in first.calls] == [op.key for op in second.calls]
    assert len({op.key for op in first.calls}) == len(first.calls) == 6


def test_inputs_are_named_by_parameter_and_place() -> None:
    def forward(self: Any, batch: dict[str, Any], *rest: Tensor, **more: Tensor) -> Tensor:
        return batch["audio"] + batch["views"][1] + rest[0] + more["extra"]

    module = make(forward)
    views = [x(2), x(2, seed=1)]
    trace = captured(module, {"audio": x(2, seed=2), "views": views}, x(2, seed=3), extra=x(2, seed=4))
    assert [name for name, _ in trace.inputs] == ["batch.audio", "batch.views.0", "batch.views.1", "rest.0", "extra"]


def test_reading_a_value_is_recorded_with_its_line() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        if a.sum() > 0:  # the line that is recorded
            return a * a.max().item()
        return a

    trace = captured(make(forward), torch.ones(2, 3))
    first = forward.__code__.co_firstlineno
    found = [(read.what, read.source.file, read.source.line) for read in trace.reads if read.source]
    assert found == [("__bool__", __file__, first + 1), ("item", __file__, first + 2)]


def test_what_a_graph_cannot_repeat_is_said() -> None:
    def hooked(self: Any, a: Tensor) -> Tensor:
        b = a * 2
        b.requires_grad_()
        b.register_hook(lambda gradient: gradient * 2)
        return b

    def mapped(self: Any, a: Tensor) -> Tensor:
        return torch.func.grad(lambda row: (row * 2).sum())(a)

    assert any("hook" in effect for effect in captured(make(hooked), x(2)).effects)
    assert any("torch.func" in effect for effect in captured(make(mapped), x(2)).effects)
    assert captured(module_for(positional, True), *two(2)[0]).effects == ()


def test_tensors_that_share_memory_share_a_storage() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        b = a + 1
        return b.view(-1)[1:]

    trace = captured(make(forward), x(2))
    storage = [trace.tensors[uid].storage for uid in (trace.inputs[0][1], *(op.outputs[0] for op in trace.calls))]
    assert storage[1] == storage[2] == storage[3] != storage[0]


def test_dead_reads_leave_no_code_behind() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        unused = a * 3
        assert a.shape[0] > 0
        assert unused.dtype == a.dtype
        return a + 1

    code = captured(make(forward), x(2), strict=True).graph.python_code("self").src
    assert "shape" not in code
    assert "mul" not in code


def test_a_module_whose_result_nobody_uses_is_still_called() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        self.norm(a)  # for its running statistics
        return a * 2

    module = module_for(forward, training=True)
    check_repeats(module, captured(module, x(2)), one(4))


# -- strict captures --------------------------------------------------------------------------------------------------


def test_a_tensor_from_nowhere_is_a_constant_and_with_gradient_a_refusal() -> None:
    table = torch.randn(2, 6)
    learned = [torch.randn(6, requires_grad=True)]

    def constant(self: Any, a: Tensor) -> Tensor:
        return a @ table.T

    def hidden_parameter(self: Any, a: Tensor) -> Tensor:
        return a * learned[0]

    trace = captured(make(constant), x(2), strict=True)
    assert [value is table or torch.equal(value, table) for value in trace.constants.values()] == [True]
    check_repeats(make(constant), trace, one(3))
    with pytest.raises(UnrecordableError, match="needs a gradient"):
        captured(make(hidden_parameter), x(2), strict=True)


def test_objects_that_a_graph_cannot_hold_are_refused_with_their_line() -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

    def forward(self: Any, a: Tensor) -> Tensor:
        return self.child(a, Cache())

    def child(self: Any, a: Tensor, cache: Cache) -> Tensor:
        cache.seen.append(a)
        return a * 2

    module = make(forward, child=make(child))
    with pytest.raises(UnrecordableError, match=r"test_recorder.py:\d+ .*Cache"):
        captured(module, x(2), strict=True)
    assert torch.equal(run_graph(module, captured(module, x(2)), x(3)), x(3) * 2)  # looked into, there is no object


def test_an_attribute_of_the_root_is_read_anew_at_every_call() -> None:
    class Temperature:
        def __init__(self) -> None:
            self.value = 2.0

    def forward(self: Any, a: Tensor) -> Tensor:
        return self.child(a, self.temperature)

    def child(self: Any, a: Tensor, temperature: Temperature) -> Tensor:
        return a * temperature.value

    module = make(forward, child=make(child))
    module.temperature = Temperature()
    trace = captured(module, x(2), strict=True)
    module.temperature = Temperature()
    module.temperature.value = 5.0
    same(run_graph(module, trace, x(2)), x(2) * 5.0)


def reads_values(self: Any, a: Tensor) -> Tensor:
    if a.mean() > 0:
        a = a * a.max().item()
    return a + len(a[0].tolist())


def test_a_graph_that_holds_for_some_values_only_says_so_at_others() -> None:
    module = make(reads_values)
    trace = captured(module, torch.ones(2, 3), strict=True)
    same(run_graph(module, trace, torch.ones(4, 3)), module(torch.ones(4, 3)))
    line = reads_values.__code__.co_firstlineno
    for other, where in ((-torch.ones(2, 3), line + 1), (torch.full((2, 3), 2.0), line + 2)):
        with pytest.raises(UnseenCallError, match=rf"test_recorder.py:{where} reads the value of a tensor"):
            run_graph(module, trace, other)


def test_an_array_that_is_read_is_compared_as_a_whole() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        return a * float(a.numpy().sum() > 0)

    module = make(forward)
    trace = captured(module, torch.ones(2, 3), strict=True)
    same(run_graph(module, trace, torch.ones(2, 3)), torch.ones(2, 3))
    for other in (torch.ones(3, 3), torch.eye(2, 3)):
        with pytest.raises(UnseenCallError, match=r"reads the value"):
            run_graph(module, trace, other)


@torch.jit.script
def scripted(a: Tensor) -> Tensor:
    return a * 2


def unseen_by_scripting(self: Any, a: Tensor) -> Tensor:
    return scripted(a) + 1


def unseen_by_numpy(self: Any, a: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(a.numpy())) + 1


def unseen_by_vmap(self: Any, a: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: row * 2)(a) + 1


def unseen_hook(self: Any, a: Tensor) -> Tensor:
    b = a * self.gain
    b.register_hook(lambda gradient: gradient * 2)
    return b


@pytest.mark.parametrize("forward", [unseen_by_scripting, unseen_by_numpy, unseen_by_vmap, unseen_hook])
def test_what_happens_out_of_sight_is_refused_instead_of_frozen(forward: Callable[..., Any]) -> None:
    module = make(forward, gain=nn.Parameter(torch.ones(3)))
    with pytest.raises(UnrecordableError, match=r"test_recorder\.py:\d+"):
        captured(module, torch.ones(2, 3), strict=True)


class Mapped(nn.Module):
    """A function under vmap takes a row, and from around it a tensor of the run and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        shift = b.mean(0)
        nested = torch.func.vmap(lambda row: torch.vmap(torch.square)(row) + shift)
        return torch.func.vmap(lambda row: self.layer(row) + shift, chunk_size=2)(a) + nested(a)


def test_a_call_under_vmap_is_one_operation_on_all_that_it_takes() -> None:
    model = Mapped()
    trace = captured(model, x(4), x(4, seed=1))
    mapped = [op for op in trace.calls if op.name == "vmap"]
    shift = next(op.outputs[0] for op in trace.calls if op.name == "mean")
    names = [[trace.tensors[uid].parameter for uid in op.inputs] for op in mapped]
    assert [name for name in names[0] if name] == ["layer.weight", "layer.bias"]
    assert all(op.inputs[0] == trace.inputs[0][1] and shift in op.inputs for op in mapped)
    assert [op.name for op in trace.calls] == ["mean", "vmap", "vmap", "add"]
    assert not trace.effects
    same(run_graph(model, trace, x(4), x(4, seed=1)), model(x(4), x(4, seed=1)))
