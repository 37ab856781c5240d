"""Holds plain values to the schema and turns pydantic's findings into sentences that name the remedy."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..nn.options import RegBNOptions
from .problems import Path, Problem, did_you_mean, listing
from .schema import Document

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "model_type": "a mapping (`key: value`)",
    "model_attributes_type": "a mapping (`key: value`)",
    "dict_type": "a mapping (`key: value`)",
    "tuple_type": "a list",
    "list_type": "a list",
}
_REMEDY = {
    "version": "write `version: 1` as the first line",
    "id": "every rule has an `id`; it names the new modules (`regbn_<id>`) in the model and its checkpoints",
    "rules": "a rules file has at least one rule",
    "shape": "state the shape with its batch axis, as in `shape: [8, 3, 32, 32]`",
    "dim": "the axis that is cut, as in `slice: {dim: 1, range: [0, 8]}`",
    "range": "the stretch of the axis, as in `slice: {dim: 1, range: [0, 8]}`",
    "f": "a pair names both f (normalised) and g (against which)",
    "g": "a pair names both f (normalised) and g (against which)",
}
_MASK = (
    "`mask` is the name of an argument, names by modality as in `mask: {text: attention_mask}`, or `none` to leave no "
    "padding out"
)
_RULE_KEYS_OF_REGBN = ("reduce", "replace")


def validate(value: Any) -> tuple[Document | None, list[Problem]]:
    """The document, or every way in which `value` is none."""
    try:
        return Document.model_validate(value), []
    except ValidationError as error:
        problems = [_problem(detail, value) for detail in error.errors(include_url=False)]
        # One problem for one value: `strict: 3` is wrong once, not once for each alternative.
        return None, list({(problem.path, problem.at_key): problem for problem in reversed(problems)}.values())


def _problem(detail: ErrorDetails, value: Any) -> Problem:
    path: Path = detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Problem(path, _unknown_key(path), at_key=True)
    if kind == "missing":
        name = str(path[-1])
        remedy = _REMEDY.get(name)
        return Problem(path[:-1], f"`{name}` is missing" + (f": {remedy}" if remedy else ""))
    path = _real(path, value)
    found = show(detail["input"])
    if path == ("version",):
        found += " as text; remove the quotes" if isinstance(detail["input"], str) and found == "`1`" else ""
        return Problem(path, f"this release reads version 1 of the rules language; found {found}")
    if path == ("strict",):
        return Problem(
            path,
            f"`strict` is true (whatever cannot be done is an error) or `warn` (it is a warning); found {found}",
        )
    if kind == "tuple_type" and path[-1:] == ("range",):
        return Problem(path, _limit(detail, found, path))
    if "mask" in path[-2:] and kind in ("dict_type", "too_short", "model_type", "model_attributes_type"):
        return Problem(path, _MASK + f"; found {found}")
    if kind == "bool_type":
        return Problem(path, f"expected true or false; found {found}{boolean_hint(detail['input'])}")
    if kind == "literal_error":
        return Problem(path, _not_among(detail))
    if kind in _EXPECTED:
        quote = "; put it in quotes" if kind == "string_type" and isinstance(detail["input"], int | float) else ""
        return Problem(path, f"expected {_EXPECTED[kind]}; found {found}{quote}")
    return Problem(path, _limit(detail, found, path))


def _real(path: Path, value: Any) -> Path:
    """Cut off steps that only our shorthands made (`kind: concat` is checked as a list of one)."""
    for length, step in enumerate(path):
        inside = isinstance(value, Mapping) and step in value
        inside = inside or (isinstance(value, list | tuple) and isinstance(step, int) and step < len(value))
        if not inside:
            return path[:length]
        value = value[step]
    return path


def _limit(detail: ErrorDetails, found: str, path: Path) -> str:
    kind = detail["type"]
    limits = detail.get("ctx", {})
    if path and path[-1] == "range":
        open_end = ", or null for all the rest" if "slice" in path else ""
        return f"a range is two whole numbers, [low, high], high left out{open_end}; found {found}"
    if path and path[-1] == "between" and kind == "too_short":
        return f"`between` names at least two modalities that meet; found {found}"
    if kind == "too_short" and path == ("rules",):
        return "the list is empty; a rules file has at least one rule"
    if kind == "too_short":
        return "the list is empty; leave the key out or give it a value"
    if kind == "string_pattern_mismatch" and "methods" in path:
        return f"a method is named without brackets and arguments, as in `methods: [generate]`; found {found}"
    if kind == "string_pattern_mismatch":
        return f"an id is made of letters, digits, `_`, `-` and `.` (it becomes part of a module name); found {found}"
    if kind == "string_too_short":
        return "the name is empty"
    if kind == "string_too_long":
        return f"at most {limits.get('max_length')} characters; found {found}"
    if kind == "greater_than_equal":
        return f"must be at least {limits.get('ge')}; found {found}"
    return f"{detail['msg']}; found {found}"


def _not_among(detail: ErrorDetails) -> str:
    names = [name.strip("'") for name in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
    word = detail["input"]
    hint = did_you_mean(word, names) if isinstance(word, str) else ""
    head = f"must be {listing(names)}" if len(names) == 1 else f"must be one of {listing(names, limit=20)}"
    return f"{head}; found {show(word)}{hint}"


def _unknown_key(path: Path) -> str:
    key = str(path[-1])
    model = _model_at(path[:-1])
    known = list(model.model_fields) if model is not None else []
    text = f"unknown key `{key}`"
    hint = did_you_mean(key, known)
    if not hint and key in RegBNOptions.names() and "regbn" in known:
        return f"{text}: it is an option of RegBN; put it under `regbn:`"
    return f"{text}{hint or '; known here: ' + listing(known, limit=20)}"


def _model_at(path: Path) -> type[BaseModel] | None:
    """The model whose keys are in question at `path`, found by walking the schema's own annotations."""
    current: Any = Document
    for step in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(step))
            if field is None:
                return None
            current = _strip(field.annotation)
        else:  # an item of a list, or the value of a name
            arguments = [part for part in typing.get_args(current) if part is not Ellipsis]
            if not arguments:
                return None
            current = _strip(arguments[-1])
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _strip(annotation: Any) -> Any:
    """Take away `Annotated[...]` and `... | None`."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            parts = [part for part in typing.get_args(annotation) if part is not type(None)]
            annotation = parts[0]
        else:
            return annotation


#: Words that YAML 1.1 took for booleans.
_YAML_1_1 = {"on": "true", "yes": "true", "off": "false", "no": "false"}


def boolean_hint(value: Any) -> str:
    """`; write `true` ...` for a word that other readers of YAML take for a boolean."""
    word = _YAML_1_1.get(value.lower()) if isinstance(value, str) else None
    return f"; write `{word}` (YAML 1.2 reads `{value}` as text)" if word else ""


def show(value: Any) -> str:
    """A value as a person wrote it, cut to a length that fits into a sentence."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else f"a list of {len(value)}"
    text = str(value)
    return f"`{text[:57]}...`" if len(text) > 60 else f"`{text}`"
