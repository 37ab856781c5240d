"""RegBN folded into the linear layer that follows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regbn_surgery import RegBN, RegBNOptionError, RegBNShapeError
from regbn_surgery.nn import fold_into_linear


def trained(**options: object) -> tuple[RegBN, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    options = {"normalize_output": False, "momentum": 0.5, **options}
    regbn = RegBN(4, 3, [2], [2, 2], **options)
    f, g = torch.randn(8, 4, 2), torch.randn(8, 3, 2, 2)
    for _ in range(3):
        regbn(f, g)
    return regbn.eval(), f, g


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("takes", ["f", "fg", "gf"])
@pytest.mark.parametrize("projection", ["dense", "low_rank"])
def test_the_fold_is_exact(takes: str, bias: bool, projection: str) -> None:
    regbn, f, g = trained(projection=projection, normalize_input=True)
    linear = nn.Linear({"f": 8}.get(takes, 20), 5, bias=bias)
    f_out, g_out = (x.flatten(1) for x in regbn(f, g))
    fed = {"f": [f_out], "fg": [f_out, g_out], "gf": [g_out, f_out]}[takes]
    raw = [g.flatten(1), f.flatten(1)] if takes == "gf" else [f.flatten(1), g.flatten(1)]
    want = linear(torch.cat(fed, 1))
    folded = fold_into_linear(regbn, linear, takes)
    torch.testing.assert_close(folded(torch.cat(raw, 1)), want, atol=1e-5, rtol=1e-5)
    unfolded = want - linear(torch.cat([x.flatten(1) for x in ((f,) if takes == "f" else (f, g))], 1))
    assert takes == "gf" or unfolded.abs().max() > 1e-3  # RegBN did something


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize_output": True}, "output norms.*normalize_output=false"),
        ({"normalize_input": True, "residual": "normalized"}, "residual='normalized'"),
    ],
)
def test_what_is_not_linear_is_refused(options: dict[str, object], message: str) -> None:
    regbn, _, _ = trained(**options)
    with pytest.raises(RegBNOptionError, match=message):
        fold_into_linear(regbn, nn.Linear(20, 5))


def test_means_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(RegBNOptionError, match="reduce='mean'"):
        fold_into_linear(RegBN(4, 3, reduce="mean", normalize_output=False), nn.Linear(7, 5))
    regbn, _, _ = trained()
    with pytest.raises(RegBNShapeError, match=r"head with takes='fg' needs in_features=20 .*found 8"):
        fold_into_linear(regbn, nn.Linear(8, 5), layer="head")
