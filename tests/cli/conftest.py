"""The command line with a stand-in for the library behind it: what is tested here is what a person types and reads."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from regbn_surgery._cli.commands import cli
from regbn_surgery._plan import decide
from regbn_surgery._rules import Rules

from ..plan.fakes import inspection, point, side


@dataclass(frozen=True)
class Host:
    """As `regbn_surgery._surgery.HostReport`."""

    host: str
    host_class: str
    tier: int
    sites: tuple[Any, ...]
    before: str
    after: str
    reason: str = ""
    unhooked: str = ""
    way: str = "hook"
    files: tuple[tuple[str, str, str, int], ...] = ()
    slots: tuple[tuple[int, str, str], ...] = ()


class FakeLibrary:
    """Answers as the library would, from an inspection made by hand; notes what it was asked."""

    def __init__(self) -> None:
        self.found = inspection(point("cat", side("gray"), side("colored")))
        self.asked: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None

    def inspect(self, model: Any, example_inputs: Any = None, modalities: Any = None) -> Any:
        self.asked.append((type(model).__name__, example_inputs, modalities))
        sys.stdout.write("noise from the model's forward\n")
        if self.error is not None:
            raise self.error
        return self.found

    def plan(self, model: Any, rules: Rules, example_inputs: Any = None) -> Any:
        return decide(rules, self.inspect(model, example_inputs))

    def analysed(self, model: Any, example_inputs: Any = None, modalities: Any = None) -> Any:
        return types.SimpleNamespace(inspection=self.inspect(model, example_inputs, modalities))

    def operate(self, model: Any, rules: Rules, example_inputs: Any = None) -> Any:
        plan = self.plan(model, rules, example_inputs)
        return plan, None, plan

    def regbnify(self, model: Any, rules: Rules, example_inputs: Any = None, *, inplace: bool = False) -> Any:
        assert not inplace
        return self.plan(model, rules, example_inputs)

    def examined(self, model: Any, plan: Any, analysis: Any, example: Any) -> Any:
        return replace(plan, sites=tuple(replace(site, tier=2) for site in plan.sites))

    def explain(self, plan: Any) -> tuple[Host, ...]:
        before, after = "return torch.cat((a, b), 1)", "return torch.cat((c, d), 1)"
        files = (("two_branch.py", before, after, 7),)
        return (Host("", "TwoBranch", 2, plan.sites, before, after, way="source", files=files),)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    api, rewrite = types.ModuleType("regbn_surgery._api"), types.ModuleType("regbn_surgery._surgery")
    inspecting = types.ModuleType("regbn_surgery._inspecting")
    for name in ("plan", "regbnify", "operate"):
        setattr(api, name, getattr(fake, name))
    for name in ("inspect", "analysed"):
        setattr(inspecting, name, getattr(fake, name))
    rewrite.explain = fake.explain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "regbn_surgery._api", api)
    monkeypatch.setitem(sys.modules, "regbn_surgery._inspecting", inspecting)
    monkeypatch.setitem(sys.modules, "regbn_surgery._surgery", rewrite)
    rehearsal = types.ModuleType("regbn_surgery._rehearsal")
    rehearsal.examined = fake.examined  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "regbn_surgery._rehearsal", rehearsal)
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    """Run the command line in an empty folder that is left as it was: path and modules are restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda *arguments: CliRunner().invoke(cli, list(arguments))
