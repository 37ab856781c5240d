"""Situations: two processes that train one model, on CPU with gloo.

The ranks are started once and asked for one model after the other; a rank that fails says why.
"""

from __future__ import annotations

import atexit
import copy
import functools
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import regbn_surgery
from regbn_surgery import _tree
from regbn_surgery.nn import convert_sync_regbn
from tests.zoo._running import call, tensors_of

from ._subject import (
    DoesNotApplyError,
    Subject,
    assert_regbn_learned,
    assert_same,
    backward,
    cast,
    gradients,
    regbns,
    unless_the_original_fails,
)

RANKS, PER_RANK = 2, 3


# -- the two processes ------------------------------------------------------------------------------------------------


class Ranks:
    """Two spawned processes in one gloo group, which run `task(subject, rank)` and send back what it returns."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = os.path.join(tempfile.mkdtemp(), "store")
        self.pipes, self.processes = [], []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        atexit.register(self.close)

    def run(self, task: Callable[[Subject, int], Any], name: str) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((task, name))
        answers = []
        for pipe in self.pipes:
            if not pipe.poll(120):
                self.close()
                _ranks.cache_clear()
                raise TimeoutError("a rank gave no answer in two minutes; the other one may have failed")
            answers.append(pipe.recv())
        for good, answer in answers:
            if not good:
                self.close()  # the other rank may wait in a collective for ever
                _ranks.cache_clear()
                raise RuntimeError(answer)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self.processes:
            process.terminate()


@functools.cache
def _ranks() -> Ranks:
    return Ranks()


def _serve(rank: int, store: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    while True:
        try:
            task, name = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, task(Subject(name), rank)))
        except Exception as error:  # noqa: BLE001 - it goes to the parent, which raises it
            where = traceback.extract_tb(error.__traceback__)[-1]
            pipe.send((False, f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"))


# -- what a rank sees -------------------------------------------------------------------------------------------------


def _joined(subject: Subject) -> Any:
    return subject.example(RANKS * PER_RANK)


def _part(subject: Subject, rank: int) -> Any:
    """The samples of one rank, cut from the joined batch along whatever axis follows the batch size."""
    half, whole = subject.example(PER_RANK), _joined(subject)

    def cut(few: Any, many: Any) -> Any:
        if isinstance(many, regbn_surgery.Inputs):
            return regbn_surgery.Inputs(*cut(few.args, many.args), **cut(few.kwargs, many.kwargs))
        if isinstance(many, Tensor):
            axes = [i for i, (a, b) in enumerate(zip(few.shape, many.shape, strict=True)) if a != b]
            return _counted_anew(few, many.chunk(RANKS, axes[0])[rank]).clone() if axes else many
        children = _tree.items(many)
        if children is None:
            return many
        small = dict(_tree.items(few) or ())
        if len(small) != len(children):  # one entry for each sample
            return many[rank * PER_RANK : (rank + 1) * PER_RANK]
        made = {str(key): cut(small[key], value) for key, value in children}
        return _tree.rebuild(_Shallow(many, made).value, lambda name, leaf: leaf)

    return cut(half, whole)


def _counted_anew(first: Tensor, part: Tensor) -> Tensor:
    """Where samples are numbered, as the graphs of a batch are, those of a part count from 0, too."""
    if part.is_floating_point() or part.dtype == torch.bool or part.shape != first.shape or first.min() != 0:
        return part
    return first if part.min() > 0 and torch.equal(part - part.min(), first) else part


class _Shallow:
    """A container with its direct children exchanged."""

    def __init__(self, container: Any, children: dict[str, Any]) -> None:
        if isinstance(container, dict):
            self.value: Any = {key: children[str(key)] for key in container}
        elif _tree.is_namedtuple(container):
            self.value = type(container)(**children)
        elif isinstance(container, list | tuple):
            self.value = type(container)(children.values())
        else:
            self.value = copy.copy(container)
            for key, child in children.items():
                object.__setattr__(self.value, key, child)


def _only_regbn_trains(model: nn.Module) -> nn.Module:
    """Evaluation mode but for RegBN: no dropout, no BatchNorm, whose ranks do not agree with one process anyway."""
    model.eval()
    for module in regbns(model).values():
        module.train()
    return model


def _rows(model: nn.Module, example: Any) -> list[Tensor]:
    return [out.detach() for out in tensors_of(call(model, copy.deepcopy(example))) if out.is_floating_point()]


# -- DistributedDataParallel ------------------------------------------------------------------------------------------


def data_parallel(subject: Subject) -> None:
    """DDP on two ranks with `convert_sync_regbn`: the state and the gradients of one process."""
    answers = unless_the_original_fails(
        "train in parallel",
        lambda: _ranks().run(_ddp_rank, subject.name),
        lambda: _ranks().run(_ddp_original, subject.name),
    )
    assert_same(answers[0]["after"], answers[1]["after"], 0, 0)
    original = subject.original().eval()
    apart = [_rows(original, _part(subject, rank)) for rank in range(RANKS)]
    whole = _rows(original, _joined(subject))
    alike = all(len(rows) == len(whole) for rows in apart)  # else there are outputs for each sample, as for its images
    pairs = list(zip(whole, zip(*apart, strict=True), strict=True)) if alike else []
    if any(_are_rows(out, parts) and not _are_apart(out, parts) for out, parts in pairs):
        raise DoesNotApplyError("the samples of a batch see each other in the original: ranks are not one process")
    model = _only_regbn_trains(subject.rewritten())
    backward(model, _joined(subject))
    for answer in answers:
        assert_same(answer["state"], _running_state(model), rtol=1e-3, atol=1e-5)
    if not alike or not all(_are_rows(out, parts) for out, parts in pairs):
        return  # the original's outputs are no rows of samples: ranks differ from one process without RegBN, too
    found = answers[0]["gradients"]
    expected = gradients(model)
    scale = max((float(gradient.abs().max()) for gradient in expected.values()), default=1.0)
    atol = 1e-3 * scale
    try:
        assert_same({name: found[name] for name in expected}, expected, rtol=1e-2, atol=atol)
    except AssertionError:
        settled = _settled(subject, expected, atol)
        assert settled
        assert_same({name: found[name] for name in settled}, settled, rtol=1e-2, atol=atol)


def _settled(subject: Subject, found: dict[str, Tensor], atol: float) -> dict[str, Tensor]:
    """The gradients that are no rounding errors: those in which float32 and float64 agree. LayerNorm over a token that
    starts as zeros multiplies what is left of it by 1e5."""
    precise = _only_regbn_trains(subject.rewritten().double())
    backward(precise, cast(_joined(subject), torch.float64))
    exact = gradients(precise)
    return {
        name: gradient
        for name, gradient in found.items()
        if torch.allclose(gradient.double(), exact[name], rtol=1e-2, atol=atol / 2)
    }


def _are_rows(whole: Tensor, parts: tuple[Tensor, ...]) -> bool:
    if whole.dim() == 0 or any(part.shape[1:] != whole.shape[1:] for part in parts):
        return False
    return sum(part.shape[0] for part in parts) == whole.shape[0]


def _are_apart(whole: Tensor, parts: tuple[Tensor, ...]) -> bool:
    return torch.allclose(torch.cat(parts), whole, rtol=1e-4, atol=1e-5, equal_nan=True)


def _ddp_original(subject: Subject, rank: int) -> bool:
    backward(DistributedDataParallel(subject.original(), find_unused_parameters=True), _part(subject, rank))
    return True


def _ddp_rank(subject: Subject, rank: int) -> dict[str, Any]:
    model = convert_sync_regbn(_only_regbn_trains(subject.rewritten()))
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    backward(parallel, _part(subject, rank))
    found = {"state": _running_state(model), "gradients": gradients(model)}
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    parallel.train()  # as users do; dropout differs between the ranks, the weights must not
    parallel.zero_grad()
    backward(parallel, _part(subject, rank))
    return {**found, "after": _running_state(model)}


def _running_state(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in regbns(model).items()
        for key, value in module.state_dict().items()
    }


# -- fully_shard ------------------------------------------------------------------------------------------------------


def fully_sharded(subject: Subject) -> None:
    """FSDP2 on two ranks: the loss of an unsharded model, and a step that every rank ends with the same weights."""
    answers = unless_the_original_fails(
        "shard", lambda: _ranks().run(_fsdp_rank, subject.name), lambda: _ranks().run(_fsdp_original, subject.name)
    )
    for rank, answer in enumerate(answers):
        model = _only_regbn_trains(subject.rewritten())
        loss = backward(model, _part(subject, rank))
        assert_same(answer["loss"], loss, rtol=1e-4, atol=1e-6)
        assert_same(answer["state"], _running_state(model), rtol=1e-3, atol=1e-5)
    assert_same(answers[0]["weights"], answers[1]["weights"], 0, 0)


def _sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


def _fsdp_original(subject: Subject, rank: int) -> bool:
    model = _sharded(subject.original().eval())
    backward(model, _part(subject, rank))
    return True


def _fsdp_rank(subject: Subject, rank: int) -> dict[str, Any]:
    model = _sharded(_only_regbn_trains(subject.rewritten()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = backward(model, _part(subject, rank))
    assert_regbn_learned(model)
    state = _running_state_of_shards(model)
    optimizer.step()
    weights = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    return {"loss": loss, "state": state, "weights": weights}


def sharded_by_children(subject: Subject) -> None:
    """As `fully_sharded`, with a group of shards for each child, RegBN among them: torch gives these other classes."""
    answers = _ranks().run(_fsdp_by_children_rank, subject.name)
    for rank, answer in enumerate(answers):
        model = _only_regbn_trains(subject.rewritten())
        assert_same(answer, backward(model, _part(subject, rank)), rtol=1e-4, atol=1e-6)


def _fsdp_by_children_rank(subject: Subject, rank: int) -> Tensor:
    model = _only_regbn_trains(subject.rewritten())
    for child in model.children():
        _sharded(child)
    _sharded(model)
    assert all(type(child).__name__.startswith("FSDP") for child in model.children())
    loss = backward(model, _part(subject, rank))
    assert_regbn_learned(model)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    return loss


def _running_state_of_shards(model: nn.Module) -> dict[str, Tensor]:
    from torch.distributed.tensor import DTensor

    state = _running_state(model)
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


SITUATIONS: dict[str, Callable[[Subject], None]] = {
    "DDP, synchronised": data_parallel,
    "FSDP2": fully_sharded,
}
