"""Whole numbers that are computed from features carry the modality on where a table is read by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reading import homes, normal, points, told

IDS = torch.randint(1, 20, (4, 7), generator=torch.Generator().manual_seed(0))
EXAMPLE = {"ids": IDS, "image": normal(4, 5, 6)}
BOTH = {"text": ["ids"], "image": ["image"]}

CODES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "argmin": lambda self, z: torch.cdist(z, self.codes.weight.expand(len(z), -1, -1)).argmin(-1),
    "argmin by hand": lambda self, z: (z.square().sum(-1, keepdim=True) - 2 * z @ self.codes.weight.t()).argmin(-1),
    "argmax": lambda self, z: torch.argmax(z @ self.codes.weight.t(), dim=-1),
    "max": lambda self, z: (z @ self.codes.weight.t()).max(-1)[1],
    "topk": lambda self, z: (z @ self.codes.weight.t()).topk(1, dim=-1).indices.squeeze(-1),
    "sort": lambda self, z: (z @ self.codes.weight.t()).sort(-1).indices[..., -1],
    "argsort": lambda self, z: (z @ self.codes.weight.t()).argsort(-1)[..., 0],
    "bucketize": lambda self, z: torch.bucketize(z.mean(-1), torch.linspace(-1, 1, 8)),
    "searchsorted": lambda self, z: torch.searchsorted(torch.linspace(-1, 1, 8), z.mean(-1).contiguous()),
    "round": lambda self, z: (z.mean(-1).sigmoid() * 8).round().long(),
    "multinomial": lambda self, z: torch.multinomial(z.flatten(0, 1).softmax(-1), 1).view(z.shape[:2]),
}
LOOKED_UP: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "embedding": lambda self, codes: self.words(codes + 20),
    "index": lambda self, codes: self.words.weight[codes],
    "index_select": lambda self, codes: self.words.weight.index_select(0, codes.flatten()).view(*codes.shape, 8),
    "gather": lambda self, codes: self.words.weight.gather(0, codes.reshape(-1, 1).expand(-1, 8)).view(-1, 5, 8),
    "take": lambda self, codes: torch.take(self.words.weight, codes[..., None] * 8 + torch.arange(8)),
    "one_hot": lambda self, codes: F.one_hot(codes, 9).float() @ self.words.weight[:9],
    "scatter": lambda self, codes: self.hot(torch.zeros(*codes.shape, 9).scatter_(-1, codes[..., None], 1.0)),
    "eye": lambda self, codes: self.hot(torch.eye(9)[codes]),
    "where": lambda self, codes: self.words(torch.where(codes > 5, torch.zeros_like(codes), codes)),
}


def layers() -> dict[str, nn.Module]:
    mix = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    return {
        "patch": nn.Linear(6, 8), "codes": nn.Embedding(8, 8), "words": nn.Embedding(30, 8), "mix": mix,
        "hot": nn.Linear(9, 8),
    }  # fmt: skip


@pytest.mark.parametrize("made", CODES)
@pytest.mark.parametrize("looked_up", LOOKED_UP)
def test_a_stream_goes_on_through_a_code_book(made: str, looked_up: str) -> None:
    def forward(self: Any, ids: Tensor, image: Tensor) -> Tensor:
        codes = CODES[made](self, self.patch(image))
        return self.mix(torch.cat([self.words(ids), LOOKED_UP[looked_up](self, codes)], 1))

    assert told(forward, EXAMPLE, BOTH, **layers()) == [("concat", {"text", "image"})]


INTO_IDS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cat": ("concat", lambda ids, codes: torch.cat([ids, codes + 20], 1)),
    "masked_scatter": ("scatter", lambda ids, codes: ids.masked_scatter(torch.arange(7) < 5, codes)),
    "where": ("sum", lambda ids, codes: torch.where(torch.arange(7) < 5, F.pad(codes, (0, 2)), ids)),
    "slice_scatter": ("scatter", lambda ids, codes: torch.slice_scatter(ids, codes, 1, 0, 5)),
}


@pytest.mark.parametrize("way", INTO_IDS)
def test_codes_that_are_joined_with_ids_meet_them_where_regbn_cannot_go(way: str) -> None:
    kind, join = INTO_IDS[way]

    def forward(self: Any, ids: Tensor, image: Tensor) -> Tensor:
        return self.mix(self.words(join(ids, CODES["argmax"](self, self.patch(image)))))

    (point,) = points(forward, EXAMPLE, BOTH, **layers())
    assert (point.kind, point.selected_by_default) == (kind, False)
    assert {home for homes in point.homes for home in homes} == {"text", "image"}
    assert all("int64" in (site.obstacle or "") for site in point.sites)


PLACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda a, places: a[torch.arange(len(a))[:, None], places],
    "gather": lambda a, places: a.gather(1, places[..., None].expand(-1, -1, 8)),
    "take_along_dim": lambda a, places: torch.take_along_dim(a, places[..., None], 1),
    "index_select": lambda a, places: a.index_select(1, places[0]),
    "scatter": lambda a, places: torch.zeros_like(a).scatter(1, places[..., None].expand(-1, -1, 8), a),
}


@pytest.mark.parametrize("way", PLACES)
def test_places_that_one_stream_chooses_in_another_are_no_content(way: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return PLACES[way](a, self.score(b)[..., 0].topk(2, dim=1).indices)

    example = {"a": normal(4, 5, 8), "b": normal(4, 5, 6)}
    assert told(forward, example, score=nn.Linear(6, 1)) == []
    assert homes(forward, example, score=nn.Linear(6, 1)) == ["a"]


def test_codes_as_labels_of_another_stream_are_no_meeting() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(self.one(a).transpose(1, 2), self.two(b).argmax(-1))

    example = {"a": normal(4, 5, 8), "b": normal(4, 5, 6)}
    assert told(forward, example, one=nn.Linear(8, 3), two=nn.Linear(6, 3)) == []
