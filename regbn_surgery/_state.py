"""Run a model without leaving a trace: buffers, modes, stashed attributes and random numbers are put back."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from . import _tree
from ._undo import later, undone

#: Every trial run starts from this seed, so that dropout draws the same numbers in each of them.
SEED = 20231210
#: How deep containers in attributes are looked into.
_DEPTH = 3
_MISSING: Any = object()


@contextmanager
def preserved(model: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Restore buffers, `training` flags and plain attributes of every submodule, whatever happens inside.

    Parameters are copied and restored only where asked, as they may be large and most forwards do not write to them
    (momentum twins do); the tables of an `Embedding` with `max_norm` always are. Attributes are restored by
    reference, and so is what their lists, sets, dicts and plain objects hold, so that a module which stashes its
    activations does not keep ours.
    """
    written = tuple(model.parameters() if parameters else _renormalised(model))
    entry = later(Snapshot(model, written).restore)
    try:
        _lend_buffers(model)
        yield
    finally:
        undone(entry)


class Snapshot:
    """What a model is made of, by reference, and the values of the tensors `written`; `restore` puts them back."""

    def __init__(self, model: nn.Module, written: Iterable[torch.Tensor] = ()) -> None:
        self.attributes = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        # Registries (hooks, buffers, children) change in place: `transformers` installs hooks in the first forward.
        self.containers = [
            kept for _, _, saved in self.attributes for value in saved.values() for kept in _contents(value)
        ]
        self.values = [(tensor, tensor.detach().clone()) for tensor in written if not has_no_values(tensor)]

    def restore(self) -> None:
        """May be called again where it was interrupted."""
        for module, cls, saved in self.attributes:
            if type(module) is not cls:
                object.__setattr__(module, "__class__", cls)
            held = module.__dict__
            held.update(saved)  # not emptied before: another thread may be calling the model
            for name in held.keys() - saved.keys():
                del held[name]
        for container, content in self.containers:
            _refill(container, content)
        with torch.no_grad():
            for tensor, value in self.values:
                if tensor.shape == value.shape:
                    tensor.copy_(value)


#: Models with larger parameters are not asked whether their forward writes to them.
_ASKED_UP_TO = 2 * 2**30


@contextmanager
def watching_parameters(model: nn.Module, changed: list[str]) -> Iterator[None]:
    """Fill `changed` with the names of parameters that a run inside wrote to, and put their values back."""
    if sum(p.numel() * p.element_size() for p in model.parameters()) > _ASKED_UP_TO:
        yield
        return
    values = [(name, p, p.detach().clone()) for name, p in model.named_parameters() if not has_no_values(p)]

    def restore() -> None:
        with torch.no_grad():
            for name, parameter, value in values:
                if parameter.shape == value.shape and not same_values(parameter, value):
                    changed.append(name)
                    parameter.copy_(value)

    entry = later(restore)
    try:
        yield
    finally:
        undone(entry)


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """`torch.equal`, also for tensors of a class that lacks it (quantised weights): by the tensors that they hold.

    Those that cannot be compared at all (sparse ones) count as the same.
    """
    flatten = getattr(type(a), "__tensor_flatten__", None)
    if flatten is not None and type(a) is type(b):
        names: list[str] = flatten(a)[0]
        return all(same_values(getattr(a, name), getattr(b, name)) for name in names)
    try:
        return torch.equal(a, b)
    except NotImplementedError:
        return True


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a shape only: on the meta device, or a fake."""
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def _lend_buffers(model: nn.Module) -> None:
    """Let the run write to copies: autograd may have saved the buffers themselves in a forward that goes on after."""
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not isinstance(buffer, nn.UninitializedBuffer):
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def _contents(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """What can change in place in an attribute, each with what it holds now: containers, arrays, generators of random
    numbers, and objects; a plain object is the dict of its own."""
    if type(value) in _tree.PLAIN:  # most attributes
        return
    slots = slots_of(value)
    if is_plain_object(value):
        value = _tree.attributes(value)
    if depth > _DEPTH:
        return
    if is_generator(value):
        yield value, generator_state(value)
    elif isinstance(value, np.ndarray):
        yield value, value.copy()
    elif slots is not None:
        yield value, slots
        for item in slots.values():
            yield from _contents(item, depth + 1)
    elif isinstance(value, dict | list | set | deque):
        yield value, list(value.items() if isinstance(value, dict) else value)
        for item in value.values() if isinstance(value, dict) else value:
            yield from _contents(item, depth + 1)


_NOT_PLAIN = (nn.Module, torch.Tensor, torch.Generator, ModuleType, type, dict, list, tuple, set, frozenset, deque,
              FunctionType, MethodType, np.ndarray)  # fmt: skip


def is_plain_object(value: Any) -> bool:
    """An object that only holds settings or counters: no module, tensor, function, or class, and none of ours.

    One that can be called is such where its class is written in Python: a schedule that counts how often it was asked.
    """
    if isinstance(value, _NOT_PLAIN) or not _has_dict(value):
        return False
    home = type(value).__module__
    if callable(value) and (not isinstance(type(value).__call__, FunctionType) or home.partition(".")[0] == "torch"):
        return False
    return home != "random" and not home.startswith("regbn_surgery.")  # by name: dynamo does not know random.Random


def slots_of(value: Any) -> dict[str, Any] | None:
    """What an object of a class with `__slots__` and no dict holds; None for any other."""
    cls = type(value)
    if _has_dict(value) or isinstance(value, torch.Tensor | tuple) or "__slots__" not in vars(cls):
        return None
    names = [name for base in cls.__mro__ for name in _names(vars(base).get("__slots__", ()))]
    held = {name: _tree.attribute(value, name, _MISSING) for name in names}
    return {name: item for name, item in held.items() if item is not _MISSING}


def _has_dict(value: Any) -> bool:
    """`hasattr(value, "__dict__")`, without asking a `__getattr__` of the user's."""
    return type(value).__dictoffset__ != 0 or isinstance(value, type | ModuleType)


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def is_generator(value: Any) -> bool:
    """Whether random numbers are drawn from it."""
    return type(value) not in _NO_GENERATORS and isinstance(value, _GENERATORS)


_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_NO_GENERATORS = frozenset({dict, OrderedDict, list, set, tuple})  # asked first: torch.Generator answers slowly


def generator_state(generator: Any) -> Any:
    """The state of a generator of random numbers, to put back, or to see whether somebody drew from it."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def own_generator(generator: Any) -> Any:
    """Another generator in the same state."""
    if not isinstance(generator, torch.Generator):
        return copy.deepcopy(generator)
    own = torch.Generator(generator.device)
    own.set_state(generator.get_state())
    return own


def _refill(container: Any, content: Any) -> None:
    """Let `container` hold what it held when `_contents` gave `content`."""
    if is_generator(container):
        _set_generator_state(container, content)
    elif isinstance(container, np.ndarray):
        if container.flags.writeable and container.shape == content.shape:
            container[...] = content
    elif isinstance(container, dict | list | set | deque):
        _refill_container(container, content)
    else:
        for name, value in content.items():
            object.__setattr__(container, name, value)


def _refill_container(container: Any, content: list[Any]) -> None:
    now = list(container.items() if isinstance(container, dict) else container)
    if len(now) == len(content) and all(_is_same(a, b) for a, b in zip(now, content, strict=True)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


def _is_same(a: Any, b: Any) -> bool:
    pairs = zip(a, b, strict=True) if type(a) is type(b) is tuple and len(a) == len(b) else ((a, b),)
    return all(x is y for x, y in pairs)


def _renormalised(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tables that `max_norm` lets a forward rescale in place."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            yield module.weight


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from a fixed seed inside, and restore the random state of torch, Python and NumPy after."""
    entry = later(_random_restorer())
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        undone(entry)


def _random_restorer() -> Callable[[], None]:
    """What puts the generators of torch, Python and NumPy back into the state they are in now."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    own, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def restore() -> None:
        torch.set_rng_state(own)
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)
        random.setstate(python)
        np.random.set_state(numpy)

    return restore


def random_state() -> tuple[object, ...]:
    """The state of Python's and NumPy's generators, to see whether somebody drew from them."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), kind, keys.tobytes(), *rest  # type: ignore[union-attr]
