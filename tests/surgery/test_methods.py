"""Methods that a rule names: how what comes out of the two layers is followed to where it meets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RewriteError, unregbnify
from regbn_surgery._surgery import identity

from .models import Joined, build, counting, rules, step, token_pairs, vectors


class Host(Joined):
    def row_by_row(self, a: Tensor, b: Tensor) -> Tensor:
        f = torch.stack([row.clone() for row in self.enc_a(a)])
        return self.head(torch.cat([f, self.enc_b(b)], dim=-1))

    def into_a_buffer(self, a: Tensor, b: Tensor) -> Tensor:
        f = a.new_empty(len(a), 8)
        f[:] = self.enc_a(a)
        return self.head(torch.cat([f, self.enc_b(b)], dim=-1))

    def joined_once_more(self, a: Tensor, b: Tensor) -> Tensor:
        g = self.enc_b(b)
        joint = torch.cat([self.enc_a(a), g], dim=-1)
        return self.head(joint) + 0 * torch.cat([joint, g], dim=-1).sum()


@pytest.mark.parametrize("method", ["row_by_row", "into_a_buffer", "joined_once_more"])
def test_what_a_layer_made_is_known_again_however_it_comes_to_the_call(method: str) -> None:
    rewritten = regbn_surgery.regbnify(build(Host), rules(methods=[method]), vectors())
    step(rewritten, vectors(9))
    rewritten.eval()
    with counting(rewritten) as calls:
        found = getattr(rewritten, method)(**vectors())
    assert dict(calls) == {"regbn_x": 1}
    torch.testing.assert_close(found, rewritten(**vectors()))
    with identity(rewritten):
        plain = getattr(rewritten, method)(**vectors())
    torch.testing.assert_close(plain, unregbnify(copy.deepcopy(rewritten))(**vectors()))
    assert not torch.allclose(plain, found)


class Attends(nn.Module):
    """Here the two sides are not the operands of one call."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        g, f = self.enc_b(b), self.enc_a(a)
        return f + (f @ self.k(g).transpose(-1, -2)).softmax(-1) @ self.v(g)

    def generate(self, a: Tensor, b: Tensor) -> Tensor:
        return self(a, b)


@pytest.mark.parametrize(
    ("cls", "inputs", "kind", "method", "match"),
    [
        (Host, vectors, "concat", "forward", r"methods: \[forward\]` of regbn_x: Host has no such method beside"),
        (Host, vectors, "concat", "head_count", r"methods: \[head_count\]` of regbn_x: Host has no such method"),
        (Attends, token_pairs, "attention", "generate", "only sites at which the outputs of two layers of Attends"),
    ],
)
def test_methods_in_which_a_site_could_not_be_found_are_refused(
    cls: type[nn.Module], inputs: Any, kind: str, method: str, match: str
) -> None:
    with pytest.raises(RewriteError, match=match):
        regbn_surgery.regbnify(build(cls), rules(kind, methods=[method]), inputs())
