"""One transformer over both: image and text tokens are concatenated into one sequence."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._tiny import IMAGE_AND_TEXT, SPECIAL, TEXT, TEXT_LENGTH, TOWER, VISION, WIDTH, image_and_text, ones

REGIONS = 5
REGION_FEATURES = 20


def flava() -> nn.Module:
    from transformers import FlavaConfig, FlavaModel

    config = FlavaConfig(
        text_config=TEXT,
        image_config=VISION,
        multimodal_config=TOWER,
        hidden_size=WIDTH,
        projection_dim=16,
    )
    return FlavaModel(config)


def vilt() -> nn.Module:
    from transformers import ViltConfig, ViltModel

    return ViltModel(ViltConfig(**TEXT, image_size=32, patch_size=8, modality_type_vocab_size=2))


def visual_bert() -> nn.Module:
    from transformers import VisualBertConfig, VisualBertModel

    return VisualBertModel(VisualBertConfig(**TEXT, visual_embedding_dim=REGION_FEATURES))


def git() -> nn.Module:
    from transformers import GitConfig, GitModel

    return GitModel(GitConfig(**TEXT, **SPECIAL, vision_config=VISION))


def vilt_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "attention_mask": ones(batch, TEXT_LENGTH),
        "token_type_ids": torch.zeros(batch, TEXT_LENGTH, dtype=torch.long),
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "pixel_mask": torch.ones(batch, 32, 32, dtype=torch.long),
    }


def visual_bert_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "attention_mask": ones(batch, TEXT_LENGTH),
        "visual_embeds": torch.randn(batch, REGIONS, REGION_FEATURES),
        "visual_attention_mask": ones(batch, REGIONS),
        "visual_token_type_ids": ones(batch, REGIONS),
    }


CASES = (
    ZooCase(
        name="hf_flava",
        build=flava,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # cat([image_mm_projection, text_mm_projection], dim=1) in FlavaModel.forward
        points=(point("", "concat", pooled(side("image", WIDTH), side("text", WIDTH))),),
        normalize="image",
        stage=1,
    ),
    ZooCase(
        name="hf_vilt",
        build=vilt,
        inputs=vilt_inputs,
        modalities=IMAGE_AND_TEXT,
        # cat([text_embeds, image_embeds], dim=1) in ViltEmbeddings.forward
        points=(point("embeddings", "concat", pooled(side("text", WIDTH), side("image", WIDTH))),),
        normalize="text",
        stage=1,
    ),
    ZooCase(
        name="hf_visual_bert",
        build=visual_bert,
        inputs=visual_bert_inputs,
        modalities={"text": ["input_ids"], "image": ["visual_embeds"]},
        # cat((embeddings, visual_embeddings), dim=1) in VisualBertEmbeddings.forward
        points=(point("embeddings", "concat", pooled(side("text", WIDTH), side("image", WIDTH))),),
        normalize="text",
    ),
    ZooCase(
        name="hf_git",
        build=git,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # cat((projected_visual_features, embedding_output), dim=1) in GitModel.forward; the text is causal: it is f
        points=(point("", "concat", pooled(side("text", WIDTH), side("image", WIDTH))),),
        normalize="text",
        against="image",
    ),
)
