"""How an example is read: what in it counts samples, and the same call with fewer or more of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regbn_surgery import _resizing
from regbn_surgery._resizing import Way


def resized(way: Way | None, count: int, **call: Any) -> dict[str, Any]:
    assert way is not None
    assert way.bears(count)
    args, kwargs = way.resized(((), call), count)
    assert args == ()
    return kwargs


def grid(*rows: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_patches_follow_the_grid_of_their_image() -> None:
    call = {
        "ids": torch.arange(6).view(3, 2),
        "patches": torch.arange(12.0)[:, None],
        "thw": grid((1, 2, 2), (1, 1, 6), (1, 2, 1)),
    }
    way = _resizing.by_segments(((), call))
    assert way is not None
    assert way.samples == 3
    two = resized(way, 2, **call)
    assert two["ids"].tolist() == [[0, 1], [2, 3]]
    assert two["thw"].tolist() == [[1, 2, 2], [1, 1, 6]]
    assert two["patches"].flatten().tolist() == list(range(10))
    four = resized(way, 4, **call)
    assert four["patches"].flatten().tolist() == [*range(12), *range(4)]


def test_images_that_are_no_multiple_of_the_samples_go_in_whole_copies_alone() -> None:
    call = {
        "ids": torch.zeros(2, 5).long(),
        "patches": torch.arange(8.0)[:, None],
        "thw": grid((1, 2, 2), (1, 1, 2), (1, 1, 2)),
    }
    way = _resizing.by_segments(((), call))
    assert way is not None
    assert (way.samples, way.bears(3), way.bears(4)) == (2, False, True)
    assert list(way.counts()) == [(2, 4)]
    four = resized(way, 4, **call)
    assert [len(four[name]) for name in ("ids", "patches", "thw")] == [4, 16, 6]
    assert four["patches"].flatten().tolist() == [*range(8), *range(8)]


def test_one_sample_is_given_twice_and_three_times() -> None:
    call = {"ids": torch.zeros(1, 5).long(), "patches": torch.zeros(8, 3), "thw": grid((1, 2, 4))}
    way = _resizing.by_segments(((), call))
    assert way is not None
    assert list(way.counts()) == [(2, 3)]
    assert [len(resized(way, 3, **call)[name]) for name in call] == [3, 24, 3]


@pytest.mark.parametrize("shape", [(9, 2), (1, 9, 2)])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_bounds_of_packed_sequences_are_counted_anew(shape: tuple[int, ...], as_numpy: bool) -> None:
    bounds: Any = torch.tensor([0, 2, 5, 9], dtype=torch.int32)
    tokens: Any = torch.arange(18.0).view(shape)
    if as_numpy:
        bounds, tokens = bounds.numpy(), tokens.numpy()
    call = {"tokens": tokens, "cu_seqlens": bounds, "frames": torch.arange(3.0)[:, None]}
    way = _resizing.by_segments(((), call))
    assert way is not None
    assert way.samples == 3
    two, four = resized(way, 2, **call), resized(way, 4, **call)
    assert two["cu_seqlens"].tolist() == [0, 2, 5]
    assert four["cu_seqlens"].tolist() == [0, 2, 5, 9, 11]
    assert type(two["cu_seqlens"]) is type(bounds)
    assert two["cu_seqlens"].dtype == bounds.dtype
    assert two["tokens"].shape == tuple(5 if size == 9 else size for size in shape)
    assert np.asarray(four["tokens"]).reshape(-1, 2)[9:, 0].tolist() == [0, 2]
    assert four["frames"].flatten().tolist() == [0, 1, 2, 0]


def test_graphs_of_a_batch_go_in_whole_copies_with_their_edges() -> None:
    call = {
        "x": torch.arange(5.0)[:, None],
        "edge_index": torch.tensor([[0, 1, 4], [1, 2, 3]]),
        "batch": torch.tensor([0, 0, 0, 1, 1]),
        "text": torch.zeros(2, 4),
    }
    way = _resizing.by_segments(((), call))
    assert way is not None
    assert list(way.counts()) == [(2, 4)]
    four = resized(way, 4, **call)
    assert four["batch"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert four["edge_index"].tolist() == [[0, 1, 4, 5, 6, 9], [1, 2, 3, 6, 7, 8]]
    assert four["x"].flatten().tolist() == [0, 1, 2, 3, 4] * 2


def test_lists_of_samples_and_the_tensors_beside_them() -> None:
    images = [torch.zeros(3, 4, size) for size in (4, 5, 6)]
    call = {"images": images, "names": ["a", "b", "c"], "ids": torch.arange(3), "scale": [1.0, 2.0]}
    way = _resizing.by_items(((), call))
    two = resized(way, 2, **call)
    assert two["images"] == images[:2]
    assert (two["names"], two["ids"].tolist(), two["scale"]) == (["a", "b"], [0, 1], [1.0, 2.0])
    assert [image.shape[-1] for image in resized(way, 5, **call)["images"]] == [4, 5, 6, 4, 5]
    assert len(images) == 3


def test_several_rows_for_each_sample() -> None:
    call = {"views": torch.arange(6.0), "text": torch.arange(2.0)}
    way = _resizing.by_multiples(((), call))
    assert resized(way, 3, **call)["views"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert _resizing.by_multiples(((), {"a": torch.zeros(4), "b": torch.zeros(5)})) is None
    assert _resizing.by_segments(((), {"a": torch.zeros(4, 2), "b": torch.zeros(5, 2)})) is None


def test_packed_sequences_of_torch_are_unpacked_for_it() -> None:
    padded = torch.arange(12.0).view(3, 4)
    packed = pack_padded_sequence(padded, torch.tensor([2, 4, 3]), batch_first=True, enforce_sorted=False)
    call = {"seq": packed, "text": torch.zeros(3, 5)}
    way = _resizing.along(((), call), 0, 3, lists=False)
    rows, lengths = pad_packed_sequence(resized(way, 4, **call)["seq"], batch_first=True)
    assert lengths.tolist() == [2, 4, 3, 2]
    assert rows[1].tolist() == [4, 5, 6, 7]
