"""What a row of the table of torch operations says: one frozen record, and the words that its fields may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: How several operands that carry modalities become one result.
Family = Literal[
    "concat", "sum", "product", "matmul", "bilinear", "attention", "scatter", "similarity", "loss", "other"
]

#: How the axes of the main operand become those of the result; `_analysis/_axes.py` has one branch for each.
Axes = Literal[
    "each",  # elementwise: aligned from the right, as broadcasting does
    "view",  # the same elements in memory order under another shape
    "reverse", "matrix", "swap_last", "order", "move", "swap",  # permutations
    "index", "select", "narrow", "index_select",  # a part along some axes
    "split", "unbind", "hsplit", "vsplit",  # several parts along one axis
    "stretch",  # repeats along axes of size 1, or tiles
    "reduce",  # axes vanish or become size 1
    "stack", "cat", "hstack", "vstack", "dstack",
    "last",  # computes along the last axis and makes another last axis (Linear)
    "convolution", "pool", "pad", "pad_sides",
    "layer_norm", "batch_norm", "group_norm",
    "recurrent", "attention",
    "along",  # computes or reorders along the axes that an argument names
    "fixed",  # the same along an axis that its definition names
    "table",  # ids become rows of a table: a new last axis
    "opaque",
]  # fmt: skip

#: What a call does to values. A call with none of these computes something new.
Value = Literal[
    "reshapes", "permutes", "casts", "drops_out", "splits", "takes_part", "stretches", "repeats",  # the same numbers
    "integers",  # a cast to whole numbers or booleans
    "scales", "shifts", "adds", "divides", "floors",  # the same direction, or nearly
    "norm",  # the length of vectors
    "unit",  # vectors divided by their length
    "normalises",  # a step on the way to vectors of length one
    "squashes", "activates",
    "rotary",  # a step of a rotary position code
    "negates", "equal", "unequal", "less", "greater",
    "ids",  # ids stay ids
    "looks_up",  # integers become something that stands for them
    "puts",  # writes values in place of others, and does nothing else
    "recurrent",
]  # fmt: skip

#: Whose data reaches the result: of all operands, of the first alone, of the ids where the first is a table (else of
#: the first), in each result that of one operand (as f' is f's), or of none.
Carries = Literal["all", "first", "lookup", "own", "nothing"]

#: How the axes of a product are labelled; `_analysis/_contract.py` has one branch for each.
Product = Literal["matmul", "rmatmul", "added", "linear", "einsum", "cdist", "outer", "inner"]

#: What a call that leaves no operation behind does: describe a tensor or its size, ask torch for a setting, bring a
#: value into Python, or set a mode of torch. `state` sets what the calls after it depend on, and is recorded.
Says = Literal["describes", "asks", "reads", "size", "mode", "state"]


@dataclass(frozen=True)
class Operation:
    """One operation of torch under all its spellings: functions, methods, operators and classes of modules."""

    name: str
    spellings: tuple[str, ...] = ()  # beside `name`, and `name_` where it works in place
    family: Family = "other"
    axes: Axes = "each"
    dim: int = 1  # which argument names the axes, or for `fixed` the axis itself
    default: Any = -1  # the axes where none is named; "rank": as `torch.nn.functional.softmax` chooses
    spatial: int = 0  # how many trailing axes pooling and padding work on, at least
    channels: Literal["first", "last"] | None = None  # where a layer by definition has its channels
    values: frozenset[Value] = frozenset()
    carries: Carries = "all"
    content: int | None = None  # tensor operands from this one on are masks
    source: int | None = None  # which argument a call writes, where that may be a number; else its last tensor
    weight: int | None = None  # the operand that says how much of each other one
    query: int = 0  # which operand of an attention asks
    adds_query: bool = False  # whether the attention adds what asks to its result
    mask: Mapping[int, Literal["out", "in", "choice"]] = field(default_factory=dict)  # operand: what True in it does
    key_mask: tuple[str, int] | None = None  # argument of a module that masks positions (True leaves out), and whose
    arguments: tuple[str, ...] = ()  # of a module: names of the arguments that carry content
    product: Product | None = None
    says: Says | None = None
    types: bool = False  # says of which type numbers are, which autocast decides, too

    def does(self, *values: Value) -> bool:
        """Whether the operation does any of these to values."""
        return not self.values.isdisjoint(values)

    @property
    def embeds(self) -> bool:
        """Whether ids become rows of a table."""
        return self.axes == "table"
