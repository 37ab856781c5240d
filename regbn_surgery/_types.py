"""What flows between the stages, as frozen dataclasses: capture → analyse → rules → plan → rewrite → report.

No stage keeps state of its own beside these; every one of them can be printed, compared and written as JSON.
The tensors of the user's model never appear here, only their shapes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal

Kind = Literal["concat", "sum", "product", "matmul", "bilinear", "attention", "scatter", "similarity", "loss", "module"]
Level = Literal["early", "middle", "late", "remeeting"]
Reduce = Literal["flatten", "mean"]
Replace = Literal["both", "f"]
Missing = Literal["warn", "error", "ignore"]
Samples = Literal["batch", "rows"]

KINDS: tuple[Kind, ...] = (
    "concat", "sum", "product", "matmul", "bilinear", "attention", "scatter", "similarity", "loss", "module",
)  # fmt: skip
LEVELS: tuple[Level, ...] = ("early", "middle", "late", "remeeting")
#: Kinds that no rule selects unless it names them.
NEVER_BY_DEFAULT: frozenset[Kind] = frozenset({"similarity", "loss"})


@dataclass(frozen=True)
class Source:
    """A line of the user's code.

    `frames` are the user's functions that run there, innermost first, up to the forward of the module whose call it is:
    each with the offset of its current instruction and the name of its module. They are known within one process only.
    `inside` are torch's own functions below them, in which the call really stands: one line may lead to many calls.
    """

    file: str
    line: int
    function: str
    offset: int = field(default=0, compare=False, repr=False)  # tells two calls in one line apart, within one run
    frames: tuple[tuple[CodeType, int, str], ...] = field(default=(), compare=False, repr=False)
    inside: tuple[tuple[CodeType, int], ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Layout:
    """What the axes of a tensor mean, and why we believe it. `None` means unknown, never guessed.

    `sequence` is true where the spatial axes count tokens, so that their number may vary from batch to batch.
    """

    batch_dim: int | None
    channel_dim: int | None
    spatial_dims: tuple[int, ...]
    sequence: bool = False
    evidence: tuple[str, ...] = ()
    #: (axis, how many times the batch size) where samples and something else, such as time, are folded together
    folded: tuple[int, int] | None = None

    @property
    def known(self) -> bool:
        return self.batch_dim is not None and self.channel_dim is not None


@dataclass(frozen=True)
class Operand:
    """A tensor operand of a fusion call, as the call saw it (at the example batch size)."""

    modalities: tuple[str, ...]  # every modality that reached it ("touched"), in input order
    home: tuple[str, ...]  # the stream it belongs to
    producer: str  # what made it, for people: "Linear `img_proj`", "input `image`"
    shape: tuple[int, ...]
    dtype: str
    layout: Layout


@dataclass(frozen=True)
class Side:
    """One half of a site: a tensor that RegBN can take at the fusion point, and how it lies in memory."""

    home: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    anchor: str  # where it is taken, for people: "argument `context`", "operand 0 of cat"
    # Whether its earlier positions never see its later ones (a decoder's own tokens); None where nobody looked.
    causal: bool | None = field(default=None, compare=False)
    #: Why the values must stay in a range that RegBN may leave (a variance of which a root is taken); else None.
    bounded: str | None = field(default=None, compare=False)
    #: Whether RegBN leaves out some of its positions: the other side is written over them.
    partly: bool = field(default=False, compare=False)

    @property
    def channels(self) -> int | None:
        dim = self.layout.channel_dim
        return None if dim is None else self.shape[dim]

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[dim] for dim in self.layout.spatial_dims)

    def by_rows(self) -> Side | None:
        """The tensor with each of its rows for a sample of its own; None where that cannot be.

        Rows lie along the axis that samples are folded into, else along the first.
        """
        rows = self.layout.folded[0] if self.layout.folded is not None else 0
        channels = self.layout.channel_dim
        if channels is None and len(self.shape) == 2:
            channels = 1 - rows
        if channels in (None, rows) or self.layout.batch_dim not in (None, rows):
            return None
        rest = tuple(dim for dim in range(len(self.shape)) if dim not in (rows, channels))
        sequence = len(rest) == 1 and channels == len(self.shape) - 1
        words = f"each row along axis {rows} counts as a sample"
        layout = Layout(rows, channels, rest, sequence, (words, *self.layout.evidence), self.layout.folded)
        return dataclasses.replace(self, layout=layout)


@dataclass(frozen=True)
class Site:
    """A pair of tensors at a fusion point between which RegBN may go. Which one is f, the plan decides.

    `gate` is the index of the side that only modulates the other: it can be g, read but not replaced, never f.
    `obstacle` says why RegBN cannot go here; such a site can be reported but not planned.
    `role` numbers the ways in which one shared owner is called (a siamese cross-attention has two).
    """

    host: str
    sides: tuple[Side, Side]
    reduce: Reduce
    role: int = 0
    gate: int | None = None
    obstacle: str | None = None
    unknown: bool = False  # whether that is all that stands in the way: an axis of samples that is not known

    def by_rows(self) -> Site | None:
        """The site with each row of both sides for a sample, where nothing but this is not known; else None."""
        first, second = (side.by_rows() for side in self.sides)
        if not self.unknown or first is None or second is None:
            return None
        dims = first.layout.batch_dim, second.layout.batch_dim
        if dims[0] is None or dims[1] is None or first.shape[dims[0]] != second.shape[dims[1]]:
            return None
        return dataclasses.replace(self, sides=(first, second), obstacle=None, unknown=False)


@dataclass(frozen=True)
class FusionPoint:
    """A call at which operands with incomparable homes meet (or a mixed stream meets a pure one again)."""

    id: str  # unique within the model and stable: "fusion.cat", "cat", "encoder.cross.attention"
    owner: str  # path of the module whose own forward contains the call; "" is the root
    owner_class: str
    kind: Kind
    op: str  # name of the function or leaf module class: "cat", "add", "MultiheadAttention"
    source: Source | None
    level: Level
    selected_by_default: bool
    operands: tuple[Operand, ...]
    sites: tuple[Site, ...]
    group: str = ""  # equal for the same call repeated over layers
    modes: tuple[str, ...] = ("eval", "train")  # the modes in which the call was seen
    note: str = ""

    @property
    def homes(self) -> tuple[tuple[str, ...], ...]:
        """The distinct homes that meet here, in operand order."""
        seen: dict[tuple[str, ...], None] = {}
        for operand in self.operands:
            if operand.home:
                seen.setdefault(operand.home)
        return tuple(seen)


@dataclass(frozen=True)
class Modality:
    """A named group of primary inputs, by their dotted names (`batch.audio`), or of outputs of modules, by patterns.

    `slice` is (dim, start, stop) where only that stretch of each input belongs to it; stop None takes all the rest.
    """

    name: str
    inputs: tuple[str, ...]
    modules: tuple[str, ...] = ()
    slice: tuple[int, int, int | None] | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        """Where it begins, for people: `pixel_values`, `x[:, 0:8]`, `module:text_encoder.**`."""
        stretch = ""
        if self.slice is not None:
            dim, start, stop = self.slice
            stretch = f"[{':, ' * dim}{start}:{'' if stop is None else stop}]"
        return (*(name + stretch for name in self.inputs), *(f"module:{pattern}" for pattern in self.modules))


@dataclass(frozen=True)
class ExcludedInput:
    """An input that counts for no modality, with the reason shown to the user."""

    name: str
    reason: str


@dataclass(frozen=True)
class InputTensor:
    """One tensor among the example inputs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout


@dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` found. `notes` are sentences for people (guards, gaps, branches that never meet)."""

    model: str  # class name of the model
    modalities: tuple[Modality, ...]
    inputs: tuple[InputTensor, ...]
    excluded: tuple[ExcludedInput, ...]
    fusion_points: tuple[FusionPoint, ...]
    notes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()  # codes of notes that reports leave out

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types (see `docs/inspect.schema.json`)."""
        from ._report.jsonout import inspection_to_dict

        return inspection_to_dict(self)

    def __str__(self) -> str:
        from ._report.text import inspection_to_text

        return inspection_to_text(self)

    def __repr__(self) -> str:
        from ._visible import visible

        names = ", ".join(modality.name for modality in self.modalities)
        points = ", ".join(point.id for point in self.fusion_points)
        found = f"modalities {names or 'none'}; fusion points {points or 'none'}"
        return visible(f"<Inspection of {self.model}: {found}>")

    def _repr_html_(self) -> str:
        from ._report.notebook import inspection_to_html

        return inspection_to_html(self)


@dataclass(frozen=True)
class HostArgument:
    """An argument of a host, from which a rule may choose the mask of a side.

    `shape` is None where the example does not give it. `inputs` are the model's inputs that are this very tensor.
    """

    name: str
    shape: tuple[int, ...] | None
    inputs: tuple[str, ...] = ()
    content: bool = False  # whether it carries a modality
    uid: int | None = field(default=None, compare=False)  # of its tensor, within one analysis


@dataclass(frozen=True)
class PaddingMask:
    """Which argument marks the padding among the positions of one side of a site: RegBN leaves that out.

    `argument`, by its dotted name, is one of the host, or with `layer` one of the torch module that attends.
    `leaves_out`: what is true in it is padding, not content.
    """

    side: Literal["f", "g"]
    argument: str
    leaves_out: bool
    layer: bool = False


@dataclass(frozen=True)
class PlannedSite:
    """One RegBN module that will go in. `f` and `g` are indices into `site.sides` (or describe a pair)."""

    name: str  # name of the new submodule inside the host: "regbn_late", "regbn_late_1"
    host: str
    rule: str  # id of the rule that asked for it
    point: str | None  # id of the fusion point; None at a pair site
    f: Side
    g: Side
    reduce: Reduce
    replace: Replace
    site: Site | None = None
    pair: tuple[str, str] | None = None  # ("input:gray", "input:colored") at a pair site
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for RegBN, sizes left out
    missing: Missing = "warn"  # what a call does in which the two sides do not meet
    methods: tuple[str, ...] = ()  # methods of the host beside `forward` in which the site counts, too
    tier: int | None = None  # 1: by a hook, 2: in the host's own code, 3: under a mode; None where not tried
    kept_at: str = ""  # path of the new submodule where it is not the host that keeps it (a layer with a hook)
    padding: tuple[PaddingMask, ...] | None = None  # what marks it; None where nobody looked: what is found by itself

    @property
    def path(self) -> str:
        """Of the new submodule in the model: its name in the state dict, in statistics and in every report."""
        return self.kept_at or f"{self.host}.{self.name}".lstrip(".")

    @property
    def f_layer_dim(self) -> tuple[int, ...]:
        return () if self.reduce == "mean" else self.f.spatial_shape

    @property
    def g_layer_dim(self) -> tuple[int, ...]:
        return () if self.reduce == "mean" else self.g.spatial_shape

    @property
    def projection_shape(self) -> tuple[int, int]:
        """(m, n): flat size of g by flat size of f, the shape of RegBN's W."""
        return _flat(self.g, self.g_layer_dim), _flat(self.f, self.f_layer_dim)


@dataclass(frozen=True)
class Decision:
    """What the rules say about one fusion point, and why.

    `others` holds (rule id, reason) for each rule that did not decide it: the clause that failed, or who came first.
    """

    point: str
    action: Literal["normalize", "skip", "leave"]
    rule: str | None
    reason: str
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, repr=False)
class Plan:
    """The rules applied to the found fusion points. Nothing has changed yet.

    Data: it can be compared, printed, and written to and read from JSON. `model`, `modalities` and `points` say what
    it was made for, so that it is applied to nothing else; `inputs` are the rules' own example inputs, if any.
    """

    decisions: tuple[Decision, ...]
    sites: tuple[PlannedSite, ...]
    notes: tuple[str, ...] = ()
    model: str = ""  # class name
    modalities: tuple[Modality, ...] = ()
    points: tuple[tuple[str, str], ...] = ()  # every fusion point: its id, and in words what it is
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # under `strict: warn`: what would have been an error
    forwards: tuple[tuple[str, str], ...] = ()  # path of each host, and a digest of the code of its forward
    ignore: tuple[str, ...] = ()  # codes of notes and warnings that the rules switch off

    def to_dict(self) -> dict[str, Any]:
        """The whole content as plain JSON types; `Plan.from_dict` reads it back."""
        from ._plan.codec import plan_to_dict

        return plan_to_dict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote. Raises PlanError, with the place, for what is none."""
        from ._plan.codec import plan_from_dict

        return plan_from_dict(content)

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote. Raises PlanError for what is none."""
        from ._plan.codec import plan_from_json

        return plan_from_json(text)

    def __str__(self) -> str:
        from ._report.text import plan_to_text

        return plan_to_text(self)

    def __repr__(self) -> str:
        from ._report.words import count_text
        from ._visible import visible

        sites = ", ".join(site.path for site in self.sites)
        points = count_text(len(self.decisions), "fusion point")
        return visible(f"<Plan for {self.model or 'a model'}: {points}, RegBN {sites or 'nowhere'}>")

    def _repr_html_(self) -> str:
        from ._report.notebook import plan_to_html

        return plan_to_html(self)


def _flat(side: Side, layer_dim: tuple[int, ...]) -> int:
    size = side.channels or 0
    for extent in layer_dim:
        size *= extent
    return size
