"""What the original bears, the rewritten model bears in its very first call: fresh, after training, after loading."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.package import PackageExporter, PackageImporter

from regbn_surgery import load_regbn, save_regbn
from tests.surgery.models import build, operate, step, vectors

from .users_nets import HasJoins, HasPart, Joins

ROOTS = [Joins, HasPart, HasJoins]


def fresh(cls: Any, folder: Path) -> Any:
    return operate(build(cls), vectors())


def trained(cls: Any, folder: Path) -> Any:
    model = fresh(cls, folder)
    step(model, vectors())
    return model


def loaded(cls: Any, folder: Path) -> Any:
    save_regbn(trained(cls, folder), folder)
    return load_regbn(build(cls), folder)


def exported(model: Any, args: Any) -> Any:
    return torch.export.export(model, args, strict=False).module()


def exported_strictly(model: Any, args: Any) -> Any:
    return torch.export.export(model, args, strict=True).module()


def traced(model: Any, args: Any) -> Any:
    return torch.jit.trace(model, args)


def called(model: Any, args: Any) -> Any:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return lambda *args: torch.func.functional_call(model, state, args)


def mapped(model: Any, args: Any) -> Any:
    return torch.func.vmap(lambda a, b: model(a[None], b[None])[0])


def packaged(model: Any, args: Any) -> Any:
    file = io.BytesIO()
    with PackageExporter(file) as package:
        package.intern(Joins.__module__)
        package.extern("**")
        package.save_pickle("model", "model.pkl", model)
    file.seek(0)
    found: Any = PackageImporter(file).load_pickle("model", "model.pkl")
    assert type(found).__module__.startswith("<torch_package_")
    return found


def followed(model: Any, args: Any) -> Any:
    return torch.fx.symbolic_trace(model)


WAYS: list[Callable[[Any, Any], Any]] = [exported, exported_strictly, traced, followed, called, mapped, packaged]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("when", [fresh, trained, loaded], ids=lambda when: when.__name__)
@pytest.mark.parametrize("cls", ROOTS)
def test_the_first_call_of_all_is_borne(cls: Any, when: Any, way: Any, tmp_path: Path) -> None:
    model = when(cls, tmp_path).eval()
    args = tuple(vectors().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = way(model, args)
    with torch.no_grad():
        torch.testing.assert_close(found(*args), model(*args))
        others = tuple(x + 0.5 for x in args)
        torch.testing.assert_close(found(*others), model(*others))


@pytest.mark.parametrize("cls", ROOTS)
def test_gradients_by_functions_are_those_of_autograd(cls: Any, tmp_path: Path) -> None:
    model = trained(cls, tmp_path).eval()
    args = tuple(vectors().values())
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), args).square().mean()

    found = torch.func.grad(loss)(dict(model.named_parameters()))
    model(*args).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
