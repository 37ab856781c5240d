"""The operator against what the published layer computed, given the multipliers that it used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regbn_surgery import RegBN

VECTORS = np.load(Path(__file__).parent / "data" / "regbn_reference_vectors.npz")
CASES = {
    "vec_vec": (True, True, False),
    "vec_map2d": (True, True, True),
    "map2d_map2d": (True, True, True),
    "seq_seq": (True, True, False),
    "vol_vec": (True, True, False),
    "plain": (False, False, False),
}


def load(case: str, key: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[f"{case}/{key}"])


def build(case: str, **options: object) -> RegBN:
    f, g = load(case, "f"), load(case, "g")
    normalize_input, normalize_output, affine = CASES[case]
    return RegBN(
        f.shape[2],
        g.shape[2],
        list(f.shape[3:]),
        list(g.shape[3:]),
        normalize_input=normalize_input,
        normalize_output=normalize_output,
        affine=affine,
        **options,
    )


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("by", ["call", "option"])
@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_projection_and_evaluation(case: str, form: str, by: str) -> None:
    """`by`: where the epochs come from; a call goes before the option."""
    f, g, lam = load(case, "f"), load(case, "g"), load(case, "lambda")
    module = build(case, form=form, steps_per_epoch=4 if by == "option" else 3).train()
    for step in range(8):
        epoch = {} if by == "option" else {"n_epoch": step // 4, "steps_per_epoch": 4}
        f_out, g_out = module(f[step], g[step], **epoch, multiplier=lam[step])
        assert worst(f_out, load(case, "f_out")[step]) <= 2e-5
        assert worst(g_out, load(case, "g_out")[step]) <= 2e-5
        assert worst(module.W, load(case, "W")[step]) <= 1e-6
    f_out, g_out = module.eval()(f[7], g[7])
    assert worst(f_out, load(case, "eval_f_out")) <= 2e-5
    assert worst(g_out, load(case, "eval_g_out")) <= 2e-5


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str, form: str) -> None:
    f, g = load(case, "f")[0].requires_grad_(), load(case, "g")[0].requires_grad_()
    module = build(case, form=form).train()
    f_out, g_out = module(f, g, n_epoch=0, steps_per_epoch=4, multiplier=load(case, "lambda")[0])
    loss = (f_out * load(case, "r_f")).sum() + (g_out * load(case, "r_g")).sum()
    loss.backward()
    assert worst(f.grad, load(case, "grad_f")) <= 5e-5
    assert worst(g.grad, load(case, "grad_g")) <= 5e-5


def normalised(x: torch.Tensor) -> np.ndarray:
    """The fitted features, written anew: LayerNorm up to one spatial axis, BatchNorm beyond; flat, float64."""
    x = x.double()
    dims = tuple(range(1, x.dim())) if x.dim() <= 3 else (0, *range(2, x.dim()))
    x = (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, unbiased=False, keepdim=True) + 1e-5)
    return x.flatten(1).numpy()


@pytest.mark.parametrize("constraint", ["smoother", "frobenius"])
@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("case", CASES)
def test_own_multiplier_solves_its_equation(case: str, form: str, constraint: str) -> None:
    """By the singular values, in float64, from the definition: nothing of the library but the multiplier."""
    f, g = load(case, "f"), load(case, "g")
    module = build(case, form=form, constraint=constraint).train()
    for step in range(8):
        module(f[step], g[step])
        lam = float(module.multiplier)
        if CASES[case][0]:
            F, G = normalised(f[step]), normalised(g[step])
        else:
            F, G = (x[step].double().flatten(1).numpy() for x in (f, g))
        U, sigma, _ = np.linalg.svd(G, full_matrices=False)
        rank = int((sigma**2 > len(G) * np.finfo(np.float32).eps * sigma[0] ** 2).sum())
        U, sigma = U[:, :rank], sigma[:rank]
        if constraint == "smoother":
            left = ((sigma**2 / (sigma**2 + lam)) ** 2).sum()
        else:
            left = (((sigma / (sigma**2 + lam))[:, None] * (U.T @ F)) ** 2).sum()
        assert abs(left - 1.0) <= 1e-5 or (left < 1.0 and lam <= 1e-4 * sigma[0] ** 2), (step, lam, left)


def test_published_usage() -> None:
    """The usage of the published README, apart from the import and the device."""
    regbn = RegBN(
        gpu=0,
        f_num_channels=512,
        g_num_channels=64,
        f_layer_dim=[],
        g_layer_dim=[7, 7],
        normalize_input=True,
        normalize_output=True,
        affine=True,
        sigma_THR=0.0,
        sigma_MIN=0.0,
    ).to("cpu")
    f, g = torch.rand([50, 512]), torch.rand([50, 64, 7, 7])
    for arguments in ({"is_training": True, "n_epoch": 10, "steps_per_epoch": 100}, {"is_training": False}):
        f_out, g_out = regbn(f, g, **arguments)
        assert f_out.shape == (50, 512)
        assert g_out.shape == (50, 64, 7, 7)
