"""The confounder example at toy size: its worlds are what it says, every method runs, the figures are of the values."""

from __future__ import annotations

from pathlib import Path

import confounder
import matplotlib.image
import pytest
import torch
from network import LabelKept, build
from removing import METHODS, cleaned, least_squares
from world import WIDTH, draw
from write_up import Outcome, by_seed, gains_to_markdown, read_csv, to_markdown, write_csv

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_confounder_goes_with_the_label_in_training_alone() -> None:
    world = draw(3, 0.9, seed=1, train=4000, test=4000)
    agreement = [float((rows.label == rows.confounder).float().mean()) for rows in (world.train, world.test)]
    assert agreement == pytest.approx([0.9, 0.5], abs=0.03)
    shared = world.test.f - world.test.f_true
    assert torch.linalg.matrix_rank(shared.double(), rtol=1e-4) == 3


def test_worlds_of_one_seed_differ_in_what_is_asked_for_alone() -> None:
    a, b = draw(1, 0.5, seed=2, train=200, test=100), draw(1, 0.95, seed=2, train=200, test=100)
    assert torch.equal(a.train.label, b.train.label)
    assert torch.equal(a.train.f_true, b.train.f_true)
    assert not torch.equal(a.train.f, b.train.f)


def test_what_is_kept_stays_in_f() -> None:
    generator = torch.Generator().manual_seed(0)
    g, label = torch.randn(500, 3, generator=generator), torch.randint(2, (500, 1), generator=generator).float()
    g[:, 0] += 4 * label[:, 0]
    f = g @ torch.ones(3, 2) + 5 * label
    assert torch.allclose(least_squares(f, g, label), torch.ones(3, 2), atol=1e-3)
    assert not torch.allclose(least_squares(f, g, label[:, :0]), torch.ones(3, 2), atol=0.1)


def test_nothing_is_learnt_from_test_rows() -> None:
    world, other = (draw(1, 0.95, seed=seed, train=256, test=64) for seed in (0, 9))
    mixed = type(world)(world.train, other.test)
    for method in METHODS:
        assert torch.allclose(cleaned(method, world)[0], cleaned(method, mixed)[0], atol=1e-4), method


def test_the_kept_label_is_not_needed_in_evaluation() -> None:
    model = build("regress out, label kept", seed=0)
    (keeper,) = (module for module in model.modules() if isinstance(module, LabelKept))
    f, g = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    keeper.label = torch.randint(2, (64,))
    model.train()(f, g)
    assert keeper.W.abs().sum() > 0
    before = keeper.W.clone()
    model.eval()(f[:7], g[:7])
    assert torch.equal(keeper.W, before)


def test_all_methods_start_from_the_same_weights() -> None:
    plain = build("nothing", seed=3).state_dict()
    for method in METHODS:
        state = build(method, seed=3).state_dict()
        assert all(torch.equal(state[key], value) for key, value in plain.items()), method


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confounder, "FACTORS", (2,))
    monkeypatch.setattr(confounder, "TEST", 400)
    line = ["--seeds", "2", "--rows", "257", "--epochs", "1", "--out", str(tmp_path)]
    assert confounder.main(line) == 0
    outcomes = read_csv(tmp_path / "confounder.csv")
    assert {o.method for o in outcomes} == set(METHODS)
    assert {(o.setting, o.rho) for o in outcomes} == {
        ("preprocessing", 0.5), ("preprocessing", 0.8), ("preprocessing", 0.95), ("end to end", 0.95)
    }  # fmt: skip
    assert (tmp_path / "confounder.md").read_text() in capsys.readouterr().out
    assert matplotlib.image.imread(tmp_path / "confounder.png").shape[0] > 300
    probe = by_seed(outcomes, "preprocessing", 2, 0.95, "truth", "confounder")
    assert max(probe) < 0.65 < min(by_seed(outcomes, "preprocessing", 2, 0.95, "nothing", "confounder"))


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Seeds that differ much among themselves, a method that is 0.01 above its control with each."""
    outcomes = [
        Outcome("preprocessing", 1, 0.95, method, seed, measure, 0.5 + 0.1 * seed + gain)
        for method, gain in (("norms only", 0.0), ("RegBN gcv", 0.01))
        for seed in (2, 0, 1)
        for measure in ("f alone", "fused", "confounder", "R2")
    ]
    write_csv(outcomes, tmp_path / "a.csv")
    assert read_csv(tmp_path / "a.csv") == [Outcome(**{**vars(o), "value": round(o.value, 4)}) for o in outcomes]
    assert "+0.010 ± 0.000" in to_markdown(outcomes)


def test_the_table_of_the_results_is_that_of_the_values_beside_it() -> None:
    outcomes = read_csv(REPOSITORY / "examples/confounder/results/confounder.csv")
    table = gains_to_markdown(outcomes, 0.95)
    assert table in (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    assert (REPOSITORY / "examples/confounder/results/confounder.md").read_text(encoding="utf-8").startswith(table)


def test_the_figure_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command reads the two files that lie in the repository."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import evidence

    removed = REPOSITORY / "docs/evidence/removed.csv"
    values = REPOSITORY / "examples/confounder/results/confounder.csv"
    evidence.main([str(removed), str(values), str(tmp_path / "evidence.png")])
    assert matplotlib.image.imread(tmp_path / "evidence.png").shape[1] > 1000
