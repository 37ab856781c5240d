"""The transforms of `torch.func` work on a rewritten model in evaluation as on the original, in known and new calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from regbn_surgery import regbnify

from ._folders import SOURCES, typed
from ._models import rule, trained

X = (
    torch.randn(4, 5, generator=torch.Generator().manual_seed(3)),
    torch.randn(4, 7, generator=torch.Generator().manual_seed(4)),
)

Transform = Callable[[Callable[[Tensor, Tensor], Tensor]], Any]
#: What a transform gives for a model as a function of both inputs. Each has a plain way to the same numbers.
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "vmap": (
        lambda m: vmap(lambda a, b: m(a[None], b[None])[0])(*X),
        lambda m: torch.cat([m(a[None], b[None]) for a, b in zip(*X, strict=True)]),
    ),
    "vmap over one input": (
        lambda m: vmap(lambda a: m(a.expand(4, -1), X[1]))(X[0]),
        lambda m: torch.stack([m(a.expand(4, -1), X[1]) for a in X[0]]),
    ),
    "vjp": (
        lambda m: vjp(lambda a: m(a, X[1]), X[0])[1](torch.ones(4, 3))[0],
        lambda m: torch.autograd.grad(m(a := X[0].clone().requires_grad_(), X[1]).sum(), a)[0],
    ),
    "jvp": (
        lambda m: jvp(lambda a: m(a, X[1]), (X[0],), (X[0],))[1],
        lambda m: torch.autograd.functional.jvp(lambda a: m(a, X[1]), X[0], X[0])[1],
    ),
    "jacrev": (
        lambda m: jacrev(lambda a: m(a, X[1]))(X[0]),
        lambda m: torch.autograd.functional.jacobian(lambda a: m(a, X[1]), X[0]),
    ),
    "jacfwd": (
        lambda m: jacfwd(lambda b: m(X[0], b))(X[1]),
        lambda m: torch.autograd.functional.jacobian(lambda b: m(X[0], b), X[1]),
    ),
    "hessian": (
        lambda m: hessian(lambda a: m(a, X[1]).square().sum())(X[0]),
        lambda m: torch.autograd.functional.hessian(lambda a: m(a, X[1]).square().sum(), X[0]),
    ),
    "gradient of each sample": (
        lambda m: vmap(grad(lambda a, b: m(a[None], b[None]).sum()))(*X),
        lambda m: torch.cat(
            [
                torch.autograd.grad(m(row := a[None].clone().requires_grad_(), b[None]).sum(), row)[0]
                for a, b in zip(*X, strict=True)
            ]
        ),
    ),
}
models = pytest.mark.parametrize("source", SOURCES)
outputs = pytest.mark.parametrize(
    "norm", [pytest.param(True, id="output norms"), pytest.param(False, id="no output norms", marks=pytest.mark.slow)]
)


def made(source: str, norm: bool) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = typed(SOURCES[source], "/models/of/a/user.py", True)["M"]()
    return trained(model, rule(normalize_output=norm), X).eval()


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("name", TRANSFORMS)
@outputs
@models
def test_transform(source: str, norm: bool, name: str, known: bool) -> None:
    """A model that reads a value cannot be mapped by torch itself: the original's error is then what is right."""
    transform, plainly = TRANSFORMS[name]
    model = made(source, norm)
    if known:
        plainly(model)
        model(*X)
    if source == "value" and not _possible(transform):
        with pytest.raises(RuntimeError):
            transform(model)
        return
    found = transform(model)
    torch.testing.assert_close(found, plainly(model), rtol=1e-4, atol=1e-5)


def _possible(transform: Transform) -> bool:
    model = typed(SOURCES["value"], "/models/of/a/user.py", True)["M"]().eval()
    try:
        transform(model)
    except RuntimeError:
        return False
    return True


@models
def test_gradients_of_parameters(source: str) -> None:
    model = made(source, True)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(values: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(model, (values, buffers), X)
        return output.square().sum()

    found = grad(loss)(parameters)
    expected = torch.autograd.grad(model(*X).square().sum(), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), expected)


@pytest.mark.parametrize("source", ["forward", "helpers", "child"])
def test_ensemble(source: str) -> None:
    """Several rewritten models as one call, with their parameters and RegBN's buffers stacked."""
    first = made(source, True)
    models = [first, copy.deepcopy(first), copy.deepcopy(first)]
    for number, model in enumerate(models):
        nn.init.constant_(model.head.bias, number)  # type: ignore[union-attr,arg-type]
    parameters, buffers = stack_module_state(models)
    found = vmap(lambda p, b: functional_call(models[0], (p, b), X), in_dims=(0, 0))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([model(*X) for model in models]))


@pytest.mark.parametrize("source", ["forward", "child"])
def test_the_original_transforms_stay(source: str) -> None:
    """The transforms of the original are what they were before a rewrite in this process."""
    model = typed(SOURCES[source], "/models/of/a/user.py", True)["M"]().eval()
    before = [transform(model) for transform, _ in TRANSFORMS.values()]
    regbnify(model, rule(), X)
    after = [transform(model) for transform, _ in TRANSFORMS.values()]
    torch.testing.assert_close(after, before)
