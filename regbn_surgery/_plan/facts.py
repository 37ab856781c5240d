"""What is known of the model and its example beside the fusion points: what a plan's checks and advice go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .._types import FusionPoint, HostArgument, PaddingMask, PlannedSite, Side


def below(path: str, name: str) -> str:
    """The path of a submodule of the module at `path`."""
    return f"{path}.{name}".lstrip(".")


@dataclass(frozen=True)
class SiteMasks:
    """What could mark the padding at one site. `automatic` needs no rule; `open` says of f and of g whether RegBN could
    leave positions out; `meaning` tells of an argument whether what is true in it is padding, None where that is not
    known."""

    host: str  # class and path, for people
    automatic: tuple[PaddingMask, ...] = ()
    open: tuple[bool, bool] = (True, True)
    arguments: Callable[[], tuple[HostArgument, ...]] = field(default=tuple, compare=False)
    meaning: Callable[[HostArgument], bool | None] = field(default=lambda _: None, compare=False)


@dataclass(frozen=True)
class Beside:
    """The stream that is added to the result of an attention as it was. `pair` gives references by which a rule can
    name it as f, with side 0 or 1 of the site as g; None where none will do."""

    home: tuple[str, ...]
    pair: Callable[[int], tuple[str, str] | None] = field(default=lambda _: None, compare=False)


@dataclass(frozen=True)
class Facts:
    """Defaults mean that nobody looked."""

    references: tuple[str, ...] = ()  # all that a pair may name, "input:NAME" and "module:PATH", in order of the run
    batch: int | None = None  # samples in the user's example
    steps: int | None = None  # training steps that the user announces
    weights_seen: bool = False
    has_pretrained_class: bool = False  # a model of transformers or around one: its users load pretrained weights
    trained: str | None = None  # why the weights look trained; None: they look fresh, or nobody looked
    causal: frozenset[str] = frozenset()  # modalities whose positions are predicted one after the other
    streams: frozenset[tuple[str, int, int]] | None = None  # sides (point, site, 0 or 1) with such positions
    layers: Mapping[tuple[str, int], str] = field(default_factory=dict)  # by (point, site): path of a layer with a hook
    #: By (point, site) of an attention: the stream that is added to its result as it was.
    beside: Mapping[tuple[str, int], Beside] = field(default_factory=dict)
    masks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of inputs that look like masks, by name
    padded: frozenset[str] = frozenset()  # those in which the example marks some positions and others not
    masks_at: Callable[[PlannedSite], SiteMasks] | None = field(default=None, compare=False)
    kept_at: Callable[[str, str], str] = field(default=below, compare=False)  # from (host, name) to the RegBN's path


def with_causality(point: FusionPoint, facts: Facts) -> FusionPoint:
    """The point with its sides marked: causal or not."""
    sites = []
    for i, site in enumerate(point.sites):
        first, second = site.sides
        if facts.streams is not None:
            first = replace(first, causal=(point.id, i, 0) in facts.streams)
            second = replace(second, causal=(point.id, i, 1) in facts.streams)
        sites.append(replace(site, sides=(mark_causal(first, facts), mark_causal(second, facts))))
    return replace(point, sites=tuple(sites))


def mark_causal(side: Side, facts: Facts) -> Side:
    """A side that still has the positions of a causal stream would show what comes later to what comes before.

    Where nobody has looked at the side itself, one that lies like a sequence counts as such a stream.
    """
    if side.causal is not None:
        return side
    return replace(side, causal=side.layout.sequence and bool(facts.causal & set(side.home)))
