"""A batch in any kind of container, whatever its class answers to questions that nobody meant for it."""

from __future__ import annotations

import argparse
import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, RegBN, _tree, inspect, regbnify
from regbn_surgery._errors import InputsError
from regbn_surgery._state import is_plain_object, preserved, slots_of


class AttrDict(dict[str, Any]):
    """The usual one: asked for what it does not hold, it raises KeyError."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class AttrDictWithState(dict[str, Any]):
    """The same with an attribute of its own, so that `copy.copy` asks for `__setstate__`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origin = "file"

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Closed(dict[str, Any]):
    """Nobody may write to it once it is made."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("closed")


class Encoding(UserDict[str, Any]):
    """As transformers' BatchEncoding."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


class ReadOnly(Mapping[str, Any]):
    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values_ = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


class Named(NamedTuple):
    image: Tensor
    table: Tensor


class Checked(Named):
    """A named tuple with a constructor of its own."""

    __slots__ = ()

    def __new__(cls, image: Tensor) -> Checked:
        raise AssertionError("not to be called again")


class Pair(tuple[Tensor, Tensor]):
    """A tuple whose constructor takes its items one by one, and that has attributes."""

    def __new__(cls, image: Tensor, table: Tensor) -> Pair:
        pair = super().__new__(cls, (image, table))
        pair.origin = "file"
        return pair

    origin: str


class Several(list[Tensor]):
    def __init__(self, image: Tensor, table: Tensor) -> None:
        super().__init__([image, table])
        self.origin = "file"


@dataclasses.dataclass
class Data:
    image: Tensor
    table: Tensor
    unset: int = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    image: Tensor
    table: Tensor


class Plain:
    """A batch of somebody's own, which answers every question."""

    def __init__(self, image: Tensor, table: Tensor) -> None:
        self.image, self.table = image, table

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Sub(SimpleNamespace):
    pass


Make = Callable[[Tensor, Tensor], Any]
BY_KEY: dict[str, Make] = {
    "dict": lambda i, t: {"image": i, "table": t},
    "attribute dict": lambda i, t: AttrDict(image=i, table=t),
    "attribute dict with state": lambda i, t: AttrDictWithState(image=i, table=t),
    "ordered": lambda i, t: OrderedDict(image=i, table=t),
    "closed": lambda i, t: Closed(image=i, table=t),
    "encoding": lambda i, t: Encoding(image=i, table=t),
    "read only": lambda i, t: ReadOnly({"image": i, "table": t}),
    "proxy": lambda i, t: MappingProxyType({"image": i, "table": t}),
}
BY_NAME: dict[str, Make] = {
    "named tuple": Named,
    "checked": lambda i, t: tuple.__new__(Checked, (i, t)),
    "dataclass": Data,
    "frozen with slots": FrozenSlots,
    "namespace": lambda i, t: SimpleNamespace(image=i, table=t),
    "subclass of namespace": lambda i, t: Sub(image=i, table=t),
    "arguments": lambda i, t: argparse.Namespace(image=i, table=t),
    "plain": Plain,
}
BY_PLACE: dict[str, Make] = {
    "list": lambda i, t: [i, t],
    "tuple": lambda i, t: (i, t),
    "pair": Pair,
    "several": Several,
}
ALL = {**BY_KEY, **BY_NAME, **BY_PLACE}


class Model(nn.Module):
    def __init__(self, read: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(32, 3)
        self.read = read

    def forward(self, batch: Any) -> Tensor:
        image, table = self.read(batch)
        return self.head(torch.cat([self.image(image), self.table(table)], 1))


def _model_for(kind: str) -> tuple[Model, tuple[str, str]]:
    if kind in BY_KEY:
        return Model(lambda batch: (batch["image"], batch["table"])), ("batch.image", "batch.table")
    if kind in BY_NAME:
        return Model(lambda batch: (batch.image, batch.table)), ("batch.image", "batch.table")
    return Model(lambda batch: (batch[0], batch[1])), ("batch.0", "batch.1")


@pytest.mark.parametrize("kind", ALL)
def test_rebuilt_as_its_own_kind(kind: str) -> None:
    image, table = torch.randn(4, 8), torch.randn(4, 6)
    value = ALL[kind](image, table)
    new = _tree.rebuild(value, lambda _, leaf: leaf + 1, objects=True)
    assert type(new) is type(value)
    found, kept = ([leaf for _, leaf in _tree.leaves(x, objects=True)] for x in (new, value))
    assert torch.equal(found[0], image + 1)
    assert torch.equal(found[1], table + 1)
    assert kept[0] is image
    assert kept[1] is table
    own, others = (dict(_tree.attributes(x)) for x in (value, new))
    assert others.get("origin") == own.get("origin")


@pytest.mark.parametrize("kind", ALL)
def test_a_model_that_takes_it(kind: str) -> None:
    torch.manual_seed(0)
    model, (image, table) = _model_for(kind)
    batch = ALL[kind](torch.randn(4, 8), torch.randn(4, 6))
    found = inspect(model, Inputs(batch))
    assert [point.kind for point in found.fusion_points] == ["concat"]
    assert {modality.name for modality in found.modalities} == {image, table}
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": image}]}
    rewritten = regbnify(model, rules, Inputs(batch))
    assert sum(isinstance(module, RegBN) for module in rewritten.modules()) == 1
    assert rewritten(batch).shape == (4, 3)


def test_messages_name_shapes_and_fields_whatever_the_class() -> None:
    for kind, make in ALL.items():
        words = repr(Inputs(make(torch.zeros(1, 8), torch.zeros(1, 6))))
        assert "float32[1, 8]" in words, kind
        assert "tensor(" not in words, kind
        with pytest.raises(InputsError, match="batch size 1"):
            inspect(_model_for(kind)[0], Inputs(make(torch.zeros(1, 8), torch.zeros(1, 6))))
    assert repr(Inputs((torch.zeros(2),), x={"a": [1]})) == "Inputs((float32[2],), x={'a': [1]})"
    assert repr(Inputs(Data(torch.zeros(2), torch.zeros(3)))) == "Inputs(Data(image=float32[2], table=float32[3]))"


def test_objects_that_are_no_batches_are_leaves() -> None:
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    layer = nn.Linear(2, 2)
    for value in (normal, layer, torch.zeros(2), "text", {1, 2}, Plain, object()):
        assert _tree.items(value, objects=True) is None or isinstance(value, set)
    assert _tree.items(Plain(torch.zeros(1), torch.zeros(1))) is None  # unless objects are asked for


@pytest.mark.parametrize("kind", ["namespace", "dataclass", "plain"])
def test_an_object_that_is_given_twice_stays_one(kind: str) -> None:
    value = ALL[kind](torch.zeros(2), torch.zeros(3))
    first, second = _tree.cloned([value, {"again": value}])
    assert first is second["again"]
    assert first is not value


class Slotted:
    __slots__ = ("held", "missing")

    def __init__(self) -> None:
        self.held = [1]

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_attributes_of_such_classes_are_put_back() -> None:
    """The model itself may keep them: a trial run looks into them, and restores what it has changed."""
    model = nn.Module()
    model.settings = AttrDict(depth=[1])  # type: ignore[assignment]
    model.plain = Plain(torch.zeros(1), torch.zeros(1))  # type: ignore[assignment]
    model.slots = Slotted()  # type: ignore[assignment]
    settings, plain, slots = model.settings, model.plain, model.slots
    assert is_plain_object(plain)
    assert slots_of(slots) == {"held": [1]}
    with preserved(model):
        settings["depth"].append(2)
        settings["more"] = 1
        plain.image = 3
        slots.held = 4
        slots.missing = 5
    assert dict(settings) == {"depth": [1]}
    assert torch.equal(plain.image, torch.zeros(1))
    assert slots.held == [1]
