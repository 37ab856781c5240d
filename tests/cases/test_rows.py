"""Rows as samples: time folded into the batch on both sides, nodes of a graph, packed tokens, one batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, PlanError, RegBN, inspect, load_regbn, plan, regbnify, save_regbn, verify
from regbn_surgery._types import Plan

FULL = {"normalize_output": False}


def rules(kind: str, normalize: str, modalities: Any = None, **more: Any) -> dict[str, Any]:
    rule = {"id": "late", "match": {"kind": kind}, "normalize": normalize, "regbn": FULL, **more}
    return {"version": 1, "rules": [rule], **({} if modalities is None else {"modalities": modalities})}


def regbn_of(model: nn.Module) -> RegBN:
    (found,) = (module for module in model.modules() if isinstance(module, RegBN))
    return found


class Folded(nn.Module):
    """Time is folded into the batch; `how` says before or after the layers, and whether by view or by order."""

    def __init__(self, how: str = "before", join: str = "sum") -> None:
        super().__init__()
        self.how, self.join = how, join
        self.audio, self.video, self.head = nn.Linear(12, 16), nn.Linear(20, 16), nn.LazyLinear(3)
        self(torch.randn(2, 5, 12), torch.randn(2, 5, 20))

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        samples, steps = audio.shape[:2]
        if self.how == "time first":
            audio, video = audio.transpose(0, 1), video.transpose(0, 1)
        if self.how == "after":
            a, v = self.audio(audio).reshape(-1, 16), self.video(video).flatten(0, 1)
        else:
            a, v = self.audio(audio.reshape(-1, 12)), self.video(video.reshape(samples * steps, 20))
        z = a + v if self.join == "sum" else torch.cat([a, v], dim=1) if self.join == "concat" else a * v
        if self.how == "time first":
            return self.head(z.view(steps, samples, -1).mean(0))
        return self.head(z.view(samples, steps, -1).mean(1))


@pytest.mark.parametrize("how", ["before", "after", "time first"])
@pytest.mark.parametrize("join", ["sum", "concat", "product"])
@pytest.mark.parametrize("reduce", [None, "mean"])
def test_rows_that_fold_time_alike_on_both_sides_are_samples(how: str, join: str, reduce: str | None) -> None:
    torch.manual_seed(0)
    model, example = Folded(how, join).eval(), (torch.randn(4, 5, 12), torch.randn(4, 5, 20))
    said = {} if reduce is None else {"reduce": reduce}
    result = regbnify(model, rules(join, "audio", **said), example)
    for samples, steps in ((3, 5), (6, 2), (2, 9)):
        call = torch.randn(samples, steps, 12), torch.randn(samples, steps, 20)
        torch.testing.assert_close(result(*call), model(*call))
    result.train()(torch.randn(8, 5, 12), torch.randn(8, 5, 20))
    assert int(regbn_of(result).num_steps) == 1
    assert verify(result, example).ok


class FoldedOnOneSide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video, self.head = nn.Linear(12, 16), nn.Linear(20, 16), nn.Linear(16, 3)

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        a = self.audio(audio).flatten(0, 1)
        return self.head(a + self.video(video).repeat_interleave(audio.shape[1], 0))


def test_a_side_that_was_repeated_over_time_is_folded_alike() -> None:
    example = torch.randn(4, 5, 12), torch.randn(4, 20)
    result = regbnify(FoldedOnOneSide(), rules("sum", "audio"), example)
    assert verify(result, example).ok


class GraphOfItems(nn.Module):
    """Modalities are tables of the model; the input is the whole graph, which has no batch axis."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.image, self.text = nn.Embedding(nodes, 10), nn.Embedding(nodes, 9)
        self.image_trs, self.text_trs = nn.Linear(10, 8), nn.Linear(9, 8)

    def forward(self, adjacency: Tensor) -> Tensor:
        v, t = self.image_trs(self.image.weight), self.text_trs(self.text.weight)
        return torch.cat([v + adjacency @ v, t + adjacency @ t], dim=1)


TABLES = {"image": {"modules": ["image_trs"]}, "text": {"modules": ["text_trs"]}}


def test_nodes_of_a_graph_are_samples_where_the_rule_says_so() -> None:
    model, adjacency = GraphOfItems(19).eval(), torch.rand(19, 19)
    (point,) = inspect(model, adjacency, TABLES).fusion_points
    assert point.sites[0].obstacle is not None
    assert "say `samples: rows` in the rule" in point.sites[0].obstacle
    with pytest.raises(PlanError, match=r"the batch axis of operand 0 of cat \(19×8\) is not known: .*`samples: rows`"):
        regbnify(model, rules("concat", "image", TABLES), adjacency)
    result = regbnify(model, rules("concat", "image", TABLES, samples="rows"), adjacency)
    torch.testing.assert_close(result(adjacency), model(adjacency))
    result.train()(adjacency)
    assert int(regbn_of(result).num_steps) == 1


def test_a_plan_by_rows_can_be_stored_and_a_checkpoint_of_it_loaded(tmp_path: Any) -> None:
    model, adjacency = GraphOfItems(7).eval(), torch.rand(7, 7)
    made = plan(model, rules("concat", "image", TABLES, samples="rows"), adjacency)
    assert made.sites[0].f.layout.batch_dim == 0
    again = Plan.from_json(made.to_json())
    result = regbnify(model, again, adjacency).train()
    result(adjacency)
    save_regbn(result, tmp_path / "saved")
    loaded = load_regbn(GraphOfItems(7), tmp_path / "saved")
    torch.testing.assert_close(loaded.eval()(adjacency), result.eval()(adjacency))


class PackedTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.frames, self.head = nn.Embedding(30, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, frames: Tensor, cu_seqlens: Tensor) -> Tensor:
        return self.head(self.words(input_ids) + self.frames(frames))


def packed(*lengths: int) -> Inputs:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return Inputs(torch.randint(0, 30, (sum(lengths),)), torch.randn(sum(lengths), 5), bounds)


def test_packed_tokens_are_samples_where_the_rule_says_so() -> None:
    model = PackedTokens().eval()
    with pytest.raises(PlanError, match="samples: rows"):
        regbnify(model, rules("sum", "input_ids"), packed(4, 5, 2))
    said = rules("sum", "input_ids")
    said["rules"][0].pop("match")
    said["rules"][0].pop("normalize")
    pair = {"pair": {"f": "module:words", "g": "module:frames"}, "samples": "rows"}
    by_pair = {**said, "rules": [{**said["rules"][0], **pair}]}
    by_default = {**rules("sum", "input_ids"), "defaults": {"samples": "rows"}}
    for each in (rules("sum", "input_ids", samples="rows"), by_pair, by_default):
        result = regbnify(model, each, packed(4, 5, 2))
        for call in (packed(3, 4), packed(1, 2, 6, 3)):
            torch.testing.assert_close(result(*call.args), model(*call.args))


class LengthFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.a(a) + self.b(b))


def test_a_batch_axis_that_is_known_stays_what_it_is() -> None:
    example = (torch.randn(7, 4, 5), torch.randn(7, 4, 6))
    one = plan(LengthFirst(), rules("sum", "a", samples="rows"), lambda n: (torch.randn(7, n, 5), torch.randn(7, n, 6)))
    assert one.sites[0].f.layout.batch_dim == 1
    assert plan(LengthFirst(), rules("sum", "a", samples="rows"), example).sites[0].f.layout.batch_dim == 0
