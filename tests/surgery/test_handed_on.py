"""Pairs whose g is handed on to the module that calls f's: that module is the host, and no call has to wait."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import plan, regbnify, unregbnify
from regbn_surgery._surgery import explain

from .models import build, counting, run


class Layer(nn.Module):
    """Self-attention, then attention to what it is given, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
        self.cross = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.own(tokens)
        if context is None:
            return tokens
        return tokens + self.cross(tokens, context, context, need_weights=False)[0]


class Text(nn.Module):
    """Reads a value into Python, so that its calls cannot be put into another order."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(5, 6), nn.ModuleList(Layer() for _ in range(2))

    def forward(self, text: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.embed(text)
        if bool((text > 100).any()):
            raise ValueError("not text")
        for layer in self.layers:
            tokens = layer(tokens, context=context)
        return tokens


class Captioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.head = nn.Linear(4, 6), Text(), nn.Linear(6, 3)

    def forward(self, text: Tensor, image: Tensor | None = None) -> Tensor:
        context = None if image is None else self.image(image)
        return self.head(self.text(text, context).mean(1))


class Shared(Captioner):
    """Its text encoder is called with two contexts."""

    def forward(self, text: Tensor, image: Tensor | None = None) -> Tensor:
        assert image is not None
        first, second = self.text(text, self.image(image)), self.text(text, 2 * self.image(image))
        return self.head((first + second).mean(1))


def inputs(batch: int = 6, tokens: int = 5, regions: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "text": torch.randn(batch, tokens, 5, generator=generator),
        "image": torch.randn(batch, regions, 4, generator=generator),
    }


def rules(f: str, **more: Any) -> dict[str, Any]:
    pair = {"f": f"module:{f}", "g": "module:image"}
    return {"version": 1, "rules": [{"id": "r", "pair": pair, "replace": "f", "reduce": "mean", **more}]}


def by_hand(model: Any, text: Tensor, image: Tensor, last: bool) -> Tensor:
    context, tokens = model.image(image), model.text.embed(text)
    if not last:
        tokens = model.text.regbn_r.regbn(tokens.mT, context.mT)[0].mT
    for number, layer in enumerate(model.text.layers):
        tokens = layer.own(tokens)
        if last and number == 1:
            tokens = layer.regbn_r.regbn(tokens.mT, context.mT)[0].mT
        tokens = tokens + layer.cross(tokens, context, context, need_weights=False)[0]
    return model.head(tokens.mean(1))


@pytest.mark.parametrize("last", [False, True])
def test_it_is_the_model_written_by_hand(last: bool) -> None:
    wanted = rules("text.layers.1.own" if last else "text.embed")
    rewritten = regbnify(build(Captioner), wanted, inputs())
    path = "text.layers.1" if last else "text"
    (report,) = explain(rewritten)
    assert report.host == path
    rewritten = pickle.loads(pickle.dumps(rewritten))
    for sizes, training in [((4, 3, 2), True), ((7, 6, 4), True), ((3, 5, 1), False)]:
        twin = copy.deepcopy(rewritten).train(training)
        with counting(rewritten) as calls:
            found = run(rewritten, inputs(*sizes), training)
        assert dict(calls) == {f"{path}.regbn_r": 1}
        torch.testing.assert_close(found, by_hand(twin, **inputs(*sizes), last=last), rtol=1e-4, atol=1e-5)
    assert rewritten.get_submodule(f"{path}.regbn_r").regbn.W.any()


def test_a_call_without_the_other_modality_is_as_it_was() -> None:
    model = build(Captioner)
    rewritten = regbnify(model, rules("text.layers.1.own", missing="ignore"), inputs())
    text = {"text": inputs()["text"]}
    torch.testing.assert_close(run(rewritten, text, False), run(model, text, False), rtol=0, atol=0)


def test_the_undone_model_is_the_one_before() -> None:
    model = build(Captioner)
    undone = unregbnify(regbnify(model, rules("text.embed"), inputs()))
    torch.testing.assert_close(run(undone, inputs(5), False), run(model, inputs(5), False), rtol=0, atol=0)
    assert undone.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("model", "replaced"),
    [pytest.param(Captioner, "both", id="g is replaced everywhere"), pytest.param(Shared, "f", id="another tensor")],
)
def test_otherwise_the_host_is_their_common_ancestor(model: type[nn.Module], replaced: str) -> None:
    found = plan(build(model), rules("text.embed", replace=replaced), inputs(), rehearse=False)
    assert [site.host for site in found.sites] == [""]
