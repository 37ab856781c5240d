"""A compiled call in which the two sides do not meet is told of as an eager one is."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBNBypassedError, RegBNWarning, regbnify

from .models import Joined


class WithoutB(Joined):
    """The second input may be left out."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        first = self.enc_a(a)
        second = self.enc_b(b) if b is not None else first.new_zeros(len(first), 4)
        return self.head(torch.cat([first, second], dim=-1))


def rewritten(missing: str) -> tuple[Any, dict[str, Tensor]]:
    torch._dynamo.reset()
    rule = {"id": "late", "match": {"kind": "concat"}, "normalize": "a", "against": "b", "missing": missing}
    example = {"a": torch.randn(8, 6), "b": torch.randn(8, 5)}
    model: nn.Module = regbnify(WithoutB(), {"version": 1, "rules": [rule]}, example).train()
    return model, example


def test_a_warning_comes_once_and_the_call_is_the_original() -> None:
    model, example = rewritten("warn")
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(RegBNWarning, match=r"RB401 .*only f was computed: RegBN `regbn_late` did not run"):
        out = compiled(example["a"])
    zeros = torch.zeros(8, 4)
    torch.testing.assert_close(out, model.head(torch.cat([model.enc_a(example["a"]), zeros], dim=-1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        compiled(example["a"])
        compiled(**example)
    assert int(model.regbn_late.regbn.num_steps) == 1


def test_where_the_rule_wants_an_error_there_is_one() -> None:
    model, example = rewritten("error")
    compiled = torch.compile(model, backend="eager")
    compiled(**example)
    with pytest.raises(RegBNBypassedError, match="missing: error"):
        compiled(example["a"])


def test_what_is_ignored_breaks_no_graph() -> None:
    model, example = rewritten("ignore")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        compiled(example["a"])
