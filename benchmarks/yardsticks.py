"""What RegBN's step is measured against: the floor of matrix products, torch's own norms, plain closed forms.

None of these is part of the package. `floor_step` is not a layer: it does the products that no implementation can
leave out, with a lambda and a share that are given to it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A benchmark case: [batch, *f] and [batch, *g], channels first."""

    name: str
    f: tuple[int, ...]
    g: tuple[int, ...]
    batch: int

    @property
    def n(self) -> int:
        return int(torch.Size(self.f).numel())

    @property
    def m(self) -> int:
        return int(torch.Size(self.g).numel())

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f, g and the gradients that come back to them. f depends on g a little, as modalities do."""
        generator = torch.Generator().manual_seed(0)
        g = torch.randn(self.batch, *self.g, generator=generator)
        f = torch.randn(self.batch, *self.f, generator=generator) + 0.3 * g.flatten(1).mean(1).reshape(
            -1, *[1] * len(self.f)
        )
        grad_f, grad_g = torch.randn_like(f), torch.randn_like(g)
        f, g = f.to(device).requires_grad_(), g.to(device).requires_grad_()
        return f, g, grad_f.to(device), grad_g.to(device)


SHAPES = (
    Shape("README", (512,), (64, 7, 7), 50),
    Shape("early", (1, 28, 28), (3, 28, 28), 50),
    Shape("MLP", (128,), (16,), 100),
    Shape("late", (96,), (96,), 50),
    Shape("conv", (64, 14, 14), (64, 7, 7), 32),
)
LARGER = ("README", "early", "conv")


def training_step(layer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], shape: Shape, device: torch.device) -> Step:
    """Forward and backward of `layer` in training on fixed tensors."""
    f, g, grad_f, grad_g = shape.tensors(device)

    def step() -> None:
        f.grad = g.grad = None
        outputs = layer(f, g)
        torch.autograd.backward(outputs, (grad_f, grad_g))

    return step


def evaluation_step(layer: Callable[[Tensor, Tensor], object], shape: Shape, device: torch.device) -> Step:
    """Forward of `layer` without gradient on fixed tensors."""
    f, g, _, _ = shape.tensors(device)

    def step() -> None:
        with torch.no_grad():
            layer(f, g)

    return step


def floor_training(shape: Shape, device: torch.device, normalized: bool = False) -> Step:
    """Gram, solve, residual and W update, and the products of the backward pass, each exactly once.

    With `normalized` the fit is on another G than the g that it is subtracted from: one product more, and two
    more in the backward pass. What turns g into G is not part of it.
    """
    f, g, D, _ = (x.detach().flatten(1) for x in shape.tensors(device))
    G = (g - g.mean(0)) / g.std(0) if normalized else g
    W = torch.zeros(shape.m, shape.n, device=device)
    lam, share = 0.1 * shape.m, 0.02
    eye = torch.eye(min(shape.batch, shape.m), device=device)

    def dual() -> None:
        K = G @ G.T
        cross = g @ G.T if normalized else K
        factor = torch.linalg.cholesky_ex(K + lam * eye).L
        A = torch.cholesky_solve(f, factor)
        _ = torch.addmm(f, cross, A, alpha=-1.0)
        W.addmm_(G.T, A, beta=1.0 - share, alpha=share)
        back = torch.cholesky_solve(cross.T @ D, factor)
        if normalized:
            grad_K, grad_cross = back @ A.T, D @ A.T
            _ = grad_cross @ G
            _ = torch.addmm(grad_cross.T @ g, grad_K + grad_K.T, G)
        else:
            grad_K = (D - back) @ A.T
            _ = (grad_K + grad_K.T) @ g

    def primal() -> None:
        S = G.T @ G
        factor = torch.linalg.cholesky_ex(S + lam * eye).L
        update = torch.cholesky_solve(G.T @ f, factor)
        _ = torch.addmm(f, g, update, alpha=-1.0)
        W.lerp_(update, share)
        back = torch.cholesky_solve(g.T @ D, factor)
        _ = torch.addmm(D, G, back, alpha=-1.0)
        grad_S = back @ update.T
        _ = f @ back.T + D @ update.T + G @ (grad_S + grad_S.T)

    return dual if shape.batch <= shape.m else primal


def floor_evaluation(shape: Shape, device: torch.device) -> Step:
    """The residual alone."""
    f, g, _, _ = (x.detach().flatten(1) for x in shape.tensors(device))
    W = torch.randn(shape.m, shape.n, device=device)
    return lambda: torch.addmm(f, g, W, alpha=-1.0)


class PlainNorms(nn.Module):
    """BatchNorm and LayerNorm on each of the same two tensors: what a user would have there otherwise."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.batch_f, self.batch_g = self._batch_norm(shape.f), self._batch_norm(shape.g)
        self.layer_f, self.layer_g = nn.LayerNorm(shape.f), nn.LayerNorm(shape.g)

    @staticmethod
    def _batch_norm(size: tuple[int, ...]) -> nn.Module:
        return {1: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(size)](size[0])

    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer_f(self.batch_f(f)), self.layer_g(self.batch_g(g))


class PlainClosedForm(nn.Module):
    """RegBN as one would first write it: eigendecomposition, bisection-free root, W_batch held whole."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("W", torch.zeros(shape.m, shape.n))
        self.mean = self.square = 0.0
        self.steps = 0

    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        flat_f, flat_g = f.flatten(1), g.flatten(1)
        if not self.training:
            W_batch = self.W
        else:
            K = flat_g @ flat_g.T
            s = torch.linalg.eigh(K.detach())[0]
            s = s.clamp_min(0.0).double()
            lam = s.square().sum().sqrt()
            for _ in range(40):  # Newton from the right, halving where it would leave the positive numbers
                q = (s / (s + lam)).square()
                step = (q.sum() - 1.0) / (2.0 * (q / (s + lam)).sum())
                lam = torch.maximum(lam + step, lam / 2)
            eye = torch.eye(len(K), device=K.device)
            W_batch = flat_g.T @ torch.linalg.solve(K + lam.float() * eye, flat_f)
            with torch.no_grad():
                d = (self.W - W_batch).abs().mean()
                self.steps += 1
                self.mean = 0.9 * self.mean + 0.1 * d
                self.square = 0.99 * self.square + 0.01 * d * d
                m, v = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.99**self.steps)
                self.W.lerp_(W_batch, 0.02 * m / (v.sqrt() + 1e-8))
        residual = (flat_f - flat_g @ W_batch).view_as(f)
        return F.layer_norm(residual, f.shape[1:]), F.layer_norm(g, g.shape[1:])
