"""What the axes of a tensor mean, with the evidence; what cannot be known is said to be unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbn_surgery._analysis._layouts import same_calls
from regbn_surgery._trace import capture
from regbn_surgery._types import Layout

from .reading import Inputs, analysed, inputs, inspected, normal


def layouts(forward: Any, example: Any, **children: Any) -> list[Layout]:
    """The layouts of the output's tensors, in evaluation mode."""
    run = analysed(forward, example, **children).runs[0]
    return [run.layout(uid) for uid in run.trace.frames[0].outputs]


def brief(layout: Layout) -> tuple[int | None, int | None, tuple[int, ...], bool]:
    return layout.batch_dim, layout.channel_dim, layout.spatial_dims, layout.sequence


MAPS, TOKENS = inputs(a=(3, 6, 6)), inputs(a=(5, 8))
IDS = {"a": torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("forward", "example", "layer", "expected", "words"),
    [
        (lambda self, a: self.m(a), MAPS, nn.Conv2d(3, 4, 3), (0, 1, (2, 3), False), "axis 1 of Conv2d `m`"),
        (lambda self, a: self.m(a), MAPS, nn.BatchNorm2d(3), (0, 1, (2, 3), False), "axis 1 of BatchNorm2d `m`"),
        (lambda self, a: self.m(a), TOKENS, nn.Linear(8, 4), (0, 2, (1,), True), "last axis of Linear `m`"),
        (lambda self, a: self.m(a), TOKENS, nn.LayerNorm(8), (0, 2, (1,), True), "last axis of LayerNorm `m`"),
        (lambda self, a: self.m(a), IDS, nn.Embedding(9, 4), (0, 2, (1,), True), "last axis of Embedding `m`"),
        (lambda self, a: self.m(a)[0], TOKENS, nn.GRU(8, 4, batch_first=True), (0, 2, (1,), True), "of GRU `m`"),
        (lambda self, a: self.m(a), TOKENS, nn.Conv1d(5, 4, 3), (0, 1, (2,), False), "axis 1 of Conv1d `m`"),
        (lambda self, a: self.m(a).relu().mT, TOKENS, nn.Linear(8, 4), (0, 1, (2,), True), "followed from"),
        (lambda self, a: self.m(a).flatten(2), MAPS, nn.Conv2d(3, 4, 3), (0, 1, (2,), False), "Conv2d"),
        (lambda self, a: self.m(a).flatten(2).transpose(1, 2), MAPS, nn.Conv2d(3, 4, 3), (0, 2, (1,), True), "from"),
        (lambda self, a: self.m(a).permute(2, 3, 0, 1), MAPS, nn.Conv2d(3, 4, 3), (2, 3, (0, 1), False), "from"),
        (lambda self, a: self.m(a).mean((2, 3)), MAPS, nn.Conv2d(3, 4, 3), (0, 1, (), False), "Conv2d"),
        (lambda self, a: self.m(a).mean(1), TOKENS, nn.Linear(8, 4), (0, 1, (), False), "followed from"),
        (lambda self, a: self.m(a)[:, 0], TOKENS, nn.Linear(8, 4), (0, 1, (), False), "followed from"),
        (lambda self, a: self.m(a).flatten(1), MAPS, nn.Conv2d(3, 4, 3), (0, 1, (), False), "Conv2d"),
        (lambda self, a: self.m(a).view(-1, 5, 2, 2), TOKENS, nn.Linear(8, 4), (0, 3, (1, 2), False), "followed from"),
        (lambda self, a: a @ self.w, TOKENS, nn.Identity(), (0, 2, (1,), True), "product with parameter `w`"),
        (lambda self, a: a @ self.m.weight.T, TOKENS, nn.Linear(8, 4), (0, 2, (1,), True), "parameter `m.weight`"),
        (lambda self, a: a @ self.m.weight.mT[:, :2].float(), TOKENS, nn.Linear(8, 4), (0, 2, (1,), True), "parameter"),
        (lambda self, a: self.m.weight @ self.n(a).mT, TOKENS, nn.Linear(8, 4),
         (0, 1, (2,), True), "parameter `m.weight`"),
        (lambda self, a: self.a @ self.m(a), TOKENS, nn.Linear(8, 4), (0, 2, (1,), True), "axis of Linear `m`"),
        (lambda self, a: torch.einsum("bmc,nm->bnc", self.m(a), self.a), TOKENS, nn.Linear(8, 4),
         (0, 2, (1,), True), "axis of Linear `m`"),
        (lambda self, a: torch.einsum("bld,cd->blc", a, self.m.weight), TOKENS, nn.Linear(8, 4),
         (0, 2, (1,), True), "parameter `m.weight`"),
        (lambda self, a: torch.einsum("cd,bld->bcl", self.m.weight, self.n(a)), TOKENS, nn.Linear(8, 4),
         (0, 1, (2,), True), "parameter `m.weight`"),
        (lambda self, a: torch.einsum("bld,d->bld", a, self.m.bias), TOKENS, nn.Linear(4, 8),
         (0, 2, (1,), True), "parameter `m.bias`"),
    ],
)  # fmt: skip
def test_the_channel_axis_comes_from_the_layers_a_tensor_went_through(
    forward: Any, example: Any, layer: Any, expected: Any, words: str
) -> None:
    (layout,) = layouts(
        forward, example, m=layer, n=nn.LayerNorm(8), w=nn.Parameter(torch.ones(8, 3)), a=nn.Parameter(torch.ones(7, 5))
    )
    assert brief(layout) == expected
    assert layout.known
    assert any(words in line for line in layout.evidence), layout.evidence
    assert any("batch axis" in line for line in layout.evidence)


def test_an_input_looks_at_who_reads_it() -> None:
    found = inspected(lambda self, a: self.m(a.permute(0, 3, 1, 2)), inputs(a=(6, 6, 3)), m=nn.Conv2d(3, 4, 3))
    (given,) = found.inputs
    assert brief(given.layout)[:3] == (0, 3, (1, 2))
    assert any("read as" in line or "before" in line for line in given.layout.evidence)


def test_what_no_layer_tells_is_unknown() -> None:
    adjacency = nn.Parameter(torch.ones(7, 5))
    (mixed,) = layouts(lambda self, a: self.w @ a, TOKENS, w=adjacency)  # nodes from nodes: no features are made
    assert mixed.channel_dim is None
    (layout,) = layouts(lambda self, a: a * 2, TOKENS)
    assert (layout.batch_dim, layout.channel_dim, layout.spatial_dims, layout.known) == (0, None, (), False)
    assert any("channel axis unknown" in line for line in layout.evidence)
    (vector,) = layouts(lambda self, a: a * 2, inputs(a=(8,)))
    assert brief(vector) == (0, 1, (), False)


def test_the_batch_axis_is_the_one_that_follows_the_batch_size() -> None:
    first = {"a": normal(5, 4, 8), "b": normal(7, 4, 8)}
    found = layouts(lambda self, a, b: (self.m(a), self.m(b).mean(0)), first, m=nn.Linear(8, 4))
    assert [brief(layout) for layout in found] == [(1, 2, (0,), True), (0, 1, (), False)]


def test_a_folded_batch_is_told_and_unfolded_again() -> None:
    def forward(self: Any, a: Tensor) -> Any:
        folded = self.m(a.flatten(0, 1))
        return folded, folded.unflatten(0, (-1, 5))

    folded, unfolded = layouts(forward, inputs(a=(5, 8)), m=nn.Linear(8, 4))
    assert folded.batch_dim is None
    assert not folded.known
    assert any("5 x the batch size" in line for line in folded.evidence)
    assert brief(unfolded) == (0, 2, (1,), True)


def test_without_a_second_batch_size_the_batch_axis_is_unknown() -> None:
    example = Inputs(normal(4, 8), normal(5, 8))
    (layout,) = layouts(lambda self, a, b: self.m(a), example, m=nn.Linear(8, 4))
    assert (layout.batch_dim, layout.channel_dim) == (None, 1)
    assert "batch axis unknown: no second batch size could be run" in layout.evidence
    assert layout.spatial_dims == ()


def test_a_tensor_without_samples_has_no_batch_axis() -> None:
    (layout,) = layouts(lambda self, a: self.m.weight * a.sum(), inputs(a=(8,)), m=nn.Linear(8, 4))
    assert layout.batch_dim is None
    assert "no axis follows the batch size" in layout.evidence


def test_a_loop_over_samples_does_not_shift_what_comes_after() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        rows = [self.m(row) for row in a]
        return self.m(torch.stack(rows) + a)

    (layout,) = layouts(forward, inputs(a=(5, 8)), m=nn.Linear(8, 8))
    assert brief(layout) == (0, 2, (1,), True)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, a, b: torch.cat([F.adaptive_avg_pool2d(a, 1).flatten(1), self.m(b)], 1),
        lambda self, a, b: torch.cat([F.interpolate(a, size=2), F.max_pool2d(b, 2)], 1),
    ],
)
def test_pooling_says_where_the_channels_of_an_untouched_map_are(forward: Any) -> None:
    example = {"a": normal(2, 3, 4, 4), "b": normal(2, 3, 4, 4)}
    found = inspected(forward, example, m=nn.Sequential(nn.Flatten(), nn.Linear(48, 4)))
    layout = found.inputs[0].layout
    assert brief(layout) == (0, 1, (2, 3), False)
    assert any("axis 1" in line for line in layout.evidence)


def along(self: Any, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([self.first(a), self.second(b)], 1)


def test_features_laid_out_as_a_map_have_their_channels_where_a_layer_reads_them() -> None:
    """The last of the axes is a guess, for heads; a convolution that reads the map, also behind a join, knows."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        flat, places = self.flat(b).view(-1, 2, 6, 6), self.places(b).view(-1, 1, 6, 6)
        strongest = torch.max(self.m(a), 1)[0].unsqueeze(1)
        return flat, places, strongest, self.conv(torch.cat([strongest, places, flat.relu()], 1))

    layers = {"flat": nn.Linear(8, 72), "places": nn.Linear(8, 36), "m": nn.Conv2d(3, 5, 1), "conv": nn.Conv2d(4, 3, 1)}
    found = layouts(forward, inputs(a=(3, 6, 6), b=(8,)), **layers)
    assert [brief(layout) for layout in found] == [(0, 1, (2, 3), False)] * 4


def test_heads_keep_their_channels_in_the_last_axis() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        q, k = (layer(a).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k))
        return q, k, self.out((torch.softmax(q @ k.mT, -1) @ k).transpose(1, 2).flatten(2))

    found = layouts(forward, TOKENS, q=nn.Linear(8, 8), k=nn.Linear(8, 8), out=nn.Linear(8, 8))
    assert [layout.channel_dim for layout in found] == [3, 3, 2]


def test_a_second_example_shows_what_varies_in_length() -> None:
    """Channels-first signals look like maps of fixed size, until one of another length comes."""
    short, long = ({"a": normal(4, 3, n), "b": normal(4, 5, n)} for n in (6, 9))
    children = {"first": nn.Conv1d(3, 4, 3), "second": nn.Conv1d(5, 4, 3)}
    (fixed,) = inspected(along, short, **children).fusion_points
    assert (fixed.sites[0].reduce, fixed.operands[0].layout.sequence) == ("flatten", False)
    (point,) = inspected(along, [Inputs(**short), Inputs(**long)], **children).fusion_points
    assert point.sites[0].reduce == "mean"
    assert point.operands[0].layout.sequence
    assert "axis 2 varies in length: 4 in one example, 7 in the other" in point.operands[0].layout.evidence


def test_maps_of_varying_size_vary_along_both_axes() -> None:
    small, large = ({"a": normal(4, 3, n, n + 1), "b": normal(4, 5, n, n + 1)} for n in (6, 9))
    children = {"first": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(5, 4, 3)}
    (point,) = inspected(along, [Inputs(**small), Inputs(**large)], **children).fusion_points
    assert point.sites[0].reduce == "mean"
    assert [words for words in point.operands[1].layout.evidence if "varies" in words] == [
        "axis 2 varies in length: 4 in one example, 7 in the other",
        "axis 3 varies in length: 5 in one example, 8 in the other",
    ]


class Steps(nn.Module):
    def forward(self, x: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            x = getattr(torch, name)(x)
        return x


@pytest.mark.parametrize(
    ("other", "same"), [(("relu", "tanh"), True), (("relu",), False), (("relu", "relu"), False), (("relu",) * 3, False)]
)
def test_two_runs_are_alike_where_they_make_the_same_calls_in_the_same_order(other: Any, same: bool) -> None:
    first, second = (capture(Steps(), (torch.ones(2, 3), names), {})[0] for names in (("relu", "tanh"), other))
    assert same_calls(first, second) is same
    assert same_calls(second, first) is same
