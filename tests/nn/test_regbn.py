"""The module as a user meets it: shapes, modes, masks, errors, state."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict

import pytest
import torch

from regbn_surgery import RegBN, RegBNOptionError, RegBNShapeError, RegBNWarning
from regbn_surgery.nn.options import CHOICES, DOCS, RegBNOptions


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_modes_follow_train_and_eval() -> None:
    f, g = torch.randn(16, 5, 2), torch.randn(16, 3, 4, 4)
    module = RegBN(5, 3, [2], [4, 4]).train()
    module(f, g)
    assert int(module.num_steps) == 1
    before = module.W.clone()
    module.eval()
    explicit = module(f, g, is_training=False)
    for ours, theirs in zip(module(f, g), explicit, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(module.W, before)
    module(f, g, is_training=True)
    assert not torch.equal(module.W, before)


@pytest.mark.parametrize("axes", range(6))
def test_any_number_of_spatial_axes(axes: int) -> None:
    f, g = torch.randn(6, 3, *[2] * axes, requires_grad=True), torch.randn(6, 2, *[2] * axes)
    module = RegBN(3, 2, [2] * axes, [2] * axes, normalize_input=True, affine=True)
    f_out, g_out = module(f, g)
    assert f_out.shape == f.shape
    assert g_out.shape == g.shape
    f_out.square().sum().backward()
    assert f.grad is not None
    assert torch.isfinite(f.grad).all()
    assert module.eval()(f, g)[0].shape == f.shape


def test_f_out_is_free_of_g() -> None:
    """What the operator is for: a linear dependence of f on g (with a norm below 1) is gone after training."""
    g = torch.randn(4000, 6)
    slope = torch.randn(6, 8)
    f = g @ (0.9 * slope / slope.norm()) + 0.1 * torch.randn(4000, 8)
    module = RegBN(8, 6, momentum=0.2, normalize_output=False, constraint="frobenius")
    for _ in range(60):
        pick = torch.randint(0, 4000, (256,))
        module(f[pick], g[pick])
    left = module.eval()(f, g)[0]
    assert (left.T @ g).norm() < 0.1 * (f.T @ g).norm()


def test_mean_subtracts_from_every_position() -> None:
    f, g = torch.randn(8, 5, 7), torch.randn(8, 3, 4)
    module = RegBN(5, 3, reduce="mean", normalize_output=False)
    pooled = RegBN(5, 3, normalize_output=False)
    f_out, g_out = module(f, g)
    want = pooled(f.mean(-1), g.mean(-1))[0] - f.mean(-1)
    torch.testing.assert_close(f_out - f, want[:, :, None].expand_as(f))
    assert torch.equal(g_out, g)
    torch.testing.assert_close(module.W, pooled.W)
    f2, g2 = torch.randn(4, 5, 2, 3), torch.randn(4, 3)  # other lengths, and none, fit the same module
    explained = (g2 @ module.W)[:, :, None, None]
    torch.testing.assert_close(module.eval()(f2, g2)[0], f2 - explained)


def test_mean_norms_over_channels_alone() -> None:
    f, g = torch.randn(8, 5, 7), torch.randn(8, 3, 4, 2)
    f_out, g_out = RegBN(5, 3, reduce="mean")(f, g)
    torch.testing.assert_close(f_out.mean(1), torch.zeros(8, 7), atol=1e-5, rtol=0)
    want = torch.nn.functional.layer_norm(g.movedim(1, -1), (3,)).movedim(-1, 1)
    torch.testing.assert_close(g_out, want)


def test_masked_positions_do_not_count() -> None:
    f, g = torch.randn(8, 5, 7), torch.randn(8, 3, 4)
    module, short = (RegBN(5, 3, reduce="mean", normalize_input=True) for _ in range(2))
    f_mask, g_mask = torch.ones(8, 7, dtype=torch.bool), torch.ones(8, 4, dtype=torch.bool)
    f_mask[:, 5:], g_mask[:, 2:] = False, False
    f[:, :, 5:], g[:, :, 2:] = float("nan"), 1e6
    f_out, _ = module(f, g, f_mask=f_mask, g_mask=g_mask)
    want, _ = short(f[:, :, :5], g[:, :, :2])
    torch.testing.assert_close(f_out[:, :, :5], want)
    torch.testing.assert_close(module.W, short.W)
    assert int(module.num_skipped) == 0


def test_all_positions_masked_counts_as_zero() -> None:
    f, g = torch.randn(4, 5, 7), torch.randn(4, 3, 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0] = False
    out = RegBN(5, 3, reduce="mean")(f, g, g_mask=mask)[0]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("reduce", ["flatten", "mean"])
def test_replace_f_returns_g_itself(reduce: str) -> None:
    f, g = torch.randn(8, 5), torch.randn(8, 3)
    module = RegBN(5, 3, replace="f", affine=True, reduce=reduce)
    assert module(f, g)[1] is g
    assert module.eval()(f, g)[1] is g
    assert not any(name.startswith("norm_g_out") for name in module.state_dict())


def test_running_fit_subtracts_with_the_projection_from_before() -> None:
    module = RegBN(5, 3, fit="running", normalize_output=False)
    f, g = torch.randn(8, 5), torch.randn(8, 3, requires_grad=True)
    assert torch.equal(module(f, g)[0], f)  # W is 0 before the first step
    before = module.W.clone()
    out = module(f, g)[0]
    torch.testing.assert_close(out, f - g @ before)
    out.sum().backward()
    torch.testing.assert_close(g.grad, -before.sum(1).expand_as(g))
    assert not torch.equal(module.W, before)


def test_published_checkpoint_loads() -> None:
    """W and the norms only, as the published layer saves them; the moments start anew."""
    source = RegBN(5, 3, [], [4, 4], normalize_input=True, affine=True)
    source(torch.randn(8, 5), torch.randn(8, 3, 4, 4))
    published = {key: value for key, value in source.state_dict().items() if key == "W" or key.startswith("norm_")}
    assert {"norm_f.weight", "norm_g.running_mean", "norm_f_out.bias", "norm_g_out.weight"} <= set(published)
    target = RegBN(5, 3, [], [4, 4], normalize_input=True, affine=True)
    target(torch.randn(8, 5), torch.randn(8, 3, 4, 4))
    target.load_state_dict(published)
    assert torch.equal(target.W, source.W)
    assert int(target.num_steps) == 0
    with pytest.raises(RuntimeError, match=r"`norm_g\.running_mean` was trained, .* normalize_input=True"):
        RegBN(5, 3, [], [4, 4], affine=True).load_state_dict(published)
    published["norm_f_out.weight"] = torch.full((5,), 2.0)
    with pytest.raises(
        RuntimeError, match=r"`norm_f_out\.weight` was trained, .* normalize_output=True and affine=True"
    ):
        RegBN(5, 3, [], [4, 4], normalize_input=True, normalize_output=False).load_state_dict(published)
    with pytest.raises(RuntimeError, match=r"`norm_f_out\.weight` was trained, .* give it affine=True"):
        RegBN(5, 3, [], [4, 4], normalize_input=True).load_state_dict(published)
    untrained = {key: value for key, value in published.items() if not key.startswith(("norm_f", "norm_g"))}
    untrained |= {"norm_f_out.weight": torch.ones(5), "norm_f_out.bias": torch.zeros(5)}
    RegBN(5, 3, [], [4, 4]).load_state_dict(untrained)  # the same maths without them
    # Norms that are off here, and took no part in training, are left out.
    fresh = RegBN(5, 3, [], [4, 4], normalize_input=True, affine=True).state_dict()
    published |= {key: fresh[key] for key in fresh if key.startswith(("norm_f.", "norm_g."))}
    model = torch.nn.ModuleDict({"fusion": RegBN(5, 3, [], [4, 4], affine=True)})  # somewhere in a model
    model.load_state_dict({f"fusion.{key}": value for key, value in published.items()})
    assert torch.equal(model["fusion"].W, source.W)
    with pytest.raises(RuntimeError, match="W_left"):
        RegBN(5, 3, [], [4, 4], projection="low_rank").load_state_dict(published)
    with pytest.raises(RuntimeError, match="num_steps"):
        target.load_state_dict({k: v for k, v in source.state_dict().items() if k != "num_steps"})


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_checkpoint_of_another_place_is_told_in_one_line(affine: bool, published: bool) -> None:
    """There g was a map, and here it is flat, or the other way round; W has the same sizes."""
    options = {"normalize_input": True, "affine": affine}
    of_map, flat = RegBN(5, 3, [], [2, 2], **options), RegBN(5, 12, **options)
    of_map(torch.randn(8, 5), torch.randn(8, 3, 2, 2))
    state = of_map.state_dict()
    if published:
        state = {key: value for key, value in state.items() if key == "W" or key.startswith("norm_")}
    with pytest.raises(RuntimeError, match="stood where f or g has other axes than here") as caught:
        flat.load_state_dict(state)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "`norm_g." in lines[1]
    assert ("`norm_g_out." in lines[1]) is affine
    assert "`pair: {f: module:..., g: module:...}`" in lines[1]
    if affine:
        with pytest.raises(RuntimeError, match=r"`norm_g\.weight`, `norm_g_out\.weight`: the checkpoint's"):
            of_map.load_state_dict(flat.state_dict())


def test_a_batch_that_is_not_finite_is_skipped_and_told_once() -> None:
    module = RegBN(5, 3, [], [2, 2], normalize_input=True)
    f, g = torch.randn(8, 5), torch.randn(8, 3, 2, 2)
    module(f, g)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    bad = g.clone()
    bad[0, 0, 0, 0] = float("inf")
    with pytest.warns(RegBNWarning, match="not finite"):
        module(f, bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(f * float("nan"), g)
    assert int(module.num_skipped) == 2
    for key, value in module.state_dict().items():
        assert key == "num_skipped" or torch.equal(value, before[key]), key
    out = module(f, g)[0]
    assert torch.isfinite(out).all()
    assert int(module.num_steps) == 2


@pytest.mark.parametrize(
    ("f", "g", "message"),
    [
        ((8, 4), (8, 3, 2), r"expects floating-point f of shape \[B, 5\]; found torch.float32 \[8, 4\]"),
        ((8, 5), (8, 3, 3), r"g of shape \[B, 3, 2\]; found torch.float32 \[8, 3, 3\]"),
        ((8, 5, 1), (8, 3, 2), "f of shape"),
        ((8, 5), (7, 3, 2), "8 samples of f and 7 of g"),
        ((0, 5), (0, 3, 2), "empty batch"),
        ((1, 5), (1, 3, 2), "more than 1 sample in training"),
    ],
)
def test_inputs_that_do_not_fit(f: tuple[int, ...], g: tuple[int, ...], message: str) -> None:
    module = RegBN(5, 3, [], [2])
    with pytest.raises(RegBNShapeError, match=message):
        module(torch.randn(f), torch.randn(g))
    assert int(module.num_steps) == 0


def test_a_batch_of_one_is_fine_in_evaluation() -> None:
    module = RegBN(5, 3).eval()
    assert module(torch.randn(1, 5), torch.randn(1, 3))[0].shape == (1, 5)


def test_integer_input_and_misplaced_mask_are_refused() -> None:
    module = RegBN(5, 3)
    with pytest.raises(RegBNShapeError, match="floating-point g"):
        module(torch.randn(4, 5), torch.ones(4, 3, dtype=torch.long))
    with pytest.raises(RegBNShapeError, match="reduce='mean'"):
        module(torch.randn(4, 5), torch.randn(4, 3), f_mask=torch.ones(4, dtype=torch.bool))
    pooled, mask = RegBN(5, 3, reduce="mean"), torch.ones(4, 3, dtype=torch.bool)
    with pytest.raises(RegBNShapeError, match=r"g_mask of shape \[4, 6\]; found \[4, 3\]"):
        pooled(torch.randn(4, 5), torch.randn(4, 3, 6), g_mask=mask)


def test_a_missing_side_is_told() -> None:
    with pytest.raises(RegBNShapeError, match="expects two tensors, f and g; found NoneType for g"):
        RegBN(4, 3)(torch.randn(5, 4), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta1": 1.0}, r"beta1 must be a number in \[0, 1\)"),
        ({"beta1": True}, "beta1 must be a finite number"),
        ({"constraint": "l2"}, "constraint must be one of smoother, frobenius"),
        ({"affine": 1}, "affine must be true or false"),
        ({"rank": 8}, "projection='dense'"),
        ({"reduce": "mean", "f_layer_dim": [3]}, "leave both empty"),
        ({"projection": "auto", "form": "primal"}, "form='primal' solves with an m x m matrix"),
        ({"sigma_THR": 0.1, "lambda_grad": "implicit"}, "makes jump"),
        ({"sigma_THR": 0.1, "constraint": "gcv"}, "scores ridge fits"),
        ({"constraint": "fixed"}, "needs lam, as in lam=0.1"),
        ({"lam": 0.1}, "lam=0.1 was given with constraint='smoother', which finds lambda itself"),
        ({"lam_scale": "absolute", "constraint": "gcv"}, "lam_scale='absolute' was given with constraint='gcv'"),
        ({"constraint": "fixed", "lam": -1.0}, "lam must be a number that is not negative, or null; found -1.0"),
        ({"constraint": "fixed", "lam": "a"}, "lam must be a finite number or null"),
        ({"centre": 1}, "centre must be true or false"),
        ({"residual": "normalized", "reduce": "mean", "normalize_input": True}, "were not normalised"),
        ({"momentum": float("nan")}, "momentum must be a finite number"),
        ({"sigma_MIN": -1.0}, "sigma_MIN must be a number that is not negative"),
        ({"projection": "low_rank", "rank": 0}, "rank must be an integer of at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(RegBNOptionError, match=message):
        RegBN(5, 3, **options)


def test_defaults_are_the_published_ones() -> None:
    """In the module and in the options alike, so that a rules file and a call by hand give the same layer."""
    published = {"beta1": 0.9, "beta2": 0.99, "momentum": 0.02, "normalize_input": False, "normalize_output": True}
    published |= {"affine": False, "sigma_THR": 0.0, "sigma_MIN": 0.0}
    assert RegBN(5, 3).options == RegBNOptions()
    assert asdict(RegBNOptions()).items() >= {**published, "constraint": "smoother", "residual": "raw"}.items()


def test_auto_takes_the_smaller_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the same numbers; which was taken shows in what was called."""
    from regbn_surgery.nn import functional

    taken = []
    for name in ("dual", "primal"):
        called = "primal_in_units" if name == "primal" else name
        original = getattr(functional, called)
        monkeypatch.setattr(
            functional, called, lambda *args, name=name, original=original: (taken.append(name), original(*args))[1]
        )
    f, g = torch.randn(20, 5), torch.randn(20, 12)
    for b, want in ((20, "primal"), (12, "dual"), (6, "dual")):
        outputs = {form: RegBN(5, 12, form=form)(f[:b], g[:b])[0] for form in ("auto", "dual", "primal")}
        assert taken[-3:] == [want, "dual", "primal"]
        torch.testing.assert_close(outputs["dual"], outputs["primal"], atol=1e-5, rtol=1e-4)
        assert torch.equal(outputs["auto"], outputs[want])


def test_sizes_are_checked() -> None:
    with pytest.raises(RegBNShapeError, match="f_num_channels"):
        RegBN(0, 3)
    with pytest.raises(RegBNShapeError, match="g_layer_dim"):
        RegBN(5, 3, [], [2.5])


def test_options_are_plain_documented_and_free_of_torch() -> None:
    json.dumps(asdict(RegBNOptions()))
    assert tuple(DOCS) == RegBNOptions.names()
    assert set(CHOICES) <= set(DOCS)
    code = "import sys, regbn_surgery.nn.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
