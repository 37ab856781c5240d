"""One layer for both branches, called in one expression: f and g are told apart by what the layer is given."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, RegBNWarning, regbnify

RULES = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor, order: str = "ab") -> Tensor:
        streams = {"a": a, "b": b}
        return torch.cat([torch.relu(self.layer(streams[name])) for name in order], 1)


class InALoop(Shared):
    def forward(self, a: Tensor, b: Tensor, order: str = "ab") -> Tensor:
        made = []
        for stream in [{"a": a, "b": b}[name] for name in order]:
            hidden = self.layer(stream)
            made.append(hidden.relu())
        return torch.cat(made, 1)


class Stacked(Shared):
    def forward(self, a: Tensor, b: Tensor, order: str = "ab") -> Tensor:
        made = [torch.relu(self.layer(z)) for z in ((a, b) if order == "ab" else (b, a))]
        return torch.stack(made, 1).flatten(1)


class ByName(Shared):
    def forward(self, a: Tensor, b: Tensor, order: str = "ab") -> Tensor:
        streams = {"a": a, "b": b}
        made = {name: self.layer(streams[name]).relu() for name in order}
        return torch.cat(list(made.values()), 1)


class Mapped(Shared):
    """Runs under a function mode."""

    def forward(self, a: Tensor, b: Tensor, order: str = "ab") -> Tensor:
        streams = (a, b) if order == "ab" else (b, a)
        return torch.cat(list(map(torch.relu, map(self.layer, streams))), 1)


MODELS = [Shared, InALoop, Stacked, ByName, Mapped]
models = pytest.mark.parametrize("cls", MODELS)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 8, generator=generator), torch.randn(size, 8, generator=generator)


@models
@pytest.mark.parametrize("shown", ["ab", "ba"])
def test_both_orders(cls: type[Shared], shown: str) -> None:
    torch.manual_seed(0)
    model: Any = regbnify(cls(), RULES, (*batch(), shown)).train()
    (regbn,) = (module for module in model.modules() if isinstance(module, RegBN))
    for model_now in (model, copy.deepcopy(model)):
        (regbn,) = (module for module in model_now.modules() if isinstance(module, RegBN))
        hand = copy.deepcopy(regbn)
        for train, order, size in [(True, "ab", 6), (True, "ba", 6), (False, "ab", 3), (False, "ba", 3)]:
            a, b = batch(size)
            f, g = hand.train(train)(torch.relu(model_now.layer(a)), torch.relu(model_now.layer(b)))
            wanted = torch.cat([f, g] if order == "ab" else [g, f], 1)
            torch.testing.assert_close(model_now.train(train)(a, b, order), wanted)
            torch.testing.assert_close(regbn.state_dict(), hand.state_dict())


@models
def test_the_layers_input_changed_on_the_way_is_told(cls: type[Shared]) -> None:
    """Of a stream that is not the argument itself, nobody can say which it is: no RegBN rather than a wrong one."""

    class Doubled(cls):  # type: ignore[misc, valid-type]
        def forward(self, a: Tensor, b: Tensor, order: str = "ab", twice: bool = False) -> Tensor:
            return cls.forward(self, *((a * 2, b * 2) if twice else (a, b)), order)

    torch.manual_seed(0)
    model = regbnify(Doubled(), RULES, batch()).eval()
    ran: list[bool] = []
    for module in model.modules():
        if isinstance(module, RegBN):
            module.register_forward_hook(
                lambda module, given, out: ran.append(torch.equal(given[0], model.layer(2 * batch()[0]).relu()))
            )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(*batch(), "ba", twice=True)
    assert all(ran)
    assert ran or any(issubclass(each.category, RegBNWarning) for each in told)
