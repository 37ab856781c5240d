"""A user's own batches as calls of a model: which of them can be run, and which one it is analysed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import nn

from . import _tree
from ._analysis import MODEL_ERRORS
from ._codes import coded
from ._diagnosis import MINIMUM
from ._errors import InputsError, RegBNError
from ._inputs import Inputs, as_inputs, shared_axis
from ._misfits import misfit
from ._report.words import count_text
from ._spelling import listing, nearest
from ._user_code import drawn, warn_at_call


@dataclass(frozen=True)
class GivenBatches:
    """Calls of a model, each with its number of samples (None where no axis says it); none of them is empty."""

    calls: tuple[Inputs, ...]
    sizes: tuple[int | None, ...]

    @property
    def example(self) -> Inputs:
        """The first batch in which a batch axis can be told: one of several samples, if there is any."""
        several = (call for call, size in zip(self.calls, self.sizes, strict=True) if size != 1)
        return next(several, self.calls[0])

    @property
    def single(self) -> bool:
        """Whether no batch has two samples."""
        return all(size == 1 for size in self.sizes)

    def too_small(self, why: str) -> str:
        """What to say where single samples cannot be analysed."""
        seen = count_text(len(self.calls), "batch", "batches")
        return (
            f"no batch of the data has more than one sample ({seen} seen), and one sample does not show which axis is "
            f"the batch. Give batches of at least 2 samples, {MINIMUM} in all (`batch_size=` of a DataLoader); or give "
            f"`example` inputs of two or more, and batches of one sample can be measured. In detail: {why}"
        )


def read_batches(model: nn.Module, data: Iterable[Any]) -> GivenBatches:
    """The batches as calls, empty ones left out. Raises InputsError where nothing is left."""
    filled = list(filled_calls(model, data))
    return GivenBatches(tuple(call for call, _ in filled), tuple(size for _, size in filled))


def filled_calls(model: nn.Module, data: Iterable[Any]) -> Iterator[tuple[Inputs, int | None]]:
    """The batches as calls with their numbers of samples, one at a time, empty ones left out.

    Raises InputsError at the end where there was none.
    """
    count, empty = 0, 0
    for call in calls_of(model, data):
        count, size = count + 1, _samples(model, call)
        if size == 0:
            empty += 1
            continue
        yield call, size
    if not count:
        raise InputsError(
            "the data gave no batch; `--data` must name an iterable of batches, or a function that returns one"
        )
    if empty == count:
        raise InputsError(f"all {count} batches of the data are empty; {MINIMUM} samples are needed")


def run_on(model: nn.Module, inputs: Inputs, number: int) -> None:
    """Call the model. Raises InputsError with the number of the batch where it does not run."""
    try:
        model(*inputs.args, **inputs.kwargs)
    except RegBNError:
        raise
    except MODEL_ERRORS as error:
        name = type(model).__name__
        how = f" (a dict, passed as `{_only_parameter(model)}`)" if _is_one_dict(inputs) else ""
        raise InputsError(f"{name} could not be run on batch {number} of the data, {inputs!r}{how}: {error}") from error


def _samples(model: nn.Module, call: Inputs) -> int | None:
    axis = shared_axis(model, call)
    return None if axis is None else axis[1]


def calls_of(model: nn.Module, data: Iterable[Any]) -> Iterator[Inputs]:
    """The batches as calls, one at a time; warns once of each way in which items had to be guessed (RB417)."""
    told: set[str] = set()
    for batch in drawn(data, InputsError):
        call, guess = _fitted(model, batch)
        if guess and guess not in told:
            told.add(guess)
            warn_at_call(coded("RB417", guess))
        yield call


def call_of(model: nn.Module, batch: Any) -> Inputs:
    """A batch as a call of the model: as it is, or without the target that follows the inputs.

    Raises InputsError for a batch that fits in neither way.
    """
    return _fitted(model, batch)[0]


def _fitted(model: nn.Module, batch: Any) -> tuple[Inputs, str]:
    """The call, and what had to be guessed for it."""
    candidates: list[Any] = []
    if isinstance(batch, list):
        batch = tuple(batch)
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], tuple | list | Mapping | Inputs):
        candidates.append(tuple(batch[0]) if isinstance(batch[0], list) else batch[0])
    candidates.append(batch)
    if isinstance(batch, tuple) and len(batch) > 1:
        candidates.append(batch[:-1])
    if isinstance(batch, Mapping) and (rest := _without_strangers(model, batch)):
        candidates.append(rest)
    named = next((one for one in candidates if isinstance(one, Mapping)), None)
    if named is not None and _is_one_argument(model, named):
        candidates.append((named,))
    problem = ""
    for candidate in candidates:
        inputs = as_inputs(candidate)
        try:
            _tree.bind(model.forward, inputs.args, inputs.kwargs)
        except TypeError as error:
            problem = problem or misfit(model.forward, inputs.kwargs, error)
            continue
        return inputs, _guess(model, batch, inputs)
    raise InputsError(
        f"A batch of the data does not fit {type(model).__name__}.forward: {problem}. "
        f"Given: {as_inputs(candidates[0])!r:.200}. "
        "The data must give the model's arguments, or pairs of these and a target."
    )


def _without_strangers(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    """A dict without the keys that `forward` has no parameter for, as a dataset has its labels beside the inputs.

    Empty where one of them looks like a parameter that is misspelt.
    """
    parameters = signature(model.forward).parameters
    strangers = [key for key in batch if key not in parameters]
    missing = [name for name in parameters if name not in batch]
    if any(isinstance(key, str) and nearest(key, missing) is not None for key in strangers):
        return {}
    return {key: value for key, value in batch.items() if key in parameters}


def _only_parameter(model: nn.Module) -> str:
    """The one parameter that a call must give; "" where there is none, or there are several."""
    parameters = signature(model.forward).parameters.values()
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
    return required[0] if len(required) == 1 else ""


def _is_one_argument(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    """Whether a dict is the one argument of `forward(batch)`: no key of it names a parameter, or nearly does."""
    parameters = list(signature(model.forward).parameters)
    named = any(key in parameters or (isinstance(key, str) and nearest(key, parameters) is not None) for key in batch)
    return bool(_only_parameter(model)) and not named


def _is_one_dict(call: Inputs) -> bool:
    return not call.kwargs and len(call.args) == 1 and isinstance(call.args[0], Mapping)


def _guess(model: nn.Module, batch: Any, call: Inputs) -> str:
    """How the items of a flat batch were passed, where they are more than `forward` requires, and which entries of a
    dict were left out: "" where nothing was guessed (a pair of inputs and target, names, `*args`)."""
    if _is_one_dict(call) and (not isinstance(batch, tuple) or len(batch) <= 2):
        return ""  # the batch itself, or with a target behind it
    if isinstance(batch, Mapping) and (left := [str(key) for key in batch if key not in call.kwargs]):
        return f"{listing(left)} of a batch left out: {type(model).__name__}.forward has no such parameter"
    parameters = signature(model.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if not isinstance(batch, tuple) or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ""
    if len(batch) <= required or not _passed_flat(batch, call):
        return ""
    given = [p.name for p in positional][: len(call.args)]
    text = f"a batch of {count_text(len(batch), 'item')} was passed as {listing(given)}"
    if len(call.args) < len(batch):
        return f"{text}; the last item was taken for the target and left out"
    remedy = f"(({', '.join(given[:-1])}), target)" if len(given) > 1 else "a dict"
    return (
        f"{text}: `{given[-1]}` is optional and got the last item. If that is the target, give {remedy} or a dict of "
        "the arguments by name"
    )


def _passed_flat(batch: tuple[Any, ...], call: Inputs) -> bool:
    """Whether the arguments are the items of the batch themselves."""
    return bool(call.args) and all(one is other for one, other in zip(call.args, batch, strict=False))
