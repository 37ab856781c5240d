"""The benchmark compares like with like: its yardstick computes what RegBN computes, and it runs to the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regbn_step
    import yardsticks

    yield regbn_step, yardsticks
    for name in ("regbn_step", "yardsticks", "reference_regbn"):
        sys.modules.pop(name, None)


def test_the_yardstick_is_regbn(modules: tuple) -> None:
    regbn_step, yardsticks = modules
    shape = yardsticks.Shape("small", (6,), (4, 3, 3), 10)
    ours, plain = regbn_step.make(shape, CPU), yardsticks.PlainClosedForm(shape)
    f, g, _, _ = shape.tensors(CPU)
    for _ in range(3):
        for x, y in zip(ours(f, g), plain(f, g), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.W, plain.W, atol=1e-6, rtol=1e-3)
    for x, y in zip(ours.eval()(f, g), plain.eval()(f, g), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_tables_and_a_reference_file(
    modules: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for the user's own copy of the published file: loaded from its path, called as published."""
    regbn_step, yardsticks = modules
    reference = tmp_path / "theirs.py"
    reference.write_text(
        "from regbn_surgery.nn import RegBN as Ours\n"
        "class RegBN(Ours):\n"
        "    def forward(self, f, g, is_training, n_epoch, steps_per_epoch):\n"
        "        return super().forward(f, g, is_training, n_epoch, steps_per_epoch)\n"
    )
    shapes = (yardsticks.Shape("wide", (6,), (4, 3, 3), 10), yardsticks.Shape("narrow", (6,), (3,), 10))
    monkeypatch.setattr(regbn_step, "SHAPES", shapes)
    monkeypatch.setattr(sys, "argv", ["regbn_step.py", "--rounds", "1", "--steps-only", "--reference", str(reference)])
    threads = torch.get_num_threads()
    regbn_step.main()
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "published / ours" in printed
    assert "| wide | 36 x 6 |" in printed
    assert "| narrow | 3 x 6 |" in printed
    step = yardsticks.training_step(regbn_step.make(shapes[0], CPU), shapes[0], CPU)
    assert regbn_step.peak_bytes(step, CPU) > 0


def test_peak_memory_never_holds_a_second_projection(modules: tuple) -> None:
    """W of 12 MiB, beside which a training step holds less than two thirds of it (and the plain form twice)."""
    regbn_step, yardsticks = modules
    shape = yardsticks.Shape("memory", (1024,), (3072,), 16)
    W = 4 * shape.m * shape.n
    ours = yardsticks.training_step(regbn_step.make(shape, CPU), shape, CPU)
    plain = yardsticks.training_step(yardsticks.PlainClosedForm(shape), shape, CPU)
    assert regbn_step.peak_bytes(ours, CPU) < 0.66 * W
    assert regbn_step.peak_bytes(plain, CPU) > 2 * W
