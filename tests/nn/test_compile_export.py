"""torch.compile, torch.export and ONNX."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch._dynamo

from regbn_surgery import RegBN
from regbn_surgery.nn._compilers import OLD_COMPILER

OPTIONS = {
    "published": {},
    "all norms": {"normalize_input": True, "affine": True},
    "frobenius": {"constraint": "frobenius", "form": "primal"},
    "implicit": {"lambda_grad": "implicit"},
    "running": {"fit": "running"},
    "mean": {"reduce": "mean"},
    "low_rank": {"projection": "low_rank", "rank": 6},
    "thresholds": {"sigma_THR": 0.1, "sigma_MIN": 0.05},
}


def make(options: dict[str, object]) -> tuple[RegBN, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    sizes = ((), ()) if options.get("reduce") == "mean" else ((2, 2), (3,))
    return RegBN(6, 5, *sizes, **options), torch.randn(8, 6, 2, 2), torch.randn(8, 5, 3)


one_graph = pytest.mark.skipif(OLD_COMPILER, reason="a training step is a graph break with this torch")


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(module: torch.nn.Module, f: torch.Tensor, g: torch.Tensor, **arguments: object) -> list[torch.Tensor]:
    f, g = f.clone().requires_grad_(), g.clone().requires_grad_()
    f_out, g_out = module(f, g, **arguments)
    (f_out.pow(3).sum() + g_out.pow(3).sum()).backward()
    return [f_out.detach(), g_out.detach(), f.grad, g.grad]


def state(module: RegBN) -> dict[str, torch.Tensor]:
    """The state dict; for a W in factors their product: rounding may turn an eigenvector, and both factors with it."""
    found = dict(module.state_dict())
    if "W_left" in found:
        found["W"] = found.pop("W_left") @ found.pop("W_right")
    return found


@one_graph
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("case", OPTIONS)
def test_one_graph_for_training_and_one_for_evaluation(case: str) -> None:
    """No graph break, no recompilation from the second step on, the numbers of the eager module."""
    module, f, g = make(OPTIONS[case])
    eager = copy.deepcopy(module)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for step in range(4):
        for ours, theirs in zip(run(compiled, f + step, g), run(eager, f + step, g), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert len(graphs) == 1
    for name, value in state(module).items():
        torch.testing.assert_close(value, state(eager)[name], atol=1e-6, rtol=1e-4, msg=name)
    compiled.eval(), eager.eval()
    for _ in range(3):
        for ours, theirs in zip(run(compiled, f, g), run(eager, f, g), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert len(graphs) == 2


@one_graph
@pytest.mark.usefixtures("_fresh_compiler")
def test_epochs_do_not_recompile() -> None:
    """The published schedule hands over a number that changes: after the second one there is a graph for all."""
    module, f, g = make({})
    eager, graphs = copy.deepcopy(module), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for epoch in range(6):
        for ours, theirs in zip(compiled(f, g, n_epoch=epoch), eager(f, g, n_epoch=epoch), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(graphs) == 2
    torch.testing.assert_close(module.W, eager.W)


@one_graph
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_step_skips_what_is_not_finite() -> None:
    module, f, g = make({"normalize_input": True})
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(f, g)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    compiled(f, g * float("inf"))
    compiled(f * float("nan"), g)
    assert int(module.num_skipped) == 2
    for name, value in module.state_dict().items():
        assert name == "num_skipped" or torch.equal(value, before[name]), name
    assert torch.isfinite(compiled(f, g)[0]).all()


@one_graph
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_inductor() -> None:
    """The default backend, which needs a C++ compiler at run time."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        pytest.skip("torch.compile's default backend needs a C++ compiler")
    module, f, g = make({})
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True)
    for ours, theirs in zip(run(compiled, f, g), run(eager, f, g), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(module.W, eager.W)


@pytest.mark.parametrize("case", OPTIONS)
def test_export_in_evaluation(case: str) -> None:
    module, f, g = make(OPTIONS[case])
    module(f, g)
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (f, g), dynamic_shapes={"f": {0: batch}, "g": {0: batch}})
    for size in (8, 3):
        for ours, theirs in zip(program.module()(f[:size], g[:size]), module(f[:size], g[:size]), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", ["published", "all norms", "mean", "low_rank"])
def test_onnx_in_evaluation(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="ONNX export is tested where onnx is installed")
    pytest.importorskip("onnxscript", reason="ONNX export is tested where onnxscript is installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX export is tested where onnxruntime is installed")
    module, f, g = make(OPTIONS[case])
    module(f, g)
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    path = tmp_path / "regbn.onnx"
    torch.onnx.export(
        module, (f, g), path, dynamo=True, dynamic_shapes={"f": {0: batch}, "g": {0: batch}}, verbose=False
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for size in (8, 3):
        outputs = session.run(None, dict(zip(names, (f[:size].numpy(), g[:size].numpy()), strict=True)))
        for ours, theirs in zip(outputs, module(f[:size], g[:size]), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-5, rtol=1e-4)


@one_graph
@pytest.mark.parametrize(
    "options",
    [
        {"constraint": "gcv", "centre": True, "correct_start": True},
        {"constraint": "fixed", "lam": 0.1, "step_size": "rms", "steps_per_epoch": 2},
        {"normalize_input": True, "centre": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_later_options_compile_and_export(options: dict[str, object]) -> None:
    """One graph for training, with and without an absent row, and one for evaluation."""
    torch.manual_seed(0)
    module = RegBN(6, 5, [2, 2], [3, 2], **options)
    plain = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for step in range(3):
        f, g = torch.randn(9, 6, 2, 2) + 1, torch.randn(9, 5, 3, 2) + 1
        if step == 1:
            g[2] = 0.0
        leaves = [f.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(leaf, g)[0] for layer, leaf in zip((compiled, plain), leaves, strict=True)]
        for out in outputs:
            out.square().sum().backward()
        torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, atol=1e-3, rtol=1e-3)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], atol=1e-4, rtol=1e-3, msg=key)
    exported = torch.export.export(plain.eval(), (f, g)).module()
    absent = g.clone()
    absent[1] = 0.0
    for given in (g, absent):
        torch.testing.assert_close(exported(f, given)[0], plain(f, given)[0])


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say that it exports")
@pytest.mark.parametrize("strict", [False, True])
def test_an_export_holds_the_residual_and_the_norms_alone(strict: bool) -> None:
    """Neither what keeps large values in range nor what keeps a later step away from this call."""
    module, f, g = make({})
    program = torch.export.export(module.eval(), (f, g), strict=strict)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("aten.addmm.default") == 1
    assert not {name for name in names if any(word in name for word in ("clone", "exp2", "log2", "amax", "bitwise"))}


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_training_step_compiles_with_any_torch() -> None:
    """With breaks where it has to have them, as with old versions, and the eager results."""
    module, f, g = make({"centre": True})
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager")
    for ours, theirs in zip(run(compiled, f, g), run(eager, f, g), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert int(module.num_steps) == int(eager.num_steps) > 0
