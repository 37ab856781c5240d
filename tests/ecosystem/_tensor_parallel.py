"""Situations: layers of a model that was never called split over two ranks, by torch's tensor parallelism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regbn_surgery import RegBN

from ._subject import (
    DoesNotApplyError,
    Subject,
    assert_regbn_learned,
    assert_same,
    backward,
    outputs,
    regbns,
    unless_the_original_fails,
    with_uneven_weights,
)
from ._with_ranks import RANKS, _ranks


def split_layers(subject: Subject) -> None:
    """`parallelize_module` of the linear layers around RegBN, on two ranks, never called: the results of one process.

    In training, every rank takes the same step: RegBN stays the same on all of them.
    """
    if not _layers(subject.original()):
        raise DoesNotApplyError("no linear layer that could be split")
    answers = unless_the_original_fails(
        "bear split layers",
        lambda: _ranks().run(_rewritten_rank, subject.name),
        lambda: _ranks().run(_original_rank, subject.name),
    )
    expected = outputs(with_uneven_weights(subject.rewritten()), subject.example(3))
    for answer in answers:
        assert_same(answer["outputs"], expected, rtol=1e-4, atol=1e-5)
    assert_same(answers[0]["state"], answers[1]["state"], 0, 0)


def _layers(model: nn.Module) -> list[str]:
    """The linear layers around RegBN that two ranks can share."""
    inside = {id(module) for regbn in model.modules() if isinstance(regbn, RegBN) for module in regbn.modules()}
    held = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and id(module) not in inside
        and module.out_features % RANKS == 0
        and held[id(module.weight)] == 1  # a tied weight cannot be split in one of its places alone
    ]


def _split(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    plan = {name: ColwiseParallel(output_layouts=Replicate()) for name in _layers(model)}
    return parallelize_module(model, init_device_mesh("cpu", (RANKS,)), plan)


def _original_rank(subject: Subject, rank: int) -> bool:
    model = _split(subject.original().eval())
    outputs(model, subject.example(3))
    backward(model, subject.example(3))
    return True


def _rewritten_rank(subject: Subject, rank: int) -> dict[str, Any]:
    model = _split(with_uneven_weights(subject.rewritten()))
    found = outputs(model, subject.example(3))
    for module in regbns(model).values():
        module.train()
    torch.manual_seed(0)
    backward(model, subject.example(3))
    assert_regbn_learned(model)
    state: dict[str, Tensor] = {
        f"{name}.{key}": value.clone() for name, m in regbns(model).items() for key, value in m.state_dict().items()
    }
    return {"outputs": found, "state": state}


SITUATIONS: dict[str, Callable[[Subject], None]] = {"first: tensor parallel": split_layers}
