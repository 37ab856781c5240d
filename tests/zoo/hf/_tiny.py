"""Sizes and inputs that make a `transformers` model tiny, shared by the families."""

from __future__ import annotations

from typing import Any

import torch

from .._case import tokens

#: A BERT-, CLIP- or ViT-like tower: every family takes a subset of these.
WIDTH = 32
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT: dict[str, Any] = {**TOWER, "vocab_size": 120, "max_position_embeddings": 64}
SPECIAL: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
VISION: dict[str, Any] = {**TOWER, "image_size": 32, "patch_size": 8}
#: BLIP's default vision weights are near zero, so that all patches would look alike.
BLIP_VISION: dict[str, Any] = {**VISION, "initializer_range": 0.02}

TEXT_LENGTH = 7
IMAGE_AND_TEXT = {"image": ["pixel_values"], "text": ["input_ids"]}


def ones(batch: int, length: int) -> torch.Tensor:
    return torch.ones(batch, length, dtype=torch.long)


def image_and_text(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "attention_mask": ones(batch, TEXT_LENGTH),
    }
