"""Whether True in a mask means "keep" or "leave out" is read from what the attention does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbn_surgery._analysis._masks import Mask
from tests.trace.replay import make

from .reading import analysed, normal

LOW = float("-inf")

USES: dict[str, tuple[bool, Any]] = {
    "masked_fill": (True, lambda s, m: s.masked_fill(m, LOW)),
    "masked_fill_": (True, lambda s, m: s.clone().masked_fill_(m, -1e9)),
    "not": (False, lambda s, m: s.masked_fill(~m, LOW)),
    "twice not": (True, lambda s, m: s.masked_fill(~(~m), LOW)),
    "logical_not": (False, lambda s, m: s.masked_fill(torch.logical_not(m), LOW)),
    "== 0": (False, lambda s, m: s.masked_fill(m == 0, LOW)),
    "== 1": (True, lambda s, m: s.masked_fill(m == 1, LOW)),
    "!= 0": (True, lambda s, m: s.masked_fill(m.int() != 0, LOW)),
    "< 0.5": (False, lambda s, m: s.masked_fill(m.float() < 0.5, LOW)),
    "> 0.5": (True, lambda s, m: s.masked_fill(m.float() > 0.5, LOW)),
    "where keeps": (False, lambda s, m: torch.where(m, s, LOW)),
    "where leaves out": (True, lambda s, m: torch.where(m, LOW, s)),
    "expanded": (False, lambda s, m: s.masked_fill(~m.expand(-1, s.size(1), -1), LOW)),
}  # fmt: skip


def mask_of(attend: Any) -> Any:
    def cross(self: Any, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return attend(self.q(x), self.k(context), self.v(context), mask)

    def forward(self: Any, a: Tensor, b: Tensor, b_mask: Tensor) -> Tensor:
        return self.cross(a, b, b_mask)

    inner = make(cross, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))
    b_mask = torch.zeros(4, 5, dtype=torch.bool)
    b_mask[:, 3:] = True
    example = {"a": normal(4, 7, 8), "b": normal(4, 5, 8), "b_mask": b_mask}
    (recipe,) = analysed(forward, example, cross=inner).recipes.values()
    (mask,) = recipe.masking.found
    assert (mask.name, mask.side, recipe.owner) == ("mask", 1, "cross")
    return mask


@pytest.mark.parametrize("use", USES)
def test_what_is_done_with_a_mask_tells_what_it_means(use: str) -> None:
    leaves_out, masked = USES[use]
    mask = mask_of(lambda q, k, v, m: masked(q @ k.mT, m[:, None, :]).softmax(-1) @ v)
    assert mask.leaves_out is leaves_out


def test_the_fused_kernel_keeps_where_its_mask_is_true() -> None:
    mask = mask_of(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m[:, None, :]))
    assert mask.leaves_out is False
    mask = mask_of(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=~m[:, None, :]))
    assert mask.leaves_out is True


def test_keys_left_out_by_a_mask_do_not_count() -> None:
    """Whatever stands at the masked positions, what the model makes of the rest is the same."""
    from regbn_surgery import regbnify

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross = make(
                lambda self, x, context, mask: (
                    x + (self.q(x) @ self.k(context).mT).masked_fill(mask[:, None], LOW).softmax(-1) @ self.v(context)
                ),
                q=nn.Linear(8, 8),
                k=nn.Linear(8, 8),
                v=nn.Linear(8, 8),
            )

        def forward(self, a: Tensor, b: Tensor, b_mask: Tensor) -> Any:
            return self.cross(a, b, b_mask)

    torch.manual_seed(0)
    b_mask = torch.zeros(6, 5, dtype=torch.bool)
    b_mask[:, 3:] = True
    example = {"a": normal(6, 7, 8), "b": normal(6, 5, 8), "b_mask": b_mask}
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": "attention"}, "normalize": "a"}]}
    first = regbnify(Model(), rules, example).train()
    torch.manual_seed(1)
    second = regbnify(Model(), rules, example).train()
    second.load_state_dict(first.state_dict())
    other = {**example, "b": torch.where(b_mask[..., None], normal(6, 5, 8) * 9, example["b"])}
    torch.testing.assert_close(first(**example), second(**other))
    assert first.cross.regbn_x.regbn.W.any()
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_masks_of_torchs_own_modules_are_known_by_name() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.read(a, b)

    example = {"a": normal(4, 7, 8), "b": normal(4, 5, 8)}
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    whole = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    for module, name, side in ((layer, "memory_key_padding_mask", 1), (whole, "src_key_padding_mask", 0)):
        (recipe,) = analysed(forward, example, read=module).recipes.values()
        assert recipe.masking.found == (Mask(name, side, True, layer=True),)
