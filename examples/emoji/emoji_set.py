"""Emoji as several vendors draw them, with their names and categories, read out of the npm package."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import torch
from rich.console import Console
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))  # what several examples need
from registry import Package, PackageError, package_file

__all__ = ["NAME_WIDTH", "VENDORS", "EmojiSet", "PackageError", "emoji_package", "read_package"]

PACKAGE = Package(
    "emoji of four vendors (npm package emoji-datasource 16.0.0)",
    "https://registry.npmjs.org/emoji-datasource/-/emoji-datasource-16.0.0.tgz",
    "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
    25187342,
)
VENDORS = ("google", "twitter", "apple", "facebook")
#: Their names say the category in one word ("... Flag"), or they are parts and not emoji.
LEFT_OUT = ("Flags", "Component")
SIDE, BORDER = 32, 1  # of a drawing on its sheet, in pixels
NAME_WIDTH = 1024
#: What tells drawings of one subject apart: MAN COOK and WOMAN COOK belong on the same side of the split.
PEOPLE = frozenset(
    ["man", "woman", "men", "women", "male", "female", "person", "people", "boy", "girl", "adult", "and", "with"]
)
TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class EmojiSet:
    """N emoji. A drawing is float32 [3, 32, 32] in 0..1 on white; a name is float32 [1024], hashed."""

    names: tuple[str, ...]
    categories: tuple[str, ...]  # what the numbers in `labels` mean
    labels: Tensor  # int64 [N]
    hashed_names: Tensor  # float32 [N, 1024]
    drawings: Mapping[str, Tensor]  # by vendor, float32 [N, 3, 32, 32]

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows held out, a third of the subjects; no subject is on both sides."""
        subjects = [subject(name) for name in self.names]
        known = sorted(set(subjects))
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
        held_out = {known[i] for i in order[: round(len(known) * TEST_SHARE)]}
        mask = torch.tensor([s in held_out for s in subjects])
        return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def emoji_package(folder: Path, download: bool, console: Console) -> Path:
    """The npm package in `folder`, fetched first if it is not there and `download` is set. Raises `PackageError`."""
    return package_file(PACKAGE, folder, download, console)


def subject(name: str) -> str:
    """A name without the words that tell a man from a woman."""
    return " ".join(word for word in re.findall("[a-z0-9]+", name.lower()) if word not in PEOPLE)


def hashed(names: Sequence[str]) -> Tensor:
    """Names as hashed counts of their 3 to 5 letter pieces within words, each row of length 1: float32 [N, 1024]."""
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=NAME_WIDTH, alternate_sign=False)
    return torch.from_numpy(pieces.transform(name.lower() for name in names).toarray()).float()


def read_package(path: Path, vendors: Sequence[str]) -> EmojiSet:
    """The emoji that each of `VENDORS` draws itself; drawings of `vendors`."""
    with tarfile.open(path) as package:
        listed = json.loads(_member(package, "emoji.json"))
        # A sheet shows another vendor's drawing where its own is missing: these are left out.
        kept = [e for e in listed if e["category"] not in LEFT_OUT and all(e[f"has_img_{v}"] for v in VENDORS)]
        drawings = {vendor: _drawings(_member(package, f"img/{vendor}/sheets/32.png"), kept) for vendor in vendors}
    categories = sorted({e["category"] for e in kept})
    names = tuple(e["name"] for e in kept)
    labels = torch.tensor([categories.index(e["category"]) for e in kept])
    return EmojiSet(names, tuple(categories), labels, hashed(names), drawings)


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/{name}")
    assert file is not None, "the checksum says that it is there"
    return file.read()


def _drawings(sheet: bytes, emoji: Sequence[Mapping[str, int]]) -> Tensor:
    pixels = matplotlib.image.imread(io.BytesIO(sheet), format="png")  # [height, width, 4] in 0..1
    color, alpha = pixels[..., :3], pixels[..., 3:]
    on_white = color * alpha + 1 - alpha
    corners = [tuple(e[at] * (SIDE + 2 * BORDER) + BORDER for at in ("sheet_x", "sheet_y")) for e in emoji]
    cut = np.stack([on_white[y : y + SIDE, x : x + SIDE] for x, y in corners])
    return torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous()
