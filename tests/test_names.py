"""Modules, inputs and rules may have any name: keywords of Python, names that begin with a digit, hyphens, spaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from regbn_surgery import Inputs, Plan, RegBN, explain, inspect, load_regbn, plan, regbnify, save_regbn, unregbnify
from regbn_surgery._inspecting import analysed
from regbn_surgery._report.dot import to_dot
from regbn_surgery._report.explorer import to_explorer
from regbn_surgery._report.graph_of_run import graph_of
from regbn_surgery._report.page import to_page
from regbn_surgery._starter import starter_rules
from regbn_surgery._trace import capture
from regbn_surgery._trace._keywords import without_keywords

NAMES = ["global", "class", "None", "lambda", "a-b", "1st", "two words", "ünïcode", "no", "null", "a:b", "#a", "'q'",
         "module", "call", "args", "kwargs", "input", "func", "forward_", "regbn_late"]  # fmt: skip


class Fusion(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(6, 16))

    def forward(self, f: Tensor, raw: Tensor) -> Tensor:
        g = getattr(self, self.name)(raw)
        return torch.cat([f, g], 1)


class Model(nn.Module):
    """Both an input and modules on every level are called `name`; the host is `<name>.<name>`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.ModuleDict({name: Fusion(name)}))
        self.image, self.head = nn.Linear(8, 16), nn.Linear(32, 3)

    def forward(self, image: Tensor, **others: Tensor) -> Tensor:
        fusion = self.get_submodule(f"{self.name}.{self.name}")
        return self.head(fusion(self.image(image), others[self.name]))


def made(name: str) -> tuple[Model, Inputs, dict[str, Any]]:
    torch.manual_seed(0)
    rules = {
        "version": 1,
        "modalities": {"image": ["image"], "other": [name]},
        "rules": [{"id": "here", "match": {"owner": f"{name}.{name}"}, "normalize": "image", "against": "other"}],
    }
    return Model(name), Inputs(torch.randn(4, 8), **{name: torch.randn(4, 6)}), rules


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    model, x, rules = made(name)
    wanted = model.eval()(*x.args, **x.kwargs)
    assert [point.owner for point in inspect(model, x).fusion_points] == [f"{name}.{name}"]
    planned = plan(model, rules, x)
    assert Plan.from_json(planned.to_json()).sites == planned.sites
    rewritten = regbnify(model, rules, x)
    assert [path for path, module in rewritten.named_modules() if isinstance(module, RegBN)] == [
        f"{name}.{name}.regbn_here.regbn"
    ]
    assert str(explain(rewritten))
    found = rewritten.eval()(*x.args, **x.kwargs)
    save_regbn(rewritten, tmp_path / "saved")
    again = load_regbn(Model(name), tmp_path / "saved").eval()
    torch.testing.assert_close(again(*x.args, **x.kwargs), found)
    torch.testing.assert_close(unregbnify(rewritten)(*x.args, **x.kwargs), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rules_file_is_readable(name: str) -> None:
    model, x, _ = made(name)
    rewritten = regbnify(model, yaml.safe_load(starter_rules(model, x)), x)
    assert any(isinstance(module, RegBN) for module in rewritten.modules())


@pytest.mark.parametrize("name", NAMES)
def test_graphs_and_pages(name: str) -> None:
    model, x, _ = made(name)
    analysis = analysed(model, x)
    graph = graph_of(analysis)
    texts = [to_dot(graph), to_page(graph, None, ()), json.dumps(to_explorer(graph, None))]
    assert all(len(text) > 100 for text in texts)
    pygraphviz = pytest.importorskip("pygraphviz")
    assert len(pygraphviz.AGraph(texts[0]).nodes()) > 0


@pytest.mark.parametrize("rule", ["class", "None", "no-gates", "a_b", "x1"])
def test_rules_may_have_such_names_too(rule: str) -> None:
    model, x, rules = made("class")
    rules["rules"][0]["id"] = rule
    rewritten = regbnify(model, rules, x)
    assert any(isinstance(module, RegBN) for module in rewritten.modules())
    rewritten(*x.args, **x.kwargs)


def test_arguments_of_a_module_may_be_called_as_ours_are() -> None:
    class Takes(nn.Module):
        def forward(self, *, module: Tensor, call: Tensor, handler: Tensor) -> Tensor:
            return module + call + handler

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Takes()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(module=x, call=x, handler=x)

    trace, output = capture(Calls(), (torch.ones(2),), {})
    assert output.tolist() == [3, 3]
    assert [op.name for op in trace.calls] == ["add", "add"]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("x = self.global(y)", 'x = getattr(self, "global")(y)'),
        ("self.a.class.b.None.c(self.is)",
         'getattr(getattr(self.a, "class").b, "None").c(getattr(self, "is"))'),
        ('getattr(self.a, "b-c").lambda.weight', 'getattr(getattr(self.a, "b-c"), "lambda").weight'),
        ("self.globally(x.shape)", "self.globally(x.shape)"),
        ("return x if y.is_cuda else self.if(z)", 'return x if y.is_cuda else getattr(self, "if")(z)'),
        ("y.global", "y.global"),
    ],
)  # fmt: skip
def test_generated_code(code: str, wanted: str) -> None:
    assert without_keywords(code) == wanted
