"""The pre-hook of tier 1: which arguments it finds, what it replaces, and which positions it leaves out of the fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RewriteError
from regbn_surgery._surgery._hoist import HoistHook, HoistSpec, positions_of
from regbn_surgery._surgery._record import MaskArgument
from regbn_surgery._surgery._roles import Roles
from regbn_surgery._surgery._site import RegBNSite

from .models import (
    Cross,
    Masked,
    Nested,
    OwnAttention,
    build,
    counting,
    operate,
    run,
    site_of,
    step,
    token_pairs,
    vectors,
)


class Marking(RegBNSite):
    """Stands for a site: adds 1 to f and 2 to g, and keeps what it was given."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.f_axes = self.g_axes = (0, 2, 1)
        self.told_mask = True
        self.given: list[Any] = []

    def forward(  # type: ignore[override]
        self, f: Tensor, g: Tensor, mask: tuple[Any, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        self.given.append((f, g, mask))
        return f + 1, g + 2


def host(forward: Any, **spec: Any) -> Any:
    module = type("Host", (nn.Module,), {"forward": forward})()
    module.site = Marking()
    options = {"site": "site", "f": ("f",), "g": ("g",), "replace_g": True, **spec}
    module.register_forward_pre_hook(
        HoistHook((HoistSpec(**options),), positions_of(module), options.pop("roles", None)), with_kwargs=True
    )
    return module


F, G = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)


@pytest.mark.parametrize("call", [((F, G), {}), ((F,), {"g": G}), ((), {"g": G, "f": F})])
def test_arguments_are_found_however_they_are_passed(call: tuple[Any, Any]) -> None:
    def forward(self: Any, f: Tensor, g: Tensor, h: Tensor | None = None) -> Any:
        return f, g, h

    f, g, h = host(forward)(*call[0], **call[1])
    assert (f.unique().tolist(), g.unique().tolist(), h) == ([1], [2], None)
    assert F.sum() == G.sum() == 0


def test_arguments_inside_containers_and_behind_stars() -> None:
    def nested(self: Any, batch: dict[str, Any], *rest: Tensor) -> Any:
        return batch, rest

    module = host(nested, f=("batch.views.1",), g=("rest.0",))
    batch = {"views": [G, F], "name": "x"}
    found, rest = module(batch, G, F)
    assert [x.unique().tolist() for x in (*found["views"], *rest)] == [[0], [1], [2], [0]]
    assert found["name"] == "x"
    assert batch["views"][1] is F, "the caller's own dict is left alone"

    def starred(self: Any, **named: Tensor) -> Any:
        return named

    assert [x.unique().item() for x in host(starred)(f=F, g=G, h=F).values()] == [1, 2, 0]


def test_one_tensor_under_several_names_is_replaced_under_those_names_only() -> None:
    def forward(self: Any, q: Tensor, k: Tensor, v: Tensor, other: Tensor) -> Any:
        return q, k, v, other

    module = host(forward, f=("q",), g=("k", "v"))
    assert [x.unique().item() for x in module(F, G, G, G)] == [1, 2, 2, 0]


def test_g_stays_where_f_alone_is_replaced() -> None:
    module = host(lambda self, f, g: (f, g), replace_g=False)
    f, g = module(F, G)
    assert f.unique().item() == 1
    assert g is G


@pytest.mark.parametrize("absent", [{"f": F}, {"f": F, "g": None}, {"f": F, "g": 3.0}])
def test_a_call_without_the_other_branch_passes_untouched(absent: dict[str, Any]) -> None:
    def forward(self: Any, f: Any = None, g: Any = None) -> Any:
        return f, g

    module = host(forward)
    assert module(**absent)[0] is F
    assert module.site.given == []


def test_only_the_spec_of_the_role_works() -> None:
    module = type("Host", (nn.Module,), {"forward": lambda self, f, g: (f, g)})()
    module.one, module.two = Marking(), Marking()
    specs = (HoistSpec("one", ("f",), ("g",), True, role=0), HoistSpec("two", ("g",), ("f",), True, role=1))
    module.register_forward_pre_hook(HoistHook(specs, positions_of(module), Roles((1, -1, 0))), with_kwargs=True)
    results = [tuple(x.unique().item() for x in module(F, G)) for _ in range(3)]
    assert results == [(2, 1), (0, 0), (1, 2)]


def test_positions_are_those_of_the_signature() -> None:
    def forward(self: Any, a: Any, /, b: Any, *rest: Any, c: Any = 1, **more: Any) -> None: ...

    assert positions_of(type("Host", (nn.Module,), {"forward": forward})()) == {"a": 0, "b": 1, "*rest": 2}

    module = nn.Module()
    module.forward = dict.fromkeys  # type: ignore[method-assign]
    module.forward = type  # type: ignore[method-assign]
    with pytest.raises(RewriteError, match="has no signature"):
        positions_of(module)


# -- masks ------------------------------------------------------------------------------------------------------------


def mask_seen(mask: Any, side: Any = "g", leaves_out: bool = False) -> tuple[Any, Any]:
    """What the site makes of a mask that the hook has handed on, for f and for g."""

    def forward(self: Any, f: Tensor, g: Tensor, mask: Any = None) -> Any:
        return f

    masks = (MaskArgument(side, "mask", leaves_out),)
    module = host(forward, masks=masks)
    module.site.masks = masks
    module(F, G, mask)
    f, g, given = module.site.given[0]
    assert given[0] is mask
    content: tuple[Any, Any] = module.site._content_of(given, f, g)
    return content


def test_the_mask_goes_to_the_side_it_masks() -> None:
    of_g, of_f = torch.rand(2, 5) > 0.5, torch.rand(2, 4) > 0.5
    f_mask, g_mask = mask_seen(of_g)
    assert f_mask is None
    assert torch.equal(g_mask, of_g)
    f_mask, g_mask = mask_seen(of_f, "f", leaves_out=True)
    assert g_mask is None
    assert torch.equal(f_mask, ~of_f)


def test_each_side_has_its_own_mask() -> None:
    def forward(self: Any, f: Tensor, g: Tensor, *, of_f: Any = None, of_g: Any = None) -> Any:
        return f

    masks = (MaskArgument("g", "of_g", True), MaskArgument("f", "of_f", False))
    module = host(forward, masks=masks)
    module.site.masks = masks
    of_g, of_f = torch.rand(2, 5) > 0.5, torch.rand(2, 4) > 0.5
    for f_mask, g_mask in ((of_f, of_g), (of_f, None), (None, of_g), (None, None)):
        module.site.given.clear()
        module(F, G, of_f=f_mask, of_g=g_mask)
        f, g, given = module.site.given[0]
        found = module.site._content_of(given, f, g)
        for mask, wanted in zip(found, (f_mask, None if g_mask is None else ~g_mask), strict=True):
            assert (mask is None) == (wanted is None)
            assert mask is None or torch.equal(mask, wanted)


def test_a_mask_for_all_samples_is_spread_and_one_that_does_not_fit_is_left_out() -> None:
    one = torch.tensor([[True, True, False, True, False]])
    assert torch.equal(mask_seen(one)[1], one.expand(2, 5))
    for other in (None, torch.ones(2, 7).bool(), torch.ones(3, 5).bool(), torch.ones(5).bool()):
        assert mask_seen(other) == (None, None)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_torchs_attention_is_left_out_of_the_fit(batch_first: bool) -> None:
    def example(fill: float) -> dict[str, Tensor]:
        inputs = token_pairs(6)
        padding = torch.zeros(6, 5, dtype=torch.bool)
        padding[:, 3:] = True
        inputs["b"] = inputs["b"].masked_fill(padding[..., None], fill)
        if not batch_first:
            inputs["a"], inputs["b"] = inputs["a"].transpose(0, 1), inputs["b"].transpose(0, 1)
        return {**inputs, "padding": padding}

    def by_size(batch: int) -> dict[str, Tensor]:
        small = example(0.0)
        return {name: x[:batch] if batch_first or name == "padding" else x[:, :batch] for name, x in small.items()}

    results = []
    for fill in (0.0, 50.0):
        model = operate(build(Cross, batch_first), by_size, "attention")
        output = run(model, example(fill), training=True)
        step(model, example(fill))
        results.append((output, site_of(model).regbn.W.clone(), run(model, example(fill), training=False)))
    torch.testing.assert_close(results[0], results[1])
    unmasked = operate(build(Cross, batch_first), by_size, "attention")
    run(unmasked, {**example(50.0), "padding": None}, training=True)
    assert not torch.allclose(site_of(unmasked).regbn.W, results[0][1])


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_the_mask_of_a_hand_written_attention_is_left_out_of_the_fit(dtype: torch.dtype) -> None:
    def example(fill: float) -> dict[str, Tensor]:
        inputs = token_pairs(6)
        keep = torch.ones(6, 5)
        keep[:, 4:] = 0
        keep[3:, 2:] = 0
        inputs["b"] = inputs["b"].masked_fill(keep[..., None] == 0, fill)
        return {**inputs, "b_mask": keep.to(dtype)}

    results = []
    for fill in (0.0, 50.0):
        model = operate(build(Masked), example(0.0), "attention")
        with counting(model) as calls:
            output = run(model, example(fill), training=True)
        assert calls == {"cross.regbn_x": 1}
        results.append((output, site_of(model).regbn.W.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_keys_and_values_get_the_same_normalised_stream() -> None:
    model = operate(build(Cross), token_pairs(), "attention")
    step(model, token_pairs())
    model.eval()
    a, b = (model.get_submodule(f"enc_{name}")(x) for name, x in token_pairs().items())
    f, g = a, b
    site = site_of(model)
    f_new, g_new = site(f, g)
    handle = next(iter(model.attention._forward_pre_hooks))
    hook = model.attention._forward_pre_hooks.pop(handle)
    expected = a + model.attention(f_new, g_new, g_new, need_weights=False)[0]
    model.attention._forward_pre_hooks[handle] = hook
    torch.testing.assert_close(run(model, token_pairs()), expected)


def test_a_second_length_is_no_obstacle_to_pooled_streams() -> None:
    model = operate(build(Cross), token_pairs(), "attention")
    with counting(model) as calls:
        for la, lb in ((7, 5), (3, 11), (1, 1)):
            assert run(model, token_pairs(4, la, lb), training=True).shape == (4, la, 8)
    assert sum(calls.values()) == 3
    assert isinstance(build(OwnAttention), nn.Module)


def test_a_class_that_torch_derives_from_the_hosts_is_no_change() -> None:
    """As `fully_shard` does: its class is torch's, and its forward the user's."""
    rewritten = copy.deepcopy(operate(build(Nested), vectors()))  # a copy looks at the text again
    hooked = next(
        m for m in rewritten.modules() if any(isinstance(h, HoistHook) for h in m._forward_pre_hooks.values())
    )
    home = {"__module__": "torch.distributed.fsdp", "__qualname__": "Sharded"}
    expected = run(copy.deepcopy(rewritten), vectors(), training=False)  # the text is looked at in the first call
    assert type(hooked).__module__ == Nested.__module__
    hooked.__class__ = type("Sharded", (type(hooked),), home)
    torch.testing.assert_close(run(rewritten, vectors(), training=False), expected)
    with counting(rewritten) as calls:
        run(rewritten, vectors(), training=False)
    assert list(calls.values()) == [1]
