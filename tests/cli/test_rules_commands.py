"""The commands around rules files: what a person types, what comes out on which stream, and the exit code."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from regbn_surgery._rules import Rules, preset_names
from regbn_surgery._types import Plan

MODEL = "torch.nn:Identity"
RULES = "version: 1\nrules: [{id: late, match: {kind: concat}, normalize: gray}]\n"

#: A model with its inputs, for the commands that go all the way.
PROJECT = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.gray, self.colored = nn.Linear(6, 8), nn.Linear(5, 4)

    def forward(self, gray, colored):
        print("noise of the model")
        return torch.cat([self.gray(gray), self.colored(colored)], dim=1)

class Alone(Late):
    def forward(self, gray, colored):
        return self.gray(gray), self.colored(colored)

def build():
    return Late(), {"gray": torch.randn(4, 6), "colored": torch.randn(4, 5)}

def alone():
    return Alone(), {"gray": torch.randn(4, 6), "colored": torch.randn(4, 5)}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "r.yaml").write_text(RULES)
    return tmp_path


class TestPlan:
    @pytest.mark.parametrize(
        ("more", "says", "not_said"),
        [
            (("--steps", "4000"), "4000 steps are enough for every RegBN", "RB112"),
            (("--steps", "3"), "RB112", "enough for every"),
            (("--steps", "3", "--ignore", "RB112"), "in the host's own code", "enough for every"),
            ((), "in the host's own code", "enough for every"),
        ],
    )
    def test_steps(self, run, project, more, says, not_said):
        result = run("plan", "project.py:build", "r.yaml", *more)
        assert says in result.output
        assert not_said not in result.output

    def test_a_pair_is_at_no_fusion_point(self, run, project):
        pair = "version: 1\nrules: [{id: p, pair: {f: 'module:gray', g: 'module:colored'}}]\n"
        (project / "pair.yaml").write_text(pair)
        late = "{id: late, match: {kind: concat}, normalize: gray}, "
        (project / "both.yaml").write_text(pair.replace("rules: [", f"rules: [{late}"))
        for command in (("plan", "project.py:build", "pair.yaml"), ("check", "pair.yaml", "project.py:build")):
            told = run(*command).output
            assert "1 pair of layers or inputs normalised" in told
            assert "0 of 1" not in told
        told = " ".join(run("plan", "project.py:build", "both.yaml").output.split())
        assert "2 RegBN modules to put in; 1 pair of layers or inputs normalised, and 1 of 1 fusion point" in told

    def test_text(self, run, project):
        result = run("plan", "project.py:build", "r.yaml")
        assert result.exit_code == 0, result.output
        for part in (
            "1 RegBN module to put in", "regbn_late", "in the host's own code",
            "rule `late` (r.yaml:2:20) is the first to",
        ):  # fmt: skip
            assert part in result.stdout
        assert "noise" not in result.stdout
        assert "noise of the model" in result.stderr

    def test_json_is_a_plan(self, run, project):
        result = run("plan", "project.py:build", "r.yaml", "--format", "json", "-o", "plan.json")
        assert (result.exit_code, result.stdout) == (0, "")
        plan = Plan.from_json((project / "plan.json").read_text())
        assert [site.name for site in plan.sites] == ["regbn_late"]

    @pytest.mark.parametrize(("name", "read"), [("plan.json", json.loads), ("plan.yml", yaml.safe_load)])
    def test_the_name_of_the_file_decides(self, run, project, name, read):
        assert run("plan", "project.py:build", "r.yaml", "-o", name).exit_code == 0
        assert len(read((project / name).read_text())["sites"]) == 1
        refused = run("plan", "project.py:build", "r.yaml", "--format", "text", "-o", name, "--force")
        assert refused.exit_code == 2
        assert "with --format text; use .txt, .svg" in refused.stderr

    def test_yaml_says_the_same(self, run, project):
        as_yaml = yaml.safe_load(run("plan", "project.py:build", "r.yaml", "--format", "yaml").stdout)
        as_json = json.loads(run("plan", "project.py:build", "r.yaml", "--format", "json").stdout)
        assert as_yaml == as_json
        assert Plan.from_dict(as_yaml).sites

    def test_a_rule_that_matches_nothing_is_a_finding(self, run, project):
        (project / "r.yaml").write_text(RULES.replace("concat", "scatter"))
        result = run("plan", "project.py:build", "r.yaml")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "r.yaml:2:34: rule `late` matches no fusion point" in result.stderr

    def test_under_warn_it_is_a_warning_and_nothing_to_do_a_finding(self, run, project):
        (project / "r.yaml").write_text("strict: warn\n" + RULES.replace("concat", "scatter"))
        result = run("plan", "project.py:build", "r.yaml")
        assert result.exit_code == 1
        assert "RB101 r.yaml:3:34: rule `late` matches no fusion point" in result.stdout
        assert "warning: see RB101 above\nnothing would be normalised" in result.stderr
        assert "0 RegBN modules to put in" in result.stdout
        as_json = run("plan", "project.py:build", "r.yaml", "--format", "json")
        assert as_json.stderr.count("warning: RB101 r.yaml:3:34: rule `late` matches no fusion point") == 1

    def test_a_surgery_that_fails_is_a_finding(self, run, project):
        (project / "reading.py").write_text(
            "import torch\n"
            "from torch import nn\n\n"
            "class Tower(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.layer = nn.Linear(6, 4)\n"
            "    def forward(self, x):\n"
            "        return self.layer(x) if bool((x < 100).all()) else x\n\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.one, self.two = Tower(), Tower()\n"
            "    def forward(self, a, b):\n"
            "        return torch.cat([self.one(a), self.two(b)], 1)\n\n"
            "def build():\n"
            "    return Net(), (torch.randn(4, 6), torch.randn(4, 6))\n"
        )
        (project / "r.yaml").write_text(
            "version: 1\nrules:\n  - {id: p, pair: {f: 'module:one.layer', g: 'module:two.layer'}}\n"
        )
        result = run("plan", "reading.py:build", "r.yaml")
        assert result.exit_code == 1
        assert result.stdout.startswith("1 RegBN module planned, but the surgery fails (see RB106)\n")
        assert "warning: see RB106 above\nthe surgery fails: see RB106" in result.stderr
        assert "Next, " not in result.stderr

    def test_a_rule_that_cannot_be_applied_is_an_error(self, run, project):
        (project / "r.yaml").write_text(RULES.replace(", normalize: gray", ""))
        result = run("plan", "project.py:build", "r.yaml")
        assert result.exit_code == 2
        assert "    normalize: gray\n    normalize: colored" in result.stderr

    def test_a_typo_is_told_before_the_model_is_loaded(self, run, library, tmp_path):
        (tmp_path / "r.yaml").write_text(RULES.replace("kind", "knd"))
        result = run("plan", MODEL, "r.yaml")
        assert result.exit_code == 2
        assert "did you mean `kind`?" in result.stderr
        assert library.asked == []


class TestCheck:
    def test_good(self, run, tmp_path):
        (tmp_path / "r.yaml").write_text(RULES)
        result = run("check", "r.yaml")
        assert (result.exit_code, result.stdout) == (0, "r.yaml: 1 rule (late), no problem found\n")

    def test_bad(self, run, tmp_path):
        (tmp_path / "r.yaml").write_text("version: 1\nrules: [{id: a}]\n")
        result = run("check", "r.yaml")
        assert result.exit_code == 2
        assert "r.yaml:2:9: rule `a`" in result.stderr

    def test_on_a_model(self, run, project):
        result = run("check", "r.yaml", "project.py:build")
        assert result.exit_code == 0
        assert result.stdout == (
            "r.yaml: 1 rule (late), no problem found; 1 of 1 fusion point normalised, 1 RegBN module\n"
        )

    def test_on_a_model_to_which_it_does_not_apply(self, run, project):
        result = run("check", "r.yaml", "project.py:alone")
        assert result.exit_code == 1
        assert "the model has none: no two of its modalities meet" in result.stderr

    def test_a_model_that_is_not_there(self, run, project):
        assert run("check", "r.yaml", "nowhere.py:build").exit_code == 2


class TestInit:
    def test_the_file_checks_and_plans_as_it_is(self, run, project):
        result = run("init", "project.py:build", "-o", "mine.yaml")
        assert Path("mine.yaml").read_text().startswith("# yaml-language-server: $schema=rules.schema.json\n")
        assert (result.exit_code, result.stdout) == (0, "")
        assert Rules.from_file(project / "mine.yaml").modalities.keys() == {"gray", "colored"}
        assert run("check", "mine.yaml", "project.py:build").exit_code == 0
        plan = run("plan", "project.py:build", "mine.yaml")
        assert plan.exit_code == 0
        assert "1 of 1 fusion point normalised" in plan.stdout

    def test_modalities_may_be_named(self, run, project):
        result = run("init", "project.py:build", "--modality", "b=colored", "--modality", "a=gray")
        assert list(Rules.from_text(result.stdout).modalities) == ["b", "a"]
        assert "normalize: b" in result.stdout

    def test_nothing_to_write_is_an_error(self, run, project):
        result = run("init", "project.py:alone")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no rules file for Alone: no two of its modalities meet" in result.stderr
        assert "--modality NAME=INPUT" in result.stderr


def test_schema(run, tmp_path):
    result = run("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.validate(yaml.safe_load(RULES), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(RULES.replace("concat", "concta")), schema)
    assert run("schema", "-o", "s.json").exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schema


class TestPresets:
    def test_list(self, run):
        result = run("presets")
        assert result.exit_code == 0
        assert max(len(line) for line in result.stdout.splitlines()) <= 80
        lines = result.stdout.replace("\n  ", " ").splitlines()
        assert [line.split()[0] for line in lines] == list(preset_names())
        assert {"early", "late", "layer-wise", "cross-attention", "token-concat"} <= set(preset_names())
        assert all(len(line.split()) > 5 for line in lines)

    @pytest.mark.parametrize("name", preset_names())
    def test_one(self, run, tmp_path, name: str):
        result = run("presets", name)
        assert result.exit_code == 0
        assert Rules.from_text(result.stdout) == Rules.load(name)
        assert run("check", name).exit_code == 0
        run("presets", name, "-o", "copy.yaml")
        assert Rules.from_file(tmp_path / "copy.yaml") == Rules.load(name)

    @pytest.mark.parametrize("file", [None, "-", "vilt.yaml", "rules of mine.txt"])
    def test_the_next_command_takes_what_was_written(self, run, project, file: str | None):
        result = run("presets", "late", *(() if file is None else ("-o", file)))
        proposed = shlex.split(result.stderr.splitlines()[-1].partition(": regbn-surgery ")[2])
        assert proposed == ["plan", "MODEL", "late" if file in (None, "-") else file]
        assert run("plan", "project.py:build", *proposed[2:]).exit_code == 0

    def test_a_name_that_is_none(self, run):
        result = run("presets", "layr-wise")
        assert result.exit_code == 2
        assert "did you mean `layer-wise`?" in result.stderr


@pytest.mark.parametrize("command", ["plan", "check", "init", "schema", "presets"])
def test_help_has_an_example(run: Any, command: str) -> None:
    assert f"Example: regbn-surgery {command}" in run(command, "--help").stdout


class TestNext:
    """The last line of a command says what to do, as a command line that can be run as it is."""

    def test_from_inspect_to_show(self, run, project):
        line = ["project.py:build", "--modality", "b=colored", "--modality", "a=gray"]
        for first in ("inspect", "init"):
            proposed = self.proposed(run(first, *line))
            assert proposed == ["init", *line, "-o", "rules.yaml"]
        result = run(*proposed)
        proposed = self.proposed(result)
        assert proposed[:2] == ["plan", "project.py:build"]
        result = run(*proposed)
        assert result.exit_code == 0, result.stderr
        assert run(*self.proposed(result)).exit_code == 0

    def proposed(self, result):
        last = result.stderr.splitlines()[-1]
        assert last.startswith("Next, ")
        return shlex.split(last.partition(": regbn-surgery ")[2])

    def test_inputs_with_signs_of_the_shell(self, run, project):
        result = run("inspect", "project.py:Late", "--input", "gray=f32[4,6]", "--input", "colored=f32[4, 5]")
        assert self.proposed(result)[2:6] == ["--input", "gray=f32[4,6]", "--input", "colored=f32[4, 5]"]

    @pytest.mark.parametrize(
        "command",
        [
            ["check", "r.yaml"],
            ["check", "r.yaml", "project.py:build"],
            ["schema"],
            ["presets"],
            ["presets", "late"],
            ["show", "project.py:build", "r.yaml"],
            ["verify", "project.py:build", "r.yaml"],
            ["summary", "project.py:build", "r.yaml"],
        ],
    )
    def test_every_command_has_one_and_quiet_leaves_it_out(self, run, project, command):
        assert run(*command).stderr.splitlines()[-1].startswith("Next, ")
        assert "Next" not in run(*command, "--quiet").output


class TestIgnore:
    def test_a_note_is_left_out(self, run, project):
        rules = RULES.replace("rules:", "strict: warn\nrules:").replace("]", ", {id: no, match: {kind: scatter}}]", 1)
        (project / "r.yaml").write_text(rules)
        assert "RB101" in run("plan", "project.py:build", "r.yaml").output
        for command in (["plan", "project.py:build", "r.yaml"], ["check", "r.yaml", "project.py:build"],
                        ["show", "project.py:build", "r.yaml"]):  # fmt: skip
            result = run(*command, "--ignore", "RB101")
            assert result.exit_code == 0, result.stderr
            assert "RB101" not in result.output

    def test_of_an_inspection_too(self, run, project):
        assert "RB002" in run("inspect", "project.py:alone").stdout
        assert "RB002" not in run("inspect", "project.py:alone", "--ignore", "RB001,RB002").stdout
        assert "RB002" not in run("inspect", "project.py:alone", "--format", "json", "--ignore", "RB002").stdout

    def test_a_code_that_is_none(self, run, project):
        result = run("plan", "project.py:build", "r.yaml", "--ignore", "rb101")
        assert result.exit_code == 2
        assert "did you mean `RB101`" in result.stderr
