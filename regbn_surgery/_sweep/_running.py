"""Runs a sweep: builds, rewrites and trains each variant with each seed, and writes what came out."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._api import regbnify
from .._errors import RegBNWarning
from .._rules import Rules
from .._user_code import users_own
from ..nn import NormsOnly
from ._alike import Does, done_by, groups, words_of
from ._stored import Stored
from ._table import CONTROL, NONE, Sweep, SweepError, SweepResult

#: What a training function returns: measures by name, or one number.
Measured = Mapping[str, float] | float


@dataclass(frozen=True)
class _Variant:
    name: str
    rules: Rules | None
    control: bool = False

    @property
    def fingerprint(self) -> str:
        content = None if self.rules is None else self.rules.to_dict()
        return hashlib.sha256(json.dumps([content, self.control], sort_keys=True).encode()).hexdigest()[:16]

    def words(self, seed: int) -> str:
        """`with rules 'late' (late.yaml), seed 3`, for messages."""
        if self.rules is None:
            return f"without RegBN, seed {seed}"
        file = self.rules.marks.name
        where = "" if file.startswith("<") or file == self.name else f" ({file})"
        return f"with {'the control' if self.control else 'rules'} {self.name!r}{where}, seed {seed}"

    def build(self, make_model: Callable[[], Any], example_inputs: Any, seed: int) -> nn.Module:
        with users_own(f"{_called('make_model', make_model)}, called {self.words(seed)},", SweepError):
            made = make_model()
        model, inputs = made if isinstance(made, tuple) else (made, None)
        if not isinstance(model, nn.Module):
            raise SweepError(
                f"make_model must return a torch.nn.Module, or a pair of it and example inputs; it returned "
                f"{type(model).__name__}."
            )
        if self.rules is None:
            return model
        inputs = inputs if example_inputs is None else example_inputs
        return regbnify(model, self.rules, inputs, make=NormsOnly.at if self.control else None)


def sweep(
    make_model: Callable[[], Any],
    example_inputs: Any = None,
    *,
    rules: Sequence[Any] | Mapping[str, Any],
    train: Callable[..., Measured],
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "sweep",
    resume: bool = False,
    control: bool = True,
    settings: Mapping[str, Any] | None = None,
    observe: Callable[[str, int, int], None] | None = None,
) -> Sweep:
    """Train a model of yours with every rules file, with its control, and without RegBN, with every seed.

    Args:
        make_model: makes a new model, or a pair of model and example inputs.
        example_inputs: as for `regbnify`; may be left out where `make_model` gives them.
        rules: paths, names of presets, dicts or `Rules`; as a mapping, with names of your own for them.
        train: `train(model, seed)` trains the model in place and returns measures by name, or one number. torch's
            generators are seeded before `make_model` and again before `train`, so that all variants of a seed have
            the same initial weights and draw the same numbers. If it has a parameter named `folder`, it
            is given the run's own folder in `out` (a `pathlib.Path`), for checkpoints from which it can go on after
            it was stopped.
        seeds: which seeds; equal ones are paired in the differences.
        out: the folder for `sweep.csv`, `sweep.md` and one file for each finished run.
        resume: take finished runs from `out`; without it a folder that has some is refused.
        control: also train each rules file with the norms of RegBN alone (`nn.NormsOnly`).
        settings: what else decides a result, such as the number of epochs, as JSON would hold it. With `resume`, a run
            that was finished with other settings is trained again.
        observe: called with `(what, done, total)` before each run and at the end.

    Variants that are the same model under two names are trained once: rules that lead to the same plan, controls with
    the same norms, a control without a norm and the model without RegBN. The table says which.

    Returns:
        All results. `print` shows the table with paired differences and 95 % intervals.

    Raises:
        SweepError: nothing to compare, names that are not different, `make_model` or `train` failed (with their file
            and line, the rules and the seed; finished runs are kept in `out`), or `train` returned anything but
            numbers.
        RulesError, PlanError, RewriteError: as `regbnify`, before anything is trained.
    """
    variants = _variants(rules, control)
    if not seeds or len(set(seeds)) != len(seeds):
        raise SweepError(f"seeds must be different numbers, at least one; found {list(seeds)}.")
    folder = Path(out)
    stored = Stored(folder, settings, resume=resume)
    trained_as = groups(_try_out(variants, seeds[0], make_model, example_inputs))
    same = tuple((name, other) for name, other in trained_as.items() if name != other)
    tell = observe or (lambda what, done, total: None)
    runs = [(seed, variant) for seed in seeds for variant in variants if trained_as[variant.name] == variant.name]
    for line in words_of(same):
        tell(line, 0, len(runs))
    found: dict[tuple[str, int], dict[str, float]] = {}
    for done, (seed, variant) in enumerate(runs):
        tell(f"{variant.name}, seed {seed}", done, len(runs))
        alike = [other for other in variants if trained_as[other.name] == variant.name]
        measured = _finished(stored, alike, seed)
        if measured is None:
            try:
                more = {"folder": stored.run_folder(variant.name, seed)} if _takes_folder(train) else {}
                measured = _trained(variant, seed, make_model, example_inputs, train, more)
            except SweepError as error:
                raise SweepError(f"{error}{stored.kept_words(done)}") from error.__cause__
            stored.write(variant.name, seed, variant.fingerprint, measured)
        found.update({(other.name, seed): measured for other in alike})
    tell("finished", len(runs), len(runs))
    _check_same_measures(found)
    keys = [(variant.name, seed) for variant in variants for seed in seeds]
    result = Sweep(tuple(SweepResult(*key, *measured) for key in keys for measured in found[key].items()), same)
    _write(result, folder)
    return result


def _finished(stored: Stored, alike: Sequence[_Variant], seed: int) -> dict[str, float] | None:
    """What a run from before gave, of whichever variant that is the same model."""
    before = (stored.read(variant.name, seed, variant.fingerprint) for variant in alike)
    return next((measured for measured in before if measured is not None), None)


def _write(result: Sweep, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.csv").write_text(result.to_csv(), encoding="utf-8")
    (folder / "sweep.md").write_text(result.to_markdown(), encoding="utf-8")


def _try_out(
    variants: Sequence[_Variant], seed: int, make_model: Callable[[], Any], example_inputs: Any
) -> dict[str, Does]:
    """Build every variant once, before the first hours of training; returns what each does to the model."""
    plain: list[nn.Module] = []
    does: dict[str, Does] = {}
    with torch.random.fork_rng():
        for variant in (variants[0], *variants):
            torch.manual_seed(seed)
            built = variant.build(make_model, example_inputs, seed)
            does[variant.name] = done_by(built, variant.control)
            if variant.rules is None:
                plain.append(built)
    if plain[0] is plain[1]:
        raise SweepError(
            "make_model returned the same model twice, so a run would start from the weights of the one before: pass "
            "a function or class that creates a new model."
        )
    return does


def _variants(rules: Sequence[Any] | Mapping[str, Any], control: bool) -> list[_Variant]:
    if isinstance(rules, str):
        raise SweepError(f"rules must be a list: write rules=[{rules!r}].")
    named = rules.items() if isinstance(rules, Mapping) else [(_name(item), item) for item in rules]
    variants = [_Variant(NONE, None)]
    for name, item in named:
        parsed = Rules.load(item)
        variants.append(_Variant(name, parsed))
        if control:
            variants.append(_Variant(f"{name} {CONTROL}", parsed, control=True))
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SweepError(f"two variants are called {twice[0]!r}: give names of your own, rules={{'a': ..., 'b': ...}}.")
    if len(variants) == 1:
        raise SweepError("no rules to compare: give at least one rules file or preset.")
    return variants


def _name(item: Any) -> str:
    """A file by its stem, a preset by its name, anything else by the ids of its rules."""
    if isinstance(item, str | os.PathLike):
        return Path(item).stem
    return "+".join(rule.id for rule in Rules.load(item).rules)


def _takes_folder(train: Callable[..., Measured]) -> bool:
    """Whether `train` has a parameter of that name."""
    try:
        return "folder" in inspect.signature(train).parameters
    except (TypeError, ValueError):  # it is written in C and does not say
        return False


def _trained(
    variant: _Variant,
    seed: int,
    make_model: Callable[[], Any],
    example_inputs: Any,
    train: Callable[..., Measured],
    more: Mapping[str, Path],
) -> dict[str, float]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = variant.build(make_model, example_inputs, seed)
        torch.manual_seed(seed)
        called = f"{_called('train', train)}, called {variant.words(seed)},"
        with users_own(called, SweepError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "RB419 ", RegBNWarning)  # one `train` serves variants without RegBN, too
            measured = train(model, seed, **more)
    where = f"train returned for {variant.name!r} with seed {seed}"
    if not isinstance(measured, Mapping):
        measured = {"score": measured}
    try:
        values = {str(name): float(value) for name, value in measured.items()}
    except (TypeError, ValueError) as error:
        raise SweepError(f"what {where} is neither a number nor a mapping of names to numbers: {error}.") from error
    unusable = [name for name, value in values.items() if not math.isfinite(value)]
    if unusable or not values:
        raise SweepError(f"what {where} cannot be compared: {unusable or 'no measure'} (values must be finite).")
    return values


def _called(role: str, function: Any) -> str:
    """`train` (`my_training`): an argument of `sweep` with the name of what was given for it."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"`{role}`" if name == role or "<lambda>" in name else f"`{role}` (`{name}`)"


def _check_same_measures(found: Mapping[tuple[str, int], Mapping[str, float]]) -> None:
    (first, measures), *others = found.items()
    for run, other in others:
        if set(other) != set(measures):
            raise SweepError(
                f"{run[0]!r} with seed {run[1]} has the measures {sorted(other)}, {first[0]!r} with seed {first[1]} "
                f"has {sorted(measures)}: train must always return the same measures."
            )
