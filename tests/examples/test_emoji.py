"""The emoji example at toy size, on a package made here: what it reads, how it splits, trains, measures and resumes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import across_vendors
import emoji_set
import matplotlib.image
import numpy as np
import pytest
import torch
from across_vendors import RULES
from branches import TwoBranches, factory
from emoji_set import VENDORS, hashed, read_package, subject
from tables_of_sweep import dependence_to_markdown, gains_to_markdown, to_markdown
from torch import Tensor
from trial import MEASURES, Seen, Trial

from regbn_surgery import Sweep, SweepResult, regbnify
from regbn_surgery.nn import NormsOnly, RegBN

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "emoji"
CATEGORIES = ("Animals", "Food", "Objects")
COUNT = 120  # a whole batch of 64 to train on


def listed() -> list[dict[str, object]]:
    """Entries as the package has them, among them some to leave out: a flag, and one that a vendor does not draw."""
    rng = np.random.default_rng(0)
    entries: list[dict[str, object]] = []
    for i in range(COUNT + 2):
        category = CATEGORIES[i % 3] if i < COUNT + 1 else "Flags"
        letters = "".join(rng.choice(list("abcdefghij"), 5))
        entry = {"name": f"{category.upper()} {letters}", "category": category, "sheet_x": i % 12, "sheet_y": i // 12}
        entries.append({**entry, **{f"has_img_{vendor}": i != COUNT for vendor in VENDORS}})
    return entries


def sheet(entries: list[dict[str, object]], vendor: str) -> np.ndarray:
    """RGBA: noise in the color of the category; its corner pixels say whose it is; the lower half is transparent."""
    rng = np.random.default_rng(VENDORS.index(vendor))
    pixels = np.full((12 * 34, 12 * 34, 4), 77, dtype=np.uint8)  # borders that must not be read
    for i, e in enumerate(entries):
        drawing = np.zeros((32, 32, 4), dtype=np.uint8)
        drawing[:16, :, 3] = 255
        drawing[..., :3] = rng.integers(0, 60, (32, 32, 3))
        drawing[:16, :, i % 3] = 150 + 20 * VENDORS.index(vendor)
        drawing[0, 0, :3] = drawing[0, 31, :3] = i
        x, y = (int(str(e[at])) * 34 + 1 for at in ("sheet_x", "sheet_y"))
        pixels[y : y + 32, x : x + 32] = drawing
    return pixels


@pytest.fixture(scope="module")
def content() -> bytes:
    entries, buffer = listed(), io.BytesIO()
    members = {"emoji.json": json.dumps(entries).encode()}
    for vendor in VENDORS:
        image = io.BytesIO()
        matplotlib.image.imsave(image, sheet(entries, vendor), format="png")
        members[f"img/{vendor}/sheets/32.png"] = image.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


@pytest.fixture
def package(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made package in a folder of its own, known by its checksum."""
    path = tmp_path / "data" / "made.tgz"
    path.parent.mkdir()
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    made = replace(emoji_set.PACKAGE, url=f"https://registry.invalid/{path.name}", sha256=digest, size=len(content))
    monkeypatch.setattr(emoji_set, "PACKAGE", made)
    return path


@pytest.fixture
def command(package: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        where = ["--data", str(package.parent), "--out", str(tmp_path / "out")]
        return across_vendors.main([*where, "--seeds", "2", "--epochs", "2", *arguments])

    return run


def test_each_emoji_gets_its_own_drawings_name_and_category(package: Path) -> None:
    emoji = read_package(package, ("twitter", "apple"))
    entries = listed()[:COUNT]
    assert emoji.names == tuple(e["name"] for e in entries)
    assert [emoji.categories[i] for i in emoji.labels.tolist()] == [e["category"] for e in entries]
    assert set(emoji.drawings) == {"twitter", "apple"}
    for vendor, drawings in emoji.drawings.items():
        assert drawings.shape == (COUNT, 3, 32, 32)
        which = (drawings[:, :, 0, 0] * 255).round()
        assert torch.equal(which, torch.arange(COUNT)[:, None].expand(-1, 3).float())
        assert torch.equal(drawings[:, 0, 0, 31], drawings[:, 0, 0, 0])
        assert (drawings[:, :, 16:] == 1).all(), "transparent is white"
        own = (drawings[torch.arange(COUNT), torch.arange(COUNT) % 3, 5, 5] * 255).round()
        assert (own == 150 + 20 * VENDORS.index(vendor)).all()


def test_no_subject_is_on_both_sides_of_the_split(package: Path) -> None:
    assert subject("WOMAN COOK") == subject("MAN COOK") == "cook" != subject("MAN SINGER")
    emoji = read_package(package, ())
    pairs = tuple(f"{who} {name}" for name in emoji.names[:60] for who in ("MAN", "WOMAN"))
    emoji = replace(emoji, names=pairs)
    seen = []
    for seed in (0, 1, 0):
        train, test = emoji.split(seed)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(COUNT))
        assert len(test) == COUNT // 3
        assert not {i // 2 for i in train.tolist()} & {i // 2 for i in test.tolist()}
        seen.append(test.tolist())
    assert seen[0] == seen[2] != seen[1]


def test_names_that_share_letters_are_near() -> None:
    cat, same, face, other = hashed(["CAT", "cat", "CAT FACE", "ROCKET"])
    assert torch.equal(cat, same)
    assert float(cat @ face) > 0.5 > float(cat @ other)
    assert torch.allclose(torch.stack([cat, face, other]).norm(dim=1), torch.ones(3))


def test_a_missing_modality_has_features_of_zero_whatever_else_is_in_the_batch() -> None:
    model, (picture, name) = factory()
    model.eval()
    picture[1], name[2] = 0, 0
    seen = Seen.of(model, picture, name)
    assert [bool(row.any()) for row in seen.picture] == [True, False, True, True]
    assert [bool(row.any()) for row in seen.name] == [True, True, False, True]
    assert torch.allclose(Seen.of(model, picture[2:3], name[2:3]).logits, seen.logits[2:3], atol=1e-6)


@pytest.mark.parametrize("rules", RULES)
def test_rules_take_the_other_side_out_of_the_one_that_they_name(rules: str) -> None:
    side = rules.partition("_")[0]
    model, example = factory()
    model = regbnify(model, EXAMPLE / "rules" / f"{rules}.yaml", example).eval()
    (regbn,) = (module for module in model.modules() if isinstance(module, RegBN))
    regbn.W.copy_(torch.randn(regbn.W.shape))
    assert regbn.options.constraint == {"centred": "smoother"}.get(rules.partition("_")[2], rules.partition("_")[2])
    assert regbn.options.centre == (not rules.endswith("smoother"))
    (picture, name), (new_picture, new_name) = ((torch.rand(5, 3, 32, 32), torch.rand(5, 1024)) for _ in range(2))
    first = Seen.of(model, picture, name)
    for changed, which in ((Seen.of(model, new_picture, name), "picture"), (Seen.of(model, picture, new_name), "name")):
        for read in ("picture", "name"):
            moves = not torch.allclose(getattr(first, read), getattr(changed, read), atol=1e-5)
            assert moves == (read in (which, side)), f"{read} when {which} changes"


def test_all_rules_have_the_same_control() -> None:
    logits = []
    for rules in RULES:
        torch.manual_seed(0)
        model, example = factory()
        model = regbnify(model, EXAMPLE / "rules" / f"{rules}.yaml", example, make=NormsOnly.at)
        logits.append(model.eval()(*example))
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_nothing_is_learnt_from_held_out_emoji_or_the_other_vendor(package: Path) -> None:
    emoji = read_package(package, ("google", "twitter"))
    train, test = emoji.split(3)

    def trained(drawings: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        torch.manual_seed(1)
        model = TwoBranches(3)
        measured = Trial(replace(emoji, drawings=drawings), "google", "twitter", epochs=2)(model, 3)
        return {key: value.clone() for key, value in model.state_dict().items()}, measured

    plain, measured = trained(dict(emoji.drawings))
    other = {vendor: drawings.clone() for vendor, drawings in emoji.drawings.items()}
    other["google"][test] = torch.rand_like(other["google"][test])
    other["twitter"] = torch.rand_like(other["twitter"])
    changed, remeasured = trained(other)
    assert all(torch.equal(plain[key], changed[key]) for key in plain)
    assert measured["R2 picture before"] != remeasured["R2 picture before"]
    assert measured["name features"] == remeasured["name features"]
    assert set(measured) == set(MEASURES)
    other["google"][train] = torch.rand_like(other["google"][train])
    assert any(not torch.equal(plain[key], value) for key, value in trained(other)[0].items())


def test_the_command(command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    out = tmp_path / "out"
    found = read_csv(out / "emoji.csv")
    assert found.variants == ("none", f"{RULES[0]} norms only", *RULES)
    assert found.measures == tuple(MEASURES)
    assert {result.seed for result in found.results} == {0, 1}
    assert to_markdown(found) in capsys.readouterr().out
    assert (out / "emoji.md").read_text(encoding="utf-8").startswith(to_markdown(found))
    assert matplotlib.image.imread(out / "emoji.png").shape[1] > 1000
    for measure in ("R2 picture before", "R2 picture after"):
        assert max(found.values("none", measure)) <= 1
    assert found.values("none", "R2 name before") == found.values("none", "R2 name after")

    before = (out / "emoji.csv").read_text(encoding="utf-8")
    assert command() == 2
    assert "--resume" in capsys.readouterr().err
    (out / "runs/google-twitter-2/runs/name_gcv-seed1.json").unlink()
    assert command("--resume") == 0
    assert (out / "emoji.csv").read_text(encoding="utf-8") == before


def test_a_stopped_run_goes_on(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, calls = Trial.__call__, []

    def interrupted(self: Trial, model: torch.nn.Module, seed: int) -> dict[str, float]:
        calls.append(self.epochs)
        if len(calls) in (3, 10):
            raise KeyboardInterrupt
        return whole(self, model, seed)

    monkeypatch.setattr(Trial, "__call__", interrupted)
    threads = torch.get_num_threads()
    assert command("--seeds", "1", "--epochs", "1") == 130
    assert torch.get_num_threads() == threads
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "out" / "emoji.csv").exists()
    assert command("--seeds", "1", "--epochs", "1", "--resume") == 0
    assert calls == [1] * 9, "the two that were finished are not trained again"
    assert command("--seeds", "1", "--epochs", "2", "--resume") == 130
    assert calls == [*[1] * 9, 2], "networks trained for fewer epochs are not taken for these"


def test_what_cannot_be_used_is_refused(
    command: Callable[..., int], package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("--seeds", "0"), ("--epochs", "0"), ("--other", "google")):
        with pytest.raises(SystemExit):
            command(*arguments)
    package.write_bytes(b"another one")
    assert command() == 2
    assert "SHA-256" in capsys.readouterr().err
    package.unlink()
    assert command() == 2
    assert "Add --download" in capsys.readouterr().err


def test_differences_are_paired_by_seed_and_in_points() -> None:
    found = Sweep(
        tuple(
            SweepResult(variant, seed, measure, 0.5 + 0.1 * seed + gain)
            for variant, gain in (("none", -0.02), ("picture_gcv", 0.01), ("picture_gcv norms only", 0.0))
            for seed in (2, 0, 1)
            for measure in ("fused", "R2 picture after")
        )
    )
    assert "| fused | 60.0 ± 24.8 | -2.0 ± 0.0 | +1.0 ± 0.0 |" in gains_to_markdown(found)
    assert "| norms only | 0.60 ± 0.25 |" in dependence_to_markdown(found)


def test_the_tables_of_the_pages_are_those_of_the_values_beside_them() -> None:
    found = read_csv(EXAMPLE / "results" / "emoji.csv")
    assert (EXAMPLE / "results" / "emoji.md").read_text(encoding="utf-8").startswith(to_markdown(found))
    for page in ("docs/results.md", "examples/emoji/README.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        assert gains_to_markdown(found) in text, page
        assert dependence_to_markdown(found) in text, page


def read_csv(path: Path) -> Sweep:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return Sweep(tuple(SweepResult(r["variant"], int(r["seed"]), r["measure"], float(r["value"])) for r in rows))
