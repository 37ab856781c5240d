"""Inputs that are added to an example, or put in the place of some of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, InputsError
from regbn_surgery._added_inputs import with_specs
from regbn_surgery._cli.options import TensorSpec

LABELS = {"labels": TensorSpec((2,), "int64", (0, 9))}


class Takes(nn.Module):
    def forward(self, x: Any, batch: Any = None, labels: Tensor | None = None) -> Any:
        return x


def shapes(inputs: Any) -> tuple[list[Any], dict[str, Any]]:
    return [list(x.shape) for x in inputs.args], {k: list(x.shape) for k, x in inputs.kwargs.items()}


@pytest.mark.parametrize("example", [torch.zeros(2, 3), (torch.zeros(2, 3),), {"x": torch.zeros(2, 3)}])
def test_what_is_made_comes_beside_what_is_there(example: Any) -> None:
    args, kwargs = shapes(with_specs(Takes(), example, LABELS))
    assert (args, kwargs) in (([[2, 3]], {"labels": [2]}), ([], {"x": [2, 3], "labels": [2]}))


@pytest.mark.parametrize("example", [(torch.zeros(2, 3), torch.zeros(2)), Inputs(torch.zeros(2, 3), batch=1)])
def test_or_in_its_place_by_position_and_by_name(example: Any) -> None:
    found = with_specs(Takes(), example, {"x": TensorSpec((4, 5), "float32"), "batch": TensorSpec((4,), "float32")})
    named = dict(zip(("x", "batch"), found.args, strict=False)) | found.kwargs
    assert {name: list(value.shape) for name, value in named.items()} == {"x": [4, 5], "batch": [4]}


def test_inside_containers_what_is_not_named_stays_and_the_users_own_are_not_changed() -> None:
    batch = {"audio": torch.zeros(2, 4), "rest": [torch.zeros(2), torch.zeros(2, 1)]}
    specs = {"batch.rest.1": TensorSpec((2, 7), "float32"), "batch.new": TensorSpec((2,), "float32")}
    found = with_specs(Takes(), Inputs(torch.zeros(2), batch), specs)
    made = found.args[1]
    assert list(made["rest"][1].shape) == [2, 7]
    assert made["audio"] is batch["audio"]
    assert list(made["new"].shape) == [2]
    assert "new" not in batch
    assert list(batch["rest"][1].shape) == [2, 1]


def test_functions_and_two_calls() -> None:
    found = with_specs(Takes(), lambda size: (torch.zeros(size, 3),), LABELS)
    assert shapes(found(5)) == ([[5, 3]], {"labels": [2]})
    both = with_specs(Takes(), [(torch.zeros(2, 3),), (torch.zeros(2, 4),)], LABELS)
    assert [shapes(call) for call in both] == [([[2, 3]], {"labels": [2]}), ([[2, 4]], {"labels": [2]})]


def test_none_given() -> None:
    assert shapes(with_specs(Takes(), None, LABELS)) == ([], {"labels": [2]})


@pytest.mark.parametrize("name", ["x.deep", "batch.5"])
def test_a_name_that_leads_nowhere(name: str) -> None:
    with pytest.raises(InputsError, match=f"the input `{name}`: the example has a (Tensor|list)"):
        with_specs(Takes(), (torch.zeros(2), [torch.zeros(2)]), {name: TensorSpec((2,), "float32")})
