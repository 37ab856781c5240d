"""`verify` from the shell: the example and further calls, in both modes; what it follows is tested with the library."""

from __future__ import annotations

import json

import pytest

MODEL = """
import torch
from torch import nn

class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16, 3)

    def forward(self, first, second):
        return self.mix(torch.cat([first, second], dim=1))

def hand(fusion, first, second):
    return fusion(first, second)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.fusion = nn.Linear(4, 8), nn.Linear(5, 8), Fusion()

    def forward(self, x, y, order="xy"):
        print("noise of the model")
        a, b = self.left(x), self.right(y)
        return hand(self.fusion, a, b) if order == "xy" else hand(self.fusion, b, a) if order == "yx" else a

class Training(Two):
    def forward(self, x, y, order="xy"):
        return super().forward(x, y, order if self.training else "xy")

class Always(Two):
    def forward(self, x, y):
        return super().forward(x, y, "yx" if self.training else "xy")

def always():
    return Always(), {"x": torch.rand(4, 4), "y": torch.rand(4, 5)}

def build():
    return Two(), {"x": torch.rand(4, 4), "y": torch.rand(4, 5)}

def by_mode():
    return Training(), {"x": torch.rand(4, 4), "y": torch.rand(4, 5)}

def call(order, batch=3):
    return {"x": torch.rand(batch, 4), "y": torch.rand(batch, 5), "order": order}

def alike():
    return [(torch.rand(6, 4), torch.rand(6, 5)), call("xy", 2)]

def exchanged():
    return [call("xy"), call("yx")]

def alone():
    return [call("x")]

one = [(torch.rand(1, 4), torch.rand(1, 5))]

def last():
    return [call("xy"), (torch.rand(1, 4), torch.rand(1, 5)), call("yx")]

def endless():
    while True:
        yield call("xy")

def rewritten():
    import regbn_surgery
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "x"}]}
    return regbn_surgery.regbnify(Two(), rules, build()[1])

none = []
unfitting = [{"z": torch.rand(4, 4)}]
nothing = 3
"""
RULES = "version: 1\nrules: [{id: late, match: {kind: concat}, normalize: x}]\n"
RIGHT = "fusion.regbn_late: ran 1 x, f is x, g is y, as the rule says"
EXCHANGED = "fusion.regbn_late: RB202 f and g are exchanged: f y and g x, where the rule says f x and g y"


@pytest.fixture
def verify(run, tmp_path):
    (tmp_path / "verified.py").write_text(MODEL)
    (tmp_path / "late.yaml").write_text(RULES)
    return lambda *options, build="build": run("verify", f"verified.py:{build}", "late.yaml", *options)


def test_the_example_alone(verify):
    result = verify()
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"the example: Two in evaluation:\n  {RIGHT}\n"
    assert "noise of the model" in result.stderr


def test_further_calls_of_other_batches_and_forms(verify):
    result = verify("--data", "verified.py:alike")
    assert result.exit_code == 0, result.stderr
    heads = ("the example", "call 1 of verified.py:alike", "call 2 of verified.py:alike")
    assert result.stdout == "".join(f"{head}: Two in evaluation:\n  {RIGHT}\n" for head in heads)


def test_a_call_in_exchanged_order_is_a_finding(verify):
    result = verify("--data", "verified.py:exchanged")
    assert result.exit_code == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-2:] == ["call 2 of verified.py:exchanged: Two in evaluation:", f"  {EXCHANGED}"]
    assert lines.count(f"  {RIGHT}") == 2
    assert "error" not in result.stderr


def test_a_call_that_cannot_be_checked_hides_no_other(verify):
    result = verify("--data", "verified.py:last")
    assert result.exit_code == 1, result.stderr
    assert "call 2 of verified.py:last: not checked. The inputs have batch size 1" in result.stdout
    assert result.stdout.count(RIGHT) == 2
    assert EXCHANGED in result.stdout
    assert "1 of 4 calls, the example included, could not be checked" in result.stderr
    heads = [line.partition(" of ")[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [head for head in heads if head.startswith("call ")] == ["call 1", "call 2", "call 3"]
    calls = json.loads(verify("--data", "verified.py:last", "--format", "json").stdout)["calls"]
    assert "give at least 2 samples" in next(call for call in calls if call["call"].startswith("call 2"))["not_checked"]


def test_a_model_without_an_example_is_checked_on_the_data_alone(verify, run):
    result = run("verify", "verified.py:rewritten", "--data", "verified.py:alike")
    assert result.exit_code == 0, result.stderr
    assert "the example" not in result.stdout + result.stderr
    assert result.stdout.count(RIGHT) == 2
    none = run("verify", "verified.py:rewritten", "--data", "verified.py:none")
    assert none.exit_code == 2
    assert "--data verified.py:none gave no call, and there are no example inputs" in " ".join(none.stderr.split())


def test_a_call_that_cannot_be_checked_is_no_success(verify):
    result = verify("--data", "verified.py:one")
    assert result.exit_code == 1, result.stdout
    assert "1 of 2 calls, the example included, could not be checked" in result.stderr


def test_a_call_in_which_the_streams_do_not_meet_is_a_finding(verify):
    result = verify("--data", "verified.py:alone")
    assert result.exit_code == 1, result.stderr
    assert "fusion.regbn_late: RB201 did not run: f x and g y do not meet in this call" in result.stdout


@pytest.mark.usefixtures("verify")
def test_where_the_rule_allows_that_it_is_none(run, tmp_path):
    (tmp_path / "allowing.yaml").write_text(RULES.replace("normalize: x", "normalize: x, missing: ignore"))
    result = run("verify", "verified.py:build", "allowing.yaml", "--data", "verified.py:alone")
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "did not run: f x and g y do not meet in this call (`missing: ignore`)" in result.stdout


def test_what_is_found_in_training_alone(verify):
    result = verify("--data", "verified.py:exchanged", build="by_mode")
    assert result.exit_code == 0, result.stderr
    assert "Training in evaluation:" in result.stdout
    result = verify("--data", "verified.py:exchanged", "--train", build="by_mode")
    assert result.exit_code == 1, result.stderr
    assert result.stdout.endswith(f"call 2 of verified.py:exchanged: Training in training:\n  {EXCHANGED}\n")


def test_what_the_example_shows_in_training_is_refused_before_that(verify):
    result = verify(build="always")
    assert result.exit_code == 2
    assert "f and g are exchanged: f y and g x, where the rule says f x and g y" in " ".join(result.stderr.split())


def test_json(verify, tmp_path):
    result = verify("--data", "verified.py:exchanged", "--train", "--format", "json", "-o", "found.json")
    assert (result.exit_code, result.stdout) == (1, "")
    calls = json.loads((tmp_path / "found.json").read_text())["calls"]
    assert [(call["call"], call["training"], call["ok"]) for call in calls] == [
        ("the example", True, True),
        ("call 1 of verified.py:exchanged", True, True),
        ("call 2 of verified.py:exchanged", True, False),
    ]
    (site,) = calls[2]["sites"]
    assert site["problem"] == EXCHANGED.removeprefix("fusion.regbn_late: ")
    assert (site["name"], site["rule"], site["runs"]) == ("fusion.regbn_late", "late", 1)
    assert site["wanted"] == {"f": ["x"], "g": ["y"]}
    assert site["carried"] == [{"f": ["y"], "g": ["x"]}]
    assert calls[0]["sites"][0]["carried"] == [{"f": ["x"], "g": ["y"]}]


@pytest.mark.parametrize(("options", "taken"), [((), 8), (("--calls", "2"), 2)])
def test_so_many_calls_are_taken(verify, options, taken):
    result = verify("--data", "verified.py:endless", "--format", "json", *options)
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["calls"]) == 1 + taken


@pytest.mark.parametrize(
    ("data", "says"),
    [("nothing", "cannot be iterated"), ("unfitting", "does not fit Two.forward"), ("missing", "missing")],
)
def test_data_that_cannot_be_used(verify, data, says):
    result = verify("--data", f"verified.py:{data}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_rule_that_matches_nothing_is_a_finding(verify, tmp_path):
    (tmp_path / "late.yaml").write_text(RULES.replace("concat", "scatter"))
    result = verify()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "late.yaml:2:34: rule `late` matches no fusion point" in result.stderr


def test_rules_that_ask_for_nothing(verify, tmp_path):
    (tmp_path / "late.yaml").write_text(RULES.replace("normalize: x", "action: skip"))
    result = verify()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing to verify" in result.stderr


def test_a_typo_is_told_before_the_model_is_loaded(run, tmp_path):
    (tmp_path / "late.yaml").write_text(RULES.replace("kind", "knd"))
    result = run("verify", "nowhere.py:build", "late.yaml")
    assert result.exit_code == 2
    assert "did you mean `kind`?" in result.stderr
    assert "nowhere" not in result.stderr


def test_a_finding_that_is_switched_off_is_none(verify):
    result = verify("--data", "verified.py:exchanged", "--ignore", "RB202")
    assert result.exit_code == 0, result.stderr
    assert "exchanged:" not in result.stdout.replace("verified.py:exchanged:", "")
    assert verify("--data", "verified.py:alone", "--ignore", "RB202").exit_code == 1
