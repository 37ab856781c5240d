"""The digits, gray and coloured: where they come from, how they are split, and what is checked about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from colors import colorize, uncolor
from errors import ExampleError
from fetch import PACKAGES, read_npm_digits, unpack_debian
from idx import find_idx, read_idx
from npy_dict import read_npy_dict
from torch import Tensor
from torch.nn import functional as F

SIZE = 28
CLASSES = 10
#: One scan in three of scikit-learn's digits is kept for testing.
TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Split:
    """Pairs of the same digit: gray uint8 [N, 1, 28, 28], colored uint8 [N, 3, 28, 28], labels int64 [N]."""

    gray: Tensor
    colored: Tensor
    labels: Tensor
    #: For each modality (mean, standard deviation) by channel, of the images in 0..1, which they are standardised with.
    scale: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`(gray, colored, labels)` on `device`, the images as float32 in 0..1, or standardised."""
        gray, colored = (images[index].to(device).float() / 255 for images in (self.gray, self.colored))
        if self.scale is not None:
            gray, colored = (
                (images - mean.to(device)) / deviation.to(device)
                for images, (mean, deviation) in zip((gray, colored), self.scale, strict=True)
            )
        return gray, colored, self.labels[index].to(device)


@dataclass(frozen=True)
class Data:
    """What a run trains and tests on. `name` is for people, `digest` tells two data sets apart."""

    name: str
    train: Split
    test: Split

    def standardised(self) -> Data:
        """The same, each channel with mean 0 and standard deviation 1 over the training images."""
        scale = tuple(_scale(images) for images in (self.train.gray, self.train.colored))
        train, test = (replace(split, scale=scale) for split in (self.train, self.test))
        return Data(f"{self.name}, standardised", train, test)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for tensor in (split.gray, split.colored, split.labels):
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


def _scale(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, as [C, 1, 1], of images in 0..1."""
    wide = images.double() / 255
    mean = wide.mean((0, 2, 3))
    variance = wide.square().mean((0, 2, 3)) - mean.square()
    return mean.float()[:, None, None], variance.sqrt().float()[:, None, None]


def load_package(name: str, file: Path, seed: int) -> Data:
    """The images of one of `fetch.PACKAGES`, coloured here. The npm digits are split by `seed`, as scikit-learn's."""
    about = PACKAGES[name].about
    if name == "fashion":
        images, labels = _read_mnist(unpack_debian(file, file.parent / "fashion-mnist"))
        return _colored_here(about, images, labels, seed)
    gray, digits = read_npm_digits(file)
    test = _stratified_test_mask(digits, np.random.default_rng((seed, 0)))
    return _colored_here(about, (gray[~test], gray[test]), (digits[~test], digits[test]), seed)


def load_data(seed: int, mnist: Path | None = None, colored: Path | None = None) -> Data:
    """The data of a run. `seed` decides the split of scikit-learn's digits and the colours, where there are any to
    decide; every model trained with one seed sees the same digits in the same colours.

    Args:
        mnist: a folder with MNIST's IDX files, else the digits that come with scikit-learn.
        colored: the published coloured-MNIST `.npy`, else the gray digits are coloured here.

    Raises:
        ExampleError: a file is missing, damaged, or does not fit the other.
    """
    if colored is not None:
        return _from_colored_file(colored, mnist)
    if mnist is not None:
        images, labels = _read_mnist(mnist)
        return _colored_here("MNIST", images, labels, seed)
    images, labels = _bundled_digits(seed)
    return _colored_here("scikit-learn's digits", images, labels, seed)


def loader(batch_size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (gray, colored) of the bundled digits in an order that torch's seed decides, as `diagnose` takes them."""
    train = load_data(0).train
    order = torch.randperm(len(train))
    for start in range(0, len(train) - batch_size + 1, batch_size):
        gray, colored, _ = train.batch(order[start : start + batch_size], torch.device("cpu"))
        yield gray, colored


Pair = tuple[np.ndarray, np.ndarray]  # (train, test)


def _colored_here(name: str, images: Pair, labels: Pair, seed: int) -> Data:
    jitter = np.random.default_rng((seed, 1))
    shuffle = np.random.default_rng((seed, 2))
    random_means = shuffle.integers(CLASSES, size=len(labels[1]))
    train = _split(images[0], colorize(images[0], labels[0], jitter), labels[0])
    test = _split(images[1], colorize(images[1], random_means, jitter), labels[1])
    return Data(name, train, test)


def _split(gray: np.ndarray, colored: np.ndarray, labels: np.ndarray) -> Split:
    # A copy each: what came out of a file is read-only, and torch warns about that.
    gray, colored = np.array(gray[:, None]), np.array(colored)
    return Split(torch.from_numpy(gray), torch.from_numpy(colored), torch.from_numpy(labels.astype(np.int64)))


def _bundled_digits(seed: int) -> tuple[Pair, Pair]:
    """scikit-learn's 1797 scans, enlarged from 8 x 8 to 28 x 28 and split so that no scan is on both sides."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ExampleError(
            "the example's digits come with scikit-learn, which is not installed: "
            "pip install 'regbn_surgery[examples]', or give --mnist DIR."
        ) from error
    images, labels = load_digits(return_X_y=True)
    test = _stratified_test_mask(labels, np.random.default_rng((seed, 0)))
    scans = torch.from_numpy(images.reshape(-1, 1, 8, 8) * (255 / 16)).float()
    large = F.interpolate(scans, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    gray = large[:, 0].round().to(torch.uint8).numpy()
    return (gray[~test], gray[test]), (labels[~test], labels[test])


def _stratified_test_mask(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True for the scans kept for testing: `TEST_SHARE` of every digit."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in range(CLASSES):
        scans = rng.permutation(np.flatnonzero(labels == label))
        mask[scans[: round(len(scans) * TEST_SHARE)]] = True
    return mask


def _read_mnist(folder: Path) -> tuple[Pair, Pair]:
    images, labels = [], []
    for part in ("train", "t10k"):
        image_file = find_idx(folder, f"{part}-images", 3)
        label_file = find_idx(folder, f"{part}-labels", 1)
        images.append(read_idx(image_file, 3))
        labels.append(read_idx(label_file, 1))
        if images[-1].shape[1:] != (SIZE, SIZE):
            raise ExampleError(
                f"{image_file} holds images of {images[-1].shape[1:]}, not of ({SIZE}, {SIZE}). Give MNIST's own files."
            )
        _check_labels(labels[-1], len(images[-1]), f"{label_file} (with {image_file})")
    return (images[0], images[1]), (labels[0], labels[1])


def _check_labels(labels: np.ndarray, count: int, where: str) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != count or count == 0:
        raise ExampleError(
            f"{where}: {count} images and labels of {labels.dtype} with shape {labels.shape}. "
            "There must be one whole number for each image, and at least one image."
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ExampleError(f"{where}: labels from {labels.min()} to {labels.max()}. They must be 0 to {CLASSES - 1}.")


def _from_colored_file(path: Path, mnist: Path | None) -> Data:
    """The published colours; the gray half is MNIST where it is given (same order), else made from the colours."""
    arrays = read_npy_dict(path)
    gray_pair, label_pair = _read_mnist(mnist) if mnist is not None else ((None, None), (None, None))
    splits = []
    for part, gray, gray_labels in zip(("train", "test"), gray_pair, label_pair, strict=True):
        images, labels = _colored_part(arrays, part, path)
        if gray is None:
            gray = uncolor(images)
        elif gray_labels is None or not np.array_equal(gray_labels, labels):
            raise ExampleError(
                f"the {part} labels of {path} are not those of {mnist}: the two do not show the same digits in the "
                "same order. Leave --mnist out: the gray digits are then made from the coloured ones."
            )
        splits.append(_split(gray, images, labels))
    return Data(f"coloured MNIST ({path.name})", splits[0], splits[1])


def _colored_part(arrays: dict[str, np.ndarray], part: str, path: Path) -> Pair:
    """Images uint8 [N, 3, 28, 28] and labels [N] of "train" or "test"."""
    keys = (f"{part}_image", f"{part}_label")
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ExampleError(
            f"{path} has no {' and no '.join(missing)}; it holds {sorted(arrays) or 'nothing'}. "
            "Give the coloured-MNIST file (train_image, train_label, test_image, test_label)."
        )
    images, labels = (arrays[key] for key in keys)
    if images.ndim == 4 and images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1:] != (3, SIZE, SIZE) or images.dtype != np.uint8:
        raise ExampleError(
            f"{path}: {keys[0]} is {images.dtype} with shape {arrays[keys[0]].shape}, "
            f"not uint8 with shape [N, {SIZE}, {SIZE}, 3]. Give the coloured-MNIST file."
        )
    _check_labels(labels, len(images), f"{path}, {keys[1]}")
    return images, labels
