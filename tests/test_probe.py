"""Dependence at fusion points on batches whose dependence is known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from regbn_surgery import Inputs, InputsError
from regbn_surgery._diagnosis import Dependence
from regbn_surgery._given_batches import call_of
from regbn_surgery._probe import Diagnosis, Measured, diagnose
from regbn_surgery._report.dependence import dependence_plot, dependence_to_dict, dependence_view
from regbn_surgery._report.text import plain
from regbn_surgery._rules import Rules


class Two(nn.Module):
    """Passes x and y on as they are to where they meet; dropout and batch statistics must stay out of the measure."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.noise, self.norm = nn.Dropout(0.9), nn.BatchNorm1d(8)
        for layer in (self.left, self.right):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, y, scale=1.0):
        return self.norm(torch.cat([self.noise(self.left(x)), self.right(y)], dim=1)) * scale


def batches(share: float, count: int = 12, size: int = 32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        y = torch.randn(size, 4, generator=generator)
        yield share * y + (1 - share) * torch.randn(size, 4, generator=generator), y


RULES = Rules.from_dict({"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "x"}]})


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, -0.1, 0.05), (0.5, 0.4, 0.6), (1.0, 0.99, 1.0)])
def test_figures_are_those_of_the_data(share, low, high):
    found = diagnose(Two(), batches(share), 12)
    (row,) = found.rows
    assert (row.site, row.f, row.g, row.after) == ("cat", ("x",), ("y",), None)
    assert row.before.samples == 12 * 32
    assert low <= row.before.explained_variance <= high


def test_regbn_removes_what_there_is():
    # f = y / 2 + noise: the projection that takes y out has about the Frobenius norm 1 that RegBN holds it to.
    found = diagnose(Two(), batches(0.5), 12, RULES)
    (row,) = found.rows
    assert row.site == "regbn_late"
    assert row.before.explained_variance > 0.4
    assert row.after.explained_variance < row.before.explained_variance / 2
    assert row.after.linear_cka < row.before.linear_cka / 2


def offset_batches(count: int = 12):
    """x and y independent, y around a mean as after a ReLU: nothing to remove."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield 1 + 0.1 * torch.randn(32, 4, generator=generator), torch.randn(32, 4, generator=generator).add(1).relu()


def test_a_rise_is_told_first_with_the_option_that_cures_it():
    rules = RULES.to_dict()
    rules["rules"][0]["regbn"] = {"normalize_output": False}
    found = diagnose(Two(), offset_batches(), 12, Rules.from_dict(rules))
    (alarm,) = found.alarms
    assert "after RegBN g explains more of f than before" in alarm
    assert "`regbn: {centre: true}` subtracts the means first" in alarm
    text = plain(dependence_view(found))
    assert text.index("after RegBN g explains") < text.index("explained variance")
    rules["rules"][0]["regbn"]["centre"] = True
    cured = diagnose(Two(), offset_batches(), 12, Rules.from_dict(rules))
    assert cured.alarms == ()
    assert cured.rows[0].after.explained_variance < 0.05
    assert "share no direction that shows in 384 samples: nothing to remove" in cured.notes[0]


@pytest.mark.parametrize(
    ("constraint", "says", "left"), [("smoother", "takes about one in all", 1), ("gcv", "as many", 0)]
)
def test_what_the_constraint_can_do_is_told(constraint, says, left):
    rules = RULES.to_dict()
    rules["rules"][0]["regbn"] = {"constraint": constraint, "centre": True, "normalize_output": False}
    found = diagnose(Two(), batches(0.5), 12, Rules.from_dict(rules))
    (row,) = found.rows
    assert row.before.shared_directions == 4
    assert (row.after.shared_directions > 0) == bool(left)
    assert any("4 shared directions" in note and says in note for note in found.notes)
    assert 0.3 < row.running_to_batch < 1.5


def test_announced_steps_are_taken_and_judged():
    few = diagnose(Two(), batches(0.5), 12, RULES, steps=10)
    assert any("after 10 steps the running projection" in note for note in few.notes)
    assert few.rows[0].running_to_batch < 0.4
    many = diagnose(Two(), batches(0.5), 12, RULES)
    assert many.rows[0].running_to_batch > few.rows[0].running_to_batch
    assert many.rows[0].after.explained_variance < few.rows[0].after.explained_variance


def test_the_model_is_left_as_it_was():
    model = Two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagnose(model, batches(0.5), 3, RULES)
    assert model.training
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {k: v.tolist() for k, v in before.items()}


def test_no_more_batches_are_taken_than_asked_for():
    taken = []

    def data():
        for batch in batches(0.5):
            taken.append(1)
            yield batch

    assert diagnose(Two(), data(), 3).batches == len(taken) == 3


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x, y: (x, y), 2),
        (lambda x, y: [x, y], 2),
        (lambda x, y: ((x, y), torch.zeros(2)), 2),
        (lambda x, y: ({"x": x, "y": y}, torch.zeros(2)), 2),
        (lambda x, y: {"x": x, "y": y}, 2),
        (lambda x, y: (x, y, 1.0, torch.zeros(2)), 3),
        (lambda x, y: Inputs(x, y=y), 2),
    ],
)
def test_batches_of_each_form(make, names):
    x, y = torch.rand(2, 4), torch.rand(2, 4)
    call = call_of(Two(), make(x, y))
    assert len(call.args) + len(call.kwargs) == names
    assert Two()(*call.args, **call.kwargs).shape == (2, 8)


@pytest.mark.parametrize(
    ("data", "says"),
    [([], "the data gave no batch;"), ([{"z": torch.rand(8, 4)}], "does not fit Two.forward"),
     (list(batches(0.5, 1, 4)), "8 are needed")],
)  # fmt: skip
def test_data_that_cannot_be_used(data, says):
    with pytest.raises(InputsError, match=says):
        diagnose(Two(), data, 8)


def test_an_error_of_the_users_own_data_or_example_is_told_as_theirs():
    def broken():
        yield from batches(0.5, 2)
        raise OSError("disk")

    with pytest.raises(InputsError, match=r"reading batch 3 of the data failed: OSError: disk \(.*test_probe.py:\d+\)"):
        diagnose(Two(), broken(), 8)

    def example(size):
        raise KeyError(size)

    with pytest.raises(InputsError, match=r"example`, which .* called with 2, failed: KeyError: 2 \(.*test_probe.py:"):
        diagnose(Two(), batches(0.5, 2), 8, example=example)


def sized(*sizes: int):
    """Batches of dependent x and y, of these sizes."""
    return [batch for size in sizes for batch in batches(0.5, 1, size)]


@pytest.mark.parametrize("sizes", [(16, 1), (1, 16), (1, 16, 1, 16), (16, 1, 0)])
@pytest.mark.parametrize("rules", [None, RULES])
@pytest.mark.parametrize("steps", [None, 40])
def test_a_batch_of_one_sample_is_measured_and_left_out_of_the_fit(sizes, rules, steps):
    found = diagnose(Two(), sized(*sizes), 8, rules, steps=steps)
    (row,) = found.rows
    assert row.before.samples == sum(sizes)
    assert (row.after is None) == (rules is None)
    told = [note for note in found.notes if note.startswith("RB307")]
    assert bool(told) == (rules is not None)
    if rules is not None:
        ones = sum(size == 1 for size in sizes)
        assert f"({ones} of {len(sizes) - sizes.count(0)})" in told[0]
        alone = diagnose(Two(), sized(*(size for size in sizes if size > 1)), 8, rules, steps=steps)
        assert row.running_to_batch == pytest.approx(alone.rows[0].running_to_batch, abs=1e-4)


def test_single_samples_are_measured_beside_an_example_of_several():
    ones = [(x[i : i + 1], y[i : i + 1]) for x, y in batches(0.5, 1, 24) for i in range(24)]
    for rules in (None, RULES):
        found = diagnose(Two(), ones, 24, rules, example=sized(4)[0])
        (row,) = found.rows
        assert row.before.samples == 24
        assert row.before.explained_variance > 0.2
        assert (row.after, row.running_to_batch) == (None, None)
        assert any("not measured after RegBN" in note for note in found.notes) == (rules is not None)
        assert plain(dependence_view(found))
        assert json.loads(json.dumps(dependence_to_dict(found)))["sites"][0]["after"] is None


@pytest.mark.parametrize("rules", [None, RULES])
def test_data_of_single_samples_alone_say_how_many_are_needed(rules):
    with pytest.raises(InputsError, match=r"more than one sample \(9 batches seen\).* at least 2 samples, 8 in all"):
        diagnose(Two(), sized(*[1] * 9), 9, rules)
    with pytest.raises(InputsError, match="all 2 batches of the data are empty; 8 samples are needed"):
        diagnose(Two(), sized(0, 0), 9, rules)


@pytest.fixture(scope="module")
def found():
    return diagnose(Two(), batches(0.8), 12, RULES)


GOLDEN = """\
Two: how well g predicts f, on 384 samples in 12 batches
0 = independent, 1 = f is g

fusion.regbn_late
f x
g y
  explained variance before     0.500 ██████████
  explained variance after     -0.012
  linear CKA before             1.000 ████████████████████
  linear CKA after              0.000
  distance correlation before   0.250 █████
  distance correlation after    0.125 ██▌
  shared directions before          3
  shared directions after           0
  running / batch subtraction   0.750

model.text_encoder.encoder.layer.11.crossattention.self.regbn_cross_of_the_last_
layer_alone
f input_ids+token_type_ids+position_ids+decoder_input_ids+visual_prompts
g y
  explained variance            0.500 ██████████
  linear CKA                    1.000 ████████████████████
  distance correlation          0.250 █████
  shared directions                 3"""


class TestReports:
    def test_table(self, found):
        text = plain(dependence_view(found))
        assert "on 384 samples in 12 batches" in text
        assert "linear CKA before" in text
        assert "██████" in text
        assert max(map(len, text.splitlines())) <= 80

    def test_each_figure_stands_beside_its_label_at_80_columns(self):
        before, after = Dependence(0.5, 1.0, 0.25, 384, 3), Dependence(-0.012, 0.0, 0.125, 384, 0)
        long = "model.text_encoder.encoder.layer.11.crossattention.self.regbn_cross_of_the_last_layer_alone"
        streams = ("input_ids", "token_type_ids", "position_ids", "decoder_input_ids", "visual_prompts")
        made = Diagnosis("Two", 12, (Measured("fusion.regbn_late", None, ("x",), ("y",), before, after, 0.75),
                                     Measured(long, None, streams, ("y",), before, None)))  # fmt: skip
        assert str(made) == GOLDEN
        assert all(len(line) <= 80 for line in GOLDEN.splitlines())

    @pytest.mark.parametrize("width", [40, 60, 96, 200])
    def test_no_line_breaks_at_other_widths(self, found, width):
        lines = plain(dependence_view(found, width), width).splitlines()
        assert max(map(len, lines)) <= width
        for label, value in (("linear CKA before", found.rows[0].before.linear_cka),
                             ("distance correlation after", found.rows[0].after.distance_correlation)):  # fmt: skip
            (line,) = [line for line in lines if label in line]
            assert f"{value:.3f}" in line
        assert [line.split()[2] for line in lines if line.startswith("  shared directions")] == ["before", "after"]

    def test_json(self, found):
        made = dependence_to_dict(found)
        assert json.loads(json.dumps(made)) == made
        (site,) = made["sites"]
        assert site["samples"] == 384
        assert site["before"]["linear_cka"] == found.rows[0].before.linear_cka
        assert site["after"]["explained_variance"] == found.rows[0].after.explained_variance

    def test_plot(self, found):
        pytest.importorskip("matplotlib")
        assert dependence_plot(found, "png").startswith(b"\x89PNG")
        assert b"<svg" in dependence_plot(found, "svg")
