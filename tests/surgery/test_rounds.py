"""What is written out in a loop over time gets one RegBN, which each round of the loop gives its own f and g."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, inspect, regbnify
from regbn_surgery._surgery._site import sites_of

from .models import forced, ways

WIDTH, PLACES = 8, 4


class Loop(nn.Module):
    """Each step of `a` meets all of `b`."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.scaled = scaled  # what the stand-in for RegBN does, written out by hand
        self.project_a, self.project_b = nn.Linear(6, WIDTH), nn.Linear(5, WIDTH)
        self.query, self.key, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.project_a(a), self.project_b(b)
        return self.head(torch.stack(self.steps(a, b), dim=1))

    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def seen(self, f: Tensor, g: Tensor) -> Tensor:
        return f * (1 + g) if self.scaled else f


class Asking(Loop):
    """Each step gates all of `b`, and weighs it by what comes of that."""

    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        out = []
        for t in range(a.shape[1]):
            query = self.query(a[:, t])
            weights = (query[:, None] * self.seen(b, query[:, None])).sum(-1).softmax(-1)
            out.append((weights[..., None] * b).sum(1))
        return out


class InOneLine(Loop):
    """Two calls of one name in one line: the counters of the loop go up by two."""

    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        out = []
        for t in range(a.shape[1]):
            q = self.query(a[:, t])
            v = self.seen(b, q[:, None])
            out.append(((q[:, None] * v).sum(-1).softmax(-1)[..., None] * b).sum(1))
        return out


class Gating(Loop):
    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        out = []
        for t in range(a.shape[1]):
            g = self.gate(b[:, t % PLACES])
            out.append(self.seen(a[:, t], g) * torch.sigmoid(g))
        return out


class Products(Loop):
    """Outer products: both sides come from before they are stretched."""

    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        out = []
        for t in range(a.shape[1]):
            g, f = self.key(b.mean(1)), self.query(a[:, t])
            out.append((self.seen(f, g)[:, :, None] * g[:, None]).sum(-1))
        return out


class Recurrent(Loop):
    """What a step asks is made of the steps before it."""

    def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        out = []
        state = a.new_zeros(len(a), WIDTH)
        for t in range(a.shape[1]):
            state = self.cell(a[:, t], state)
            places = self.seen(b, state[:, None])
            scores = torch.bmm(self.key(places), self.query(state)[..., None])
            out.append(torch.bmm(places.transpose(1, 2), scores.softmax(1))[..., 0])
        return out


def inputs(length: int) -> Callable[[int], Inputs]:
    return lambda batch: Inputs(torch.randn(batch, length, 6), torch.randn(batch, PLACES, 5))


def rules(normalize: str, against: str) -> dict[str, object]:
    rule = {"id": "r", "match": {}, "normalize": normalize, "against": against, "replace": "f"}
    return {"version": 1, "rules": [rule]}


def scale(f: Tensor, g: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return f * (1 + g.reshape(*g.shape, *[1] * (f.dim() - g.dim()))), g


every_way = pytest.mark.parametrize("way", ["source", "mode"])
CASES = [(Asking, "b", "a"), (InOneLine, "b", "a"), (Gating, "a", "b"), (Products, "a", "b"), (Recurrent, "b", "a")]


@pytest.mark.parametrize(("cls", "normalize", "against"), CASES)
@every_way
def test_each_round_has_its_own_sides(cls: type[Loop], normalize: str, against: str, way: str) -> None:
    torch.manual_seed(0)
    model, by_hand = cls().eval(), cls(scaled=True).eval()
    by_hand.load_state_dict(model.state_dict())
    with forced(way):
        rewritten = regbnify(model, rules(normalize, against), inputs(3))
    assert ways(rewritten) == {way}
    (site,) = sites_of(rewritten)
    site.regbn.forward = scale  # type: ignore[method-assign]
    for length in (3, 5, 2):  # as in the example, longer and shorter
        a, b = inputs(length)(4).args
        found = rewritten(a, b)
        torch.testing.assert_close(found, by_hand(a, b))
        assert not torch.allclose(found, model(a, b))


@pytest.mark.parametrize("cls", [case[0] for case in CASES])
def test_the_points_do_not_depend_on_the_length(cls: type[Loop]) -> None:
    def found(length: int) -> list[tuple[str, str, str]]:
        points = inspect(cls().eval(), inputs(length)).fusion_points
        return [(point.id, point.kind, point.level) for point in points]

    assert len(found(2)) == 1
    assert found(2) == found(5)


def test_a_stream_that_is_projected_before_the_loop_is_only_read() -> None:
    """Every round reads the same keys: no round can change what the others read, but each can be asked for them."""

    class Before(Loop):
        def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
            out, keys = [], self.key(b)
            for t in range(a.shape[1]):
                step = self.query(self.seen(a[:, t], b.mean(1)))
                weights = torch.bmm(keys, step[..., None]).softmax(1)
                out.append(torch.bmm(b.transpose(1, 2), weights)[..., 0])
            return out

    torch.manual_seed(0)
    model, by_hand = Before().eval(), Before(scaled=True).eval()
    by_hand.load_state_dict(model.state_dict())
    (point,) = inspect(model, inputs(3)).fusion_points
    gate = point.sites[0].gate
    assert point.kind == "attention"
    assert gate is not None
    assert point.sites[0].sides[gate].home == ("b",)
    rewritten = regbnify(model, rules("a", "b"), inputs(3))
    (site,) = sites_of(rewritten)
    site.regbn.forward = lambda f, g, *_, **__: (f * (1 + g.mean(-1)), g)  # type: ignore[method-assign]
    a, b = inputs(4)(4).args
    torch.testing.assert_close(rewritten(a, b), by_hand(a, b))


@every_way
def test_where_all_is_projected_before_the_loop_regbn_goes_there_once(way: str) -> None:
    class AllBefore(Loop):
        def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
            b = self.seen(b, a.mean(1, keepdim=True))
            out, keys, queries = [], self.key(b), self.query(a)
            for t in range(a.shape[1]):
                weights = torch.bmm(keys, queries[:, t, :, None]).softmax(1)
                out.append(torch.bmm(b.transpose(1, 2), weights)[..., 0])
            return out

    torch.manual_seed(0)
    model, by_hand = AllBefore().eval(), AllBefore(scaled=True).eval()
    by_hand.load_state_dict(model.state_dict())
    with forced(way):
        rewritten = regbnify(model, rules("b", "a"), inputs(3))
    assert ways(rewritten) == {way}
    (site,) = sites_of(rewritten)
    calls = []

    def once(f: Tensor, g: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        calls.append(f.shape)
        return f * (1 + g.mean(-1, keepdim=True)), g

    site.regbn.forward = once  # type: ignore[method-assign]
    for length in (3, 5):
        calls.clear()
        a, b = inputs(length)(4).args
        torch.testing.assert_close(rewritten(a, b), by_hand(a, b))
        assert len(calls) == 1


def test_a_loop_over_layers_is_no_loop_over_time() -> None:
    class Layers(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

        def steps(self, a: Tensor, b: Tensor) -> list[Tensor]:
            return [a.mean(1) * torch.sigmoid(layer(b.mean(1))) for layer in self.layers]

    points = [point for point in inspect(Layers().eval(), inputs(3)).fusion_points if point.selected_by_default]
    assert [point.id for point in points] == ["mul", "mul_1", "mul_2"]
