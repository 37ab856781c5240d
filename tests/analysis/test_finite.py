"""NaN and infinite values on the example: one note, with the operation from which they come."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBNWarning, diagnose, inspect, plan, regbnify, verify
from regbn_surgery._trace import strange_values

RULES = {"version": 1, "rules": [{"id": "late", "match": {}, "normalize": "x"}]}
LINES = Path(__file__).read_text().splitlines()


def line(comment: str) -> str:
    return f"{__file__}:{next(i for i, text in enumerate(LINES, 1) if text.endswith('# ' + comment))}"


class Fused(nn.Module):
    """What `how` says goes wrong before the fusion, or after it, or nothing does."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.x, self.y, self.head = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(8, 2)
        self.how = how
        if how == "weight":
            nn.init.constant_(self.x.weight, float("nan"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.x(x), self.y(y)
        if self.how == "log":
            x = torch.log(-x.abs() - 1)  # the log
            x = x * 2
        if self.how == "divide":
            x = (x / torch.zeros_like(x)).abs()  # the division
        if self.how == "in place":
            x = x.abs()
            x.neg_().sub_(1).sqrt_()  # the root
        if self.how == "masked":  # a row that is masked out as a whole
            x = x.masked_fill(torch.ones_like(x, dtype=torch.bool), -torch.inf).softmax(1)  # the softmax
        if self.how == "harmless":  # a mask of minus infinity, as an attention has it
            x = x.masked_fill(x > x.amax(1, keepdim=True) - 0.1, -torch.inf).softmax(1)
        if self.how == "training" and self.training:
            x = x - torch.log(torch.zeros_like(x))  # the logarithm of zero
        fused = self.head(torch.cat([x, y], 1))
        if self.how == "late":
            fused = fused.abs().neg().log()  # behind the fusion
        return fused - torch.inf if self.how == "masked logits" else fused


def example(samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 5, generator=generator), torch.randn(samples, 6, generator=generator)


def told(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if note.startswith("RB016")]


@pytest.mark.parametrize(
    ("how", "word", "origin"),
    [
        ("log", "NaN", "`log` at " + line("the log")),
        ("divide", "inf", "`div` at " + line("the division")),
        ("in place", "NaN", "`sqrt` at " + line("the root")),
        ("masked", "NaN", "`softmax` at " + line("the softmax")),
        ("training", "inf", "`log` at " + line("the logarithm of zero")),
        ("weight", "NaN", "Linear `x` at "),
        ("late", "NaN", "`log` at " + line("behind the fusion")),
    ],
)
def test_the_operation_is_named(how: str, word: str, origin: str) -> None:
    (note,) = told(inspect(Fused(how), example()).notes)
    assert f"{word} first appears in {origin}" in note
    assert ("reaches the output" if how == "late" else "reaches the fusion by `cat`") in note
    assert note.count("first appears") == 1
    if how != "training":
        (same,) = told(verify(_rewritten(how), example()).notes)
        assert origin in same
    with pytest.warns(RegBNWarning, match=r"RB016 values are not finite"):
        made = plan(Fused(how), RULES, example(), rehearse=False)
    assert told(made.warnings) == [note]


def _rewritten(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)
        return regbnify(Fused(how), RULES, example())


@pytest.mark.parametrize("how", ["", "harmless", "masked logits"])
def test_what_is_finite_where_it_counts_is_no_note(how: str) -> None:
    assert told(inspect(Fused(how), example()).notes) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        assert told(verify(regbnify(Fused(how), RULES, example()), example()).notes) == []


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "inf")])
@pytest.mark.parametrize("sample", [0, 9])
def test_an_input_that_is_not_finite_is_named_in_whatever_sample(value: float, word: str, sample: int) -> None:
    x, y = example()
    y[sample, 1] = value
    expected = f"RB016 values are not finite: the example's input `y` has {word} values"
    (note,) = told(inspect(Fused(), (x, y)).notes)
    assert note.startswith(expected)
    model = regbnify(Fused(), RULES, example())
    found = verify(model, (x, y))
    assert told(found.notes)[0].startswith(expected)
    assert expected in str(found)
    assert found.to_dict()["notes"] == list(found.notes)
    assert found.ok


def test_the_note_can_be_switched_off() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        assert plan(Fused("log"), {**RULES, "ignore": ["RB016"]}, example(), rehearse=False).warnings == ()


@pytest.mark.parametrize("rules", [None, RULES])
def test_diagnose_goes_on_without_the_samples(rules: dict | None) -> None:
    batches = [example(), example(12)]
    batches[1][0][4, 2] = float("nan")
    found = diagnose(Fused(), batches, rules=rules)
    (row,) = found.rows
    assert row.before.samples == 27 if rules is None else row.before.samples >= 16
    assert any(note.startswith("RB308") and "of 28 (in f" in note for note in found.notes)


def test_values_are_looked_at_where_there_are_any() -> None:
    assert strange_values(torch.tensor([1.0, float("nan"), float("inf")])) == "NaN"
    assert strange_values(torch.tensor([1.0, -float("inf")])) == "inf"
    assert strange_values(torch.full((4,), 6e4, dtype=torch.float16)) == ""  # whose sum alone is too large
    assert strange_values(torch.full((4,), 1e38)) == ""
    for tensor in (
        torch.arange(3), torch.empty(0), torch.empty(3, device="meta"), torch.eye(3).to_sparse(),
        nn.Parameter(torch.zeros(2)), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.bool),
    ):  # fmt: skip
        assert strange_values(tensor) == ""
