"""Folding an evaluation-mode RegBN away: into the weights of the linear layer that follows it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from .._errors import RegBNOptionError, RegBNShapeError
from .regbn import RegBN


@torch.no_grad()
def fold_into_linear(
    regbn: RegBN, linear: nn.Linear, takes: Literal["f", "fg", "gf"] = "fg", *, layer: str = "linear"
) -> nn.Linear:
    """A linear layer that does to the raw flat features what `linear` does after `regbn` in evaluation, exactly.

    With n and m the flat sizes of f and g, `takes` says what `linear` is fed with: `"f"`, f' alone (n inputs);
    `"fg"`, `cat([f', g'])`; `"gf"`, `cat([g', f'])` (n + m inputs). The result always takes n + m inputs, the raw
    `cat([f, g])` (or `cat([g, f])` for `"gf"`), since f' depends on both. Neither argument is changed. The running
    projection is taken as it is now. `layer` names the linear layer in messages.

    Raises `RegBNOptionError` where RegBN is not a linear map: with output norms, with a residual formed from
    normalised features, or with `reduce="mean"`; `RegBNShapeError` where the sizes do not fit.
    """
    _check_linear_map(regbn)
    m, n = regbn.projection_shape
    wanted = n if takes == "f" else n + m
    if linear.in_features != wanted:
        raise RegBNShapeError(
            f"folding RegBN into {layer} with takes={takes!r} needs in_features={wanted} "
            f"(f: {n}, g: {m}); found {linear.in_features}"
        )
    weight = linear.weight
    if takes == "f":
        on_f, on_g = weight, weight.new_zeros((len(weight), m))
    elif takes == "fg":
        on_f, on_g = weight[:, :n], weight[:, n:]
    else:
        on_g, on_f = weight[:, :m], weight[:, m:]
    # y = A_f (f - W^T (g - mean)) + A_g g = A_f f + (A_g - A_f W^T) g + A_f W^T mean, for columns f and g; in float64,
    # rounded once
    running = regbn.running
    explained = on_f.double()
    for factor in reversed(running.factors):
        explained = explained @ factor.double().mT
    offset = None if running.mean_g is None else explained @ running.mean_g.double()
    on_g = (on_g.double() - explained).to(weight.dtype)
    parts = [on_g, on_f] if takes == "gf" else [on_f, on_g]
    biased = offset is not None or linear.bias is not None
    folded = nn.Linear(n + m, linear.out_features, biased, device=weight.device, dtype=weight.dtype)
    folded.weight.copy_(torch.cat(parts, dim=1))
    if biased:
        own = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        folded.bias.copy_(own if offset is None else own.double() + offset)
    folded.requires_grad_(weight.requires_grad)
    return folded.train(linear.training)


def _check_linear_map(regbn: RegBN) -> None:
    options = regbn.options
    if options.normalize_output:
        reason = "its output norms divide by a deviation that differs from sample to sample (normalize_output=true)"
    elif options.normalize_input and options.residual == "normalized":
        reason = "its residual is formed from normalised features (residual='normalized')"
    elif options.reduce == "mean":
        reason = "it is fitted on means over positions and subtracts from every position (reduce='mean')"
    else:
        return
    raise RegBNOptionError(
        f"RegBN cannot be folded into a linear layer: {reason}. Only f - g W with the running W is a linear map; "
        "train with normalize_output=false, or keep the RegBN module"
    )
