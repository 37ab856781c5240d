"""What is known of a site in its host's code: plain data, shared by surgery, recipes and pickles. Imports nothing.

A place is an expression of the user's code. It is known by the functions on the way to it, each by name and by the
ordinal of the expression in that function, so that the file may lie elsewhere, and its lines may move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

#: Where torch's own modules that attend have their masks over positions, among positional arguments.
MASK_POSITIONS = {"key_padding_mask": 3, "memory_key_padding_mask": 5, "src_key_padding_mask": 5}
#: The expressions by which a call comes, innermost first: of each the function, and its ordinal in the text.
Way = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Step:
    """An expression of one function.

    `function` is "module:qualified name". `ordinal` counts the function's expressions in the order of its syntax
    tree; -1 where no expression serves. `code` (the function, or a lambda or comprehension in it) and `instruction`
    (an offset in it) say the same of the compiled function.
    """

    function: str
    ordinal: int
    code: str = ""
    instruction: int = -1


@dataclass(frozen=True)
class Place:
    """A call in a host's forward: the way from the forward (first) to the function in which the call stands (last).

    `op` is the name of the operation or layer class that was called there when the place was found.
    """

    steps: tuple[Step, ...]
    op: str


@dataclass(frozen=True)
class End:
    """Where one side of a site comes from, in one call of the host.

    It is an `argument` of the host (a dotted name), or tensor number `output` of what the place `maker` returns. With
    neither, it is tensor number `operand` among the operands of the call `at`.

    A maker that several sites share, since it stands in a loop, makes this side in one of its visits: `layer` (a place,
    and the path of the layer that it calls) tells the rounds apart where each has a layer of its own, else it is visit
    number `turn`. One layer for both sides makes this one where its call (`given`, first) gets the argument of the host
    that `given` names. With `turn` -1 it is any visit. `looped`: each round of the site's own loop makes this side
    anew.
    """

    argument: str | None = None
    maker: Place | None = None
    output: int = 0
    at: Place | None = None
    operand: int = 0
    layer: tuple[Place, str] | None = None
    given: tuple[Place, str] | None = None
    turn: int = -1
    looped: bool = False
    also: tuple[tuple[Place, int], ...] = ()  # other places that make it, in training or in another branch: see `maker`
    passing: tuple[Place, ...] = ()  # calls that get it and give it on, as it is or cast: it is what they give


@dataclass(frozen=True)
class Stretches:
    """How a scatter is issued again: tensor numbers of its two operands, and which calls filled the rest before."""

    into: int
    source: int
    inplace: bool
    written: tuple[Place, ...] = ()
    axis: int = 0


@dataclass(frozen=True)
class MaskArgument:
    """An argument that marks padding of f or of g: of the host, or with `layer` of the torch module that attends.

    `leaves_out`: what is true in it is padding, not content.
    """

    side: Literal["f", "g"]
    argument: str
    leaves_out: bool
    layer: bool = False


def with_masks(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a pickled site, brought from when there was one mask to `masks`. Where a record said no more than
    the name, its RegBN knows the rest."""
    if "masks" in state or "mask" not in state:
        return state
    older = dict(state)
    name, side, leaves_out = older.pop("mask"), older.pop("mask_of", "f"), older.pop("padding", False)
    return {**older, "masks": () if name is None else (MaskArgument(side, name, leaves_out),)}


@dataclass(frozen=True)
class CodeSite:
    """One RegBN in the code of a host.

    `join` is the place at which f and g meet. Where `operands` is true, RegBN acts there, on the operands of that
    call; else it acts as soon as both exist, and the calls in `f_readers` and `g_readers` read the results.
    `onward` are the calls that read what came out of the join: a decoding step without g reads f there.
    """

    name: str
    join: Place
    operands: bool
    f: End
    g: End
    f_readers: tuple[Place, ...]
    g_readers: tuple[Place, ...]
    replace_g: bool
    role: int = 0
    masks: tuple[MaskArgument, ...] = ()
    scatter: Stretches | None = None
    into_is_f: bool = True  # of a scatter: whether the tensor written into is f
    onward: tuple[Place, ...] = ()
    makers: tuple[str | None, str | None] = (None, None)  # paths in the host of the layers that f and g come out of
    methods: tuple[str, ...] = ()  # of the host, beside `forward`, in which the two sides meet as well
    positions: tuple[int, int] | None = None  # which tensors of the join are f and g, where nothing else tells
    unwoven: str = ""  # why a place of it has no expression that could be wrapped; "" where all have

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(with_masks(state))

    @property
    def point_call(self) -> str:
        """Name of the operation at which the two sides meet."""
        return self.join.op

    def places(self) -> tuple[Place, ...]:
        """Every place that the site names, each once."""
        ends = [place for end in (self.f, self.g) for place in (end.maker, end.at, end.layer[0] if end.layer else None)]
        ends += [end.given[0] for end in (self.f, self.g) if end.given is not None]
        written = self.scatter.written if self.scatter is not None else ()
        also = [place for end in (self.f, self.g) for place, _ in end.also]
        passing = (*self.f.passing, *self.g.passing)
        named = (self.join, *self.f_readers, *self.g_readers, *self.onward, *written, *ends, *also, *passing)
        return tuple(dict.fromkeys(place for place in named if place is not None))


@dataclass(frozen=True)
class FunctionText:
    """A function that surgery wrote into, as it was then. `text` is empty where its source was not at hand; `code` is
    a digest of the compiled function, empty where it could not be found again (a lambda out of reach)."""

    name: str  # "module:qualified name"
    text: str
    code: str
