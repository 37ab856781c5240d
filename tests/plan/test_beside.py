"""The note on a stream that a residual connection adds to the result of an attention as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import plan, regbnify


class Crossing(nn.Module):
    """Text looks at audio; `how`: what becomes of the text beside it, and who computes the attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.audio, self.text = nn.Linear(5, 8), nn.Linear(6, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.before, self.norm, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 3)

    def attended(self, text: Tensor, audio: Tensor) -> Tensor:
        if "by hand" in self.how:
            return (text @ audio.mT / 8**0.5).softmax(-1) @ audio
        return self.cross(text, audio, audio, need_weights=False)[0]

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        audio, text = self.audio(audio), self.text(text)
        found = self.attended(self.before(text) if "norm first" in self.how else text, audio)
        if "alone" not in self.how:
            found = self.norm(text + found)
        return self.head(found.mean(1))


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 7, 5), torch.randn(16, 9, 6)


def rules(**rule: Any) -> dict[str, Any]:
    return {"version": 1, "rules": [{"id": "r", "match": {"kind": "attention"}, **rule}]}


def told(how: str, **rule: Any) -> list[str]:
    return [note for note in plan(Crossing(how), rules(**rule), example()).notes if note.startswith("RB126")]


@pytest.mark.parametrize("how", ["", "norm first", "by hand", "by hand, norm first"])
def test_a_residual_keeps_the_text_as_it_was(how: str) -> None:
    (note,) = told(how, normalize="text", against="audio", replace="f")
    assert "adds text as it was" in note
    (both,) = told(how, normalize="audio", against="text", replace="both")
    assert "adds text as it was" in both


@pytest.mark.parametrize("how", ["", "norm first", "by hand"])
def test_what_is_not_replaced_or_goes_on_nowhere_else_is_no_matter(how: str) -> None:
    assert not told(how, normalize="audio", against="text", replace="f")
    assert not told(f"{how} alone", normalize="text", against="audio", replace="f")


def test_the_pair_that_the_note_advises_changes_the_residual_too() -> None:
    pair = {"id": "r", "pair": {"f": "module:text", "g": "module:audio"}, "replace": "f", "reduce": "mean"}
    for by, changed in ((pair, True), (rules(normalize="text", against="audio", replace="f")["rules"][0], False)):
        model = regbnify(Crossing(""), {"version": 1, "rules": [by]}, example()).train()
        seen: list[Tensor] = []
        model.text.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        model.norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        model.cross.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[0]))
        for _ in range(3):
            seen.clear()
            model(*example())
        text, attended, added = seen
        assert torch.allclose(added - attended, text, atol=1e-5) is not changed


@pytest.mark.parametrize("how", ["", "norm first"])
def test_the_note_names_layers_that_make_both_sides(how: str) -> None:
    (note,) = told(how, normalize="text", against="audio", replace="f")
    assert "`pair: {f: module:text, g: module:audio}, replace: f`" in note


class Inside(nn.Module):
    """The attention is in a layer of its own, to which both streams are handed on."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.cross = nn.Sequential(nn.Linear(8, 8)), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, text: Tensor, audio: Tensor) -> Tensor:
            text = self.own(text)
            return text + self.cross(text, audio, audio, need_weights=False)[0]

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(5, 8), nn.Linear(6, 8)
        self.layers, self.head = nn.ModuleList(self.Layer() for _ in range(2)), nn.Linear(8, 3)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        audio, text = self.audio(audio), self.text(text)
        for layer in self.layers:
            text = layer(text, audio)
        return self.head(text.mean(1))


def test_of_layers_in_different_modules_those_that_need_no_other_order() -> None:
    """The pair of the first of the layers that the note is about, and the plan that it makes."""
    matched = rules(normalize="text", against="audio", replace="f")
    (note,) = (note for note in plan(Inside(), matched, example()).notes if note.startswith("RB126"))
    assert "`pair: {f: module:layers.0.own, g: module:audio}, replace: f`" in note
    pair = {"id": "r", "pair": {"f": "module:layers.0.own", "g": "module:audio"}, "replace": "f", "reduce": "mean"}
    (site,) = plan(Inside(), {"version": 1, "rules": [pair]}, example()).sites
    assert (site.host, site.tier) == ("layers.0", 2)
