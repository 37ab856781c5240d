"""The examples are folders of scripts, not packages: put them where their modules find each other."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PMR = EXAMPLES / "pmr"
sys.path[:0] = [str(EXAMPLES / name) for name in ("pmr", "confounder", "views")]


@pytest.fixture(scope="session")
def pmr() -> Path:
    """The folder of the example."""
    return PMR


@pytest.fixture(scope="session")
def small_data():
    """120 training and 40 test digits, in their colours."""
    return first_digits(120, 40)


@pytest.fixture(scope="session")
def tiny_data():
    """60 training and 20 test digits: one batch in an epoch."""
    return first_digits(60, 20)


@pytest.fixture(autouse=True)
def one_thread():
    """What the example runs with; two test processes with two threads each wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def first_digits(train: int, test: int):
    from data import Data, Split, load_data

    whole = load_data(seed=0)
    parts = ((whole.train, train), (whole.test, test))
    return Data("a few digits", *(Split(s.gray[:n], s.colored[:n], s.labels[:n]) for s, n in parts))
