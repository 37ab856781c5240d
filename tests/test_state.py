"""A trial run leaves no trace: in the model, in random numbers, whatever happens inside."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regbn_surgery._state import preserved, seeded


class Careless(nn.Module):
    """Keeps and changes things on itself wherever a forward can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("memory", torch.zeros(2), persistent=False)
        self.calls = 0
        self.history: list[Tensor] = []
        self.seen: set[int] = set()
        self.recent: deque[int] = deque(maxlen=3)
        self.cache: dict[str, Any] = {"nested": []}
        self.ordered: OrderedDict[str, int] = OrderedDict(a=1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.count += 1
        self.memory = x.detach()[0, :2]
        self.history.append(x)
        self.seen.add(len(self.history))
        self.recent.append(self.calls)
        self.cache["x"] = x
        self.cache["nested"].append(x)
        self.ordered["b"] = 2
        self.eval()
        self.register_buffer("late", torch.ones(1))
        self.extra = nn.Linear(3, 3)
        self.norm.register_forward_hook(lambda *_: None)
        del self.drop
        return self.norm(x)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All there is to see of a model: attributes of every module, containers one by one, and the values of tensors."""

    def seen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (id(value), value.detach().clone().tolist())
        if isinstance(value, dict):
            return (id(value), [(key, seen(item)) for key, item in value.items()])
        if isinstance(value, list | set | deque | tuple):
            return (id(value), [seen(item) for item in value])
        return value if isinstance(value, int | float | str | bool | None) else id(value)

    return {
        name: (type(module), {key: seen(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_a_forward_does_to_the_model_is_taken_back(error: type[BaseException] | None) -> None:
    model = Careless().train()
    model(torch.randn(4, 3))
    model = Careless().train()
    model.norm.register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)

    def trial() -> None:
        with preserved(model):
            model(torch.randn(4, 3))
            assert model.calls == 1
            assert not model.training
            if error is not None:
                raise error("on purpose")

    with pytest.raises(error) if error is not None else nullcontext():
        trial()
    assert snapshot(model) == before


def test_tensors_that_somebody_holds_stay_the_same_objects() -> None:
    model = nn.BatchNorm1d(3).train()
    held, values = model.running_mean, model.running_mean.clone()
    with preserved(model):
        model(torch.randn(4, 3))
        assert not torch.equal(model.running_mean, values)
    assert model.running_mean is held
    assert torch.equal(held, values)


def test_a_table_that_renormalises_itself_keeps_its_values() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.EmbeddingBag(5, 3, max_norm=0.1))
    before = copy.deepcopy(model.state_dict())
    with preserved(model), torch.no_grad():
        model[0](torch.arange(5))
        model[1](torch.arange(4).reshape(2, 2))
        assert not torch.equal(model[0].weight, before["0.weight"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_buffers_that_need_gradients_or_have_no_data_are_no_obstacle() -> None:
    model = nn.Module()
    model.register_buffer("learned", torch.zeros(2, requires_grad=True))
    model.register_buffer("nothing", None)
    model.register_buffer("meta", torch.zeros(2, device="meta"))
    with preserved(model), torch.no_grad():
        model.learned.add_(1)
    assert model.learned.tolist() == [0, 0]


def test_random_numbers_are_drawn_from_the_seed_and_go_on_after_as_before() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    draws = []
    for _ in range(2):
        with seeded():
            draws.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
        torch.testing.assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == states[1:]
    with seeded(1):
        other = torch.rand(3).tolist()
    assert draws[0] == draws[1]
    assert draws[0][0] != other


def test_random_numbers_go_on_as_before_after_an_error() -> None:
    state, python = torch.get_rng_state(), random.getstate()

    @seeded()
    def trial() -> None:
        torch.rand(3)
        random.random()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        trial()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
