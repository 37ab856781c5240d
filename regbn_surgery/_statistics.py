"""What each RegBN of a model is doing, as numbers for any logger."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._adapter_copies import regbn_in
from .nn import RegBN
from .nn._linalg import accumulation_dtype

#: What `statistics` tells of each RegBN.
NAMES = ("share", "lambda", "norm_W", "norm_W_batch", "running_to_batch", "removed", "steps", "skipped")


@torch.no_grad()
def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Numbers on each RegBN in `model`, as `{"path/name": tensor}` with the path of the module.

    Every value is a 0-dimensional tensor of its own on the device of its RegBN: nothing is read back to the host until
    somebody reads it, and nothing changes with later steps. Loggers take them as they are (TensorBoard's `add_scalar`,
    `wandb.log`, Lightning's `log_dict`). Of the last training step that moved anything (0 before the first; not part of
    the state dict, so 0 again after loading):

    - `share`: of the batch's projection in the running one, W <- (1 - share) W + share W_batch;
    - `lambda`: the multiplier;
    - `norm_W_batch`: ||W_batch||_F;
    - `removed`: ||f - f'|| / ||f||, f' before the output norm, over this rank's batch.

    As they are now: `norm_W`, ||W||_F of the running projection; `running_to_batch`, norm_W / norm_W_batch (a running W
    that has not arrived yet, or batches whose fits have little in common, make it small); `steps` and `skipped`, the
    batches that moved the running projection, and those that did not (not finite, or without rows to fit).

    Works on any module with RegBN inside, rewritten or not; empty where there is none. If PEFT trains a copy of a RegBN
    (`modules_to_save`), these are the numbers of the active copy. Cost: one norm of each W.
    """
    found: dict[str, Tensor] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():  # a wrapper comes before what it holds
        regbn = None if module in inside else regbn_in(module)
        if regbn is not None:
            inside.update(module.modules())
            where = path.removesuffix(".regbn") or type(regbn).__name__
            found.update({f"{where}/{name}": value for name, value in _of(regbn).items()})
    return found


def _of(regbn: RegBN) -> dict[str, Tensor]:
    share, batch_norm, removed = regbn.observed.clone().unbind()
    norm = _norm(regbn.factors)
    ratio = norm / torch.where(batch_norm > 0, batch_norm, 1.0)
    counts = (regbn.num_steps.clone(), regbn.num_skipped.clone())
    values = (share, regbn.multiplier.clone(), norm, batch_norm, ratio, removed, *counts)
    return dict(zip(NAMES, values, strict=True))


def _norm(factors: tuple[Tensor, ...]) -> Tensor:
    """||W||_F, of factors by their Gram matrices."""
    if len(factors) == 1:
        whole: Tensor = torch.linalg.vector_norm(factors[0])
        return whole
    left, right = (factor.to(accumulation_dtype(factor.device)) for factor in factors)
    square = ((left.mT @ left) * (right @ right.mT)).sum()
    return square.clamp_min(0.0).sqrt().to(factors[0].dtype)
