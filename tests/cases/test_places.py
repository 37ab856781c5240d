"""RegBN runs in every call, wherever the code of the model stands: at a prompt, made by torch.fx, moved, unpickled."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import nn

from regbn_surgery import RegBNError, regbnify, unregbnify

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
@pytest.mark.parametrize("filename", PROMPTS)
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


@sources
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
    assert isinstance(rewritten, type(model))
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

SAVE = """
    import torch
    from mymodel import M
    from regbn_surgery import regbnify
    torch.manual_seed(0)
    model = regbnify(M(), RULES, (torch.randn(4, 5), torch.randn(4, 7)))
    for _ in range(3):
        model.train()(torch.randn(4, 5), torch.randn(4, 7))
    torch.save(model, "../whole.pt")
    x = torch.ones(2, 5), torch.ones(2, 7)
    print(model.eval()(*x).flatten().tolist())
""".replace("RULES", repr(rule()))
LOAD = """
    import torch
    from regbn_surgery import RegBN
    model = torch.load("../whole.pt", weights_only=False)
    ran = []
    for module in model.modules():
        if isinstance(module, RegBN):
            module.register_forward_hook(lambda *_: ran.append(1))
    x = torch.ones(2, 5), torch.ones(2, 7)
    print(model.eval()(*x).flatten().tolist())
    assert len(ran) == 1, f"RegBN ran {len(ran)} times of 1"
    model.train()(torch.randn(4, 5), torch.randn(4, 7))
    assert len(ran) == 2, f"RegBN ran {len(ran)} times of 2"
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


@pytest.mark.parametrize("moved", MOVED)
@sources
def test_pickle_moved(source: str, moved: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, SOURCES[source]), (there, MOVED[moved](SOURCES[source]))):
        folder.mkdir()
        (folder / "mymodel.py").write_text(text)
    saved = python(here, SAVE)
    assert python(there, LOAD) == saved


@sources
def test_pickle_of_a_class_that_says_something_else(source: str, tmp_path: Path) -> None:
    """Where the forward is another one by now, the load is refused, or the first call is."""
    here, there = tmp_path / "here", tmp_path / "there"
    changed = SOURCES[source].replace("torch.cat([self.fa(a), self.fb(b)], 1)", "torch.cat([self.fb(b), b[:, :1]], 1)")
    changed = changed.replace("fuse(f, g)", "f").replace("torch.cat([x, y], 1)", "x")
    for folder, text in ((here, SOURCES[source]), (there, changed)):
        folder.mkdir()
        (folder / "mymodel.py").write_text(text)
    python(here, SAVE)
    with pytest.raises(AssertionError, match="regbn_surgery") as caught:
        python(there, LOAD)
    assert any(kind.__name__ in str(caught.value) for kind in _errors()), str(caught.value)[-300:]


def _errors() -> list[type]:
    from regbn_surgery import _errors

    return [kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, RegBNError)]


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
