"""Sides that are not operands: tokens that a parent projects, features before a constant column is appended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from regbn_surgery import RegBN, inspect, regbnify, verify

Build = Callable[[], nn.Module]


def rewritten(model: nn.Module, example: Any, kind: str, normalize: str, *calls: Any) -> nn.Module:
    """RegBN is there once for each point, runs, and is nothing while W is 0, in other calls, too."""
    rule = {"id": "r", "match": {"kind": kind}, "normalize": normalize, "regbn": {"normalize_output": False}}
    model = model.eval()
    result = regbnify(model, {"version": 1, "strict": True, "rules": [rule]}, example)
    for call in (example, *calls):
        torch.testing.assert_close(result(*call), model(*call))
        assert verify(result, call).ok
    result.train()(*example)
    assert [int(module.num_steps) for module in result.modules() if isinstance(module, RegBN)] == [1]
    return result


def sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, RegBN)}
    return {name: (module.f_num_channels, module.g_num_channels) for name, module in found.items()}


# -- attention that is given heads ------------------------------------------------------------------------------------


class ByHand(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
        return scores.softmax(-1) @ v


class Fused(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None].bool())


class Between(nn.Module):
    """A module that only hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByHand()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(q, k, v, mask)


class KeysInside(nn.Module):
    """The owner projects keys and values itself, and is given the heads of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(14, 32)

    def forward(self, q: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        k, v = (z.view(len(y), -1, 4, 4).transpose(1, 2) for z in self.kv(y).chunk(2, dim=-1))
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), -1, 4, 4).transpose(1, 2)


class Projecting(nn.Module):
    """Projects tokens of 12 and 14 channels to heads, and lets another module attend."""

    def __init__(self, core: nn.Module, how: str) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(14, 16), nn.Linear(14, 16)
        self.kv, self.out, self.core, self.how = nn.Linear(14, 32), nn.Linear(16, 12), core, how

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.how == "inside":
            z = self.core(heads(self.q(x)), y, mask)
        elif self.how == "together":
            kv = self.kv(y).reshape(len(y), -1, 2, 4, 4).permute(2, 0, 3, 1, 4)
            z = self.core(heads(self.q(x)), kv[0], kv[1], mask)
        elif self.how == "folded":
            q, k, v = (heads(z).flatten(0, 1) for z in (self.q(x), self.k(y), self.v(y)))
            z = self.core(q, k, v).view(len(x), 4, -1, 4)
        else:
            z = self.core(heads(self.q(x)), heads(self.k(y)), heads(self.v(y)), mask)
        found: Tensor = self.out(z.transpose(1, 2).flatten(2))
        return found + x if self.how == "residual" else found


class Reader(nn.Module):
    def __init__(self, core: nn.Module, how: str = "apart", masked: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 12), nn.Linear(6, 14), nn.Linear(12, 3)
        self.attend, self.masked = Projecting(core, how), masked

    def forward(self, a: Tensor, b: Tensor, b_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.head(self.attend(self.a(a), self.b(b), b_mask).mean(1))
        return found


def tokens(samples: int, first: int, second: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, first, 5), torch.randn(samples, second, 6)


@pytest.mark.parametrize(
    ("core", "how"),
    [
        (ByHand, "apart"),
        (Fused, "apart"),
        (Between, "apart"),
        (ByHand, "together"),
        (Fused, "together"),
        (ByHand, "folded"),
        (ByHand, "residual"),
        (KeysInside, "inside"),
    ],
)
def test_tokens_are_taken_before_the_projections_in_the_module_that_has_them(core: Build, how: str) -> None:
    model = Reader(core(), how)
    points = inspect(model, tokens(4, 7, 9)).fusion_points
    point = next(point for point in points if point.kind == "attention")
    assert point.owner.startswith("attend.core")
    (site,) = point.sites
    assert (site.host, site.obstacle, site.reduce) == ("attend", None, "mean")
    assert {side.home: side.channels for side in site.sides} == {("a",): 12, ("b",): 14}
    for normalize, wanted in (("a", (12, 14)), ("b", (14, 12))):
        result = rewritten(model, tokens(4, 7, 9), "attention", normalize, tokens(3, 2, 5), tokens(6, 9, 4))
        assert sizes(result) == {"attend.regbn_r.regbn": wanted}


def test_the_mask_of_a_parent_counts() -> None:
    model = Reader(ByHand())
    mask = torch.ones(4, 9)
    mask[1, 4:] = 0
    example = (*tokens(4, 7, 9), mask)
    result = rewritten(model, example, "attention", "a")
    result.train()
    changed = [example[0], example[1].clone(), mask]
    changed[1][1, 4:] += 100.0  # padding
    before = {name: buffer.clone() for name, buffer in result.named_buffers()}
    first = result(*example)
    result.load_state_dict(before, strict=False)
    torch.testing.assert_close(result(*changed), first)


class Siamese(nn.Module):
    """One module that projects, called with the streams in both orders."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 12), nn.Linear(6, 12), nn.Linear(24, 3)
        self.q, self.k, self.v = (nn.Linear(12, 16) for _ in range(3))
        self.core = ByHand()

    def attend(self, x: Tensor, y: Tensor) -> Tensor:
        return self.core(heads(self.q(x)), heads(self.k(y)), heads(self.v(y))).transpose(1, 2).flatten(2)[..., :12]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.a(a), self.b(b)
        found: Tensor = self.head(torch.cat([self.attend(x, y).mean(1), self.attend(y, x).mean(1)], dim=1))
        return found


def test_an_attention_that_serves_both_directions_is_right_or_refused() -> None:
    model, example = Siamese().eval(), tokens(4, 7, 9)
    rule = {"id": "r", "match": {"kind": "attention"}, "pairs": "all", "regbn": {"normalize_output": False}}
    result = regbnify(model, {"version": 1, "strict": True, "rules": [rule]}, example)
    torch.testing.assert_close(result(*example), model(*example))
    assert verify(result, example).ok
    assert len(sizes(result)) == 2


# -- tensor fusion ----------------------------------------------------------------------------------------------------


class TensorFusion(nn.Module):
    def __init__(self, column: str, product: str) -> None:
        super().__init__()
        self.column, self.product = column, product
        self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(6, 3), nn.Linear(20, 2)
        self.f, self.g = nn.Parameter(torch.randn(2, 5, 20)), nn.Parameter(torch.randn(2, 4, 20))
        self.lf, self.lg = nn.Linear(5, 20), nn.Linear(4, 20)

    def with_one(self, x: Tensor) -> Tensor:
        if self.column == "pad":
            return pad(x, (0, 1), value=1.0)
        one = x.new_ones(len(x), 1) if self.column == "last" else torch.ones(len(x), 1, dtype=x.dtype)
        return torch.cat([x, one], dim=1) if self.column == "last" else torch.cat((one, x), dim=-1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.with_one(self.a(x)), self.with_one(self.b(y))
        if self.product == "bmm":
            z = torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).view(len(x), -1)
        elif self.product == "einsum":
            z = torch.einsum("bi,bj->bij", a, b).flatten(1)
        elif self.product == "stretched":
            z = (a[:, :, None] * b[:, None]).flatten(1)
        elif self.product == "factors":
            z = (torch.matmul(a, self.f) * torch.matmul(b, self.g)).sum(0)
        else:
            z = self.lf(a) * self.lg(b)
        found: Tensor = self.head(z)
        return found


@pytest.mark.parametrize("column", ["first", "last", "pad"])
@pytest.mark.parametrize("product", ["bmm", "einsum", "stretched", "factors", "layers"])
def test_features_are_taken_before_a_constant_column_is_appended(column: str, product: str) -> None:
    model, example = TensorFusion(column, product), (torch.randn(4, 5), torch.randn(4, 6))
    (point,) = inspect(model, example).fusion_points
    (site,) = point.sites
    assert (site.obstacle, site.gate, site.reduce) == (None, None, "flatten")
    assert [(side.home, side.shape, side.layout.channel_dim) for side in site.sides] == [
        (("x",), (2, 4), 1),
        (("y",), (2, 3), 1),
    ]
    result = rewritten(model, example, point.kind, "x", (torch.randn(7, 5), torch.randn(7, 6)))
    assert sizes(result) == {"regbn_r.regbn": (4, 3)}


class ThreeFused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(5, 4), nn.Linear(6, 3), nn.Linear(7, 2), nn.Linear(60, 2)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        ones = torch.ones(len(x), 1)
        a, b, c = (torch.cat([ones, t], dim=1) for t in (self.a(x), self.b(y), self.c(z)))
        both = torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).view(-1, 20, 1)
        found: Tensor = self.head(torch.bmm(both, c.unsqueeze(1)).view(len(x), -1))
        return found


def test_the_third_modality_is_taken_before_its_column_as_well() -> None:
    found = inspect(ThreeFused(), (torch.randn(4, 5), torch.randn(4, 6), torch.randn(4, 7))).fusion_points
    shapes = [[side.shape for side in point.sites[0].sides] for point in found]
    assert shapes == [[(2, 4), (2, 3)], [(2, 20, 1), (2, 2)]]


class ClassToken(nn.Module):
    """What is appended is a parameter or a stream of its own, and no constant column."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(6, 5), nn.Linear(25, 2)
        self.token = nn.Parameter(torch.randn(1, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = torch.cat([self.token.expand(len(x), 1), self.a(x)], dim=1)
        found: Tensor = self.head(torch.einsum("bi,bj->bij", a, self.b(y)).flatten(1))
        return found


def test_what_is_learned_is_no_constant_column() -> None:
    (point,) = inspect(ClassToken(), (torch.randn(4, 5), torch.randn(4, 6))).fusion_points
    assert [side.shape for side in point.sites[0].sides] == [(2, 5), (2, 5)]
