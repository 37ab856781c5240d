"""What docs/rules.md says holds: its blocks are read and run as they stand, its tables are those of the language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import Plan, RulesError, _rehearsal
from regbn_surgery._cli.commands import cli
from regbn_surgery._rules import Match, Rule, Rules, matches, preset_names
from regbn_surgery._rules.checks import RULE_LEVEL, SIZES
from regbn_surgery._rules.schema import Document, ModalitySpec, Override, Treatment
from regbn_surgery._rules.yaml_tree import DEEPEST, LARGEST_FILE
from regbn_surgery._types import KINDS, LEVELS
from regbn_surgery.nn import RegBN
from regbn_surgery.nn.options import RegBNOptions

DOC = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)


def section(title: str) -> str:
    start = DOC.index(f"# {title}\n")
    end = re.search(r"\n#+ ", DOC[start + 2 :])
    return DOC[start:] if end is None else DOC[start : start + 2 + end.start()]


def keys_of(title: str) -> set[str]:
    """The keys in the first column of a section's table."""
    found: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", section(title), flags=re.MULTILINE):
        found |= {key.partition(":")[0] for key in re.findall(r"`([^`]+)`", row)}
    return found


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_rules_files(text: str) -> None:
    assert Rules.from_text(text).rules


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 4)

        def forward(self, gray: torch.Tensor, colored: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.a(gray), self.b(colored)], dim=1)

    monkeypatch.chdir(tmp_path)
    Path("rules.yaml").write_text(blocks("yaml")[0])
    example = {"gray": torch.randn(4, 6), "colored": torch.randn(4, 5)}
    names: dict[str, Any] = {"model": Late(), "example_inputs": example}
    (code,) = blocks("python")
    exec(code, names)
    assert "rule `late` (rules.yaml:7:5) is the first to match" in " ".join(capsys.readouterr().out.split())
    assert isinstance(names["made"], Plan)
    assert [type(module) for module in names["model"].modules() if isinstance(module, RegBN)] == [RegBN]


class TestTables:
    def test_keys_of_the_file(self) -> None:
        assert keys_of("Keys of the file") == set(Document.model_fields)

    def test_keys_of_a_rule(self) -> None:
        assert keys_of("Keys of a rule") == set(Rule.model_fields)

    def test_keys_of_a_match(self) -> None:
        assert keys_of("`match`") == set(Match.model_fields)
        rows = section("`match`")
        assert named(re.search(r"\| `kind` \|(.*)\|", rows)[1]) == set(KINDS)  # type: ignore[index]
        assert named(re.search(r"\| `level` \|(.*)\|", rows)[1]) == set(LEVELS)  # type: ignore[index]

    def test_keys_of_defaults_and_overrides(self) -> None:
        row = re.search(r"\| `defaults` \|(.*)\|", DOC)[1]  # type: ignore[index]
        assert named(row) == set(Treatment.model_fields)
        assert set(Override.model_fields) - set(Treatment.model_fields) == {"normalize", "against"}

    def test_options(self) -> None:
        text = section("`regbn`")
        listed, rest = text.split("(`reduce`")
        assert named(listed) - {"regbn"} == set(RegBNOptions.names()) - set(RULE_LEVEL)
        assert set(RULE_LEVEL) | set(SIZES) <= named("`reduce`" + rest)

    def test_commands_and_presets(self) -> None:
        told = set(re.findall(r"^\| `regbn-surgery (\w+)", DOC, flags=re.MULTILINE))
        assert told == {"init", "check", "plan", "presets", "schema"}
        assert told <= set(cli.commands)
        assert named(section("Presets")) - {"centre: true", "init"} == set(preset_names())


class TestModalities:
    def forms(self) -> list[dict[str, ModalitySpec]]:
        rows = re.findall(r"^\| (`.*?) \| ", section("`modalities`"), flags=re.MULTILINE)
        texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
        rules = "rules: [{id: a, match: {}}]\n"
        return [dict(Rules.from_text(f"version: 1\nmodalities:\n  {text}\n{rules}").modalities) for text in texts]

    def test_forms(self) -> None:
        one, two, also_two, modules, cut = self.forms()
        assert one["image"].inputs == ("pixel_values",)
        assert two["image"] == also_two["image"]
        assert modules["text"].modules == ("text_encoder.**",)
        assert cut["left"].slice is not None
        assert (cut["left"].slice.dim, cut["left"].slice.range) == (1, (0, 8))

    def test_names_stand_for_what_they_hold(self) -> None:
        rules = Rules.from_dict({"version": 1, "modalities": {"a": "batch", "b": "inputs.0"},
                                 "rules": [{"id": "a", "match": {}}]})  # fmt: skip
        found = rules.resolve_modalities({"batch.audio": (2,), "batch.video": (2,), "inputs.0": (2,)})
        assert found["a"].inputs == ("batch.audio", "batch.video")
        assert found["b"].inputs == ("inputs.0",)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("fusion.**", "fusion", True), ("fusion.**", "fusion.a.b", True), ("**", "", True), ("", "", True),
        ("*", "a", True), ("*", "a.b", False), ("a?", "ab", True), ("a?", "a", False), ("re:a.*", "abc", True),
        ("re:a", "ab", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_the_error_is_the_one_that_is_shown() -> None:
    (shown,) = re.findall(r"\n```\n(late\.yaml.*?)```", DOC, flags=re.DOTALL)
    text = "version: 1\nrules:\n  - id: late\n    regbn: {affine: true}\n    match: {kind: concta}\n"
    with pytest.raises(RulesError) as caught:
        Rules.from_text(text, "late.yaml")
    message = re.sub(r"(`concat`, `sum`), .* and `module`", r"\1, ...", str(caught.value))
    assert message == shown.strip()


def test_the_readme_of_the_presets_names_them_all() -> None:
    readme = (Path(__file__).parents[2] / "rules" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(.*?)` \|", readme, flags=re.MULTILINE)) == set(preset_names())


def test_limits() -> None:
    assert f"more than {DEEPEST} levels of nesting and files above {LARGEST_FILE // 1024} KiB" in DOC
    assert f"from {_rehearsal.ENOUGH_SAMPLES} to {_rehearsal._MOST_SAMPLES}\nsamples" in DOC


@pytest.mark.parametrize(
    ("value", "read"), [("on", "on"), ("yes", "yes"), ("1:30", "1:30"), ("1e-3", 0.001), ("true", True), ("010", 10)]
)
def test_scalars(value: str, read: Any) -> None:
    text = f"version: 1\nrules: [{{id: a, match: {{}}, regbn: {{verbose: {value}}}}}]\n"
    if read is True:
        assert Rules.from_text(text).rules[0].regbn == {"verbose": True}
        return
    with pytest.raises(RulesError) as caught:
        Rules.from_text(text)
    assert f"found {read!r}" in str(caught.value)
