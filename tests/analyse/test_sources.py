"""Which inputs are modalities: by default, with the reason where one is not, and by the user's word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import InputsError
from regbn_surgery._analyse._sources import matches_input

from .reading import inspected, normal

IDS = torch.randint(0, 10, (4, 5), generator=torch.Generator().manual_seed(0))


def tokens(self: Any, image: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    return self.table(ids.view(-1, 5)[:, :4].long()).mean(1) + image + count[:, None]


def names(found: Any) -> list[str]:
    return [modality.name for modality in found.modalities]


def test_floats_and_ids_that_reach_a_table_are_modalities_and_others_are_told_why() -> None:
    example = {"image": normal(4, 8), "ids": IDS, "count": IDS[:, 0]}
    found = inspected(tokens, example, table=nn.Embedding(10, 8))
    assert names(found) == ["image", "ids"]
    assert [(x.name, x.reason) for x in found.excluded] == [("count", "int64 values that reach no embedding table")]


@pytest.mark.parametrize(
    "look_up",
    [
        lambda self, ids: self.table(ids),
        lambda self, ids: nn.functional.embedding(ids, self.table.weight),
        lambda self, ids: self.table.weight[ids],
        lambda self, ids: nn.functional.one_hot(ids, 10).float() @ self.table.weight,
        lambda self, ids: self.table(torch.cat([ids, ids], 1).clamp(0, 9)[:, :5]),
        lambda self, ids: self.table.weight.index_select(0, ids.flatten()).view(-1, 5, 8),
        lambda self, ids: torch.index_select(self.table.weight, dim=0, index=ids.view(-1)).unflatten(0, (-1, 5)),
        lambda self, ids: self.table.weight.gather(0, ids.view(-1, 1).expand(-1, 8)).view(-1, 5, 8),
    ],
)
def test_a_table_may_be_looked_up_in_any_way(look_up: Any) -> None:
    def forward(self: Any, image: Tensor, ids: Tensor) -> Tensor:
        return torch.cat([image, look_up(self, ids).mean(1)], -1)

    found = inspected(forward, {"image": normal(4, 8), "ids": IDS}, table=nn.Embedding(10, 8))
    assert names(found) == ["image", "ids"]
    assert [point.kind for point in found.fusion_points] == ["concat"]


@pytest.mark.parametrize(
    "name",
    ["attention_mask", "mask", "pixel_mask", "position_ids", "token_type_ids", "segment_ids", "lengths", "labels",
     "target", "targets", "target_ids", "text_target", "label", "labels_a", "batch.targets", "edge_index",
     "cache_position"],
)  # fmt: skip
def test_bookkeeping_is_left_out_by_its_name(name: str) -> None:
    def forward(self: Any, **given: Tensor) -> Tensor:
        return given["image"] * given[name]

    found = inspected(forward, {"image": normal(4, 8), name: normal(4, 8)})
    assert names(found) == ["image"]
    (left_out,) = found.excluded
    assert left_out.name == name
    assert "bookkeeping" in left_out.reason


@pytest.mark.parametrize(
    "name",
    [
        "image",
        "audio",
        "pixel_values",
        "input_ids",
        "x",
        "text",
        "video",
        "depth",
        "targeted",
        "targeted_panel",
        "labelled",
        "relabel",
    ],
)
def test_names_of_content_are_no_bookkeeping(name: str) -> None:
    def forward(self: Any, **given: Tensor) -> Tensor:
        return given[name] * 2

    assert names(inspected(forward, {name: normal(4, 8)})) == [name]


def three(self: Any, batch: dict[str, Tensor], pair: list[Tensor]) -> Tensor:
    return torch.cat([batch["rgb"], batch["depth"], *pair], -1)


EXAMPLE = {"batch": {"rgb": normal(4, 8), "depth": normal(4, 8)}, "pair": [normal(4, 8), normal(4, 8)]}


def test_the_user_names_inputs_globs_and_containers() -> None:
    found = inspected(three, EXAMPLE, {"sound": ["pair"], "look": ["batch.*"]})
    assert [(m.name, m.inputs) for m in found.modalities] == [
        ("sound", ("pair.0", "pair.1")), ("look", ("batch.rgb", "batch.depth")),
    ]  # fmt: skip
    assert found.excluded == ()
    only = inspected(three, EXAMPLE, {"look": "batch.rgb", "sound": ["pair.1"]})
    assert [(x.name, x.reason) for x in only.excluded] == [
        ("batch.depth", "no modality names it"), ("pair.0", "no modality names it"),
    ]  # fmt: skip


def test_names_that_are_not_there_and_claims_twice_are_errors() -> None:
    with pytest.raises(InputsError, match=r"'batch\.rbg', which the .*Did you mean 'batch\.rgb'"):
        inspected(three, EXAMPLE, {"look": ["batch.rbg"]})
    with pytest.raises(InputsError, match=r"'batch\.rgb' is claimed by the modalities 'a' and 'b'"):
        inspected(three, EXAMPLE, {"a": ["batch.rgb"], "b": ["batch"]})


def test_matching() -> None:
    assert matches_input("batch", "batch.rgb")
    assert matches_input("*.rgb", "batch.rgb")
    assert matches_input("pair.?", "pair.1")
    assert not matches_input("bat", "batch.rgb")
    assert not matches_input("Batch", "batch")


def test_branches_that_never_meet_are_told() -> None:
    found = inspected(lambda self, a, b: (a * 2, b * 3), {"a": normal(4, 8), "b": normal(4, 8)})
    assert found.fusion_points == ()
    assert "`a` never meets `b`" in found.notes
    single = inspected(lambda self, a: a * 2, {"a": normal(4, 8)})
    assert any("fewer than two modalities" in note for note in single.notes)
