"""One RegBN has one name, the path in its model, whoever says it and whatever way it went in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import (
    Inputs,
    RegBN,
    diagnose,
    explain,
    load_regbn,
    plan,
    regbnify,
    save_regbn,
    statistics,
    summary,
    verify,
)  # fmt: skip
from regbn_surgery import nn as ours
from regbn_surgery._analysis import insert_regbn
from regbn_surgery._api import operate


class Attends(nn.Module):
    """Two attentions of torch's own, which hooks handle: the second goes the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.back = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.attn(a, b, b)[0].mean(1) + self.back(query=b, key=a, value=a)[0].mean(1)


class Joins(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a.flatten(1), b.flatten(1)], 1)


class Reads(nn.Module):
    """Hands a pair over by a star, so that RegBN goes into this code, although the owner keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.joins = Joins()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pair = (a.relu(), b.relu())
        return self.joins(*pair)


class Row(nn.Sequential):
    """Runs its children itself, so that RegBN cannot be one of them."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a.mean(1), b.mean(1)], 1)
        for layer in self:
            both = layer(both)
        return both


class Net(nn.Module):
    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(3, 8)
        self.part = nn.ModuleDict({"fusion": fusion})

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.part["fusion"](self.a(text), self.b(image))


MODELS = {
    "hook": (Attends, "attention", {"part.fusion.attn.regbn_x", "part.fusion.back.regbn_x_1"}),
    "caller": (Reads, "concat", {"part.fusion.joins.regbn_x"}),
    "children": (lambda: Row(nn.Linear(16, 2)), "concat", {"regbn_x_part_fusion"}),
    "code": (Joins, "concat", {"part.fusion.regbn_x"}),
}


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, 5), torch.randn(12, 4, 3)


def names_in(model: nn.Module) -> Iterator[set[str]]:
    """The names by each that speaks of a model with RegBN."""
    yield {key.removesuffix(".regbn.num_steps") for key in model.state_dict() if key.endswith(".regbn.num_steps")}
    yield {key.rpartition("/")[0] for key in statistics(model, whole=True)}
    yield {site.name for site in verify(model, example()).sites}
    yield {row.name for row in summary(model, example()).rows}
    yield {site.path for host in explain(model).hosts for site in host.sites}
    told = repr(explain(model)).partition("RegBN ")[2].rstrip(">")
    yield set(told.split(", "))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["as it is", "a copy", "a pickle", "loaded"])
def test_all_say_the_same(name: str, way: str, tmp_path: Path) -> None:
    fusion, kind, wanted = MODELS[name]
    original = Net(fusion())
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": kind}, "normalize": "text"}]}
    model = regbnify(original, rules, example())
    if way == "a copy":
        model = copy.deepcopy(model)
    elif way == "a pickle":
        model = pickle.loads(pickle.dumps(model))
    elif way == "loaded":
        save_regbn(model, tmp_path)
        model = load_regbn(Net(fusion()), tmp_path)
    assert [found for found in names_in(model) if found != wanted] == []


@pytest.mark.parametrize("name", MODELS)
def test_so_does_the_plan_before_and_after_it_is_tried(name: str) -> None:
    fusion, kind, wanted = MODELS[name]
    model = Net(fusion())
    regbn = {"normalize_output": True}
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": kind}, "normalize": "text", "regbn": regbn}]}
    for rehearse in (False, True):
        made = plan(model, rules, example(), rehearse=rehearse, steps=3)
        assert {site.path for site in made.sites} == wanted
        assert all(path in str(made).replace("\n", "") for path in wanted)
        assert all(f"`{path}`" in "".join(made.notes) for path in wanted), "the note on few steps names them"
        assert type(made).from_json(made.to_json()).sites == made.sites
    assert {key for key in regbnify(model, made, example()).state_dict() if key.endswith("num_steps")} == {
        f"{path}.regbn.num_steps" for path in wanted
    }


@pytest.mark.parametrize("name", MODELS)
def test_so_do_the_graph_diagnose_and_a_module_of_the_users(name: str) -> None:
    fusion, kind, wanted = MODELS[name]
    model = Net(fusion())
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": kind}, "normalize": "text"}]}
    done, analysis, _ = operate(model, rules, example())
    graph = insert_regbn(analysis.runs[0].trace.graph, done, analysis)
    assert {node.target for node in graph.nodes if "regbn" in node.meta} == wanted
    assert {row.site for row in diagnose(model, [Inputs(*example())], 1, rules).rows} == wanted
    other = regbnify(model, rules, example(), make=ours.NormsOnly.at)
    assert {path for path, module in other.named_modules() if isinstance(module, ours.NormsOnly)} == {
        f"{path}.regbn" for path in wanted
    }


def test_two_owners_of_one_layer_get_two_names() -> None:
    attn = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Net(Attends())
    model.part["fusion"].attn = model.part["fusion"].back = attn
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": "attention"}, "normalize": "text"}]}
    made = plan(model, rules, example(), rehearse=False)
    assert len({site.path for site in made.sites}) == len(made.sites)


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        inner: nn.Module = RegBN(4, 5)
        for _ in range(depth):
            inner = nn.ModuleDict({"a_layer_of_the_encoder": inner})
        self.first, self.second = copy.deepcopy(inner), nn.ModuleDict({"last": RegBN(4, 5)})


def test_keys_are_the_shortest_ends_of_paths_that_tell_apart() -> None:
    deep = Deep(4)
    assert {key.rpartition("/")[0] for key in statistics(deep)} == {"a_layer_of_the_encoder", "last"}
    assert statistics(deep).keys() == statistics(nn.ModuleDict({"module": deep})).keys(), "as in a wrapper"
    both = nn.ModuleDict(
        {"x": RegBN(4, 5), "y": nn.ModuleDict({"x": RegBN(4, 5)}), "z": nn.ModuleDict({"x": RegBN(4, 5)})}
    )
    assert {key.rpartition("/")[0] for key in statistics(both)} == {"x", "y.x", "z.x"}
    assert {key.rpartition("/")[0] for key in statistics(both, whole=True)} == {"x", "y.x", "z.x"}
    assert "lambda" in statistics(RegBN(4, 5)), "a RegBN by itself has no path, as in its state dict"
    wrapped = nn.ModuleDict({"module": both})
    assert {key.rpartition("/")[0] for key in statistics(wrapped)} == {"module.x", "y.x", "z.x"}
