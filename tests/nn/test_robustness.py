"""Precisions, degenerate batches, second derivatives, checkpointing, copies, and a run that is killed and resumed."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from regbn_surgery import RegBN

from .oracle import Oracle, clear_of_zero_level, input_norm, multiplier, projection

LOW = [torch.float16, torch.bfloat16]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(2, 12),
    f_size=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    g_size=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    channels=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    normalize=st.booleans(),
    constraint=st.sampled_from(["smoother", "frobenius"]),
    scale=st.sampled_from([1e-2, 1.0, 1e2]),
)
def test_module_against_the_oracle(
    seed: int,
    b: int,
    f_size: list[int],
    g_size: list[int],
    channels: tuple[int, int],
    normalize: bool,
    constraint: str,
    scale: float,
) -> None:
    """Three steps and an evaluation, in float64, any shapes: outputs and running projection."""
    rng = np.random.default_rng(seed)
    module = RegBN(*channels, f_size, g_size, normalize_input=normalize, constraint=constraint).double()
    m, n = module.projection_shape
    size = b if b <= m else m
    reference = Oracle(m, n, constraint=constraint, normalize_input=normalize, normalize_output=True)
    for _ in range(3):
        f = rng.standard_normal((b, channels[0], *f_size)) * scale + 0.5
        g = rng.standard_normal((b, channels[1], *g_size)) * scale - 0.5
        f_out, g_out = module(torch.from_numpy(f), torch.from_numpy(g))
        G = input_norm(g) if normalize else g
        assume(clear_of_zero_level(G.reshape(b, -1), size))
        f_want, g_want = reference.train(f, g, size)
        np.testing.assert_allclose(f_out, f_want, atol=1e-6)
        np.testing.assert_allclose(g_out, g_want, atol=1e-6)
        np.testing.assert_allclose(module.W, reference.W, atol=1e-6 * max(1e-3, np.abs(reference.W).max()))
    f_want, _ = reference.evaluate(f, g)
    np.testing.assert_allclose(module.eval()(torch.from_numpy(f), torch.from_numpy(g))[0], f_want, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("half_module", [False, True])
def test_half_precision_is_an_island_of_float32(dtype: torch.dtype, half_module: bool) -> None:
    torch.manual_seed(0)
    f, g = torch.randn(8, 6, 2, 2), torch.randn(8, 5, 3)
    module = RegBN(6, 5, [2, 2], [3], normalize_input=True, affine=True)
    reference = copy.deepcopy(module)
    if half_module:
        module = module.to(dtype)
    f_low, g_low = f.to(dtype).requires_grad_(), g.to(dtype).requires_grad_()
    outputs = module(f_low, g_low)
    assert [x.dtype for x in outputs] == [dtype, dtype]
    assert module.W.dtype == torch.float32
    assert module.change_mean.dtype == torch.float32
    want = reference(f.to(dtype).float(), g.to(dtype).float())
    for ours, theirs in zip(outputs, want, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(module.W, reference.W)
    sum(x.float().square().sum() for x in outputs).backward()
    for x in (f_low, g_low):
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", LOW)
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    f, g = torch.randn(8, 6), torch.randn(8, 5)
    module, reference = RegBN(6, 5, normalize_input=True), RegBN(6, 5, normalize_input=True)
    with torch.autocast("cpu", dtype=dtype):
        ours = module(f, g)
        module.eval()(f, g)
    for x, y in zip(ours, reference(f, g), strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y)
    with torch.autocast("cpu", dtype=dtype):
        linear = torch.nn.Linear(6, 6)(f)
        assert linear.dtype == dtype
        assert module.train()(linear, g)[0].dtype == dtype


def test_mixed_precisions_keep_each_callers_dtype() -> None:
    f_out, g_out = RegBN(6, 5)(torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 5, dtype=torch.bfloat16))
    assert (f_out.dtype, g_out.dtype) == (torch.float64, torch.bfloat16)


def degenerate(kind: str, b: int, m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, m, generator=generator)
    if kind == "constant over the batch":
        return x[:1].expand(b, -1).clone()
    if kind == "constant features":
        return torch.full((b, m), 3.0)
    if kind == "zero":
        return torch.zeros(b, m)
    if kind == "duplicated features":
        return x[:, :1].expand(-1, m).clone()
    if kind == "duplicated samples":
        return x[: b // 2].repeat(2, 1)
    if kind == "huge":
        return x * 1e15
    if kind == "tiny":
        return x * 1e-15
    return x * torch.logspace(-4, 4, m)  # "scales apart"


KINDS = [
    "constant over the batch",
    "constant features",
    "zero",
    "duplicated features",
    "duplicated samples",
    "huge",
    "tiny",
    "scales apart",
]


@pytest.mark.parametrize("b", [4, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constraint", ["smoother", "frobenius"])
@pytest.mark.parametrize("normalize", [False, True])
def test_degenerate_batches_stay_finite(kind: str, constraint: str, normalize: bool, b: int) -> None:
    """Whatever g is, and whatever f is: finite outputs, gradients and state; only absent sides are skipped."""
    for f_kind, g_kind in ((kind, "scales apart"), ("scales apart", kind), (kind, kind)):
        f, g = degenerate(f_kind, b, 8).requires_grad_(), degenerate(g_kind, b, 6).requires_grad_()
        module = RegBN(8, 6, constraint=constraint, normalize_input=normalize)
        f_out, g_out = module(f, g)
        (f_out.sum() + g_out.square().sum()).backward()
        for x in (f_out, g_out, f.grad, g.grad, module.W, module.multiplier):
            assert torch.isfinite(x).all()
        assert int(module.num_skipped) == ("zero" in (f_kind, g_kind))


@pytest.mark.parametrize("constraint", ["smoother", "frobenius"])
def test_null_space_of_g_is_left_alone(constraint: str) -> None:
    """What g cannot explain stays in f, to float32 precision, though lambda is at its floor: duplicated samples."""
    f, g = 1e-3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), degenerate("duplicated samples", 6, 8)
    module = RegBN(4, 8, constraint=constraint, normalize_output=False)
    residual = module(f, g)[0]
    antisymmetric = residual[:3] - residual[3:]
    torch.testing.assert_close(antisymmetric, f[:3] - f[3:], rtol=1e-5, atol=1e-9)
    if constraint == "frobenius":  # inactive: all that g explains is gone
        assert (residual[:3] + residual[3:]).abs().max() < 1e-4 * f.abs().max()


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["two channels", "near duplicates"])
def test_null_space_of_the_fit_reaches_no_raw_features(kind: str, dtype: torch.dtype, form: str) -> None:
    """The fitted g is without a direction that the raw g has in plenty; lambda is at its floor, which lifts rounding.

    Two channels: LayerNorm leaves one direction of them, and takes out the mean, here 50 times as large as the rest.
    Near duplicates: pairs of samples of g that differ by far less than what counts as zero, and pairs of f that do not.
    """
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    if kind == "two channels":
        f, g, constraint = 1e-2 * make(2, 4) + 0.5, 1e-2 * make(2, 2) - 0.5, "smoother"
    else:
        g, constraint = make(4, 200), "frobenius"
        f, g = make(8, 2), torch.cat([g, g + 1e-4 * make(4, 200)])
    f, g = f.to(dtype), g.to(dtype)
    module = RegBN(
        f.shape[1], g.shape[1], normalize_input=True, normalize_output=False, form=form, constraint=constraint
    ).to(dtype)
    size = len(f) if form == "dual" else g.shape[1]
    F, G = (input_norm(x.double().numpy()) for x in (f, g))
    lam, active = multiplier(G, F, constraint, size)
    assert not active
    want = f.double().numpy() - g.double().numpy() @ projection(G, F, lam, size)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(module(f, g)[0].numpy(), want, atol=tolerance * np.abs(want).max(), rtol=0)


def test_double_backward_of_the_module() -> None:
    """A gradient penalty through RegBN: the second derivative agrees with finite differences."""
    torch.manual_seed(0)
    module = RegBN(4, 3, [], [2, 2], normalize_input=True, affine=True).double()

    def penalty(f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        f_out, g_out = module(f, g, multiplier=torch.tensor(2.0, dtype=torch.float64))
        grads = torch.autograd.grad((f_out**3).sum() + (g_out**3).sum(), (f, g), create_graph=True)
        return sum(x.square().sum() for x in grads)

    f = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, (f, g), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_thresholds_reach_the_fit(form: str) -> None:
    """`sigma_THR` and `sigma_MIN` as the module takes them, against the oracle; each of the two counts."""
    rng = np.random.default_rng(0)
    f, g = rng.standard_normal((7, 4)), rng.standard_normal((7, 5)) * 0.5 ** np.arange(5)
    size = 7 if form == "dual" else 5
    found = []
    for threshold, substitute in ((0.0, 0.0), (0.3, 0.0), (0.3, 0.2)):
        options = {"threshold": threshold, "substitute": substitute}
        lam, _ = multiplier(g, f, "smoother", size, **options)
        want = f - g @ projection(g, f, lam, size, **options)
        module = RegBN(4, 5, sigma_THR=threshold, sigma_MIN=substitute, normalize_output=False, form=form).double()
        found.append(module(torch.from_numpy(f), torch.from_numpy(g))[0].numpy())
        np.testing.assert_allclose(found[-1], want, atol=1e-9)
    assert min(np.abs(found[i] - found[j]).max() for i, j in ((0, 1), (1, 2))) > 1e-3


@pytest.mark.parametrize("constraint", ["smoother", "frobenius"])
def test_implicit_lambda_gradient_is_that_of_the_whole_step(constraint: str) -> None:
    """Finite differences of the module itself agree with `lambda_grad="implicit"`, and not with `"constant"`."""
    torch.manual_seed(0)
    f = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    sizes = (4, 3, [], [2, 2])
    implicit = RegBN(*sizes, normalize_input=True, constraint=constraint, lambda_grad="implicit").double()
    assert torch.autograd.gradcheck(implicit, (f, g))
    constant = RegBN(*sizes, normalize_input=True, constraint=constraint).double()
    assert not torch.autograd.gradcheck(constant, (f, g), raise_exception=False)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("fit", ["batch", "running"])
@pytest.mark.parametrize("projection", ["dense", "low_rank"])
def test_checkpointing_moves_the_state_once(fit: str, use_reentrant: bool, projection: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6)
    module = RegBN(6, 5, normalize_input=True, fit=fit, projection=projection)
    plain = copy.deepcopy(module)
    for _ in range(3):
        f, g = torch.randn(8, 6, requires_grad=True), torch.randn(8, 5)
        out = checkpoint(lambda f, g: module(layer(f), g)[0].square(), f, g, use_reentrant=use_reentrant)
        grad = (
            torch.autograd.grad(out[:, 0].sum(), f) if not use_reentrant else (out[:, 0].sum().backward(), f.grad)[1:]
        )
        f2 = f.detach().requires_grad_()
        (want,) = torch.autograd.grad(plain(layer(f2), g)[0].square()[:, 0].sum(), f2)
        torch.testing.assert_close(grad[0], want)
    assert int(module.num_steps) == 3
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


@pytest.mark.parametrize("projection", ["dense", "low_rank"])
def test_deepcopy_and_pickle(projection: str) -> None:
    module = RegBN(6, 5, normalize_input=True, fit="running", projection=projection)
    f, g = torch.randn(8, 6), torch.randn(8, 5)
    module(f, g)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.options == module.options
        for ours, theirs in zip(copied.eval()(f, g), module.eval()(f, g), strict=True):
            assert torch.equal(ours, theirs)
        module.train(), copied.train()
        copied(f, g)
        assert int(copied.num_steps) == int(module.num_steps) + 1
    # what a running fit keeps of the last step for gradient checkpointing is not part of what is saved
    trained, fresh = RegBN(40, 30, fit="running"), RegBN(40, 30, fit="running")
    trained(torch.randn(8, 40), torch.randn(8, 30))
    assert len(pickle.dumps(trained)) < 1.1 * len(pickle.dumps(fresh))


@pytest.mark.filterwarnings("ignore:RB410 RegBN was given a batch that is not finite")
@pytest.mark.parametrize("projection", ["dense", "low_rank"])
@pytest.mark.parametrize("form", ["auto", "dual"])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(projection: str, form: str) -> None:
    def run(module: RegBN, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            f = torch.randn(8, 6, 2, 2, generator=generator)
            module(f if step != 4 else f * float("nan"), torch.randn(8, 5, generator=generator))

    make = lambda: RegBN(6, 5, [2, 2], [], normalize_input=True, projection=projection, form=form)  # noqa: E731
    unbroken, first = make(), make()
    run(unbroken, range(10))
    run(first, range(6))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, range(6, 10))
    assert int(resumed.num_skipped) == 1
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, unbroken.state_dict()[name]), name


def test_no_history_and_no_memory_is_kept_over_steps() -> None:
    module = RegBN(4, 3, normalize_input=True, affine=True)
    f, g = torch.randn(8, 4, requires_grad=True), torch.randn(8, 3)
    counts = []
    for step in range(1000):
        module(f, g)[0].sum().backward()
        if step in (10, 999):
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[1] <= counts[0]
    for buffer in module.buffers():
        assert buffer.grad_fn is None
        assert not buffer.requires_grad


def test_residual_from_normalised_features() -> None:
    torch.manual_seed(0)
    f, g = torch.randn(8, 4), torch.randn(8, 3, 2, 2)
    module = RegBN(4, 3, [], [2, 2], normalize_input=True, residual="normalized", normalize_output=False)
    by_hand = RegBN(4, 12, normalize_output=False)
    F, G = module.norm_f(f), module.norm_g(g, True).flatten(1)
    torch.testing.assert_close(module(f, g)[0], by_hand(F, G)[0])
    for _ in range(200):
        module(f, g)
    F, G = module.eval().norm_f(f), module.norm_g(g).flatten(1)
    torch.testing.assert_close(module(f, g)[0], F - G @ module.W)
    torch.testing.assert_close(G, module.norm_g(g, True).flatten(1), rtol=0.15, atol=0.02)  # running statistics


def test_verbose_logs_and_quiet_does_not(caplog: pytest.LogCaptureFixture) -> None:
    f, g = torch.randn(8, 4), torch.randn(8, 3)
    with caplog.at_level("INFO", logger="regbn_surgery"):
        RegBN(4, 3)(f, g)
        assert not caplog.records
        RegBN(4, 3, verbose=True)(f, g)
    assert "lambda" in caplog.text


def test_functional_call_leaves_the_module_alone() -> None:
    module = RegBN(4, 3)
    f, g = torch.randn(8, 4), torch.randn(8, 3)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    torch.func.functional_call(module, state, (f, g))
    assert int(module.num_steps) == 0
    assert int(state["num_steps"]) == 1
    per_sample = torch.func.vmap(lambda f, g: module.eval()(f[None], g[None])[0][0])(f, g)
    torch.testing.assert_close(per_sample, module(f, g)[0])
