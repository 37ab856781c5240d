"""Tables for people, compared as a whole: a change of their look is a choice (`UPDATE_GOLDEN=1` writes them)."""

import dataclasses
import os
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from regbn_surgery import inspect
from regbn_surgery._plan import decide
from regbn_surgery._report.diff import coloured, diff_of, host_views, unified
from regbn_surgery._report.jsonout import hosts_to_list
from regbn_surgery._report.shapes import mib_text, roles_text, side_text
from regbn_surgery._report.tables import IN_THE_SHELL, inspection_view, notes_view
from regbn_surgery._report.text import inspection_to_text, plain, plan_to_text
from regbn_surgery._rules import Rules
from regbn_surgery._types import Layout

from ..plan.fakes import MAP, TOKENS, UNKNOWN, inspection, point, side, site

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


def example():
    cross = "text_encoder.encoder.layer.{}.crossattention.self"
    return inspection(
        point("fusion.cat", side("gray", (8, 96, 14, 14), MAP), side("colored", (8, 64, 7, 7), MAP), owner="fusion",
              level="middle"),
        *(point(cross.format(i), side("gray", (8, 7, 32), TOKENS), side("colored", (8, 50, 64), TOKENS),
                owner=cross.format(i), kind="attention", op="scaled_dot_product_attention", group="cross",
                sites=(site(side("gray", (8, 7, 32), TOKENS), side("colored", (8, 50, 64), TOKENS),
                            cross.format(i), reduce="mean"),)) for i in range(4)),
        point("similarity", side("gray"), side("colored"), kind="similarity", op="matmul", source=None,
              selected_by_default=False),
        point("odd", side("gray", (8, 28, 28), UNKNOWN), side("colored"),
              sites=(site(side("gray"), side("colored"), obstacle="the batch is folded into the heads"),)),
        notes=("`gray` never meets `sound`",),
    )  # fmt: skip


def planned():
    rules = [
        {"id": "cross", "match": {"kind": "attention"}, "pairs": "all"},
        {"id": "late", "match": {"owner": "fusion"}, "normalize": "colored", "replace": "f"},
        {"id": "odd", "match": {"nth": -1}, "action": "skip"},
    ]
    return decide(Rules.from_dict({"version": 1, "rules": rules}), example())


@pytest.mark.parametrize(("name", "make"), [
    ("inspection", lambda: inspection_to_text(example())),
    ("plan", lambda: plan_to_text(planned())),
    ("nothing", lambda: inspection_to_text(inspection(excluded=()))),
])  # fmt: skip
def test_tables_look_as_agreed_and_fit_80_columns(name, make):
    text = make()
    assert max(len(line) for line in text.splitlines()) <= 80
    golden(name, text)


@pytest.mark.parametrize("sides", [("gray", "colored"), ("colored", "gray")])
def test_no_cost_is_made_up_where_channels_are_unknown(sides):
    known = {"gray": side("gray", (8, 28, 28), UNKNOWN), "colored": side("colored")}
    text = inspection_to_text(inspection(point("cat", *(known[name] for name in sides))))
    assert "channel axis unknown" in text
    assert "MiB" not in text


def test_more_columns_are_used_where_there_are_more():
    narrow, wide = (inspection_to_text(example(), width) for width in (80, 160))
    assert len(wide.splitlines()) < len(narrow.splitlines())


def test_str_of_inspection_and_plan_is_the_table():
    assert str(example()) == inspection_to_text(example())
    assert str(planned()) == plan_to_text(planned())


def test_names_from_the_model_are_never_read_as_markup():
    text = inspection_to_text(inspection(point("[bold]x[/bold]", side("gray"), side("colored")), model="[red]M"))
    assert "[bold]x[/bold]" in text
    assert "[red]M: 1 fusion point" in text


@pytest.mark.parametrize(
    ("layout", "rank", "roles"),
    [
        (MAP, 4, "B×C×H×W"),
        (TOKENS, 3, "B×L×C"),
        (Layout(1, 2, (0,), sequence=True), 3, "L×B×C"),
        (Layout(0, 1, (2, 3, 4)), 5, "B×C×D×H×W"),
        (Layout(0, 1, (2, 3, 4, 5)), 6, "B×C×S1×S2×S3×S4"),
        (UNKNOWN, 3, "B×?×?"),
    ],
)
def test_roles(layout, rank, roles):
    assert roles_text(layout, rank) == roles


def test_sizes():
    assert mib_text(512, 512) == "512×512, 1.00 MiB"
    assert mib_text(2**14, 2**14) == "16384×16384, 1,024 MiB"
    assert side_text(side("gray", (8, 28, 28), UNKNOWN)) == "gray: channels unknown"
    tokens = side("text", (8, 23, 32), Layout(0, 2, (1,), sequence=True))
    assert side_text(tokens, "mean") == "text: 32 channels averaged over 23"
    some = dataclasses.replace(tokens, partly=True)
    assert side_text(some, "mean") == "text: 32 channels averaged over those of 23 positions that are not overwritten"


class Host:
    """What the rewriter tells about a host."""

    host = "fusion"
    host_class = "Fusion"
    tier = 2
    way = "source"
    files = ()
    slots = ()
    reason = ""
    unhooked = ""
    before = "def forward(self, a, b):\n    cat = torch.cat((a, b), 1)\n    return cat"
    after = (
        "def forward(self, a, b):\n    a1, b1 = self.regbn_late(a, b)\n    cat = torch.cat((a1, b1), 1)\n    return cat"
    )

    def __init__(self, **changes):
        self.sites = [s for s in planned().sites if s.rule == "late"]
        for name, value in changes.items():
            setattr(self, name, value)


def test_diff_of_a_host():
    text = "\n".join(plain(view) for view in host_views([Host()]))
    assert text.startswith("\nfusion (Fusion), source: its own code, with RegBN at the calls below\n")
    assert "regbn_late: takes an operand as f and an operand as g; the first is replaced" in text
    assert "--- fusion\n+++ fusion\n@@ -1,3 +1,4 @@\n" in text
    assert "-    cat = torch.cat((a, b), 1)" in text
    assert "+    a1, b1 = self.regbn_late(a, b)" in text


def test_a_hooked_host_shows_its_hook_without_a_diff():
    text = "\n".join(plain(view) for view in host_views([Host(tier=1, way="hook", before="", after="x = regbn(x, y)")]))
    assert text.startswith("\nfusion (Fusion), hook: a hook replaces its arguments; its own code stays as it\nis\n")
    assert "\nx = regbn(x, y)" in text
    assert "---" not in text


def test_code_is_neither_wrapped_nor_cut():
    line = "    y = " + " + ".join(f"variable_{i}" for i in range(20))
    text = "\n".join(plain(view) for view in host_views([Host(after=line)]))
    assert "+" + line in text.splitlines()


def _lines(first: int, last: int, **changed: str) -> str:
    return "\n".join(changed.get(f"line_{i}", f"line_{i}") for i in range(first, last + 1))


def test_a_diff_is_of_the_users_files_at_their_lines() -> None:
    files = (
        ("pack/model.py", _lines(40, 70), _lines(40, 70, line_45="x", line_66="y\nz"), 40),
        ("pack/helper.py", _lines(1, 3), _lines(1, 3, line_2="w"), 1),
    )
    host = Host(files=files, before="what is not shown", after="where there are files")
    assert diff_of(host).splitlines() == [
        "--- pack/model.py", "+++ pack/model.py",
        "@@ -42,7 +42,7 @@", " line_42", " line_43", " line_44", "-line_45", "+x", " line_46", " line_47", " line_48",
        "@@ -63,7 +63,8 @@", " line_63", " line_64", " line_65", "-line_66", "+y", "+z",
        " line_67", " line_68", " line_69",
        "--- pack/helper.py", "+++ pack/helper.py",
        "@@ -1,3 +1,3 @@", " line_1", "-line_2", "+w", " line_3",
    ]  # fmt: skip
    text = "\n".join(plain(view) for view in host_views([host]))
    assert diff_of(host) in text
    assert "what is not shown" not in text


def test_a_file_in_the_working_directory_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    host = Host(files=((str(tmp_path / "pack" / "model.py"), "a", "b", 1), ("/elsewhere/other.py", "a", "b", 1)))
    assert [line for line in diff_of(host).splitlines() if line.startswith("---")] == [
        "--- pack/model.py",
        "--- /elsewhere/other.py",
    ]


def test_a_form_feed_is_no_line_of_its_own() -> None:
    lines = unified("a\n\f\nb\nc", "a\n\f\nb\nd", "m", first=7).split("\n")
    assert lines[2:] == ["@@ -7,4 +7,4 @@", " a", " \f", " b", "-c", "+d"]


def test_a_diff_without_files_is_of_the_hosts_code() -> None:
    lines = diff_of(Host()).splitlines()
    assert lines[:3] == ["--- fusion", "+++ fusion", "@@ -1,3 +1,4 @@"]
    assert lines[3:] == [
        " def forward(self, a, b):", "-    cat = torch.cat((a, b), 1)", "+    a1, b1 = self.regbn_late(a, b)",
        "+    cat = torch.cat((a1, b1), 1)", "     return cat",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "header"),
    [("a", "b", "@@ -30 +30 @@"), ("a\nb", "a\nc\nd", "@@ -30,2 +30,3 @@"), ("a\nb", "b", "@@ -30,2 +30 @@")],
)
def test_hunks_begin_at_the_first_line_of_the_text(before: str, after: str, header: str) -> None:
    assert unified(before, after, "m", first=30).splitlines()[2] == header


def test_only_headers_of_hunks_are_shifted() -> None:
    like = "@@ -1,2 +3,4 @@"
    assert unified(f"{like}\na", f"{like}\nb", "m", first=10).splitlines()[2:] == [
        "@@ -10,2 +10,2 @@", f" {like}", "-a", "+b",
    ]  # fmt: skip


def test_diff_colours():
    diff = coloured(unified("a\nb", "a\nc", "m"))
    styles = {diff.plain[span.start : span.end].strip()[:1]: span.style for span in diff.spans}
    assert styles["-"] in ("red", "bold")
    assert {span.style for span in diff.spans} >= {"red", "green", "cyan", "bold"}
    assert unified("a", "a", "m") == ""


def test_a_host_that_runs_as_it_is_says_why() -> None:
    host = Host(tier=3, way="mode", before="", after="", reason="Fusion.forward counts")
    text = "\n".join(plain(view) for view in host_views([host]))
    assert text.startswith(
        "\nfusion (Fusion), mode: its own code runs as it is; a function mode puts RegBN\nbetween its operations\n"
    )
    assert "why not its source: Fusion.forward counts" in text
    assert "why no hook" not in text


def test_a_host_that_is_not_hooked_says_why() -> None:
    text = "\n".join(plain(view) for view in host_views([Host(unhooked="its outputs differ")]))
    assert "  why no hook: its outputs differ\n" in text
    assert "why not its source" not in text
    (written,) = hosts_to_list([Host(unhooked="its outputs differ")])
    assert (written["unhooked"], written["reason"], written["way"]) == ("its outputs differ", "", "source")


def test_a_host_that_runs_from_a_graph_shows_what_becomes_of_it() -> None:
    text = "\n".join(plain(view) for view in host_views([Host(way="graph")]))
    assert text.startswith("\nfusion (Fusion), graph: its calls run in another order, from a graph of them\n")
    assert "--- fusion\n" in text
    assert "+    a1, b1 = self.regbn_late(a, b)" in text


def test_notes_name_files_from_here_or_from_where_packages_lie(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    installed = os.path.join(sysconfig.get_path("purelib"), "lib", "a.py")
    text = "\n".join(plain(view) for view in notes_view([f"read at {installed}:3, called at {tmp_path / 'b.py'}:4"]))
    assert "read at lib/a.py:3, called at b.py:4" in text


@pytest.mark.parametrize(("m", "n", "text"), [(8, 16, "8×16, 0.5 KiB"), (96, 96, "96×96, 36 KiB")])
def test_a_small_projection_is_not_said_to_hold_nothing(m: int, n: int, text: str) -> None:
    assert mib_text(m, n) == text


def test_ten_notes_are_shown_and_all_where_someone_asks_for_them():
    found = inspection(point("cat", side("gray"), side("colored")), notes=tuple(f"note {i}" for i in range(15)))
    few, everything = plain(inspection_view(found)), plain(inspection_view(found, verbose=True))
    assert [f"note {i}" in few for i in range(15)] == [True] * 10 + [False] * 5
    assert '6 more notes: `to_dict()["notes"]` has them' in few, "with that on the input `mask`"
    assert "--verbose" not in few, "an option is nothing in Python"
    shell = plain(inspection_view(found, rest=IN_THE_SHELL))
    assert shell == few.replace('`to_dict()["notes"]` has', "`--verbose` shows")
    assert all(f"note {i}" in everything for i in range(15))
    assert "more note" not in everything
    assert "note 14" in str(found.to_dict()["notes"])


class Crosses(nn.Module):
    """Text asks the image, then both are pooled and joined; `written` computes the attention by hand."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.cross, self.written = nn.MultiheadAttention(8, 2, batch_first=True), written
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        if self.written:
            scores = self.q(text) @ self.k(image).transpose(1, 2)
            text = text + scores.softmax(-1) @ self.v(image)
        else:
            text = text + self.cross(text, image, image)[0]
        return self.head(torch.cat([image.mean(1), text.mean(1)], 1))


@pytest.mark.parametrize("written", [False, True])
def test_a_stream_that_meets_another_once_is_listed_once(written: bool) -> None:
    found = inspect(Crosses(written), (torch.randn(4, 3, 8), torch.randn(4, 5, 8)))
    for shown in (plain(inspection_view(found, 200), 200), found._repr_html_()):
        assert shown.count("image 2×5×8 (B×tokens×C), keys and values") == 1
        assert shown.count("text 2×3×8") == 1
        assert "image 2×8×5" not in shown
        assert shown.count("text 2×8 (B×C), has seen image") == 1
        assert shown.count("image 2×8 (B×C)") == 1
    assert "where text meets image\n" in str(found), "in either order they are one pair"


def test_a_stream_that_is_scaled_and_shifted_is_listed_once_and_equal_parts_of_a_concatenation_are_not() -> None:
    class Modulates(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            scale, shift = y[:, :4, None], y[:, 4:, None]
            return x * (1 + scale) + shift

    class Joins(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x.relu(), y], 1)

    found = inspect(Modulates(), (torch.randn(4, 4, 6), torch.randn(4, 8)))
    assert str(found).count("x 2×4×6") == 1
    assert str(inspect(Joins(), (torch.randn(4, 4), torch.randn(4, 8)))).count("x 2×4 (") == 2


def test_keys_and_values_of_two_streams_stay_two() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, text: torch.Tensor, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            return self.cross(text, image, audio)[0]

    found = inspect(Apart(), (torch.randn(4, 3, 8), torch.randn(4, 5, 8), torch.randn(4, 5, 8)))
    assert "keys and values" not in str(found)
    assert all(f"{name} 2×5×8" in str(found) for name in ("image", "audio"))
