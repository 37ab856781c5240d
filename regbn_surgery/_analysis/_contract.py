"""Matrix products as what they are: axes shared, kept and summed over.

`q @ k.T`, `bmm(v, w.T)` and `einsum("bqd,bkd->bqk")` differ in spelling only. Each axis of the result belongs to the
stream of the operand it came from; a product over an axis of attention scores takes the home of the axis that is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._trace import Call, TensorInfo, Trace
from ._lineage import NOBODY, Home, comparable, incomparable, union

if TYPE_CHECKING:
    from ._met import Met

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Contraction:
    """`axes` are the homes of single axes where they differ; `weighed` the meeting whose scores were used up."""

    home: Home
    axes: tuple[Home, ...] | None
    weighed: int | None = None
    values: tuple[Met, ...] = ()


def contract(op: Call, operands: tuple[Met, ...], result: TensorInfo, trace: Trace) -> Contraction | None:
    """The homes of a matrix product, or None for a product whose axes are not understood."""
    shapes = [trace.tensors[uid].shape for uid in op.inputs]
    spelled = labels(op, shapes, result.shape)
    if spelled is None or len(operands) != 2:
        return None
    inputs, output = spelled
    axis_homes: list[dict[str, Home]] = []
    for met in operands:
        own = met.lineage.axes
        names = inputs[met.position]
        axis_homes.append({name: met.home if own is None else own[i] for i, name in enumerate(names)})
    axes: list[Home] = []
    for name in output:
        holders = [homes[name] for homes in axis_homes if name in homes]
        axes.append(holders[0] if len(holders) == 1 else NOBODY)
    kept = [home for home in axes if home]
    scores = next((m for m in operands if m.lineage.axes is not None), None)
    if scores is not None:
        return _use_scores(scores, operands, inputs, output, axes, axis_homes)
    if incomparable(kept):
        return Contraction(operands[0].home, tuple(axes))
    # An outer product or a sum over everything belongs to all; otherwise to whom the surviving axes belong. The one row
    # of weights in `bmm(weights[:, None], values)` is nobody's position.
    kept = [home for home, size in zip(axes, result.shape, strict=True) if home and size > 1] or kept
    home = union(kept) if kept else union(m.home for m in operands)
    return Contraction(home, None)


def _use_scores(
    scores: Met,
    operands: tuple[Met, ...],
    inputs: list[Labels],
    output: Labels,
    axes: list[Home],
    axis_homes: list[dict[str, Home]],
) -> Contraction:
    other = next(m for m in operands if m is not scores)
    mine = axis_homes[operands.index(scores)]
    theirs = inputs[other.position]
    summed = [name for name in inputs[scores.position] if name not in output and name in theirs]
    left = [mine[name] for name in output if mine.get(name) and name not in theirs]
    home = union(left) if left else other.home
    weighs = any(comparable(mine[name], other.home) for name in summed if mine[name])
    if weighs:
        return Contraction(home, None, scores.lineage.scores, (other,))
    return Contraction(home, tuple(axes) if incomparable(home for home in axes if home) else None)


def labels(op: Call, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> tuple[list[Labels], Labels] | None:
    """Einsum labels of every tensor operand and of the result; none for a tensor that the result is written into."""
    if op.kwargs.get("out") is None:
        return _labels(op, shapes, result)
    spelled = _labels(op, shapes[:-1], result)
    return None if spelled is None else ([*spelled[0], ()], spelled[1])


def _labels(op: Call, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> tuple[list[Labels], Labels] | None:
    product = op.row.product
    if product == "einsum":
        return _einsum_labels(op, shapes)
    if product == "added":
        spelled = _matmul_labels(shapes[1:], result)
        return None if spelled is None else ([(), *spelled[0]], spelled[1])
    if product == "matmul" and len(shapes) == 2:
        return _matmul_labels(shapes, result)
    if product == "rmatmul" and len(shapes) == 2:
        spelled = _matmul_labels(shapes[::-1], result)
        return None if spelled is None else (spelled[0][::-1], spelled[1])
    if product == "linear" and len(shapes) >= 2:
        x = tuple(f"x{i}" for i in range(len(shapes[0]) - 1))
        return [(*x, "k"), ("o", "k"), ("o",)][: len(shapes)], (*x, "o")
    if product == "cdist":  # the axes of a product with the second transposed, whatever is computed along the last
        *batch, i = (f"b{n}" for n in range(len(result) - 1))
        first, second = (*batch, i, "k"), (*batch, "j", "k")
        return [first[-len(shapes[0]) :], second[-len(shapes[1]) :]], (*batch, i, "j")
    if product == "outer":
        return [("i",), ("j",)], ("i", "j")
    if product == "inner" and len(shapes) == 2:
        return _matmul_labels([shapes[0], shapes[1][::-1]], result)
    return None


def _matmul_labels(shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> tuple[list[Labels], Labels] | None:
    a, b = shapes
    if not a or not b:
        return None
    batch = max(len(a), len(b)) - 2
    names = [f"b{i}" for i in range(max(batch, 0))]

    def leading(rank: int) -> Labels:
        count = max(rank - 2, 0)
        return tuple(names[len(names) - count :])

    first: Labels = (*leading(len(a)), "i", "k") if len(a) > 1 else ("k",)
    second: Labels = (*leading(len(b)), "k", "j") if len(b) > 1 else ("k",)
    output: Labels = (*names, *(("i",) if len(a) > 1 else ()), *(("j",) if len(b) > 1 else ()))
    return ([first, second], output) if len(output) == len(result) else None


def _einsum_labels(op: Call, shapes: list[tuple[int, ...]]) -> tuple[list[Labels], Labels] | None:
    equation = op.args[0] if op.args else op.kwargs.get("equation")
    if not isinstance(equation, str) or "..." in equation:
        return _einsum_ellipsis(equation, shapes) if isinstance(equation, str) else None
    left, _, right = equation.replace(" ", "").partition("->")
    inputs = [tuple(part) for part in left.split(",")]
    if "->" not in equation:
        every = left.replace(",", "")
        right = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    return inputs, tuple(right)


def _einsum_ellipsis(equation: str, shapes: list[tuple[int, ...]]) -> tuple[list[Labels], Labels] | None:
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        return None
    inputs: list[Labels] = []
    dots: Labels = ()
    for part, shape in zip(left.split(","), shapes, strict=False):
        if "..." not in part:
            inputs.append(tuple(part))
            continue
        before, after = part.split("...")
        count = len(shape) - len(before) - len(after)
        own = tuple(f"...{i}" for i in range(-count, 0))
        dots = max(dots, own, key=len)
        inputs.append((*before, *own, *after))
    before, _, after = right.partition("...")
    return inputs, (*before, *(dots if "..." in right else ()), *after)
