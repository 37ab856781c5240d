"""What the tables print for a branch of several modalities is a name that rules take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regbn_surgery import PlanError, RulesError, inspect, plan, regbnify
from regbn_surgery._rules import Rules
from regbn_surgery._rules.naming import home_name, names_all, names_part, parts_of


class Grouped(nn.Module):
    """Video and audio are added; what comes of it is concatenated with text, or with audio again."""

    def __init__(self, other: str = "text") -> None:
        super().__init__()
        self.video, self.audio, self.text = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(7, 4)
        self.mix, self.head, self.other = nn.Linear(4, 4), nn.Linear(8, 2), other

    def forward(self, video: torch.Tensor, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(torch.relu(self.video(video) + self.audio(audio)))
        side = self.text(text) if self.other == "text" else torch.tanh(self.audio(audio))
        return self.head(torch.cat([mixed, side], 1))


def example(samples: int = 4) -> dict[str, torch.Tensor]:
    return {name: torch.randn(samples, size) for name, size in (("video", 5), ("audio", 6), ("text", 7))}


def rules(**keys: object) -> dict:
    return {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat", "level": ["late", "middle"]}, **keys}]}


@pytest.mark.parametrize("name", ["video+audio", "audio+video", "video + audio", "video"])
def test_a_group_is_a_name_in_any_order(name: str) -> None:
    for keys, homes in (({"normalize": name}, 0), ({"against": name}, 1), ({"normalize": name, "against": "text"}, 0)):
        (site,) = plan(Grouped(), rules(**keys), example()).sites
        assert (site.f.home, site.g.home)[homes] == ("video", "audio")


def test_every_name_that_a_table_prints_is_taken() -> None:
    model = Grouped()
    found = inspect(model, example())
    for point in found.fusion_points:
        for home in point.homes:
            assert home_name(home) in str(found)
            spelt = rules(normalize=home_name(home))
            spelt["rules"][0]["match"] = {"point": point.id}
            (site,) = plan(model, spelt, example()).sites
            assert site.f.home == home


def test_the_whole_name_chooses_between_a_branch_and_a_part_of_it() -> None:
    mixed, again = Grouped("audio"), Grouped("audio")
    (site,) = plan(mixed, rules(normalize="video+audio"), example()).sites
    assert (site.f.home, site.g.home) == (("video", "audio"), ("audio",))
    (site,) = plan(again, rules(normalize="audio", against="audio+video"), example()).sites
    assert (site.f.home, site.g.home) == (("audio",), ("video", "audio"))


def test_between_and_overrides_take_groups_and_training_works() -> None:
    spelt = rules(pairs="all")
    spelt["rules"][0]["match"]["between"] = ["text", "audio+video"]
    spelt["overrides"] = {"cat": {"normalize": "video+audio"}}
    done = regbnify(Grouped(), Rules.load(spelt), example(16))
    done(**example(8)).sum().backward()
    spelt["rules"][0]["match"]["between"] = ["video", "audio"]  # these do not meet there, as two branches
    with pytest.raises(PlanError, match="not video with audio"):
        plan(Grouped(), spelt, example())


@pytest.mark.parametrize("listed", [False, True])
def test_a_misspelt_part_is_named(listed: bool) -> None:
    spelt = rules(normalize="vidoe+audio")
    if listed:
        spelt["modalities"] = {name: name for name in ("video", "audio", "text")}
    with pytest.raises(RulesError, match=r"no modality `vidoe` \(in `vidoe\+audio`\); did you mean `video`\?"):
        plan(Grouped(), spelt, example())


def test_the_same_group_on_both_sides_is_refused() -> None:
    with pytest.raises(RulesError, match="cannot be normalised against itself"):
        Rules.load(rules(normalize="video+audio", against="audio+video"))
    with pytest.raises(RulesError, match="named twice"):
        Rules.load({"version": 1, "rules": [{"id": "a", "match": {"between": ["a+b", "b+a"]}, "pairs": "all"}]})


def test_a_modality_may_have_a_plus_in_its_own_name() -> None:
    known = ("a+b", "c", "a")
    assert parts_of("a+b", known) == ("a+b",)
    assert parts_of("a+b+c", known) == ("a+b", "c") == parts_of("a+b + c", known)
    assert parts_of("c+a+b", known) == ("c", "a+b")
    assert parts_of("a+d", known) is None
    assert parts_of("", known) is None
    assert parts_of("+", known) is None
    assert names_all("c+a+b", ("a+b", "c"))
    assert not names_all("c", ("a+b", "c"))
    assert names_part("c", ("a+b", "c"))
    assert not names_part("a", ("a+b", "c"))
    spelt = rules(normalize="v+a") | {"modalities": {"v+a": ["video", "audio"], "text": "text"}}
    (site,) = plan(Grouped(), spelt, example()).sites
    assert site.f.home == ("v+a",)
