"""RegBN runs in every call, wherever the code of the model stands: at a prompt, made by torch.fx, moved, unpickled."""

from __future__ import annotations

import copy
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import nn

from regbn_surgery import regbnify, unregbnify

from ._folders import MODEL, SOURCES, python, typed
from ._models import by_hand, regbns, rule, watched

PROMPTS = ["<stdin>", "<string>", "<ipython-input-3-0a1b2c>", "<command-1234567>", "/tmp/ipykernel_12/345.py"]
sources = pytest.mark.parametrize("source", SOURCES)


def pairs(size: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator), torch.randn(size, 7, generator=generator)


def assert_runs(model: nn.Module) -> None:
    """RegBN runs once in each of some calls, on f and g, and moves in training only."""
    for number, train in enumerate([True, True, False, True, False]):
        model.train(train)
        before = regbns(model)[0].num_steps.item()
        with watched(model) as runs:
            model(*pairs(3 + number, seed=number))
        assert len(runs) == 1, f"RegBN ran {len(runs)} times in call {number}"
        assert regbns(model)[0].num_steps.item() == before + train
    assert regbns(model)[0].W.any(), "W has not moved"


# -- a class that is typed at a prompt ---------------------------------------------------------------------------


@pytest.mark.parametrize("with_lines", [True, False], ids=["lines", "no lines"])
@pytest.mark.parametrize(
    "filename", [pytest.param(name, marks=pytest.mark.slow if n in (1, 3) else []) for n, name in enumerate(PROMPTS)]
)
@sources
def test_typed_at_a_prompt(source: str, filename: str, with_lines: bool) -> None:
    names = typed(SOURCES[source], filename, with_lines)
    model = regbnify(names["M"](), rule(), pairs())
    assert_runs(model)
    assert_runs(copy.deepcopy(model))


def test_typed_again_under_the_same_name() -> None:
    """Two cells of a notebook: the second class has other lines in the same pseudo-file."""
    first = regbnify(typed(MODEL, "<stdin>", False)["M"](), rule(), pairs())
    longer = "\n\n\n" + MODEL.replace("self.fa(a)", "torch.tanh(self.fa(a))")
    second = regbnify(typed(longer, "<stdin>", False)["M"](), rule(), pairs())
    assert_runs(first)
    assert_runs(second)


@pytest.mark.parametrize(
    "source", [pytest.param(name, marks=[] if name == "forward" else pytest.mark.slow) for name in SOURCES]
)
def test_typed_in_a_session_and_trained_by_a_file(source: str, tmp_path: Path) -> None:
    (tmp_path / "trainlib.py").write_text(
        "def train(m, batches):\n    for b in batches:\n        m(*b).sum().backward()\n"
    )
    session = (
        SOURCES[source].replace("\n\n\n", "\n").replace("\n\n    def", "\n    def")
        + "\n"
        + "from regbn_surgery import RegBN, regbnify\n"
        + f"m = regbnify(M(), {rule()!r}, (torch.randn(4, 5), torch.randn(4, 7)))\n"
        + "from trainlib import train\n"
        + "train(m.train(), [(torch.randn(4, 5), torch.randn(4, 7)) for _ in range(3)])\n"
        + "print([int(x.num_steps) for x in m.modules() if isinstance(x, RegBN)])\n"
    )
    assert python(tmp_path, session, stdin=True) == "[3]"


# -- a forward that torch.fx has generated -----------------------------------------------------------------------


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return self.inner(a, b)


@pytest.mark.parametrize("around", [0, 1])
@pytest.mark.parametrize("source", ["forward", "helpers", "child"])
def test_graph_module(source: str, around: int) -> None:
    model: nn.Module = torch.fx.symbolic_trace(typed(SOURCES[source], "<string>", False)["M"]())
    for _ in range(around):
        model = Around(model)
    rewritten = regbnify(model, rule(), pairs())
    assert isinstance(rewritten, Around if around else torch.fx.GraphModule)
    assert_runs(rewritten)
    assert_runs(copy.deepcopy(rewritten))
    restored = unregbnify(rewritten)
    torch.testing.assert_close(restored(*pairs()), model(*pairs()))


def test_graph_modules_of_the_same_code() -> None:
    """Each graph module has a class of its own: two of them do not share a place."""
    names = typed(MODEL, "<string>", False)
    one, two = (regbnify(torch.fx.symbolic_trace(names["M"]()), rule(), pairs()) for _ in range(2))
    assert_runs(one)
    assert_runs(two)


def test_graph_module_that_is_compiled_again() -> None:
    model = torch.fx.symbolic_trace(typed(MODEL, "<string>", False)["M"]())
    model.recompile()
    assert_runs(regbnify(model, rule(), pairs()))


# -- a pickle that is loaded where the code lies elsewhere -------------------------------------------------------

LOAD = """
    import json, sys, traceback
    from pathlib import Path
    import torch
    from regbn_surgery import RegBN, RegBNError

    torch.set_num_threads(1)
    kept = list(sys.path)

    def told(folder):
        sys.path[:] = [str(folder), *kept]
        sys.modules.pop("mymodel", None)
        ran = []
        try:
            model = torch.load(folder.parent / "whole.pt", weights_only=False)
            for module in model.modules():
                if isinstance(module, RegBN):
                    module.register_forward_hook(lambda *_: ran.append(1))
            found = model.eval()(torch.ones(2, 5), torch.ones(2, 7)).flatten().tolist()
            model.train()(torch.randn(4, 5), torch.randn(4, 7))
            return {"ran": len(ran), "output": found}
        except RegBNError as error:
            return {"refused": str(error)}
        except Exception:
            return {"failed": traceback.format_exc()[-600:]}

    folders = sorted(path for path in Path(".").glob("*/*") if path.is_dir())
    print(json.dumps({str(folder): told(folder.resolve()) for folder in folders}))
"""
#: What may differ between the file of the class here and there, without a difference in what it does.
MOVED: dict[str, Callable[[str], str]] = {
    "the same file": lambda source: source,
    "a line on top": lambda source: "# A licence header was added.\n" + source,
    "a docstring and a function on top": lambda source: '"""Models."""\n\n\ndef other():\n    return 1\n' + source,
    "a comment and a docstring in forward": lambda source: source.replace(
        "def forward(self, a, b):\n", 'def forward(self, a, b):\n        """Join."""\n        # here\n\n'
    ),
    "laid out in other lines": lambda source: source.replace("torch.cat(", "torch.cat(\n            "),
    "another class before": lambda source: source.replace("class M", "class N:\n    pass\n\n\nclass M"),
}


#: The same class saying something else: what RegBN stood between is gone.
ANOTHER = {
    "torch.cat([self.fa(a), self.fb(b)], 1)": "torch.cat([self.fb(b), self.fb(b)], 1)",
    "return torch.cat(branches, 1)": "return torch.cat([branches[1], branches[1]], 1)",
    "return torch.cat([x, y], 1)": "return torch.cat([y, y], 1)",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Save a model of each source here, and load each in one other process from each of the files that it may find."""
    root = tmp_path_factory.mktemp("pickles")
    outputs = {}
    for source, text in SOURCES.items():
        outputs[source] = _saved(text, root / source)
        for number, moved in enumerate(MOVED.values()):
            _written(moved(text), root / source / f"moved_{number}")
        for old, new in ANOTHER.items():
            text = text.replace(old, new)
        _written(text, root / source / "another")
    told = json.loads(python(root, LOAD))
    return {key: {**value, "expected": outputs[key.split("/")[0]]} for key, value in told.items()}


def _written(text: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "mymodel.py").write_text(text)


def _saved(text: str, folder: Path) -> list[float]:
    """Save a trained model of the source into the folder, and return what it gives for ones."""
    _written(text, folder / "here")
    sys.path.insert(0, str(folder / "here"))
    sys.modules.pop("mymodel", None)
    try:
        model = regbnify(importlib.import_module("mymodel").M(), rule(), pairs())
        for seed in range(3):
            model.train()(*pairs(4, seed))
        torch.save(model, folder / "whole.pt")
        expected: list[float] = model.eval()(torch.ones(2, 5), torch.ones(2, 7)).flatten().tolist()
        return expected
    finally:
        sys.path.remove(str(folder / "here"))
        sys.modules.pop("mymodel", None)


@pytest.mark.parametrize("moved", MOVED)
@sources
def test_pickle_moved(source: str, moved: str, loaded: dict[str, dict[str, Any]]) -> None:
    told = loaded[f"{source}/moved_{list(MOVED).index(moved)}"]
    assert told.get("ran") == 2, told
    torch.testing.assert_close(torch.tensor(told["output"]), torch.tensor(told["expected"]))


@sources
def test_pickle_of_a_class_that_says_something_else(source: str, loaded: dict[str, dict[str, Any]]) -> None:
    """Where the forward is another one by now, the load is refused, or the first call is."""
    assert "refused" in loaded[f"{source}/another"], loaded[f"{source}/another"]


def test_pickle_in_the_same_process() -> None:
    model = regbnify(_InThisFile(), rule(), pairs()).train()
    model(*pairs(5, seed=3))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded.eval()(*pairs()), model.eval()(*pairs()))
    f, g = model.fa(pairs()[0]), model.fb(pairs()[1])
    torch.testing.assert_close(loaded(*pairs()), model.head(torch.cat(by_hand(model, f, g), 1)))
    assert_runs(loaded)


class _InThisFile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.cat([self.fa(a), self.fb(b)], 1))
        return result
