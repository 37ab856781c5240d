"""Forwards in evaluation and in training in any order before one backward, and batches without samples."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

from regbn_surgery import RegBN, RegBNShapeError
from regbn_surgery.nn._compilers import exporting

OPTIONS: dict[str, dict[str, object]] = {
    "published": {},
    "low rank": {"projection": "low_rank", "rank": 3},
    "centred": {"centre": True, "constraint": "gcv"},
    "batch norms": {"normalize_input": True, "residual": "normalized"},
    "running": {"fit": "running"},
}


def make(name: str) -> RegBN:
    torch.manual_seed(0)
    module = RegBN(3, 4, [2, 2], [1, 2], **OPTIONS[name])
    for _ in range(3):
        module(torch.randn(8, 3, 2, 2), torch.randn(8, 4, 1, 2))
    return module


@pytest.mark.parametrize("order", ["et", "te", "ete", "eett", "tet"])
@pytest.mark.parametrize("name", OPTIONS)
def test_one_backward_over_forwards_of_both_modes(name: str, order: str) -> None:
    """The gradient is the sum of those of each forward alone, at the state that it saw."""
    module = make(name)
    total, want = [], []
    inputs = [(torch.randn(8, 3, 2, 2), torch.randn(8, 4, 1, 2)) for _ in order]
    leaves = [tuple(x.clone().requires_grad_() for x in pair) for pair in inputs]
    for mode, pair, leaf in zip(order, inputs, leaves, strict=True):
        alone = copy.deepcopy(module).train(mode == "t")
        own = tuple(x.clone().requires_grad_() for x in pair)
        want += torch.autograd.grad(sum(x.pow(3).sum() for x in alone(*own)), own)
        total += module.train(mode == "t")(*leaf)
    sum(x.pow(3).sum() for x in total).backward()
    for leaf, value in zip([x for pair in leaves for x in pair], want, strict=True):
        torch.testing.assert_close(leaf.grad, value)


def test_a_copy_is_made_only_for_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from regbn_surgery.nn import _readers

    copies = []
    original = _readers._Kept.copy
    monkeypatch.setattr(_readers._Kept, "copy", lambda self: (copies.append(1), original(self))[1])
    module = make("published")
    f, g = torch.randn(8, 3, 2, 2), torch.randn(8, 4, 1, 2, requires_grad=True)
    module.eval()(f, g)[0].sum().backward()
    gc.collect()
    module.train()(f, g)
    assert not copies
    out = module.eval()(f, g)[0]
    pickle.dumps(module)
    module.train()(f, g)
    assert len(copies) == 1
    out.sum().backward()


def test_other_changes_of_the_projection_are_refused_as_torch_does() -> None:
    module = make("published").eval()
    out = module(torch.randn(8, 3, 2, 2), torch.randn(8, 4, 1, 2, requires_grad=True))[0]
    with torch.no_grad():
        module.W.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_loading_a_state_before_the_backward_leaves_the_gradient_right() -> None:
    module = make("published").eval()
    g = torch.randn(8, 4, 1, 2, requires_grad=True)
    f = torch.randn(8, 3, 2, 2)
    (want,) = torch.autograd.grad(module(f, g)[0].pow(3).sum(), g)
    out = module(f, g)[0].pow(3).sum()
    module.load_state_dict(make("published").state_dict() | {"W": torch.randn_like(module.W)})
    torch.testing.assert_close(torch.autograd.grad(out, g)[0], want)


def test_compiled_evaluation_before_compiled_training() -> None:
    module = make("published")
    plain = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager")
    f, g = torch.randn(8, 3, 2, 2), torch.randn(8, 4, 1, 2)
    grads = []
    for layer, inner in ((compiled, module), (plain, plain)):
        leaf = g.clone().requires_grad_()
        inner.eval()
        first = layer(f, leaf)[0].pow(3).sum()
        inner.train()
        (first + layer(f, leaf)[0].pow(3).sum()).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduce", ["flatten", "mean"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_empty_batch_gives_empty_results_in_evaluation(name: str, reduce: str) -> None:
    if reduce == "mean":
        if "residual" in OPTIONS[name]:
            return
        module = RegBN(3, 4, reduce="mean", **OPTIONS[name])
    else:
        module = make(name)
    f, g = torch.randn(0, 3, 2, 2, requires_grad=True), torch.randn(0, 4, 1, 2)
    f_out, g_out = module.eval()(f, g)
    assert (f_out.shape, g_out.shape) == (f.shape, g.shape)
    f_out.sum().backward()
    assert f.grad is not None
    with pytest.raises(RegBNShapeError, match="empty batch"):
        module.train()(f, g)


SCALES = [(f, g) for f in (1e-30, 1e-20, 1.0, 1e20, 1e30) for g in (1e-30, 1e-20, 1.0, 1e20, 1e30)]


@pytest.mark.parametrize("form", ["dual", "primal", "low_rank"])
@pytest.mark.parametrize("constraint", ["smoother", "frobenius", "fixed", "gcv"])
@pytest.mark.parametrize("options", [{}, {"normalize_input": True}, {"centre": True, "normalize_output": False}])
def test_any_scale_in_float32(options: dict[str, object], constraint: str, form: str) -> None:
    """Finite outputs, state, and gradients where float32 can hold them; and f' is right where it is scale-free."""
    chosen = {**options, "constraint": constraint, **({"lam": 0.1} if constraint == "fixed" else {})}
    chosen |= {"projection": "low_rank"} if form == "low_rank" else {"form": form}
    for f_scale, g_scale in SCALES:
        torch.manual_seed(0)
        module = RegBN(3, 4, [2, 2], [1, 2], **chosen)
        f, g = (
            (torch.randn(12, 3, 2, 2) * f_scale).requires_grad_(),
            (torch.randn(12, 4, 1, 2) * g_scale).requires_grad_(),
        )
        for _ in range(3):
            f.grad = g.grad = None
            f_out, g_out = module(f, g)
            (f_out.sum() + g_out.sum()).backward()
        seen = [f_out, g_out, *module.eval()(f, g), *module.factors, module.change_mean, module.change_square]
        if f_scale / g_scale < 1e35:
            seen += [f.grad, g.grad]
        assert all(torch.isfinite(x).all() for x in seen), (f_scale, g_scale)
        scale_free = constraint != "frobenius" and "normalize_input" not in options
        if scale_free and "normalize_output" in options:
            one = RegBN(3, 4, [2, 2], [1, 2], **chosen)
            want = one(f.detach() / f_scale, g.detach() / g_scale)[0]
            torch.testing.assert_close(module.train()(f, g)[0] / f_scale, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("exports", [False, True])
def test_what_is_compiled_is_not_taken_for_an_export(exports: bool) -> None:
    """Several versions of `torch.compiler.is_exporting` say it of both."""

    class Tells(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (1.0 if exporting() else 0.0)

    zero = torch.zeros(1)
    torch._dynamo.reset()
    if exports:
        run = torch.export.export(Tells(), (zero,), strict=False).module()
    else:
        run = torch.compile(Tells(), backend="eager")
    assert run(zero).item() == float(exports)
    assert not exporting()
