"""The tracer: run the real forward on real tensors under a function mode, and write an fx node for every call.

Python control flow, `None` checks, dataclasses and loops simply happen; nothing is a proxy. `torch.fx` by itself
traces symbolically, which real models (that iterate shapes and branch on values) do not survive; its graph and code
generation are what we use of it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.fx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils.checkpoint import CheckpointFunction

from .. import _tree
from .._errors import CaptureError
from .._types import Source
from . import _functions as fn
from ._guards import expect_value
from ._intercept import intercepting
from ._placeholders import bind_arguments
from ._source import current_source, entering_grad_mode
from ._trace import Frame, Op, Stranger, TensorInfo, TensorRef, Trace, ValueRead
from ._values import TracedInt, plain
from ._watch import token, watched

LeafRule = Callable[[nn.Module, str], bool]
_CONSTANTS = (str, int, float, bool, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
              torch.memory_format, range)  # fmt: skip
_TRAITS = ("num_features", "normalized_shape", "in_channels", "out_channels", "in_features",
           "out_features", "embedding_dim", "p", "hidden_size", "embed_dim", "dim")  # fmt: skip


def is_torch_leaf(module: nn.Module, path: str) -> bool:
    """Modules of torch itself are not looked into; its containers are."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
        return True
    home = type(module).__module__
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and type(module) is not nn.Module


def is_child(module: nn.Module, path: str) -> bool:
    """The rule for a host: only its own forward is looked into."""
    return True


class UnrecordableError(CaptureError):
    """The graph cannot say what the run did (strict captures only)."""


class _Mode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recorder.on_torch(func, args, kwargs or {})


class Recorder:
    """Writes one Trace. Use `capture`, which sets it up; a host is captured with `strict=True` and `is_child`."""

    def __init__(self, root: nn.Module, *, leaf: LeafRule = is_torch_leaf, strict: bool = False) -> None:
        self.root = root
        self.leaf = leaf
        self.strict = strict
        self.recording = True
        self._entered = False
        self.graph = torch.fx.Graph()
        self.paths: dict[int, str] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), path)
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
        self._ops: list[Op] = []
        self._frames: list[Frame] = []
        self._stack: list[int] = []
        self._calls: dict[int, Counter[str]] = {}
        self._keys: dict[int, Counter[tuple[str, str, int]]] = {}
        self._impure: set[torch.fx.Node] = set()
        self._reads: list[ValueRead] = []
        self._effects: list[str] = []
        self.leaks = 0  # how often a size was compared, divided or counted by Python
        self._grad_modes: list[Any] = []  # gradient mode at entry, then one per `with` that is open
        self._autocasts: list[torch.fx.Node] = []  # the regions that are open
        self._enclosed: dict[int, torch.Tensor] | None = None  # what a function under vmap takes from around it
        self.settings: dict[str, Any] = {}  # plain attributes of the root that its forward read
        self.stores: dict[str, Any] = {}  # attributes of the root that its forward wrote
        self.mutated: list[str] = []  # attributes it read whose content it changed
        self.constants: dict[str, Any] = {}
        self.strangers: list[tuple[torch.Tensor, str]] = []  # tensors no recorded call made, and where they were met

    # -- what is known about an object ------------------------------------------------------------------------

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
            for field in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
                if getattr(value, field) is not None:
                    self.bind(getattr(value, field), self.graph.call_function(getattr, (node, field)))
        if isinstance(value, torch.Tensor):
            self.uid(value)
            memory = _memory(value)
            if memory is not None:
                self._aliases[memory] = node

    def uid(self, tensor: torch.Tensor) -> int:
        known = self._uids.get(id(tensor))
        if known is not None:
            return known
        uid = self._uids[id(tensor)] = len(self._uids)
        self._alive.append(tensor)
        memory = _memory(tensor)
        storage = self._storages.setdefault(memory[0], len(self._storages)) if memory else -1 - uid
        shape = tuple(_known_size(n) for n in tensor.shape)
        self._tensors[uid] = TensorInfo(uid, shape, tensor.dtype, storage, self._owned.get(id(tensor)))
        return uid

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
        if isinstance(value, PackedSequence):
            return self.graph.call_function(PackedSequence, tuple(self.argument(field) for field in value))
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
            return self.graph.call_function(type(value), (list(arguments.values()),))
        return self.graph.call_function(type(value), (), {str(key): x for key, x in arguments.items()})

    def _size_argument(self, value: torch.Size) -> Any:
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
        if node is None:
            node = self._attribute_node(value)
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

    def _where(self) -> str:
        source = current_source()
        return f"{source} (`{source.function}`)" if source else f"the forward of {type(self.root).__name__}"

    def on_setting(self, name: str, value: Any) -> None:
        """The root's forward read a plain attribute of the root: the graph holds for this value of it."""
        if self.recording and name not in self.stores:
            self.settings.setdefault(name, value)

    def on_store(self, name: str, value: Any) -> None:
        """The root's forward keeps something on the root: the graph returns it beside its output."""
        if not self.recording:
            return
        if name in self.settings and self.settings[name] != token(value):
            raise UnrecordableError(
                f"{self._where()} reads `self.{name}` and then makes it {value!r}; a graph would repeat that for ever"
            )
        self.stores[name] = value

    def on_leak(self) -> None:
        """Python decided or computed something by a size."""
        self.leaks += 1

    # -- module calls -----------------------------------------------------------------------------------------

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.recording or not self._stack or _transformed():
            return call(module, *args, **kwargs)
        if module is self.root and not self._entered:
            self._entered = True
            return call(module, *args, **kwargs)
        path = self.paths.get(id(module))
        if path is not None and self.leaf(module, path):
            return self._leaf_call(call, module, path, args, kwargs)
        with _FrameScope(self, module, path if path is not None else "?", args, kwargs) as frame:
            frame.output = call(module, *args, **kwargs)
        return frame.output

    def _leaf_call(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        source = current_source()
        with self.paused():  # the bookkeeping, too: it asks tensors for their memory, which need not be looked at
            inputs = self._arguments(args, kwargs)
            output = call(module, *plain(args), **plain(kwargs))
            self._leaf_node(module, path, args, kwargs, inputs, output, source)
        return output

    def _leaf_node(
        self,
        module: nn.Module,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[Any, Any],
        output: Any,
        source: Source | None,
    ) -> None:
        node = self.graph.create_node("call_module", path, *inputs)
        self._impure.add(node)  # a module may keep state: batch statistics, random numbers, a cache
        traits = {name: getattr(module, name) for name in _TRAITS if hasattr(module, name)}
        flags = [m.batch_first for m in module.modules() if isinstance(getattr(m, "batch_first", None), bool)]
        if flags:  # torch's transformer layers keep the flag in their attention
            traits["batch_first"] = flags[0]
        traits["parametrised"] = next(module.parameters(), None) is not None
        self._record(
            node,
            type(module).__name__,
            type(module),
            args,
            kwargs,
            output,
            source,
            module=path,
            traits=traits,
        )

    def open_frame(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        parent = self._stack[-1] if self._stack else None
        index = len(self._frames)
        call = 0
        if parent is not None:
            call = self._calls[parent][path]
            self._calls[parent][path] += 1
        name = type(module).__name__
        key = self._key(parent, name, current_source()) if parent is not None else (name, "", 0, 0)
        inputs = tuple((name, self.uid(tensor)) for name, tensor in _named_tensors(module, args, kwargs))
        reads = tuple(self.uid(tensor) for tensor in _tree.tensors((args, dict(kwargs))))
        self._frames.append(Frame(index, path, name, parent, call, key, len(self._ops), inputs, reads))
        self._calls[index] = Counter()
        self._keys[index] = Counter()
        self._stack.append(index)

    def close_frame(self, output: Any) -> None:
        index = self._stack.pop()
        outputs = tuple(self.uid(tensor) for tensor in _tree.tensors(output))
        self._frames[index] = dataclasses.replace(self._frames[index], outputs=outputs, end=len(self._ops))

    def on_function(self, call: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A custom `autograd.Function`: one operation, whose backward pass is its own."""
        if not self.recording or not self._stack:
            return call(*args, **kwargs)
        if cls is CheckpointFunction:  # runs a part of the model, which is looked into
            self._note_effect("checkpoints a part of the model")
            return call(*args, **kwargs)
        inputs = self._arguments(args, kwargs)
        source = current_source()
        with self.paused():
            output = call(*plain(args), **plain(kwargs))
        node = self.graph.call_function(cls.apply, *inputs)  # type: ignore[attr-defined]
        self._record(node, cls.__name__, cls, args, kwargs, output, source)
        return output

    def on_vmap(self, call: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call over a batch is one operation on its arguments and on what the function takes from around it."""
        if not self.recording or not self._stack or self._enclosed is not None or _transformed():
            return call(*args, **kwargs)
        self._enclosed = {}
        if self.strict:
            self._note_effect("runs a function under torch.vmap")
        try:
            output = call(*plain(args), **plain(kwargs))
        finally:
            enclosed, self._enclosed = self._enclosed, None
        given = {id(tensor) for tensor in _tree.tensors((args, kwargs))}
        around = tuple(tensor for key, tensor in enclosed.items() if key not in given)
        with torch._C.DisableTorchFunction():
            target = _first(len(args), call)
            node = self.graph.call_function(target, *self._arguments((*args, *around), kwargs))
            self._record(node, "vmap", target, (*args, *around), kwargs, output, current_source())
        return output

    # -- torch calls ------------------------------------------------------------------------------------------

    def on_torch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*plain(args), **plain(kwargs))
        if not self.recording:
            return output
        name = fn.name_of(func)
        if self._enclosed is not None or _transformed():
            self._on_transformed(args, kwargs)
            return output
        if name == "__iter__":
            return iter(self.on_torch(torch.Tensor.unbind, (args[0], 0), {}))
        if fn.is_property_write(func):
            if name != "requires_grad":
                self._note_effect(f"assigns `.{name}` of a tensor")
            return output
        if name == "shape" or func is torch.Tensor.size:
            return self._sizes(func, args, kwargs, output)
        if name == "device" and isinstance(output, torch.device):
            return output
        if name in ("numel", "nelement") and type(output) is int:
            return TracedInt(output, lambda: self.graph.call_method("numel", (self.argument(args[0]),)), self)
        if name in fn.READING and not fn.is_property(func):
            self._on_read(name, args, kwargs, output)
            return output
        if name == "__len__":
            self.leaks += 1  # `len` returns a plain number, whatever we would return
        if name in fn.DESCRIBING or name in fn.ASKING:
            return output
        if name == "register_hook":
            self._note_effect("registers a hook on a tensor")
        if name in ("set_grad_enabled", "_set_grad_enabled"):
            self._set_grad_mode(bool(args[0] if args else kwargs["mode"]))
            return output
        self._torch_node(func, name, args, kwargs, output)
        return output

    def _on_transformed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Inside a torch.func transform tensors have other faces; those from outside it can be told."""
        if self._enclosed is None:
            self._note_effect("runs inside a torch.func transform (grad, jvp), whose tensors cannot be followed")
            return
        for tensor in _tree.tensors((args, kwargs)):
            if not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and self._is_known(tensor):
                self._enclosed[id(tensor)] = tensor

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._nodes or id(tensor) in self._owned

    def _on_read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        """What follows holds for this value only: noted, and in strict captures looked at again in every run."""
        source = current_source()
        self._reads.append(ValueRead(name, source))
        if self.strict:
            read = self.graph.call_method(name, *self._arguments(args, kwargs))
            where = str(source) if source else self._where()
            self._impure.add(self.graph.call_function(expect_value, (read, self._held(value), where)))

    def _held(self, value: Any) -> Any:
        """A value as a graph can hold it: plain ones written out, an array as a constant."""
        return value if isinstance(value, bool | int | float) else self._constant("value", copy.deepcopy(value))

    def _set_grad_mode(self, enabled: bool) -> None:
        """`with no_grad():` puts back on leaving what was there on entering: in the graph, too, and not what was
        there when it was captured."""
        if entering_grad_mode() or not self._grad_modes:
            if not self._grad_modes:
                self._grad_modes.append(self._entry_grad_mode())
            self._grad_modes.append(enabled)
        else:
            self._grad_modes.pop()
        node = self.graph.call_function(torch._C._set_grad_enabled, (self._grad_modes[-1],))
        self._impure.add(node)

    def _entry_grad_mode(self) -> torch.fx.Node:
        nodes = list(self.graph.nodes)
        start = next((node for node in nodes if node.op != "placeholder"), None)
        with self.graph.inserting_before(start) if start is not None else nullcontext():
            return self.graph.call_function(torch.is_grad_enabled)

    def on_autocast(self, region: torch.autocast, entering: bool) -> None:
        """Autocast changes torch's state without telling the function mode."""
        if not self.recording or not self._stack:
            return
        if entering:
            how = (region.device, region.fast_dtype, region._enabled, region._cache_enabled)
            node = self.graph.call_function(torch.amp.autocast_mode._enter_autocast, how)
            self._autocasts.append(node)
        else:
            node = self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (self._autocasts.pop(),))
        self._impure.add(node)

    def _torch_node(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        a, k = self._arguments(args, kwargs)
        as_operator = fn.as_operator(name, a, k) if fn.is_method(func) else None
        if fn.is_property(func):
            node = self.graph.call_function(getattr, (a[0], name))
        elif name == "__setitem__":
            node = self.graph.call_function(operator.setitem, a)
        elif as_operator is not None:
            node = self.graph.call_function(*as_operator)
        elif fn.is_method(func) and args and isinstance(args[0], torch.Tensor):
            node = self.graph.call_method(name, a, k)
        else:
            node = self.graph.call_function(func, a, k)
        inplace = fn.is_inplace(name, kwargs)
        if inplace or fn.sets_state(name):
            self._impure.add(node)
        if not inplace and output is None and _tree.tensors((args, kwargs)):
            self._impure.add(node)
        written = args[0] if name == "__setitem__" else None
        self._record(node, name, func, args, kwargs, output, current_source(), inplace=inplace, written=written)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self.argument(x) for x in args), {key: self.argument(x) for key, x in kwargs.items()}

    def _sizes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if id(args[0]) not in self._nodes and id(args[0]) not in self._owned:
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

    # -- records ----------------------------------------------------------------------------------------------

    def _record(
        self,
        node: torch.fx.Node,
        name: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        source: Source | None,
        *,
        module: str | None = None,
        inplace: bool = False,
        written: torch.Tensor | None = None,
        traits: Mapping[str, Any] | None = None,
    ) -> None:
        tensors = _tree.tensors((args, kwargs))
        inputs = tuple(self.uid(tensor) for tensor in tensors)
        nodes = tuple(self._nodes.get(id(tensor)) for tensor in tensors)
        template_args, template_kwargs = self._template(args), self._template(kwargs)
        if output is not None:
            self.bind(output, node)
        # `x[i] = y` returns nothing; the tensor written to stays the node it was, and counts as the result.
        outputs = tuple(self.uid(tensor) for tensor in _tree.tensors(output if written is None else written))
        frame = self._stack[-1]
        op = Op(
            len(self._ops), name, target, module, frame, source, template_args, template_kwargs, inputs, outputs,
            inplace, self._key(frame, name, source), node, nodes, traits or {},
        )  # fmt: skip
        node.meta["op"] = op
        self._ops.append(op)

    def _key(self, frame: int, name: str, source: Source | None) -> tuple[str, str, int, int]:
        line = (name, source.file if source else "", source.line if source else 0)
        nth = self._keys[frame][line]
        self._keys[frame][line] += 1
        return (*line, nth)

    def _template(self, value: Any) -> Any:
        def change(_: str, leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return TensorRef(self.uid(leaf))
            return plain(leaf)

        if isinstance(value, tuple):
            return tuple(_tree.rebuild(item, change) if _simple(item) else plain(item) for item in value)
        return {key: _tree.rebuild(item, change) if _simple(item) else plain(item) for key, item in value.items()}

    def _note_effect(self, what: str) -> None:
        if self.strict:
            raise UnrecordableError(f"{self._where()} {what}; a graph would not do it again")
        self._effects.append(f"{self._where()} {what}")

    def paused(self) -> _Paused:
        return _Paused(self)

    def finish(self, output: Any, inputs: tuple[tuple[str, int], ...]) -> Trace:
        if self.mutated:
            names = ", ".join(f"`self.{name}`" for name in self.mutated)
            raise UnrecordableError(f"{type(self.root).__name__}.forward changes what {names} hold; a graph would not")
        if self.stores:
            self.graph.output((self.argument(output), {name: self.argument(x) for name, x in self.stores.items()}))
        else:
            self.graph.output(self.argument(output))
        self.recording = False
        _eliminate_dead_code(self.graph, self._impure)
        # Late operands may have been appended after an early use was planned; lint is cheap and final.
        self.graph.lint()
        return Trace(
            self.graph, tuple(self._ops), tuple(self._frames), dict(self._tensors), inputs, dict(self.constants),
            tuple(self._reads), tuple(dict.fromkeys(self._effects)), dict(self.settings),
            tuple(self.stores), tuple(Stranger(weakref.ref(t), tuple(t.shape), where) for t, where in self.strangers),
            self.leaks > 0,
        )  # fmt: skip


def _transformed() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


def _first(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` on its first `count` arguments; the tensors behind them stand there only to be seen in the graph."""

    def vmap(*args: Any, **kwargs: Any) -> Any:
        return call(*args[:count], **kwargs)

    return vmap


class _ShapeNode:
    """The node of `tensor.shape`, made when first asked for: most shapes are looked at and dropped."""

    __slots__ = ("node", "recorder", "tensor")

    def __init__(self, recorder: Recorder, tensor: torch.Tensor) -> None:
        self.recorder = recorder
        self.tensor = tensor
        self.node: torch.fx.Node | None = None

    def __call__(self) -> torch.fx.Node:
        if self.node is None:
            self.node = self.recorder.graph.call_function(getattr, (self.recorder.argument(self.tensor), "shape"))
        return self.node

    def size(self, dim: int) -> torch.fx.Node:
        return self.recorder.graph.call_function(operator.getitem, (self(), dim))


class _FrameScope:
    def __init__(self, recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any) -> None:
        self.recorder = recorder
        self.output: Any = None
        with torch._C.DisableTorchFunction():
            recorder.open_frame(module, path, args, kwargs)

    def __enter__(self) -> _FrameScope:
        return self

    def __exit__(self, *exc: object) -> None:
        with torch._C.DisableTorchFunction():
            self.recorder.close_frame(self.output)


class _Paused:
    """Inside a leaf nothing is recorded and the function mode is off, so that torch takes its fast paths as usual."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        on_top = bool(stack) and isinstance(stack[-1], _Mode)
        self.popped = _pop_mode_temporarily() if on_top else nullcontext()

    def __enter__(self) -> None:
        self.recorder.recording = False
        self.popped.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self.popped.__exit__(*exc)
        self.recorder.recording = True


def capture(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    leaf: LeafRule = is_torch_leaf,
    strict: bool = False,
    forward: Callable[..., Any] | None = None,
) -> tuple[Trace, Any]:
    """Run `root` (its hooks included, or `forward` alone where given) and return the trace and the run's own output.

    Raises:
        CaptureError: in strict captures, where the graph could not repeat what the run did.
    """
    recorder = Recorder(root, leaf=leaf, strict=strict)
    trace, output = _record_run(recorder, args, kwargs, forward)
    if strict and recorder.strangers:
        again = Recorder(root, leaf=leaf, strict=True)
        _record_run(again, args, kwargs, forward)
        _refuse_newcomers(recorder, again)
    return trace, output


def _record_run(
    recorder: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], forward: Callable[..., Any] | None
) -> tuple[Trace, Any]:
    root = recorder.root
    bind_arguments(recorder, forward or root.forward, args, dict(kwargs))
    named = _named_tensors(root, args, kwargs)
    inputs = tuple((name, recorder.uid(tensor)) for name, tensor in named)
    recorder._entered = forward is not None
    run = root if forward is None else forward
    watching = watched(root, recorder) if recorder.strict else nullcontext()
    with watching, _FrameScope(recorder, root, "", args, kwargs) as frame, intercepting(recorder), _Mode(recorder):
        frame.output = run(*args, **kwargs)
    return recorder.finish(frame.output, inputs), frame.output


def _refuse_newcomers(first: Recorder, second: Recorder) -> None:
    """A tensor from outside is a constant if another run uses the very same one; else it is computed out of sight."""
    held = {id(tensor) for tensor, _ in second.strangers}
    for tensor, where in first.strangers:
        if id(tensor) not in held:
            raise UnrecordableError(
                f"{where} uses a tensor of shape {tuple(tensor.shape)} that is made anew in every run, out of sight of "
                "the capture: by numpy, a scripted function, torch.func or an extension"
            )


def _named_tensors(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    try:
        named = _tree.bind(module.forward, args, kwargs)
    except (
        TypeError,
        ValueError,
    ):  # a forward without a signature, or a call that will fail by itself in a moment
        named = {**{str(i): x for i, x in enumerate(args)}, **kwargs}
    return [(name, leaf) for name, leaf in _tree.leaves(named) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What identifies the memory a tensor looks at; None where it has none of its own (sparse, nested, batched)."""
    if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter, FakeTensor):
        return None
    if not all(isinstance(n, int) for n in tensor.shape):
        return None
    try:
        storage = tensor.untyped_storage()._cdata
    except NotImplementedError:  # inside `torch.func.vmap` and the like
        return None
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _known_size(size: int | torch.SymInt) -> int:
    """A size as a number; -1 for one that depends on values which a fake does not have."""
    if isinstance(size, int):
        return size
    known: int | None = size.node.maybe_as_int()
    return -1 if known is None else known


def _simple(value: Any) -> bool:
    """Whether a container may be rebuilt without running a constructor of the user's."""
    return isinstance(value, torch.Tensor) or type(value) in (list, tuple, dict) or _tree.items(value) is None


def _is_enum(value: Any) -> bool:
    import enum

    return isinstance(value, enum.Enum)


def _eliminate_dead_code(graph: torch.fx.Graph, impure: set[torch.fx.Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and node not in impure and not node.users:
            graph.erase_node(node)
