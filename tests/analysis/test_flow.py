"""Where streams meet and where they only pass each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reading import homes, inputs, normal, points, told

AB = inputs(a=(8,), b=(8,))
ABC = inputs(a=(8,), b=(8,), c=(8,))
MAPS = inputs(a=(4, 6, 6), b=(4, 6, 6))
CONCAT, SUM, PRODUCT = [("concat", {"a", "b"})], [("sum", {"a", "b"})], [("product", {"a", "b"})]


# -- concatenations and their parts -----------------------------------------------------------------------------------


def cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], dim=-1)


APART: dict[str, Any] = {
    "split": lambda x: x.split(8, dim=-1),
    "split by sizes": lambda x: torch.split(x, [8, 8], -1),
    "chunk": lambda x: x.chunk(2, dim=1),
    "tensor_split": lambda x: x.tensor_split(2, dim=1),
    "slices": lambda x: (x[:, :8], x[..., 8:]),
    "narrow": lambda x: (x.narrow(1, 0, 8), x.narrow(-1, 8, 8)),
    "view": lambda x: x.view(-1, 2, 8).unbind(1),
    "view to rows": lambda x: tuple(x.unflatten(1, (4, 2, 2))[:, rows].flatten(1) for rows in (slice(2), slice(2, 4))),
    "view there and back": lambda x: x.view(-1, 1, 2, 8).relu().flatten(1).chunk(2, 1),
    "through a permutation": lambda x: tuple(part.T for part in x.T.split(8)),
    "through relu and dropout": lambda x: nn.functional.dropout(x.relu(), 0.1).chunk(2, 1),
}


every_way_apart = pytest.mark.parametrize("apart", APART)


@every_way_apart
def test_a_concatenation_that_is_taken_apart_again_is_no_point(apart: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        first, second = APART[apart](cat(a, b))
        return first * 2, second * 3

    assert told(forward, AB) == []
    assert homes(forward, AB) == ["a", "b"]


@every_way_apart
def test_the_parts_meet_later_where_they_do(apart: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        first, second = APART[apart](cat(a, b))
        return first * 2 + second

    assert told(forward, AB) == SUM


@pytest.mark.parametrize(
    "mixing",
    [
        lambda self, x: self.lin(x), lambda self, x: x.sum(-1), lambda self, x: x.softmax(-1),
        lambda self, x: x.view(-1, 8, 2).sum(2), lambda self, x: x.view(-1, 2, 8).sum(1),
        lambda self, x: x.view(-1, 8, 2).unbind(2)[0], lambda self, x: x[:, :12].view(-1, 2, 6)[:, 1],
        lambda self, x: x, lambda self, x: self.norm(x),
        lambda self, x: x[:, 4:12], lambda self, x: x.narrow(1, 4, 8),
        lambda self, x: self.lin(x[:, 4:12].repeat(1, 2)), lambda self, x: x[:, ::2],
        lambda self, x: x.roll(4, 1)[:, :8],
    ],
)  # fmt: skip
def test_a_concatenation_whose_parts_are_mixed_is_a_point(mixing: Any) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        return mixing(self, cat(a, b))

    children = {"lin": nn.Linear(16, 3), "norm": nn.LayerNorm(16)}
    assert told(forward, AB, **children) == CONCAT
    assert homes(forward, AB, **children) == ["a+b"]


def test_a_slice_across_the_seam_can_be_taken_apart_too() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        inner = cat(a, b)[:, None, 4:12]
        return inner[..., :4] * 2, inner[:, 0, 4:] * 3, inner.split(4, -1)[1]

    assert told(forward, AB) == []
    assert homes(forward, AB) == ["a", "b", "b"]


@pytest.mark.parametrize("row", [lambda w, ids: w[ids], lambda w, ids: nn.functional.embedding(ids, w)])
def test_ids_of_two_streams_looked_up_together_are_taken_apart_again(row: Any) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        rows = row(self.table.weight, torch.cat([a, b], 1))
        return rows[:, :5], rows[:, 5:]

    ids = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(0))
    assert told(forward, {"a": ids, "b": ids + 1}, table=nn.Embedding(10, 8)) == []
    assert homes(forward, {"a": ids, "b": ids + 1}, table=nn.Embedding(10, 8)) == ["a", "b"]


def test_a_slice_within_one_stream_of_three_is_no_point() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Any:
        x = torch.cat([a, b, b * 2, c], -1)
        return x[:, :8], self.lin(x[:, 8:24]), x[:, 24:]

    assert told(forward, ABC, lin=nn.Linear(16, 4)) == []
    assert homes(forward, ABC, lin=nn.Linear(16, 4)) == ["a", "b", "c"]


def test_stacked_streams_are_taken_apart_by_index() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        x = torch.stack([a, b], dim=1).relu()
        return x[:, 0], x.select(1, 1), *x.unbind(1)

    assert told(forward, AB) == []
    assert homes(forward, AB) == ["a", "b", "a", "b"]


def test_the_batch_axis_keeps_samples_apart() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        first, second = self.lin(torch.cat([a, b])).chunk(2)
        return first, second

    assert told(forward, AB, lin=nn.Linear(8, 8)) == []
    assert homes(forward, AB, lin=nn.Linear(8, 8)) == ["a", "b"]


def test_index_writes_and_views_carry_on() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        out = torch.zeros(len(a), 16)
        out[:, :8] = a
        out[:, 8:] = b
        return out

    (point,) = points(forward, AB)
    assert point.kind == "scatter"
    assert {home for homes in point.homes for home in homes} == {"a", "b"}


def test_a_write_through_a_view_reaches_the_whole() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        out = a.clone()
        out.view(-1).add_(b.reshape(-1))
        return out

    assert told(forward, AB) == SUM
    assert homes(forward, AB) == ["a+b"]


# -- residuals, re-entries, re-meetings -------------------------------------------------------------------------------


def test_a_residual_connection_is_no_point() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        mixed = self.lin(cat(a, b))
        return a + nn.functional.dropout(mixed, 0.1)

    assert told(forward, AB, lin=nn.Linear(16, 8)) == CONCAT
    assert homes(forward, AB, lin=nn.Linear(16, 8)) == ["a"]


def test_a_mixed_stream_that_meets_a_new_feature_of_one_is_a_re_entry() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        mixed = self.down(a + b)
        return mixed + self.deeper(b)

    found = points(forward, AB, down=nn.Linear(8, 8), deeper=nn.Linear(8, 8))
    assert [(point.kind, len(point.homes), point.level) for point in found] == [("sum", 2, "early"), ("sum", 2, "late")]
    assert found[1].homes == (("a", "b"), ("b",))
    assert found[1].note == "a mixed stream meets a pure one again"


def test_two_mixed_streams_re_meet_and_are_not_selected() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        first, second = self.p(cat(a, b)), self.q(cat(b, a))
        return cat(first, second)

    found = points(forward, AB, p=nn.Linear(16, 8), q=nn.Linear(16, 8))
    assert [(p.kind, p.level, p.selected_by_default) for p in found] == [
        ("concat", "early", True), ("concat", "early", True), ("concat", "remeeting", False),
    ]  # fmt: skip


def test_levels_are_early_middle_late() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        first = a * 2 + b
        second = self.one(first) * self.two(c)
        return cat(self.three(second), self.four(a) - self.five(b))

    layers = {name: nn.Linear(8, 8) for name in ("one", "two", "three", "four", "five")}
    found = points(forward, ABC, **layers)
    assert [(p.kind, p.level) for p in found] == [
        ("sum", "early"), ("product", "middle"), ("sum", "middle"), ("concat", "late"),
    ]  # fmt: skip


# -- products, gates, outer sums --------------------------------------------------------------------------------------


def test_a_gate_that_broadcasts_keeps_the_larger_home_and_is_marked() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return a * torch.sigmoid(self.lin(b.mean((2, 3))))[:, :, None, None]

    (point,) = points(forward, MAPS, lin=nn.Linear(4, 4))
    assert (point.kind, point.sites[0].gate) == ("product", 1)
    assert homes(forward, MAPS, lin=nn.Linear(4, 4)) == ["a"]
    gate = point.sites[0].sides[1]
    assert gate.shape == (2, 4)
    assert "Linear" in gate.anchor


def test_a_squashed_operand_of_equal_shape_is_the_gate() -> None:
    (point,) = points(lambda self, a, b: torch.tanh(a) * b, AB)
    assert point.sites[0].gate == 0
    (both,) = points(lambda self, a, b: torch.tanh(a) * torch.sigmoid(b), AB)
    assert both.sites[0].gate is None


def test_scale_and_shift_are_one_point() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        gamma, beta = self.film(b.mean((2, 3))).chunk(2, dim=1)
        return (1 + gamma[:, :, None, None]) * a + beta[:, :, None, None]

    (point,) = points(forward, MAPS, film=nn.Linear(4, 8))
    assert (point.kind, point.note) == ("product", "scale and shift")
    assert [operand.home for operand in point.operands].count(("b",)) == 2, "gamma and beta"
    assert homes(forward, MAPS, film=nn.Linear(4, 8)) == ["a"]


def test_what_is_added_to_a_part_of_a_product_is_no_shift() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return (a * torch.sigmoid(self.gate(b))[:, None])[:, 0] + self.other(b)

    example = inputs(a=(5, 8), b=(8,))
    assert told(forward, example, gate=nn.Linear(8, 8), other=nn.Linear(8, 8)) == [
        ("product", {"a", "b"}), ("sum", {"a", "b"}),
    ]  # fmt: skip


def test_an_outer_sum_gives_each_axis_its_home() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        grid = torch.tanh(a[:, :, None] + b[:, None])
        return grid.sum(2), grid.sum(1)

    example = inputs(a=(5, 8), b=(7, 8))
    assert told(forward, example) == SUM
    assert homes(forward, example) == ["a", "b"]


@pytest.mark.parametrize(
    ("fuse", "kind"),
    [
        (lambda a, b: a - b, "sum"), (lambda a, b: torch.maximum(a, b), "sum"),
        (lambda a, b: torch.lerp(a, b, 0.5), "sum"),
        (lambda a, b: torch.where(a.detach() > 0, a, b), "sum"), (lambda a, b: a / (b.abs() + 1), "product"),
        (lambda a, b: torch.stack([a, b], -1).mean(-1), "concat"), (lambda a, b: torch.hstack([a, b]), "concat"),
        (lambda a, b: torch.cosine_similarity(a, b), "similarity"), (lambda a, b: torch.cdist(a, b), "similarity"),
        (lambda a, b: nn.functional.mse_loss(a, b), "loss"),
        (lambda a, b: nn.functional.bilinear(a, b, torch.ones(2, 8, 8)), "bilinear"),
        (lambda a, b: a.addcmul(a, b), "product"), (lambda a, b: a.clone().mul_(b), "product"),
    ],
)  # fmt: skip
def test_the_kind_of_a_meeting(fuse: Any, kind: str) -> None:
    found = points(lambda self, a, b: fuse(a, b), AB)
    assert [point.kind for point in found] == [kind]
    assert found[0].selected_by_default == (kind not in ("similarity", "loss"))


def test_what_only_describes_does_not_meet() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        a = a.to(b).type_as(b).view_as(b).expand_as(b)
        mask = b > 0
        return a[mask], a.masked_fill(mask, 0.0), a[b.argsort(0)[:, 0]], a * torch.ones_like(b) * b.shape[1]

    assert told(forward, AB) == []
    assert homes(forward, AB) == ["a"] * 4


def test_an_attention_module_keeps_the_querys_home() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.attention(a, b, b)[0]

    example = inputs(a=(5, 8), b=(7, 8))
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    assert told(forward, example, attention=layer) == [("attention", {"a", "b"})]
    assert homes(forward, example, attention=layer) == ["a"]


def test_modes_in_which_a_call_is_seen() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        if self.training:
            a = a + b
        return cat(a, b) if not self.training else a * 2

    assert [(p.kind, p.modes) for p in points(forward, AB)] == [("concat", ("eval",)), ("sum", ("train",))]
    (both,) = points(lambda self, a, b: a + b, AB)
    assert both.modes == ("eval", "train")


def test_three_streams_at_one_call() -> None:
    (point,) = points(lambda self, a, b, c: torch.cat([a, b, c], 1), ABC)
    assert point.homes == (("a",), ("b",), ("c",))
    assert [tuple(side.home for side in site.sides) for site in point.sites] == [
        (("a",), ("b",)), (("a",), ("c",)), (("b",), ("c",)),
    ]  # fmt: skip
    assert normal(2, 3).shape == (2, 3)


def test_what_comes_out_of_a_whole_transformer_is_its_target() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.transformer(a, b)

    transformer = nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
    example = inputs(a=(5, 8), b=(3, 8))
    assert told(forward, example, transformer=transformer) == [("attention", {"a", "b"})]
    assert homes(forward, example, transformer=transformer) == ["b"]


def test_where_to_sample_is_no_content() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return F.grid_sample(a, b[:, :, None].tanh(), align_corners=False)

    example = inputs(a=(3, 6, 6), b=(4, 2))
    assert told(forward, example) == []
    assert homes(forward, example) == ["a"]


@pytest.mark.parametrize("count", [2, 3])
def test_mixed_streams_re_meet_however_many_they_are(count: int) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        mixed = [self.left(a) * self.right(b), self.right(a) * self.left(b), self.left(a).relu() * self.left(b)]
        return torch.stack(mixed[:count], 1).sum(1)

    found = points(forward, inputs(a=(6,), b=(6,)), left=nn.Linear(6, 6), right=nn.Linear(6, 6))
    assert [point.kind for point in found if point.level == "remeeting"] == ["concat"]
