"""Inside the frame of an owner: who made a tensor, what all its data passed through, and who reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regbn_surgery._analysis._anchors import FrameView
from tests.trace.replay import make

from .reading import analysed, inputs

TOKENS = inputs(a=(5, 8), b=(7, 8))


def view_of(forward: Any, example: Any = TOKENS, path: str = "", **children: Any) -> FrameView:
    run = analysed(forward, example, **children).runs[0]
    frame = next(frame for frame in run.trace.frames if frame.path == path)
    return FrameView(frame, run.trace, run.flow, run.layout)


def names(view: FrameView) -> list[str]:
    return [event.key[0] for event in view.events]


def test_events_are_the_owners_own_calls_in_order_children_included() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(self.inner(a)) + self.lin(b).sum(1, keepdim=True)

    view = view_of(forward, inner=make(lambda self, a: a * 2), lin=nn.Linear(8, 8))
    assert names(view) == ["Made", "relu", "Linear", "sum", "add"]
    assert [event.order for event in view.events] == [0, 1, 2, 3, 4]
    assert sorted(view.arguments.values()) == ["a", "b"]


def test_the_chain_goes_back_through_forks_that_join_again() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        stem = self.lin(a)
        return stem.sigmoid() * stem.tanh()

    view = view_of(forward, lin=nn.Linear(8, 8))
    chain = view.chain((view.events[-1].outputs[0],))
    makers = [view.maker[uid].key[0] if uid in view.maker else view.arguments[uid] for uid, _ in chain]
    assert makers == ["mul", "Linear", "a"]
    assert [{event.key[0] for event in events} for _, events in chain] == [
        set(), {"mul", "sigmoid", "tanh"}, {"Linear"},
    ]  # fmt: skip


def test_taking_a_tensor_replaces_it_on_the_way_to_the_fusion_only() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        stem = self.lin(a)
        aside = stem.sum()
        joint = stem.relu() + b[:, :5]
        return joint, aside, stem * 3

    view = view_of(forward, lin=nn.Linear(8, 8))
    fusion = next(event for event in view.events if event.key[0] == "add")
    stem = next(event for event in view.events if event.key[0] == "Linear").outputs[0]
    take = view.take(stem, fusion.inputs[:1], fusion)
    assert [key[0] for key, _ in take.readers] == ["relu"]
    assert take.argument is None
    assert view.read_only(stem).readers == ()


def test_an_argument_is_known_by_its_name() -> None:
    def fuse(self: Any, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left, right], 1)

    view = view_of(
        lambda self, a, b: self.inner(self.lin(a), right=b), path="inner", inner=make(fuse), lin=nn.Linear(8, 8)
    )
    fusion = view.events[-1]
    assert [view.take(uid, (uid,), fusion).argument for uid in fusion.inputs] == ["left", "right"]
    assert view.argument_behind(fusion.inputs[0]) == fusion.inputs[0]
    root = view_of(lambda self, a, b: torch.cat([a, b], 1))
    assert root.argument_behind(root.events[-1].inputs[0]) is None, "the root's are inputs, not branches"


def test_a_gate_is_taken_before_its_squashing_and_stretching() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return a * (1 + torch.sigmoid(self.lin(b.mean(1)))).unsqueeze(1)

    view = view_of(forward, lin=nn.Linear(8, 8))
    gate = view.events[-1].inputs[1]
    assert view.maker[view.before_squash(gate)].key[0] == "Linear"


def test_embeddings_are_taken_before_they_are_normalised() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        pooled = self.lin(a).mean(1)
        return nn.functional.normalize(pooled, dim=-1).t() * 10

    view = view_of(forward, lin=nn.Linear(8, 8))
    assert view.maker[view.before_normalisation(view.events[-1].outputs[0])].key[0] == "mean"
