"""Small models to operate on, and what the tests ask about them. At module level, so that they can be pickled."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import regbn_surgery
from regbn_surgery._surgery import RegBNSite, _surgery, explain
from regbn_surgery._surgery._operations import operations_for, put_in
from regbn_surgery._surgery._site import is_identity

SEED = 11


class Joined(nn.Module):
    """Two vectors, concatenated; what a further method does with them, a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class Late(nn.Module):
    """Two vectors, concatenated in the root's own forward: RegBN goes into its source."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.enc_a = nn.Linear(6, 8)
        self.enc_b = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(12, 3)
        self.temperature = 1.0
        self.last: Tensor | None = None

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        joint = torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1)
        if joint.dim() == 2:
            joint = self.norm(joint)
        out = self.head(self.drop(joint)) / self.temperature
        self.last = out.detach()
        return out if bias is None else out + bias


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.cat([left, right], dim=-1))


class Nested(nn.Module):
    """The owner gets both branches as arguments: a hook on the way in (tier 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a = nn.Linear(6, 8)
        self.enc_b = nn.Linear(5, 4)
        self.fusion = Fusion()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fusion(self.enc_a(a), right=self.enc_b(b))


class Cross(nn.Module):
    """Tokens a attend to tokens b in an `nn.MultiheadAttention`: a hook on the leaf (tier 1)."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.enc_a = nn.Linear(6, 8)
        self.enc_b = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, a: Tensor, b: Tensor, padding: Tensor | None = None) -> Tensor:
        a, b = self.enc_a(a), self.enc_b(b)
        return a + self.attention(a, b, b, key_padding_mask=padding, need_weights=False)[0]


class OwnAttention(nn.Module):
    """Attention written out, masked by an additive mask or by zeros and ones."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        scores = self.q(hidden) @ self.k(context).transpose(-1, -2) / 8**0.5
        if context_mask is not None:
            scores = scores.masked_fill(context_mask[:, None, :] == 0, float("-inf"))
        return hidden + scores.softmax(-1) @ self.v(context)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.cross = OwnAttention()

    def forward(self, a: Tensor, b: Tensor, b_mask: Tensor) -> Tensor:
        return self.cross(self.enc_a(a), self.enc_b(b), context_mask=b_mask)


class Swapped(nn.Module):
    """One attention, called twice with its roles exchanged, and once where nothing meets (LXMERT)."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.cross = OwnAttention()
        self.checkpointed = checkpointed
        self.fail_after_first = False

    def block(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        own = self.cross(a, a)
        new_a = self.cross(own, b)
        if self.fail_after_first:
            raise ValueError("on purpose")
        return new_a, self.cross(b, torch.tanh(own))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.enc_a(a), self.enc_b(b)
        if self.checkpointed:
            return checkpoint(self.block, a, b, use_reentrant=False)
        return self.block(a, b)


def vectors(batch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + batch)
    return {"a": torch.randn(batch, 6, generator=generator), "b": torch.randn(batch, 5, generator=generator)}


def token_pairs(batch: int = 4, la: int = 7, lb: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + batch)
    return {"a": torch.randn(batch, la, 6, generator=generator), "b": torch.randn(batch, lb, 5, generator=generator)}


def build(cls: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(*args, **kwargs)


def rules(kind: str = "concat", normalize: str = "a", against: str = "b", **rule: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "modalities": {"a": ["a"], "b": ["b"]},
        "rules": [{"id": "x", "match": {"kind": kind}, "normalize": normalize, "against": against, **rule}],
    }


def operate(model: nn.Module, example: Any, kind: str = "concat", *, inplace: bool = False, **rule: Any) -> Any:
    return regbn_surgery.regbnify(model, rules(kind, **rule), example, inplace=inplace)


@contextlib.contextmanager
def forced(way: str) -> Iterator[None]:
    """Let surgery go one way alone: "source" keeps it from hooks, "mode" from code that is compiled again as well."""
    with pytest.MonkeyPatch.context() as patch:
        if way != "hook":
            patch.setattr(_surgery, "operations_for", lambda *args, **_: operations_for(*args[:3], hooks=False))
        if way == "mode":
            patch.setattr(_surgery, "put_in", lambda *args, **_: put_in(*args[:3], by_mode="for the test"))
        yield


def operate_by(way: str, model: nn.Module, example: Any, kind: str = "concat", **rule: Any) -> Any:
    """`operate`, in one way alone."""
    with forced(way):
        rewritten = operate(model, example, kind, **rule)
    assert ways(rewritten) == {way}
    return rewritten


def ways(model: nn.Module) -> set[str]:
    """The ways in which RegBN went into the hosts of a model."""
    return {report.way for report in explain(model)}


def site_of(model: nn.Module) -> RegBNSite:
    (site,) = [module for module in model.modules() if isinstance(module, RegBNSite)]
    return site


def run(model: nn.Module, example: dict[str, Any], training: bool | None = None) -> Any:
    if training is not None:
        model.train(training)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return model(**example)


def step(model: nn.Module, example: dict[str, Any]) -> None:
    """One training step, so that every W has moved."""
    output = run(model, example, training=True)
    outputs = output if isinstance(output, tuple) else (output,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sum(out.square().mean() for out in outputs).backward()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[Counter[str]]:
    """How often each RegBN is called, by the name of its site; trial runs with identity in its place count only
    where the caller asks for them with `identity` himself."""
    calls: Counter[str] = Counter()
    before = is_identity()

    def count(module: Any, args: Any, output: Any, name: str) -> None:
        if is_identity() == before:
            calls[name] += 1

    handles = [
        module.register_forward_hook(functools.partial(count, name=name))
        for name, module in model.named_modules()
        if isinstance(module, RegBNSite)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def everything(model: nn.Module) -> dict[str, Any]:
    """All there is to see of a model: classes, attributes, hooks, children in order, and the values of tensors."""

    def seen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (id(value), value.detach().clone().tolist())
        if isinstance(value, dict):
            return [(key, seen(item)) for key, item in value.items()]
        if isinstance(value, list | set | tuple):
            return [seen(item) for item in value]
        return value if isinstance(value, int | float | str | bool | None) else id(value)

    return {
        name: (type(module), {key: seen(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }
