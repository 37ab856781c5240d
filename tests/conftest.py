"""For all tests: one thread each, since the workers of `pytest -n` would fight for the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# The same examples in every run of the suite: a search for new ones is `--hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


#: What `make test` leaves to `make test-all`: a second look at what other tests look at, at a price.
_SLOW = (
    "test_zoo.py::test_surgery[stage2-",
    "[stage3-",
    "test_by_hand.py::test_by_hand[",
    "test_ranks_equal_one_process_with_the_joined_batch[4]",
    "test_zoo.py::test_modalities_left_to_default[",
    "test_models.py::",
    "test_fakes.py::test_transformers_without_weights[",
    "test_generated.py::test_surgery[",
    "test_generated.py::test_points[1",
    "test_pmr_train.py::test_a_run_can_be_made_longer",
    "test_pmr_cli.py::test_as_a_program",
    "test_compile_export.py::test_one_graph_for_training_and_one_for_evaluation[",
    "test_pmr_train.py::test_controls_are_the_same",
)
#: Of these families a few stay in, so that every kind of failure shows in `make test`.
_KEPT = (
    "stage2-hf_whisper]",
    "stage2-hf_git]",
    "stage2-three_modalities]",
    "test_fusion_points[stage3-hf_gemma3]",
    "test_fusion_points[stage3-hf_owlvit]",
    "test_sites[stage3-hf_sam]",
    "[BranchOnValue]",
    "[GradientReversal]",
    "test_surgery[0]",
    "test_surgery[1]",
    "test_surgery[2]",
    "evaluation[published]",
    "weights[hf_llava]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in _SLOW) and not item.nodeid.endswith(_KEPT):
            item.add_marker(pytest.mark.slow)
