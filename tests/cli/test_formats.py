"""Every format of `inspect` and `show` on a real model, to stdout and to files."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from .test_end_to_end import MODEL

RULES = "version: 1\nrules: [{id: late, match: {kind: concat}, normalize: x}]\n"
BEGINNINGS = {"dot": "digraph model {", "html": "<!doctype html>", "svg": "<?xml", "explorer": '{"label": "Two"'}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "formats_model.py").write_text(MODEL)
    (tmp_path / "late.yaml").write_text(RULES)
    return tmp_path


@pytest.mark.parametrize(
    "command", [["inspect", "formats_model.py:build"], ["show", "formats_model.py:build", "late.yaml"]]
)
@pytest.mark.parametrize("form", BEGINNINGS)
def test_graphs_on_stdout(run, place, command, form):
    if form == "svg":
        pytest.importorskip("pygraphviz")
    result = run(*command, "--format", form)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(BEGINNINGS[form])
    assert ("regbn_late" in result.stdout) == (command[0] == "show")


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("m.json", b"{"), ("m.html", b"<!doctype html>"), ("m.dot", b"digraph"), ("m.gv", b"digraph"), ("m.txt", b"Two:"),
     ("m.svg", b"<?xml"), ("m.png", b"\x89PNG")],
)  # fmt: skip
def test_the_name_of_a_file_says_what_goes_into_it(run, place, name, beginning):
    if name.endswith(("svg", "png")):
        pytest.importorskip("pygraphviz")
    result = run("inspect", "formats_model.py:build", "-o", name)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"wrote {name}" in result.stderr
    assert (place / name).read_bytes().startswith(beginning)


def test_a_text_format_in_an_svg_is_a_picture_of_the_terminal(run, place):
    run("show", "formats_model.py:build", "late.yaml", "--format", "diff", "-o", "m.svg")
    text = (place / "m.svg").read_text()
    assert "rich-terminal" in text
    assert "regbn_late" in text
    assert "font-face" not in text, "a picture that asks for fonts of another host"
    assert "m.svg" not in text, "where it goes is no part of it"


def test_tree(run, place):
    before = run("inspect", "formats_model.py:build", "--format", "tree").stdout
    assert "├─ left (Linear)" in before
    assert "◆ cat (concat, late)" in before
    after = run("show", "formats_model.py:build", "late.yaml", "--format", "tree").stdout
    assert "■ regbn_late (RegBN)" in after


def test_table_of_modules(run, place):
    text = run("show", "formats_model.py:build", "late.yaml", "--format", "table").stdout
    assert text.startswith("RegBN module")
    assert "in the host's own code" in text
    assert "+++" not in text


def test_a_diff_is_of_the_users_file_at_its_lines(run, place):
    text = run("show", "formats_model.py:build", "late.yaml", "--format", "diff").stdout
    (line,) = [i for i, line in enumerate(MODEL.splitlines(), 1) if "torch.cat" in line]
    header, *changes = text[text.index("--- ") :].splitlines()
    assert header.endswith("formats_model.py")
    assert (
        changes[1] == f"@@ -{line - 1},2 +{line - 1},2 @@ regbn_late: f, g, fusion"
    )  # the signature, and the one line that changes
    assert changes[3:] == [
        "-        return self.head(torch.cat([self.left(x), self.right(y)], dim=1))",
        "+        return self.head(_regbn.call(0, torch.cat, "
        "[_regbn.made(1, self.left(x)), _regbn.made(2, self.right(y))], dim=1))",
    ]


def test_json_of_a_surgery(run, place):
    found = json.loads(run("show", "formats_model.py:build", "late.yaml", "--format", "json").stdout)
    assert found["plan"]["sites"][0]["name"] == "regbn_late"
    (host,) = found["hosts"]
    assert (host["class"], host["tier"], host["way"], host["modules"]) == ("Two", 2, "source", ["regbn_late"])
    assert "_regbn.call(0, torch.cat, [_regbn.made(1, self.left(x))" in host["after"]


def test_the_model_is_analysed_once(run, place, monkeypatch):
    from regbn_surgery import _api

    calls = []
    analyse = _api.analyse
    monkeypatch.setattr(_api, "analyse", lambda *a: calls.append(1) or analyse(*a))
    assert run("show", "formats_model.py:build", "late.yaml").exit_code == 0
    assert len(calls) == 1


def test_output_that_is_no_terminal_is_plain_and_stable(run, place):
    """A process of its own writes, byte for byte, what the same command writes here."""
    arguments = ["show", "formats_model.py:build", "late.yaml"]
    process = subprocess.run(
        [sys.executable, "-m", "regbn_surgery", *arguments], cwd=place, capture_output=True, check=True
    )
    assert process.stdout.decode() == run(*arguments).stdout
    assert b"\x1b" not in process.stdout
    assert (
        process.stderr.decode()
        == "Next, put RegBN in and train as before: model = regbnify(model, 'late.yaml', example_inputs)\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    script = subprocess.run(
        [sys.executable, "-m", "regbn_surgery", "completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert "_REGBN_SURGERY_COMPLETE" in script


@pytest.mark.parametrize(
    "command",
    [
        "inspect",
        "plan",
        "show",
        "verify",
        "check",
        "init",
        "schema",
        "presets",
        "diagnose",
        "summary",
        "sweep",
        "completion",
    ],
)
def test_every_command_helps_with_an_example(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: regbn-surgery {command}" in " ".join(result.stdout.split())


class TestProgress:
    def test_is_told_on_a_terminal_once_it_takes_long(self, monkeypatch):
        import io

        from regbn_surgery._cli import output

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(output, "_PATIENCE", 0.05)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        with output.progress("thinking"):
            pass
        assert "thinking" not in sys.stderr.getvalue()
        with output.progress("thinking"):
            for _ in range(10_000):
                if "thinking" in sys.stderr.getvalue():
                    break
                time.sleep(0.01)
        assert "thinking" in sys.stderr.getvalue()

    def test_is_not_told_to_a_file(self, monkeypatch, capsys):
        from regbn_surgery._cli import output

        monkeypatch.setattr(output, "_PATIENCE", 0.0)
        with output.progress("thinking"):
            time.sleep(0.1)
        assert capsys.readouterr().err == ""
