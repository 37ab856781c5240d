"""`torch.fx.symbolic_trace` of rewritten models: RegBN is a call of the graph, or the trace is refused in words.

Annotations are no strings here: torch cannot pickle a traced module of a forward that has such.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import CaptureError, RegBN, RegBNBypassedError, load_regbn, save_regbn, unregbnify
from regbn_surgery._surgery import RegBNSite, explain

from .models import (
    Cross,
    Late,
    Masked,
    Nested,
    build,
    operate,
    operate_by,
    rules,
    run,
    site_of,
    step,
    token_pairs,
    vectors,
    ways,
)


class Base(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(width, 3)


class Joins(Base):
    def __init__(self) -> None:
        super().__init__(16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class Early(nn.Module):
    """The root's own arguments: RegBN goes into a hook of the root, which tracing does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(11, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([a, b], dim=-1))


class EarlyByKeyword(Early):
    def forward(self, a: Tensor, *, b: Tensor, scale: float = 1.0, **_: Any) -> Tensor:
        return self.head(torch.cat([a, b], dim=-1)) * scale


class WithOptions(Joins):
    """Defaults, arguments by keyword alone, and those that nobody names."""

    def forward(self, a: Tensor, b: Tensor, *more: Tensor, scale: float = 2.0, **_: Any) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1)) * scale


class Recurrent(Base):
    """Sides are parts of what one call gives: which, a symbol does not say."""

    def __init__(self) -> None:
        super().__init__(16)
        self.enc_a = nn.LSTM(6, 8, batch_first=True)  # type: ignore[assignment]
        self.enc_b = nn.GRU(5, 8, batch_first=True)  # type: ignore[assignment]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        _, (state, _) = self.enc_a(a)
        _, last = self.enc_b(b)
        return self.head(torch.cat([state[0], last[0]], dim=-1))


class Parted(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        _, left = self.enc_a(a).chunk(2, dim=-1)
        right = self.enc_b(b).split(4, -1)[1]
        return self.head(torch.cat([left, right], dim=-1))


class InPlace(Base):
    """What is written in place stays the side that it was."""

    def __init__(self) -> None:
        super().__init__(16)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left, right = self.enc_a(a), self.enc_b(b)
        self.relu(left)
        right.tanh_()
        return self.head(torch.cat([left, right], dim=-1))


class Added(Base):
    """The join writes into f, and another call reads f after it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left = self.enc_a(a)
        right = self.enc_b(b)
        left += right
        return self.head(left) + left.mean(-1, keepdim=True)


class Helped(Joins):
    def encoded(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.enc_a(a).relu(), self.enc_b(b)

    def joined(self, sides: list[Tensor]) -> Tensor:
        return torch.cat(sides, dim=-1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.joined(list(self.encoded(a, b))))


class Gated(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.enc_a(a) * torch.sigmoid(self.enc_b(b)))


class Modulated(Base):
    """g is what two parts of one call are, and no operand of the call that reads f."""

    def __init__(self) -> None:
        super().__init__()
        self.film = nn.Linear(5, 16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale, shift = self.film(b).chunk(2, dim=-1)
        return self.head(self.enc_a(a) * torch.sigmoid(scale) + shift)


class Rounds(Base):
    """One point for each round of a loop, and all of them for one rule."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))
        self.right = nn.ModuleList(nn.Linear(5, 8) for _ in range(3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Any = 0
        for left, right in zip(self.left, self.right, strict=True):
            out = out + left(a) * right(b)
        return self.head(out)


class Joiner(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left, right], dim=-1)


class Shared(Base):
    """One owner in two roles."""

    def __init__(self) -> None:
        super().__init__(32)
        self.join = Joiner()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left, right = self.enc_a(a), self.enc_b(b)
        return self.head(torch.cat([self.join(left, right), self.join(right, left)], dim=-1))


class Batched(nn.Module):
    """One argument is a structure: its parts are asked for by name."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.head = nn.Linear(6, 8), nn.Linear(13, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([self.enc_a(batch["a"]), batch["b"]], dim=-1))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.joins, self.early, self.nested = Joins(), Early(), Nested()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.joins(a, b), self.early(a, b), self.nested(a, b)


MODELS: dict[type[nn.Module], tuple[str, Callable[[int], dict[str, Any]]]] = {
    Joins: ("concat", vectors),
    Early: ("concat", vectors),
    EarlyByKeyword: ("concat", vectors),
    WithOptions: ("concat", vectors),
    Recurrent: ("concat", token_pairs),
    Parted: ("concat", vectors),
    InPlace: ("concat", vectors),
    Added: ("sum", vectors),
    Helped: ("concat", vectors),
    Gated: ("product", vectors),
    Modulated: ("product", vectors),
    Rounds: ("product", vectors),
    Shared: ("concat", vectors),
    Nested: ("concat", vectors),
    Cross: ("attention", token_pairs),
    Batched: ("concat", lambda batch: {"batch": vectors(batch)}),
    Both: ("concat", vectors),
}


def rewritten(cls: type[nn.Module], **rule: Any) -> Any:
    kind, example = MODELS[cls]
    if cls is Batched:
        given = rules(kind, **rule)
        given["modalities"] = {"a": ["batch.a"], "b": ["batch.b"]}
        return regbn_surgery.regbnify(build(cls), given, example(4))
    return operate(build(cls), example(4), kind, **rule)


def assert_traced(traced: nn.Module, model: nn.Module, example: Callable[[int], dict[str, Any]]) -> None:
    """The same results as the model at two batch sizes, twice, and the same state afterwards."""
    model, traced = copy.deepcopy(model), copy.deepcopy(traced)
    for batch in (5, 3, 5):
        torch.testing.assert_close(run(traced, example(batch)), run(model, example(batch)))
    found = traced.state_dict()
    for name, value in model.state_dict().items():
        if name in found:  # what no call of the forward uses is in no graph
            torch.testing.assert_close(found[name], value)
    assert {name for name in model.state_dict() if "regbn_" in name} <= set(found)


def calls_in(traced: Any) -> set[str]:
    """Which modules the graph calls."""
    return {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_the_first_thing_done_with_a_rewritten_model_may_be_a_symbolic_trace(cls: type[nn.Module], train: bool) -> None:
    torch.fx.symbolic_trace(build(cls))
    model = rewritten(cls).train(train)
    traced = torch.fx.symbolic_trace(model)
    names = {name for name, module in model.named_modules() if isinstance(module, RegBNSite)}
    assert names
    assert names <= calls_in(traced) or cls is Cross  # torch's attention is one call, with its RegBN in it
    assert [node.name for node in traced.graph.nodes if node.op == "placeholder"] == [
        node.name for node in torch.fx.symbolic_trace(build(cls)).graph.nodes if node.op == "placeholder"
    ]
    assert_traced(traced, model, MODELS[cls][1])
    if cls.__module__ == __name__:
        assert_traced(pickle.loads(pickle.dumps(traced)), model, MODELS[cls][1])
    assert_traced(traced.train(not train), model.train(not train), MODELS[cls][1])


def by_pickle(model: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(model))


def by_copy(model: Any, folder: Path) -> Any:
    return copy.deepcopy(model)


def by_folder(model: Any, folder: Path) -> Any:
    save_regbn(model, folder)
    cls = next(cls for cls in MODELS if cls.__name__ == type(model).__name__)
    return load_regbn(build(cls), folder)


@pytest.mark.parametrize("again", [by_pickle, by_copy, by_folder], ids=lambda again: again.__name__)
@pytest.mark.parametrize("cls", [Joins, Early, Both, Shared], ids=lambda cls: cls.__name__)
def test_a_trained_model_that_was_stored_is_traced(cls: type[nn.Module], again: Any, tmp_path: Path) -> None:
    model = rewritten(cls)
    step(model, MODELS[cls][1](4))
    found = again(model, tmp_path).eval()
    assert_traced(torch.fx.symbolic_trace(found), model.eval(), MODELS[cls][1])


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_after_unregbnify_the_trace_is_that_of_the_original(cls: type[nn.Module]) -> None:
    model = unregbnify(rewritten(cls))
    assert type(model) is cls
    expected = torch.fx.symbolic_trace(build(cls))
    assert str(torch.fx.symbolic_trace(model).graph) == str(expected.graph)


@pytest.mark.parametrize("cls", [Joins, Early], ids=lambda cls: cls.__name__)
def test_a_rewritten_root_in_another_model_and_in_a_function(cls: type[nn.Module]) -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.inner(b=b, a=a).relu()

    model = Around(rewritten(cls)).eval()
    traced = torch.fx.GraphModule(model, torch.fx.Tracer().trace(model))
    assert "inner.regbn_x" in calls_in(traced)
    assert_traced(traced, model, vectors)


@pytest.mark.parametrize("cls", [EarlyByKeyword, WithOptions], ids=lambda cls: cls.__name__)
def test_concrete_arguments_are_what_they_are_for_the_original(cls: type[nn.Module]) -> None:
    model = rewritten(cls).eval()
    original, traced = (torch.fx.symbolic_trace(m, concrete_args={"scale": 3.0}) for m in (build(cls), model))
    names = [[node.name for node in made.graph.nodes if node.op == "placeholder"] for made in (original, traced)]
    assert names[0] == names[1]
    given = vectors(5)
    found = traced(**given, **dict.fromkeys(name for name in names[1] if name.startswith("scale")) | {"scale_1": 3.0})
    torch.testing.assert_close(found, model(**given, scale=3.0))


def test_a_trace_after_a_call_that_failed_finds_the_roles_from_the_start() -> None:
    model = rewritten(Shared).eval()
    shape = {"a": torch.randn(4, 6), "b": torch.randn(4, 4)}
    with pytest.raises(RuntimeError):
        model(**shape)
    next(module for module in model.modules() if isinstance(module, Joiner))(torch.randn(4, 8), torch.randn(4, 8))
    assert_traced(torch.fx.symbolic_trace(model), model, vectors)


class ByMode(Base):
    """No expression of its own for the addition."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.add(self.enc_a(a), self.enc_b(b)))


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.out = ByMode(), nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.part(a, b=b))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_a_part_under_a_function_mode_is_one_call_of_the_graph(train: bool) -> None:
    model = operate_by("mode", build(Holds), vectors(), "sum").train(train)
    traced = torch.fx.symbolic_trace(model)
    assert calls_in(traced) == {"part", "out"}
    assert_traced(traced, model, vectors)


def test_a_root_under_a_function_mode_is_refused_with_what_to_use() -> None:
    model = operate_by("mode", build(ByMode), vectors(), "sum")
    with pytest.raises(RegBNBypassedError, match=r"cannot follow ByMode .* function mode.* Use torch\.export\.export"):
        torch.fx.symbolic_trace(model)


class AddsOn(Base):
    """`+=` makes a new symbol, so that nobody sees that it is still the side."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left = self.enc_a(a)
        left += 1.0
        return self.head(torch.add(left, self.enc_b(b)))


class HoldsAddsOn(Holds):
    def __init__(self) -> None:
        super().__init__()
        self.part = AddsOn()  # type: ignore[assignment]


def test_what_symbols_do_not_show_is_refused_at_the_root_and_one_call_elsewhere() -> None:
    model = operate(build(AddsOn), vectors(), "sum")
    if ways(model) == {"source"}:
        with pytest.raises(RegBNBypassedError, match=r"cannot follow AddsOn .*Use torch\.export\.export"):
            torch.fx.symbolic_trace(model)
    model = operate(build(HoldsAddsOn), vectors(), "sum").eval()
    traced = torch.fx.symbolic_trace(model)
    assert calls_in(traced) == {"part", "out"}
    assert not any(node.op == "call_module" and not node.users for node in traced.graph.nodes)
    assert_traced(traced, model, vectors)


class EarlyBatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(11, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([batch["a"], batch["b"]], dim=-1))


def test_parts_of_an_argument_that_a_hook_would_exchange_are_refused() -> None:
    given = {**rules(), "modalities": {"a": ["batch.a"], "b": ["batch.b"]}}
    model = regbn_surgery.regbnify(build(EarlyBatched), given, {"batch": vectors()})
    if any(report.way == "hook" for report in explain(model)):
        with pytest.raises(RegBNBypassedError, match=r"`batch\.a` is a part of an argument"):
            torch.fx.symbolic_trace(model)


class EarlyAmongOthers(Early):
    def forward(self, *sides: Tensor) -> Tensor:
        return self.head(torch.cat([sides[0], sides[1]], dim=-1))


def test_arguments_that_symbols_show_as_one_are_refused_where_a_hook_would_exchange_them() -> None:
    torch.fx.symbolic_trace(build(EarlyAmongOthers))
    given = {**rules(), "modalities": {"a": ["sides.0"], "b": ["sides.1"]}}
    model = regbn_surgery.regbnify(build(EarlyAmongOthers), given, tuple(vectors().values()))
    assert ways(model) == {"hook"}
    with pytest.raises(RegBNBypassedError, match=r"`sides\.0` is among arguments that symbols show as one"):
        torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("constant", ["a", "b"])
def test_a_side_that_is_a_tensor_already_goes_into_the_graph(constant: str) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.regbn = RegBN(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            fixed = torch.arange(32.0).reshape(4, 8)
            f, g = self.regbn(fixed, x) if constant == "a" else self.regbn(x, fixed)
            return f + g

    model = Around().eval()
    traced = torch.fx.symbolic_trace(model)
    assert calls_in(traced) == {"regbn"}
    x = torch.randn(4, 8)
    torch.testing.assert_close(traced(x), model(x))


class AsksItsClass(Joins):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale = 2.0 if type(self) is AsksItsClass else 1.0
        return scale * self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class EarlyAsks(Early):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale = 2.0 if type(self) is EarlyAsks else 1.0
        return scale * self.head(torch.cat([a, b], dim=-1))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("cls", [AsksItsClass, EarlyAsks], ids=lambda cls: cls.__name__)
def test_a_root_that_keeps_its_class_is_refused_and_followed_within_another(cls: type[nn.Module], again: Any) -> None:
    model = again(operate(build(cls), vectors())).eval()
    assert type(model) is cls
    assert cls.__name__ in repr(model)
    with pytest.raises(RegBNBypassedError, match=r"tracers take the forward of its class.*Use torch\.export\.export"):
        torch.fx.symbolic_trace(model)
    around = nn.Module()
    around.inner = model

    class Around(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.inner(a, b)

    around.__class__ = Around
    traced = torch.fx.symbolic_trace(around.eval())
    assert "inner.regbn_x" in calls_in(traced)
    assert_traced(traced, around, vectors)
    original = unregbnify(model)
    assert "_get_name" not in vars(original)
    torch.fx.symbolic_trace(original)


def test_a_masked_attention_has_its_mask_in_the_graph() -> None:
    def example(batch: int) -> dict[str, Any]:
        mask = torch.ones(batch, 5)
        mask[0, 3:] = 0
        return {**token_pairs(batch), "b_mask": mask}

    model = operate(build(Masked), example(4), "attention", normalize="b", against="a")
    step(model, example(4))
    traced = torch.fx.symbolic_trace(model.eval())
    assert site_of(model).masks
    assert_traced(traced, model, example)
    assert not torch.equal(run(traced, example(4)), run(traced, {**example(4), "b_mask": torch.ones(4, 5)}))


def test_control_flow_by_values_is_refused_as_for_the_original() -> None:
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(build(Late))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(operate(build(Late), vectors()))


def test_a_new_instance_of_a_rewritten_class_is_traced_as_the_original() -> None:
    new = type(rewritten(Joins))()
    with pytest.warns(regbn_surgery.RegBNWarning, match="new instance"):
        traced = torch.fx.symbolic_trace(new)
    assert [node.name for node in traced.graph.nodes if node.op == "placeholder"] == ["a", "b"]


class ByHand(Base):
    def __init__(self) -> None:
        super().__init__()
        self.regbn = RegBN(8, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left, right = self.regbn(self.enc_a(a), self.enc_b(b))
        return self.head(left * right)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_a_regbn_that_somebody_called_by_hand_is_one_call(train: bool) -> None:
    model = build(ByHand).train(train)
    traced = torch.fx.symbolic_trace(model)
    assert "regbn" in calls_in(traced)
    assert_traced(traced, model, vectors)


def test_a_regbn_alone_is_refused() -> None:
    with pytest.raises(CaptureError, match="needs a model that holds it"):
        torch.fx.symbolic_trace(RegBN(8, 8))
