"""Rows in which one side is missing: they take no part, and a batch with none moves nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regbn_surgery import RegBN, RegBNShapeError
from regbn_surgery.nn import _linalg, _norms, _presence, _running

OPTIONS: dict[str, dict[str, object]] = {
    "smoother": {},
    "frobenius": {"constraint": "frobenius"},
    "gcv": {"constraint": "gcv"},
    "fixed": {"constraint": "fixed", "lam": 0.1},
    "centred": {"centre": True, "constraint": "gcv"},
    "normalised": {"normalize_input": True, "affine": True},
    "residual": {"normalize_input": True, "residual": "normalized", "centre": True},
    "running": {"fit": "running", "centre": True},
    "low rank": {"projection": "low_rank", "rank": 9},
    "implicit": {"lambda_grad": "implicit", "constraint": "frobenius"},
}


def make(options: dict[str, object]) -> RegBN:
    torch.manual_seed(0)
    module = RegBN(3, 4, [2, 1], [1, 2], **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_fit_with_absent_rows_is_that_of_the_others(name: str, form: str, data: st.DataObject) -> None:
    """Outputs, gradients, and state equal those of a module that never saw the rows, whatever stands in them."""
    options = OPTIONS[name] if OPTIONS[name].get("projection") == "low_rank" else {**OPTIONS[name], "form": form}
    module, alone = make(options), make(options)
    for step in range(2):
        kinds = data.draw(st.lists(st.sampled_from("....fgmn"), min_size=4, max_size=14))
        torch.manual_seed(step)
        f = torch.randn(len(kinds), 3, 2, 1, dtype=torch.float64) + 1.0
        g = torch.randn(len(kinds), 4, 1, 2, dtype=torch.float64) + f.flatten(1)[:, :1, None, None]
        present = torch.tensor([kind not in "mn" for kind in kinds])  # m: masked; n: masked, with NaN in g
        for row, kind in enumerate(kinds):
            if kind == "f":
                f[row] = 0.0
            if kind in "gn":
                g[row] = 0.0 if kind == "g" else float("nan")
        counts = torch.tensor([kind == "." for kind in kinds])
        if int(counts.sum()) < 2:
            continue
        f.requires_grad_(), g.requires_grad_()
        f_out, g_out = module(f, g, present=present)
        f_alone, g_alone = (x.detach()[counts].requires_grad_() for x in (f, g))
        want = alone(f_alone, g_alone)
        torch.testing.assert_close(f_out[counts], want[0], atol=1e-7, rtol=1e-6)
        (f_out[counts].pow(3).sum() + g_out[counts].pow(3).sum()).backward()
        (want[0].pow(3).sum() + want[1].pow(3).sum()).backward()
        torch.testing.assert_close(f.grad[counts], f_alone.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(g.grad[counts], g_alone.grad, atol=1e-6, rtol=1e-5)
        assert not f.grad[~counts].any()
    for (key, ours), theirs in zip(module.state_dict().items(), alone.state_dict().values(), strict=True):
        if key not in ("W_left", "W_right"):  # unique up to a rotation
            torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6, msg=key)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("reduce", ["flatten", "mean"])
def test_the_residual_of_an_absent_row_is_f(reduce: str, centre: bool, training: bool) -> None:
    module = RegBN(3, 4, reduce=reduce, centre=centre, normalize_output=False)
    f, g = torch.randn(8, 3) + 1, torch.randn(8, 4) + 1
    for _ in range(3):
        module(f, g)
    f[0], g[1] = 0.0, 0.0
    present = torch.arange(8) != 2
    out = module.train(training)(f, g, present=present)[0]
    torch.testing.assert_close(out[:3], f[:3], atol=0, rtol=0)
    assert (out[3:] != f[3:]).any(1).all()


@pytest.mark.parametrize("absent", ["f", "g", "mask", "all but one"])
def test_a_batch_with_nothing_to_fit_moves_nothing_and_is_counted(
    absent: str, recwarn: pytest.WarningsRecorder
) -> None:
    module = RegBN(3, 4, centre=True, normalize_input=True, correct_start=True)
    for _ in range(3):
        module(torch.randn(8, 3), torch.randn(8, 4))
    before = copy.deepcopy(module.state_dict())
    f, g, present = torch.randn(8, 3), torch.randn(8, 4), torch.ones(8, dtype=torch.bool)
    if absent in ("f", "g"):
        {"f": f, "g": g}[absent].zero_()
    else:
        present[(1 if absent == "all but one" else 0) :] = False
    out = module(f, g, present=present)[0]
    torch.testing.assert_close(out, module.norm_f_out(f))
    assert int(module.num_skipped) == 1
    for key, value in module.state_dict().items():
        assert key == "num_skipped" or torch.equal(value, before[key]), key
    assert not recwarn.list


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_where_the_host_may_not_look(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch-free way of other devices and compilers, on batches with and without absent rows."""
    here = make(OPTIONS[name])
    there = copy.deepcopy(here)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for missing in ([], [0, 3], list(range(7)), list(range(8)), [1]):
        f, g = (torch.randn(8, *size, generator=generator, dtype=torch.float64) for size in ((3, 2, 1), (4, 1, 2)))
        g[missing] = 0.0
        batches.append((f, g))
    want = [here(f, g)[0] for f, g in batches]
    for room in (_presence, _running, _linalg, _norms):
        monkeypatch.setattr(room, "values_at_hand", lambda x: False)
    for (f, g), value in zip(batches, want, strict=True):
        torch.testing.assert_close(there(f, g)[0], value, atol=1e-7, rtol=1e-6)
    assert int(here.num_skipped) == int(there.num_skipped) == 2
    for key, value in there.state_dict().items():
        if key not in ("W_left", "W_right"):  # unique up to a rotation
            torch.testing.assert_close(value, here.state_dict()[key], atol=1e-7, rtol=1e-6, msg=key)


def test_masked_positions_make_a_row_absent() -> None:
    """`reduce="mean"`: a sample whose positions are all masked has nothing to fit on."""
    f, g = torch.randn(6, 3, 5), torch.randn(6, 4, 2)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[2] = False
    module, alone = (RegBN(3, 4, reduce="mean") for _ in range(2))
    module(f, g, g_mask=mask)
    keep = torch.arange(6) != 2
    alone(f[keep], g[keep])
    torch.testing.assert_close(module.W, alone.W)


@pytest.mark.parametrize(
    "present", [torch.ones(7, dtype=torch.bool), torch.ones(8), torch.ones(8, 1, dtype=torch.bool)]
)
def test_a_mask_that_does_not_fit_is_refused(present: torch.Tensor) -> None:
    with pytest.raises(RegBNShapeError, match=r"present of shape \[8\] and dtype torch.bool"):
        RegBN(3, 4)(torch.randn(8, 3), torch.randn(8, 4), present=present)
