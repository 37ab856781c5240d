"""Situations: what anybody does to an `nn.Module` without thinking, done to a rewritten one."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, Dataset

import regbn_surgery
from regbn_surgery import AlreadyRewrittenError, CaptureError, Recipe, unregbnify
from regbn_surgery._surgery import explain, identity
from tests.zoo._running import tensors_of, training_step

from ._subject import (
    DoesNotApplyError,
    Subject,
    assert_regbn_learned,
    assert_same,
    backward,
    cast,
    counting,
    gradients,
    outputs,
    regbns,
    seeded_call,
    the_original_must,
    vanishing,
    warmed,
)


def same_with_identity(subject: Subject) -> None:
    """Outputs, gradients of every parameter, and buffers after a step, with identity in place of RegBN."""
    for batch in subject.case.batches:
        example = subject.example(batch)
        for train in (False, True):
            original, rewritten = subject.original().train(train), subject.rewritten().train(train)
            with identity(rewritten):
                assert_same(outputs(rewritten, example), outputs(original, example))
        original, rewritten = subject.original().train(), subject.rewritten().train()
        backward(original, example)
        with identity(rewritten):
            backward(rewritten, example)
        found = gradients(rewritten)
        assert_same({name: found[name] for name in gradients(original)}, gradients(original), rtol=1e-4, atol=1e-6)
        buffers = dict(rewritten.named_buffers())
        assert_same({name: buffers[name] for name, _ in original.named_buffers()}, dict(original.named_buffers()))


def class_and_attributes(subject: Subject) -> None:
    """The class by name and by `isinstance`, its methods, its signature, its attributes."""
    original, rewritten, again = subject.original(), subject.rewritten(), subject.original()
    for name, module in original.named_modules():
        twin = rewritten.get_submodule(name)
        if type(again.get_submodule(name)) is type(module):  # not a class that is made with each instance
            assert isinstance(twin, type(module)), name
        assert type(twin).__name__ == type(module).__name__
        assert type(twin).__module__ == type(module).__module__
        if not isinstance(module, torch.jit.ScriptModule):
            assert inspect.signature(twin.forward) == inspect.signature(module.forward)
        missing = [attribute for attribute in dir(module) if _has(module, attribute) and not _has(twin, attribute)]
        assert not missing, f"{name} lost {missing}"
    assert rewritten.extra_repr() == original.extra_repr()
    assert "RegBN" in repr(rewritten)


def _has(module: nn.Module, name: str) -> bool:
    """As `hasattr`, of properties that raise something else, too."""
    try:
        return hasattr(module, name)
    except ValueError:  # transformers' `tp_plan` of a configuration with two texts
        return False


def state_dict_keys(subject: Subject) -> None:
    """The original's keys are there; `strict=False` loads both ways and differs by RegBN's keys alone."""
    original, rewritten = subject.original(), subject.rewritten()
    before, after = original.state_dict(), rewritten.state_dict()
    added = after.keys() - before.keys()
    assert before.keys() <= after.keys()
    assert added
    assert all("regbn_" in key for key in added)
    missing, unexpected = rewritten.load_state_dict(before, strict=False)
    assert (set(missing), set(unexpected)) == (added, set())
    missing, unexpected = original.load_state_dict(after, strict=False)
    assert (set(missing), set(unexpected)) == (set(), added)
    training_step(rewritten, subject.example())
    fresh = subject.rewritten()
    fresh.load_state_dict(rewritten.state_dict())
    assert_same(outputs(fresh.eval(), subject.example()), outputs(rewritten.eval(), subject.example()), 0, 0)


def deep_copy(subject: Subject) -> None:
    """A copy, and a copy of it, compute the same and learn on their own."""
    model = subject.rewritten()
    training_step(model, subject.example())
    with torch.no_grad():  # as copies of scripted modules ask for
        twin = copy.deepcopy(copy.deepcopy(model))
    for train in (False, True):
        found = outputs(copy.deepcopy(twin).train(train), subject.example(3))
        assert_same(found, outputs(copy.deepcopy(model).train(train), subject.example(3)), 0, 0)
    before = copy.deepcopy(model.state_dict())
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_leaf)
    training_step(twin, subject.example())
    for name, module in regbns(twin).items():
        assert module.num_steps == 2 * regbns(model)[name].num_steps > 0, name
    assert_same(model.state_dict(), before, 0, 0)


def _used(subject: Subject) -> nn.Module:
    """The original after a step: `transformers` puts hooks on some models then that no longer pickle."""
    original = subject.original()
    training_step(original, subject.example())
    return original


def pickled(subject: Subject) -> None:
    """`pickle`, `torch.save` of the whole model, and of its state dict with `weights_only=True`."""
    the_original_must("pickle", lambda: pickle.dumps(_used(subject)))
    model = subject.rewritten()
    training_step(model, subject.example())
    expected = outputs(model.eval(), subject.example(3))
    found = pickle.loads(pickle.dumps(model))
    with counting(found) as calls:
        assert_same(outputs(found, subject.example(3)), expected, 0, 0)
    assert all(calls.values())
    assert type(found).__name__ == type(model).__name__
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert_same(outputs(torch.load(buffer, weights_only=False), subject.example(3)), expected, 0, 0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = subject.rewritten().eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(outputs(fresh, subject.example(3)), expected, 0, 0)


@functools.cache
def _spawned() -> Any:
    """One process for all models: starting it takes longer than most of what is asked of it."""
    return multiprocessing.get_context("spawn").Pool(1)


def _evaluated(model: nn.Module, example: Any) -> list[Any]:
    torch.set_num_threads(1)
    return [out.numpy() for out in outputs(model, example)]


class _Featured(Dataset[Any]):
    """A data set that runs a model in its workers."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self.example = model, example

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[Tensor]:
        return outputs(self.model, self.example)


def other_processes(subject: Subject) -> None:
    """`share_memory`, a spawned process, and the workers of a DataLoader."""
    the_original_must("pickle", lambda: pickle.dumps((_used(subject), subject.example(3))))
    model = subject.rewritten()
    training_step(model, subject.example())
    model.eval().share_memory()
    assert all(tensor.is_shared() for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    expected = outputs(model, subject.example(3))
    found = [torch.from_numpy(out) for out in _spawned().apply(_evaluated, (model, subject.example(3)))]
    assert_same(found, expected)
    loader = DataLoader(_Featured(model, subject.example(3)), batch_size=None, num_workers=1)
    for item in loader:
        assert_same(item, expected)


def other_dtypes(subject: Subject) -> None:
    """`to`, `half`, `bfloat16`, `double`, and back: what the original runs in, the rewritten one does, too."""
    example = subject.example()
    ran = []
    for change, dtype in (
        (nn.Module.double, torch.float64),
        (nn.Module.bfloat16, torch.bfloat16),
        (nn.Module.half, torch.float16),
    ):
        try:
            original = change(subject.original()).train()
            expected = outputs(original, cast(example, dtype))
            outputs(original.to("cpu", torch.float32), example)
        except (RuntimeError, ValueError, TypeError):
            continue  # the original does not run in this type
        ran.append(dtype)
        model = change(subject.rewritten()).train()
        with vanishing(model) as nothing_to_learn:
            found = outputs(model, cast(example, dtype))
        assert [out.dtype for out in found] == [out.dtype for out in expected], dtype
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        for name, module in regbns(model).items():
            assert all(factor.dtype == kept for factor in module.factors), name
        assert_regbn_learned(model, except_for=nothing_to_learn)
        outputs(model.eval(), cast(example, dtype))
        outputs(model.to("cpu", torch.float32), example)
    if not ran:
        raise DoesNotApplyError("the original runs in no other dtype")


def parameters_to_the_optimizer(subject: Subject) -> None:
    """`named_parameters`, `requires_grad_`, `apply`, `modules`: RegBN's affine parameters are among the rest."""
    original, model = subject.original(), subject.rewritten()
    names = {name for name, _ in model.named_parameters()}
    own = {f"{name}.{p}" for name, module in regbns(model).items() for p, _ in module.named_parameters()}
    assert names - {name for name, _ in original.named_parameters()} == own
    assert set(regbns(model).values()) <= set(model.modules())
    visited: list[nn.Module] = []
    model.apply(visited.append)
    assert set(visited) == set(model.modules())
    if own:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in own}
        model.train()
        backward(model, subject.example())
        reached = {name for name in own if model.get_parameter(name).grad is not None}
        hosts = [model.get_submodule(name.rsplit("regbn_", 1)[0].removesuffix(".")) for name in regbns(model)]
        beside = (p for host in hosts for name, p in host.named_parameters() if "regbn_" not in name)
        if not reached and all(p.grad is None for p in beside):
            return  # nor does one reach the hosts: the outputs that have gradients do not come by them
        assert reached, "no gradient reaches RegBN's parameters"
        optimizer.step()
        moved = {name for name in reached if not torch.equal(model.get_parameter(name), before[name])}
        assert moved
    for frozen in (model, original.train(model.training)):
        frozen.requires_grad_(False)
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
    ours, theirs = (tensors_of(seeded_call(frozen, subject.example(3))) for frozen in (model, original))
    assert [out.requires_grad for out in ours] == [out.requires_grad for out in theirs]


def forward_hooks(subject: Subject) -> None:
    """Hooks of the user fire as often as in the original, on every module; those of the hosts, too."""
    example = subject.example()
    original = subject.original().train()
    model = warmed(subject.rewritten(), example).train()
    paths = [name for name, module in original.named_modules() if not isinstance(module, torch.jit.ScriptModule)]
    expected, found = (_hook_counts(twin, paths, example) for twin in (original, model))
    assert found == expected


def _hook_counts(model: nn.Module, paths: list[str], example: Any) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()

    def counter(path: str, kind: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[path, kind] += 1

        return count

    handles = []
    for path in paths:
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(counter(path, "before")))
        handles.append(module.register_forward_hook(counter(path, "after")))
    seeded_call(model, example)
    for handle in handles:
        handle.remove()
    return counts


def parametrized_neighbours(subject: Subject) -> None:
    """`weight_norm` and a parametrization on other modules, put on before the surgery and after it."""
    original = subject.original()
    paths = [name for name, module in original.named_modules() if type(module) in (nn.Linear, nn.Conv2d, nn.Conv1d)]
    if not paths:
        raise DoesNotApplyError("the model has no linear or convolution layer")
    _parametrize(original, paths)
    the_original_must("run with weight_norm", lambda: outputs(original.eval(), subject.example()))
    after = subject.rewritten()
    _parametrize(after, paths)
    before = regbn_surgery.regbnify(original, subject.case.rules_dict(), subject.case.example)
    for model in (before, after):
        for train in (False, True):
            with identity(model):
                found = outputs(copy.deepcopy(model).train(train), subject.example())
            assert_same(found, outputs(copy.deepcopy(original).train(train), subject.example()), rtol=1e-4, atol=1e-5)
        with counting(model) as calls:
            training_step(model, subject.example())
        assert all(calls.values())


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrize(model: nn.Module, paths: list[str]) -> None:
    parametrizations.weight_norm(model.get_submodule(paths[0]))
    parametrize.register_parametrization(model.get_submodule(paths[-1]), "weight", _Doubled())


def recipe_again(subject: Subject) -> None:
    """The recipe, as JSON and back, does the same to a fresh instance."""
    import tempfile
    from pathlib import Path

    first = subject.rewritten()
    training_step(first, subject.example())
    with tempfile.TemporaryDirectory() as folder:
        Recipe.of(first).write(Path(folder) / "regbn.json")
        second = Recipe.read(Path(folder) / "regbn.json").apply(subject.original())
    second.load_state_dict(first.state_dict())
    for train in (False, True):
        expected = outputs(copy.deepcopy(first).train(train), subject.example(3))
        assert_same(outputs(second.train(train), subject.example(3)), expected, 0, 0)


def saved_and_loaded(subject: Subject) -> None:
    """`save_regbn` and `load_regbn`; with `save_pretrained` in between where the model has it."""
    import tempfile

    first = subject.rewritten()
    training_step(first, subject.example())
    with tempfile.TemporaryDirectory() as folder:
        regbn_surgery.save_regbn(first, folder)
        cls: Any = type(subject.original())
        fresh = cls.from_pretrained(folder) if hasattr(cls, "from_pretrained") else subject.original()
        assert type(fresh) is cls
        second = regbn_surgery.load_regbn(fresh, folder)
    assert_same(second.state_dict(), first.state_dict(), 0, 0)
    assert_same(outputs(second.eval(), subject.example(3)), outputs(first.eval(), subject.example(3)), 0, 0)


def undone(subject: Subject) -> None:
    """`unregbnify` gives the classes, keys, hooks and outputs of the original back, after training, too."""
    original, model = subject.original(), subject.rewritten()
    restored = unregbnify(model)
    for module, before, again in zip(restored.modules(), original.modules(), subject.original().modules(), strict=True):
        if type(before) is type(again):  # not a class that is made with each instance
            assert type(module) is type(before)
        assert type(module).__qualname__ == type(before).__qualname__
    assert list(restored.state_dict()) == list(original.state_dict())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in restored.modules()]
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in original.modules()]
    for train in (False, True):
        found = outputs(restored.train(train), subject.example(3))
        assert_same(found, outputs(original.train(train), subject.example(3)), 0, 0)


def refusals(subject: Subject) -> None:
    """A second surgery, and surgery on a wrapped model, are refused with the reason; nothing changes."""
    model = subject.rewritten()
    rules = subject.case.rules_dict()
    before = outputs(model.eval(), subject.example(3))
    for attempt in (
        lambda: regbn_surgery.regbnify(model, rules, subject.case.example),
        lambda: Recipe.of(model).apply(model),
    ):
        _refused(AlreadyRewrittenError, attempt, "already contains RegBN")
    _refused(
        CaptureError,
        lambda: regbn_surgery.regbnify(nn.DataParallel(subject.original()), rules, subject.case.example),
        "wrap the result",
    )
    assert_same(outputs(model, subject.example(3)), before, 0, 0)
    assert explain(model)


def _refused(error: type[Exception], attempt: Callable[[], Any], words: str) -> None:
    with pytest.raises(error, match=words):
        attempt()


SITUATIONS: dict[str, Callable[[Subject], None]] = {
    "same with identity": same_with_identity,
    "class and attributes": class_and_attributes,
    "state dict": state_dict_keys,
    "deepcopy": deep_copy,
    "pickle and torch.save": pickled,
    "other processes": other_processes,
    "other dtypes": other_dtypes,
    "parameters": parameters_to_the_optimizer,
    "forward hooks": forward_hooks,
    "parametrize": parametrized_neighbours,
    "recipe": recipe_again,
    "save and load": saved_and_loaded,
    "undo": undone,
    "refusals": refusals,
}
