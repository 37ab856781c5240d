"""Containers are walked and rebuilt whoever made them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from regbn_surgery import _tree


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    left: Any
    right: Any = None


@dataclasses.dataclass
class Derived:
    left: Any
    total: float = dataclasses.field(init=False, default=0.0)


class Batch(UserDict):  # as transformers' BatchEncoding: the dict is in `.data`, and shared by a shallow copy
    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Shared(MutableMapping[str, Any]):
    """Holds its dict in `.data`, and a shallow copy of it holds the same one."""

    def __init__(self, **values: Any) -> None:
        self.data = values

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


class ReadOnly(Mapping[str, Any]):
    def __init__(self, **values: Any) -> None:
        self.values_ = values

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


class Shapes(list[Any]):
    pass


A, B = torch.zeros(2), torch.ones(3)
CONTAINERS = [
    [A, B], (A, B), Shapes([A, B]), {"left": A, "right": B}, {0: A, 1: B}, OrderedDict(left=A, right=B),
    defaultdict(list, left=A, right=B), Pair(A, B), Frozen(A, B), Derived(A), Batch(left=A, right=B),
    Shared(left=A, right=B),
]  # fmt: skip


@pytest.mark.parametrize("value", CONTAINERS, ids=lambda value: type(value).__name__)
def test_containers_are_rebuilt_as_their_own_kind_and_left_alone(value: Any) -> None:
    before = [leaf for _, leaf in _tree.leaves(value)]
    names = [name for name, _ in _tree.leaves(value)]
    seen: list[str] = []

    def change(name: str, leaf: Any) -> Any:
        seen.append(name)
        return leaf + 1

    new = _tree.rebuild(value, change)
    assert type(new) is type(value)
    assert new is not value
    assert seen == names
    for (name, leaf), old, again in zip(_tree.leaves(new), before, _tree.leaves(value), strict=True):
        torch.testing.assert_close(torch.as_tensor(leaf), torch.as_tensor(old + 1))
        assert again == (name, old) if isinstance(old, float) else again[1] is old


def test_leaves_are_named_by_their_way() -> None:
    value = {"batch": [A, Pair(B, Frozen(None, "x"))], "n": 3, 4: ()}
    assert list(_tree.leaves(value)) == [
        ("batch.0", A), ("batch.1.left", B), ("batch.1.right.left", None), ("batch.1.right.right", "x"), ("n", 3),
    ]  # fmt: skip
    assert list(_tree.leaves(A)) == [("", A)]


def test_a_read_only_mapping_is_walked() -> None:
    assert [name for name, _ in _tree.leaves(ReadOnly(a=A, b=[B]))] == ["a", "b.0"]


def test_tensors_in_order_and_packed_sequences_by_their_data() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    found = _tree.tensors({"a": [A, 1], "p": packed, "b": B})
    assert found[0] is A
    assert found[1] is packed.data
    assert found[2] is B
    assert _tree.items(packed) is None
    assert _tree.items(torch.Size([2, 3])) is None
    assert _tree.items("text") is None
    assert _tree.items(Pair) is None
    assert _tree.items(Frozen) is None


def test_a_cycle_ends() -> None:
    cycle: list[Any] = [A]
    cycle.append(cycle)
    assert len(_tree.tensors(cycle)) == _tree.MAX_DEPTH
    assert len(_tree.tensors(_tree.rebuild(cycle, lambda _, leaf: leaf))) >= 1


def test_arguments_are_bound_by_name() -> None:
    def forward(a: Tensor, b: int = 2, *rest: Any, flag: bool = False, **more: Any) -> None: ...

    assert _tree.bind(forward, (A,), {"flag": True}) == {"a": A, "flag": True}
    assert _tree.bind(forward, (A, 1, B, 4), {"x": 5, "y": 6}) == {"a": A, "b": 1, "rest": (B, 4), "x": 5, "y": 6}
    with pytest.raises(TypeError, match="missing a required argument"):
        _tree.bind(forward, (), {})
    with pytest.raises(TypeError):
        _tree.bind(lambda a: None, (1, 2), {})
