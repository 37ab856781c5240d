"""Forwards with side effects, gradients of their own making, hooks, tied and stashed tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from regbn_surgery import Inputs

from ._by_hand import MakeInputs, case, usual_calls
from ._faith import Call
from .by_hand_values import Late


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.scale * grad, None


class Hard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


@case()
class GradientReversal(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([Reverse.apply(f, 0.5), g], 1))


@case()
class StraightThroughHard(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f * Hard.apply(f), g], 1))


@case()
class StopGradient(Late):
    def forward(self, a, b):
        f = self.fa(a)
        with torch.no_grad():
            g = self.fb(b)
        return self.head(torch.cat([f, g], 1))


@case()
class EnableGradInside(Late):
    def forward(self, a, b):
        with torch.enable_grad():
            f, g = self.fa(a), self.fb(b)
            return self.head(torch.cat([f, g], 1))


@case()
class GradModulationByTensorHook(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if f.requires_grad:
            f.register_hook(lambda grad: grad * 0.1)
        return self.head(torch.cat([f, g], 1))


@case()
class DecidesOnGradMode(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if torch.is_grad_enabled():
            h = h * 0.5
        return self.head(h)


@case()
class CheckpointsOnlyWhenTraining(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if self.training and h.requires_grad:
            return checkpoint(self.head, h, use_reentrant=False)
        return self.head(h)


class Backbone(nn.Module):
    """Keeps its features for whoever wants them, as many backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.last = None

    def forward(self, x):
        self.last = self.fc(x).relu()
        return self.last.mean(1)


@case()
class ReadsFeaturesOfChild(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa = Backbone()

    def forward(self, a, b):
        self.fa(a)
        return self.head(torch.cat([self.fa.last, self.fb(b)], 1))


@case()
class FeaturesByForwardHook(Late):
    """Intermediate features caught by a forward hook in a dict: the usual way into a pretrained backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.feats = {}
        self.net[1].register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.feats["relu"] = output

    def forward(self, a, b):
        top = self.net(a)
        return self.head(torch.cat([self.feats["relu"], self.fb(b)], 1)), top


class Gaussian:
    """A plain object with tensors, no dataclass."""

    def __init__(self, mu, logvar):
        self.mu, self.logvar = mu, logvar

    def sample(self):
        return self.mu + torch.randn_like(self.mu) * (0.5 * self.logvar).exp()


class Encoder(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n, 16)

    def forward(self, x):
        return Gaussian(*self.fc(x).chunk(2, 1))


@case()
class ChildReturnsObject(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = Encoder(6), Encoder(5)

    def forward(self, a, b):
        p, q = self.fa(a), self.fb(b)
        return self.head(torch.cat([p.sample(), q.sample()], 1)), p.mu


class Normal(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n, 16)

    def forward(self, x):
        mu, scale = self.fc(x).chunk(2, 1)
        return torch.distributions.Normal(mu, F.softplus(scale))


@case()
class ChildReturnsDistribution(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = Normal(6), Normal(5)

    def forward(self, a, b):
        p, q = self.fa(a), self.fb(b)
        h = self.head(torch.cat([p.rsample(), q.rsample()], 1))
        return h, torch.distributions.kl_divergence(p, q).mean() * 1e-4


@case()
class NumpyInside(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        w = torch.from_numpy(f.detach().numpy() ** 2)
        return self.head(torch.cat([f * w, g], 1))


@case()
class VmapInside(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        f = torch.func.vmap(lambda row: row * row.sum())(f)
        return self.head(torch.cat([f, g], 1))


@case()
class LogsIntoDict(Late):
    """Statistics for the logger are kept in a dict that the training loop reads."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = {}

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        self.logs["f"] = f.detach().mean()
        out = self.head(torch.cat([f, g], 1))
        return out, self.logs["f"] + 0


class Twins(Late):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Linear(6, 8)
        self.twin.load_state_dict(self.fa.state_dict())
        for p in self.twin.parameters():
            p.requires_grad_(False)

    @torch.no_grad()
    def update(self):
        for p, q in zip(self.fa.parameters(), self.twin.parameters(), strict=True):
            q.data = q.data * 0.9 + p.data * 0.1 + 0.01


@case()
class MomentumTwin(Twins):
    def forward(self, a, b):
        if self.training:
            self.update()
        f, g = self.fa(a), self.fb(b)
        with torch.no_grad():
            key = self.twin(a)
        return self.head(torch.cat([f, g], 1)), key


@case()
class MomentumTwinInPlace(Twins):
    @torch.no_grad()
    def update(self):
        for p, q in zip(self.fa.parameters(), self.twin.parameters(), strict=True):
            q.mul_(0.9).add_(p, alpha=0.1).add_(0.01)

    def forward(self, a, b):
        if self.training:
            self.update()
        f, g = self.fa(a), self.fb(b)
        with torch.no_grad():
            key = self.twin(a)
        return self.head(torch.cat([f, g], 1)), key


@case()
class Queue(Late):
    """MoCo's queue: a buffer written by slices, and a pointer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(32, 8))
        self.register_buffer("ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, f):
        start = int(self.ptr)
        index = (torch.arange(f.shape[0]) + start) % 32
        self.queue[index] = f
        self.ptr[0] = (start + f.shape[0]) % 32

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        logits = f @ self.queue.clone().t()
        if self.training:
            self.enqueue(f.detach())
        return self.head(torch.cat([f, g], 1)), logits


@case()
class MemoryBankList(Late):
    def __init__(self) -> None:
        super().__init__()
        self.bank = []

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training:
            self.bank.append(f.detach().mean(0))
            self.bank = self.bank[-3:]
        shift = torch.stack(self.bank).mean(0) if self.bank else 0.0
        return self.head(torch.cat([f + shift, g], 1))


@case()
class RunningMeanAttribute(Late):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(8))

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training:
            self.running = 0.9 * self.running + 0.1 * f.detach().mean(0)
        return self.head(torch.cat([f - self.running, g], 1))


@case(pickles=False)
class OwnGenerator(Late):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        noise = torch.randn(f.shape, generator=self.generator)
        return self.head(torch.cat([f + noise, g], 1))


@case()
class PrototypesInList(Late):
    """Tensors kept in a plain list, neither buffers nor parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = [torch.full((8,), 1.0), torch.full((8,), 2.0)]

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f + self.prototypes[0], g * self.prototypes[1]], 1))


@case()
class TensorAttribute(Late):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((8,), 2.0)

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f * self.scale, g], 1))


@case()
class TiedWeights(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fb = nn.Linear(5, 8)
        self.decoder = nn.Linear(8, 6)
        self.decoder.weight = nn.Parameter(self.fa.weight.t().clone())
        self.fa2 = nn.Linear(6, 8, bias=False)
        self.fa2.weight = self.fa.weight

    def forward(self, a, b):
        f, g = self.fa(a) + self.fa2(a), self.fb(b)
        rec = F.linear(f, self.fa.weight.t())
        return self.head(torch.cat([f, g], 1)), rec


@case()
class InPlaceOnViews(Late):
    def forward(self, a, b):
        f, g = self.fa(a).clone(), self.fb(b)
        left = f[:, :4]
        left.mul_(2)
        f[:, 4:] += 1
        h = torch.cat([f, g], 1)
        h[:, 0] = 0
        return self.head(h)


@case(kind="scatter")
class WritesIntoOutput(Late):
    """A joined tensor filled by slices, no cat in sight."""

    def forward(self, a, b):
        out = a.new_zeros(a.shape[0], 16)
        out[:, :8] = self.fa(a)
        out[:, 8:] = self.fb(b)
        return self.head(out)


@case()
class AutocastInside(Late):
    def forward(self, a, b):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            f, g = self.fa(a), self.fb(b)
            out = self.head(torch.cat([f, g], 1))
        return out.float()


@case()
class AutocastOffInside(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        with torch.autocast("cpu", enabled=False):
            h = torch.cat([f.float(), g.float()], 1)
        return self.head(h)


@case()
class HooksOnModules(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa.register_forward_hook(_double)
        self.fb.register_forward_pre_hook(_plus_one)

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


def _double(module, args, out):
    return out * 2


def _plus_one(module, args):
    return (args[0] + 1,)


@case()
class FrozenChildInEval(Late):
    """A backbone that stays in evaluation mode whatever `train()` says, called by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fa = WithMethod()
        self.fa.eval()

    def train(self, mode: bool = True):
        super().train(mode)
        self.fa.eval()
        return self

    def forward(self, a, b):
        f, g = self.fa.encode(a), self.fb(b)
        return self.head(torch.cat([f, g], 1))


class WithMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.p = 0.5

    def encode(self, x):
        return F.dropout(self.fc(x), self.p, self.training)


def thaw_calls(make: MakeInputs) -> list[Call]:
    return usual_calls(make)


@case()
class ThawedLater(Late):
    """The backbone's mode changes on its own, three calls in: gradual unfreezing."""

    def __init__(self) -> None:
        super().__init__()
        self.fa = WithMethod()
        self.register_buffer("calls", torch.tensor(0))

    def train(self, mode: bool = True):
        super().train(mode)
        if hasattr(self, "calls"):
            self.fa.train(mode and bool(self.calls % 2))
        return self

    def forward(self, a, b):
        self.calls += 1
        f, g = self.fa.encode(a), self.fb(b)
        return self.head(torch.cat([f, g], 1))


@case(kind="concat", make=lambda n: Inputs(torch.randn(n, 6).double(), torch.randn(n, 5).double()))
class Float64(Late):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


@case(make=lambda n: Inputs(torch.randn(n, 6).bfloat16(), torch.randn(n, 5).bfloat16()))
class BFloat16(Late):
    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


@case()
class GradientInsideForward(Late):
    """Saliency of one branch weighs the other: a gradient taken inside forward."""

    def forward(self, a, b):
        with torch.enable_grad():
            x = a.detach().clone().requires_grad_()
            score = self.fa(x).square().sum()
            (saliency,) = torch.autograd.grad(score, x, create_graph=self.training)
        f, g = self.fa(a * saliency.abs()), self.fb(b)
        return self.head(torch.cat([f, g], 1))


@case()
class ItemIntoAttribute(Late):
    def __init__(self) -> None:
        super().__init__()
        self.last_mean = 0.0

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        self.last_mean = f.mean().item()
        return self.head(torch.cat([f, g], 1)), torch.tensor(self.last_mean)


@case()
class SharedTwiceWithBuffer(nn.Module):
    """A shared host called twice in one forward, whose buffer is saved for backward in between."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(6, 8), nn.Linear(5, 8)
        self.fuse = Fuse()

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.fuse(f, g) + self.fuse(f[:, :8], g * 2)


class Fuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(16))
        self.head = nn.Linear(16, 3)

    def forward(self, f, g):
        return self.head(torch.cat([f, g], 1) * self.scale)
