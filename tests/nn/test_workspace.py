"""The memory that steps share: nobody gets what somebody else still holds, and nothing of it reaches a result."""

from __future__ import annotations

import threading
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from regbn_surgery import RegBN
from regbn_surgery.nn import _dense, _linalg, _workspace
from regbn_surgery.nn._workspace import borrow, give_back


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def test_what_is_given_back_is_lent_again_and_only_once() -> None:
    first = borrow(100, torch.float32)
    give_back(first)
    second, third = borrow(60, torch.float32), borrow(60, torch.float32)
    assert address(second) == address(first)
    assert address(third) != address(second)
    assert borrow(10, torch.float64).dtype == torch.float64


def test_a_buffer_that_is_too_small_is_replaced() -> None:
    give_back(torch.empty(8, dtype=torch.float32))
    assert borrow(100, torch.float32).numel() >= 100


def test_every_thread_has_its_own() -> None:
    mine = borrow(100, torch.float32)
    give_back(mine)
    theirs: list[Tensor] = []
    thread = threading.Thread(target=lambda: theirs.append(borrow(100, torch.float32)))
    thread.start()
    thread.join()
    assert address(theirs[0]) != address(mine)


def test_what_a_mode_has_made_is_not_kept() -> None:
    with FakeTensorMode():
        fake = borrow(1 << 10, torch.bfloat16)
        give_back(fake)
    assert type(borrow(1, torch.bfloat16)) is Tensor


def test_a_first_step_in_inference_mode_leaves_memory_that_others_can_write_to() -> None:
    _workspace._kept.buffers.clear()
    torch.manual_seed(0)
    f, g = torch.randn(40, 30), torch.randn(40, 1200)
    with torch.inference_mode():
        RegBN(30, 1200)(f, g)
    assert torch.float32 in _workspace._kept.buffers
    f.requires_grad_()
    RegBN(30, 1200)(f, g)[0].sum().backward()


@pytest.mark.parametrize("step_size", ["mean", "rms"])
def test_steps_of_several_modules_and_threads_are_those_of_each_alone(step_size: Literal["mean", "rms"]) -> None:
    """Sizes in turn, so that each step finds another's values in the workspace; NaN in it would show."""

    def run(size: int, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(size)
        module = RegBN(20, size, step_size=step_size)
        for _ in range(steps):
            for buffer in _workspace._kept.buffers.values():
                buffer.fill_(float("nan"))
            f, g = (torch.randn(30, n, generator=generator) for n in (20, size))
            module(f, g)
        return module.W.clone()

    sizes = [1500, 40, 2500]
    alone = {size: run(size, 3) for size in sizes}
    assert all(bool(torch.isfinite(W).all()) for W in alone.values())
    found: dict[int, Tensor] = {}
    threads = [threading.Thread(target=lambda n=size: found.update({n: run(n, 3)})) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size in sizes:
        torch.testing.assert_close(found[size], alone[size], atol=1e-7, rtol=1e-6)


def test_a_step_asks_for_no_new_memory_of_the_size_of_its_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    module = RegBN(30, 1200)
    f, g = torch.randn(40, 30), torch.randn(40, 1200)
    module(f, g)
    asked: list[int] = []
    lend = _workspace.borrow

    def noted(size: int, dtype: torch.dtype) -> Tensor:
        before = _workspace._kept.buffers.get(dtype)
        buffer = lend(size, dtype)
        asked.append(0 if before is not None and address(before) == address(buffer) else size)
        return buffer

    monkeypatch.setattr(_dense, "borrow", noted)
    monkeypatch.setattr(_linalg, "borrow", noted)
    module(f, g)
    assert len(asked) >= 2
    assert set(asked) == {0}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [0, 1, 700, 5000])
def test_products_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, same: bool, size: int) -> None:
    monkeypatch.setattr(_linalg, "FEW", -1)
    monkeypatch.setattr(_linalg, "CONVERTED_AT_ONCE", 1000)
    torch.manual_seed(0)
    a = torch.randn(7, size)
    b = a if same else torch.randn(5, size)
    for left, right in ((a, b), (a[:, ::2], b[:, ::2]), (a.mT.contiguous().mT, b)):
        if left.shape[1] == right.shape[1]:
            right = left if same else right
            torch.testing.assert_close(_linalg._product(left, right), left.double() @ right.double().mT)
