"""Hold a rewritten model to its oracle over a schedule of calls, by everything that a training script can see."""

from __future__ import annotations

import copy
import io
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from regbn_surgery import RegBN, RegBNWarning, regbnify

from ._by_hand import LOG
from ._generate import Generated, Step, random_inputs, schedule
from ._importing import load, load_elsewhere, modules_forgotten

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
#: What of a call is compared.
PARTS = ("ran", "outputs", "gradients", "state", "warnings")


class OracleError(Exception):
    """The oracle itself could not be run: a mistake of the generator."""


@dataclass
class Subject:
    """A model and the module of its source."""

    model: nn.Module
    module: ModuleType


@dataclass
class Result:
    """What can be seen of one call."""

    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    ran: Counter[str]
    decorated: list[str]


def check(generated: Generated, folder: Path, parts: Sequence[str] = PARTS) -> None:
    """Raise AssertionError where the rewritten model and the oracle differ in one of the parts of a `Result`."""
    name = generated.name
    with modules_forgotten(name, f"{name}_oracle"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original, oracle = built(generated, folder)
        rewritten = Subject(regbnify(original.model, generated.rules, generated.example()), original.module)
        found = sorted(sites(rewritten.model))
        assert found == sorted(sites(oracle.model)), f"RegBN went in as {found}"
        compare_all(rewritten, oracle, schedule(generated), parts)
        if generated.later == "two threads":
            compare_in_threads(rewritten, oracle, generated)
        elif generated.later != "the same model":
            rewritten = _later(rewritten, generated, folder)
            oracle = Subject(copy.deepcopy(oracle.model), oracle.module)
            compare_all(rewritten, oracle, schedule(generated, first_seed=500), parts)


def built(generated: Generated, folder: Path) -> tuple[Subject, Subject]:
    """Return the original and the oracle, with the same weights and RegBN put in by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generated.seed)
        module = load(generated.source, generated.name, generated.home, folder)
        original = Subject(getattr(module, generated.root)(), module)
        module = load(generated.oracle, f"{generated.name}_oracle", generated.home, folder)
        oracle = Subject(getattr(module, generated.root)(), module)
    oracle.model.load_state_dict(original.model.state_dict())
    generated.put_in_by_hand(oracle.model)
    return original, oracle


def compare_all(rewritten: Subject, oracle: Subject, steps: list[Step], parts: Sequence[str] = PARTS) -> None:
    """Make the calls of a schedule with both, and compare each call and the warnings of all."""
    told, must, may = 0, False, False
    for number, step in enumerate(steps):
        where = f"call {number} ({step})"
        LOG.clear()
        try:
            expected = run(oracle, step)
        except Exception as error:
            raise OracleError(where) from error
        must, may = must or LOG.must_warn, may or LOG.may_warn
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = run(rewritten, step)
            except Exception as error:
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        told += sum(issubclass(entry.category, RegBNWarning) for entry in caught)
        compare(found, expected, where, parts)
    if "warnings" not in parts:
        return
    assert told <= may, f"{told} warnings; RegBN could run in {'not all' if may else 'all'} calls"
    assert told >= must, "no warning, though f was made without g"


def compare(found: Result, expected: Result, where: str, parts: Sequence[str] = PARTS) -> None:
    """Compare two results, the numbers of runs first, since these say most about a difference."""
    if "ran" in parts:
        assert found.ran == expected.ran, f"{where}: runs {_difference(found.ran, expected.ran)}"
        assert found.decorated == expected.decorated, f"{where}: calls of decorated functions"
    for what in [part for part in parts if part not in ("ran", "warnings")]:
        ours, theirs = getattr(found, what), getattr(expected, what)
        assert sorted(ours) == sorted(theirs), f"{where}: {what} of {sorted(set(ours) ^ set(theirs))}"
        for name, value in theirs.items():
            words = f"{where}: {what} {name}: "
            torch.testing.assert_close(ours[name], value, **TOLERANCE, msg=words.__add__)


def run(subject: Subject, step: Step) -> Result:
    """Make one call and note what can be seen of it."""
    model = subject.model
    model.train(step.train)
    model.zero_grad(set_to_none=True)
    _set(model, step.way.settings)
    inputs = given(step)
    ran: Counter[str] = Counter()
    hooks = [_counted(module, name, ran) for name, module in _named(model)]
    decorated_before = len(getattr(subject.module, "CALLS", ()))
    try:
        with torch.inference_mode(step.gradients == "inference"), torch.set_grad_enabled(step.gradients == "on"):
            output = model(**inputs, **step.way.arguments)
            outputs = dict(tensors_of(output, type(output).__name__))
            losses = [out.square().mean() for out in outputs.values() if out.requires_grad]
            if losses:
                sum(losses).backward()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {name: p.grad for name, p in _parameters(model) if p.grad is not None}
    gradients |= {f"input {name}": x.grad for name, x in inputs.items() if x is not None and x.grad is not None}
    state = {f"{name}.{key}": value.clone() for name, r in sites(model).items() for key, value in r.named_buffers()}
    decorated = list(getattr(subject.module, "CALLS", ()))[decorated_before:]
    return Result({name: out.detach() for name, out in outputs.items()}, gradients, state, ran, decorated)


def given(step: Step) -> dict[str, torch.Tensor | None]:
    """Return the inputs of a call, with gradients where these are on; None for those that are left out."""
    inputs: dict[str, torch.Tensor | None] = {}
    for name, value in random_inputs(step.batch, step.seed, step.third).items():
        inputs[name] = None if name in step.way.without else value.requires_grad_(step.gradients == "on")
    return inputs


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of an output, with the names of the types and places around it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{index}")
    elif is_dataclass(value):
        for entry in fields(value):
            yield from tensors_of(getattr(value, entry.name), f"{name}.{entry.name}")


def sites(model: nn.Module) -> dict[str, RegBN]:
    """Return the RegBN modules by their path in the model, without what is around them at a site."""
    return {name.removesuffix(".regbn"): m for name, m in model.named_modules() if isinstance(m, RegBN)}


def compare_in_threads(rewritten: Subject, oracle: Subject, generated: Generated) -> None:
    """Call the model in evaluation from two threads at once, in different ways, against the oracle's results."""
    steps = [
        Step(way, batch, False, "inference", batch, generated.third)
        for way in generated.ways
        if not way.settings
        for batch in (2, 3, 5)
    ]
    expected = [run(oracle, step).outputs for step in steps]
    rewritten.model.eval()
    wrong: list[str] = []

    def serve(order: list[int]) -> None:
        for index in order * 4:
            try:
                with torch.inference_mode():
                    output = rewritten.model(**given(steps[index]), **steps[index].way.arguments)
                for name, value in tensors_of(output, type(output).__name__):
                    torch.testing.assert_close(value, expected[index][name], **TOLERANCE)
            except Exception as error:  # noqa: BLE001  a thread's error is told by the main one
                wrong.append(f"{steps[index]}: {type(error).__name__}: {error}")
                return

    numbers = list(range(len(steps)))
    threads = [threading.Thread(target=serve, args=(order,)) for order in (numbers, numbers[::-1])]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong, f"in two threads: {wrong[0]}"


def _later(rewritten: Subject, generated: Generated, folder: Path) -> Subject:
    if generated.later == "a deep copy":
        return Subject(copy.deepcopy(rewritten.model), rewritten.module)
    file = io.BytesIO()
    torch.save(rewritten.model, file)
    module = load_elsewhere(generated.source, generated.name, folder)
    file.seek(0)
    return Subject(torch.load(file, weights_only=False), module)


def _set(model: nn.Module, settings: dict[str, Any]) -> None:
    (net,) = (module for module in model.modules() if type(module).__name__ == "Net")
    for path, value in settings.items():
        *owners, name = path.split(".")
        target: Any = net
        for owner in owners:
            target = getattr(target, owner)
        setattr(target, name, copy.deepcopy(value))


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The user's modules and the RegBN modules, by names that are the same in the oracle."""
    for name, module in model.named_modules():
        if "regbn_" not in name or isinstance(module, RegBN):
            yield name.removesuffix(".regbn"), module


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        yield name.replace(".regbn.", "."), parameter


def _counted(module: nn.Module, name: str, ran: Counter[str]) -> Any:
    def count(*_: Any) -> None:
        ran[name] += 1

    return module.register_forward_hook(count)


def _difference(found: Counter[str], expected: Counter[str]) -> str:
    names = sorted(name for name in found | expected if found[name] != expected[name])
    return ", ".join(f"{name or '(root)'}: {found[name]} instead of {expected[name]}" for name in names)
