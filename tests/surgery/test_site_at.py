"""The module at a site's name may be another one by now: PEFT's wrapper, somebody's own, none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import RegBNError, diagnose, explain, statistics, unregbnify, verify
from regbn_surgery._surgery._site import RegBNSite, is_site, site_at
from tests.surgery.models import (
    Joined,
    Late,
    Nested,
    build,
    operate,
    operate_by,
    run,
    step,
    vectors,
)

#: The ways of RegBN into a host.
WAYS = ("hook", "source", "mode")


def rewritten(way: str) -> Any:
    return operate_by(way, build(Nested), vectors())


def put(model: nn.Module, module: Any) -> None:
    """Something in the place of the site."""
    (path,) = (path for path, found in model.named_modules() if isinstance(found, RegBNSite))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def adapted(model: nn.Module, name: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["enc_a"], modules_to_save=[name]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_peft_around_the_whole_site_names_the_right_value(way: str, training: bool) -> None:
    model = adapted(rewritten(way), "regbn_x")
    with pytest.raises(RegBNError, match=r"PEFT has wrapped `regbn_x` .*modules_to_save=\['regbn_x\.regbn'\]"):
        run(model, vectors(), training=training)
    for ask in (lambda: verify(model, vectors()), lambda: diagnose(model, [vectors(16)] * 2)):
        with pytest.raises(RegBNError, match=r"'regbn_x\.regbn'"):
            ask()
    explain(model)
    assert unregbnify(model) is model
    assert not any("regbn" in key for key in model.state_dict())
    run(model, vectors(), training=training)


@pytest.mark.parametrize("way", WAYS)
def test_the_value_that_is_named_works(way: str) -> None:
    model = adapted(rewritten(way), "regbn_x.regbn")
    step(model, vectors())
    assert statistics(model)["regbn_x/steps"] == 1


@pytest.mark.parametrize("other", [nn.Identity(), None])
@pytest.mark.parametrize("way", WAYS)
def test_another_module_there_is_told(way: str, other: Any) -> None:
    model = rewritten(way)
    put(model, other)
    what = "nothing" if other is None else "a Identity"
    with pytest.raises(RegBNError, match=rf"`regbn_x` of \w+ is the place of a RegBN .*now there is {what}.*`make`"):
        run(model, vectors())


@pytest.mark.parametrize("way", WAYS)
def test_a_wrapper_that_hands_everything_on_is_the_site(way: str) -> None:
    model, plain = rewritten(way), rewritten(way)
    (site,) = (module for module in model.modules() if isinstance(module, RegBNSite))
    put(model, torch.compile(site, backend="eager"))
    torch.testing.assert_close(run(model, vectors(), training=False), run(plain, vectors(), training=False))


def test_what_counts_as_a_site() -> None:
    model = operate(build(Late), vectors())
    assert is_site(model.regbn_x)
    assert site_at(model, "regbn_x") is model.regbn_x
    assert not is_site(build(Joined))
    wrapped = adapted(model, "regbn_x")
    assert is_site(wrapped.base_model.model.regbn_x)
