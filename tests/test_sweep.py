"""A sweep pairs its runs, goes on where it was stopped, and says what cannot be compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from regbn_surgery import NothingMatchedError, RegBN, SweepError, sweep, update_regbn
from regbn_surgery._rules import Rules
from regbn_surgery.nn import NormsOnly

LATE = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat((self.a(a), self.b(b)), 1))


def make() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    return TwoBranches(), (torch.randn(4, 3), torch.randn(4, 2))


def inside(model: nn.Module) -> str:
    """Which kind of module the surgery has put in."""
    kinds = {type(module) for module in model.modules()}
    return "RegBN" if RegBN in kinds else "norms" if NormsOnly in kinds else "nothing"


def test_every_variant_with_every_seed(tmp_path: Path) -> None:
    seen = []

    def train(model: nn.Module, seed: int) -> dict[str, float]:
        seen.append((seed, inside(model), model.head.weight.sum().item(), float(torch.rand(()))))
        return {"accuracy": seed + {"RegBN": 0.3, "norms": 0.1, "nothing": 0.0}[inside(model)], "loss": 1.0}

    before = torch.get_rng_state()
    found = sweep(make, rules=[LATE], train=train, seeds=(4, 7), out=tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert [(seed, kind) for seed, kind, *_ in seen] == [(s, k) for s in (4, 7) for k in ("nothing", "RegBN", "norms")]
    for seed in (4, 7):  # equal weights and equal random numbers for all variants of a seed
        assert len({rest for s, _, *numbers in seen if s == seed for rest in [tuple(numbers)]}) == 1
    assert found.variants == ("none", "late", "late norms only")
    assert found.differences("late", "none", "accuracy") == pytest.approx((0.3, 0.3))
    table = (tmp_path / "sweep.md").read_text()
    assert str(found) == table
    assert "| late | 6 ± 19 | +0.3" in table
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + 3 * 2 * 2


def test_one_train_function_ends_with_update_regbn_for_all_variants(tmp_path: Path) -> None:
    formed = []

    def train(model: nn.Module, seed: int) -> float:
        formed.append((inside(model), update_regbn(model, [(torch.randn(9, 3), torch.randn(9, 2))])))
        return 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep(make, rules=[LATE], train=train, seeds=(0,), out=tmp_path)
    assert formed == [("nothing", {}), ("RegBN", {"regbn_late": 1}), ("norms", {})]


def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    calls = []

    def train(model: nn.Module, seed: int) -> float:
        calls.append((seed, inside(model)))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        sweep(make, rules=[LATE], train=train, out=tmp_path)
    with pytest.raises(SweepError, match="resume"):
        sweep(make, rules=[LATE], train=train, out=tmp_path)
    found = sweep(make, rules=[LATE], train=train, out=tmp_path, resume=True)
    assert len(calls) == 3 * 3 + 1  # the third run twice, and none else
    assert len(found.results) == 9

    other = {**LATE, "rules": [{**LATE["rules"][0], "normalize": "b", "against": "a"}]}
    with pytest.raises(SweepError, match="other rules"):
        sweep(make, rules=[other], train=train, out=tmp_path, resume=True)
    (tmp_path / "runs" / "late-seed0.json").write_text("{")
    with pytest.raises(SweepError, match="cannot be read"):
        sweep(make, rules=[LATE], train=train, out=tmp_path, resume=True)


def test_a_run_goes_on_in_its_own_folder_and_with_other_settings(tmp_path: Path) -> None:
    """As with checkpoints by epoch: a stopped run goes on, and more epochs than before train on from the last."""
    done: list[tuple[str, int]] = []

    def trained_for(epochs: int, stop_after: int = -1):
        def train(model: nn.Module, seed: int, *, folder: Path) -> float:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "epochs"
            while (had := int(file.read_text()) if file.exists() else 0) < epochs:
                if len(done) == stop_after:
                    raise KeyboardInterrupt
                done.append((folder.name, seed))
                file.write_text(str(had + 1))
            return float(epochs)

        return train

    def run(epochs: int, stop_after: int = -1, resume: bool = True) -> float:
        found = sweep(
            make, rules=[LATE], train=trained_for(epochs, stop_after), seeds=(5,), control=False, out=tmp_path,
            resume=resume, settings={"epochs": epochs, "sizes": (1, 2)},
        )  # fmt: skip
        return found.results[-1].value

    with pytest.raises(KeyboardInterrupt):
        run(3, stop_after=4, resume=False)
    assert run(3) == 3.0
    assert done == [("none", 5)] * 3 + [("late", 5)] * 3
    assert run(3) == 3.0
    assert len(done) == 6
    assert run(4) == 4.0
    assert done[6:] == [("none", 5), ("late", 5)]
    with pytest.raises(SweepError, match="what JSON can hold"):
        sweep(
            make, rules=[LATE], train=trained_for(1), out=tmp_path / "other", settings={"device": torch.device("cpu")}
        )


def test_a_third_parameter_of_another_name_is_left_alone(tmp_path: Path) -> None:
    def train(model: nn.Module, seed: int, epochs: int = 2) -> float:
        return float(epochs)

    found = sweep(make, rules=[LATE], train=train, seeds=(0,), control=False, out=tmp_path)
    assert {result.value for result in found.results} == {2.0}


def test_rules_that_match_nothing_are_told_before_training(tmp_path: Path) -> None:
    unmatched = {"version": 1, "rules": [{"id": "x", "match": {"kind": "attention"}, "normalize": "a"}]}
    calls = []
    with pytest.raises(NothingMatchedError):
        sweep(make, rules=[LATE, unmatched], train=lambda *given: calls.append(given), out=tmp_path)
    assert calls == []


def failing(at: int, error: BaseException) -> Callable[..., float]:
    """A function that raises in its `at`-th call, in a helper of its own, inside of torch's code."""
    calls = []

    def helper(x: torch.Tensor) -> torch.Tensor:
        raise error  # the line that is told

    def my_training(model: nn.Module, seed: int) -> float:
        calls.append(seed)
        if len(calls) == at:
            torch.func.vmap(helper)(torch.zeros(2))
        return float(seed)

    return my_training


LINE = next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "the line that is told" in line)


@pytest.mark.parametrize("error", [KeyError("loss"), NothingMatchedError("mine"), RuntimeError(), SystemExit(3)])
@pytest.mark.parametrize(
    ("at", "with_what"),
    [
        (1, "without RegBN, seed 4,"),
        (2, "with rules 'late', seed 4,"),
        (6, "with the control 'late norms only', seed 7,"),
    ],
)
def test_an_error_of_train_is_told_as_the_users(tmp_path: Path, error: BaseException, at: int, with_what: str) -> None:
    with pytest.raises(SweepError) as caught:
        sweep(make, rules=[LATE], train=failing(at, error), seeds=(4, 7), out=tmp_path)
    text = str(caught.value)
    assert text.startswith("`train` (`failing.<locals>.my_training`), called " + with_what)
    assert f"{__file__}:{LINE}" in text
    assert caught.value.__cause__ is error
    assert len(list((tmp_path / "runs").glob("*.json"))) == at - 1
    assert ("kept in" in text) == (at > 1)
    found = sweep(make, rules=[LATE], train=failing(0, error), seeds=(4, 7), out=tmp_path, resume=True)
    assert len(found.results) == 6


def test_an_error_of_make_model_is_told_with_the_rules_it_happened_with(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(Rules.load(LATE).to_yaml())
    calls = []

    def made_badly() -> object:
        calls.append(1)
        if len(calls) == 7:  # three variants and one more are tried first; then none, and this
            raise ZeroDivisionError("no data")
        return make()

    with pytest.raises(SweepError) as caught:
        sweep(made_badly, rules=[file], train=lambda model, seed: 1.0, out=tmp_path / "out", control=False)
    assert "with rules 'mine'" in str(caught.value)
    assert f"({file}), seed 1," in str(caught.value)
    assert f"ZeroDivisionError: no data ({__file__}:" in str(caught.value)
    assert "3 finished runs are kept" in str(caught.value)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    def tried(returned: object, **options: object) -> None:
        values = iter(returned) if isinstance(returned, list) else None
        train = (lambda model, seed: next(values)) if values else (lambda model, seed: returned)
        sweep(
            make, **{"rules": [LATE], "train": train, "out": tmp_path / str(len(list(tmp_path.iterdir()))), **options}
        )

    for returned, says in [
        ("no", "neither a number"),
        (None, "neither a number"),
        (float("nan"), "finite"),
        ({}, "no measure"),
    ]:
        with pytest.raises(SweepError, match=says):
            tried(returned)
    with pytest.raises(SweepError, match="same measures"):
        tried([{"a": 1.0}, {"b": 1.0}, {"a": 1.0}], seeds=[0])
    for options, says in [
        ({"rules": []}, "no rules"), ({"rules": [LATE, LATE]}, "two variants"), ({"rules": "late"}, "must be a list"),
        ({"seeds": []}, "seeds"), ({"seeds": [1, 1]}, "seeds"),
    ]:  # fmt: skip
        with pytest.raises(SweepError, match=says):
            tried(1.0, **options)


def test_a_model_that_is_not_made_anew(tmp_path: Path) -> None:
    made = make()
    with pytest.raises(SweepError, match="same model twice"):
        sweep(lambda: made, rules=[LATE], train=lambda *given: 1.0, out=tmp_path)


def test_names_of_ones_own(tmp_path: Path) -> None:
    rules = {"mine": LATE, "yours": LATE}
    found = sweep(make, rules=rules, train=lambda *given: 1.0, seeds=[0], out=tmp_path, control=False)
    assert found.variants == ("none", "mine", "yours")
    assert "One seed proves nothing" in str(found)


def _rules(name: str, **changes: object) -> dict[str, object]:
    """Rules as LATE, with another id and other keys; `regbn_options` are those of the module."""
    regbn = changes.pop("regbn_options", {})
    return {"version": 1, "rules": [{**LATE["rules"][0], "id": name, **changes, **({"regbn": regbn} if regbn else {})}]}


def test_the_same_model_is_trained_once_and_told(tmp_path: Path) -> None:
    trained: list[tuple[str, int]] = []
    told: list[tuple[str, int]] = []

    def train(model: nn.Module, seed: int) -> float:
        trained.append((inside(model), seed))
        return float(len(trained))

    rules = {
        "late": LATE,
        "said": _rules("with_defaults", regbn_options={"constraint": "smoother", "affine": False}),  # the same plan
        "wider": _rules("any", match={"kind": "concat", "level": "late"}),  # so has another match
        "momentum": _rules("quick", regbn_options={"momentum": 0.1}),  # another plan, the same norms
        "round": _rules("round", normalize="b", against="a"),  # f is the other side: another plan, the same norms
        "affine": _rules("affine", regbn_options={"affine": True}),
        "bare": _rules("bare", regbn_options={"normalize_output": False}),  # its control has no norm
        "one": _rules("one", replace="f"),
    }
    found = sweep(
        make,
        rules=rules,
        train=train,
        seeds=(0, 1),
        out=tmp_path,
        observe=lambda what, _, total: told.append((what, total)),
    )
    kinds = {
        kind: sum(1 for known, seed in trained if known == kind and seed == 0) for kind in ("nothing", "RegBN", "norms")
    }
    assert kinds == {"nothing": 1, "RegBN": 6, "norms": 3}
    assert len(trained) == 2 * sum(kinds.values())
    assert len(found.variants) == 1 + 2 * len(rules), "each has its row"
    assert dict(found.same) == {
        "said": "late", "wider": "late", "said norms only": "late norms only", "wider norms only": "late norms only",
        "momentum norms only": "late norms only", "round norms only": "late norms only", "bare norms only": "none",
    }  # fmt: skip
    for name, other in found.same:
        assert found.values(name, "score") == found.values(other, "score")
        assert f"`{name}` is the same model as `{other}`" in str(found)
        assert any(f"`{name}` is the same" in what for what, _ in told)
    assert {total for _, total in told} == {len(trained)}
    again = sweep(make, rules=dict(reversed(rules.items())), train=train, seeds=(0, 1), out=tmp_path, resume=True)
    assert len(trained) == 2 * sum(kinds.values()), "in another order the finished runs of either name do"
    assert again.values("wider", "score") == found.values("late", "score")


def test_no_two_different_models_are_taken_for_one(tmp_path: Path) -> None:
    found = sweep(
        make,
        rules={"a": LATE, "b": _rules("late", regbn_options={"centre": True}), "c": _rules("late", missing="error")},
        train=lambda model, seed: 1.0, seeds=(0,), out=tmp_path, control=False,
    )  # fmt: skip
    assert found.same == ()
    assert "same model" not in str(found)
