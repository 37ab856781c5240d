"""The published layer, from a user's own copy of its file, as one more thing to measure. Nothing of it is shipped.

The file is run as it is. Whatever is wrong with it ends the benchmark before anything is measured, with what was
tried, what happened and what to do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from yardsticks import Shape

#: The published arguments, apart from the sizes.
ARGUMENTS = {
    "gpu": 0,
    "normalize_input": False,
    "normalize_output": True,
    "affine": False,
    "sigma_THR": 0.0,
    "sigma_MIN": 0.0,
}
CALL = {"is_training": True, "n_epoch": 1, "steps_per_epoch": 100}
DEVICES = "set the device strings in it to the device of this run (the published file names a GPU)"


def load_reference(path: Path) -> type:
    """The class `RegBN` of the file at `path`, tried on one small batch. Ends the program where that fails."""
    if not path.is_file():
        raise SystemExit(f"--reference: {path} is no file")
    spec = importlib.util.spec_from_file_location("reference_regbn", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--reference: {path} is not a Python file (its name should end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _ended(path, "running the file", error, "it should import where this benchmark runs") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, "RegBN", None)
    if not isinstance(found, type):
        there = ", ".join(name for name, value in vars(module).items() if isinstance(value, type)) or "none"
        raise SystemExit(f"--reference: {path} defines no class RegBN; classes found: {there}")
    return found


def reference_layer(
    published: type, shape: Shape, device: torch.device, path: Path
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The published layer with the published keyword names, called as its README does; one step of it is tried.

    A layer that keeps the graph of one step for the next could not be stepped twice: its tensors are detached
    between steps, as a training loop around it has to.
    """
    sizes = {
        "f_num_channels": shape.f[0],
        "g_num_channels": shape.g[0],
        "f_layer_dim": list(shape.f[1:]),
        "g_layer_dim": list(shape.g[1:]),
    }
    what = f"RegBN({', '.join(f'{name}={value!r}' for name, value in {**sizes, **ARGUMENTS}.items())})"
    try:
        layer = published(**sizes, **ARGUMENTS)
        if isinstance(layer, nn.Module):
            layer = layer.to(device).train()
    except Exception as error:
        raise _ended(path, what, error, f"check that it takes these arguments, and {DEVICES}") from error

    def call(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        _detach_state(layer)
        return layer(f, g, **CALL)

    what = f"a training step on f {[shape.batch, *shape.f]} and g {[shape.batch, *shape.g]}"
    f, g, grad_f, grad_g = shape.tensors(device)
    try:
        outputs = call(f, g)
        f_out, g_out = outputs
        found = [tuple(f_out.shape), tuple(g_out.shape)]
        if found != [tuple(f.shape), tuple(g.shape)]:
            raise ValueError(f"outputs of shapes {found}")
        torch.autograd.backward((f_out, g_out), (grad_f, grad_g))
    except Exception as error:
        raise _ended(
            path, what, error, f"check that it returns (f', g') in the shapes of f and g, and {DEVICES}"
        ) from error
    return call


def _ended(path: Path, what: str, error: Exception, remedy: str) -> SystemExit:
    return SystemExit(f"--reference: {path}: {what} failed with {type(error).__name__}: {error}\n{remedy}")


def _detach_state(layer: object) -> None:
    """Take the autograd history off every tensor that the layer keeps."""
    parts = list(layer.modules()) if isinstance(layer, nn.Module) else [layer]
    for part in parts:
        kept = [vars(part)] + ([part._buffers] if isinstance(part, nn.Module) else [])
        for names in kept:
            for name, value in names.items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    names[name] = value.detach()
