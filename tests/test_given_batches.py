"""How flat batches are passed: never by a silent guess."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, InputsError, RegBNWarning, diagnose, regbnify, update_regbn
from regbn_surgery._given_batches import calls_of


class Optional(nn.Module):
    """The fourth parameter is one that a label would fit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(5, 3), nn.Linear(6, 2)

    def forward(self, scan: Tensor, table: Tensor, present: Any = None) -> Tensor:
        return self.head(torch.cat([self.a(scan), self.b(table)], 1))


class Strict(Optional):
    def forward(self, scan: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(scan, table)


class Open(Optional):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(*inputs[:2])


SCAN, TABLE, LABEL = torch.randn(16, 4), torch.randn(16, 5), torch.zeros(16)


@pytest.mark.parametrize(
    ("model", "batch", "passed", "told"),
    [
        (Optional(), [SCAN, TABLE, LABEL], 3,
         "a batch of 3 items was passed as `scan`, `table` and `present`: `present` is optional and got the last item. "
         "If that is the target, give ((scan, table), target) or a dict of the arguments by name"),
        (Optional(), (SCAN, TABLE, LABEL, LABEL), 3,
         "a batch of 4 items was passed as `scan`, `table` and `present`; the last item was taken for the target and "
         "left out"),
        (Strict(), (SCAN, TABLE, LABEL), 2,
         "a batch of 3 items was passed as `scan` and `table`; the last item was taken for the target and left out"),
        (Strict(), {"scan": SCAN, "table": TABLE, "age": LABEL, "site": LABEL}, 2,
         "`age` and `site` of a batch left out: Strict.forward has no such parameter"),
    ],
)  # fmt: skip
def test_what_is_guessed_is_told_once(model: nn.Module, batch: Any, passed: int, told: str) -> None:
    with pytest.warns(RegBNWarning) as caught:
        calls = list(calls_of(model, [batch, batch]))
    assert [len(call.args) + len(call.kwargs) for call in calls] == [passed, passed]
    assert [str(warning.message) for warning in caught] == [f"RB417 {told}"]


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Optional(), (SCAN, TABLE)),
        (Optional(), ((SCAN, TABLE), LABEL)),
        (Optional(), [[SCAN, TABLE, LABEL], LABEL]),
        (Optional(), {"scan": SCAN, "table": TABLE, "present": LABEL}),
        (Optional(), Inputs(SCAN, TABLE, LABEL)),
        (Open(), (SCAN, TABLE, LABEL)),
    ],
)
def test_what_is_not_guessed_is_not_told(model: nn.Module, batch: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        assert len(list(calls_of(model, [batch]))) == 1


class OneDict(Optional):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["scan"], batch["table"])


@pytest.mark.filterwarnings("error::regbn_surgery.RegBNWarning")
@pytest.mark.parametrize("with_target", [False, True])
def test_a_dict_is_the_one_argument_of_a_model_that_takes_one(with_target: bool) -> None:
    batch = {"scan": SCAN, "table": TABLE, "label": LABEL}
    given: Any = (batch, LABEL) if with_target else batch
    (call,) = calls_of(OneDict(), [given])
    assert call.args == (batch,)
    assert not call.kwargs
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "batch.scan"}]}
    model = regbnify(OneDict(), rules, (batch,))
    assert update_regbn(model, [given, given]) == {"regbn_late": 2}


def test_a_dict_that_does_not_run_says_how_it_was_passed() -> None:
    batches = [{"scan": SCAN, "table": TABLE}, {"scan": SCAN, "other": TABLE}]
    with pytest.raises(InputsError, match=r"batch 2 of the data, .* \(a dict, passed as `batch`\)"):
        diagnose(OneDict(), batches)
    with pytest.raises(InputsError, match="it has no parameter `batsh`; did you mean `batch`"):
        list(calls_of(OneDict(), [{"batsh": SCAN}]))


def test_functions_that_take_batches_tell_it() -> None:
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "scan"}]}
    flat = [[SCAN, TABLE, LABEL]] * 2
    with pytest.warns(RegBNWarning, match="RB417 a batch of 3 items was passed as"):
        diagnose(Optional(), flat, 2, example=(SCAN, TABLE))
    model = regbnify(Optional(), rules, (SCAN, TABLE))
    with pytest.warns(RegBNWarning, match="RB417 a batch of 3 items was passed as") as caught:
        update_regbn(model, flat)
    assert [warning.filename for warning in caught] == [__file__]  # the user's line, and not one of the package


@pytest.mark.parametrize("batch", [{"scan": SCAN, "tabel": TABLE}, {"scan": SCAN, "table": TABLE, "presnt": LABEL}])
def test_a_misspelt_name_is_not_left_out(batch: dict[str, Tensor]) -> None:
    with pytest.raises(InputsError, match=r"has no parameter `(tabel|presnt)`"):
        list(calls_of(Optional(), [batch]))
