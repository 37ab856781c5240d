"""What a run trains and tests on: no scan on both sides, colours that help in training and mislead in testing."""

import gzip

import numpy as np
import pytest
import torch
from colors import JITTER_VARIANCE, MEAN_COLORS, colorize, uncolor
from data import Data, load_data
from errors import ExampleError
from test_pmr_idx import idx

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(seed=0)


def hues(colored: torch.Tensor) -> np.ndarray:
    """The colour of each image: its brightest pixel."""
    flat = colored.flatten(2).numpy()
    brightest = flat.sum(axis=1).argmax(axis=1)
    return flat[np.arange(len(flat)), :, brightest]


def nearest_mean(colored: torch.Tensor) -> np.ndarray:
    distance = hues(colored)[:, None].astype(float) - MEAN_COLORS[None]
    return (distance**2).sum(axis=2).argmin(axis=1)


def test_shapes_and_shares(digits):
    assert len(digits.train) + len(digits.test) == 1797
    for split in (digits.train, digits.test):
        assert split.gray.shape[1:] == (1, 28, 28)
        assert split.colored.shape[1:] == (3, 28, 28)
        assert split.gray.dtype == split.colored.dtype == torch.uint8
        assert split.gray.max() == 255
    share = torch.bincount(digits.test.labels) / torch.bincount(digits.train.labels)
    torch.testing.assert_close(share, torch.full((10,), 0.5), atol=0.01, rtol=0)


def test_no_scan_is_on_both_sides(digits):
    train, test = ({image.tobytes() for image in split.gray.numpy()} for split in (digits.train, digits.test))
    assert not train & test
    assert len(train) == len(digits.train)


def test_gray_and_colored_show_the_same_scan(digits):
    for split in (digits.train, digits.test):
        remade = torch.from_numpy(uncolor(split.colored.numpy())).int()
        original = split.gray[:, 0].int() * 255 // split.gray.amax((1, 2, 3))[:, None, None]
        assert (remade - original).abs().max() <= 8


def test_colour_gives_the_label_away_in_training_only(digits):
    told = (nearest_mean(digits.train.colored) == digits.train.labels.numpy()).mean()
    guessed = (nearest_mean(digits.test.colored) == digits.test.labels.numpy()).mean()
    assert told > 0.8
    assert 0.05 < guessed < 0.17


def test_seed_decides_split_and_colours(digits):
    again, other = load_data(seed=0), load_data(seed=1)
    assert again.digest == digits.digest
    assert other.digest != digits.digest
    assert not torch.equal(other.train.gray[:50], digits.train.gray[:50])
    state = torch.get_rng_state()
    load_data(seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_jitter_has_the_stated_variance():
    white = np.full((20_000, 1, 1), 255, dtype=np.uint8)
    # Mean 4 is (237, 145, 33): only the green channel stays clear of the clipping.
    green = colorize(white, np.full(20_000, 4), RNG)[:, 1, 0, 0] / 255
    assert green.mean() == pytest.approx(145 / 255, abs=0.005)
    assert green.var() == pytest.approx(JITTER_VARIANCE, rel=0.05)


def test_batch_is_scaled(digits):
    gray, colored, labels = digits.train.batch(torch.tensor([5, 3]), torch.device("cpu"))
    assert gray.dtype == colored.dtype == torch.float32
    torch.testing.assert_close(gray * 255, digits.train.gray[[5, 3]].float())
    torch.testing.assert_close(colored * 255, digits.train.colored[[5, 3]].float())
    assert torch.equal(labels, digits.train.labels[[5, 3]])


# --- MNIST's files and the published colours ---------------------------------------------------------------------

LABELS = {"train": np.arange(20, dtype=np.uint8) % 10, "t10k": np.arange(10, dtype=np.uint8)[::-1].copy()}


@pytest.fixture
def mnist(tmp_path):
    for part, labels in LABELS.items():
        images = RNG.integers(0, 256, size=(len(labels), 28, 28), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.fixture
def content():
    made = {}
    for part, labels in (("train", LABELS["train"]), ("test", LABELS["t10k"])):
        gray = RNG.integers(0, 256, size=(len(labels), 28, 28), dtype=np.uint8)
        made[f"{part}_image"] = colorize(gray, labels, RNG).transpose(0, 2, 3, 1)
        made[f"{part}_label"] = labels
    return made


def saved(tmp_path, content):
    np.save(tmp_path / "colored.npy", content, allow_pickle=True)
    return tmp_path / "colored.npy"


def test_mnist(mnist):
    data = load_data(seed=0, mnist=mnist)
    assert (data.name, len(data.train), len(data.test)) == ("MNIST", 20, 10)
    assert data.test.labels.tolist() == list(range(10))[::-1]


def test_colored_alone_makes_its_gray(tmp_path, content):
    data = load_data(seed=0, colored=saved(tmp_path, content))
    assert torch.equal(data.train.colored, torch.from_numpy(content["train_image"].transpose(0, 3, 1, 2).copy()))
    assert data.train.gray.shape == (20, 1, 28, 28)
    assert (data.train.gray.amax((1, 2, 3)) == 255).all()


def test_colored_with_mnist_takes_gray_from_mnist(tmp_path, mnist, content):
    data = load_data(seed=0, mnist=mnist, colored=saved(tmp_path, content))
    assert torch.equal(data.train.gray, load_data(seed=0, mnist=mnist).train.gray)
    assert torch.equal(data.test.colored, torch.from_numpy(content["test_image"].transpose(0, 3, 1, 2).copy()))


def test_colored_of_other_digits_is_refused(tmp_path, mnist, content):
    content["test_label"] = content["test_label"][::-1].copy()
    with pytest.raises(ExampleError, match=r"the test labels of .* are not those of"):
        load_data(seed=0, mnist=mnist, colored=saved(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_label": None}, "has no train_label; it holds"),
        ({"train_image": np.zeros((20, 28, 28), np.uint8)}, r"train_image is uint8 with shape \(20, 28, 28\)"),
        ({"train_image": np.zeros((20, 28, 28, 3))}, "train_image is float64"),
        ({"test_label": np.zeros(3, np.int64)}, "10 images and labels of int64"),
        ({"test_label": np.full(10, 0.5)}, "one whole number for each image"),
        ({"test_label": np.arange(10) + 1}, "labels from 1 to 10"),
        ({"test_label": np.arange(10) - 1}, "labels from -1 to 8"),
        ({"test_image": np.zeros((0, 28, 28, 3), np.uint8), "test_label": np.zeros(0, int)}, "at least one image"),
    ],
)
def test_colored_of_another_form_is_refused(tmp_path, content, change, says):
    content = {key: value for key, value in {**content, **change}.items() if value is not None}
    with pytest.raises(ExampleError, match=says):
        load_data(seed=0, colored=saved(tmp_path, content))


def test_mnist_of_another_form_is_refused(mnist):
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((20, 8, 8), np.uint8)))
    with pytest.raises(ExampleError, match=r"images of \(8, 8\), not of \(28, 28\)"):
        load_data(seed=0, mnist=mnist)
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((19, 28, 28), np.uint8)))
    with pytest.raises(ExampleError, match="19 images and labels"):
        load_data(seed=0, mnist=mnist)
