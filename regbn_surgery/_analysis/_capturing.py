"""The runs that an analysis looks at: the model on the example, in both modes and at two batch sizes.

The example runs as the user gave it first; only then, and as far as the model bears it, with fewer or more samples.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from .. import _tree
from .._codes import coded
from .._errors import CaptureError, RegBNError
from .._fakes import META, REAL, Fakes, runs_on_meta, standing_in, wants_values
from .._inputs import SECOND_SIZE, Batches, Inputs
from .._misfits import missing_key
from .._state import preserved, seeded, watching_parameters
from .._trace import Trace, capture, is_user_file
from ._layouts import makes_more, same_calls
from ._runs import Observed, values_of

_Result = TypeVar("_Result")

#: What a model's own code raises when it is run in a way it does not support.
MODEL_ERRORS = (
    RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ImportError,
)  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """All runs of a model, and what was run: `batches` is the reading of the example that the model bears.

    `train` is None where the model does not run in training on the example as given. `writes` says that its forward
    writes to its parameters.
    """

    batches: Batches
    small: Trace
    large: Trace | None
    longer: Trace | None
    train: Trace | None
    large_train: Trace | None
    writes: bool
    other_path: Trace | None = None  # the second example, where it makes calls that the first does not make
    other_path_large: Trace | None = None
    observed: tuple[Observed, ...] = ()  # what the model gave in these runs, evaluation first, where it has values


def captured(model: nn.Module, batches: Batches) -> Captured:
    """Run the model on the example, in evaluation and training mode, at two batch sizes where it bears that.

    Raises:
        CaptureError: where it does not run on the example as given.
    """
    if runs_on_meta(model):
        try:
            return _captured_by(model, batches, META)
        except CaptureError:
            pass  # fakes can do more, and their errors say more
    with standing_in(model) as fakes:
        return _captured_by(model, batches, fakes)


def _captured_by(model: nn.Module, batches: Batches, fakes: Fakes) -> Captured:
    if batches.given is not None:
        with watching_parameters(model, []):  # it may write to them, and nobody has asked yet
            run_plainly(model, batches.given, training=False, fakes=fakes)
    return _borne(batches, lambda reading: _captured_as(model, reading, fakes))


def _captured_as(model: nn.Module, batches: Batches, fakes: Fakes) -> Captured:
    written: list[str] = []
    observed: list[Observed] | None = [] if fakes is REAL else None
    train, notes = None, batches.notes
    try:
        with watching_parameters(model, written):
            train = run_model(model, batches.small, training=True, fakes=fakes, observed=observed, values=fakes is REAL)
    except CaptureError as error:
        if _trains_as_given(model, batches, fakes):
            raise
        reason = error.__cause__ or error
        notes = (
            *notes,
            coded(
                "RB010",
                f"the model does not run in training mode on the example ({type(reason).__name__}: {reason}), so only "
                "evaluation was looked at; to see both, add to the example what training needs, such as targets",
            ),
        )
    run = functools.partial(run_model, model, writes=bool(written), fakes=fakes, observed=observed)
    small = run(batches.small, training=False, values=fakes is REAL)
    large = None if batches.large is None else run(batches.large, training=False)
    longer = None if batches.longer is None else run(batches.longer, training=False)
    large_train = large
    if train is not None and batches.large is not None and not same_calls(small, train):
        large_train = run(batches.large, training=True)  # else axes follow the batch size alike
    found = Captured(replace(batches, notes=notes), small, large, longer, train, large_train, bool(written))
    if longer is not None and makes_more(longer, small):
        other = None if batches.longer_large is None else run(batches.longer_large, training=False)
        found = replace(found, other_path=longer, other_path_large=other)
    return replace(found, observed=tuple(sorted(observed or (), key=lambda seen: seen.training)))


def _trains_as_given(model: nn.Module, batches: Batches, fakes: Fakes) -> bool:
    try:
        with watching_parameters(model, []):
            run_plainly(model, batches.given or batches.small, training=True, fakes=fakes)
    except CaptureError:
        return False
    return batches.given is not None


def captured_in(
    model: nn.Module, batches: Batches, observed: list[Observed], *, training: bool, writes: bool = False
) -> tuple[Trace, Trace | None, Batches]:
    """Runs in one mode at two batch sizes, and the reading of the example that the model bears. `observed` gets what
    the model gave in them.

    Raises:
        CaptureError: where the model does not run on the example as given.
    """

    def run(reading: Batches) -> tuple[Trace, Trace | None, Batches]:
        observed.clear()  # of a reading that the model does not bear
        each = [
            None
            if inputs is None
            else run_model(
                model, inputs, training=training, writes=writes, observed=observed, values=inputs is reading.small
            )
            for inputs in (reading.small, reading.large)
        ]
        assert each[0] is not None, "the smaller of the two is always there"
        return each[0], each[1], reading

    if batches.given is not None and batches.others:
        run_plainly(model, batches.given, training=training, writes=writes)
    return _borne(batches, run)


def _borne(batches: Batches, run: Callable[[Batches], _Result]) -> _Result:
    """What `run` gives for the first reading of the example that the model bears."""
    refused: list[str] = []
    *others, last = (batches, *batches.others)
    for reading in others:
        try:
            return run(reading)
        except CaptureError as error:
            reason = error.__cause__ or error
            refused.append(f"{reading.small!r} ({type(reason).__name__}: {reason})")
    if refused and last.given is not None:
        note = coded(
            "RB012",
            "the model runs on the example itself, but not on another number of samples made from it, such as "
            f"{refused[0]}: batch axes are unknown; {SECOND_SIZE}, or say in a rule what the samples are",
        )
        last = replace(last, notes=(note,))
    return run(last)


def run_plainly(model: nn.Module, inputs: Inputs, *, training: bool, writes: bool = False, fakes: Fakes = REAL) -> None:
    """Run the whole model once, as its user would, leaving no trace in the model. Raises CaptureError."""
    with _running(model, inputs, training=training, writes=writes, fakes=fakes) as ours:
        model(*ours.args, **ours.kwargs)


def run_model(
    model: nn.Module,
    inputs: Inputs,
    *,
    training: bool,
    writes: bool = False,
    fakes: Fakes = REAL,
    observed: list[Observed] | None = None,
    values: bool = False,
) -> Trace:
    """Capture one run of the whole model in the given mode, leaving no trace in the model.

    `observed` gets what the run gave. With `values`, nodes whose tensors are not finite are marked. `writes` says that
    its forward writes to its parameters, so that these have to be put back, too. `fakes` is how to run a model without
    weights. Raises CaptureError.
    """
    with _running(model, inputs, training=training, writes=writes, fakes=fakes) as ours:
        trace, output = capture(model, ours.args, ours.kwargs, values=values)
        if observed is not None:
            observed.append(Observed(inputs, training, values_of(output)))
    return trace


@contextmanager
def _running(model: nn.Module, inputs: Inputs, *, training: bool, writes: bool, fakes: Fakes) -> Iterator[Inputs]:
    """Put back all that a run inside leaves in the model, and turn its errors into CaptureErrors."""
    with preserved(model, parameters=writes), seeded(), torch.set_grad_enabled(training):
        model.train(training)
        try:
            ours = fakes.inputs(inputs)
            args, kwargs = _tree.cloned((ours.args, ours.kwargs))
            with fakes.running():
                yield Inputs(*args, **kwargs)
        except RegBNError:
            raise
        except MODEL_ERRORS as error:
            if wants_values(error):
                raise CaptureError(_needs_values(model, error)) from error
            mode = "training" if training else "evaluation"
            raise CaptureError(
                f"{type(model).__name__} could not be run in {mode} mode on {inputs!r}: {type(error).__name__}: "
                f"{error}.{missing_key(error, (inputs.args, inputs.kwargs))} Check that the same call works without "
                "regbn_surgery."
            ) from error


def _needs_values(model: nn.Module, error: BaseException) -> str:
    """For a model without weights whose forward looks at values."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_user_file(frame.filename)]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return (
        f"{type(model).__name__} has parameters without values (on the meta device, or fake tensors), and its forward "
        f"needs a floating value{where}: {error.__class__.__name__}. Inspect it with real weights, or inspect a "
        "smaller model of the same class (fewer layers, narrower) with random weights: its fusion points have the "
        "same ids."
    )
