"""No host synchronisation: shown on the meta device everywhere, and on a GPU where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

from regbn_surgery import RegBN, RegBNWarning

from .elsewhere import go_elsewhere

OPTIONS = [
    {},
    {"normalize_input": True, "affine": True, "constraint": "frobenius"},
    {"lambda_grad": "implicit", "form": "primal"},
    {"fit": "running"},
    {"reduce": "mean"},
    {"constraint": "gcv", "centre": True, "correct_start": True},
    {"constraint": "gcv", "form": "primal", "lambda_grad": "implicit"},
    {"constraint": "fixed", "lam": 0.1, "centre": True, "normalize_input": True},
    {"constraint": "fixed", "lam": 3.0, "lam_scale": "absolute", "step_size": "rms"},
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


@pytest.mark.parametrize("options", OPTIONS)
def test_what_other_devices_compute(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations as there, run on the CPU, against what the CPU does: three steps, one of them skipped."""
    here, f, g = make(options, "cpu")
    there = copy.deepcopy(here)
    bad = g.clone()
    bad[0, 0, 0] = float("nan")

    def run(module: RegBN) -> list[torch.Tensor]:
        results = []
        for step, second in enumerate((g, bad, g + 0.1)):
            leaf = (f + step).requires_grad_()
            outputs = module(leaf, second)
            if second is not bad:
                results += [*outputs, *torch.autograd.grad(outputs[0].pow(3).sum(), leaf)]
        return results

    with pytest.warns(RegBNWarning, match="not finite"):
        want = run(here)
    go_elsewhere(monkeypatch)
    for ours, theirs in zip(run(there), want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for name, value in there.state_dict().items():
        torch.testing.assert_close(value, here.state_dict()[name], atol=1e-7, rtol=1e-4, msg=name)
    assert int(there.num_skipped) == 1
    assert int(there.num_steps) == 2


@pytest.mark.parametrize("scales", [(1e-30, 1.0), (1.0, 1e-18), (1e30, 1.0), (1.0, 1e18), (1e18, 1e18), (1e-18, 1e-18)])
@pytest.mark.parametrize("options", [{}, {"normalize_input": True, "affine": True}, {"form": "primal"}])
def test_scales_elsewhere(
    options: dict[str, object], scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features near the ends of float32, with a missing row, as on the CPU; and their gradients."""
    here, f, g = make(options, "cpu")
    there = copy.deepcopy(here)
    f, g = f * scales[0], g * scales[1]
    g[3] = 0.0

    def run(module: RegBN) -> list[torch.Tensor]:
        leaves = f.clone().requires_grad_(), g.clone().requires_grad_()
        outputs = module(*leaves)
        gradients = torch.autograd.grad(outputs[0].pow(3).sum() + outputs[1].pow(3).sum(), leaves)
        return [*outputs, *(gradient * scale for gradient, scale in zip(gradients, scales, strict=True))]

    want = run(here)
    go_elsewhere(monkeypatch)
    for ours, theirs in zip(run(there), want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert int(there.num_steps) == int(here.num_steps) == 1
    torch.testing.assert_close(there.W, here.W, atol=0.0, rtol=1e-3)


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
@pytest.mark.parametrize("rows", [8, 50, 200])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_can_be_captured_in_a_cuda_graph(options: dict[str, object], rows: int) -> None:
    """The libraries behind `torch.linalg` differ with the size: not all of them can be captured."""
    module, f, g = make(options, "cuda")
    f, g = (x.repeat(-(-rows // len(x)), *[1] * (x.dim() - 1))[:rows] for x in (f, g))
    f, g = f + 0.1 * torch.randn_like(f), g + 0.1 * torch.randn_like(g)
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
    twin = copy.deepcopy(module)
    graph.replay()
    torch.cuda.synchronize()
    assert int(module.num_steps) == steps + 1
    torch.testing.assert_close(f_out, twin(f, g)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(module.W, twin.W, atol=1e-5, rtol=1e-4)
