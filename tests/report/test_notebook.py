"""What a notebook shows, and what `repr` says, of an inspection, a plan and a surgery."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from regbn_surgery import explain, inspect, plan, regbnify
from regbn_surgery._report.notebook import surgery_to_html

from ..plan.fakes import inspection, point, side


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(5, 6)

    def forward(self, x, y):
        return torch.cat([self.left(x), self.right(y)], dim=1)


class Well(HTMLParser):
    """Collects text, and refuses what is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html: str) -> Well:
    parser = Well()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


EXAMPLE = (torch.zeros(2, 4), torch.zeros(2, 5))
RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "x"}]}


#: What becomes of the line in which `Two` concatenates.
CHANGED = (
    "+        return _regbn.call(0, torch.cat, [_regbn.made(1, self.left(x)), _regbn.made(2, self.right(y))], dim=1)"
)


@pytest.fixture(scope="module")
def things():
    model = Two()
    return inspect(model, EXAMPLE), plan(model, RULES, EXAMPLE), explain(regbnify(model, RULES, EXAMPLE))


def test_repr_is_one_line_that_says_what_it_is(things):
    assert [repr(thing) for thing in things] == [
        "<Inspection of Two: modalities x, y; fusion points cat>",
        "<Plan for Two: 1 fusion point, RegBN regbn_late>",
        "<SurgeryReport on Two: RegBN regbn_late>",
    ]


def test_str_is_for_reading(things):
    assert str(things[2]).startswith("(root) (Two), source: its own code, with RegBN at the calls below")
    assert CHANGED in str(things[2]).splitlines()


def test_html(things):
    found, made, done = (read(thing._repr_html_()) for thing in things)
    assert {"x 2×8 (B×C)", "y 2×6 (B×C)", "cat", "concat, late", "W 6×8, 0.2 KiB (flatten)"} <= set(found.text)
    assert {"regbn_late", "x: 8 channels", "y: 6 channels", "normalize"} <= set(made.text)
    assert CHANGED in done.text
    assert " (Two), source: regbn_late" in done.text
    assert "details" in done.tags


def test_a_diff_has_the_line_numbers_of_the_file(things, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    number = Two.forward.__code__.co_firstlineno
    header = f"@@ -{number},2 +{number},2 @@"
    header += " regbn_late: f, g, fusion"
    assert header in str(things[2]).splitlines()
    assert {header, "--- tests/report/test_notebook.py"} <= set(read(things[2]._repr_html_()).text)


def test_what_comes_from_the_model_is_text():
    evil = "<img src=x onerror=alert(1)>"
    html = inspection(point(evil, side("gray"), side("colored"), note=evil), model=evil)._repr_html_()
    parsed = read(html)
    assert "img" not in parsed.tags
    assert evil in parsed.text


def test_modalities_are_named_with_their_stretches_and_modules():
    modalities = {"low": {"inputs": ["x"], "slice": {"dim": 1, "range": [0, 2]}}, "y": {"modules": ["right"]}}
    found = read(inspect(Two(), EXAMPLE, modalities)._repr_html_())
    assert any("low (x[:, 0:2]), y (module:right)" in text for text in found.text)


def test_why_a_host_goes_in_as_it_does(things):
    host = dataclasses.replace(things[2].hosts[0], unhooked="its outputs < differ", reason="it counts")
    (said,) = [text for text in read(surgery_to_html("Two", [host])).text if "no hook" in text]
    assert said.endswith("source: regbn_late; no hook: its outputs < differ; not its source: it counts")


def test_a_model_without_regbn_has_an_empty_report():
    report = explain(Two())
    assert (report.hosts, str(report)) == ((), "Two carries no RegBN put in by regbnify.")
    assert report.to_dict() == {"model": "Two", "hosts": []}
    assert repr(report) == "<SurgeryReport on Two: RegBN nowhere>"
