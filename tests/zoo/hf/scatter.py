"""Language models that write image or audio tokens over placeholder tokens of the text.

Each is one `masked_scatter` into the text embeddings. RegBN sees the receiving embeddings, placeholders left out,
and the source unfolded to one row of tokens per sample; the text is causal, so it is f.
"""

from __future__ import annotations

import torch
from torch import nn

from .._case import Point, ZooCase, point, pooled, side, tokens
from ._tiny import IMAGE_AND_TEXT, SPECIAL, TEXT, TOWER, VISION, WIDTH, ones

PLACEHOLDER = 99
PATCHES = 16
DECODER = {**TEXT, **SPECIAL, "num_key_value_heads": 4}


def text_with_placeholders(batch: int, count: int) -> torch.Tensor:
    """Six words, with `count` placeholders after the first."""
    ids = tokens(batch, 6 + count, vocabulary=90)
    ids[:, 1 : 1 + count] = PLACEHOLDER
    return ids


def scatter_point(owner: str, source: str = "image") -> tuple[Point, ...]:
    return (point(owner, "scatter", pooled(side("text", WIDTH), side(source, WIDTH))),)


def llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config=LlamaConfig(**DECODER),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_id=PLACEHOLDER,
        image_token_index=PLACEHOLDER,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def paligemma() -> nn.Module:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **DECODER, "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", **VISION},
        image_token_id=PLACEHOLDER,
        image_token_index=PLACEHOLDER,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return PaliGemmaForConditionalGeneration(config)


def blip2() -> nn.Module:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    text = OPTConfig(
        vocab_size=120,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **SPECIAL,
    )
    qformer = Blip2QFormerConfig(**TEXT, encoder_hidden_size=WIDTH, cross_attention_frequency=1)
    config = Blip2Config(  # transformers 4 takes mappings alone
        vision_config=Blip2VisionConfig(**VISION).to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=PLACEHOLDER,
    )
    return Blip2ForConditionalGeneration(config)


def idefics2() -> nn.Module:
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration

    config = Idefics2Config(
        image_token_id=PLACEHOLDER,
        text_config={"model_type": "mistral", **DECODER, "head_dim": 8},
        vision_config=VISION,
        perceiver_config={
            "hidden_size": WIDTH,
            "resampler_n_latents": 2,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
    )
    return Idefics2ForConditionalGeneration(config)


def smolvlm() -> nn.Module:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        image_token_id=PLACEHOLDER,
        text_config=LlamaConfig(**DECODER),
        vision_config=VISION,
        scale_factor=2,
    )
    return SmolVLMForConditionalGeneration(config)


def qwen2_audio() -> nn.Module:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2Config,
    )

    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=16,
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=37,
        max_source_positions=16,
    )
    text = Qwen2Config(**TOWER, vocab_size=120, max_position_embeddings=64, num_key_value_heads=4, **SPECIAL)
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=PLACEHOLDER)
    return Qwen2AudioForConditionalGeneration(config)


def llava_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": text_with_placeholders(batch, PATCHES),
        "pixel_values": torch.randn(batch, 3, 32, 32),
    }


def paligemma_inputs(batch: int) -> dict[str, torch.Tensor]:
    length = 6 + PATCHES
    return {
        **llava_inputs(batch),
        "attention_mask": ones(batch, length),
        "token_type_ids": torch.zeros(batch, length, dtype=torch.long),
    }


def blip2_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": text_with_placeholders(batch, 4),
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "attention_mask": ones(batch, 10),
    }


def tiled_inputs(batch: int, count: int) -> dict[str, torch.Tensor]:
    """One image tile per sample, `[B, tiles, C, H, W]`."""
    return {
        "input_ids": text_with_placeholders(batch, count),
        "pixel_values": torch.randn(batch, 1, 3, 32, 32),
        "attention_mask": ones(batch, 6 + count),
    }


def qwen2_audio_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": text_with_placeholders(batch, 8),
        "input_features": torch.randn(batch, 16, 32),
        "attention_mask": ones(batch, 14),
        "feature_attention_mask": ones(batch, 32),
    }


CASES = (
    ZooCase(
        name="hf_llava",
        build=llava,
        inputs=llava_inputs,
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_paligemma",
        build=paligemma,
        inputs=paligemma_inputs,
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_blip2",
        build=blip2,
        inputs=blip2_inputs,
        modalities=IMAGE_AND_TEXT,
        # The query tokens of the Q-Former are parameters: its cross-attention is no meeting.
        points=scatter_point(""),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_idefics2",
        build=idefics2,
        inputs=lambda batch: tiled_inputs(batch, count=2),
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_smolvlm",
        build=smolvlm,
        inputs=lambda batch: tiled_inputs(batch, count=4),
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_qwen2_audio",
        build=qwen2_audio,
        inputs=qwen2_audio_inputs,
        modalities={"text": ["input_ids"], "audio": ["input_features"]},
        points=scatter_point("model", source="audio"),
        normalize="text",
        against="audio",
    ),
)
