"""Shapes, axes and sizes as people write them: `8×96×14×14 (B×C×H×W)`, `96×96, 0.04 MiB`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._rules.naming import home_name
from .._types import FusionPoint, Layout, Operand, PlannedSite, Reduce, Side
from .words import count_text

AxisNames = Mapping[int, Sequence[str]]
SPATIAL: AxisNames = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
_BYTES = 4  # of one float32 of W


def shape_text(shape: Sequence[int]) -> str:
    """`8×96`; a scalar is `scalar`."""
    return "×".join(str(size) for size in shape) or "scalar"


#: What the axes beside batch and channels count in an attention, by the operation that computes it and their number.
_IN_ATTENTION: Mapping[str, AxisNames] = {
    "scaled_dot_product_attention": {1: ("tokens",), 2: ("heads", "tokens")},
    "matmul": {1: ("tokens",), 2: ("heads", "tokens")},
    "bmm": {1: ("tokens",)},
    "add": {1: ("tokens",), 2: ("queries", "keys")},
}


def axis_names(point: FusionPoint) -> AxisNames:
    """The names of the axes beside batch and channels at a fusion point, by how many there are."""
    if point.kind != "attention":
        return SPATIAL
    return _IN_ATTENTION.get(point.op, {1: ("tokens",), 2: ("S1", "S2")})


def roles_text(layout: Layout, rank: int, names_of: AxisNames = SPATIAL) -> str:
    """`B×C×H×W`: what each axis means, `?` where it is unknown."""
    roles = ["?"] * rank
    names = names_of.get(len(layout.spatial_dims)) or tuple(f"S{i + 1}" for i in range(len(layout.spatial_dims)))
    for dim, name in zip(layout.spatial_dims, names, strict=True):
        if dim < rank:
            roles[dim] = name
    for axis, role in ((layout.channel_dim, "C"), (layout.batch_dim, "B")):
        if axis is not None and axis < rank:
            roles[axis] = role
    return "×".join(roles)


def home_text(home: Sequence[str]) -> str:
    """`image+text` for a stream that carries both."""
    return home_name(home) or "no modality"


def tensor_text(home: Sequence[str], shape: Sequence[int], layout: Layout, names_of: AxisNames = SPATIAL) -> str:
    """`gray 8×96 (B×C)`; `names_of` are the axes' names, as `axis_names` gives them."""
    return f"{home_text(home)} {shape_text(shape)} ({roles_text(layout, len(shape), names_of)})"


def meeting_texts(point: FusionPoint) -> list[str]:
    """A line for each stream that meets at a point, in operand order.

    The keys and the values of an attention are one line where they are of one stream, and so is a stream that is scaled
    first and shifted then; the operands of a concatenation are a line each. What a stream has taken up from other
    modalities on its way, as queries do in an attention, is said behind it.
    """
    names = axis_names(point)
    texts = [(tensor_text(o.home, o.shape, o.layout, names), _seen(o)) for o in point.operands]
    if point.kind == "attention" and len(texts) == 3:
        query, key, value = (operand.home for operand in point.operands)
        if key == value != query:
            return ["".join(texts[0]), f"{''.join(texts[2])}, keys and values"]
    once: dict[str, str] = {}
    for text, seen in texts:
        once.setdefault(text, seen)
    return [text + seen for text, seen in (texts if point.kind == "concat" else once.items())]


def _seen(operand: Operand) -> str:
    others = [name for name in operand.modalities if name not in operand.home]
    return f", has seen {'+'.join(others)}" if others and operand.home else ""


def side_text(side: Side, reduce: Reduce = "flatten") -> str:
    """`gray: 96 channels of 14×14`; `text: 32 channels averaged over 7` where positions are averaged, or "over those of
    7 positions that are not overwritten" where a scatter writes into the others."""
    if side.channels is None:
        return f"{home_text(side.home)}: channels unknown"
    text = f"{home_text(side.home)}: {count_text(side.channels, 'channel')}"
    if not side.spatial_shape:
        return text
    positions = shape_text(side.spatial_shape)
    if reduce == "flatten":
        return f"{text} of {positions}"
    return f"{text} averaged over " + (
        f"those of {positions} positions that are not overwritten" if side.partly else positions
    )


def padding_text(site: PlannedSite, letter: str) -> str:
    """``without padding (`attention_mask`)``, of f or of g; "" where all positions count.

    The mask of a torch module that attends is optional, and the example may not have given it.
    """
    mask = next((mask for mask in site.padding or () if mask.side == letter), None)
    if mask is None:
        return ""
    return f"without padding, if `{mask.argument}` is given" if mask.layer else f"without padding (`{mask.argument}`)"


def mib_text(m: int, n: int) -> str:
    """`96×96, 36 KiB`: the size of a dense W in float32; `512×512, 1.00 MiB` from a MiB on."""
    kib = m * n * _BYTES / 2**10
    if kib < 2**10:
        return f"{m}×{n}, {kib:.1f} KiB" if kib < 10 else f"{m}×{n}, {kib:.0f} KiB"
    mib = kib / 2**10
    return f"{m}×{n}, {mib:.2f} MiB" if mib < 100 else f"{m}×{n}, {mib:,.0f} MiB"


def projection_text(site: PlannedSite) -> str:
    """The size of the projection that a planned site will hold."""
    return mib_text(*site.projection_shape)


def owner_text(owner: str) -> str:
    """The path of a module, the root by name."""
    return owner or "(root)"
