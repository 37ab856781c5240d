"""A zoo model on its way through the situations: the original, the rewritten one, and how they are compared."""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBN, _tree
from tests.zoo import CASES, ZooCase
from tests.zoo._running import call, copied, tensors_of

SEED = 5


def _pmr() -> ZooCase:
    """The two-branch CNN of examples/pmr, loaded by its path, under a name by which it can be pickled."""
    path = Path(__file__).parents[2] / "examples" / "pmr" / "model.py"
    spec = importlib.util.spec_from_file_location("pmr_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return ZooCase(
        name="pmr",
        build=module.TwoBranchClassifier,
        inputs=lambda batch: (torch.rand(batch, 1, 28, 28), torch.rand(batch, 3, 28, 28)),
        modalities={"gray": ["gray"], "colored": ["colored"]},
        points=(),
        normalize="gray",
        rules=({"id": "late", "match": {"kind": "concat"}, "normalize": "gray", "against": "colored"},),
    )


#: The zoo, and the example that this repository is about.
BY_NAME = {case.name: case for case in (*CASES, _pmr())}


class DoesNotApplyError(Exception):
    """The situation says nothing about this model, above all because the original does not bear it either."""


@functools.cache
def _rewritten(name: str, methods: tuple[str, ...] = ()) -> nn.Module:
    """Rewritten with affine norms, so that RegBN has parameters to train."""
    subject = Subject(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return regbn_surgery.regbnify(subject.original(), subject.rules(methods), subject.case.example)


class Subject:
    """One model of the zoo. `original` and `rewritten` give a fresh copy at every call."""

    def __init__(self, name: str) -> None:
        self.case: ZooCase = BY_NAME[name]
        self.name = name

    def original(self) -> nn.Module:
        return self.case.model()

    def rules(self, methods: tuple[str, ...] = ()) -> dict[str, Any]:
        """The rules by which it is rewritten: RegBN has parameters of its own."""
        rules = self.case.rules_dict()
        for rule in rules["rules"]:
            if rule.get("action") != "skip":
                rule["regbn"] = {"affine": True, **rule.get("regbn", {})}
                rule |= {"methods": list(methods)} if methods else {}
        return rules

    def rewritten(self, methods: tuple[str, ...] = ()) -> nn.Module:
        """`methods`: further ones in which RegBN is to count."""
        return copied(_rewritten(self.name, methods))

    def example(self, batch: int = 4) -> Any:
        return self.case.example(batch)

    def example_for(self, batch: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example as positional and keyword arguments."""
        example = self.example(batch)
        if isinstance(example, dict):
            return (), example
        if isinstance(example, tuple):
            return example, {}
        if isinstance(example, Tensor):
            return (example,), {}
        return example.args, example.kwargs


def regbns(model: nn.Module) -> dict[str, RegBN]:
    """Every RegBN by name; a model without one is no subject."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, RegBN)}
    assert found, "the model carries no RegBN"
    return found


def seeded_call(model: nn.Module, example: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return call(model, copy.deepcopy(example))


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Every output tensor of a seeded call in the model's own mode, without gradients."""
    with torch.no_grad():
        return [out.clone() for out in tensors_of(seeded_call(model, example))]


def loss_of(result: Any) -> Tensor:
    """The mean square of whatever floating tensors carry gradients."""
    parts = [out.float().square().mean() for out in tensors_of(result) if out.requires_grad]
    return torch.stack(parts).mean()


def backward(model: nn.Module, example: Any) -> Tensor:
    """A seeded forward and backward pass; the gradients stay on the parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        loss = loss_of(call(model, copy.deepcopy(example)))
        loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)


def warmed(model: nn.Module, example: Any) -> nn.Module:
    """Called once in each mode, so that every kind of call is known; nothing of it stays but the variants."""
    state = copy.deepcopy(model.state_dict())
    training = model.training
    seeded_call(model.train(), example)
    outputs(model.train(), example)
    outputs(model.eval(), example)
    model.load_state_dict(state)
    return model.train(training)


def with_uneven_weights(model: nn.Module) -> nn.Module:
    """A projection that matters: after a few steps W is next to nothing beside the random weights of a model."""
    generator = torch.Generator().manual_seed(0)
    for module in regbns(model).values():
        for factor in module.factors:
            with torch.no_grad():
                factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.3)
    return model.eval()


def assert_regbn_learned(model: nn.Module, steps: int | None = None, except_for: Collection[str] = ()) -> None:
    """Every RegBN of the model has been trained, and what it learned is finite; of `except_for`, each was skipped."""
    for name, module in regbns(model).items():
        if name in except_for:
            assert module.num_skipped > 0, f"{name} was not even skipped"
        elif steps is None:
            assert module.num_steps > 0, f"{name} was never trained"
        else:
            assert module.num_steps == steps, f"{name} took {module.num_steps} steps instead of {steps}"
        assert all(factor.isfinite().all() for factor in module.factors), name


@contextmanager
def vanishing(model: nn.Module) -> Iterator[set[str]]:
    """The RegBN that are given a side of zeros alone: the model's own weights are too small for its type."""
    found: set[str] = set()

    def look(name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not all(side.any() for side in args[:2]):
                found.add(name)

        return see

    handles = [module.register_forward_pre_hook(look(name)) for name, module in regbns(model).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def cast(value: Any, dtype: torch.dtype) -> Any:
    """An example with its floating tensors in another type."""

    def change(_: str, leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    if isinstance(value, regbn_surgery.Inputs):
        return regbn_surgery.Inputs(*cast(value.args, dtype), **cast(value.kwargs, dtype))
    return _tree.rebuild(value, change)


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """How often each RegBN runs (trial runs, with identity in its place, do not count)."""
    calls = dict.fromkeys(regbns(model), 0)

    def counter(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    handles = [module.register_forward_hook(counter(name)) for name, module in regbns(model).items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def the_original_must(what: str, run: Callable[[], Any]) -> Any:
    """Run something with the original; where it fails, the situation does not apply to the model."""
    try:
        return run()
    except Exception as error:  # whatever it is, the original raised it and it is shown
        reason = str(error).strip().splitlines()
        raise DoesNotApplyError(
            f"the original does not {what}: {type(error).__name__}: {reason[0][:90] if reason else ''}"
        ) from error


def unless_the_original_fails(what: str, run: Callable[[], Any], original: Callable[[], Any]) -> Any:
    """Run something with the rewritten model; where it fails, and with the original as well, it does not apply.

    The original is asked second, and seldom, since it takes as long.
    """
    try:
        return run()
    except Exception:
        the_original_must(what, original)
        raise
