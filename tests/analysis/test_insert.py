"""The pass that puts a plan's RegBN into a traced graph: who reads f' and g', in every kind of site."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import PlanError
from regbn_surgery._analysis import Analysis, insert_regbn
from regbn_surgery._analysis._insert import put_in_order
from regbn_surgery._api import _planned
from regbn_surgery._rules import Rules
from regbn_surgery._trace import operands_of, results_of
from regbn_surgery._types import Plan
from tests.trace.replay import make

from .reading import normal


def planned(model: nn.Module, example: Any, *rules: dict[str, Any]) -> tuple[Plan, Analysis]:
    return _planned(model, Rules.from_dict({"version": 1, "rules": [{"id": "r", **rule} for rule in rules]}), example)


def inserted(model: nn.Module, example: Any, *rules: dict[str, Any]) -> torch.fx.Graph:
    plan, analysis = planned(model, example, *rules)
    graph = insert_regbn(analysis.runs[0].trace.graph, plan, analysis)
    graph.lint()
    return graph


def sites(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if "regbn" in node.meta]


def readers(graph: torch.fx.Graph) -> list[tuple[list[str], list[str]]]:
    """For each RegBN the calls that read f', and those that read g'."""

    def names(node: torch.fx.Node) -> list[str]:
        return [user.meta.get("operation", user.op) for user in node.users]

    return [tuple(names(item) for item in results_of(site)) for site in sites(graph)]  # type: ignore[misc]


def sources(graph: torch.fx.Graph) -> list[list[str]]:
    """For each RegBN what f and g are."""
    return [[str(node) for _, node in operands_of(site)] for site in sites(graph)]


CONCAT = {"match": {"kind": "concat"}, "normalize": "a", "against": "b"}
PAIR = (normal(4, 3), normal(4, 5))


def test_a_concatenation() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        a, b = self.fa(a), self.fb(b)
        return self.head(torch.cat([b, a], 1)) + a

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6), head=nn.Linear(12, 6))
    plan, analysis = planned(model, PAIR, CONCAT)
    before = analysis.runs[0].trace.graph
    graph = insert_regbn(before, plan, analysis)
    assert [site.target for site in sites(graph)] == ["regbn_r"]
    assert sources(graph) == [["fa", "fb"]]
    assert readers(graph) == [(["cat"], ["cat"])]
    cat = next(node for node in graph.nodes if node.meta.get("operation") == "cat")
    assert [node.args[1] for _, node in operands_of(cat)] == [1, 0], "each stands where its side stood"
    assert sites(graph)[0].meta["regbn"] is plan.sites[0]
    assert not sites(before), "the graph that was given is as it was"
    assert [str(n) for n in graph.nodes if n not in (*sites(graph), *results_of(sites(graph)[0]))] == [
        str(node) for node in before.nodes
    ]


def test_g_is_left_to_its_readers_where_the_rule_says_so() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        return torch.cat([self.fa(a), self.fb(b)], 1)

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    graph = inserted(model, PAIR, {**CONCAT, "replace": "f"})
    assert readers(graph) == [(["cat"], [])]


def test_pairs_at_one_call_go_in_sequence() -> None:
    def forward(self: Any, a: Any, b: Any, c: Any) -> Any:
        return torch.cat([self.fa(a), self.fb(b), self.fc(c)], 1)

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6), fc=nn.Linear(2, 6))
    rule = {"match": {"kind": "concat"}, "pairs": "all"}
    graph = inserted(model, (*PAIR, normal(4, 2)), rule)
    assert len(sites(graph)) > 1
    first, second = sites(graph)[:2]
    assert first in second.all_input_nodes[0].all_input_nodes, "the second normalises what the first has made"


def test_a_gate_is_only_read() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        return self.fa(a) * torch.sigmoid(self.fb(b))

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    graph = inserted(model, PAIR, {"match": {"kind": "product"}, "normalize": "a"})
    assert sources(graph) == [["fa", "fb"]]
    assert readers(graph) == [(["mul"], [])]


class Both(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Cross(nn.Module):
    """Tokens are projected in modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = Projection(), Projection(), Projection()

    def forward(self, a, b):
        weights = (self.q(a) @ self.k(b).transpose(1, 2)).softmax(-1)
        return weights @ self.v(b) + a


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x)


def test_the_calls_of_modules_read_inside() -> None:
    """Projections that are modules of the user's: their layers read f' and g', and the residual does not."""
    model = nn.ModuleDict({"cross": Cross()})
    model = make(lambda self, a, b: self.cross(self.fa(a), self.fb(b)), cross=Cross(), fa=nn.Linear(3, 8),
                 fb=nn.Linear(5, 8))  # fmt: skip
    rule = {"match": {"kind": "attention"}, "normalize": "a"}
    graph = inserted(model, (normal(4, 6, 3), normal(4, 7, 5)), rule)
    assert [site.target for site in sites(graph)] == ["cross.regbn_r"]
    assert readers(graph) == [(["Linear"], ["Linear", "Linear"])]


def test_what_a_module_is_given_by_two_sites() -> None:
    def forward(self: Any, a: Any, b: Any, c: Any) -> Any:
        b, c = self.fb(b), self.fc(c)
        return self.project(self.fa(a)) + b + c

    model = make(forward, project=Projection(), fa=nn.Linear(3, 8), fb=nn.Linear(5, 8), fc=nn.Linear(2, 8))
    rules = [{"id": name, "pair": {"f": "module:fa", "g": f"module:f{name}"}} for name in "bc"]
    graph = inserted(model, (*PAIR, normal(4, 2)), *rules)
    first, second = sites(graph)
    assert second.args[0].args[0] is first, "the second normalises what the first has made"
    assert [user.meta["operation"] for user in second.args[0].users] == ["RegBN"]
    [linear] = [user for item in results_of(second) for user in item.users if user.op == "call_module"]
    assert linear.target == "project.fc"


def test_containers_that_are_put_together_for_a_call() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        both = self.same(Both(self.fa(a), self.fb(b)))
        return both.first + both.second

    model = make(forward, same=nn.Identity(), fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    graph = inserted(model, PAIR, {"pair": {"f": "module:fa", "g": "module:fb"}})
    [call] = [node for node in graph.nodes if node.meta.get("operation") == "Identity"]
    assert [node.args[0] for _, node in operands_of(call)] == sites(graph) * 2


def test_a_shared_owner_in_two_roles() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        a, b = self.fa(a), self.fb(b)
        return self.cross(a, b).mean(1) + self.cross(b, a).mean(1)

    model = make(forward, cross=Cross(), fa=nn.Linear(3, 8), fb=nn.Linear(5, 8))
    rule = {"match": {"kind": "attention"}, "normalize": "a"}
    graph = inserted(model, (normal(4, 6, 3), normal(4, 6, 5)), rule)
    assert [site.target for site in sites(graph)] == ["cross.regbn_r", "cross.regbn_r_1"]
    assert sources(graph) == [["fa", "fb"], ["fa", "fb"]]
    assert readers(graph) == [(["Linear"], ["Linear", "Linear"]), (["Linear", "Linear"], ["Linear"])]


def test_every_round_of_a_loop() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        found = []
        for i in range(a.shape[1]):
            found.append(torch.cat([self.fa(a[:, i]), self.fb(b[:, i])], 1))
        return torch.stack(found, 1)

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    graph = inserted(model, (normal(4, 3, 3), normal(4, 3, 5)), CONCAT)
    assert [site.target for site in sites(graph)] == ["regbn_r"] * 3
    assert sources(graph) == [["fa", "fb"], ["fa_1", "fb_1"], ["fa_2", "fb_2"]]
    assert readers(graph) == [(["cat"], ["cat"])] * 3


def test_a_scatter_and_who_reads_what_was_written_to() -> None:
    def forward(self: Any, ids: Any, image: Any) -> Any:
        tokens = self.embed(ids)
        tokens[ids == 7] = self.proj(image).flatten(0, 1)
        return self.head(tokens)

    ids = torch.tensor([[1, 7, 7, 2], [7, 7, 3, 4]])
    model = make(forward, embed=nn.Embedding(9, 8), proj=nn.Linear(3, 8), head=nn.Linear(8, 8))
    rule = {"match": {"kind": "scatter"}, "normalize": "ids", "allow_noncausal": True}
    graph = inserted(model, (ids, normal(2, 2, 3)), rule)
    [(f_readers, g_readers)] = readers(graph)
    assert sorted(f_readers) == ["Linear", "setitem"]
    assert g_readers == ["setitem"]


def test_a_pair_of_inputs() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        return self.fa(a) + self.fb(b)

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    graph = inserted(model, PAIR, {"pair": {"f": "input:a", "g": "input:b"}})
    assert sources(graph) == [["a", "b"]]
    assert readers(graph) == [(["Linear"], ["Linear"])]


class Tower(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(size, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.two(self.one(x))


def test_a_pair_between_towers_that_run_one_after_the_other() -> None:
    def forward(self: Any, a: Any, b: Any) -> Any:
        return self.ta(a) + self.tb(b)

    model = make(forward, ta=Tower(3), tb=Tower(5))
    graph = inserted(model, PAIR, {"pair": {"f": "module:ta.one", "g": "module:tb.one"}})
    assert readers(graph) == [(["Linear"], ["Linear"])]
    order = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    assert order.index("regbn_r") < order.index("ta.two"), "what reads f waits for g"


def test_nodes_that_wait_for_each_other_are_refused() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.sin, (x,))
    second = graph.call_function(torch.cos, (first,))
    graph.output(second)
    first.args = (second,)
    with pytest.raises(PlanError, match="neither can come first"):
        put_in_order(graph)


def test_another_trace_of_the_model() -> None:
    """The pass finds its places by the calls, so that a graph of a larger batch serves as well."""

    def forward(self: Any, a: Any, b: Any) -> Any:
        return torch.cat([self.fa(a), self.fb(b)], 1)

    model = make(forward, fa=nn.Linear(3, 6), fb=nn.Linear(5, 6))
    plan, analysis = planned(model, PAIR, CONCAT)
    graph = insert_regbn(regbn_surgery.trace(model, (normal(7, 3), normal(7, 5))), plan, analysis)
    assert readers(graph) == [(["cat"], ["cat"])]
    assert next(results_of(sites(graph)[0])).meta["tensor_meta"].shape == (7, 6)
