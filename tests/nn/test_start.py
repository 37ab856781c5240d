"""What `centre` and `correct_start` do: no offset in the fit, and no zero start in the running projection."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from regbn_surgery import RegBN
from regbn_surgery.nn import fold_into_linear


def held_out(f: torch.Tensor, g: torch.Tensor) -> float:
    f, g = f.detach() - f.detach().mean(0), g - g.mean(0)
    half = len(f) // 2
    W = torch.linalg.lstsq(g[:half], f[:half]).solution
    return 1 - float((f[half:] - g[half:] @ W).square().sum() / f[half:].square().sum())


@pytest.mark.parametrize("constraint", ["smoother", "frobenius", "gcv"])
@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_of_g_gets_into_an_independent_f_with_a_mean(normalize: bool, constraint: str) -> None:
    def data(b: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.linspace(0, 2, 16) + 0.1 * torch.randn(b, 16), torch.relu(1 + torch.randn(b, 16))

    torch.manual_seed(0)
    found = {}
    for centre in (False, True):
        module = RegBN(16, 16, constraint=constraint, centre=centre, normalize_output=False, normalize_input=normalize)
        for _ in range(60):
            module(*data(50))
        f, g = data(3000)
        found[centre] = held_out(module.eval()(f, g)[0], g)
    assert found[True] < 0.05
    if constraint == "smoother" and not normalize:
        assert found[False] > 0.5  # what it cures


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("constraint", ["smoother", "frobenius", "gcv"])
def test_centred_is_ridge_with_an_intercept(constraint: str, form: str) -> None:
    """The batch's residual is f - (g - mean) W with the W of centred features; an offset of g changes nothing."""
    torch.manual_seed(0)
    f, g = torch.randn(12, 4, dtype=torch.float64) + 3.0, torch.randn(12, 5, dtype=torch.float64) - 2.0
    module = RegBN(4, 5, constraint=constraint, centre=True, normalize_output=False, form=form).double()
    out, _ = module(f, g)
    G, F = g - g.mean(0), f - f.mean(0)
    W = torch.linalg.solve(G.T @ G + module.multiplier * torch.eye(5), G.T @ F)
    torch.testing.assert_close(out, f - G @ W)
    torch.testing.assert_close(module(f, g + 1e3)[0], out, atol=1e-8, rtol=1e-8)


def test_the_running_mean_follows_from_the_first_batch_on_and_is_saved() -> None:
    torch.manual_seed(0)
    module = RegBN(3, 4, centre=True, normalize_output=False)
    assert "mean_g" not in RegBN(3, 4).state_dict()
    means = []
    for step in range(30):
        g = torch.randn(20, 4) + 5.0
        module(torch.randn(20, 3), g)
        means.append(g.mean(0))
        if step < 10:
            torch.testing.assert_close(module.mean_g, torch.stack(means).mean(0))
    torch.testing.assert_close(module.mean_g, torch.full((4,), 5.0), atol=0.3, rtol=0)
    other = RegBN(3, 4, centre=True, normalize_output=False)
    other.load_state_dict(module.state_dict())
    f, g = torch.randn(6, 3), torch.randn(6, 4)
    torch.testing.assert_close(other.eval()(f, g)[0], f - (g - module.mean_g) @ module.W)
    plain = RegBN(3, 4).state_dict()
    with pytest.raises(RuntimeError, match="mean_g"):
        other.load_state_dict(plain)
    published = {"W": torch.randn(4, 3)}  # as the published layer saves it: no mean was taken off its g
    other.load_state_dict(published)
    torch.testing.assert_close(other.eval()(f, g)[0], f - g @ published["W"])


@pytest.mark.parametrize("takes", ["f", "fg", "gf"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_centred_projection_folds(takes: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = RegBN(3, 4, centre=True, normalize_output=False)
    for _ in range(5):
        module(torch.randn(20, 3) + 2, torch.randn(20, 4) + 3)
    module.eval()
    linear = torch.nn.Linear(3 if takes == "f" else 7, 2, bias)
    folded = fold_into_linear(module, linear, takes)
    f, g = torch.randn(6, 3), torch.randn(6, 4)
    f_new, g_new = module(f, g)
    given = {"f": f_new, "fg": torch.cat([f_new, g_new], 1), "gf": torch.cat([g_new, f_new], 1)}[takes]
    raw = torch.cat([g, f] if takes == "gf" else [f, g], 1)
    torch.testing.assert_close(folded(raw), linear(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("projection", ["dense", "low_rank"])
@pytest.mark.parametrize("momentum", [0.02, 0.1, 0.0, 1.0])
def test_corrected_running_projection_is_the_average_without_the_start(momentum: float, projection: str) -> None:
    """With constant batches it has arrived after one step, where the published one is at `momentum` of the way."""
    torch.manual_seed(0)
    f, g = torch.randn(20, 3), torch.randn(20, 4)
    options = {"momentum": momentum, "projection": projection, "normalize_output": False}
    corrected, plain = RegBN(3, 4, correct_start=True, **options), RegBN(3, 4, **options)
    for _ in range(3):
        corrected(f, g), plain(f, g)
    if momentum > 0:
        torch.testing.assert_close(corrected.eval()(f, g)[0], corrected.train()(f, g)[0], atol=1e-5, rtol=1e-4)
        assert 0.0 <= float(corrected.zero_weight) <= 1 - momentum + 1e-6
    else:
        assert not corrected.factors[-1].any()
    assert "zero_weight" not in plain.state_dict()


def test_corrected_start_is_the_uncorrected_over_its_weight_and_resumes_bit_for_bit() -> None:
    """W of the correction is what its shares would have made of W, over one less the weight of the zero start."""
    torch.manual_seed(0)
    batches = [(torch.randn(20, 3), torch.randn(20, 4)) for _ in range(6)]
    module = RegBN(3, 4, correct_start=True).double()
    by_hand, left = torch.zeros(4, 3, dtype=torch.float64), 1.0
    for number, (f, g) in enumerate(batches):
        fresh = RegBN(3, 4, correct_start=True).double()
        fresh(f, g)
        target = fresh.W  # the whole of the batch's projection
        before = float(module.zero_weight)
        module(f, g)
        share = 1 - float(module.zero_weight) / before
        by_hand, left = (1 - share) * by_hand + share * target, left * (1 - share)
        torch.testing.assert_close(module.W, by_hand / (1 - left))
        if number == 2:
            file = io.BytesIO()
            torch.save(module.state_dict(), file)
            file.seek(0)
            resumed = RegBN(3, 4, correct_start=True).double()
            resumed.load_state_dict(torch.load(file))
        if number > 2:
            resumed(f, g)
    assert torch.equal(resumed.W, module.W)
    assert copy.deepcopy(module).zero_weight == module.zero_weight
