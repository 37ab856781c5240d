"""What comes again is no new meeting: positions that every layer adds, and a concatenation that was taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .reading import inputs, points, told

ABC = inputs(a=(5, 8), b=(5, 8), c=(5, 8))
AB = inputs(a=(8,), b=(8,))


class Layer(nn.Module):
    """A layer of a decoder like DETR's: positions are added to queries and keys, never to values."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.first, self.second, self.third = (nn.LayerNorm(8) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(
        self, x: Tensor, places: Tensor | None, memory: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        asked = x if places is None else x + places
        x = self.first(x + self.own(asked, asked, x)[0])
        if memory is not None:
            keys = memory if at is None else memory + at
            x = self.second(x + self.cross(x if places is None else x + places, keys, memory)[0])
        return self.third(x + self.feed(x))


JOINTS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "tokens": lambda self, a, b, places: torch.cat([a, b], 1),
    "channels": lambda self, a, b, places: self.down(torch.cat([a, b], -1)),
    "sum": lambda self, a, b, places: a + b,
    "with the positions": lambda self, a, b, places: self.down(torch.cat([a + places, b], -1)),
}


def layers(count: int = 3) -> dict[str, nn.Module]:
    stack = nn.ModuleList([Layer() for _ in range(count)])
    return {"stack": stack, "down": nn.Linear(16, 8), **{name: nn.Linear(8, 8) for name in ("one", "two", "code")}}


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut in each layer"])
def test_positions_of_one_stream_that_every_layer_adds_to_the_joint_one(joint: str, cut: bool) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        places = self.code(a)
        x = JOINTS[joint](self, self.one(a), self.two(b), places)
        if joint == "tokens":
            places = torch.cat([places, torch.zeros_like(b)], 1)
        for layer in self.stack:
            x = layer(x, places[:, : x.shape[1]] if cut else places)
        return x

    assert told(forward, inputs(a=(5, 8), b=(5, 8)), **layers()) == [
        ("sum" if joint == "sum" else "concat", {"a", "b"})
    ]


def test_positions_of_the_memory() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        memory, places, x = self.down(torch.cat([self.one(a), self.two(b)], -1)), self.code(a), self.one(c)
        for layer in self.stack:
            x = layer(x, None, memory, places)
        return x

    found = points(forward, ABC, **layers())
    assert [(p.owner, p.kind) for p in found] == [
        ("", "concat"), *((f"stack.{i}", "attention") for i in range(3)),
    ]  # fmt: skip


def test_positions_of_another_stream_meet_the_queries_once() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x, places = self.one(a), self.code(b)
        for layer in self.stack:
            x = layer(x, places)
        return x

    assert [(p.owner, p.kind) for p in points(forward, inputs(a=(5, 8), b=(5, 8)), **layers())] == [("stack.0", "sum")]


def test_new_features_of_one_stream_in_every_layer_are_points() -> None:
    """As in FuseNet: each is a tensor of its own."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = self.one(a) + self.two(b)
        for layer in self.stack:
            b = self.code(b)
            x = layer(x, None) + b
        return x

    assert len(told(forward, inputs(a=(5, 8), b=(5, 8)), **layers())) == 4


def test_a_stream_that_residual_connections_carry_stays_itself() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.one(a), self.two(b)
        x = x + self.code(x)
        for layer in self.stack:
            x = x + layer(self.down(torch.cat([x, y], -1)), None)
        return torch.cat([x, y], -1).relu()

    assert told(forward, inputs(a=(5, 8), b=(5, 8)), **layers()) == [("concat", {"a", "b"})] * 4


AGAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: torch.cat(x.chunk(2, 1), 1),
    "split": lambda x: torch.cat(x.split([8, 8], -1), dim=-1),
    "slices": lambda x: torch.cat([x[:, :8], x[:, 8:]], 1),
    "three slices": lambda x: torch.hstack([x[:, :4], x[:, 4:8], x[:, 8:]]),
    "narrow": lambda x: torch.cat([x.narrow(1, 0, 8), x.narrow(1, 8, 8).contiguous()], 1),
    "unbind": lambda x: torch.stack(x.view(-1, 2, 8).unbind(1), 1).flatten(1),
    "select": lambda x: torch.cat([x.view(-1, 2, 8)[:, 0], x.view(-1, 2, 8).select(1, 1)], 1),
    "across the seam": lambda x: torch.cat([x[:, :12], x[:, 12:]], 1),
}


@pytest.mark.parametrize("again", AGAIN)
def test_a_concatenation_that_is_taken_apart_and_joined_as_it_was_is_one_point(again: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([self.one(a), self.two(b)], 1)
        return self.down(x) + self.up(AGAIN[again](x))

    found = points(forward, AB, **layers(0), up=nn.Linear(16, 8))
    assert [(point.kind, point.level) for point in found] == [("concat", "late")]


@pytest.mark.parametrize(
    "other",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: torch.cat([x[:, :8].relu(), x[:, 8:]], 1),
        lambda x: torch.cat([x[:, :8], x[:, 12:]], 1).repeat(1, 2)[:, :16],
    ],
    ids=["in another order", "with something done to a part", "not all of it"],
)
def test_what_is_joined_otherwise_is_another_point(other: Any) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([self.one(a), self.two(b)], 1)
        return torch.stack([self.down(x).detach(), self.up(other(x))])[0]

    found = points(forward, AB, **layers(0), up=nn.Linear(16, 8))
    assert [point.kind for point in found if point.level != "remeeting"] == ["concat", "concat"]


def test_a_stack_that_went_through_a_trunk_is_joined_anew() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = self.one(torch.stack([a, b]).flatten(0, 1))
        return self.down(torch.cat(x.chunk(2), 1))

    (point,) = points(forward, AB, **layers(0))
    assert (point.op, point.level) == ("cat", "late")


class Join(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


DECODERS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "sum": lambda self, x, skip: x + self.skip(skip),
    "channels": lambda self, x, skip: self.down(torch.cat([self.skip(skip), x], -1)),
    "sum, the skip resampled": lambda self, x, skip: x + self.skip(skip).relu().flip(1),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_whose_skips_go_through_layers_of_their_own(decoder: str) -> None:
    """The joint stream of an encoder is led around its deeper levels: it meets itself, and nothing else."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        skips, x = [], a
        for own, other, join in zip(self.own, self.other, self.join, strict=True):
            b = other(b)
            x = join(own(x), b)
            skips.append(x)
        x = skips.pop()
        while skips:
            x = DECODERS[decoder](self, self.up(x), skips.pop())
        return x

    stacks = {name: nn.ModuleList([nn.Linear(8, 8) for _ in range(3)]) for name in ("own", "other")}
    layers = {"up": nn.Linear(8, 8), "skip": nn.Linear(8, 8), "down": nn.Linear(16, 8)}
    join = nn.ModuleList([Join() for _ in range(3)])
    found = points(forward, inputs(a=(5, 8), b=(5, 8)), **stacks, **layers, join=join)
    assert [point.owner for point in found] == ["join.0", "join.1", "join.2"]
    assert [point.level for point in found] == ["middle", "middle", "late"]


def test_two_joint_streams_that_exchange_do_re_meet() -> None:
    """Neither is led around the other: each was joined of something that the other has not been computed from."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        one, two = self.one(torch.cat([a, b], -1)), self.two(torch.cat([self.own(b), a], -1))
        one = self.three(torch.cat([one, two], -1))
        return self.head(torch.cat([self.next(two), one], -1))

    wide = {name: nn.Linear(16, 8) for name in ("one", "two", "three", "head")}
    found = points(forward, AB, **wide, own=nn.Linear(8, 8), next=nn.Linear(8, 8))
    assert [point.level for point in found] == ["early", "middle", "remeeting", "remeeting"]


LAID_OUT: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeat": lambda c, count: c.unsqueeze(1).repeat(1, count, 1),
    "expand": lambda c, count: c[:, None].expand(-1, count, -1),
    "repeat_interleave": lambda c, count: c[:, None].repeat_interleave(count, dim=1),
    "tile": lambda c, count: torch.tile(c[:, None], (1, count, 1)),
    "stack of itself": lambda c, count: torch.stack([c] * count, dim=1),
    "cat of itself": lambda c, count: torch.cat([c[:, None]] * count, dim=1),
}


@pytest.mark.parametrize("lay_out", LAID_OUT)
@pytest.mark.parametrize("projected", [False, True], ids=["the same", "projected anew"])
def test_a_condition_laid_out_beside_every_place_again(lay_out: str, projected: bool) -> None:
    """The very vector that the tokens have met before is no news, whoever lays it out; a new projection of it is."""

    def forward(self: Any, tokens: Tensor, condition: Tensor) -> Tensor:
        c = self.c(condition)
        x = self.first(torch.cat([tokens, LAID_OUT[lay_out](c, 5)], -1)).relu()
        again = self.other(condition) if projected else c
        x = self.second(torch.cat([x, LAID_OUT[lay_out](again, 5)], -1))
        # Still the joint stream: what enters it now is a point.
        return self.head(torch.cat([x.mean(1), self.third(condition)], -1))

    layers = {"c": nn.Linear(6, 8), "first": nn.Linear(16, 8), "second": nn.Linear(16, 8)}
    more = {"other": nn.Linear(6, 8), "third": nn.Linear(6, 8), "head": nn.Linear(16, 2)}
    found = points(forward, inputs(tokens=(5, 8), condition=(6,)), **layers, **more)
    met = [{frozenset(home) for home in point.homes} for point in found]
    both, alone = frozenset({"tokens", "condition"}), frozenset({"condition"})
    assert met == [{frozenset({"tokens"}), alone}, *([{both, alone}] if projected else []), {both, alone}]


def test_rounds_of_one_point_that_are_gathered_twice() -> None:
    """The mean of some rounds and the mean of others are still of that point."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        b, levels = self.b(b), []
        for size in (2, 3):
            rounds = [self.join(torch.cat([a[:, i], b], -1)) for i in range(size)]
            levels.append(torch.stack(rounds).mean(0))
        return self.head(torch.cat(levels, -1))

    layers = {"b": nn.Linear(6, 8), "join": nn.Linear(16, 8), "head": nn.Linear(16, 2)}
    (point,) = points(forward, inputs(a=(3, 8), b=(6,)), **layers)
    assert point.level == "late"
