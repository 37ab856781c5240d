"""The running projection formed again from a pass over the data, once nothing else of the model moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import _tree
from ._adapter_copies import regbns_in
from ._codes import coded
from ._errors import InputsError
from ._given_batches import filled_calls, run_on
from ._inputs import Inputs
from ._misfits import refusing_strange_names
from ._report.words import count_text
from ._spelling import listing
from ._statistics import short_names
from ._undo import forget, guarding, later, undone
from ._user_code import warn_at_call
from ._wrappers import inside_wrappers
from .nn import RegBN


@refusing_strange_names
@guarding
def update_regbn(
    model: nn.Module, loader: Iterable[Any], *, count: int | None = None, device: torch.device | str | None = None
) -> dict[str, int]:
    """Form the running projection of every RegBN in `model` again, as the plain average over the batches of `loader`.

    The counterpart of `torch.optim.swa_utils.update_bn`. In training the running projection follows branches that
    still learn, and lags behind them, so that evaluation may remove little. Call this after training, or before an
    evaluation in between, with the training data in batches as in training.

    One pass: the model runs in evaluation mode, without gradient; each RegBN fits every batch and returns what it
    returns in training, so that a later RegBN is fitted on the f' of an earlier one by the batch's own projection, as
    in training. The projection (and with `centre` the mean of g; with `normalize_input` the statistics of maps) starts
    afresh. A low-rank projection is cut to its rank at each batch. Nothing else changes: neither weights nor output
    norms, statistics of BatchNorm, counters and moments of RegBN, nor any mode; training may go on from there. A RegBN
    that is frozen is formed again as well, and stays frozen. If anything fails, or on an interrupt, each projection is
    what it was.

    Works on any module with RegBN inside: rewritten, loaded, with RegBN by hand, in DDP (call it on every rank), with
    adapters (the active copy is formed again).

    Args:
        model: the model. Other code must not train it meanwhile.
        loader: batches as for `diagnose`: a tensor or tuple (positional arguments), a dict (keyword arguments), or
            `Inputs`; or pairs of one of these and a target, which is left out. Warning RB417 says how the items of a
            flat batch were passed, where there are more than `forward` requires.
        count: how many batches to take; None takes all.
        device: where the tensors of a batch go before the model gets them; None leaves them where they are.

    Returns:
        By the name of each RegBN, as `statistics` has it, the number of batches that its projection is the average of.
        A batch that is not finite, or in which RegBN sees fewer than two rows with both sides, does not count. A RegBN
        without any stays as it was, with warning RB416. Empty, with warning RB419, for a model without RegBN.

    Raises:
        InputsError: for data that gives no batch, batches that do not fit the model, or none that any RegBN can be
            fitted on.
    """
    found = regbns_in(model)
    if not found:
        text = (
            f"{type(model).__name__} has no RegBN: there is no running projection to form again, and nothing was done."
        )
        warn_at_call(coded("RB419", text))
        return {}
    was_training = [(module, module.training) for module in model.modules()]
    before = [_State(regbn) for regbn in found.values()]
    modes = later(lambda: _set_modes(was_training))
    states = later(lambda: _restore(before))
    try:
        model.eval()
        for state in before:
            state.start()
        ran = _pass(model, loader, count, device)
        names = short_names(model, found)
        counts = {names[path]: int(state.count) for path, state in zip(found, before, strict=True)}
        _look_at(counts, ran)
        for state in before:
            state.keep()
        forget(states)
    finally:
        undone(modes)  # and the states, which come after, where they are still on the list
    return counts


def _restore(states: list[_State]) -> None:
    for state in states:
        state.restore()


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


class _State:
    """What the pass changes of one RegBN, and how it is put back."""

    def __init__(self, regbn: RegBN) -> None:
        self.regbn = regbn
        self.count = regbn.change_mean.new_zeros(())
        norms = (regbn.norm_f, regbn.norm_g) if regbn.options.normalize_input else ()
        moments = [buffer for norm in norms for name, buffer in norm.named_buffers() if name.startswith("running_")]
        mean = [regbn.mean_g] if regbn.options.centre else []
        self.buffers: list[Tensor] = [*regbn.factors, *mean, *moments]
        self.values = [buffer.detach().clone() for buffer in self.buffers]

    @torch.no_grad()
    def start(self) -> None:
        self.regbn._readers.before_writing()
        for buffer in self.buffers:
            buffer.zero_()  # the first batch is taken whole: nothing of what stood there may stay, were it NaN
        self.regbn.averaged = self.count

    @torch.no_grad()
    def keep(self) -> None:
        """Let the average stand; without a batch, what was there before."""
        if self.count == 0:
            self.restore()
            return
        self.regbn.averaged = None
        if self.regbn.options.correct_start:
            self.regbn.zero_weight.zero_()  # nothing of the start at zero is left in W

    @torch.no_grad()
    def restore(self) -> None:
        self.regbn.averaged = None
        self.regbn._readers.before_writing()
        for buffer, value in zip(self.buffers, self.values, strict=True):
            buffer.copy_(value)


@torch.no_grad()
def _pass(model: nn.Module, loader: Iterable[Any], count: int | None, device: torch.device | str | None) -> int:
    """Run the model on the batches. The number of them."""
    number = 0
    for call, _ in filled_calls(inside_wrappers(model), itertools.islice(loader, count)):
        if device is not None:
            args, kwargs = _tree.rebuild((call.args, call.kwargs), lambda _, leaf: _moved(leaf, device))
            call = Inputs(*args, **kwargs)
        number += 1
        run_on(model, call, number)
    return number


def _moved(leaf: Any, device: torch.device | str) -> Any:
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _look_at(counts: dict[str, int], ran: int) -> None:
    """Say which RegBN no batch could be fitted on. Raises InputsError where there is no other one."""
    without = [path or "the RegBN" for path, number in counts.items() if not number]
    if not without:
        return
    why = "none was finite and had two or more samples with both sides, or its host does not run in evaluation mode"
    text = f"{listing(without)} could not be fitted on any of {count_text(ran, 'batch', 'batches')}: {why}"
    if len(without) == len(counts):
        raise InputsError(f"update_regbn changed nothing: {text}.")
    warn_at_call(coded("RB416", f"{text}. Its running projection stays as it was"))
