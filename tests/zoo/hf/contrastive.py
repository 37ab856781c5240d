"""Dual encoders: the two towers meet only in the similarity of their embeddings, after the last layer.

Each is `matmul(text_embeds, image_embeds.t())` in the root's own forward, taken before the division by the norms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .._case import ZooCase, flat, point, side
from ._tiny import BLIP_VISION, IMAGE_AND_TEXT, SPECIAL, TEXT, TOWER, VISION, WIDTH, image_and_text

PROJECTION = 16


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config={**TEXT, **SPECIAL}, vision_config=VISION, projection_dim=PROJECTION)
    return CLIPModel(config)


def siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(SiglipConfig(text_config={**TEXT, **SPECIAL}, vision_config=VISION))


def altclip() -> nn.Module:
    from transformers import AltCLIPConfig, AltCLIPModel

    text = {**TEXT, **SPECIAL, "project_dim": WIDTH}
    return AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=PROJECTION))


def chinese_clip() -> nn.Module:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    return ChineseCLIPModel(ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=PROJECTION))


def groupvit() -> nn.Module:
    from transformers import GroupViTConfig, GroupViTModel

    vision = {**VISION, "depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [2, 2]}
    config = GroupViTConfig(
        text_config={**TEXT, **SPECIAL},
        vision_config=vision,
        projection_dim=PROJECTION,
        projection_intermediate_dim=20,
    )
    return GroupViTModel(config)


def align() -> nn.Module:
    from transformers import AlignConfig, AlignModel

    vision = {
        "image_size": 32,
        "width_coefficient": 1.0,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 20],
        "depthwise_padding": [],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "hidden_dim": 24,
        "num_hidden_layers": 2,
    }
    return AlignModel(AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=24))


def blip() -> nn.Module:
    from transformers import BlipConfig, BlipModel

    text = {**TEXT, **SPECIAL, "encoder_hidden_size": WIDTH}
    return BlipModel(BlipConfig(text_config=text, vision_config=BLIP_VISION, projection_dim=PROJECTION))


def vision_text_dual() -> nn.Module:
    from transformers import BertConfig, BertModel, VisionTextDualEncoderModel, ViTConfig, ViTModel

    vision = ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8))
    return VisionTextDualEncoderModel(vision_model=vision, text_model=BertModel(BertConfig(**TEXT)))


def dual_encoder(name: str, build: Callable[[], nn.Module], width: int = PROJECTION, **more: Any) -> ZooCase:
    return ZooCase(
        name=f"hf_{name}",
        build=build,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(point("", "similarity", flat(side("image", width), side("text", width))),),
        normalize="image",
        against="text",
        **more,
    )


CASES = (
    dual_encoder("clip", clip, stage=1),
    dual_encoder("siglip", siglip, width=WIDTH),
    dual_encoder("altclip", altclip),
    dual_encoder("chinese_clip", chinese_clip),
    dual_encoder("groupvit", groupvit),
    dual_encoder("align", align, width=24),
    dual_encoder("blip", blip),
    dual_encoder("vision_text_dual", vision_text_dual, width=512),
)
