"""Streams that are stacked along the batch for a shared trunk keep their own homes, whatever the trunk does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery

from .reading import homes, inputs, points, told

Trunk = dict[str, nn.Module]


def conv(channels: int, out: int) -> nn.Module:
    return nn.Conv2d(channels, out, 3, padding=1)


def unet(self: Any, x: Tensor) -> Tensor:
    wide = self.bn(self.first(x)).relu()
    deep = F.interpolate(self.down(wide), scale_factor=2)
    return self.last(torch.cat([wide, deep], 1))


def dense(self: Any, x: Tensor) -> Tensor:
    known = [self.first(x)]
    for layer in self.grow:
        known.append(layer(torch.cat(known, dim=1)))
    return self.last(torch.cat([known[0], known[-1]], -3))


def pyramid(self: Any, x: Tensor) -> Tensor:
    wide = self.first(x)
    joined = self.lateral(wide) + F.interpolate(self.down(wide), size=wide.shape[-2:])
    tokens = joined.flatten(2).transpose(1, 2)
    tokens = tokens + self.attend(tokens, tokens, tokens)[0] * torch.sigmoid(tokens.mean(1, keepdim=True))
    return torch.cat([joined, tokens.transpose(1, 2).reshape(joined.shape)], 1)[:, :8]


def trunk_parts(streams: int = 3) -> Trunk:
    return {
        "first": conv(3, 8), "bn": nn.BatchNorm2d(8), "down": nn.Conv2d(8, 8, 3, 2, 1), "last": conv(16, 8),
        "grow": nn.ModuleList([conv(8, 8), conv(16, 8)]), "lateral": nn.Conv2d(8, 8, 1),
        "attend": nn.MultiheadAttention(8, 2, batch_first=True), "head": nn.Linear(8 * streams, 3),
    }  # fmt: skip


STACKED: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "cat": lambda xs: torch.cat(tuple(xs), 0),
    "vstack": lambda xs: torch.vstack(tuple(xs)),
    "twice": lambda xs: torch.cat([torch.cat([xs[0], xs[1]]), *xs[2:]]),
    "stack": lambda xs: torch.stack(tuple(xs)).flatten(0, 1),
}
APART: dict[str, Callable[[Tensor, int, int], Sequence[Tensor]]] = {
    "chunk": lambda x, n, b: x.chunk(n, 0),
    "split": lambda x, n, b: torch.split(x, b),
    "slices": lambda x, n, b: [x[i * b : (i + 1) * b] for i in range(n)],
    "two cuts": lambda x, n, b: [x[:b], *x[b:].chunk(n - 1)],
    "view": lambda x, n, b: x.view(n, b, *x.shape[1:]).unbind(0),
    "index": lambda x, n, b: [x.unflatten(0, (n, b))[i] for i in range(n)],
}
TURNS: dict[str, Callable[[Tensor, int], Sequence[Tensor]]] = {
    "view": lambda x, n: x.view(-1, n, *x.shape[1:]).unbind(1),
    "steps": lambda x, n: [x[i::n] for i in range(n)],
}
THREE = inputs(a=(3, 8, 8), b=(3, 8, 8), c=(3, 8, 8))
every_trunk = pytest.mark.parametrize("trunk", [unet, dense, pyramid])


def head(self: Any, parts: Sequence[Tensor]) -> Tensor:
    return self.head(torch.cat([part.mean((2, 3)) for part in parts], 1))


@every_trunk
@pytest.mark.parametrize("stack", STACKED)
@pytest.mark.parametrize("apart", APART)
def test_the_streams_meet_where_they_are_joined_afterwards(trunk: Any, stack: str, apart: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return head(self, APART[apart](trunk(self, STACKED[stack]([a, b, c])), 3, len(a)))

    (point,) = points(forward, THREE, **trunk_parts())
    assert (point.kind, point.level, point.homes) == ("concat", "late", (("a",), ("b",), ("c",)))


@every_trunk
@pytest.mark.parametrize("apart", TURNS)
def test_streams_that_take_turns_along_the_batch(trunk: Any, apart: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = torch.stack([a, b], 1)
        return head(self, TURNS[apart](trunk(self, x.view(-1, *x.shape[2:])), 2))

    (point,) = points(forward, inputs(a=(3, 8, 8), b=(3, 8, 8)), **trunk_parts(2))
    assert (point.kind, point.level, point.homes) == ("concat", "late", (("a",), ("b",)))


@every_trunk
def test_streams_that_go_on_apart_do_not_meet(trunk: Any) -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return trunk(self, torch.cat([a, b, c])).chunk(3)

    parts = trunk_parts()
    del parts["head"]
    assert told(forward, THREE, **parts) == []
    assert homes(forward, THREE, **parts) == ["a", "b", "c"]


def test_parts_that_are_laid_side_by_side_by_a_view_meet_in_the_stack() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = self.lin(torch.cat([a, b]))
        return self.head(x.view(2, len(a), -1).transpose(0, 1).flatten(1))

    assert told(forward, inputs(a=(6,), b=(6,)), lin=nn.Linear(6, 4), head=nn.Linear(8, 3)) == [("concat", {"a", "b"})]


def test_a_loss_over_all_samples_is_no_meeting() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.lin(torch.cat([a, b])).square().mean()

    assert told(forward, inputs(a=(6,), b=(6,)), lin=nn.Linear(6, 4)) == []


def test_two_stacks_that_meet_make_one_point_and_stay_stacks() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        joined = self.join(torch.cat([self.one(torch.cat([a, b])), self.two(torch.cat([c, d]))], 1))
        return self.head(torch.cat(joined.chunk(2), 1))

    layers = {"one": nn.Linear(6, 4), "two": nn.Linear(6, 4), "join": nn.Linear(8, 4), "head": nn.Linear(8, 3)}
    found = points(forward, inputs(a=(6,), b=(6,), c=(6,), d=(6,)), **layers)
    assert [point.homes for point in found] == [(("a", "b"), ("c", "d")), (("a", "c"), ("b", "d"))]
    assert [point.level for point in found] == ["middle", "late"]


def test_a_stack_that_attends_to_a_third_stream() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        x, other = torch.cat([a, b]), c.repeat(2, 1, 1)
        scores = self.q(x) @ self.k(other).transpose(1, 2)
        x = x + scores.softmax(-1) @ self.v(other)
        return self.head(torch.cat([part.mean(1) for part in x.split(len(a))], 1))

    layers = {name: nn.Linear(8, 8) for name in "qkv"} | {"head": nn.Linear(16, 3)}
    found = points(forward, inputs(a=(5, 8), b=(5, 8), c=(7, 8)), **layers)
    assert [(p.kind, {"".join(home) for home in p.homes}) for p in found] == [
        ("attention", {"ab", "c"}), ("concat", {"a", "b"}),
    ]  # fmt: skip


def test_a_stack_meets_itself_in_another_order() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x = self.lin(torch.cat([a, b]))
        first, second = x.chunk(2)
        return self.head(torch.cat([x, torch.cat([second, first])], 1))

    found = told(forward, inputs(a=(6,), b=(6,)), lin=nn.Linear(6, 4), head=nn.Linear(8, 3))
    assert found == [("concat", {"a", "b"})]


def test_a_part_that_is_a_concatenation_is_taken_apart_behind_the_stack() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Any:
        both, other = torch.cat([torch.cat([a, b], 1), c]).relu().chunk(2)
        return *both.chunk(2, 1), other

    example = inputs(a=(3,), b=(3,), c=(6,))
    assert told(forward, example) == []
    assert homes(forward, example) == ["a", "b", "c"]


def test_a_part_that_is_a_concatenation_is_mixed_in_the_stack() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return self.lin(torch.cat([torch.cat([a, b], 1), c])).chunk(2)

    example = inputs(a=(3,), b=(3,), c=(6,))
    assert told(forward, example, lin=nn.Linear(6, 4)) == [("concat", {"a", "b"})]
    assert homes(forward, example, lin=nn.Linear(6, 4)) == ["a+b", "c"]


def test_regbn_goes_between_the_streams_of_a_stack() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down, self.bn, self.last = conv(3, 8), nn.Conv2d(8, 8, 3, 2, 1), nn.Identity(), conv(16, 8)
            self.head = nn.Linear(16, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return head(self, unet(self, torch.cat([a, b])).chunk(2))

    example = inputs(a=(3, 8, 8), b=(3, 8, 8))
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a"}]}
    rewritten = regbn_surgery.regbnify(Siamese(), rules, example)
    report = regbn_surgery.verify(rewritten, {name: x.roll(1, 0)[:3] for name, x in example.items()})
    assert report.ok
    assert [site.carried for site in report.sites] == [((("a",), ("b",)),)]
