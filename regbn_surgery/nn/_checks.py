"""What RegBN says about inputs and sizes that do not fit: what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._errors import CaptureError, RegBNOptionError, RegBNShapeError
from .options import RegBNOptions

_GIB = 2.0**30


def positive_size(name: str, value: int) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise RegBNShapeError(f"RegBN expects {name} to hold integers of at least 1; found {value!r}")
    return int(value)


def check_layer_dims(reduce: str, f_layer_dim: Sequence[int], g_layer_dim: Sequence[int]) -> None:
    """With `reduce="mean"` there are no fixed spatial sizes."""
    if reduce == "mean" and (f_layer_dim or g_layer_dim):
        raise RegBNOptionError(
            f"reduce='mean' fits on the means over positions and takes any number of them; found f_layer_dim="
            f"{list(f_layer_dim)} and g_layer_dim={list(g_layer_dim)}: leave both empty"
        )


def choose_projection(options: RegBNOptions, m: int, n: int) -> str:
    """ "dense" or "low_rank", by the options and the size of a dense float32 W."""
    size = 4.0 * m * n / _GIB
    if options.projection != "auto" and (options.projection == "low_rank" or size <= options.max_dense_gib):
        return options.projection
    if options.projection == "dense":
        raise RegBNOptionError(
            f"projection='dense' keeps W [{m}, {n}] whole, {size:.3g} GiB in float32, above max_dense_gib="
            f"{options.max_dense_gib:g}. Set projection='low_rank' (factors of rank {options.rank or 64}: "
            f"{4.0 * (m + n) * (options.rank or 64) / _GIB:.3g} GiB) or reduce='mean' (W over channels alone)"
        )
    return "dense" if size <= options.max_dense_gib else "low_rank"


def check_features(
    name: str, x: Tensor, channels: int, layer_dim: tuple[int, ...], mask: Tensor | None, any_length: bool
) -> None:
    """One of the two inputs, `[B, channels, *layer_dim]`, or any positions in place of `layer_dim`."""
    if not isinstance(x, Tensor):
        raise RegBNShapeError(f"RegBN expects two tensors, f and g; found {type(x).__name__} for {name}")
    fits = x.dim() >= 2 and x.shape[1] == channels and (any_length or x.shape[2:] == layer_dim)
    if not (fits and x.is_floating_point()):
        sizes = ", ".join(map(str, (channels, *layer_dim)))
        wanted = f"floating-point {name} of shape [B, {sizes}{', *positions' if any_length else ''}]"
        raise RegBNShapeError(f"RegBN expects {wanted}; found {x.dtype} {list(x.shape)}")
    if mask is None:
        return
    if not any_length:
        raise RegBNShapeError(f"{name}_mask needs reduce='mean'; this RegBN has reduce='flatten'")
    positions = x.shape[:1] + x.shape[2:]
    if mask.shape != positions:
        raise RegBNShapeError(f"RegBN expects {name}_mask of shape {list(positions)}; found {list(mask.shape)}")


def check_batch(f: Tensor, g: Tensor, training: bool, joined: bool, present: Tensor | None = None) -> None:
    """The two batch sizes. `joined` means that other ranks add samples of their own."""
    if present is not None and not (present.dtype == torch.bool and present.shape == f.shape[:1]):
        raise RegBNShapeError(
            f"RegBN expects present of shape [{f.shape[0]}] and dtype torch.bool, one for each sample; "
            f"found {present.dtype} {list(present.shape)}"
        )
    if f.shape[0] != g.shape[0]:
        raise RegBNShapeError(
            f"RegBN expects f and g of the same batch; found {f.shape[0]} samples of f and {g.shape[0]} of g, "
            "which cannot be the same samples, row by row"
        )
    if training and f.shape[0] < 2 and not joined:
        found = "an empty batch" if f.shape[0] == 0 else "1"
        raise RegBNShapeError(
            f"RegBN expects more than 1 sample in training, to fit f on g across the batch; found {found}. "
            "Use a larger batch, drop the last one, or call eval()"
        )


def refuse_script() -> None:
    """What torch.jit.script asks of a module before it reads its source, answered for RegBN.

    Raises:
        CaptureError: always.
    """
    raise CaptureError(
        "torch.jit.script compiles the source of a model, and RegBN's is not TorchScript (it solves for its "
        "multiplier in Python). Use torch.jit.trace(model.eval(), example), or torch.export.export(model.eval(), "
        "example)."
    )
