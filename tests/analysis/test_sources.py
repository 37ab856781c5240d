"""Which inputs are modalities: by default, with the reason where one is not, and by the user's word."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import InputsError
from regbn_surgery._analysis._sources import matches_input

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
        lambda self, ids: self.table((ids * 7 + 3) % 10),  # hashed into a small table
        lambda self, ids: self.table(ids % 2 + torch.arange(0, 10, 2)),  # fields that share a table
        lambda self, ids: self.table((ids ^ (ids >> 1)).remainder(10)),
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
     "edge_weight", "adj", "graph.adjacency", "cache_position"],
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


@pytest.mark.parametrize("name", ["attention_mask", "pixel_mask", "position_ids", "labels", "count"])
def test_what_is_no_content_is_told_alike_whether_modalities_are_named_or_not(name: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor, **rest: Tensor) -> Tensor:
        return torch.cat([a, b], -1) * rest[name][:, :1]

    example = {"a": normal(4, 8), "b": normal(4, 8), name: torch.ones(4, 8, dtype=torch.long)}
    (alone,) = inspected(forward, example).excluded
    (named,) = inspected(forward, example, {"left": ["a"], "right": ["b"]}).excluded
    assert named == alone
    assert alone.name == name
    assert inspected(forward, example, {"left": ["a"], "right": ["b"], "more": [name]}).excluded == ()


def test_names_that_are_not_there_and_claims_twice_are_errors() -> None:
    with pytest.raises(InputsError, match=r"'batch\.rbg', which the .*Did you mean 'batch\.rgb'"):
        inspected(three, EXAMPLE, {"look": ["batch.rbg"]})
    with pytest.raises(InputsError, match=r"'batch\.rgb' belongs to two modalities, 'a' and 'b'"):
        inspected(three, EXAMPLE, {"a": ["batch.rgb"], "b": ["batch"]})


def test_matching() -> None:
    assert matches_input("batch", "batch.rgb")
    assert matches_input("*.rgb", "batch.rgb")
    assert matches_input("pair.?", "pair.1")
    assert matches_input("**.rgb", "data.batch.rgb")
    assert not matches_input("*", "batch.rgb")  # as in rules files: within one segment
    assert not matches_input("bat", "batch.rgb")
    assert not matches_input("Batch", "batch")


def test_branches_that_never_meet_are_told() -> None:
    found = inspected(lambda self, a, b: (a * 2, b * 3), {"a": normal(4, 8), "b": normal(4, 8)})
    assert found.fusion_points == ()
    assert "RB002 `a` never meets `b`" in found.notes
    single = inspected(lambda self, a: a * 2, {"a": normal(4, 8)})
    assert any("fewer than two modalities" in note for note in single.notes)


def stretch(low: int, high: int | None, dim: int = 1) -> dict[str, Any]:
    return {"inputs": ["x"], "slice": {"dim": dim, "range": [low, high]}}


@pytest.mark.parametrize(
    "part",
    [
        lambda x: (x[:, :8], x[:, 8:]),
        lambda x: x.split([8, 3], 1),
        lambda x: (x.narrow(1, 0, 8), x.narrow(-1, 8, 3)),
        lambda x: (x * 2).relu().split_with_sizes([8, 3], -1),
    ],
)
def test_stretches_of_one_input_are_modalities(part: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = part(x)
        return torch.cat([self.left(left), self.right(right)], -1)

    layers = {"left": nn.Linear(8, 6), "right": nn.Linear(3, 6)}
    modalities = {"left": stretch(0, 8), "right": stretch(8, None, dim=-1)}
    found = inspected(forward, {"x": normal(4, 11)}, modalities, **layers)
    assert [(m.name, m.roots) for m in found.modalities] == [("left", ("x[:, 0:8]",)), ("right", ("x[:, 8:]",))]
    assert [(p.kind, p.homes) for p in found.fusion_points] == [("concat", (("left",), ("right",)))]


def test_channels_of_an_image_that_no_call_parts_are_told_of() -> None:
    modalities = {"rgb": stretch(0, 3), "depth": stretch(3, 4)}
    found = inspected(lambda self, x: self.conv(x), {"x": normal(4, 4, 8, 8)}, modalities, conv=nn.Conv2d(4, 6, 3))
    assert not found.fusion_points
    assert any("`rgb` and `depth` are slices of one input, and Conv2d `conv` at" in note for note in found.notes)


def test_a_concatenation_that_joins_what_has_met_is_no_stretch_of_an_input() -> None:
    def forward(self: Any, points: Tensor, image: Tensor) -> Tensor:
        given = torch.cat([points, image], -1)
        return self.second(torch.cat([self.first(given), given], -1))

    example = {"points": normal(4, 3), "image": normal(4, 5)}
    found = inspected(forward, example, first=nn.Linear(8, 8), second=nn.Linear(16, 2))
    assert [point.kind for point in found.fusion_points] == ["concat"]
    assert not found.notes


def test_what_no_stretch_covers_belongs_to_nobody() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :4]), self.middle(x[:, 4:8]), self.right(x[:, 8:])], -1)

    layers = {"left": nn.Linear(4, 5), "middle": nn.Linear(4, 5), "right": nn.Linear(4, 5)}
    modalities = {"left": stretch(0, 4), "right": stretch(8, 12)}
    (point,) = inspected(forward, {"x": normal(4, 12)}, modalities, **layers).fusion_points
    assert point.homes == (("left",), ("right",))

    def without_the_right(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :4]), self.middle(x[:, 4:8])], -1)

    assert not inspected(without_the_right, {"x": normal(4, 12)}, modalities, **layers).fusion_points


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"a": stretch(0, 8), "b": stretch(7, 11)}, "slices overlap"),
        ({"a": stretch(0, 8), "b": stretch(0, 2, dim=0)}, r"along different axes \(1 and 0\)"),
        ({"a": stretch(0, 8), "b": ["x"]}, "give each a slice"),
        ({"a": stretch(0, 8, dim=2)}, r"along axis 2, but its shape is \(2, 11\)"),
        ({"a": stretch(0, 12)}, "which has 11 there"),
        ({"a": {"modules": ["lef"]}}, r"called were: 'left', 'right'\. Did you mean 'left'\?"),
        ({"a": {"modulse": ["left"]}}, "modulse: Extra inputs are not permitted"),
        ({"a": ["x[0]"]}, r"bad glob `x\[0\]`"),
        ({"a": {"modules": ["re:("]}}, r"bad regular expression `\(`"),
    ],
)
def test_modalities_that_cannot_be_are_refused(modalities: Any, message: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], -1)

    with pytest.raises(InputsError, match=message):
        inspected(forward, {"x": normal(4, 11)}, modalities, left=nn.Linear(11, 6), right=nn.Linear(11, 6))


@pytest.mark.parametrize("pattern", ["text", "text.**", "te*", "re:text|nothing"])
def test_the_outputs_of_modules_begin_branches(pattern: str) -> None:
    """Whatever went into the encoder, and whichever of its own modules fit the pattern as well."""

    def forward(self: Any, x: Tensor, image: Tensor) -> Tensor:
        return torch.cat([self.text(x + image.mean()) * 2, self.image(image)], -1)

    layers = {"text": nn.Sequential(nn.Linear(5, 6), nn.ReLU()), "image": nn.Linear(8, 6)}
    modalities = {"text": {"modules": [pattern]}, "image": {"inputs": ["image"]}}
    found = inspected(forward, {"x": normal(4, 5), "image": normal(4, 8)}, modalities, **layers)
    assert found.modalities[0].roots == (f"module:{pattern}",)
    assert [(p.kind, p.level, p.homes) for p in found.fusion_points] == [("concat", "late", (("text",), ("image",)))]


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 6)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.inner(x) + image


def test_a_branch_begins_at_the_outermost_module_that_fits() -> None:
    """So that nothing meets inside of it."""

    def forward(self: Any, x: Tensor, image: Tensor) -> Tensor:
        image = self.image(image)
        return torch.cat([self.text(x, image), image], -1)

    modalities = {"text": {"modules": ["re:text.*"]}, "image": {"inputs": ["image"]}}
    example = {"x": normal(4, 5), "image": normal(4, 8)}
    found = inspected(forward, example, modalities, text=Conditioned(), image=nn.Linear(8, 6))
    assert [point.kind for point in found.fusion_points] == ["concat"]


def test_a_leaf_that_hands_on_its_input_begins_a_branch_all_the_same() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x) * 2], -1)

    modalities = {"first": {"modules": ["first"]}, "second": {"modules": ["second"]}}
    found = inspected(forward, {"x": normal(4, 5)}, modalities, first=nn.Linear(5, 6), second=nn.Identity())
    assert [p.homes for p in found.fusion_points] == [(("first",), ("second",))]


def test_a_detour_through_numpy_is_reported_with_its_line_and_constants_are_not() -> None:
    table, kept = normal(6), [normal(6)]

    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        out = torch.from_numpy(self.first(x).detach().numpy() ** 2)
        return torch.cat([out + table + kept[0], self.second(y)], -1)

    found = inspected(forward, {"x": normal(4, 5), "y": normal(4, 5)}, first=nn.Linear(5, 6), second=nn.Linear(5, 6))
    (gap,) = [note for note in found.notes if "cannot be followed" in note]
    assert "test_sources.py:" in gap
    assert "(2, 6)" in gap
    assert not [note for note in found.notes if "never meets" in note], "that is not known"
    (apart,) = [note for note in found.notes if "is not seen to meet" in note]
    assert re.search(
        r"^RB004 `x` is not seen to meet `y`: its stream may go on in values .* at .*test_sources.py:\d+$", apart
    )


ENDS: dict[str, Any] = {
    "its stream ends at .*, where `gt` makes no features of it$": lambda self, a, b: a.masked_fill(
        self.two(b) > 0, 0.0
    ),
    "its stream ends at .*, where `nonzero` makes no features of it$": (
        lambda self, a, b: a[:, torch.nonzero(self.two(b)[0]).flatten()]
    ),
    "its stream may go on in values that are read into Python at ": (
        lambda self, a, b: a * (2 if self.two(b).sum().item() > 0 else 3)
    ),
}


@pytest.mark.parametrize("words", ENDS)
def test_the_line_at_which_a_stream_ends_is_told(words: str) -> None:
    found = inspected(ENDS[words], {"a": normal(4, 6), "b": normal(4, 6)}, two=nn.Linear(6, 6))
    (note,) = [note for note in found.notes if "meet" in note]
    assert re.search("^RB004 `b` is not seen to meet `a`: " + words, note)
    assert "test_sources.py:" in note


def test_a_stream_that_ends_is_told_once_for_all_that_it_does_not_meet() -> None:
    def forward(self: Any, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return a.masked_fill(b > 0, 0.0), c

    found = inspected(forward, {name: normal(4, 6) for name in "abc"})
    assert [note.split(":")[0] for note in found.notes] == [
        "RB002 `a` never meets `c`",
        "RB004 `b` is not seen to meet `a` or `c`",
    ]


def test_streams_that_a_call_takes_together_as_one_batch_are_told() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        both = self.two(torch.cat([a, b]))
        return both @ both.t()

    (note,) = inspected(forward, {"a": normal(4, 6), "b": normal(4, 6)}, two=nn.Linear(6, 6)).notes
    assert "`a` is not seen to meet `b`: they are stacked into one batch, which `matmul` at" in note


def test_values_read_by_the_modules_of_a_class_are_one_note() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.mean() > 100:
                return x
            return x * float(x.max())

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        for module in (self.one, self.two):
            a, b = module(a), module(b)
        return a + b

    found = inspected(forward, {"a": normal(4, 6), "b": normal(4, 6)}, one=Asks(), two=Asks())
    (note,) = found.notes
    assert note.startswith("RB009 tensor values are read into Python: `Asks` at ")
    assert note.count("test_sources.py:") == 2


@pytest.mark.parametrize(
    ("fused", "expected"),
    [
        (lambda f, g: torch.cat([torch.vmap(lambda row: row * row.sum())(f), g], -1), "concat"),
        (lambda f, g: torch.vmap(lambda a, b: torch.cat([a, b]))(f, g), "module"),
        (lambda f, g: torch.vmap(lambda a: a + g.mean(0))(f), "module"),
    ],
)
def test_lineage_goes_through_vmap(fused: Any, expected: str) -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return fused(self.first(x), self.second(y))

    found = inspected(forward, {"x": normal(4, 5), "y": normal(4, 5)}, first=nn.Linear(5, 6), second=nn.Linear(5, 6))
    assert [(p.kind, p.homes) for p in found.fusion_points] == [(expected, (("x",), ("y",)))]


def test_what_meets_under_vmap_is_no_place_for_regbn() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.vmap(lambda a, b: torch.cat([a, b]))(self.first(x), self.second(y))

    found = inspected(forward, {"x": normal(4, 5), "y": normal(4, 5)}, first=nn.Linear(5, 6), second=nn.Linear(5, 6))
    assert "torch.vmap" in str(found.fusion_points[0].sites[0].obstacle)
