"""A RegBN at a site of somebody's model: brings the tensors to RegBN's layout and back."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._adapter_copies import is_wrapper, regbn_in
from .._codes import coded
from .._errors import RegBNBypassedError, RegBNError, RegBNShapeError
from .._types import PlannedSite, Side
from .._undo import later, undone
from .._user_code import warn_at_call
from ..nn import RegBN
from ..nn._checks import refuse_script
from ..nn._symbols import as_one_call_for_two, symbols_in
from ._growing import refuse_growing_g
from ._memory import SPOILT, Met, note
from ._record import MaskArgument


class RegBNSite(nn.Module):
    """Holds the `RegBN` of one site and the axes of f and g in the host's tensors.

    `forward(f, g)` takes the tensors as they lie in the host and returns `(f', g')` in the same layout; g comes back
    unchanged where the site replaces f alone.
    """

    def __init__(self, planned: PlannedSite, replace_g: bool, masks: tuple[MaskArgument, ...] = ()) -> None:
        """`masks`: of which sides the masks are that are given to forward as `mask`, in this order."""
        super().__init__()
        self.masks = masks
        self.causal_g = planned.g.causal is True
        self.f_axes = _to_channels_first(planned.f)
        self.g_axes = _to_channels_first(planned.g)
        self.replace_g = replace_g
        options = {**planned.options, "reduce": planned.reduce, "replace": "both" if replace_g else "f"}
        f_channels, g_channels = planned.f.channels, planned.g.channels
        assert f_channels is not None, "the plan refuses sides without a channel axis"
        assert g_channels is not None, "the plan refuses sides without a channel axis"
        self.regbn: Any = RegBN(f_channels, g_channels, planned.f_layer_dim, planned.g_layer_dim, **options)
        self.regbn.site_path = planned.path
        self.made = False  # a user's function has made the module that is called here in RegBN's place
        self.token = uuid.uuid4().hex  # by which caches know it; a copy goes on from what the original has filled
        self.frozen = False  # the running projection is subtracted in training, too, and stays as it is
        self.folded = False  # RegBN has become a part of the layer behind it
        self.missing = planned.missing  # what a call does in which the two sides do not meet
        self.told_mask = False  # the user knows that a mask was given that fits nothing
        self.told_missing = False  # the user knows that calls without one of its sides are left as they are

    def forward(
        self, f: Tensor, g: Tensor, f_mask: Tensor | None = None, g_mask: Tensor | None = None, mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        if (type(f) is not Tensor or type(g) is not Tensor) and next(symbols_in((f, g)), None) is not None:
            f_new, g_new = as_one_call_for_two(self, f, g, f_mask=f_mask, g_mask=g_mask, mask=mask)
            return f_new, (g_new if self.replace_g else g)
        if self._is_identity(f):
            self._note(g, g_mask)
            if not self.folded and _trials.reached[-1].copies:
                return f.clone(), (g.clone() if self.replace_g else g)
            return f, g
        f_axes, g_axes = self.f_axes, self.g_axes
        if f.dim() != len(f_axes) or g.dim() != len(g_axes):
            self._check_rank("f", f, f_axes)
            self._check_rank("g", g, g_axes)
        if self.causal_g and len(g_axes) > 2 and not torch.compiler.is_compiling():
            refuse_growing_g(g.shape[g_axes[2]])
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        if mask is not None:
            kept = f_mask, g_mask = self._content_of(mask, f, g)
        self._note(g, g_mask)
        given = _permuted(f, f_axes), _permuted(g, g_axes)
        if isinstance(self.regbn, RegBN) or regbn_in(self.regbn) is not None:
            training = False if self.frozen else None
            f_new, g_new = self.regbn(*given, training, f_mask=f_mask, g_mask=g_mask)
        else:
            f_new, g_new = self._by_other(*given)
        f_new = _with_padding(_permuted_back(f_new, f_axes), f, kept[0], f_axes)
        if not self.replace_g:
            return f_new, g
        return f_new, _with_padding(_permuted_back(g_new, g_axes), g, kept[1], g_axes)

    def _by_other(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What the module gives that stands in RegBN's place, held to what a site may give."""
        results = self.regbn(f, g)
        if not (isinstance(results, tuple) and len(results) == 2 and all(isinstance(x, Tensor) for x in results)):
            raise RegBNShapeError(
                f"{type(self.regbn).__name__} returned {type(results).__name__}; a module that replaces RegBN must "
                "return two tensors, (f', g')"
            )
        f_new, g_new = results
        if f_new.shape != f.shape or (self.replace_g and g_new.shape != g.shape):
            raise RegBNShapeError(
                f"{type(self.regbn).__name__} returned shapes {list(f_new.shape)} and {list(g_new.shape)} for f "
                f"{list(f.shape)} and g {list(g.shape)}; a module that replaces RegBN must keep the shapes"
            )
        return f_new, g_new

    def train(self, mode: bool = True) -> RegBNSite:
        """As `nn.Module.train`; what stands in RegBN's place stays in evaluation while the site is frozen."""
        super().train(mode)
        if self.frozen and not isinstance(self.regbn, RegBN):
            self.regbn.eval()
        return self

    def go_on(self, f: Tensor, met: Met) -> Tensor:
        """f' of positions of f that follow those which met g, in the layout of f, in evaluation.

        Raises:
            RegBNBypassedError: where that is not what these positions would be if they met g now.
        """
        if self._is_identity(f):
            return f
        self._check_rank("f", f, self.f_axes)
        regbn = regbn_in(self.regbn)
        other = regbn is None
        if self.training or self.causal_g or regbn is None or regbn.options.reduce != "mean":
            why = (
                f"RegBN was replaced by a {type(self.regbn).__name__}"
                if other
                else (
                    "in training RegBN is fitted on both sides"
                    if self.training
                    else (
                        "g itself grows with every token"
                        if self.causal_g
                        else "`reduce: flatten` needs all positions of f at once"
                    )
                )
            )
            raise RegBNBypassedError(f"RegBN cannot continue from a cache without g: {why}")
        g = met.pooled()
        if g is None:
            raise RegBNBypassedError(f"RegBN cannot continue from a cache without g: {SPOILT}")
        batch = f.shape[self.f_axes[0]]
        if batch != g.shape[0]:
            raise RegBNBypassedError(
                f"RegBN cannot continue from a cache: the call has {batch} samples of f, the cache {g.shape[0]} of g, "
                "and which belong together is not known. Fill the cache with as many samples as will continue from it"
            )
        # These positions may be zero by themselves: padding has such embeddings.
        f_new, _ = self.regbn(_permuted(f, self.f_axes), g, False, zeros_absent=False)
        return _permuted_back(f_new, self.f_axes)

    def _is_identity(self, f: Tensor) -> bool:
        if torch.compiler.is_compiling() or not _trials.reached:
            return self.folded
        _trials.reached[-1].setdefault(self, f.device)
        return True

    def _note(self, g: Tensor, mask: Tensor | None) -> None:
        if not torch.compiler.is_compiling() and g.dim() == len(self.g_axes):
            note(self, g, mask)

    def _check_rank(self, name: str, tensor: Tensor, axes: tuple[int, ...]) -> None:
        if tensor.dim() != len(axes):
            raise RegBNShapeError(
                f"{name} has {tensor.dim()} axes, {list(tensor.shape)}, but RegBN was set up for {len(axes)}: the "
                "model was called with tensors of another rank than in the example inputs"
            )

    def _content_of(self, mask: Any, f: Tensor, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The positions of f and g that are content, each `[B, length]` or None for all, by the masks of a call."""
        f_keep: Tensor | None = None
        g_keep: Tensor | None = None
        for known, given in zip(self.masks, mask if isinstance(mask, tuple | list) else (mask,), strict=True):
            keep = self._kept(known, given, f, g)
            if keep is None and isinstance(given, Tensor) and self.training and not torch.compiler.is_compiling():
                self._tell_of_mask(known, given, f if known.side == "f" else g)
            if known.side == "f":
                f_keep = keep
            else:
                g_keep = keep
        return f_keep, g_keep

    def _tell_of_mask(self, known: MaskArgument, mask: Tensor, side: Tensor) -> None:
        """Warn once that a mask of a training step fits nothing. (In evaluation, steps of a cache have such masks.)"""
        if self.told_mask:
            return
        self.told_mask = True
        path = getattr(self.regbn, "site_path", "")
        text = (
            f"`{known.argument}` of shape {list(mask.shape)} is no mask over the positions of {known.side} "
            f"{list(side.shape)}: RegBN {path} averages over all of them, padding included"
        )
        warn_at_call(coded("RB418", text))

    def _kept(self, known: MaskArgument, mask: Any, f: Tensor, g: Tensor) -> Tensor | None:
        """What a mask over the positions of one side keeps, `[B, length]`; None where it does not fit that side."""
        tensor, axes = (f, self.f_axes) if known.side == "f" else (g, self.g_axes)
        if len(axes) != 3:
            return None
        batch, length = tensor.shape[axes[0]], tensor.shape[axes[2]]
        keep = keep_mask(mask, length, known.leaves_out)
        return keep.expand(batch, -1) if keep is not None and keep.shape[0] in (1, batch) else None

    def pair_of(
        self, f: Tensor, g: Tensor, f_mask: Tensor | None = None, g_mask: Tensor | None = None, mask: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What a call of the site with these arguments gives to RegBN: f and g, channels first, and their masks."""
        if mask is not None:
            f_mask, g_mask = self._content_of(mask, f, g)
        return _permuted(f, self.f_axes), _permuted(g, self.g_axes), f_mask, g_mask

    def __prepare_scriptable__(self) -> None:
        refuse_script()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "told_missing": False, "told_mask": False}  # whoever loads it has not been told

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take pickles of before there were other modules, or masks of both sides, too."""
        state = dict(state)
        before = state.pop("masking", None)
        masks = () if before is None else (MaskArgument(before[0], "", before[1]),)
        super().__setstate__({"made": False, "masks": masks, "told_mask": False, **state})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"f_axes={self.f_axes}, g_axes={self.g_axes}"


def _to_channels_first(side: Side) -> tuple[int, ...]:
    layout = side.layout
    assert layout.batch_dim is not None, "the plan refuses sides without a batch axis"
    assert layout.channel_dim is not None, "the plan refuses sides without a channel axis"
    return (layout.batch_dim, layout.channel_dim, *layout.spatial_dims)


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _in_order(axes: tuple[int, ...]) -> bool:
    """Whether there is nothing to permute: spelled out for vectors, which are the most."""
    return axes == (0, 1) or axes == tuple(range(len(axes)))


def _permuted(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    return tensor if _in_order(axes) else tensor.permute(axes)


def _with_padding(new: Tensor, old: Tensor, keep: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """`new` where a mask keeps; padding stays as it was."""
    return new if keep is None else torch.where(_permuted_back(keep.unsqueeze(1), axes), new, old)


def _permuted_back(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    return tensor if _in_order(axes) else tensor.permute(_inverse(axes))


def site_at(host: nn.Module, name: str) -> RegBNSite:
    """The site that `host` has by that name. Anybody may have put something else there since.

    Raises:
        RegBNError: where that is so. Wrappers that hand everything on (FSDP's, of `torch.compile`) count as the site.
    """
    found = getattr(host, name, None)
    return found if isinstance(found, RegBNSite) else _in_place_of(found, host, name)


def _in_place_of(found: Any, host: nn.Module, name: str) -> RegBNSite:
    where = f"`{name}` of {type(host).__name__}"
    if is_wrapper(found):
        raise RegBNError(
            f"PEFT has wrapped {where} as a whole: `modules_to_save` must name the RegBN in it, '{name}.regbn' (not "
            f"'{name}'). Make the adapters anew from the rewritten model, with modules_to_save=['{name}.regbn']."
        )
    if (
        isinstance(found, nn.Module)
        and hasattr(found, "token")
        and any(isinstance(m, RegBNSite) for m in found.modules())
    ):
        site: Any = found
        return site  # type: ignore[no-any-return]
    what = "nothing" if found is None else f"a {type(found).__name__}"
    raise RegBNError(
        f"{where} is the place of a RegBN that regbnify put in; now there is {what}. To have another module run "
        f"instead of RegBN, set `{name}.regbn`, or pass `make` to regbnify; to take RegBN out, call unregbnify(model)."
    )


def is_site(module: Any) -> bool:
    """Whether this is a site, or PEFT's wrapper around one."""
    return isinstance(module, RegBNSite) or (is_wrapper(module) and isinstance(module.original_module, RegBNSite))


def sites_of(model: nn.Module) -> list[RegBNSite]:
    """Every site in `model`, those included that one of its modules uses and another one keeps."""
    found: dict[int, RegBNSite] = {}
    for module in model.modules():
        for candidate in (module, *vars(module).values()):
            if isinstance(candidate, RegBNSite):
                found.setdefault(id(candidate), candidate)
    return list(found.values())


class Reached(dict[RegBNSite, torch.device]):
    """The sites that a trial run has reached, in order, and where f was. With `copies`, a site returns copies, as RegBN
    returns new tensors."""

    copies = False


class _Trials(threading.local):
    """The trial runs of this thread."""

    def __init__(self) -> None:
        self.reached: list[Reached] = []


_trials = _Trials()


@contextmanager
def identity(model: nn.Module | None = None, *, copies: bool = False) -> Iterator[Reached]:
    """Let every RegBN site pass f and g through as they come, in this thread, for the time of the `with`; with
    `copies`, copies of them, by which a trace tells what a host does with them.

    Gives the sites in the order in which they are reached.
    """
    reached = Reached()
    reached.copies = copies

    def leave() -> None:
        _trials.reached[:] = [other for other in _trials.reached if other is not reached]

    entry = later(leave)  # an interrupt may come before the `try`
    _trials.reached.append(reached)
    try:
        yield reached
    finally:
        undone(entry)


def is_identity() -> bool:
    """Whether this thread is in a trial run, with identity in place of RegBN."""
    return bool(_trials.reached)


def keep_mask(mask: Any, length: int, padding: bool) -> Tensor | None:
    """A mask over `length` positions as `[B, length]`, True where the position counts; None where it says nothing.

    Understands boolean masks and integers (`padding`: True marks what to leave out, as `key_padding_mask` does), 0/1
    masks of floats, additive ones (a large negative number to leave out), and masks spread over heads and queries,
    `[B, h, q, k]`.
    """
    if not isinstance(mask, Tensor) or mask.dim() < 2 or mask.shape[-1] != length:
        return None
    if mask.dtype == torch.bool:
        keep = ~mask if padding else mask
    elif mask.dtype.is_floating_point:
        # 0/1 or additive? Told apart without reading a value back: an additive mask is nowhere above zero.
        # (No `amax` and no `where` over booleans: ONNX has neither.)
        small = (mask > -1) & (mask <= 0.5)
        keep = small if padding else (mask > 0.5) | (small & (mask.max() <= 0.5))
    else:
        keep = (mask == 0) if padding else (mask != 0)
    while keep.dim() > 2:
        keep = keep.any(dim=1)
    return keep
