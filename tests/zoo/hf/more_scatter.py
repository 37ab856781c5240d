"""More language models that write tokens of another modality over placeholders, by other calls and in other layouts."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._tiny import BLIP_VISION, IMAGE_AND_TEXT, SPECIAL, TEXT, VISION, WIDTH, ones
from .cross_attention import two_layers
from .scatter import DECODER, PLACEHOLDER, scatter_point, text_with_placeholders


def llava_next() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        text_config=LlamaConfig(**DECODER),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_id=PLACEHOLDER,
        image_token_index=PLACEHOLDER,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]],
    )
    return LlavaNextForConditionalGeneration(config)


def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    vision = {
        "depth": 2,
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 4, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=PLACEHOLDER,
        vision_start_token_id=96,
        vision_end_token_id=97,
        video_token_id=98,
    )
    return Qwen2VLForConditionalGeneration(config)


def gemma3() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={**TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=PLACEHOLDER,
        image_token_id=PLACEHOLDER,
        boi_token_index=97,
        eoi_token_index=98,
    )
    model = Gemma3ForConditionalGeneration(config)
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)  # it starts at zero
    return model


def kosmos2() -> nn.Module:
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    text = {
        "vocab_size": 120,
        "embed_dim": WIDTH,
        "layers": 2,
        "ffn_dim": 37,
        "attention_heads": 4,
        "max_position_embeddings": 64,
        **SPECIAL,
    }
    return Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=4))


def instructblip() -> nn.Module:
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, OPTConfig

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
    config = InstructBlipConfig(
        vision_config=BLIP_VISION,
        qformer_config={**TEXT, "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1},
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=PLACEHOLDER,
    )
    return InstructBlipForConditionalGeneration(config)


def voxtral() -> nn.Module:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    audio = {
        "num_mel_bins": 16,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_source_positions": 16,
    }
    text = {**DECODER, "head_dim": 8}
    return VoxtralForConditionalGeneration(
        VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=PLACEHOLDER)
    )


def florence2() -> nn.Module:
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    vision = {
        "depths": [1, 1],
        "embed_dim": [16, WIDTH],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "projection_dim": WIDTH,
        "max_temporal_embeddings": 4,
        "max_position_embeddings": 8,
    }
    text = {
        "model_type": "bart",
        "vocab_size": 120,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "decoder_ffn_dim": 37,
        "max_position_embeddings": 64,
        **SPECIAL,
    }
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=PLACEHOLDER, is_encoder_decoder=True
    )
    return Florence2ForConditionalGeneration(config)


def idefics() -> nn.Module:
    from transformers import IdeficsConfig, IdeficsModel

    vision = {
        "embed_dim": WIDTH,
        "image_size": 32,
        "patch_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    config = IdeficsConfig(
        vocab_size=120,
        additional_vocab_size=4,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        cross_layer_interval=1,
        vision_config=vision,
        use_resampler=False,
        alpha_initializer="ones",  # its gates start at 0, where nothing of the image would get through
        freeze_text_layers=False,
        freeze_vision_layers=False,
    )
    return IdeficsModel(config)


def llava_next_inputs(batch: int) -> dict[str, torch.Tensor]:
    """A thumbnail and one tile, laid out with a column of separators: 16 + 4 x 5 tokens."""
    return {
        "input_ids": text_with_placeholders(batch, 36),
        "pixel_values": torch.randn(batch, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[32, 32]] * batch),
    }


def qwen2_vl_inputs(batch: int) -> dict[str, torch.Tensor]:
    """All images' patches in one flat batch, merged by fours."""
    ids = text_with_placeholders(batch, 4)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(batch * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * batch),
        "mm_token_type_ids": (ids == PLACEHOLDER).int(),
    }


def gemma3_inputs(batch: int) -> dict[str, torch.Tensor]:
    ids = text_with_placeholders(batch, 4)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "token_type_ids": (ids == PLACEHOLDER).long(),
    }


def kosmos2_inputs(batch: int) -> dict[str, torch.Tensor]:
    mask = torch.zeros(batch, 11, dtype=torch.long)
    mask[:, 1:5] = 1
    return {
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "input_ids": tokens(batch, 11),
        "image_embeds_position_mask": mask,
        "attention_mask": ones(batch, 11),
    }


def instructblip_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "qformer_input_ids": tokens(batch, 5),
        "qformer_attention_mask": ones(batch, 5),
        "input_ids": text_with_placeholders(batch, 4),
        "attention_mask": ones(batch, 10),
    }


def idefics_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, 7),
        "pixel_values": torch.randn(batch, 1, 3, 32, 32),
        "attention_mask": ones(batch, 7),
        "image_attention_mask": torch.ones(batch, 7, 1, dtype=torch.long),
    }


CASES = (
    ZooCase(
        name="hf_llava_next",
        build=llava_next,
        inputs=llava_next_inputs,
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
        stage=3,
    ),
    ZooCase(
        name="hf_qwen2_vl",
        build=qwen2_vl,
        inputs=qwen2_vl_inputs,
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
        stage=3,
    ),
    ZooCase(
        name="hf_gemma3",
        build=gemma3,
        inputs=gemma3_inputs,
        modalities=IMAGE_AND_TEXT,
        points=scatter_point("model"),
        normalize="text",
        against="image",
        stage=3,
    ),
    ZooCase(
        name="hf_kosmos2",
        build=kosmos2,
        inputs=kosmos2_inputs,
        modalities=IMAGE_AND_TEXT,
        # inputs_embeds[mask] = image_embeds in Kosmos2TextTransformer.forward_embedding
        points=scatter_point("text_model.model"),
        normalize="text",
        against="image",
        stage=3,
    ),
    ZooCase(
        name="hf_voxtral",
        build=voxtral,
        inputs=lambda batch: {
            "input_ids": text_with_placeholders(batch, 4),
            "input_features": torch.randn(batch, 16, 32),
        },
        modalities={"text": ["input_ids"], "audio": ["input_features"]},
        points=scatter_point("model", source="audio"),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_instructblip",
        build=instructblip,
        inputs=instructblip_inputs,
        modalities={"image": ["pixel_values"], "instruction": ["qformer_input_ids"], "text": ["input_ids"]},
        # Queries, mixed with the instruction by self-attention, read the image, and are written into the text.
        points=(
            *(
                point(
                    f"qformer.encoder.layer.{layer}.crossattention.attention",
                    "attention",
                    pooled(side("instruction", WIDTH), side("image", WIDTH)),
                    level="middle",
                )
                for layer in range(2)
            ),
            point("", "scatter", pooled(side("text", WIDTH), side("instruction", WIDTH))),
        ),
        rules=(
            {"id": "read", "match": {"kind": "attention"}, "normalize": "instruction"},
            {"id": "write", "match": {"kind": "scatter"}, "normalize": "text"},
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_florence2",
        build=florence2,
        inputs=lambda batch: {
            "input_ids": text_with_placeholders(batch, 17),
            "pixel_values": torch.randn(batch, 3, 32, 32),
            "decoder_input_ids": tokens(batch, 5),
        },
        modalities={"image": ["pixel_values"], "text": ["input_ids"], "answer": ["decoder_input_ids"]},
        points=(
            point("model", "scatter", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            *two_layers(
                "model.language_model.decoder.layers.{}.encoder_attn",
                pooled(side("answer", WIDTH), side("image+text", WIDTH)),
                calls=1,
            ),
        ),
        rules=(
            {"id": "write", "match": {"kind": "scatter"}, "normalize": "text"},
            {"id": "read", "match": {"kind": "attention"}, "normalize": "answer"},
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_idefics",
        build=idefics,
        inputs=idefics_inputs,
        modalities=IMAGE_AND_TEXT,
        points=two_layers(
            "gated_cross_attn_layers.{}.cross_attn", pooled(side("text", WIDTH), side("image", WIDTH)), calls=1
        ),
        normalize="text",
        against="image",
        stage=3,
    ),
)
