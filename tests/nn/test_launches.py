"""How many operations a training step launches on devices other than the CPU, which is what it takes there.

Counted on the CPU, on which the path of other devices is taken: of views nothing is launched, and they do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regbn_surgery import RegBN

from .elsewhere import go_elsewhere

NO_LAUNCH = ("aten.detach", "aten.alias", "aten.promote_types", "aten.lift_fresh")

#: For options, the most operations forward and backward: as measured, and a few more, since versions of torch differ.
BOUNDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "default": ({}, 158, 32),
    "all norms": ({"normalize_input": True, "affine": True}, 208, 86),
}


class Launches(TorchDispatchMode):
    """Counts what is launched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not str(func).startswith(NO_LAUNCH):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    with Launches() as counted:
        result = run()
    return result, counted.found


@pytest.fixture
def _another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    go_elsewhere(monkeypatch)


@pytest.mark.usefixtures("_another_device")
@pytest.mark.parametrize("case", BOUNDS)
def test_a_step_launches_few_operations(case: str) -> None:
    options, forward, backward = BOUNDS[case]
    torch.manual_seed(0)
    module = RegBN(24, 8, (), (3, 3), **options)
    f, g = (torch.randn(*shape, requires_grad=True) for shape in ((10, 24), (10, 8, 3, 3)))
    module(f, g)
    outputs, there = launches(lambda: module(f, g))
    ones = [torch.ones_like(x) for x in outputs]
    _, back = launches(lambda: torch.autograd.backward(outputs, ones))
    assert (there.total() <= forward, back.total() <= backward) == (True, True), (there, back)


def test_what_is_counted() -> None:
    """Views are not, and every operation is once."""
    x = torch.randn(3, 4)
    _, found = launches(lambda: x.mT[1:].unsqueeze(0) + 1.0)
    assert found == {"aten.add.Tensor": 1}
