"""The public functions: what they accept, what they refuse, and that looking changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import (
    CaptureError,
    Inputs,
    InputsError,
    NothingMatchedError,
    PlanError,
    RegBNError,
    Rules,
    RulesError,
    inspect,
    plan,
    regbnify,
)

from .surgery.models import Late, Nested, build, everything, rules, run, site_of, vectors


def test_looking_and_planning_change_nothing() -> None:
    for training in (False, True):
        model = build(Late).train(training)
        example = vectors()
        before, numbers = everything(model), torch.get_rng_state()
        inspect(model, example)
        plan(model, rules(), example)
        assert everything(model) == before
        assert torch.equal(torch.get_rng_state(), numbers)
        assert all(torch.equal(example[name], vectors()[name]) for name in example)
        assert torch.is_grad_enabled()


def test_rules_may_be_a_path_a_string_a_dict_or_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps(rules()))  # JSON is YAML
    plans = [plan(build(Late), given, vectors()) for given in (file, str(file), rules(), Rules.load(rules()))]
    for made in plans:
        assert [(site.name, site.f.channels, site.g.channels) for site in made.sites] == [("regbn_x", 8, 4)]
        assert [(d.point, d.action, d.rule) for d in made.decisions] == [("cat", "normalize", "x")]


def test_the_example_may_come_from_the_rules_or_the_model() -> None:
    section = {"inputs": {"a": {"shape": [4, 6]}, "b": {"shape": [4, 5]}}}
    assert site_of(regbnify(build(Late), {**rules(), **section}))
    model = build(Late)
    model.dummy_inputs = vectors()
    assert [point.id for point in inspect(model).fusion_points] == ["cat"]
    with pytest.raises(InputsError, match="No example inputs for Late"):
        regbnify(build(Late), rules())


@pytest.mark.parametrize(
    "example",
    [vectors(), tuple(vectors().values()), Inputs(vectors()["a"], b=vectors()["b"]), lambda batch: vectors(batch)],
)
def test_every_form_of_example_gives_the_same_operation(example: Any) -> None:
    model = regbnify(build(Late), rules(), example)
    expected = regbnify(build(Late), rules(), vectors())
    torch.testing.assert_close(run(model, vectors(5), True), run(expected, vectors(5), True))


def test_what_the_rules_call_modalities_is_what_counts() -> None:
    swapped = {**rules(normalize="left", against="right"), "modalities": {"left": ["b"], "right": ["a"]}}
    (site,) = plan(build(Late), swapped, vectors()).sites
    assert (site.f.channels, site.g.channels) == (4, 8)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({**rules(), "colour": 1}, RulesError, "colour"),
        (rules(kind="attention"), NothingMatchedError, "x"),
        ({**rules(), "modalities": {"a": ["a"], "b": ["c"]}}, RegBNError, "c"),
        ("no/such/file.yaml", RulesError, "no/such/file.yaml"),
    ],
)
def test_bad_rules_are_one_error_and_the_model_is_untouched(given: Any, error: type[Exception], words: str) -> None:
    model = build(Late)
    before = everything(model)
    with pytest.raises(error, match=words):
        regbnify(model, given, vectors(), inplace=True)
    assert everything(model) == before


def test_a_model_that_is_none_is_refused() -> None:
    for function in (lambda: inspect(print, vectors()), lambda: inspect(Late, vectors())):
        with pytest.raises(RegBNError, match=r"model must be an nn\.Module; found builtins"):
            function()


def test_a_model_that_does_not_run_is_told_with_the_cause() -> None:
    with pytest.raises(CaptureError, match=r"Late could not be run in \w+ mode on .*RuntimeError") as caught:
        inspect(build(Late), {"a": torch.zeros(4, 7), "b": torch.zeros(4, 5)})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_batch_of_one_is_refused_everywhere() -> None:
    for function in (inspect, lambda model, example: regbnify(model, rules(), example, inplace=True)):
        model = build(Late)
        before = everything(model)
        with pytest.raises(InputsError, match="batch size 1"):
            function(model, vectors(1))
        assert everything(model) == before


def test_rules_that_only_skip_give_the_model_back_unchanged() -> None:
    skip = {"version": 1, "rules": [{"id": "x", "match": {"kind": "concat"}, "action": "skip"}]}
    model = build(Nested)
    result = regbnify(model, skip, vectors())
    assert result is not model
    assert result.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(run(result, vectors(), False), run(model, vectors(), False), rtol=0, atol=0)


def test_errors_are_of_one_family_and_say_their_exit_code() -> None:
    for name in regbn_surgery.__all__:
        found = getattr(regbn_surgery, name)
        if isinstance(found, type) and issubclass(found, Exception) and name != "RegBNWarning":
            assert issubclass(found, RegBNError)
    assert (NothingMatchedError.exit_code, PlanError.exit_code, InputsError.exit_code) == (1, 2, 2)


def test_frozen_and_shared_parameters_survive() -> None:
    model = build(Late)
    model.enc_a.weight.requires_grad_(False)
    model.tied = nn.Linear(6, 8)
    model.tied.weight = model.enc_a.weight
    result = regbnify(model, rules(), vectors())
    assert not result.enc_a.weight.requires_grad
    assert result.tied.weight is result.enc_a.weight


def test_inspecting_imports_neither_the_compiler_nor_what_only_fakes_need() -> None:
    """They take longer to import than most models take to inspect."""
    code = (
        "import sys, torch; before = set(sys.modules); import regbn_surgery; regbn_surgery.inspect; "
        "print([name for name in ('torch._dynamo', 'sympy') if name in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"
