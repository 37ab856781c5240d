"""Situations: what is done first with a model that was rewritten and never called, by the tools around torch."""

from __future__ import annotations

import copy
import importlib
import io
import os
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.package import PackageExporter, PackageImporter

import regbn_surgery
from regbn_surgery import CaptureError, RegBNError, load_regbn, save_regbn
from tests.zoo._running import call, copied, tensors_of

from ._in_training import through_onnx
from ._subject import (
    SEED,
    DoesNotApplyError,
    Subject,
    assert_same,
    gradients,
    loss_of,
    outputs,
    regbns,
    seeded_call,
    the_original_must,
    unless_the_original_fails,
    with_uneven_weights,
)

Runs = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def fresh(subject: Subject) -> nn.Module:
    """Rewritten, with a projection that matters, in evaluation, and never called."""
    return with_uneven_weights(subject.rewritten())


def needs(module: str) -> Any:
    """A library that the situation is about."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DoesNotApplyError(f"{module.partition('.')[0]} is not installed") from error


def first(subject: Subject, what: str, run: Runs, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """`run` gives what the model computes, by a tool that is the first to call it; as another copy does by itself."""
    args, kwargs = subject.example_for(3)

    def same(model: nn.Module, alike: nn.Module) -> None:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(SEED)
            found = [out.clone() for out in tensors_of(run(model, copy.deepcopy(args), copy.deepcopy(kwargs)))]
        assert_same(found, outputs(alike, subject.example(3)), rtol=rtol, atol=atol)

    unless_the_original_fails(
        what,
        lambda: same(fresh(subject), fresh(subject)),
        lambda: same(subject.original().eval(), subject.original().eval()),
    )


# -- graphs -----------------------------------------------------------------------------------------------------------


def exported(subject: Subject) -> None:
    """`torch.export`, not strict, is the first to call the model: the eager results."""
    first(subject, "export", lambda m, a, k: torch.export.export(m, a, k, strict=False).module()(*a, **k))


def exported_strictly(subject: Subject) -> None:
    """`torch.export`, strict, is the first to call the model: the eager results."""
    first(subject, "export", lambda m, a, k: torch.export.export(m, a, k, strict=True).module()(*a, **k))


def to_onnx(subject: Subject) -> None:
    """`torch.onnx.export` is the first to call the model; run by onnxruntime: the eager results."""
    first(subject, "go to ONNX", through_onnx, rtol=1e-3, atol=1e-4)


def traced(subject: Subject) -> None:
    """`torch.jit.trace` is the first to call the model: the eager results."""

    def run(model: nn.Module, args: Any, kwargs: Any) -> Any:
        given: dict[str, Any] = {"example_inputs": args} if args or not kwargs else {"example_kwarg_inputs": kwargs}
        return torch.jit.trace(model, **given, strict=False, check_trace=False)(*args, **kwargs)

    first(subject, "trace", run)


def drawn_by_tensorboard(subject: Subject) -> None:
    """TensorBoard's `add_graph` is the first to call the model: the graph shows each RegBN."""
    writing = needs("torch.utils.tensorboard")
    needs("tensorboard")
    args, kwargs = subject.example_for(3)

    def names(model: nn.Module) -> set[str]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        if kwargs:
            raise TypeError("add_graph takes positional arguments alone")
        with tempfile.TemporaryDirectory() as folder:
            with writing.SummaryWriter(folder) as writer:
                writer.add_graph(model, copy.deepcopy(args), use_strict_trace=False)
            events = EventAccumulator(folder).Reload()
            return {node.name for node in events.Graph().node}

    def shown() -> None:
        model = fresh(subject)
        found = names(model)
        for name in regbns(model):
            site = name.split(".")[-2] if "." in name else name
            assert any(site in node for node in found), f"{name} is not in the graph"

    unless_the_original_fails("go to TensorBoard", shown, lambda: names(subject.original().eval()))


def followed_by_symbols(subject: Subject) -> None:
    """`torch.fx.symbolic_trace` is the first to call the model: the eager results; in training the same state, too."""
    first(subject, "trace with symbols", lambda m, a, k: torch.fx.symbolic_trace(m)(*a, **k))
    model = fresh(subject).train()
    traced, alike = copy.deepcopy(torch.fx.symbolic_trace(model)), copy.deepcopy(model)
    assert_same(outputs(traced, subject.example()), outputs(alike, subject.example()))
    found = {name: value for name, value in traced.state_dict().items() if "regbn_" in name}
    assert_same({name: alike.state_dict()[name] for name in found}, found)


def scripted(subject: Subject) -> None:
    """`torch.jit.script`: refused with what to use instead, where the original can be scripted."""
    the_original_must("go to TorchScript", lambda: torch.jit.script(subject.original().eval()))
    _refused(CaptureError, torch.jit.script, fresh(subject), "torch.jit.trace")


def _refused(error: type[Exception], tool: Callable[[nn.Module], Any], model: nn.Module, instead: str) -> None:
    try:
        tool(model)
    except error as refusal:
        if instead not in str(refusal):
            raise
    else:
        raise AssertionError(f"{tool.__name__} went by RegBN")


# -- functions and packages -------------------------------------------------------------------------------------------


def called_functionally(subject: Subject) -> None:
    """`torch.func.functional_call` is the first to call the model: the eager results."""

    def run(model: nn.Module, args: Any, kwargs: Any) -> Any:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return torch.func.functional_call(model, state, args, kwargs)

    first(subject, "run by functional_call", run)


def differentiated(subject: Subject) -> None:
    """`torch.func.grad` of the loss is the first to call the model: the gradients of autograd."""
    example = subject.example(3)

    def same(model: nn.Module, alike: nn.Module) -> None:
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        rest = {name: value for name, value in model.named_parameters() if name not in state}
        rest |= dict(model.named_buffers())
        whole = Functional(model)

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            named = {f"model.{name}": value for name, value in {**rest, **parameters}.items()}
            return loss_of(torch.func.functional_call(whole, named, (example,)))

        with torch.random.fork_rng():
            torch.manual_seed(SEED)  # for models that draw numbers: negatives of a batch, say
            found = torch.func.grad(loss)(state)
        loss_of(seeded_call(alike, example)).backward()
        expected = gradients(alike)
        scale = max((float(value.abs().max()) for value in expected.values()), default=1.0)
        assert_same({name: found[name] for name in expected}, expected, rtol=1e-3, atol=1e-5 * max(scale, 1.0))

    unless_the_original_fails(
        "run under torch.func.grad",
        lambda: same(fresh(subject), fresh(subject)),
        lambda: same(subject.original().eval(), subject.original().eval()),
    )


class Functional(nn.Module):
    """Calls a model on an example, whatever its form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, example: Any) -> Any:
        return call(self.model, copy.deepcopy(example))


def packaged(subject: Subject) -> None:
    """`torch.package` and back, then the first call: the eager results, or a refusal."""

    def run(model: nn.Module, args: Any, kwargs: Any) -> Any:
        file = io.BytesIO()
        with PackageExporter(file) as package:
            package.intern(type(model).__module__)
            package.extern("**")
            package.save_pickle("model", "model.pkl", model)
        file.seek(0)
        return PackageImporter(file).load_pickle("model", "model.pkl")(*args, **kwargs)

    try:
        first(subject, "go into a package", run)
    except RegBNError:
        return  # said, and not passed by


# -- saving -----------------------------------------------------------------------------------------------------------


def checkpointed_by_dcp(subject: Subject) -> None:
    """`torch.distributed.checkpoint` of a model that was never called, into another one: its first call is the same."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    def there_and_back(model: nn.Module, other: nn.Module) -> None:
        with tempfile.TemporaryDirectory() as folder:
            dcp.save(get_model_state_dict(model), checkpoint_id=folder)
            state = get_model_state_dict(other)
            dcp.load(state, checkpoint_id=folder)
            set_model_state_dict(other, state)
        assert_same(outputs(other, subject.example(3)), outputs(model, subject.example(3)), 0, 0)

    unless_the_original_fails(
        "go through a distributed checkpoint",
        lambda: there_and_back(fresh(subject), subject.rewritten().eval()),
        lambda: there_and_back(subject.original().eval(), subject.original().eval()),
    )


def offloaded(subject: Subject) -> None:
    """accelerate's `cpu_offload`, `disk_offload` and `dispatch_model` before the first call: the results without."""
    accelerate = needs("accelerate")
    device = torch.device("cpu")

    def by_disk(model: nn.Module) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            accelerate.disk_offload(model, folder, execution_device=device)
            return _called(model, subject)

    ways: dict[str, Callable[[nn.Module], Any]] = {
        "cpu_offload": lambda m: _called(accelerate.cpu_offload(m, execution_device=device), subject),
        "disk_offload": by_disk,
        "dispatch_model": lambda m: _called(
            accelerate.dispatch_model(m, device_map={"": "cpu"}, force_hooks=True), subject
        ),
    }
    for name, way in ways.items():
        found = unless_the_original_fails(
            f"bear {name}",
            lambda way=way: way(fresh(subject)),  # type: ignore[misc]
            lambda way=way: way(copied(subject.original()).eval()),  # type: ignore[misc]
        )
        try:
            assert_same(found, outputs(fresh(subject), subject.example(3)))
        except AssertionError:
            the_original_must(f"compute the same with {name}", lambda way=way: _offloaded_often(subject, way))  # type: ignore[misc]
            raise


def _offloaded_often(subject: Subject, way: Callable[[nn.Module], Any]) -> None:
    """accelerate knows tensors by their addresses, and leaves some of them out: which, is another one every time."""
    kept = []
    for _ in range(5):
        kept.append(copied(subject.original()).eval())
        assert_same(way(copied(kept[-1])), outputs(kept[-1], subject.example(3)))


def _called(model: nn.Module, subject: Subject) -> list[Tensor]:
    return outputs(model, subject.example(3))


def quantised(subject: Subject) -> None:
    """torchao's int8 weights, put in after the surgery and before it: the same results, also in the first call."""
    library = needs("torchao.quantization")

    def quantise(model: nn.Module) -> nn.Module:
        library.quantize_(model, library.Int8WeightOnlyConfig())
        return model

    expected = unless_the_original_fails(
        "bear int8 weights",
        lambda: _called(quantise(fresh(subject)), subject),
        lambda: _called(quantise(subject.original().eval()), subject),
    )
    original = quantise(subject.original().eval())
    the_original_must("come back from a copy with int8 weights", lambda: _called(copy.deepcopy(original), subject))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewritten = regbn_surgery.regbnify(original, subject.rules(), subject.case.example).eval()
    state = fresh(subject).state_dict()
    missing = rewritten.load_state_dict({k: v for k, v in state.items() if "regbn_" in k}, strict=False)
    assert not missing.unexpected_keys
    assert_same(_called(rewritten, subject), expected, rtol=1e-3, atol=1e-4)


# -- classes and rules ------------------------------------------------------------------------------------------------


def made_by_its_class(subject: Subject) -> None:
    """`type(model)(...)` makes an original, which says at its first call that it carries no RegBN."""
    original = subject.original()
    given = (original.config,) if hasattr(original, "config") else ()
    the_original_must("come from its class and its config alone", lambda: type(original)(*given).eval())
    made = type(subject.rewritten())(*given).eval()
    made.load_state_dict(original.state_dict())
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = outputs(made, subject.example(3))
    assert_same(found, outputs(subject.original().eval(), subject.example(3)))
    assert not [module for module in made.modules() if isinstance(module, regbn_surgery.RegBN)]


def shared_by_the_hub(subject: Subject) -> None:
    """A class with the hub's mixin saves itself with the recipe; its folder makes the model again."""
    hub = needs("huggingface_hub")
    original = subject.original()
    if hasattr(original, "save_pretrained"):
        raise DoesNotApplyError("the model has a save_pretrained of its own")
    mixed = types.new_class(type(original).__name__, (type(original), hub.PyTorchModelHubMixin))
    mixed.__module__ = type(original).__module__

    def saved(model: Any, folder: str) -> Any:
        model.save_pretrained(folder)
        return model

    def original_way() -> None:
        model = subject.original().eval()
        model.__class__ = mixed
        with tempfile.TemporaryDirectory() as folder:
            saved(model, folder)

    the_original_must("take the hub's mixin", original_way)
    original.__class__ = mixed
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model = with_uneven_weights(regbn_surgery.regbnify(original, subject.rules(), subject.case.example))
        saved(model, folder)
        assert (Path(folder) / "regbn.json").exists()
        again = subject.original()
        again.__class__ = mixed
        found = load_regbn(again, folder).eval()
    assert_same(_called(found, subject), _called(model, subject))


def rules_of_omegaconf(subject: Subject) -> None:
    """Rules as OmegaConf has them: the same plan, and the same model."""
    library = needs("omegaconf")
    rules = library.OmegaConf.create(subject.rules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = regbn_surgery.regbnify(subject.original(), rules, subject.case.example)
    assert list(model.state_dict()) == list(subject.rewritten().state_dict())


def from_an_empty_model(subject: Subject) -> None:
    """`load_regbn` into a model built on the meta device takes all values from the folder, also for its first call."""
    model = fresh(subject)
    empty = the_original_must("come without values", lambda: _empty(subject))
    with tempfile.TemporaryDirectory() as folder:
        save_regbn(model, folder)
        found = load_regbn(empty, folder).eval()
    assert not any(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))
    assert_same(_called(found, subject), _called(model, subject))


def _empty(subject: Subject) -> nn.Module:
    """The original without values; those that no state dict has could not come from a folder."""
    with torch.device("meta"):
        model = subject.original()
    kept = set(model.state_dict())
    lost = [name for name, _ in model.named_buffers(remove_duplicate=False) if name not in kept]
    if lost:
        raise ValueError(f"{lost[0]} is in no state dict")
    return model


os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # TorchScript talks about what it does not optimise

SITUATIONS: dict[str, Callable[[Subject], None]] = {
    "first: export": exported,
    "first: strict export": exported_strictly,
    "first: ONNX": to_onnx,
    "first: jit.trace": traced,
    "first: add_graph": drawn_by_tensorboard,
    "first: symbolic_trace": followed_by_symbols,
    "first: jit.script": scripted,
    "first: functional_call": called_functionally,
    "first: torch.func.grad": differentiated,
    "first: torch.package": packaged,
    "first: DCP": checkpointed_by_dcp,
    "first: offload": offloaded,
    "first: torchao": quantised,
    "first: type(model)(...)": made_by_its_class,
    "first: hub mixin": shared_by_the_hub,
    "first: OmegaConf": rules_of_omegaconf,
    "first: meta device": from_an_empty_model,
}
