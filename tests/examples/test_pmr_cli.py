"""The command line: the published lines as printed, the comparison, and one clear message for each mistake."""

import csv
import os
import re
import shlex
import subprocess
import sys

import matplotlib.image
import PMR
import pytest
import torch
from tables import verdicts

from regbn_surgery import Sweep, SweepResult

PUBLISHED = "--epochs 75 --learning_rate 0.001 --gpu 0 --train --batch_size 50 --optimizer Adam"


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_data):
    """An empty working folder, few digits, no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PMR, "load_data", lambda seed, mnist, colored: tiny_data)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def call(line: str) -> int:
    """The exit code of `python PMR.py LINE`."""
    return PMR.main(shlex.split(line))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def height_and_width(path):
    return matplotlib.image.imread(path).shape[:2]


@pytest.mark.parametrize(("more", "variant"), [("", "none"), (" --regbn", "early")])
def test_published_lines(here, capsys, more, variant):
    assert call(PUBLISHED + more) == 0
    assert "--gpu 0: no GPU that this torch can use, so it runs on the CPU." in capsys.readouterr().out
    history = rows(here / "runs" / "seed0" / variant / "history.csv")
    assert history[-1]["epoch"] == "75"
    assert len(history) == 75 * 2 * 3
    assert (here / "runs" / "seed0" / variant / "checkpoint.pt").is_file()
    assert (here / "runs" / "seed0" / "curves.png").is_file()


def test_runs_of_one_seed_are_drawn_side_by_side(here, capsys):
    assert call("--train --epochs 1") == 0
    height, width = height_and_width(here / "runs/seed0/curves.png")
    assert call("--train --epochs 1 --regbn") == 0
    assert height_and_width(here / "runs/seed0/curves.png")[1] > 1.5 * width
    capsys.readouterr()
    assert call("--train --epochs 1 --learning_rate 0.01") == 0
    assert "early is left out of the plot: it was trained with other settings" in capsys.readouterr().out
    assert height_and_width(here / "runs/seed0/curves.png") == (height, width)


def test_compare(here, capsys):
    assert call("--compare none early late --seeds 0 1 --epochs 2 --out out") == 0
    found = rows(here / "out/comparison.csv")
    assert len(found) == 3 * 2 * 2 * 3  # variants, seeds, splits, modalities
    assert {(r["variant"], r["seed"]) for r in found} == {(v, s) for v in ("none", "early", "late") for s in "01"}
    assert {r["epoch"] for r in found} == {"2"}
    table = (here / "out/comparison.md").read_text()
    assert table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[0].startswith("| RegBN | test: joint | test: gray | test: colored | train: joint")
    joint = [
        100 * float(r["accuracy"])
        for r in found
        if (r["variant"], r["split"], r["modality"]) == ("late", "test", "joint")
    ]
    mean, deviation = sum(joint) / 2, abs(joint[0] - joint[1]) / 2**0.5
    assert lines[4].startswith(f"| late | {mean:.1f} ± {deviation:.1f} |")
    for picture in ("comparison.png", "seed0/curves.png", "seed1/curves.png"):
        assert height_and_width(here / "out" / picture)[0] > 300


def test_compare_takes_up_finished_runs_and_reports_the_epoch_asked_for(here):
    assert call("--compare none late --epochs 3 --out out") == 0
    before = (here / "out/seed0/none/checkpoint.pt").read_bytes()
    assert call("--compare late --epochs 2 --out out --resume") == 0
    assert (here / "out/seed0/none/checkpoint.pt").read_bytes() == before
    assert {r["epoch"] for r in rows(here / "out/comparison.csv")} == {"2"}


def test_quick_trains_with_and_without(here, capsys):
    assert call("--quick --epochs 1") == 0
    assert sorted(p.name for p in (here / "runs/seed0").iterdir()) == ["curves.png", "early", "none"]
    assert f"wrote {os.path.join('runs', 'seed0', 'curves.png')}" in capsys.readouterr().out


def test_without_train_the_saved_model_is_tested(here, capsys):
    assert call("--train --epochs 2") == 0
    last = rows(here / "runs/seed0/none/history.csv")[-3:]
    capsys.readouterr()
    assert call("") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in printed[-3:]] == [[r["split"], r["modality"]] for r in last]
    assert [line.split()[-1] for line in printed[-3:]] == [f"{float(r['accuracy']):.1%}" for r in last]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "there is no checkpoint at runs/seed0/none/checkpoint.pt. Train first"),
        ("--seed 0 1", "--seeds 0 1"),
        ("--train --seed 3 4", "--seed takes one seed"),
        ("--train --regbn absent.yaml", "no rules 'absent.yaml'"),
        ("--train --regbn layer-wize", "layer-wise"),
        ("--train --device cuda", "device 'cuda' cannot be used"),
        ("--train --device nonsense", "device 'nonsense' cannot be used"),
        ("--train --device meta", "device 'meta' cannot be used"),
        ("--train --seeds 0 1", "--seeds goes with --compare"),
        ("--compare none --regbn", "--regbn is for one run"),
        ("--train --batch_size 400", "--batch_size 400: must be from 2"),
    ],
)
def test_mistakes(here, capsys, line, says):
    assert call(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--train --epochs 0", "must be at least 1, not 0"),
        ("--train --epochs many", "invalid whole number value: 'many'"),
        ("--train --batch_size 1", "must be at least 2"),
        ("--train --learning_rate -1", "must be greater than 0"),
        ("--train --learning_rate nan", "must be greater than 0"),
        ("--train --optimizer Adm", "invalid choice: 'Adm'"),
        ("--train --gpu 0 --device cpu", "not allowed with argument"),
        ("--train --quick", "not allowed with argument"),
    ],
)
def test_mistakes_in_the_arguments(here, capsys, line, says):
    with pytest.raises(SystemExit) as stop:
        call(line)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_rules_that_cannot_be_used(here, capsys):
    (here / "odd.yaml").write_text("version: 1\nrulez: []\n")
    assert call("--train --regbn odd.yaml") == 2
    assert "odd.yaml" in capsys.readouterr().err
    (here / "unmatched.yaml").write_text("version: 1\nrules:\n  - {id: a, match: {kind: attention}, normalize: gray}\n")
    assert call("--train --regbn unmatched.yaml") == 1
    assert "matches no fusion point" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_threads_are_what_was_asked_for_and_put_back(here, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr("train.Run.train", lambda *arguments: seen.append(torch.get_num_threads()))
    monkeypatch.setattr("experiment.Experiment.draw_curves", lambda *arguments: here)
    torch.set_num_threads(3)
    try:
        assert [call("--train"), call("--train --threads 2"), call("--train --regbn absent")] == [0, 0, 2]
        assert seen == [1, 2]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_interrupting_says_how_to_go_on(here, capsys, monkeypatch):
    def stops(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.Run.train", stops)
    assert call("--train") == 130
    assert "--resume" in capsys.readouterr().err


def test_a_run_that_never_trained_stands_in_nobodys_way(here, capsys, monkeypatch):
    """Stopped before its first epoch ended; also beside an older run, whose checkpoint counts as what it is."""
    assert call("--train --epochs 1 --learning_rate 0.01 --regbn late") == 0
    with monkeypatch.context() as patch:
        patch.setattr("train.Run._train_epoch", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert [call("--train --regbn"), call("--train --regbn late")] == [130, 130]
    capsys.readouterr()
    assert call("--train --epochs 1") == 0
    assert "late is left out of the plot: it was trained with other settings" in capsys.readouterr().out
    assert call("--train --epochs 1 --regbn --resume") == 0
    assert "no epoch of it was finished, so it starts at the beginning" in capsys.readouterr().out
    assert (here / "runs/seed0/early/checkpoint.pt").is_file()


@pytest.mark.parametrize("damage", ["", "no checkpoint"])
def test_a_damaged_neighbour_is_left_out_of_the_plot(here, capsys, damage):
    (here / "runs/seed0/mine").mkdir(parents=True)
    (here / "runs/seed0/mine/checkpoint.pt").write_text(damage)
    assert call("--train --epochs 1") == 0
    assert "mine is left out of the plot: the checkpoint" in capsys.readouterr().out


def test_finished_runs_are_compared_without_their_csv(here):
    assert call("--compare late --epochs 1 --out out") == 0
    (here / "out/seed0/none/history.csv").unlink()
    assert call("--compare late --epochs 1 --out out --resume") == 0


def test_a_comparison_without_resume_trains_anew(here):
    assert call("--compare late --epochs 1 --out out") == 0
    first = (here / "out/comparison.csv").read_text()
    for file in (here / "out/runs").iterdir():
        file.write_text(file.read_text().replace('accuracy": 0.', 'accuracy": 0.9'))
    assert call("--compare late --epochs 1 --out out") == 0
    assert (here / "out/comparison.csv").read_text() == first


def test_there_is_something_to_compare(here, capsys):
    assert call("--compare none --epochs 1") == 2
    assert "no rules to compare" in capsys.readouterr().err
    assert call("--compare late --epochs 2 --learning_rate 1e30") == 2
    assert "Lower --learning_rate" in capsys.readouterr().err


def test_presets_by_name(here, capsys):
    assert call("--train --epochs 1 --regbn layer-wise") == 0
    assert call("--train --epochs 1 --regbn cross-attention") == 1
    assert "matches" in capsys.readouterr().err
    (here / "layer-wise").write_text("version: 1\nrules:\n  - {id: a, match: {kind: concat}, normalize: gray}\n")
    assert call("--train --epochs 1 --regbn layer-wise") == 0  # a file of that name goes first, as for the CLI
    assert call("--train --epochs 1 --regbn layer-wise --resume") == 0
    (here / "layer-wise").unlink()
    assert call("--train --epochs 1 --regbn layer-wise --resume") == 2  # other rules than it was trained with
    assert (here / "runs/seed0/layer-wise/checkpoint.pt").is_file()


def test_one_seed_proves_nothing(here, capsys):
    assert call("--compare none late late_control --epochs 1 --out out") == 0
    assert "One seed proves nothing" in capsys.readouterr().out
    assert call("--compare none late late_control --epochs 1 --out out --seeds 0 1") == 0
    said = capsys.readouterr().out
    assert "One seed proves nothing" not in said
    found = {(r["variant"], r["seed"]): 100 * float(r["accuracy"]) for r in rows(here / "out/comparison.csv")
             if (r["split"], r["modality"]) == ("test", "joint")}  # fmt: skip
    gain = sum(found["late", seed] - found["late_control", seed] for seed in "01") / 2
    (cells,) = (line.split(" | ") for line in said.splitlines() if line.startswith("| late |") and line.count("|") == 5)
    assert float(cells[3].split(" ± ")[0]) == pytest.approx(gain, abs=1)


@pytest.mark.parametrize("arguments", [["--mnist", "absent"], ["--colored", "absent.npy"]])
def test_as_a_program(pmr, tmp_path, arguments):
    """From a shell inside the folder of the example, as printed: one message, exit code 2, no traceback."""
    command = [sys.executable, str(pmr / "PMR.py"), "--train", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2
    assert "absent" in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_two_files_that_do_the_same_are_trained_once(here, capsys):
    (here / "mine.yaml").write_text(
        "version: 1\nrules:\n  - {id: other, match: {kind: concat}, normalize: gray, against: colored}\n"
    )
    (here / "again.yaml").write_text(
        "version: 1\nrules:\n  - {id: a, match: {kind: [concat]}, normalize: gray, regbn: {constraint: smoother}}\n"
    )
    assert call("--compare none mine.yaml again.yaml --epochs 1 --out out") == 0
    assert "`again` is the same model as `mine`" in capsys.readouterr().out
    found = {r["variant"]: r["accuracy"] for r in rows(here / "out/comparison.csv")
             if (r["split"], r["modality"]) == ("test", "joint")}  # fmt: skip
    assert found["again"] == found["mine"]
    assert not (here / "out/seed0/again").exists()


def swept(late: list[float], control: list[float]) -> Sweep:
    """A comparison of `late` with its control, by seed."""
    named = {"none": [50.0] * len(late), "late": late, "late norms only": control}
    results = [SweepResult(n, seed, "acc", value) for n, many in named.items() for seed, value in enumerate(many)]
    return Sweep(tuple(results))


@pytest.mark.parametrize(
    ("late", "control", "says"),
    [
        ([60.0], [70.0], "late is 10.0 points below its control.*one seed, which can be chance"),
        ([70.0], [60.0], "late is 10.0 points above its control.*one seed, which can be chance"),
        ([60.0, 61.0, 60.5], [70.0, 71.5, 70.0], r"10\.0 ± 1\.2 points below.*took away more than it gave"),
        ([70.0, 71.5, 70.0], [60.0, 61.0, 60.5], r"10\.0 ± 1\.2 points above.*helped, beyond what the norms do"),
        ([60.0, 71.0, 60.5], [70.0, 61.5, 70.0], "points below.*3 seeds show no effect"),
        ([60.0, 60.0], [60.0, 60.0], "2 seeds show no effect"),
    ],
)
def test_the_comparison_says_what_its_numbers_mean(late, control, says):
    line, read_on = verdicts(swept(late, control))
    assert re.search(says, line)
    assert "docs/results.md" in read_on
    assert "README.md" in read_on
    assert verdicts(Sweep(swept(late, control).results[: len(late)])) == [], "nothing without a control"


def test_a_training_ends_with_it(here, capsys):
    assert call("--compare none late late_control --epochs 1 --out out") == 0
    said = capsys.readouterr().out
    found = {r["variant"]: 100 * float(r["accuracy"]) for r in rows(here / "out/comparison.csv")
             if (r["split"], r["modality"]) == ("test", "joint")}  # fmt: skip
    gain = found["late"] - found["late_control"]
    assert f"late is {abs(gain):.1f} points {'below' if gain < 0 else 'above'} its control" in said
    assert call("--compare none late --epochs 1 --out out") == 0
    assert "its control" not in capsys.readouterr().out
