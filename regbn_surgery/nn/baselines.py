"""What RegBN is to be compared with: its norms alone, and plain least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import _checks
from ._norms import output_norm
from .regbn import RegBN

if TYPE_CHECKING:
    from .._types import PlannedSite


class NormsOnly(nn.Module):
    """RegBN without the subtraction: `f' = norm(f)`, `g' = norm(g)`, with the norms that RegBN ends with.

    The control that shows how much of an effect is that of the norms. Shapes and sizes as for `RegBN`; `reduce`,
    `replace`, `normalize_output` and `affine` too.
    """

    def __init__(
        self,
        f_num_channels: int,
        g_num_channels: int,
        f_layer_dim: Sequence[int] = (),
        g_layer_dim: Sequence[int] = (),
        *,
        normalize_output: bool = True,
        affine: bool = False,
        reduce: str = "flatten",
        replace: str = "both",
    ) -> None:
        super().__init__()
        _checks.check_layer_dims(reduce, f_layer_dim, g_layer_dim)
        sizes = (f_num_channels, tuple(f_layer_dim)), (g_num_channels, tuple(g_layer_dim))
        wanted = normalize_output, normalize_output and replace == "both"
        norms = [
            output_norm(*size, affine, reduce == "mean") if on else nn.Identity()
            for size, on in zip(sizes, wanted, strict=True)
        ]
        self.norm_f_out, self.norm_g_out = norms

    @classmethod
    def at(cls, site: PlannedSite) -> NormsOnly:
        """The norms that RegBN would have at a site: `regbnify(..., make=nn.NormsOnly.at)`."""
        names = ("normalize_output", "affine")
        options = {name: site.options[name] for name in names if name in site.options}
        return cls(*sizes_of(site), **options, reduce=site.reduce, replace=site.replace)

    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """`(norm(f), norm(g))`."""
        return self.norm_f_out(f), self.norm_g_out(g)


class RegressOut(RegBN):
    """Plain least squares with an intercept: `f' = f - (g - mean(g)) W`, without constraint, norms or moments.

    W is that of least norm among the best of each batch (lambda at its floor), so that with fewer samples than features
    of g a batch's f is explained whole: the baseline that RegBN's constraint is there for. In evaluation the running W.
    """

    def __init__(
        self,
        f_num_channels: int,
        g_num_channels: int,
        f_layer_dim: Sequence[int] = (),
        g_layer_dim: Sequence[int] = (),
        **options: Any,
    ) -> None:
        fixed: dict[str, Any] = {"constraint": "fixed", "lam": 0.0, "lam_scale": "relative", "centre": True}
        fixed |= {"correct_start": True, "normalize_input": False, "normalize_output": False, "affine": False}
        super().__init__(f_num_channels, g_num_channels, f_layer_dim, g_layer_dim, **{**options, **fixed})

    @classmethod
    def at(cls, site: PlannedSite) -> RegressOut:
        """Least squares at a site: `regbnify(..., make=nn.RegressOut.at)`; memory and ranks as the rule says."""
        names = ("momentum", "fit", "projection", "rank", "max_dense_gib", "sync")
        options = {name: site.options[name] for name in names if name in site.options}
        return cls(*sizes_of(site), **options, reduce=site.reduce, replace=site.replace)


def sizes_of(site: PlannedSite) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """The sizes at a site, in the order in which these modules take them."""
    assert site.f.channels is not None, "the plan refuses sides without a channel axis"
    assert site.g.channels is not None, "the plan refuses sides without a channel axis"
    return site.f.channels, site.g.channels, tuple(site.f_layer_dim), tuple(site.g_layer_dim)
