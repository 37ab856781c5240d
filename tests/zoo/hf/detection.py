"""Text or clicks that find places in an image or a clip: detection, segmentation, recognition of actions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._tiny import IMAGE_AND_TEXT, SPECIAL, TEXT, TEXT_LENGTH, TOWER, VISION, WIDTH, image_and_text, ones


def owlvit() -> nn.Module:
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    text = {**TEXT, **SPECIAL, "max_position_embeddings": 16}
    return OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH))


def clipseg() -> nn.Module:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(
        text_config={**TEXT, **SPECIAL},
        vision_config=VISION,
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=12,
    )
    return CLIPSegForImageSegmentation(config)


def bridgetower() -> nn.Module:
    from transformers import BridgeTowerConfig, BridgeTowerModel

    width = {"hidden_size": 64}  # heads are 64 wide in its vision tower
    config = BridgeTowerConfig(
        text_config={**TEXT, **width},
        vision_config={**width, "num_hidden_layers": 3, "patch_size": 8, "image_size": 32},
        **{**TOWER, **width},
    )
    return BridgeTowerModel(config)


def x_clip() -> nn.Module:
    from transformers import XCLIPConfig, XCLIPModel

    vision = {
        **VISION,
        "mit_hidden_size": 16,
        "mit_intermediate_size": 16,
        "mit_num_attention_heads": 2,
        "mit_num_hidden_layers": 1,
        "num_frames": 2,
    }
    config = XCLIPConfig(
        text_config={**TEXT, **SPECIAL},
        vision_config=vision,
        projection_dim=16,
        prompt_layers=2,
        prompt_num_attention_heads=2,
    )
    return XCLIPModel(config)


def siglip2() -> nn.Module:
    from transformers import Siglip2Config, Siglip2Model

    vision = {**TOWER, "patch_size": 8, "num_patches": 16}
    return Siglip2Model(Siglip2Config(text_config={**TEXT, **SPECIAL}, vision_config=vision))


def sam() -> nn.Module:
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "mlp_dim": 20,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
    }
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 12,
        "attention_downsample_rate": 2,
    }
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    for parameter in model.mask_decoder.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)  # by default so small that clicks would not be seen in the masks
    return model


def grounding_dino() -> nn.Module:
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoModel, SwinConfig

    class Finite(GroundingDinoModel):
        """Without the logits of proposals outside the image, which are minus infinity."""

        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(*args, **kwargs).last_hidden_state

    backbone = SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        window_size=2,
        image_size=64,
        patch_size=4,
        out_features=["stage2", "stage3"],
        out_indices=[2, 3],
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=BertConfig(**TEXT),
        num_queries=6,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        d_model=WIDTH,
        num_feature_levels=2,
        max_text_len=16,
        encoder_n_points=2,
        decoder_n_points=2,
        disable_custom_kernels=True,
    )
    return Finite(config)


def images_and_queries(batch: int) -> dict[str, torch.Tensor]:
    """Two queries for every image, folded into one batch of texts."""
    return {
        "input_ids": tokens(2 * batch, TEXT_LENGTH),
        "attention_mask": ones(2 * batch, TEXT_LENGTH),
        "pixel_values": torch.randn(batch, 3, 32, 32),
    }


def clips_and_classes(batch: int) -> dict[str, torch.Tensor]:
    """Three classes for all clips, two frames each."""
    return {
        "input_ids": tokens(3, TEXT_LENGTH),
        "attention_mask": ones(3, TEXT_LENGTH),
        "pixel_values": torch.randn(batch, 2, 3, 32, 32),
    }


def patches_and_text(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "pixel_values": torch.randn(batch, 16, 192),
        "pixel_attention_mask": ones(batch, 16),
        "spatial_shapes": torch.tensor([[4, 4]] * batch),
    }


def large_image_and_text(batch: int) -> dict[str, torch.Tensor]:
    return {**image_and_text(batch), "pixel_values": torch.randn(batch, 3, 64, 64)}


CLICKS, PLACES = side("points", 16), side("image", 16)

CASES = (
    ZooCase(
        name="hf_owlvit",
        build=owlvit,
        inputs=images_and_queries,
        modalities=IMAGE_AND_TEXT,
        # CLIP's matrix of similarities, of which two texts belong to each image; then each patch with its image's texts
        # in OwlViTClassPredictionHead.forward: the text tower is causal, but these are one vector for each query.
        points=(
            point("owlvit", "similarity", meets=("image", "text"), selected=False, sites_known=False),
            point("class_head", "similarity", pooled(side("image", WIDTH), side("text", WIDTH))),
        ),
        rules=({"id": "head", "match": {"kind": "similarity", "owner": "class_head"}, "normalize": "image"},),
        normalize="image",
        stage=3,
    ),
    ZooCase(
        name="hf_clipseg",
        build=clipseg,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # film_mul(text) * image + film_add(text), with the image as [L, B, C], in CLIPSegDecoder.forward
        points=(point("decoder", "product", pooled(side("image", 8), side("text", 8)), calls=2),),
        normalize="image",
        stage=3,
    ),
    ZooCase(
        name="hf_bridgetower",
        build=bridgetower,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(
            *(
                point(
                    f"cross_modal_{stream}_layers.{layer}.crossattention.self",
                    "attention",
                    pooled(side("text", 64), side("image", 64)),
                    calls=2,
                    level="middle",
                )
                for stream in ("text", "image")
                for layer in range(2)
            ),
            point("", "concat", flat(side("text", 64), side("image", 64))),
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_x_clip",
        build=x_clip,
        inputs=clips_and_classes,
        modalities={"video": ["pixel_values"], "text": ["input_ids"]},
        # Class texts read the frames' patches; then each clip is compared with its own reading of every class.
        points=(
            *(
                point(
                    f"prompts_generator.decoder.{layer}.cross_attn",
                    "attention",
                    pooled(side("text", 16), side("video", 16)),
                    level=level,
                )
                for layer, level in enumerate(("middle", "late"))
            ),
            point("", "similarity", meets=("video", "text"), selected=False, sites_known=False),
        ),
        rules=({"id": "prompt", "match": {"kind": "attention"}, "normalize": "text"},),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_siglip2",
        build=siglip2,
        inputs=patches_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(point("", "similarity", flat(side("image", WIDTH), side("text", WIDTH))),),
        normalize="image",
        stage=3,
    ),
    ZooCase(
        name="hf_sam",
        build=sam,
        inputs=lambda batch: {
            "pixel_values": torch.randn(batch, 3, 32, 32),
            "input_points": torch.rand(batch, 1, 2, 2) * 32,
        },
        modalities={"image": ["pixel_values"], "points": ["input_points"]},
        # Two-way attention, last of all from the clicks; mask tokens then make the weights of a map.
        points=(
            *(
                point(f"mask_decoder.transformer.{path}", "attention", pooled(CLICKS, PLACES), level="middle")
                for path in (
                    "layers.0.cross_attn_token_to_image",
                    "layers.1.cross_attn_token_to_image",
                    "final_attn_token_to_image",
                )
            ),
            *(
                point(f"mask_decoder.transformer.{path}", "attention", pooled(PLACES, CLICKS), level="middle")
                for path in ("layers.0.cross_attn_image_to_token", "layers.1.cross_attn_image_to_token")
            ),
            point("mask_decoder", "matmul", meets=("points", "image"), selected=False, sites_known=False),
        ),
        # Positions are added to the keys alone, so the keys' stream can be g, never f.
        rules=(
            {
                "id": "clicks",
                "match": {
                    "kind": "attention",
                    "owner": ["**.cross_attn_token_to_image", "**.final_attn_token_to_image"],
                },
                "normalize": "points",
                "replace": "f",
            },
            {
                "id": "places",
                "match": {"kind": "attention", "owner": "**.cross_attn_image_to_token"},
                "normalize": "image",
                "replace": "f",
            },
        ),
        normalize="points",
        stage=3,
    ),
    ZooCase(
        name="hf_grounding_dino",
        build=grounding_dino,
        inputs=large_image_and_text,
        modalities=IMAGE_AND_TEXT,
        # One matrix of scores for both directions in the encoder's fusion; a product that chooses queries; the
        # decoder's queries, chosen among the image's places, read the text.
        points=(
            point(
                "encoder.layers.0.fusion_layer.attn",
                "attention",
                pooled(side("image", WIDTH), side("text", WIDTH)),
                calls=3,
                level="middle",
            ),
            point(
                "encoder_output_class_embed",
                "matmul",
                pooled(side("image", WIDTH), side("text", WIDTH)),
                level="middle",
            ),
            point(
                "decoder.layers.0.encoder_attn_text",
                "attention",
                pooled(side("image", WIDTH), side("text", WIDTH)),
                calls=2,
            ),
        ),
        normalize="image",
        stage=3,
    ),
)
