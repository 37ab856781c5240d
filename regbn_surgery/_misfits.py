"""Why arguments do not fit: which names there are, and which one a misspelt one was meant to be."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from . import _tree
from ._errors import InputsError
from ._spelling import did_you_mean, is_near, listing

P = ParamSpec("P")
Result = TypeVar("Result")


def misfit(forward: Callable[..., Any], kwargs: Mapping[str, Any], error: TypeError) -> str:
    """What is wrong with a call of `forward` that `error` refuses, with the names that it takes."""
    parameters = inspect.signature(forward).parameters.values()
    known = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    strange = [name for name in kwargs if name not in known]
    free = [name for name in known if name not in kwargs]  # what is given already was not meant
    told = [f"it has no parameter `{name}`{did_you_mean(name, free)}" for name in strange]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if open_ended:  # any name is taken; one of them may still be the missing one
        told = [f"`{name}` is none of its named parameters{near}" for name in strange
                if (near := did_you_mean(name, free))]  # fmt: skip
    why = "; ".join([*told, *([] if strange and not open_ended else [str(error)])])
    return f"{why} (it has {listing(known)})"


def missing_key(error: BaseException, value: Any) -> str:
    """A sentence where the model has looked up a key that is missing in its inputs; "" for any other error."""
    if not isinstance(error, KeyError) or len(error.args) != 1 or not isinstance(error.args[0], str):
        return ""
    wanted = error.args[0]
    given = list(dict.fromkeys(_keys(value)))
    if wanted in given:
        return ""
    hints = [name for name in given if is_near(wanted, name)]
    return f" The inputs have no `{wanted}`, but `{hints[0]}`: is it misspelt?" if hints else ""


def _keys(value: Any) -> Iterator[str]:
    """The keys of every mapping in a value."""
    if isinstance(value, Mapping):
        yield from (key for key in value if isinstance(key, str))
    for _, child in _tree.items(value, objects=True) or ():
        yield from _keys(child)


def refusing_strange_names(function: Callable[P, Result]) -> Callable[P, Result]:
    """A decorator for functions with `model, ..., example_inputs`: an argument that the function has no name for is
    refused with the name that was meant, or with where inputs of the model go."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Result:
        strange = [name for name in kwargs if name not in known]
        if strange:
            raise InputsError(_strange(function.__name__, strange, known, args[0] if args else kwargs.get("model")))
        return function(*args, **kwargs)

    return checked


def _strange(function: str, strange: list[str], known: list[str], model: Any) -> str:
    name = strange[0]
    if near := did_you_mean(name, known):
        return f"{function}() has no argument `{name}`{near}"
    forward = getattr(model, "forward", None)
    inputs = [] if forward is None else list(inspect.signature(forward).parameters)
    meant = did_you_mean(name, inputs) if name not in inputs else ""
    example = ", ".join(f'"{each}": ...' for each in inputs[:2]) or '"name": ...'
    return (
        f"{function}() has no argument `{name}` (it has {listing(known)}). Inputs of the model go together into one "
        f"argument, as a dict: {{{example}}}{meant}"
    )
