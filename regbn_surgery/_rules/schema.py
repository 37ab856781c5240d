"""The rules language, version 1, as pydantic models: which keys there are and what type each value has.

What single keys cannot say (a rule has `match` or `pair`, names exist, patterns compile) is in `checks`.
Everything is frozen and holds plain values only, so that rules can be compared and written out again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StrictBool, StrictInt, StrictStr

from .._types import Kind, Level, Missing, Reduce, Replace, Samples
from ..nn.options import Fit


def _as_list(value: Any) -> Any:
    """One value stands for a list of it; a list becomes a tuple, so that rules stay frozen."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if value is None else (value,)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_modality(value: Any) -> Any:
    """`image: pixel_values` and `image: [a, b]` are short for `image: {inputs: [...]}`."""
    return {"inputs": value} if isinstance(value, str | list | tuple) else value


def _as_count(value: Any) -> Any:
    """`expect: 2` is short for `expect: {min: 2, max: 2}`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    return value


def _as_masks(value: Any) -> Any:
    """`mask: attention_mask` is short for a mask of whichever side it fits."""
    return {ANY_SIDE: value} if isinstance(value, str) else value


def _as_mask(value: Any) -> Any:
    """`text: attention_mask` is short for `text: {argument: attention_mask}`."""
    return {"argument": value} if isinstance(value, str) else value


def _as_written(masks: dict[str, MaskSpec] | None) -> Any:
    """The shortest form of a rule's `mask`."""
    if masks is None:
        return None
    short = {
        name: spec.argument if spec.marks is None else spec.model_dump(exclude_unset=True)
        for name, spec in masks.items()
    }
    return short[ANY_SIDE] if set(short) == {ANY_SIDE} else short


#: Stands for the modality where a rule's `mask` names none.
ANY_SIDE = ""

Name = Annotated[StrictStr, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(min_length=1)]
Meeting = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(min_length=2)]
Patterns = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list), Field(min_length=1)]
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(_as_list), Field(min_length=1)]
Levels = Annotated[tuple[Level, ...], BeforeValidator(_as_list), Field(min_length=1)]
Indices = Annotated[tuple[StrictInt, ...], BeforeValidator(_as_list), Field(min_length=1)]
Bounds = Annotated[tuple[StrictInt, StrictInt], BeforeValidator(_as_tuple)]
Stretch = Annotated[tuple[StrictInt, StrictInt | None], BeforeValidator(_as_tuple)]
Size = Annotated[StrictInt, Field(ge=1)]
#: Methods of a module, by name; `forward` is always meant and needs no naming.
Method = Annotated[StrictStr, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Methods = Annotated[tuple[Method, ...], BeforeValidator(_as_list), Field(min_length=1)]
#: Codes of notes, as `_codes` lists them; `checks` knows which there are.
Codes = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list), Field(min_length=1)]
Dtype = Literal[
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
    "uint8", "int8", "int16", "int32", "int64", "bool",
]  # fmt: skip
#: What may stand under `regbn:`; `checks` holds names and values to `RegBNOptions`.
Options = dict[StrictStr, Any]


class Model(BaseModel):
    """Base of all parts: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputSpec(Model):
    """One example input to make up: shape with the batch axis in its place, dtype, and a range for integers.

    `range: [low, high]` counts low in and high out, as `torch.randint` does.
    """

    shape: Annotated[tuple[Size, ...], BeforeValidator(_as_tuple)]
    dtype: Dtype = "float32"
    range: Bounds | None = None


class Slice(Model):
    """A stretch of an axis: `range: [low, high]`, high left out, or null for all the rest."""

    dim: StrictInt
    range: Stretch


class ModalitySpec(Model):
    """A modality: inputs by dotted name or glob (all of them, or a stretch of one axis), or outputs of modules."""

    inputs: Names = ()
    modules: Patterns = ()
    slice: Slice | None = None


class Match(Model):
    """Which fusion points: the keys are ANDed, the values of a list ORed; a key left out always holds."""

    kind: Kinds | None = None
    owner: Patterns | None = None
    between: Meeting | None = None
    level: Levels | None = None
    point: Patterns | None = None
    nth: Indices | None = None


class Pair(Model):
    """Two points named outright: `input:NAME` or `module:PATH`, f first.

    One of them may be a regular expression, `re:module:visual\\.layer(\\d)`; the other then refers to its groups.
    """

    f: StrictStr
    g: StrictStr


class Count(Model):
    """How many fusion points a rule must select."""

    min: Annotated[StrictInt, Field(ge=0)] = 0
    max: Annotated[StrictInt, Field(ge=0)] | None = None


class MaskSpec(Model):
    """The argument that marks the padding of one side, and what 1 (or true) in it marks."""

    argument: Name
    marks: Literal["content", "padding"] | None = None

    @property
    def is_none(self) -> bool:
        """Whether it says that nothing is to be left out."""
        return self.argument == "none"


Masks = Annotated[
    dict[StrictStr, Annotated[MaskSpec, BeforeValidator(_as_mask)]],
    BeforeValidator(_as_masks),
    Field(min_length=1),
    PlainSerializer(_as_written),
]


class Treatment(Model):
    """What is done at a site, as far as rules, defaults and overrides may all say it."""

    regbn: Options = Field(default_factory=dict)
    reduce: Reduce | None = None
    replace: Replace | None = None
    fit: Fit | None = None
    methods: Methods | None = None
    missing: Missing | None = None
    samples: Samples | None = None
    mask: Masks | None = None
    allow_noncausal: StrictBool | None = None


class Override(Treatment):
    """A change to one fusion point, by id, after the rules have decided."""

    normalize: StrictStr | None = None
    against: StrictStr | None = None


class Rule(Override):
    """One rule: which fusion points (`match`) or which pair (`pair`), and what to do there."""

    id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]
    match: Match | None = None
    pair: Pair | None = None
    pairs: Literal["all"] | None = None
    action: Literal["normalize", "skip"] = "normalize"
    expect: Annotated[Count | None, BeforeValidator(_as_count)] = None


class Document(Model):
    """A whole rules file."""

    version: Annotated[StrictInt, Field(ge=1, le=1)]
    strict: Literal[True, "warn"] | None = None
    ignore: Codes = ()
    inputs: dict[StrictStr, InputSpec] = Field(default_factory=dict)
    modalities: dict[StrictStr, Annotated[ModalitySpec, BeforeValidator(_as_modality)]] = Field(default_factory=dict)
    defaults: Treatment = Field(default_factory=Treatment)
    exclude: Annotated[tuple[Match, ...], BeforeValidator(_as_list)] = ()
    rules: Annotated[tuple[Rule, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    overrides: dict[StrictStr, Override] = Field(default_factory=dict)
