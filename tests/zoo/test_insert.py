"""The traced graph of each model with RegBN inserted, run as a program: with identity in its place nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import _tree
from regbn_surgery._analysis import insert_regbn
from regbn_surgery._api import _planned
from regbn_surgery._rules import Rules
from regbn_surgery._state import preserved, seeded
from tests.trace.replay import run_graph

from . import ZooCase, handmade
from ._running import tensors_of


class Same(nn.Module):
    """Counts its calls, and shows that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return f, g


@pytest.mark.parametrize("case", handmade.CASES, ids=str)
def test_the_inserted_graph_runs(case: ZooCase) -> None:
    model = case.model()
    plan, analysis = _planned(model, Rules.from_dict(case.rules_dict()), case.example)
    trace = analysis.runs[0].trace
    graph = insert_regbn(trace.graph, plan, analysis)
    inputs = analysis.batches.small

    def outputs(run: Any) -> list[torch.Tensor]:
        with preserved(model), seeded(), torch.no_grad():
            args, kwargs = _tree.cloned((inputs.args, inputs.kwargs))
            return list(tensors_of(run(*args, **kwargs)))

    model.eval()
    expected = outputs(model)
    stands_in = {site.path: Same() for site in plan.sites}
    for path, module in stands_in.items():
        host, _, name = path.rpartition(".")
        model.get_submodule(host).add_module(name, module)
    called = dict.fromkeys(stands_in, 0)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = run_graph(model, trace.on(graph), *args, **kwargs)
        called.update({path: module.calls for path, module in stands_in.items()})
        return result

    torch.testing.assert_close(outputs(run), expected, rtol=1e-5, atol=1e-6)
    assert all(called.values()), "every site of the plan is in the graph"
