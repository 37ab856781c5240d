"""What a plan warns of although it can be done: values that leave their range, and a size that adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._codes import coded
from .._rules.naming import home_name
from .._types import PlannedSite, Side
from .hindrances import options_of

_BYTES = 4  # of one float32 of W
#: While it checks, regbnify holds the projections of all sites and a copy of them.
_HELD = 2


def normalised(site: PlannedSite) -> tuple[Side, ...]:
    """The sides in whose place RegBN puts others."""
    return (site.f, site.g) if site.replace == "both" else (site.f,)


def out_of_range(sites: Sequence[PlannedSite]) -> Iterator[str]:
    """Sites whose f' or g' may have values that what follows cannot take."""
    for site in sites:
        for side in normalised(site):
            if side.bounded is not None:
                yield coded(
                    "RB104",
                    f"RegBN of `{site.rule}` at {_place(site)} takes {home_name(side.home)} ({side.anchor}) out of its "
                    f"range, so that the result may be NaN: {side.bounded}; normalise it before that function, by a "
                    "rule with `pair`, or leave the point out (`action: skip`)",
                )
                break


def too_large_in_all(sites: Sequence[PlannedSite]) -> Iterator[str]:
    """Dense projections that are small enough one by one, and too large together."""
    dense = [(site, options_of(site)) for site in sites]
    dense = [(site, options) for site, options in dense if options.projection == "dense"]
    total = sum(site.projection_shape[0] * site.projection_shape[1] * _BYTES for site, _ in dense) / 2**30
    limit = max((options.max_dense_gib for _, options in dense), default=0.0)
    if len(dense) > 1 and total > limit:
        yield coded(
            "RB105",
            f"the projections W at {len(dense)} sites have {total:.3g} GiB in all, as does every checkpoint, above "
            f"max_dense_gib={limit:g}; regbnify needs about {_HELD * total:.3g} GiB beside the model and its copy; set "
            "`regbn: {projection: low_rank}` or `reduce: mean`, normalise fewer points, or raise `max_dense_gib`",
        )


def _place(site: PlannedSite) -> str:
    return f"`{site.point}`" if site.point is not None else " with ".join(site.pair or ())
