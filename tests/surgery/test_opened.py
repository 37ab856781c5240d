"""Modules that a host's graph looks into: what somebody else put on them, and what of theirs is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RewriteError

from .models import build, counting, run


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        hidden = self.first(x)
        return self.third(self.second(hidden)), hidden.shape[0]


class Towers(nn.Module):
    """The second tower is given as many samples as the first one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Tower(), Tower()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, count = self.one(a)
        y, _ = self.two(b[:count])
        return x * y


INPUTS = {"a": torch.randn(4, 6), "b": torch.randn(4, 6)}
ACROSS: dict[str, Any] = {"id": "x", "pair": {"f": "module:one.first", "g": "module:two.first"}}


def operate(*given: dict[str, Any]) -> Any:
    return regbn_surgery.regbnify(build(Towers), {"version": 1, "rules": list(given)}, INPUTS)


def test_who_reads_the_sizes_of_a_side_alone_need_not_wait() -> None:
    rewritten = operate(ACROSS)
    with counting(rewritten) as calls:
        run(rewritten, INPUTS, training=True)
    assert dict(calls) == {"regbn_x": 1}


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_a_hook_of_any_kind_on_an_opened_module_is_an_error(register: str) -> None:
    rewritten = operate(ACROSS)
    handle = getattr(rewritten.two, register)(lambda *_: None)
    with pytest.raises(RewriteError, match=r"Tower at `two` of Towers has hooks"):
        run(rewritten, INPUTS, training=True)
    handle.remove()
    run(rewritten, INPUTS, training=True)


def test_an_opened_module_that_is_a_host_itself_is_refused() -> None:
    within = {"id": "y", "pair": {"f": "module:one.second", "g": "module:one.first"}, "replace": "f"}
    with pytest.raises(RewriteError, match=r"Tower at `one` of Towers has a RegBN of its own"):
        operate(ACROSS, within)
