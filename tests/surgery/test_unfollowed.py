"""The first call of a reordered host comes from a tool that follows calls: what is tried out then is none of its."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RewriteError

from .models import build, step
from .test_across import TwoTowers, images, layerwise


def never_called() -> nn.Module:
    """In evaluation, with RegBN that matters; a model from a pickle has captured no call."""
    model = regbn_surgery.regbnify(build(TwoTowers), layerwise(), images())
    for seed in range(3):
        step(model, images(6, seed))
    return pickle.loads(pickle.dumps(model.eval()))


def gradients(model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**given).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positional", [True, False])
def test_a_trace_by_jit_has_the_calls_of_the_user_alone(positional: bool) -> None:
    model = never_called()
    known = copy.deepcopy(model)
    with torch.no_grad():
        expected = {batch: known(**images(batch)) for batch in (4, 3)}
        given = images(4)
        if positional:
            traced, again = (torch.jit.trace(m, tuple(given.values()), check_trace=False) for m in (model, known))
        else:
            traced, again = (torch.jit.trace(m, example_kwarg_inputs=given, check_trace=False) for m in (model, known))
        for batch, output in expected.items():
            torch.testing.assert_close(traced(**images(batch)), output, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(**images(batch)), output, rtol=1e-4, atol=1e-5)
    kinds = [[node.kind() for node in found.inlined_graph.nodes()] for found in (traced, again)]
    assert kinds[0] == kinds[1]


def test_the_gradient_of_torch_func_is_that_of_autograd() -> None:
    model, given = never_called(), images(3)
    expected = gradients(copy.deepcopy(model), given)
    values = {name: p.detach() for name, p in model.named_parameters()}
    before = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (), given).square().mean()

    found = torch.func.grad(loss)(values)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert all(p is before[name] for name, p in model.named_parameters())
    again = gradients(model, given)
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-5)


def test_so_are_a_gradient_of_the_inputs_and_one_of_a_gradient() -> None:
    model, given = never_called(), images(3)
    known = copy.deepcopy(model)

    def loss(rgb: Tensor, of: nn.Module = model) -> Tensor:
        return of(rgb, given["depth"]).square().mean()

    found = torch.func.grad(lambda rgb: torch.func.grad(loss)(rgb).square().sum())(given["rgb"])
    rgb = given["rgb"].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(rgb, known), rgb, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), rgb)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert loss(given["rgb"]).isfinite()


def test_vmap_is_refused_at_the_first_call() -> None:
    """A batch of batches has other values than any plain tensors."""
    model = never_called()
    with pytest.raises(RewriteError, match=r"torch\.func transform"):
        torch.func.vmap(model)(*(torch.stack([x, x]) for x in images(3).values()))
