"""The tracer: run the real forward on real tensors under a function mode, and write an fx node for every call.

Python control flow, `None` checks, dataclasses and loops simply happen; nothing is a proxy. `torch.fx` by itself
traces symbolically, which real models (that iterate shapes and branch on values) do not survive; its graph and code
generation are what we use of it.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from .. import _ops as fn
from .. import _tree
from .._types import Source
from ._frames import Frames
from ._guards import expect_value
from ._leaves import LeafRule, is_torch_leaf, traits_of
from ._objects import Contents, Objects, UnrecordableError, named_tensors
from ._placeholders import parameters_of
from ._regions import Regions
from ._scopes import FrameScope, Paused
from ._source import current_source, is_importing, kind_of_module
from ._trace import Stranger, Trace, ValueRead
from ._values import TracedInt, plain
from ._watch import NUMERICS, numerics, token


class Recorder(Objects):
    """Writes one Trace. Use `capture`, which sets it up; of a host (`strict=True`) the children are leaves."""

    def __init__(
        self, root: nn.Module, *, leaf: LeafRule = is_torch_leaf, strict: bool = False, values: bool = False
    ) -> None:
        super().__init__(root, strict=strict, values=values)
        self.leaf = leaf
        self._entered = False
        self.paths: dict[int, str] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), path)
        self._count = 0  # of the calls recorded so far
        self._frames = Frames()
        self._impure: set[torch.fx.Node] = set()
        self._reads: list[ValueRead] = []
        self._effects: list[str] = []
        self.leaks = 0  # how often a size was compared, divided or counted by Python
        self._regions = Regions(self.graph, self._impure)
        self._enclosed: dict[int, torch.Tensor] | None = None  # what a function under vmap takes from around it
        self.settings: dict[str, Any] = {}  # plain attributes of the root that its forward read
        self.mutated: list[str] = []  # attributes it read whose content it changed
        self.given: Contents | None = None  # what the root was called with, in strict captures
        self.changed_given = False
        self.kept: list[Any] = []  # what the settings know by its identity
        self._numerics = numerics(root) if strict else ()

    # -- what the watched root and its sizes tell ---------------------------------------------------------------

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
                f"{self._where()} reads `self.{name}` and then sets it to {value!r}; a graph would repeat "
                "this value in every call"
            )
        self.stores[name] = value

    def on_asked(self) -> None:
        """The forward goes by what type of numbers it computes with."""
        if self.recording and self.strict:
            self.settings[NUMERICS] = self._numerics

    def on_leak(self) -> None:
        """Python decided or computed something by a size."""
        self.leaks += 1

    # -- module calls -----------------------------------------------------------------------------------------

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.recording or not self._frames or _transformed():
            return call(module, *args, **kwargs)
        if module is self.root and not self._entered:
            self._entered = True
            return call(module, *args, **kwargs)
        path = self.paths.get(id(module))
        if path is not None and self.leaf(module, path):
            return self._leaf_call(call, module, path, args, kwargs)
        with FrameScope(self, module, path if path is not None else "?", args, kwargs) as frame:
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
            with torch._C.DisableTorchFunction():
                inputs = self._arguments(args, kwargs)
            given = Contents((args, kwargs), objects=False)
            self._see_given()
            output = call(module, *plain(args), **plain(kwargs))
            if self.given is not None:
                self.given.renew()
            if self.strict and given.changed:
                self._note_effect(f"hands {kind_of_module(module)} `{path}` a list, dict or object, which it changes")
            with torch._C.DisableTorchFunction():
                self._leaf_node(module, path, inputs, output, source)
        return output

    def _see_given(self) -> None:
        """A layer may write into an object that it is handed, in the graph as in the run; the root's own writes get
        lost."""
        self.changed_given = self.changed_given or (self.given is not None and self.given.changed)

    def _leaf_node(
        self,
        module: nn.Module,
        path: str,
        inputs: tuple[Any, Any],
        output: Any,
        source: Source | None,
    ) -> None:
        node = self.graph.create_node("call_module", path, *inputs)
        self._impure.add(node)  # a module may keep state: batch statistics, random numbers, a cache
        self._record(node, kind_of_module(module), output, source, traits=traits_of(module))

    def open_frame(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._frames.begin(
            path,
            type(module),
            kind_of_module(module),
            current_source() if self._frames else None,
            start=self._count,
            inputs=tuple((name, self.uid(tensor)) for name, tensor in named_tensors(module, args, kwargs)),
            reads=tuple(self.uid(tensor) for tensor in _tree.tensors((args, dict(kwargs)))),
            parameters=parameters_of(module),
        )

    def close_frame(self, output: Any) -> None:
        self._frames.end(tuple(self.uid(tensor) for tensor in _tree.tensors(output)), self._count)

    def on_function(self, call: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A custom `autograd.Function`: one operation, whose backward pass is its own."""
        if not self.recording or not self._frames:
            return call(*args, **kwargs)
        if cls is CheckpointFunction:  # runs a part of the model, which is looked into
            if not self.strict:
                self._note_effect("checkpoints a part of the model")
                return call(*args, **kwargs)
            self.on_saved_tensors(entering=True)
            try:
                function, _, *inputs_of_it = args
                return function(*inputs_of_it)  # with gradients: what a graph would do
            finally:
                self.on_saved_tensors(entering=False)
        if cls.__module__ == CheckpointFunction.__module__:
            with self.paused():  # how a checkpoint without reentry keeps its arguments before torch 2.13
                return call(*args, **kwargs)
        inputs = self._arguments(args, kwargs)
        source = current_source()
        with self.paused():
            output = call(*plain(args), **plain(kwargs))
        node = self.graph.call_function(cls.apply, *inputs)  # type: ignore[attr-defined]
        self._record(node, cls.__name__, output, source)
        return output

    def on_vmap(self, call: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call over a batch is one operation on its arguments and on what the function takes from around it."""
        if not self.recording or not self._frames or self._enclosed is not None or _transformed():
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
            self._record(node, "vmap", output, current_source())
        return output

    # -- torch calls ------------------------------------------------------------------------------------------

    def on_torch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*plain(args), **plain(kwargs))
        if not self.recording or is_importing():
            return output
        if self._enclosed is not None or _transformed():
            self._on_transformed(args, kwargs)
            return output
        spelling = fn.name_of(func)
        if spelling == "__iter__":
            return iter(self.on_torch(torch.Tensor.unbind, (args[0], 0), {}))
        if fn.is_silent(func, spelling):
            return self._on_silent(func, spelling, args, kwargs, output)
        if spelling == "register_hook":
            self._note_effect("registers a hook on a tensor")
        with torch._C.DisableTorchFunction():  # a mode below this one need not see our own questions
            array = next((name for name, array in self.arrays if args and args[0] is array), None)
            if array is not None and isinstance(output, torch.Tensor) and not self.strict:
                self.bind_array(array, output, self.graph.call_function(func, *self._arguments(args, kwargs)))
                return output
            self._torch_node(func, spelling, args, kwargs, output)
        return output

    def _on_silent(self, func: Any, spelling: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """A call that is no operation: what it returns may know its node, and what it decides may have to be noted."""
        if fn.is_property_write(func):
            if spelling != "requires_grad":
                self._note_effect(f"assigns `.{spelling}` of a tensor")
            return output
        row = fn.operation(spelling)
        if row.says == "size":
            if spelling in ("numel", "nelement"):
                many = type(output) is int and self.strict
                node = lambda: self.graph.call_method(spelling, (self.argument(args[0]),))  # noqa: E731
                return TracedInt(output, node, self) if many else output
            return self._sizes(func, args, kwargs, output)
        if row.says == "reads":
            self._on_read(spelling, args, kwargs, output)
        elif row.says == "mode":
            self._regions.set_grad_mode(bool(args[0] if args else kwargs["mode"]))
        elif row.types and not self._is_given(args):
            self.on_asked()
        if spelling == "__len__":
            self.leaks += 1  # `len` returns a plain number, whatever we would return
        return output

    def _is_given(self, args: tuple[Any, ...]) -> bool:
        """Whether the first argument came with the call, whose kind says of which type it is."""
        return self.given is not None and bool(args) and any(leaf is args[0] for _, leaf in self.given.before)

    def _on_transformed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Inside a torch.func transform tensors have other faces; those from outside it can be told."""
        if self._enclosed is None:
            self._note_effect("runs inside a torch.func transform (grad, jvp), whose tensors cannot be followed")
            return
        for tensor in _tree.tensors((args, kwargs)):
            if not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and self._is_known(tensor):
                self._enclosed[id(tensor)] = tensor

    def _on_read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        """What follows holds for this value only: noted, and in strict captures looked at again in every run."""
        source = current_source()
        reader = self._frames.innermost.class_name if self._frames else ""
        self._reads.append(ValueRead(name, source, reader))
        if self.strict:
            read = self.graph.call_method(name, *self._arguments(args, kwargs))
            where = str(source) if source else self._where()
            self._impure.add(self.graph.call_function(expect_value, (read, self._held(value), where)))

    def on_autocast(self, region: torch.autocast, entering: bool) -> None:
        """Autocast changes torch's state without telling the function mode."""
        if self.recording and self._frames:
            self._regions.autocast(region, entering)

    def _torch_node(self, func: Any, spelling: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        a, k = self._arguments(args, kwargs)
        as_operator = fn.as_operator(spelling, a, k) if fn.is_method(func) else None
        if fn.is_property(func):
            node = self.graph.call_function(getattr, (a[0], spelling))
        elif spelling == "__setitem__":
            node = self.graph.call_function(operator.setitem, a)
        elif as_operator is not None:
            node = self.graph.call_function(*as_operator)
        elif fn.is_method(func) and args and isinstance(args[0], torch.Tensor):
            node = self.graph.call_method(spelling, a, k)
        else:
            node = self.graph.call_function(func, a, k)
        inplace = fn.is_inplace(spelling, kwargs)
        if inplace or fn.operation(spelling).says == "state":
            self._impure.add(node)
        if not inplace and output is None and _tree.tensors((args, kwargs)):
            self._impure.add(node)
        self._record(node, spelling, output, current_source(), inplace=inplace)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self.argument(x) for x in args), {key: self.argument(x) for key, x in kwargs.items()}

    def on_saved_tensors(self, entering: bool) -> None:
        """A checkpoint begins or ends, or a `saved_tensors_hooks` of the user's."""
        if self.recording and self._frames:
            self._regions.saved_tensors(entering)

    # -- records ----------------------------------------------------------------------------------------------

    def _record(
        self,
        node: torch.fx.Node,
        spelling: str,
        output: Any,
        source: Source | None,
        *,
        inplace: bool = False,
        traits: Mapping[str, Any] | None = None,
    ) -> None:
        """Write into the node's meta what call it is; from now on `output` is what it makes."""
        frame = self._frames.innermost
        name = spelling if node.op == "call_module" else fn.canonical(spelling)
        node.meta.update(
            operation=name, frame=frame.index, nn_module_stack=frame.modules, source=source,
            key=self._frames.key(spelling, source),
        )  # fmt: skip
        if source is not None:
            node.meta["stack_trace"] = f'File "{source.file}", line {source.line}, in {source.function}'
        if inplace:
            node.meta["inplace"] = True
        if self._regions.checkpointed:
            node.meta["checkpointed"] = True
        if traits:
            node.meta["traits"] = traits
        self._count += 1
        if output is not None:
            self.bind(output, node)

    def _met_strangers(self) -> tuple[Stranger, ...]:
        return tuple(
            Stranger(weakref.ref(tensor), self._tensors[self.uid(tensor)].shape, where)
            for tensor, where in self.strangers
        )

    def _note_effect(self, what: str) -> None:
        if self.strict:
            raise UnrecordableError(f"{self._where()} {what}; a graph would not do it again")
        self._effects.append(f"{self._where()} {what}")

    def paused(self) -> Paused:
        return Paused(self)

    def finish(self, output: Any, inputs: tuple[tuple[str, int], ...]) -> Trace:
        self._see_given()
        if self.changed_given:
            raise UnrecordableError(
                f"{type(self.root).__name__}.forward changes a list, dict or object among its arguments; a graph would "
                "not"
            )
        if self.mutated:
            names = ", ".join(f"`self.{name}`" for name in self.mutated)
            raise UnrecordableError(f"{type(self.root).__name__}.forward changes what {names} hold; a graph would not")
        if self.stores:
            last = self.graph.output(
                (self.argument(output), {name: self.argument(x) for name, x in self.stores.items()})
            )
        else:
            last = self.graph.output(self.argument(output))
        last.meta["frames"] = tuple(self._frames.made)
        self.recording = False
        trace = Trace(
            self.graph, tuple(self._frames.made), dict(self._tensors), inputs, dict(self.constants),
            tuple(self._reads), tuple(dict.fromkeys(self._effects)), dict(self.settings),
            tuple(self.stores), self._met_strangers(), self.leaks > 0, tuple(self.kept),
        )  # fmt: skip
        if self.strict:
            assert trace.calls is not None  # read before those that nobody uses go
            _eliminate_dead_code(self.graph, self._impure)
            # Late operands may have been appended after an early use was planned; lint is cheap and final.
            self.graph.lint()
        return trace


def _transformed() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


def _first(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` on its first `count` arguments; the tensors behind them stand there only to be seen in the graph."""

    def vmap(*args: Any, **kwargs: Any) -> Any:
        return call(*args[:count], **kwargs)

    return vmap


def _eliminate_dead_code(graph: torch.fx.Graph, impure: set[torch.fx.Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and node not in impure and not node.users:
            graph.erase_node(node)
