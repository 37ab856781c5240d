"""A call of a host on the symbols of `torch.fx.symbolic_trace`: f and g are known by the nodes that they stand for.

Two symbols are the same value where they are the same part of the same node: `out[0]`, asked for twice, is two nodes.
What cannot be known before there are tensors is refused, and whoever asked decides what then.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy

from .. import _tree
from .._errors import RegBNBypassedError
from ..nn._symbols import symbols_in
from ._here import run_positional
from ._operands import among, now_of, same
from ._passage import NOTHING, Passage
from ._record import CodeSite, MaskArgument
from ._scatter import write_between
from ._site import site_at
from ._table import At, Path, SiteTable, Table

#: A value: the node that it is a part of, and the keys that lead to the part.
Key = tuple[Node, tuple[str, ...]]


class NotFollowedError(RegBNBypassedError):
    """A host on symbols cannot be followed with RegBN in it, for this reason."""


def first_tracer(values: Any) -> Any:
    """The tracer of the first symbol among some values."""
    return next(symbols_in(values)).tracer


@dataclass(frozen=True)
class Part:
    """A part of a symbol that stands for a structure: what leads to it is known, and no node of it yet. `known`: it is
    taken by indices."""

    base: Proxy
    keys: tuple[str, ...]
    known: bool = True


class SymbolPassage(Passage):
    """See `Passage`. `held` and `arguments` have symbols, or parts of them, where there are no tensors yet."""

    def __init__(self, host: nn.Module, table: Table, arguments: Mapping[str, Any]) -> None:
        self.written_to: dict[Node, Node] = {}  # what a call gives that writes in place -> what it writes into
        super().__init__(host, table, arguments)

    def _key(self, value: Proxy | Part) -> Key:
        """What a value is: see `Key`. Tensors that are written into stay what they are."""
        node, keys = (value.base.node, value.keys) if isinstance(value, Part) else (value.node, ())
        root = getattr((value.base if isinstance(value, Part) else value).tracer, "root", None)
        while True:
            before = self.written_to.get(node) or _written_by(node, root)
            if before is not None:
                node = before
                continue
            step = _taken_from(node)
            if step is None:
                return node, keys
            node, keys = step[0], (step[1], *keys)

    def _made(self, at: At, path: Path, value: Any, index: Any, layer: Any) -> None:
        written: Any = self.written
        self.written = None
        if isinstance(written, Proxy) and isinstance(value, Proxy) and value is not written:
            self.written_to[value.node] = written.node
        super()._made(at, path, value, index, layer)

    def _is_tensor(self, value: Any) -> TypeGuard[Tensor]:
        return isinstance(value, Tensor) or (isinstance(value, Proxy) and not is_number(value.node))

    def _tensors(self, value: Any) -> list[Any]:
        return [leaf for leaf in _parts_of(value) if self._is_tensor(leaf)]

    def _among(self, side: Any, tensors: list[Any]) -> Any:
        if isinstance(side, Tensor):
            return among(side, [tensor for tensor in tensors if isinstance(tensor, Tensor)])
        return next((tensor for tensor in tensors if self._same(side, tensor)), None)

    def _same(self, a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return same(a, b)
        return a is b or (isinstance(a, Proxy | Part) and isinstance(b, Proxy | Part) and self._key(a) == self._key(b))

    def _exchanged(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], now: list[tuple[Any, Any]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def exchange(value: Any) -> Any:
            if not any(part is old for part in _parts_of(value) for old, _ in now):
                return value
            return _tree.rebuild(value, lambda _, leaf: now_of(leaf, now))

        return tuple(exchange(value) for value in args), {name: exchange(value) for name, value in kwargs.items()}

    def _hold_arguments(self) -> None:
        for name, side, argument in self.table.arguments:
            value = self._argument(argument)
            if isinstance(value, Tensor | Proxy | Part):
                self.held[name, side] = value  # type: ignore[assignment]

    def _argument(self, name: str) -> Any:
        """An argument by its dotted name; a part of one that is a symbol as a whole."""
        if name in self.arguments:
            return self.arguments[name]
        root, *rest = name.split(".")
        for length in range(len(rest)):
            known = self.arguments.get(".".join((root, *rest[:length])))
            if isinstance(known, Proxy):
                return Part(known, tuple(rest[length:]), known=False)
        return None

    def _hold(self, entry: SiteTable, side: str, output: int, value: Any) -> None:
        found: list[Any] = [leaf for leaf in _parts_of(value) if isinstance(leaf, Tensor | Proxy)]
        if isinstance(value, Proxy):
            keys = output_keys(value, output)
            if keys is not None:
                self._set(entry.name, side, value if not keys else Part(value, keys))  # type: ignore[arg-type]
        elif output < len(found):
            self._set(entry.name, side, found[output])

    def taken_apart(self, path: Path, value: Any) -> None:
        for making in self.table.places[path].makings if path in self.table.places else ():
            self._set(making.entry.name, making.side, Part(value, (str(making.output),)))  # type: ignore[arg-type]

    def _normalised(self, site: CodeSite, f: Any, g: Any, mask: Any) -> tuple[Any, Any]:
        return super()._normalised(site, self._whole(f), self._whole(g), mask)

    def _whole(self, side: Any) -> Any:
        """A side as a symbol of its own.

        Raises:
            NotFollowedError: for a part of an argument: an index, a key and an attribute go by the same name.
        """
        if not isinstance(side, Part):
            return side
        found: Any = side.base
        key = self._key(side)
        for node in side.base.tracer.graph.nodes:
            proxy = Proxy(node, side.base.tracer)
            if self._key(proxy) == key:
                return proxy
        if not side.known:
            raise NotFollowedError(
                f"{'.'.join(side.keys)} is a part of an argument whose structure symbols do not show"
            )
        for index in side.keys:
            found = found[int(index)]
        return found

    def _at_reader(self, reading: Any, path: Path, layer: Any, args: Any, kwargs: Any, now: list[Any]) -> None:
        """What stands in the call is what the held parts are."""
        for side in ("f", "g"):
            held: Any = self.held.get((reading.entry.name, side))
            if isinstance(held, Part):
                there = self._among(held, self._tensors((args, kwargs)))
                if there is not None:
                    self.held[reading.entry.name, side] = there
        super()._at_reader(reading, path, layer, args, kwargs, now)

    def _mask(self, mask: MaskArgument, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not mask.layer and isinstance(self._argument(mask.argument), Part):
            raise NotFollowedError(
                f"the mask {mask.argument} is a part of an argument whose structure symbols do not show"
            )
        return super()._mask(mask, layer, args, kwargs)

    def _scattered(self, entry: SiteTable, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Passage`. Which positions are written is asked of the call in the traced model, as it is here."""
        scatter = entry.site.scatter
        assert scatter is not None, "asked for scatter sites alone"
        if entry.written:
            raise NotFollowedError(f"{entry.name} gathers what earlier calls have written, which needs their values")
        tensors = self._tensors((args, kwargs))
        if max(scatter.into, scatter.source) >= len(tensors):
            return NOTHING
        into, source = tensors[scatter.into], tensors[scatter.source]
        known = self.held.get((entry.name, "g" if entry.site.into_is_f else "f"))
        if known is not None and not self._same(known, source):
            return NOTHING
        self.reached.append(entry.name)

        def write(new_into: Any, new_source: Any) -> Any:
            new = {id(into): new_into, id(source): new_source}
            own_args, own_kwargs = _tree.rebuild((args, kwargs), lambda _, leaf: new.get(id(leaf), leaf))
            return run_positional(func, *own_args, **own_kwargs)

        module = site_at(self.host, entry.name)
        mask = self._masks(entry.site, None, args, kwargs)
        return self._out_of_the_way(write_between, module, into, source, write, scatter.inplace, mask)

    def _see_join(self, entry: SiteTable, output: Any) -> None:
        """Nothing: symbols are no cache."""


def _taken_from(node: Node) -> tuple[Node, str] | None:
    """The node that a node is one part of, and the key of the part."""
    if node.op != "call_function" or node.target not in (operator.getitem, builtins.getattr):
        return None
    base, key = node.args[:2]
    return (base, str(key)) if isinstance(base, Node) and isinstance(key, int | str) else None


def _written_by(node: Node, root: nn.Module | None) -> Node | None:
    """What a call that works in place, and gives what it has written into, has written into."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node) or node.op not in ("call_function", "call_method", "call_module"):
        return None
    name = str(getattr(node.target, "__name__", node.target))
    inplace = bool(node.kwargs.get("inplace")) or getattr(_called(node, root), "inplace", False) is True
    underscored = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return first if inplace or (underscored and node.op != "call_module") else None


def is_number(node: Node) -> bool:
    """Whether a node stands for a size or another number: no tensor, whatever it is computed from."""
    target: Any = node.target
    if node.op == "call_method":
        return target in ("size", "dim", "numel", "ndimension", "stride", "item", "__len__")
    if node.op != "call_function":
        return False
    if target is builtins.getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "layout")
    if target in (builtins.len, torch.numel):
        return True
    of_numbers = getattr(target, "__module__", "") in ("_operator", "operator", "math", "builtins")
    inner = [argument for argument in node.args if isinstance(argument, Node)]
    return of_numbers and bool(inner) and all(is_number(argument) for argument in inner)


#: Functions and methods that give several tensors, in a tuple or list that holds nothing else.
_SEVERAL = frozenset({"chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes",
    "topk", "sort", "kthvalue", "mode", "cummax", "cummin", "frexp", "meshgrid", "broadcast_tensors", "qr", "svd",
    "slogdet", "aminmax", "multi_head_attention_forward"})  # fmt: skip
#: And those that do where they are given a dimension.
_BY_DIMENSION = frozenset({"max", "min", "median", "nanmedian"})


def output_keys(value: Proxy, output: int) -> tuple[str, ...] | None:
    """The keys that lead to tensor number `output` of what a call gives; None where that is not known before it runs.

    Empty where the call gives one tensor.
    """
    node = value.node
    module = _called(node, getattr(value.tracer, "root", None))
    if isinstance(module, nn.LSTM):
        return (("0",), ("1", "0"), ("1", "1"))[output] if output < 3 else None
    if isinstance(module, nn.GRU | nn.RNN | nn.MultiheadAttention):
        return (str(output),)
    name = getattr(node.target, "__name__", node.target)
    dimension = len(node.args) > 1 or bool(node.kwargs)
    if node.op in ("call_function", "call_method") and (name in _SEVERAL or (name in _BY_DIMENSION and dimension)):
        return (str(output),)
    return () if output == 0 else None


def _called(node: Node, root: nn.Module | None) -> nn.Module | None:
    if node.op != "call_module" or root is None:
        return None
    return root.get_submodule(str(node.target))


def _parts_of(value: Any) -> Iterator[Any]:
    """The leaves of a structure, in order."""
    for _, leaf in _tree.leaves(value):
        yield leaf
