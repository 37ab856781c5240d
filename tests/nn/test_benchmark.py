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
    for name in ("regbn_step", "yardsticks", "reference", "reference_regbn"):
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


BODY = "import torch\nclass RegBN(torch.nn.Module):\n"
FAULTY = {
    "no such class": ("class Normalisation: pass", "defines no class RegBN; classes found: Normalisation"),
    "not a class": ("RegBN = 3", "defines no class RegBN"),
    "not Python": ("class RegBN(:", "running the file failed with SyntaxError"),
    "import": ("import a_module_that_is_not_there", "running the file failed with ModuleNotFoundError"),
    "constructor": (
        BODY + "    def __init__(self, channels):\n        super().__init__()",
        r"RegBN\(f_num_channels=6, .* failed with TypeError.*f_num_channels",
    ),
    "device": (
        BODY
        + "    def __init__(self, gpu, **sizes):\n        super().__init__()\n        torch.zeros(2, device='cuda')\n",
        "(?s)failed with .*set the device strings",
    ),
    "forward": (
        BODY
        + "    def __init__(self, **k):\n        super().__init__()\n    def forward(self, f, g):\n        return f",
        r"(?s)a training step on f \[10, 6\] and g \[10, 3\] failed with TypeError",
    ),
    "outputs": (
        BODY + "    def __init__(self, **sizes):\n        super().__init__()\n"
        "    def forward(self, f, g, **arguments):\n        return g, f",
        r"(?s)outputs of shapes \[\(10, 3\), \(10, 6\)\].*returns \(f', g'\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_reference_file_is_told(fault: str, modules: tuple, tmp_path: Path) -> None:
    if fault == "device" and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    import reference

    _, yardsticks = modules
    source, message = FAULTY[fault]
    path = tmp_path / "theirs.py"
    path.write_text(source)
    before = list(sys.path)
    with pytest.raises(SystemExit, match=message):
        reference.reference_layer(reference.load_reference(path), yardsticks.Shape("narrow", (6,), (3,), 10), CPU, path)
    assert sys.path == before


def test_a_reference_file_that_is_not_there(modules: tuple, tmp_path: Path) -> None:
    import reference

    with pytest.raises(SystemExit, match="is no file"):
        reference.load_reference(tmp_path / "theirs.py")
    (tmp_path / "theirs.txt").write_text("")
    with pytest.raises(SystemExit, match="not a Python file"):
        reference.load_reference(tmp_path / "theirs.txt")


def test_a_reference_that_keeps_its_history_can_be_stepped(modules: tuple, tmp_path: Path) -> None:
    """As the published layer does: without help the second backward pass would run into the first step's graph."""
    import reference

    _, yardsticks = modules
    path = tmp_path / "theirs.py"
    path.write_text(
        BODY + "    def __init__(self, **sizes):\n"
        "        super().__init__()\n"
        "        self.register_buffer('W', torch.zeros(()))\n"
        "        self.mean = torch.zeros(())\n"
        "    def forward(self, f, g, is_training, n_epoch, steps_per_epoch):\n"
        "        self.W = 0.9 * self.W + (f * f).mean()\n"
        "        self.mean = 0.9 * self.mean + (g * g).mean()\n"
        "        return f * self.W, g * self.mean\n"
    )
    shape = yardsticks.Shape("narrow", (6,), (3,), 10)
    layer = reference.reference_layer(reference.load_reference(path), shape, CPU, path)
    step = yardsticks.training_step(layer, shape, CPU)
    step()
    step()


def test_peak_memory_never_holds_a_second_projection(modules: tuple) -> None:
    """W of 12 MiB, beside which a training step holds less than two thirds of it (and the plain form twice)."""
    regbn_step, yardsticks = modules
    shape = yardsticks.Shape("memory", (1024,), (3072,), 16)
    W = 4 * shape.m * shape.n
    ours = yardsticks.training_step(regbn_step.make(shape, CPU), shape, CPU)
    plain = yardsticks.training_step(yardsticks.PlainClosedForm(shape), shape, CPU)
    assert regbn_step.peak_bytes(ours, CPU) < 0.66 * W
    assert regbn_step.peak_bytes(plain, CPU) > 2 * W
