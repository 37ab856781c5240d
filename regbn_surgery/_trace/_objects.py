"""From the objects of a run to the nodes of its graph that make them: tensors, sizes, containers, constants."""

from __future__ import annotations

import copy
import enum
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn.utils.rnn import PackedSequence

from .. import _tree
from .._errors import CaptureError
from .._state import generator_state, is_generator
from ._finite import strange_values
from ._meta import TensorInfo
from ._source import current_source
from ._values import TracedInt
from ._watch import token

_CONSTANTS = (str, int, float, bool, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
              torch.memory_format, range)  # fmt: skip


class UnrecordableError(CaptureError):
    """The graph cannot say what the run did (strict captures only)."""


class Objects:
    """What is known about the objects that a run of `root` has seen; the graph is written as they are asked for."""

    def __init__(self, root: nn.Module, *, strict: bool, values: bool = False) -> None:
        self.root = root
        self.strict = strict
        self.sees_values = values  # whether nodes whose tensors are not finite are marked so
        self.recording = True
        self.graph = torch.fx.Graph()
        # A child may be called `self`, as in every BERT: its result must not take the name of the module.
        self.graph._graph_namespace.create_name("self", None)
        self._owned: dict[int, str] = {}
        for path, tensor in (
            *root.named_parameters(remove_duplicate=False),
            *root.named_buffers(remove_duplicate=False),
        ):
            self._owned.setdefault(id(tensor), path)
        self._nodes: dict[int, torch.fx.Node] = {}  # id(object) -> the node that makes it
        self._aliases: dict[tuple[Any, ...], torch.fx.Node] = {}  # memory -> node, for `.data` and Variable()
        self._alive: list[Any] = []  # ids stay unique while the objects live
        self._shapes: dict[int, Callable[[], torch.fx.Node]] = {}  # id(torch.Size) -> what makes its node
        self._uids: dict[int, int] = {}
        self._tensors: dict[int, TensorInfo] = {}
        self._storages: dict[int, int] = {}
        self.stores: dict[str, Any] = {}  # attributes of the root that its forward wrote
        self.constants: dict[str, Any] = {}
        self.strangers: list[tuple[torch.Tensor, str]] = []  # tensors no recorded call made, and where they were met
        self.arrays: list[tuple[str, np.ndarray[Any, Any]]] = []  # numpy arrays among the arguments, by their names
        self.from_arrays: list[tuple[str, int]] = []  # the tensors that the forward makes of these

    def bind(self, value: Any, node: torch.fx.Node) -> None:
        """From now on `value` is what `node` makes; containers bind their items, so that any of them can be used."""
        if isinstance(value, _CONSTANTS) or type(value) is torch.Size:
            return
        children = _tree.items(value)
        if children is not None:
            by_attribute = not isinstance(value, Mapping | list | tuple)
            for key, child in children:
                if isinstance(child, _CONSTANTS):
                    continue
                get = getattr if by_attribute or (_tree.is_namedtuple(value)) else operator.getitem
                self.bind(child, self.graph.call_function(get, (node, key)))
            return
        self._nodes[id(value)] = node
        self._alive.append(value)
        if isinstance(value, PackedSequence):
            self._tell(node, value.data)  # counts as its data
            for field in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
                if getattr(value, field) is not None:
                    self.bind(getattr(value, field), self.graph.call_function(getattr, (node, field)))
        if isinstance(value, torch.Tensor):
            memory = self._tell(node, value)
            if memory is not None:
                self._aliases[memory] = node

    def _tell(self, node: torch.fx.Node, value: torch.Tensor) -> tuple[Any, ...] | None:
        """Write into the node's meta what tensor it makes; the memory of that tensor."""
        memory = _memory(value)
        known = self._uids.get(id(value))
        info = self._tensors[known] if known is not None else self._new(value, memory)
        if "tensor" not in node.meta:
            node.meta["tensor"] = info
            node.meta["tensor_meta"] = _fx_meta(value, info)
            node.meta["version"] = 0 if memory is None or value.is_inference() else value._version
            if self.sees_values and (strange := strange_values(value)):
                node.meta["strange"] = strange
        return memory

    def uid(self, tensor: torch.Tensor) -> int:
        """The identity of a tensor; another object that looks at the same memory in the same way is no other tensor."""
        known = self._uids.get(id(tensor))
        if known is not None:
            return known
        memory = _memory(tensor)
        node = self._aliases.get(memory) if memory is not None else None
        if node is None or id(tensor) in self._owned:
            return self._new(tensor, memory).uid
        info: TensorInfo = node.meta["tensor"]
        self._uids[id(tensor)] = info.uid
        self._alive.append(tensor)
        return info.uid

    def _new(self, tensor: torch.Tensor, memory: tuple[Any, ...] | None) -> TensorInfo:
        uid = self._uids[id(tensor)] = len(self._tensors)
        self._alive.append(tensor)
        storage = self._storages.setdefault(memory[0], len(self._storages)) if memory else -1 - uid
        shape = () if tensor.is_nested else tuple(_known_size(n) for n in tensor.shape)
        info = self._tensors[uid] = TensorInfo(uid, shape, tensor.dtype, storage, self._owned.get(id(tensor)))
        return info

    def name_inputs(self, named: list[tuple[str, torch.Tensor]]) -> None:
        """Write the dotted names of the inputs into the meta of the nodes that are these."""
        for name, tensor in named:
            if id(tensor) in self._nodes:
                self._nodes[id(tensor)].meta.setdefault("input", name)

    def values(self, wanted: frozenset[int]) -> dict[int, torch.Tensor]:
        """The tensors with these uids, as they are now."""
        tensors = ((self._uids.get(id(value)), value) for value in self._alive if isinstance(value, torch.Tensor))
        return {uid: value for uid, value in tensors if uid is not None and uid in wanted}

    def number(self, op: Callable[..., Any], operands: tuple[Any, ...]) -> torch.fx.Node:
        """A node for arithmetic on sizes."""
        return self.graph.call_function(op, tuple(self.argument(x) for x in operands))

    def argument(self, value: Any) -> Any:
        """The value as an argument of an fx node."""
        if isinstance(value, TracedInt):
            return value.node if value.recorder is self else int(value)
        if isinstance(value, torch.Tensor):
            return self._tensor_argument(value)
        if id(value) in self._nodes:
            return self._nodes[id(value)]
        if isinstance(value, _CONSTANTS):
            return value
        if isinstance(value, np.integer | np.floating):
            return value.item()
        if isinstance(value, PackedSequence):
            packed = self._packed(PackedSequence, tuple(self.argument(field) for field in value))
            self._tell(packed, value.data)
            return packed
        if type(value) is slice:
            return slice(*(self.argument(x) for x in (value.start, value.stop, value.step)))
        if isinstance(value, torch.Size):
            return self._size_argument(value)
        children = _tree.items(value)
        if children is None:
            return self._opaque_argument(value)
        arguments = {key: self.argument(child) for key, child in children}
        if type(value) is list or type(value) is tuple:
            return type(value)(arguments.values())
        if type(value) is dict:
            return arguments
        if isinstance(value, list | tuple) and not _tree.is_namedtuple(value):
            return self._packed(type(value), (list(arguments.values()),))
        return self._packed(type(value), (), {str(key): x for key, x in arguments.items()})

    def _packed(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> torch.fx.Node:
        """A container that is put together for a call."""
        node = self.graph.call_function(kind, args, kwargs)
        node.meta["packs"] = True
        return node

    def _size_argument(self, value: torch.Size) -> Any:
        if not self.strict:
            return tuple(value)
        whole = self._shapes.get(id(value))
        if whole is not None:
            return whole()
        return self.graph.call_function(torch.Size, (tuple(self.argument(x) for x in value),))

    def _tensor_argument(self, value: torch.Tensor) -> torch.fx.Node:
        node = self._nodes.get(id(value))
        if node is None and id(value) in self._owned:
            node = self.graph.get_attr(self._owned[id(value)])
        if node is None:
            node = self._aliases.get(_memory(value) or ())
            self.uid(value)  # the identity of the one that the node makes
        if node is None:
            node = self._attribute_node(value)
        if node is None and (array := self._array_under(value)) is not None:
            node = self._constant("tensor", value.detach())
            self.bind_array(array, value, node)
        if node is None:
            if self.strict and value.requires_grad:
                raise UnrecordableError(
                    f"{self._where()} uses a tensor of shape {tuple(value.shape)} that needs a gradient and comes "
                    "neither from its arguments nor from its parameters"
                )
            self.strangers.append((value, self._where()))
            node = self._constant("tensor", value.detach())
        self.bind(value, node)
        return node

    def bind_array(self, name: str, value: torch.Tensor, node: torch.fx.Node) -> None:
        """From now on `value` is the input `name`, which the caller gave as a numpy array."""
        node.meta.setdefault("input", name)
        self.bind(value, node)
        self.from_arrays.append((name, self.uid(value)))

    def _array_under(self, value: torch.Tensor) -> str | None:
        """The name of the numpy array among the arguments whose memory a tensor looks at."""
        for name, array in self.arrays if _memory(value) is not None else ():
            if value.data_ptr() == array.ctypes.data and value.numel() == array.size > 0:
                return name
        return None

    def _attribute_node(self, value: Any) -> torch.fx.Node | None:
        """A node for an object that the root holds as a plain attribute: read anew at every call."""
        for name, held in vars(self.root).items():
            if held is value and name not in self.stores:
                return self.graph.create_node("get_attr", name)
        return None

    def _opaque_argument(self, value: Any) -> torch.fx.Node:
        attribute = self._attribute_node(value)
        if attribute is not None:
            return attribute
        stateless = isinstance(value, type) or callable(value) or type(value).__module__ in ("enum", "torch")
        if self.strict and not stateless and not _is_enum(value):
            raise UnrecordableError(
                f"{self._where()} makes or uses a {type(value).__module__}.{type(value).__qualname__} object, "
                "which a graph cannot hold"
            )
        return self._constant("object", value)

    def _constant(self, label: str, value: Any) -> torch.fx.Node:
        name = f"regbn_const_{label}_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.create_node("get_attr", name)
        self._nodes[id(value)] = node
        self._alive.append(value)
        return node

    def _held(self, value: Any) -> Any:
        """A value as a graph can hold it: plain ones written out, an array as a constant."""
        return value if isinstance(value, bool | int | float) else self._constant("value", copy.deepcopy(value))

    def _sizes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """In strict captures, sizes that know their node."""
        if not self.strict or (id(args[0]) not in self._nodes and id(args[0]) not in self._owned):
            return output
        if id(args[0]) in self._owned:
            return output  # the shape of a parameter is a constant of the model
        if not all(isinstance(n, int) for n in (output if isinstance(output, tuple) else (output,))):
            return output  # a fake's size that depends on values
        tensor = args[0]
        base = _ShapeNode(self, tensor)
        if isinstance(output, int):
            dim = int(kwargs["dim"] if "dim" in kwargs else args[1])
            return TracedInt(output, functools.partial(base.size, dim % max(tensor.dim(), 1)), self)
        traced = torch.Size([TracedInt(n, functools.partial(base.size, i), self) for i, n in enumerate(output)])
        self._shapes[id(traced)] = base
        self._alive.append(traced)
        return traced

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._nodes or id(tensor) in self._owned

    def _where(self) -> str:
        source = current_source()
        return f"{source} (`{source.function}`)" if source else f"the forward of {type(self.root).__name__}"


class _ShapeNode:
    """The node of `tensor.shape`, made when first asked for: most shapes are looked at and dropped."""

    __slots__ = ("node", "recorder", "tensor")

    def __init__(self, recorder: Objects, tensor: torch.Tensor) -> None:
        self.recorder = recorder
        self.tensor = tensor
        self.node: torch.fx.Node | None = None

    def __call__(self) -> torch.fx.Node:
        if self.node is None:
            self.node = self.recorder.graph.call_function(getattr, (self.recorder.argument(self.tensor), "shape"))
        return self.node

    def size(self, dim: int) -> torch.fx.Node:
        return self.recorder.graph.call_function(operator.getitem, (self(), dim))


class Contents:
    """What lies where in a value, to see later whether anybody has changed it: in its containers and objects, the
    state of its generators of random numbers. Iterators count as changed, since whoever reads them moves them on."""

    def __init__(self, value: Any, *, objects: bool = True) -> None:
        """`objects`: whether to look into objects as well; else into containers and dataclasses alone."""
        self.value = value
        self.objects = objects
        self.renew()

    def renew(self) -> None:
        """What lies there now is as it should be."""
        self.before = list(_tree.leaves(self.value))
        self.states = [_state(leaf) for _, leaf in self.before] if self.objects else []

    @property
    def changed(self) -> bool:
        now = list(_tree.leaves(self.value))
        same = len(now) == len(self.before) and all(
            name == old and leaf is held for (name, leaf), (old, held) in zip(now, self.before, strict=True)
        )
        if not same or not self.objects:
            return not same
        if any(hasattr(type(leaf), "__next__") for _, leaf in now):
            return True
        return any(_state(leaf) != state for (_, leaf), state in zip(now, self.states, strict=True))


def _state(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor | torch.Generator | PackedSequence):
        return ""  # written to, and drawn from, by calls that the graph makes, too
    return repr(generator_state(leaf) if is_generator(leaf) else token(leaf))


def named_tensors(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    """The tensors among the arguments, by dotted name."""
    return _named(module, args, kwargs, torch.Tensor)


def named_arrays(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The numpy arrays among the arguments, by dotted name."""
    return _named(module, args, kwargs, np.ndarray)


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: type) -> list[tuple[str, Any]]:
    try:
        named = _tree.bind(module.forward, args, kwargs)
    except (
        TypeError,
        ValueError,
    ):  # a forward without a signature, or a call that will fail by itself in a moment
        named = {**{str(i): x for i, x in enumerate(args)}, **kwargs}
    leaves = [(name, _counted(leaf)) for name, leaf in _tree.leaves(named, objects=True)]
    return [(name, leaf) for name, leaf in leaves if isinstance(leaf, kind)]


def _counted(leaf: Any) -> Any:
    return leaf.data if isinstance(leaf, PackedSequence) else leaf  # a packed sequence counts as its data


def _memory(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What identifies the memory a tensor looks at; None where it has none of its own (sparse, nested, batched)."""
    if (
        tensor.is_nested
        or tensor.layout is not torch.strided
        or type(tensor) not in (torch.Tensor, nn.Parameter, FakeTensor)
    ):
        return None
    if not all(isinstance(n, int) for n in tensor.shape):
        return None
    try:
        storage = tensor.untyped_storage()._cdata
    except NotImplementedError:  # inside `torch.func.vmap` and the like
        return None
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _fx_meta(tensor: torch.Tensor, info: TensorInfo) -> TensorMetadata:
    """As `torch.fx.passes.shape_prop` has it; without the memory format, which takes longer to find than the call."""
    stride = tensor.stride() if info.storage >= 0 else ()
    return TensorMetadata(torch.Size(info.shape), info.dtype, tensor.requires_grad, stride, None, False, {})


def _known_size(size: int | torch.SymInt) -> int:
    """A size as a number; -1 for one that depends on values which a fake does not have."""
    if isinstance(size, int):
        return size
    known: int | None = size.node.maybe_as_int()
    return -1 if known is None else known


def _is_enum(value: Any) -> bool:
    return isinstance(value, enum.Enum)
