"""Two processes that train one model: synchronised DDP equals one process, FSDP2 shards what it should."""

from __future__ import annotations

import pytest

from ._subject import Subject
from ._with_ranks import SITUATIONS, sharded_by_children

pytestmark = pytest.mark.slow  # starting two processes with transformers takes a while


@pytest.mark.parametrize("name", ["pmr", "hf_blip_captioning", "hf_lxmert", "fusenet"])
@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_situation(name: str, situation: str) -> None:
    SITUATIONS[situation](Subject(name))


@pytest.mark.parametrize("name", ["pmr", "hf_vilt"])
def test_every_child_sharded_by_itself(name: str) -> None:
    sharded_by_children(Subject(name))
