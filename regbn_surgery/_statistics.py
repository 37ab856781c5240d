"""What each RegBN of a model is doing, as numbers for any logger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ._adapter_copies import regbns_in
from ._wrappers import inside_wrappers
from .nn import RegBN
from .nn._linalg import accumulation_dtype

#: What `statistics` tells of each RegBN.
NAMES = ("share", "lambda", "norm_W", "norm_W_batch", "running_to_batch", "removed", "steps", "skipped")


@torch.no_grad()
def statistics(model: nn.Module, *, whole: bool = False) -> dict[str, Tensor]:
    """Numbers on each RegBN in `model`, as `{"regbn_late/lambda": tensor, ...}`.

    In front of the `/` is the path of the RegBN in the model, as `plan`, `verify`, `summary` and the state dict have
    it, cut to the shortest end that no other RegBN of the model has: `regbn_cross` where there is one such, else
    `11.crossattention.regbn_cross`. So a wrapper around the model (DDP, `torch.compile`) does not change it. `whole`
    keeps the whole path. A RegBN by itself has no path, as in its state dict: `lambda`.

    Every value is a 0-dimensional tensor of its own on the device of its RegBN: nothing is read back to the host until
    somebody reads it, and nothing changes with later steps. Loggers take them as they are (TensorBoard's `add_scalar`,
    `wandb.log`, Lightning's `log_dict`). Of the last training step that moved anything (NaN, not known, before the
    first; not part of the state dict, so NaN again after loading):

    - `share`: of the batch's projection in the running one, W <- (1 - share) W + share W_batch;
    - `lambda`: the multiplier;
    - `norm_W_batch`: ||W_batch||_F;
    - `removed`: ||f - f'|| / ||f||, f' before the output norm, over this rank's batch;
    - `running_to_batch`: norm_W as it is now / norm_W_batch (a running W that has not arrived yet, or batches whose
      fits have little in common, make it small).

    As they are now: `norm_W`, ||W||_F of the running projection; `steps` and `skipped`, the batches that moved the
    running projection, and those that did not (not finite, or without rows to fit).

    Works on any module with RegBN inside, rewritten or not; empty where there is none. If PEFT trains a copy of a RegBN
    (`modules_to_save`), these are the numbers of the active copy. Cost: one norm of each W.
    """
    found = regbns_in(model)
    names = {path: path for path in found} if whole else short_names(model, found)
    figures = {names[path]: _of(regbn) for path, regbn in found.items()}
    return {f"{where}/{name}".lstrip("/"): value for where, row in figures.items() for name, value in row.items()}


def short_names(model: nn.Module, paths: Collection[str]) -> dict[str, str]:
    """For each path its shortest end, of whole parts, that is the end of no other one; at worst the path itself.

    A path is that in the model without the wrappers of a library around it.
    """
    inner = inside_wrappers(model)
    around = next((path for path, module in model.named_modules() if module is inner), "")
    parts = {path: path.removeprefix(around).removeprefix(".").split(".") for path in paths}
    shared = Counter(".".join(whole[-n:]) for whole in parts.values() for n in range(1, len(whole) + 1))
    ends = {path: [".".join(whole[-n:]) for n in range(1, len(whole) + 1)] for path, whole in parts.items()}
    return {path: next((end for end in found if shared[end] == 1), found[-1]) for path, found in ends.items()}


def _of(regbn: RegBN) -> dict[str, Tensor]:
    share, batch_norm, removed = regbn.observed.clone().unbind()
    norm = _norm(regbn.factors)
    ratio = norm / torch.where(batch_norm > 0, batch_norm, 1.0)
    unknown = share < 0  # as `observed` starts, in the constructor and after loading
    of_step = (share, regbn.multiplier, batch_norm, ratio, removed)
    share, multiplier, batch_norm, ratio, removed = (x.masked_fill(unknown, torch.nan) for x in of_step)
    counts = (regbn.num_steps.clone(), regbn.num_skipped.clone())
    values = (share, multiplier, norm, batch_norm, ratio, removed, *counts)
    return dict(zip(NAMES, values, strict=True))


def _norm(factors: tuple[Tensor, ...]) -> Tensor:
    """||W||_F, of factors by their Gram matrices."""
    if len(factors) == 1:
        whole: Tensor = torch.linalg.vector_norm(factors[0])
        return whole
    left, right = (factor.to(accumulation_dtype(factor.device)) for factor in factors)
    square = ((left.mT @ left) * (right @ right.mT)).sum()
    return square.clamp_min(0.0).sqrt().to(factors[0].dtype)
