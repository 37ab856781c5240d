"""`torch.func` through RegBN in evaluation and with a frozen state: the same as a plain loop, or plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn

from regbn_surgery.nn import RegBN

SAMPLES = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"normalize_output": False},
    "published": {},
    "affine": {"affine": True},
    "normalized": {"normalize_input": True, "residual": "normalized"},
    "low rank": {"projection": "low_rank", "rank": 2},
    "centred": {"centre": True, "constraint": "gcv", "normalize_output": False},
    "f alone": {"replace": "f", "fit": "running"},
}
SHAPES = {"vectors": ((), ()), "tokens and vectors": ((5,), ()), "maps and tokens": ((3, 2), (4,)),
          "volumes and maps": ((2, 2, 2), (3, 3))}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A RegBN that has seen some batches, and one batch with its masks."""

    regbn: RegBN
    frozen: bool
    f: Tensor
    g: Tensor
    masks: dict[str, Tensor]

    def __call__(self, f: Tensor, g: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        given: Any = dict(zip(self.masks, masks, strict=True))
        return self.regbn(f, g, False if self.frozen else None, **given)

    def one(self, f: Tensor, g: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        """For one sample, without a batch axis."""
        new_f, new_g = self(f[None], g[None], *(mask[None] for mask in masks))
        return new_f[0], new_g[0]

    def score(self, f: Tensor, g: Tensor, *masks: Tensor) -> Tensor:
        new_f, new_g = self(f, g, *masks)
        return new_f.square().sum() + new_g.sin().sum()

    @property
    def batch(self) -> tuple[Tensor, ...]:
        return self.f, self.g, *self.masks.values()


CASES = [
    pytest.param(reduce, shapes, options, frozen, id="-".join([reduce, shapes, options, *["frozen"] * frozen]))
    for reduce in ("flatten", "mean", "masked mean")
    for shapes in SHAPES
    for options in OPTIONS
    for frozen in ((False, True) if options == "published" else (False,))
    if reduce == "flatten" or options != "normalized"  # which RegBN refuses together
]


pytestmark = pytest.mark.parametrize(("reduce", "shapes", "options", "frozen"), CASES)


@pytest.fixture
def subject(reduce: str, shapes: str, options: str, frozen: bool) -> Subject:
    torch.manual_seed(0)
    of_f, of_g = SHAPES[shapes]
    layers = (of_f, of_g) if reduce == "flatten" else ((), ())
    regbn = RegBN(4, 3, *layers, reduce="flatten" if reduce == "flatten" else "mean", **OPTIONS[options])
    f, g = torch.randn(SAMPLES, 4, *of_f), torch.randn(SAMPLES, 3, *of_g)
    for _ in range(5):
        regbn(f, g)
    masks = {}
    if reduce == "masked mean":
        masks = {"f_mask": torch.rand(SAMPLES, *of_f) > 0.4, "g_mask": torch.rand(SAMPLES, *of_g) > 0.4}
    return Subject(regbn.train(frozen), frozen, f, g, masks)


def gradients(subject: Subject, score: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    f, g = subject.f.clone().requires_grad_(), subject.g.clone().requires_grad_()
    return torch.autograd.grad(score(f, g, *subject.masks.values()), (f, g))


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_each_sample_alone(subject: Subject) -> None:
    wanted = subject(*subject.batch)
    loop = [subject.one(*(x[i] for x in subject.batch)) for i in range(SAMPLES)]
    close(tuple(map(torch.stack, zip(*loop, strict=True))), wanted)
    close(func.vmap(subject.one)(*subject.batch), wanted)
    with torch.autocast("cpu"):
        close(func.vmap(subject.one)(*subject.batch), wanted)
    last = [x.movedim(0, -1) for x in subject.batch]
    close(func.vmap(subject.one, in_dims=-1, out_dims=-1)(*last), tuple(x.movedim(0, -1) for x in wanted))


def test_many_batches_of_one_side(subject: Subject) -> None:
    f, g, *masks = subject.batch
    for change in (lambda x: subject(x, g, *masks)[0], lambda x: subject(f * x.mean(), g, *masks)[0]):
        xs = torch.stack([f, 2 * f])
        close(func.vmap(change)(xs), torch.stack([change(x) for x in xs]))
    gs = torch.stack([g, 2 * g])
    close(func.vmap(lambda x: subject(f, x, *masks)[0])(gs), torch.stack([subject(f, x, *masks)[0] for x in gs]))


def test_gradients(subject: Subject) -> None:
    wanted = gradients(subject, subject.score)
    masks = tuple(subject.masks.values())
    close(func.grad(subject.score, (0, 1))(*subject.batch), wanted)
    _, pull = func.vjp(lambda f, g: subject.score(f, g, *masks), subject.f, subject.g)
    close(pull(torch.tensor(1.0)), wanted)
    ones = torch.ones_like(subject.f), torch.ones_like(subject.g)
    _, slope = func.jvp(lambda f, g: subject.score(f, g, *masks), (subject.f, subject.g), ones)
    close(slope, wanted[0].sum() + wanted[1].sum())


def test_gradients_of_each_sample(subject: Subject) -> None:
    def score(*sample: Tensor) -> Tensor:
        new_f, new_g = subject.one(*sample)
        return new_f.square().sum() + new_g.sin().sum()

    close(func.vmap(func.grad(score, (0, 1)))(*subject.batch), gradients(subject, subject.score))


def test_jacobians_and_hessians(subject: Subject) -> None:
    def both(f: Tensor, g: Tensor) -> Tensor:
        return subject(f, g, *subject.masks.values())[0]

    pair = subject.f, subject.g
    wanted = torch.autograd.functional.jacobian(both, pair)
    close(func.jacrev(both, (0, 1))(*pair), wanted)
    close(func.jacfwd(both, (0, 1))(*pair), wanted)
    if subject.f.numel() < 50:  # a plain Hessian takes a backward pass for each element

        def score(f: Tensor) -> Tensor:
            return both(f, subject.g).square().sum()

        close(func.hessian(score)(subject.f), torch.autograd.functional.hessian(score, subject.f))


def test_an_ensemble(subject: Subject) -> None:
    """Several RegBN with states of their own at once, as `torch.func.stack_module_state` is for."""
    members = [subject.regbn, *(_with_another_state(subject.regbn) for _ in range(2))]
    parameters, buffers = func.stack_module_state(members)  # type: ignore[arg-type]
    mode = False if subject.frozen else None
    given: Any = subject.masks

    def member(parameters: Any, buffers: Any) -> Any:
        return func.functional_call(subject.regbn, (parameters, buffers), (subject.f, subject.g, mode), given)

    found = func.vmap(member)(parameters, buffers)
    wanted = [each(subject.f, subject.g, mode, **given) for each in members]
    close(tuple(found), tuple(map(torch.stack, zip(*wanted, strict=True))))


def _with_another_state(regbn: RegBN) -> nn.Module:
    twin = copy.deepcopy(regbn)
    for factor in twin.factors:
        factor.add_(torch.randn_like(factor))
    return twin


def test_the_state_stays(subject: Subject) -> None:
    before = {name: value.clone() for name, value in subject.regbn.state_dict().items()}
    func.vmap(func.grad(lambda *sample: subject.one(*sample)[0].sum()))(*subject.batch)
    for name, value in subject.regbn.state_dict().items():
        assert torch.equal(value, before[name]), name
