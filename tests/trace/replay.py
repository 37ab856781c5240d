"""Capturing small models and running the captured graph again, for the tests of this folder."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from regbn_surgery._trace import Trace, capture

SEED = 3


def make(forward: Callable[..., Any], **children: Any) -> nn.Module:
    """A module whose class has `forward` for its own, with the given children, parameters or attributes."""
    module = type("Made", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def run_graph(module: nn.Module, trace: Trace, *args: Any, **kwargs: Any) -> Any:
    """Call the code that fx generates from the trace's graph, with the module as its `self`."""
    code = trace.graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    module.__dict__.update(trace.constants)
    try:
        return names["forward"](module, *args, **kwargs)
    finally:
        for name in trace.constants:
            del module.__dict__[name]


def is_child(module: nn.Module, path: str) -> bool:
    """The rule for leaves of a host: of all its modules only its own forward is looked into."""
    return True


def captured(module: nn.Module, *args: Any, strict: bool = False, **kwargs: Any) -> Trace:
    """The trace of one call: of the whole model, or (strict) of the module's own forward as the rewrite takes it."""
    with restored(module):
        if strict:
            return capture(module, args, kwargs, leaf=is_child, strict=True, forward=module.forward)[0]
        return capture(module, args, kwargs)[0]


@contextlib.contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Buffers and random numbers as before, without the library's own help."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in buffers:  # the forward may have made one
                buffer.copy_(buffers[name])


def check_repeats(module: nn.Module, trace: Trace, call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """The graph gives on copies of the arguments exactly what the module gives, and leaves the same in them."""
    args, kwargs = copy.deepcopy(call)
    with restored(module):
        expected = module(*args, **kwargs)
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    again, again_kwargs = copy.deepcopy(call)
    with restored(module):
        found = run_graph(module, trace, *again, **again_kwargs)
        same(dict(module.named_buffers()), state)
    same(found, expected)
    same(again, args)
    same(again_kwargs, kwargs)


def same(found: Any, expected: Any, where: str = "output") -> None:
    """Equal to the last bit, and of equal types all the way down."""
    assert type(found) is type(expected), f"{where}: {type(found)} instead of {type(expected)}"
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), where
        for key in expected:
            same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            same(a, b, f"{where}.{i}")
    elif dataclasses.is_dataclass(expected):
        for entry in dataclasses.fields(expected):
            same(getattr(found, entry.name), getattr(expected, entry.name), f"{where}.{entry.name}")
    else:
        assert found == expected, where
