"""The user's example as they have it: it runs as given first, and is cut or repeated as far as the model bears it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from regbn_surgery import CaptureError, Inputs, RegBN, inspect, plan, regbnify, trace, verify
from regbn_surgery._surgery import identity

from ..zoo.hf._tiny import TEXT, WIDTH

Rules = dict[str, Any]


def rules(normalize: str, modalities: Any = None) -> Rules:
    said = {} if modalities is None else {"modalities": modalities}
    rule = {"id": "a", "match": {"point": "**"}, "normalize": normalize, "regbn": {"normalize_output": False}}
    return {"version": 1, **said, "rules": [rule]}


def regbns(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, RegBN)]


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(*inputs.args, **inputs.kwargs)
    return found


def rewritten(model: nn.Module, example: Any, normalize: str, *others: Inputs, modalities: Any = None) -> nn.Module:
    """Inspected, planned and rewritten from the example; in other calls it computes what it did while W is 0."""
    found = inspect(model, example, modalities)
    assert [site.obstacle for point in found.fusion_points for site in point.sites] == [None] * len(found.fusion_points)
    assert plan(model, rules(normalize, modalities), example).sites
    model = model.eval()
    result = regbnify(model, rules(normalize, modalities), example)
    assert len(regbns(result)) == len(found.fusion_points)
    for inputs in others:
        torch.testing.assert_close(call(result, inputs), call(model, inputs))
        assert verify(result, inputs).ok
    return result


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(32, 3)

    def fuse(self, image: Tensor, table: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.image(image), self.table(table)], dim=1))
        return found


# -- containers -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    image: Any
    table: Any


class AttributeDict(dict[str, Any]):
    __getattr__ = dict.__getitem__


class ByField(TwoTowers):
    def forward(self, batch: Any) -> Tensor:
        return self.fuse(batch.image, batch.table)


class ByKey(TwoTowers):
    def __init__(self, convert: Callable[[Any], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.convert = convert

    def forward(self, batch: Any) -> Tensor:
        return self.fuse(self.convert(batch["image"]), self.convert(batch["table"]))


def fields(samples: int) -> dict[str, Tensor]:
    return {"image": torch.randn(samples, 8), "table": torch.randn(samples, 6)}


@pytest.mark.parametrize("kind", [SimpleNamespace, Record, AttributeDict])
@pytest.mark.parametrize("alone", [False, True])
def test_objects_with_fields_are_batches(kind: Callable[..., Any], alone: bool) -> None:
    example = kind(**fields(4))
    other = Inputs(kind(**fields(5)))
    rewritten(ByField(), example if alone and kind is not AttributeDict else (example,), "batch.image", other)


def test_what_processors_return_is_a_batch() -> None:
    from transformers import BatchEncoding, BatchFeature

    for kind in (BatchEncoding, BatchFeature):
        rewritten(ByKey(), (kind(fields(4)),), "batch.image", Inputs(kind(fields(3))))


@pytest.mark.parametrize("convert", [torch.from_numpy, torch.as_tensor, torch.tensor])
def test_numpy_arrays_are_inputs(convert: Callable[[Any], Tensor]) -> None:
    arrays = [{name: tensor.numpy() for name, tensor in fields(size).items()} for size in (4, 5)]
    kept = arrays[0]["image"].copy()
    model = ByKey(convert)
    rewritten(model, (arrays[0],), "batch.image", Inputs(arrays[1]))
    np.testing.assert_array_equal(arrays[0]["image"], kept)


class ArraysAndTensors(TwoTowers):
    def forward(self, image: Any, table: Tensor) -> Tensor:
        scaled = torch.as_tensor(image, dtype=torch.float32) / 255
        return self.fuse(scaled, table)


def test_an_array_of_another_type_is_followed_through_its_cast() -> None:
    def inputs(samples: int) -> Inputs:
        return Inputs((np.arange(samples * 8) % 255).reshape(samples, 8).astype(np.float64), torch.randn(samples, 6))

    rewritten(ArraysAndTensors(), inputs(4), "image", inputs(3))


# -- no batch axis that all inputs share ------------------------------------------------------------------------------


class RaggedImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Embedding(30, 8), nn.Linear(16, 3)

    def forward(self, images: list[Tensor], ids: Tensor) -> Tensor:
        pooled = torch.stack([self.conv(image[None]).mean((0, 2, 3)) for image in images])
        found: Tensor = self.head(torch.cat([pooled, self.table(ids).mean(1)], dim=1))
        return found


def images(*sizes: int) -> list[Tensor]:
    return [torch.randn(3, 7, size) for size in sizes]


@pytest.mark.parametrize("modalities", [None, {"images": ["images"], "ids": ["ids"]}])
@pytest.mark.parametrize("sizes", [(8, 6), (8, 9, 7), (5, 6, 7, 8)])  # three images have three channels as well
def test_a_ragged_list_of_images_is_a_batch(sizes: tuple[int, ...], modalities: Any) -> None:
    example = (images(*sizes), torch.randint(0, 30, (len(sizes), 5)))
    others = [Inputs(images(*[9] * count), torch.randint(0, 30, (count, 4))) for count in (2, 5)]
    rewritten(RaggedImages(), example, "images", *others, modalities=modalities)


class ListOfSamples(TwoTowers):
    def forward(self, samples: list[dict[str, Tensor]]) -> Tensor:
        image = torch.stack([self.image(sample["image"]).mean(0) for sample in samples])
        table = torch.stack([self.table(sample["table"]) for sample in samples])
        found: Tensor = self.head(torch.cat([image, table], dim=1))
        return found


def test_a_list_of_dicts_is_a_batch_of_two_modalities() -> None:
    def samples(*lengths: int) -> list[dict[str, Tensor]]:
        return [{"image": torch.randn(length, 8), "table": torch.randn(6)} for length in lengths]

    model = rewritten(ListOfSamples(), Inputs(samples(4, 7, 5)), "samples.image", Inputs(samples(3, 4)))
    assert verify(model, Inputs(samples(3, 4, 5, 6, 7))).ok


class PackedText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.frames, self.head = nn.Embedding(30, 8), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, frames: Tensor, cu_seqlens: Tensor) -> Tensor:
        tokens, lengths = self.table(input_ids).flatten(0, -2), cu_seqlens.diff()
        owner = torch.arange(len(lengths)).repeat_interleave(lengths.long())
        text = torch.zeros(len(lengths), 8).index_add(0, owner, tokens) / lengths[:, None]
        found: Tensor = self.head(torch.cat([text, self.frames(frames)], dim=1))
        return found


@pytest.mark.parametrize("leading", [(), (1,)])
def test_packed_sequences_with_their_bounds(leading: tuple[int, ...]) -> None:
    def inputs(*lengths: int) -> Inputs:
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        ids = torch.randint(0, 30, (*leading, sum(lengths)))
        return Inputs(input_ids=ids, frames=torch.randn(len(lengths), 5), cu_seqlens=bounds)

    rewritten(PackedText(), inputs(4, 5, 2), "input_ids", inputs(3, 6), inputs(1, 2, 3, 4))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.text, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, sequence: Any, text: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.lstm(sequence)[1][0][-1], self.text(text)], dim=1))
        return found


def test_a_packed_sequence_of_torch_is_an_input() -> None:
    def inputs(*lengths: int) -> Inputs:
        padded = torch.randn(len(lengths), max(lengths), 6)
        packed = pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        return Inputs(packed, torch.randn(len(lengths), 5))

    rewritten(Reader(), inputs(7, 3, 5, 2), "sequence", inputs(2, 4, 3))


class ThreeViews(TwoTowers):
    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        pooled = self.image(image).view(len(table), -1, 16).mean(1)
        found: Tensor = self.head(torch.cat([pooled, self.table(table)], dim=1))
        return found


def test_several_images_to_a_sample() -> None:
    rewritten(
        ThreeViews(), (torch.randn(12, 8), torch.randn(4, 6)), "image", Inputs(torch.randn(6, 8), torch.randn(3, 6))
    )


# -- models that bear their own size alone ----------------------------------------------------------------------------


class Groups(nn.Module):
    """A batch of groups: samples are fused by the four."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(16 * size, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (z.view(-1, self.size * 8) for z in (self.a(x), self.b(y)))
        found: Tensor = self.head(torch.cat([a, b], dim=1))
        return found


@pytest.mark.parametrize(("size", "samples"), [(4, 8), (4, 12), (5, 10), (3, 6)])
def test_samples_in_groups(size: int, samples: int) -> None:
    other = Inputs(torch.randn(size * 3, 5), torch.randn(size * 3, 6))
    rewritten(Groups(size), (torch.randn(samples, 5), torch.randn(samples, 6)), "x", other)


class Bank(TwoTowers):
    """A memory with a row for each sample of the one batch size that it works with."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(rows, 16))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.image(image) + self.rows, self.table(table)], dim=1))
        return found


def test_a_model_of_one_batch_size_runs_as_given_and_the_note_says_so() -> None:
    example = tuple(fields(6).values())
    for given in (example, lambda _: example):
        found = inspect(Bank(6), given)
        assert [point.kind for point in found.fusion_points] == ["concat"]
    (note,) = inspect(Bank(6), example).notes
    assert note.startswith(
        "RB012 the model runs on the example itself, but not on another number of samples made from it"
    )
    assert "[one, other]" in note
    assert "works without" not in note


def test_the_example_runs_as_given_before_all_else() -> None:
    seen: list[int] = []

    class Counting(TwoTowers):
        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            seen.append(len(image))
            return self.fuse(image, table)

    inspect(Counting(), tuple(fields(6).values()))
    assert seen[0] == 6
    assert set(seen[1:]) == {2, 3}


def test_a_call_that_fails_by_itself_is_told_as_it_was_given() -> None:
    with pytest.raises(CaptureError, match=r"float32\[6, 7\].*Check that the same call works without regbn_surgery"):
        inspect(ThreeViews(), (torch.randn(6, 7), torch.randn(6, 6)))


class WantsTargets(TwoTowers):
    def forward(self, image: Tensor, table: Tensor, target: Tensor | None = None) -> Tensor:
        scores = self.fuse(image, table)
        if not self.training:
            return scores
        if target is None:
            raise ValueError("in training, target is wanted")
        return nn.functional.cross_entropy(scores, target)


def test_evaluation_alone_is_enough_where_training_wants_targets() -> None:
    example = fields(4)
    model = rewritten(WantsTargets(), example, "image", Inputs(**fields(3)))
    (note,) = inspect(WantsTargets(), example).notes
    assert "training mode" in note
    assert "in training, target is wanted" in note
    loss = model.train()(**fields(5), target=torch.zeros(5, dtype=torch.long))
    loss.backward()
    assert not inspect(WantsTargets(), {**example, "target": torch.zeros(4, dtype=torch.long)}).notes


def test_a_cut_that_only_training_does_not_bear_is_not_taken_for_missing_targets() -> None:
    class GroupsInTraining(Groups):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if self.training and len(x) % self.size:
                raise ValueError("whole groups are wanted")
            found: Tensor = self.head(torch.cat([self.a(x), self.b(y)], dim=1).repeat(1, self.size))
            return found

    found = inspect(GroupsInTraining(), (torch.randn(8, 5), torch.randn(8, 6)))
    assert found.notes == ()
    assert found.fusion_points[0].modes == ("eval", "train")


# -- a second example -------------------------------------------------------------------------------------------------


class KnowsItsSize(TwoTowers):
    def forward(self, image: Tensor, table: Tensor, samples: int) -> Tensor:
        if len(image) != samples:
            raise ValueError(f"{samples} samples were said")
        return self.fuse(image, table)


def test_a_second_example_of_another_batch_size() -> None:
    one, other = ((*fields(size).values(), size) for size in (4, 5))
    assert inspect(KnowsItsSize(), one).fusion_points[0].sites[0].obstacle is not None
    model = rewritten(KnowsItsSize(), [one, other], "image", Inputs(*fields(6).values(), 6))
    assert trace(model, [one, other]).nodes


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image, self.audio = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(7, 8)
        self.seen, self.heard = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, text: Tensor, image: Tensor | None = None, audio: Tensor | None = None) -> Tensor:
        words = self.text(text)
        if image is not None:
            seen: Tensor = self.seen(torch.cat([self.image(image), words], dim=1))
            return seen
        heard: Tensor = self.heard(self.audio(audio) * words)
        return heard


@pytest.mark.parametrize("modalities", [None, {"text": ["text"], "image": ["image"], "audio": ["audio"]}])
def test_a_second_example_goes_another_path(modalities: Any) -> None:
    def seen(samples: int) -> dict[str, Tensor]:
        return {"text": torch.randn(samples, 5), "image": torch.randn(samples, 6)}

    def heard(samples: int) -> dict[str, Tensor]:
        return {"text": torch.randn(samples, 5), "audio": torch.randn(samples, 7)}

    for example in ([seen(4), heard(3)], [heard(4), seen(4)]):
        found = inspect(TwoWays(), example, modalities)
        assert sorted(point.kind for point in found.fusion_points) == ["concat", "product"]
        model = TwoWays().eval()
        result = regbnify(model, rules("text", modalities), example)
        for inputs in (seen(5), heard(6)):
            torch.testing.assert_close(call(result, Inputs(**inputs)), call(model, Inputs(**inputs)))
            ran = verify(result, inputs)
            assert sorted(site.runs for site in ran.sites) == [0, 1]
        both = verify(result, example)
        assert both.ok
        assert [site.runs for site in both.sites] == [1, 1]
        assert not verify(result, [seen(3), seen(4)]).ok


# -- vision-language models with flattened patches --------------------------------------------------------------------

_IDS = {"image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 96, "vision_end_token_id": 97}
_EYES = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _text(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    return {**TEXT, "num_key_value_heads": 4, "pad_token_id": 1, "rope_parameters": rope, **more}


def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    eyes = {**_EYES, "embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=_text(), vision_config=eyes, **_IDS))


def qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    eyes = {**_EYES, "hidden_size": WIDTH, "intermediate_size": 40, "out_hidden_size": WIDTH}
    eyes |= {"window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=_text(), vision_config=eyes, **_IDS))


def qwen3_vl() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    eyes = {**_EYES, "hidden_size": WIDTH, "intermediate_size": 40, "out_hidden_size": WIDTH}
    eyes |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=_text(head_dim=8), vision_config=eyes, **_IDS))


def glm4v() -> nn.Module:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    eyes = {**_EYES, "hidden_size": WIDTH, "intermediate_size": 40, "out_hidden_size": WIDTH, "image_size": 16}
    ids = {"image_token_id": 99, "video_token_id": 98, "image_start_token_id": 96, "image_end_token_id": 97}
    ids |= {"video_start_token_id": 94, "video_end_token_id": 95}
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=_text(), vision_config=eyes, **ids))


Grid = tuple[int, int, int]


def processed(*samples: list[Grid], video: bool = False) -> dict[str, Tensor]:
    """What a processor makes of texts, each with images of its own: padded ids, and all patches in one flat batch."""
    token, rows = 98 if video else 99, []
    for grids in samples:
        row = [id_ for t, h, w in grids for id_ in (96, *[token] * (t * h * w // 4), 97)]
        rows.append(row + torch.randint(3, 90, (6,)).tolist())
    length = max(map(len, rows))
    ids = torch.tensor([[1] * (length - len(row)) + row for row in rows])
    grid = torch.tensor([list(each) for grids in samples for each in grids])
    patches = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 1).long(),
        "pixel_values_videos" if video else "pixel_values": patches,
        "video_grid_thw" if video else "image_grid_thw": grid,
        "mm_token_type_ids": (ids == token).int() * (2 if video else 1),
    }


_SAMPLES: dict[str, list[list[Grid]]] = {
    "alike": [[(1, 4, 4)]] * 2,
    "ragged": [[(1, 4, 4)], [(1, 4, 8)], [(1, 8, 4)]],
    "several images": [[(1, 4, 4)], [(1, 4, 8), (1, 4, 4)]],
    "one": [[(1, 4, 4)]],
}


@pytest.mark.parametrize("build", [qwen2_vl, qwen2_5_vl, qwen3_vl, glm4v])
@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(each, id=name, marks=[pytest.mark.slow] if name == "alike" else [])
        for name, each in _SAMPLES.items()
    ],
)
def test_one_batch_of_a_processor_is_enough(build: Callable[[], nn.Module], samples: list[list[Grid]]) -> None:
    from transformers import BatchFeature

    torch.manual_seed(0)
    model, modalities = build().eval(), {"image": ["pixel_values"], "text": ["input_ids"]}
    example = BatchFeature(processed(*samples))
    found = inspect(model, example, modalities)
    (point,) = (point for point in found.fusion_points if point.kind == "scatter")
    assert point.sites[0].obstacle is None
    assert {side.home for side in point.sites[0].sides} == {("image",), ("text",)}
    rule = {"id": "s", "match": {"kind": "scatter"}, "normalize": "text", "against": "image"}
    result = regbnify(model, {"version": 1, "modalities": modalities, "rules": [rule]}, example)
    other = processed([(1, 8, 4)], [(1, 4, 4), (1, 4, 4)], [(1, 4, 8)])
    with torch.no_grad(), identity():
        torch.testing.assert_close(result(**other).logits, model(**other).logits)
    assert verify(result, other).ok


@pytest.mark.parametrize("build", [qwen2_vl, qwen2_5_vl])
def test_images_and_videos_are_two_examples(build: Callable[[], nn.Module]) -> None:
    modalities = {"image": ["pixel_values"], "video": ["pixel_values_videos"], "text": ["input_ids"]}
    torch.manual_seed(0)
    model = build().eval()
    example = [processed([(1, 4, 4)], [(1, 8, 4)]), processed([(2, 4, 4)], [(2, 4, 4)], video=True)]
    found = inspect(model, example, modalities)
    homes = [{side.home for side in point.sites[0].sides} for point in found.fusion_points]
    assert homes == [{("image",), ("text",)}, {("video",), ("text",)}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = regbnify(model, rules("text", modalities), example)
    assert len(regbns(result)) == 2
    video = processed([(4, 4, 4)], [(2, 4, 8)], [(2, 4, 4)], video=True)
    with torch.no_grad(), identity():
        torch.testing.assert_close(result(**video).logits, model(**video).logits)


class GrayImages(RaggedImages):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)


def test_a_ragged_list_of_images_with_one_channel_is_no_batch_of_one() -> None:
    def inputs(*sizes: int) -> Inputs:
        return Inputs([torch.randn(1, 7, size) for size in sizes], torch.randint(0, 30, (len(sizes), 5)))

    rewritten(GrayImages(), inputs(8, 6, 7), "images", inputs(5, 9))
