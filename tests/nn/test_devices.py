"""No host synchronisation: shown on the meta device everywhere, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from regbn_surgery import RegBN

OPTIONS = [
    {},
    {"normalize_input": True, "affine": True, "constraint": "frobenius"},
    {"lambda_grad": "implicit", "form": "primal"},
    {"fit": "running"},
    {"reduce": "mean"},
]


def make(options: dict[str, object], device: str) -> tuple[RegBN, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    sizes = ((), ()) if options.get("reduce") == "mean" else ((2, 2), (3,))
    f, g = torch.randn(8, 6, 2, 2), torch.randn(8, 5, 3)
    return RegBN(6, 5, *sizes, **options).to(device), f.to(device), g.to(device)


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_asks_the_device_for_a_value(options: dict[str, object]) -> None:
    """A meta tensor has no values: whatever would wait for one raises."""
    module, f, g = make(options, "meta")
    f.requires_grad_()
    for _ in range(2):
        f_out, g_out = module.train()(f, g)
        assert (f_out.shape, g_out.shape) == (f.shape, g.shape)
        f_out.sum().backward()
    module.eval()(f, g)
    with pytest.raises(RuntimeError):  # the check can fail: reading a value does raise
        module.num_steps.item()


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("options", OPTIONS)
def test_no_synchronisation_on_a_gpu(options: dict[str, object]) -> None:
    module, f, g = make(options, "cuda")
    module(f, g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(f, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("options", OPTIONS)
def test_gpu_equals_cpu(options: dict[str, object]) -> None:
    on_gpu, f, g = make(options, "cuda")
    on_cpu, _, _ = make(options, "cpu")
    for _ in range(3):
        for ours, theirs in zip(on_gpu(f, g), on_cpu(f.cpu(), g.cpu()), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(on_gpu.W.cpu(), on_cpu.W, atol=1e-5, rtol=1e-3)


@cuda
def test_a_step_can_be_captured_in_a_cuda_graph() -> None:
    module, f, g = make({"normalize_input": True}, "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(f, g)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f_out, _ = module(f, g)
    steps = int(module.num_steps)
    graph.replay()
    torch.cuda.synchronize()
    assert int(module.num_steps) == steps + 1
    torch.testing.assert_close(f_out, module(f, g)[0], atol=1e-4, rtol=1e-4)
