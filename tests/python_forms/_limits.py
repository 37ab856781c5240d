"""Combinations of forms that the definition leaves open or that are documented limits: not compared with the oracle.

Each has its reason. The runner counts them apart; with `--limits` it compares them, too.
"""

from __future__ import annotations

from ._generate import Generated

#: Joins whose sites the analysis takes before views, scaling or products, where the oracle takes the operands.
_OTHER_SITES = ("torch.bmm(", "torch.einsum(", ".T", ".t())", "[:, :, None]")
#: Forms whose helper makes a side in one of two places.
_TWO_MAKERS = "flag_on_self"


def limit(generated: Generated) -> str:
    """Return why a model is not compared; "" where it is."""
    forms = generated.forms
    by_mode = generated.home == "prompt"
    joins = [form for form in forms if form.startswith("join: ")]
    if by_mode and any(_TWO_MAKERS in form for form in forms):
        return "under a mode, a side is known where the example has made it"
    if any(text in join for join in joins for text in _OTHER_SITES):
        return "the sites of products lie before views and scaling"
    if by_mode and any("sum(" in join or "reduce(" in join for join in joins):
        return "under a mode, `sum` joins two by two"
    return ""
