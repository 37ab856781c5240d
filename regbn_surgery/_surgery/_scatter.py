"""RegBN at calls that write one stream's values into another's tensor: `masked_scatter`, `x[mask] = y`, `x[:, :n] = y`.

What such a call puts where is asked of the call itself: done once more on zeros with the values, and once with ones,
it gives the values in place and the positions they take. So every spelling is understood alike, and the rows of a
source that was flattened over the batch go back to their samples, however many each of them has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .. import _tree
from .._analysis._scatter import Scatter
from .._errors import RewriteError
from .._types import PlannedSite
from ..nn._symbols import as_one_call, symbols_in
from ._record import MaskArgument, Stretches
from ._site import RegBNSite, _permuted_back, is_identity


class PositionSite(RegBNSite):
    """RegBN between a tensor's content and what a call puts over it at some positions.

    `forward(into, full, chosen, mask)`: the tensor as it was, one of the same shape with the new values in place, a
    mask of that shape, True at the new values, and what the host was given as mask over the positions, if anything.
    Returns the tensor with f' and g' in place. Padding takes no part, and stays as it is.
    """

    def __init__(
        self, planned: PlannedSite, replace_g: bool, into_is_f: bool, masks: tuple[MaskArgument, ...] = ()
    ) -> None:
        """`masks`: see `RegBNSite`; the side is the one that is written into."""
        super().__init__(planned, replace_g, masks)
        self.into_is_f = into_is_f

    def forward(  # type: ignore[override]
        self, into: Tensor, full: Tensor, chosen: Tensor, mask: Any = None
    ) -> Tensor:
        if type(into) is not Tensor and next(symbols_in((into, full, chosen)), None) is not None:
            written: Tensor = as_one_call(self, into, full, chosen, mask=mask)
            return written
        by_channel = chosen.permute(self.f_axes)
        new = by_channel.any(dim=1)
        if is_identity() and not torch.compiler.is_compiling() and not torch.equal(new, by_channel.all(dim=1)):
            raise RewriteError(
                "the call that writes one modality into another selects single channels of a position, so its rows "
                "cannot be identified; select whole positions, or normalise another point"
            )
        content = self._content(into, mask)
        own = ~new if content is None else ~new & content
        if self.into_is_f:
            kept, put = super().forward(into, full, own, new)
        else:
            put, kept = super().forward(full, into, new, own)
        if content is not None:
            kept = torch.where(_permuted_back(content.unsqueeze(1), self.f_axes), kept, into)
        return torch.where(chosen, put, kept)

    def _content(self, into: Tensor, mask: Any) -> Tensor | None:
        """Where the tensor that is written into has content, `[B, length]`; None where no mask tells."""
        given = mask[0] if isinstance(mask, tuple | list) and mask else mask
        if not self.masks or not isinstance(given, Tensor) or given.dim() != 2:
            return None
        return self._kept(self.masks[0], given, into, into)

    def pair_of(  # type: ignore[override]
        self, into: Tensor, full: Tensor, chosen: Tensor, mask: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        new = chosen.permute(self.f_axes).any(dim=1)
        content = self._content(into, mask)
        own = ~new if content is None else ~new & content
        if self.into_is_f:
            return super().pair_of(into, full, own, new)
        return super().pair_of(full, into, new, own)


def gather_written(into: Tensor, axis: int, *stretches: Any) -> Tensor:
    """The stretches of `into` that earlier calls have filled, one after the other along `axis`, in memory of its own:
    `into` is going to be written to again."""
    return torch.cat([into[stretch] for stretch in stretches], dim=axis)


def write_back(into: Tensor, axis: int, value: Tensor, *stretches: Any) -> Tensor:
    """Put what `gather_written` gathered, normalised, back in its place."""
    sizes = [into[stretch].shape[axis] for stretch in stretches]
    for stretch, part in zip(stretches, torch.split(value, sizes, dim=axis), strict=True):
        into[stretch] = part
    return into


# -- in a graph -------------------------------------------------------------------------------------


def insert_scatter(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    operands: tuple[torch.fx.Node, torch.fx.Node],
    scatter: Scatter,
    name: str,
    into_is_f: bool,
    replace_g: bool,
    earlier: tuple[torch.fx.Node, ...],
    masks: tuple[torch.fx.Node | None, ...],
) -> None:
    """Change the call `node`, which writes `operands[1]` into `operands[0]`, so that it writes RegBN's results.
    `masks`: what the host was given as masks over the positions."""
    into, source = operands
    with graph.inserting_before(node):
        if scatter.written:
            stretches = tuple(other.args[1] for other in earlier)
            before = graph.call_function(gather_written, (into, scatter.axis, *stretches))
            f, g = (before, source) if into_is_f else (source, before)
            call = graph.create_node("call_module", name, (f, g), name=name)
            f_new = graph.call_function(_item, (call, 0))
            g_new = graph.call_function(_item, (call, 1)) if replace_g else g
            kept, put = (f_new, g_new) if into_is_f else (g_new, f_new)
            if kept is not before:
                graph.call_function(write_back, (into, scatter.axis, kept, *stretches))
            node.replace_input_with(source, put)
            return
        full, chosen = (
            _again(graph, node, into, source, value, scatter.inplace)
            for value in (source, graph.call_function(torch.ones_like, (source,)))
        )
        chosen = graph.call_function(torch.ne, (chosen, 0))
        masked: dict[str, Any] = {"mask": masks} if any(masks) else {}
        if scatter.inplace:
            old = graph.call_method("clone", (into,))
            call = graph.create_node("call_module", name, (old, full, chosen), masked, name=name)
    # The call becomes another one and stays the node it was, so that whoever reads it, or counts on it, goes on.
    if scatter.inplace:
        node.op, node.target, node.args, node.kwargs = "call_method", "copy_", (into, call), {}
    else:
        node.op, node.target, node.args, node.kwargs = "call_module", name, (into, full, chosen), masked


def _again(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    into: torch.fx.Node,
    source: torch.fx.Node,
    value: torch.fx.Node,
    inplace: bool,
) -> torch.fx.Node:
    """The same call on zeros, with `value` for its source."""
    zeros = graph.call_function(torch.zeros_like, (into,))

    def other(given: torch.fx.Node) -> torch.fx.Node:
        return zeros if given is into else value if given is source else given

    args = torch.fx.map_arg(node.args, other)
    kwargs = torch.fx.map_arg(node.kwargs, other)
    made = graph.create_node(node.op, node.target, args, kwargs)
    return zeros if inplace else made


def _item(pair: tuple[Tensor, Tensor], index: int) -> Tensor:
    return pair[index]


# -- in the user's code -------------------------------------------------------------------------


def run_scatter(
    module: nn.Module,
    scatter: Stretches,
    into_is_f: bool,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stretches: tuple[Any, ...],
    mask: Any = None,
) -> Any:
    """Do the call `func(*args, **kwargs)` with RegBN's results in place of what it would have written."""
    tensors = _tree.tensors((args, kwargs))
    into, source = tensors[scatter.into], tensors[scatter.source]
    if scatter.written:
        before = gather_written(into, scatter.axis, *stretches)
        f_new, g_new = module(before, source) if into_is_f else module(source, before)
        kept, put = (f_new, g_new) if into_is_f else (g_new, f_new)
        if kept is not before:
            write_back(into, scatter.axis, kept, *stretches)
        args, kwargs = _with(args, kwargs, {scatter.source: put})
        return func(*args, **kwargs)

    def write(into: Tensor, source: Tensor) -> Any:
        own_args, own_kwargs = _with(args, kwargs, {scatter.into: into, scatter.source: source})
        return func(*own_args, **own_kwargs)

    return write_between(module, into, source, write, scatter.inplace, mask)


def write_between(
    module: nn.Module,
    into: Tensor,
    source: Tensor,
    write: Callable[[Tensor, Tensor], Any],
    inplace: bool,
    mask: Any = None,
) -> Any:
    """What `write(into, source)`, a call that writes one tensor into another, gives with RegBN between the two. `mask`:
    what the host was given as mask over the positions."""
    made = []
    for value in (source, torch.ones_like(source)):
        zeros = torch.zeros_like(into)
        output = write(zeros, value)
        made.append(zeros if inplace else output)
    result = module(into.clone() if inplace else into, made[0], made[1] != 0, mask)
    return into.copy_(result) if inplace else result


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[int, Tensor]) -> tuple[Any, dict[str, Any]]:
    """The arguments with the tensors at the given positions exchanged."""
    position = -1

    def change(_: str, leaf: Any) -> Any:
        nonlocal position
        if isinstance(leaf, Tensor | torch.nn.utils.rnn.PackedSequence):
            position += 1
            return new.get(position, leaf)
        return leaf

    changed: tuple[Any, dict[str, Any]] = _tree.rebuild((args, kwargs), change)
    return changed
