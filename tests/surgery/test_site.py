"""A site brings tensors to RegBN's layout and back, and masks to one form."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regbn_surgery
from regbn_surgery._surgery import RegBNSite, _site, identity
from regbn_surgery._surgery._site import is_identity, keep_mask, sites_of
from regbn_surgery._types import Layout, PlannedSite, Side
from regbn_surgery.nn import RegBN

from .models import Late, build, rules, vectors


def planned(f: Side, g: Side, **more: Any) -> PlannedSite:
    fields: dict[str, Any] = {"reduce": "flatten", "replace": "both", **more}
    return PlannedSite(name="regbn_x", host="", rule="x", point="cat", f=f, g=g, **fields)


def side(shape: tuple[int, ...], batch: int, channel: int) -> Side:
    spatial = tuple(i for i in range(len(shape)) if i not in (batch, channel))
    return Side(("a",), shape, "float32", Layout(batch, channel, spatial), "an operand")


@st.composite
def sides(draw: st.DrawFn) -> Side:
    """A side of batch 6 with its axes in any order."""
    extents = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rank = len(extents) + 1
    batch, channel = draw(st.permutations(range(rank)))[:2]
    shape = [*extents[:batch], 6, *extents[batch:]]
    return side(tuple(shape), batch, channel)


@given(sides(), sides())
@settings(max_examples=30, deadline=None)
def test_any_order_of_axes_gives_what_channels_first_gives(f: Side, g: Side) -> None:
    torch.manual_seed(0)
    site = RegBNSite(planned(f, g), replace_g=True)
    plain = RegBN(f.channels, g.channels, f.spatial_shape, g.spatial_shape)
    plain.load_state_dict(site.regbn.state_dict())
    given = torch.randn(f.shape), torch.randn(g.shape)

    def first(x: torch.Tensor, s: Side) -> torch.Tensor:
        return x.movedim((s.layout.batch_dim, s.layout.channel_dim), (0, 1))

    found = site(*given)
    expected = plain(*(first(x, s) for x, s in zip(given, (f, g), strict=True)))
    for result, x, s, wanted in zip(found, given, (f, g), expected, strict=True):
        assert result.shape == x.shape
        torch.testing.assert_close(first(result, s), wanted)


def test_g_comes_back_as_it_is_where_f_alone_is_replaced() -> None:
    f, g = side((6, 3), 0, 1), side((6, 2), 0, 1)
    site = RegBNSite(planned(f, g, replace="f"), replace_g=False)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    f_new, g_new = site(x, y)
    assert g_new is y
    assert not torch.equal(f_new, x)
    assert isinstance(site.regbn.norm_g_out, nn.Identity)


def test_options_reach_regbn() -> None:
    f, g = side((6, 4, 3), 0, 2), side((6, 9, 2), 0, 2)
    options = {"beta1": 0.5, "normalize_output": False, "affine": False, "fit": "running"}
    regbn = RegBNSite(planned(f, g, reduce="mean", options=options), replace_g=True).regbn
    assert (regbn.f_num_channels, regbn.f_layer_dim) == (3, ())
    assert (regbn.g_num_channels, regbn.g_layer_dim) == (2, ())
    chosen = regbn.options
    assert (chosen.beta1, chosen.normalize_output, chosen.fit, chosen.reduce) == (0.5, False, "running", "mean")


def test_identity_passes_the_very_tensors_and_ends_after_an_error() -> None:
    model = nn.ModuleList([RegBNSite(planned(side((6, 3), 0, 1), side((6, 2), 0, 1)), True) for _ in range(3)])
    assert sites_of(model) == list(model)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    before = copy.deepcopy(model.state_dict())

    def trial() -> None:
        with identity(model) as reached:
            for site in reversed(model):
                assert site(x, y)[0] is x
                assert site(x, y)[1] is y
            assert list(reached) == [model[2], model[1], model[0]]
            raise ValueError("on purpose")

    assert not is_identity()
    with pytest.raises(ValueError, match="on purpose"):
        trial()
    assert not is_identity()
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert model[0](x, y)[0] is not x


def test_identity_within_identity_ends_with_the_outer_one() -> None:
    site = RegBNSite(planned(side((6, 3), 0, 1), side((6, 2), 0, 1)), True)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    with identity() as outer:
        with identity() as inner:
            site(x, y)
        assert (list(inner), list(outer)) == ([site], [])
        assert is_identity()
        assert site(x, y)[0] is x
        assert list(outer) == [site]
    assert site(x, y)[0] is not x


def test_a_trial_in_one_thread_is_none_in_another() -> None:
    site = RegBNSite(planned(side((6, 3), 0, 1), side((6, 2), 0, 1)), True)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    found: list[torch.Tensor] = []
    with identity() as reached:
        thread = threading.Thread(target=lambda: found.append(site(x, y)[0]))
        thread.start()
        thread.join(60)
        assert found[0] is not x
        assert not reached
        assert site(x, y)[0] is x


def test_who_loads_a_site_has_not_been_told_of_calls_without_a_side() -> None:
    site = RegBNSite(planned(side((6, 3), 0, 1), side((6, 2), 0, 1)), True)
    site.told_missing = True
    for other in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert not other.told_missing
    assert site.told_missing


# -- masks ------------------------------------------------------------------------------------------------------------

KEEP = torch.tensor([[True, True, False, False], [True, True, True, False]])
FAR = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("mask", "padding"),
    [
        (~KEEP, True),
        (KEEP, False),
        (KEEP.long(), False),
        ((~KEEP).long(), True),
        (KEEP.float(), False),
        (torch.zeros(2, 4).masked_fill(~KEEP, float("-inf")), False),
        (torch.zeros(2, 4).masked_fill(~KEEP, FAR), True),
        (KEEP[:, None, None, :].expand(2, 3, 5, 4), False),
        ((~KEEP)[:, None, :].expand(2, 5, 4), True),
        (torch.zeros(2, 1, 1, 4).masked_fill(~KEEP[:, None, None], FAR), False),
    ],
    ids=[
        "padding",
        "bool",
        "int",
        "int padding",
        "0/1",
        "-inf",
        "lowest",
        "spread",
        "padding spread",
        "additive spread",
    ],
)
def test_masks_of_every_kind_keep_the_same_positions(mask: torch.Tensor, padding: bool) -> None:
    found = keep_mask(mask, 4, padding)
    assert found is not None
    assert found.dtype == torch.bool
    assert torch.equal(found, KEEP)


def test_a_mask_that_keeps_everything() -> None:
    for mask, padding in ((torch.zeros(2, 4), False), (torch.ones(2, 4), False), (torch.zeros(2, 4).bool(), True)):
        found = keep_mask(mask, 4, padding)
        assert found is not None
        assert found.all()


def test_a_causal_mask_keeps_every_position_that_somebody_sees() -> None:
    causal = torch.ones(1, 1, 4, 4).tril().bool()
    assert keep_mask(causal, 4, False).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("mask", [None, 3, torch.ones(4), torch.ones(2, 5), "x"])
def test_what_is_no_mask_of_these_positions_says_nothing(mask: Any) -> None:
    assert keep_mask(mask, 4, False) is None


def test_a_fit_on_masked_means_does_not_see_what_is_masked() -> None:
    torch.manual_seed(0)
    f, g = side((6, 4, 3), 0, 2), side((6, 5, 2), 0, 2)
    x, y, keep = torch.randn(6, 4, 3), torch.randn(6, 5, 2), torch.rand(6, 5) > 0.4
    keep[:, 0] = True
    states = []
    for padding in (0.0, 100.0):
        site = RegBNSite(planned(f, g, reduce="mean"), replace_g=True)
        out = site(x, y.masked_fill(~keep[..., None], padding), g_mask=keep)[0]
        states.append((site.regbn.W.clone(), out))
    torch.testing.assert_close(states[0], states[1])
    unmasked = RegBNSite(planned(f, g, reduce="mean"), replace_g=True)
    unmasked(x, y)
    assert not torch.allclose(unmasked.regbn.W, states[0][0])


def test_an_interrupt_on_the_way_into_a_trial_leaves_no_trial_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(list[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            raise KeyboardInterrupt

    monkeypatch.setattr(_site._trials, "reached", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        regbn_surgery.regbnify(build(Late), rules("concat"), vectors())
    assert not is_identity()
