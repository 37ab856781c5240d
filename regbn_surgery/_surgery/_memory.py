"""What a call in which both sides of a site met leaves for calls that go on from its cache without one of them.

In evaluation RegBN subtracts from every position of f the same `g_mean W`. A decoding step with a key-value cache
brings new positions of f and no g: what it needs is the g that the positions before it met. That lies on the cache
itself, so that it lives and dies with the cache, goes along into its copies, and no two generations share it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import _tree
from ..nn._features import mean_over_positions
from ._growing import Frame, current_frame

if TYPE_CHECKING:
    from ._site import RegBNSite

#: Why a cache that RegBN had a part in does not tell one g.
SPOILT = (
    "the cache was filled in training mode, by a compiled call, or in calls with different values of the modality "
    "that is absent now, so that no single value of it applies to new positions"
)
_ATTRIBUTE = "_regbn_met"
#: The same for caches that take no attributes of others.
_elsewhere: Any = WeakIdKeyDictionary()


class Met:
    """The g that one site was given, channels first, `[B, C, *positions]`, and the mask over its positions.

    `g` is None where no single one may serve again: it was met in training, or there were different ones. `length` is
    what the cache held after the meeting.
    """

    def __init__(self, g: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> None:
        self.g = g
        self.mask = mask
        self.dtype = dtype  # of RegBN's state
        self.version = _version(g) + _version(mask)
        self.lasting = False  # whether more positions of f may follow alone
        self.length = 0
        self._pooled: Tensor | None = None

    def pooled(self) -> Tensor | None:
        """What RegBN with `reduce="mean"` makes of g, `[B, C]`; None where no single g may serve, or where somebody has
        written to it or its mask since."""
        if self._pooled is None and self.g is not None and _version(self.g) + _version(self.mask) == self.version:
            wide = self.g.to(torch.promote_types(self.g.dtype, self.dtype))
            self._pooled = mean_over_positions(wide, self.mask)
        return self._pooled

    def agrees(self, other: Met) -> bool:
        """Whether both are of one tensor, or of two with the same content."""
        same = _memory_of(self.g) == _memory_of(other.g) and _memory_of(self.mask) == _memory_of(other.mask)
        if same and self.g is not None and self.version == other.version:
            return True
        mine, others = self.pooled(), other.pooled()
        if mine is None or others is None:
            return False
        return mine.shape == others.shape and torch.allclose(mine, others, rtol=1e-4, atol=1e-6)

    def spoilt(self) -> Met:
        """No single g."""
        made = Met(None, None, self.dtype)
        made.lasting, made.length = self.lasting, self.length
        return made

    def repeated(self, times: int) -> Met:
        """Each sample `times` times, one after the other, as for the beams of a search."""
        made = Met(None, None, self.dtype)
        pooled = self.pooled()
        if pooled is not None:
            made._pooled = pooled.repeat_interleave(times, 0)
        made.lasting, made.length = self.lasting, self.length
        return made

    def copied(self) -> Met:
        made = Met(self.g, self.mask, self.dtype)
        made.version, made.lasting, made.length, made._pooled = self.version, self.lasting, self.length, self.pooled()
        return made


def _memory_of(tensor: Tensor | None) -> Any:
    """Two living tensors of the same memory that nobody has written to in between have the same content."""
    return tensor if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _version(tensor: Tensor | None) -> int:
    """Counts the writes to a tensor; those to tensors of inference mode nobody counts."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def caches_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """The key-value caches in arguments or outputs: whatever says how many tokens it holds."""
    if hasattr(type(value), "get_seq_length") and not isinstance(value, nn.Module | type):
        yield value
        return
    for _, child in (_tree.items(value) if depth < _tree.MAX_DEPTH else None) or ():
        yield from caches_in(child, depth + 1)


def has_caches(*values: Any) -> bool:
    """Whether there is a cache among arguments or outputs. Plain loops: dynamo has to be able to follow them."""
    return _has_cache(values, 0)


def _has_cache(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _tree.PLAIN or kind is torch.Size:
        return False
    # Dynamo of torch 2.10 and 2.11 cannot ask the type of a named tuple what it has.
    if kind is tuple or kind is list or kind is dict or (isinstance(value, tuple) and hasattr(value, "_fields")):
        children = value.values() if kind is dict else value
        for child in children if depth < _tree.MAX_DEPTH else ():  # noqa: SIM110 - a loop that dynamo can follow
            if _has_cache(child, depth + 1):
                return True
        return False
    for _ in caches_in(value, depth):
        return True
    return False


def note(site: RegBNSite, g: Tensor, mask: Tensor | None) -> None:
    """A site is given g, as it lies in the host, in the call of a host that runs just now."""
    frame = current_frame()
    if frame is not None:
        frame.notes.append((site, site.training, g, mask, _version(g) + _version(mask)))


def met_in(frame: Frame) -> dict[str, list[Met]]:
    """By the sites' tokens, what they have met in a call. Worked out when it is asked for: most calls have no cache."""
    for site, training, g, mask, version in frame.notes:
        dtype = getattr(site.regbn, "change_mean", g).dtype  # another module in RegBN's place takes g as it is
        met = Met(None, None, dtype) if training else Met(g.detach().permute(site.g_axes), mask, dtype)
        met.version = version
        frame.met.setdefault(site.token, []).append(met)
    frame.notes.clear()
    return frame.met


def remember(ran: Iterable[str], lasting: Collection[str], *values: Any) -> None:
    """The caches among the arguments and outputs of a call hold what came by the sites in it. `ran`: the tokens of the
    sites; those that did so in a compiled piece have told nothing of it. `lasting`: where f may follow alone."""
    frame = current_frame()
    told = {} if frame is None else met_in(frame)
    if not told or not set(ran) <= told.keys():
        mark_compiled(tuple(token for token in ran if token not in told), *values)
    if frame is None or not told:
        return
    for cache in {id(cache): cache for cache in caches_in(values)}.values():
        before = _read(cache)
        new = {token: _grown(cache, before.get(token), met, token in lasting) for token, met in told.items()}
        _write(cache, {**before, **new})


#: What a compiled call has met.
_compiled = Met(None, None, torch.float32)


def mark_compiled(tokens: tuple[str, ...], *values: Any) -> None:
    """The same for a compiled call, in a way that dynamo can follow: that something has met, and not what."""
    for cache in caches_in(values):
        memory = dict(getattr(cache, _ATTRIBUTE, {}))
        for token in tokens:
            memory[token] = _compiled
        setattr(cache, _ATTRIBUTE, memory)


def _grown(cache: Any, before: Met | None, met: list[Met], lasting: bool) -> Met:
    """What the cache holds of a site after a further call in which it met `met`."""
    length = int(cache.get_seq_length())
    first = met[0] if before is None or length <= before.length else before  # one that has not grown was emptied
    if not all(first.agrees(other) for other in met if other is not first):
        first = first.spoilt()
    made = first.copied()
    made.lasting, made.length = lasting or first.lasting, length if first is not before else first.length
    return made


def recollect(host: nn.Module, names: Iterable[str], *values: Any) -> dict[str, Met]:
    """By site's name, what the caches among the arguments of a call hold of the sites of its host."""
    found: dict[str, Met] = {}
    caches = list(caches_in(values))
    if not caches:
        return found
    forget_if_empty(caches)
    for name in names:
        token = getattr(getattr(host, name, None), "token", "")  # what else is there, the call will say
        for cache in caches:
            met = _read(cache).get(token)
            if met is not None:
                found[name] = met
    return found


def hand_on(given: Any, output: Any) -> None:
    """Caches that a call returns in place of those it was given hold what they held."""
    memory: dict[str, Met] = {}
    for cache in caches_in(given):
        memory.update(_read(cache))
    for cache in caches_in(output) if memory else ():
        if not _read(cache):
            _write(cache, memory)


def forget_if_empty(*values: Any) -> None:
    """A cache that was emptied to be filled anew holds nothing of what met before."""
    for cache in caches_in(values):
        if any(met.length > 0 for met in _read(cache).values()) and int(cache.get_seq_length()) == 0:
            _write(cache, {})


def _read(cache: Any) -> dict[str, Met]:
    found: dict[str, Met] | None = getattr(cache, _ATTRIBUTE, None)
    if found is None and not hasattr(cache, "__dict__"):
        found = _elsewhere.get(cache)
    return found or {}


def _write(cache: Any, memory: dict[str, Met]) -> None:
    # Exchanged and never changed: a copy of the cache that shares the old one goes its own way from here.
    try:
        setattr(cache, _ATTRIBUTE, memory)
    except AttributeError:
        _elsewhere[cache] = memory
