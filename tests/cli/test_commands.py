"""What a person types, what comes out on which stream, and the exit code."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

import regbn_surgery
from regbn_surgery import CaptureError
from regbn_surgery._cli.commands import cli
from regbn_surgery._cli.group import _MEANT, _PYTHON_ONLY

from ..plan.fakes import inspection

MODEL = "torch.nn:Identity"
RULES = "version: 1\nrules: [{id: late, match: {kind: concat}, normalize: gray}]\n"


class TestInspect:
    def test_table_on_stdout_and_the_models_own_noise_on_stderr(self, run, library):
        result = run("inspect", MODEL)
        assert result.exit_code == 0
        assert result.stdout.startswith("TwoBranch: 1 fusion point, where gray meets colored\n")
        assert "noise" not in result.stdout
        assert "noise from the model's forward" in result.stderr
        assert library.asked == [("Identity", None, None)]

    def test_json(self, run, library):
        result = run("inspect", MODEL, "--format", "json")
        assert json.loads(result.stdout) == library.found.to_dict()

    def test_all_notes_are_shown_to_who_asks_for_them(self, run, library):
        library.found = dataclasses.replace(library.found, notes=tuple(f"note {i}." for i in range(12)))
        few, every = run("inspect", MODEL).stdout, run("inspect", MODEL, "--verbose").stdout
        assert "note 9." in few
        assert "note 10." not in few
        assert "more notes" in few
        assert "note 11." in every

    def test_modalities_are_grouped_by_name(self, run, library):
        run("inspect", MODEL, "--modality", "image=a", "--modality", "text=b,c", "--modality", "image=d.e")
        assert library.asked[0][2] == {"image": ["a", "d.e"], "text": ["b", "c"]}

    @pytest.mark.parametrize("text", ["image", "=x", "image=", "image=,"])
    def test_a_modality_that_cannot_be_read(self, run, library, text):
        result = run("inspect", MODEL, "--modality", text)
        assert result.exit_code == 2
        assert "write NAME=INPUT" in result.stderr

    def test_output_file(self, run, library, tmp_path):
        result = run("inspect", MODEL, "--format", "json", "-o", "found.json")
        assert (result.exit_code, result.stdout) == (0, "")
        assert json.loads((tmp_path / "found.json").read_text())["schema_version"] == 1
        assert "wrote found.json" in result.stderr

    def test_output_file_that_cannot_be_written(self, run, library):
        result = run("inspect", MODEL, "-o", "no/such/folder/x")
        assert result.exit_code == 2
        assert "the folder no/such/folder does not exist; create it first" in result.stderr
        assert library.asked == [], "found before the work"

    def test_no_fusion_point_is_a_finding(self, run, library):
        library.found = inspection()
        result = run("inspect", MODEL)
        assert result.exit_code == 1
        assert "no fusion point" in result.stderr


class TestErrors:
    def test_ours_are_one_message_without_traceback(self, run, library):
        library.error = CaptureError("the forward failed at model.py:7")
        result = run("inspect", MODEL)
        assert result.exit_code == 2
        assert "error: the forward failed at model.py:7" in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""

    def test_the_line_of_the_users_own_code_is_named(self, run, library, tmp_path):
        (tmp_path / "mine.py").write_text("import json\ndef forward():\n    json.loads('{')\n")
        sys.path.insert(0, str(tmp_path))
        import mine

        try:
            mine.forward()
        except json.JSONDecodeError as cause:
            library.error = CaptureError("the model could not be run")
            library.error.__cause__ = cause
        assert f"(raised at {tmp_path}/mine.py:3; --debug" in run("inspect", MODEL).stderr
        del sys.modules["mine"]

    def test_others_point_to_debug(self, run, library):
        library.error = ZeroDivisionError("x")
        result = run("inspect", MODEL)
        assert result.exit_code == 2
        assert "unexpected error: ZeroDivisionError: x" in result.stderr
        assert "--debug" in result.stderr

    def test_debug_lets_them_through(self, run, library):
        library.error = CaptureError("x")
        assert isinstance(run("inspect", MODEL, "--debug").exception, CaptureError)

    def test_a_model_that_is_not_there(self, run, library):
        result = run("inspect", "nowhere.py:build")
        assert result.exit_code == 2
        assert "does not exist" in result.stderr


class TestShow:
    def test_plan_and_diff(self, run, library, tmp_path):
        (tmp_path / "r.yaml").write_text(RULES)
        result = run("show", MODEL, "r.yaml")
        assert result.exit_code == 0, result.stderr
        for part in (
            "1 RegBN module to put in", "regbn_late", "f gray: 96 channels", "g colored: 96 channels",
            "96×96, 36 KiB", "in the host's own code", "(root) (TwoBranch), source: its own code, with RegBN at",
            "--- two_branch.py\n+++ two_branch.py\n@@ -7 +7 @@\n",
            "-return torch.cat((a, b), 1)\n+return torch.cat((c, d), 1)\n",
        ):  # fmt: skip
            assert part in result.stdout

    def test_a_preset_by_name(self, run, library):
        assert "regbn_late" in run("show", MODEL, "late").stdout

    def test_a_rule_that_matches_nothing_is_a_finding(self, run, library, tmp_path):
        (tmp_path / "r.yaml").write_text(RULES.replace("concat", "scatter"))
        result = run("show", MODEL, "r.yaml")
        assert result.exit_code == 1
        assert "r.yaml:2:34: rule `late` matches no fusion point" in result.stderr

    def test_an_unknown_key_is_told_before_the_model_is_loaded(self, run, library, tmp_path):
        (tmp_path / "r.yaml").write_text(RULES.replace("kind", "knd"))
        result = run("show", MODEL, "r.yaml")
        assert result.exit_code == 2
        assert "unknown key `knd`; did you mean `kind`?" in result.stderr
        assert library.asked == []


class TestStart:
    @pytest.mark.parametrize("command", ["", *cli.commands])
    def test_help_imports_little(self, command):
        """Imports are what start-up costs; counted, since time is another on every machine. click alone makes 120."""
        code = (
            "import sys; from regbn_surgery.__main__ import main\n"
            "try:\n    main()\nfinally:\n    print(len(sys.modules), *sorted(m.split('.')[0] for m in sys.modules))"
        )
        words = [command] if command else []
        done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage: regbn-surgery" in done.stdout
        number, *names = done.stdout.splitlines()[-1].split()
        assert not {"torch", "numpy", "rich", "pydantic", "yaml", "transformers"} & set(names)
        assert int(number) < 200

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("explain", "Did you mean 'show'? Show what rules do to a model."),
            ("explian", "Did you mean 'show'?"),
            ("regbnify", "Did you mean 'show'?"),
            ("starter-rules", "Did you mean 'init'?"),
            ("Plan", "Did you mean 'plan'?"),
            ("verfy", "Did you mean 'verify'?"),
            ("unregbnify", "in Python: regbn_surgery.unregbnify(model)"),
            ("load-regbn", "in Python: regbn_surgery.load_regbn(model)"),
            ("zzz", "The commands: check, completion, diagnose,"),
        ],
    )
    def test_a_name_that_is_no_command_gets_the_one_that_does_it(self, run, name, says):
        result = run(name, "model.py:build")
        assert result.exit_code == 2
        assert f"No such command '{name}'. " in result.stderr
        assert says in result.stderr

    def test_every_suggestion_exists(self):
        assert set(_MEANT.values()) <= set(cli.commands)
        assert not set(_MEANT) & set(cli.commands)
        assert set(_PYTHON_ONLY) <= set(regbn_surgery.__all__)

    def test_help_has_an_example(self, run):
        for command in ("inspect", "show", "check"):
            assert f"Example: regbn-surgery {command}" in run(command, "--help").stdout

    def test_module_and_version(self):
        done = subprocess.run(
            [sys.executable, "-m", "regbn_surgery", "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("regbn-surgery, version ")

    def test_a_terminal_without_unicode_gets_no_traceback(self, tmp_path):
        (tmp_path / "r×.yaml").write_text(RULES)
        done = subprocess.run(
            [sys.executable, "-m", "regbn_surgery", "check", str(tmp_path / "r×.yaml")],
            capture_output=True,
            env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        )
        assert done.returncode == 0
        assert b"no problem found" in done.stdout
