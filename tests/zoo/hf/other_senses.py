"""Language models that see, hear or read proteins, and models that act, time, sing and measure depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._tiny import IMAGE_AND_TEXT, SPECIAL, TEXT, TEXT_LENGTH, TOWER, VISION, WIDTH, ones
from .cross_attention import two_layers
from .scatter import DECODER, PLACEHOLDER, scatter_point, text_with_placeholders

VIDEO_PLACEHOLDER = 98
GEMMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}


def qwen3_vl() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    vision = {
        "depth": 3,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_heads": 4,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**TEXT, "num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 3, "rope_parameters": rope}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PLACEHOLDER,
        vision_start_token_id=96,
        vision_end_token_id=97,
        video_token_id=VIDEO_PLACEHOLDER,
    )
    return Qwen3VLForConditionalGeneration(config)


def granite_speech() -> nn.Module:
    from transformers import GraniteSpeechConfig, GraniteSpeechForConditionalGeneration

    encoder = {
        "input_dim": 10,
        "num_layers": 2,
        "hidden_dim": WIDTH,
        "feedforward_mult": 1,
        "num_heads": 4,
        "output_dim": 12,
        "context_size": 8,
        "max_pos_emb": 16,
        "conv_kernel_size": 3,
        "dropout": 0.0,
    }
    config = GraniteSpeechConfig(
        text_config={"model_type": "granite", **DECODER},
        encoder_config=encoder,
        projector_config={
            "model_type": "blip_2_qformer",
            **TOWER,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1,
        },
        audio_token_index=PLACEHOLDER,
        downsample_rate=3,
        window_size=6,
    )
    return GraniteSpeechForConditionalGeneration(config)


def video_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    config = VideoLlavaConfig(
        text_config=LlamaConfig(**DECODER),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=PLACEHOLDER,
        video_token_index=VIDEO_PLACEHOLDER,
        vision_feature_layer=-1,
    )
    return VideoLlavaForConditionalGeneration(config)


def pe_audio_video() -> nn.Module:
    from transformers import PeAudioVideoEncoder, PeAudioVideoEncoderConfig, ViTConfig

    tower = {**TOWER, "head_dim": 8, "max_position_embeddings": 64}
    codec = {"downsampling_ratios": [2, 4], "encoder_hidden_size": 4, "codebook_dim": 12, "hidden_size": 16}
    config = PeAudioVideoEncoderConfig(
        audio_config={"model_type": "pe_audio_encoder", **tower, "dac_config": {"model_type": "dac", **codec}},
        video_config={"model_type": "pe_video_encoder", **tower, "vision_config": ViTConfig(**VISION, num_labels=10)},
        **tower,
    )
    return PeAudioVideoEncoder(config)


def prompt_depth_anything() -> nn.Module:
    from transformers import Dinov2Config, PromptDepthAnythingConfig, PromptDepthAnythingForDepthEstimation

    backbone = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
    )
    config = PromptDepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=WIDTH,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[12, 16],
        fusion_hidden_size=10,
        head_hidden_size=6,
    )
    return PromptDepthAnythingForDepthEstimation(config)


def musicgen_melody() -> nn.Module:
    from transformers import (
        EncodecConfig,
        MusicgenMelodyConfig,
        MusicgenMelodyDecoderConfig,
        MusicgenMelodyForConditionalGeneration,
        T5Config,
    )

    decoder = MusicgenMelodyDecoderConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        ffn_dim=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_codebooks=2,
        max_position_embeddings=64,
        pad_token_id=63,
        bos_token_id=63,
        dropout=0.0,
    )
    codec = EncodecConfig(
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[2, 2],
        codebook_size=64,
        codebook_dim=16,
        num_lstm_layers=1,
        num_residual_layers=1,
    )
    text = T5Config(vocab_size=120, d_model=24, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    config = MusicgenMelodyConfig(
        text_encoder={**text.to_dict(), "model_type": "t5"},
        audio_encoder={**codec.to_dict(), "model_type": "encodec"},
        decoder=decoder.to_dict(),
        num_chroma=12,
        chroma_length=5,
    )
    return MusicgenMelodyForConditionalGeneration(config)


def decision_transformer() -> nn.Module:
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=7,
        act_dim=3,
        hidden_size=16,
        max_ep_len=30,
        n_positions=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return DecisionTransformerModel(config)


def t5gemma2() -> nn.Module:
    from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    encoder = {
        "text_config": {**GEMMA, **layers},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "mm_tokens_per_image": 4,
        "boi_token_index": 96,
        "eoi_token_index": 97,
    }
    config = T5Gemma2Config(encoder=encoder, decoder={**GEMMA, **layers}, image_token_index=PLACEHOLDER)
    model = T5Gemma2ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            nn.init.normal_(parameter, std=0.1)  # it starts at zero
    return model


def evolla() -> nn.Module:
    from transformers import EvollaConfig, EvollaForProteinText2Text

    config = EvollaConfig(
        protein_encoder_config={
            **TOWER,
            "vocab_size": 40,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        **DECODER,
        aligner_num_add_layers=2,
        aligner_ffn_mult=1,
        resampler_depth=1,
        resampler_dim_head=8,
        resampler_heads=2,
        resampler_num_latents=3,
        resampler_ff_mult=1,
    )
    model = EvollaForProteinText2Text(config)
    for name, parameter in model.named_parameters():
        if ".gate_" in name:
            nn.init.constant_(parameter, 0.5)  # they start at 0, where nothing of the protein would get through
    return model


def pi0() -> nn.Module:
    from transformers import PI0Config, PI0ForConditionalGeneration

    heads = {"num_key_value_heads": 2, "head_dim": 8}
    vlm = {
        "model_type": "paligemma",
        "text_config": {"model_type": "gemma", **TEXT, **SPECIAL, **heads},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "projection_dim": WIDTH,
        "image_token_id": PLACEHOLDER,
        "image_token_index": PLACEHOLDER,
    }
    expert = {"model_type": "gemma", **TEXT, **SPECIAL, **heads, "hidden_size": 16}
    config = PI0Config(vlm_config=vlm, dit_config=expert, chunk_size=4, max_state_dim=6, max_action_dim=5)
    return PI0ForConditionalGeneration(config)


def qwen3_vl_inputs(batch: int) -> dict[str, Any]:
    ids = text_with_placeholders(batch, 4)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(batch * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * batch),
        "mm_token_type_ids": (ids == PLACEHOLDER).int(),
    }


def image_and_video(batch: int) -> dict[str, Any]:
    """16 patches of an image and twice 17 tokens of a clip's frames, each after a word."""
    ids = tokens(batch, 5 + 16 + 34, vocabulary=90)
    ids[:, 1:17], ids[:, 18:52] = PLACEHOLDER, VIDEO_PLACEHOLDER
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(batch, 3, 32, 32),
        "pixel_values_videos": torch.randn(batch, 2, 3, 32, 32),
        "attention_mask": ones(batch, 55),
    }


def observed(batch: int) -> dict[str, Any]:
    return {
        "state": torch.randn(batch, 6),
        "noise": torch.randn(batch, 4, 5),
        "timestep": torch.linspace(0.1, 0.9, batch),
        "input_ids": text_with_placeholders(batch, 2 * 16),
        "pixel_values": torch.randn(batch, 2, 3, 32, 32),
        "pixel_attention_mask": torch.ones(batch, 2, dtype=torch.bool),
        "attention_mask": ones(batch, 38),
    }


def keys_and_values(owner: str, *sites: Any, level: str | None = None) -> tuple[Any, ...]:
    """Keys and values of two streams are joined, by heads, before one attention reads both."""
    return tuple(point(owner, "concat", *sites, level=level) for _ in ("keys", "values"))


DEEP = flat(side("image", WIDTH), side("image+text", WIDTH))
EVERY_PAIR = {"id": "all", "pairs": "all", "allow_noncausal": True}

CASES = (
    ZooCase(
        name="hf_qwen3_vl",
        build=qwen3_vl,
        inputs=qwen3_vl_inputs,
        modalities=IMAGE_AND_TEXT,
        # After the scatter, what earlier layers of the vision tower say is added at the image's places in the first
        # two layers of the language model: a line of a helper, which picks the rows of all images, is a point for each.
        points=(
            point("model", "scatter", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            point("model.language_model", "sum", DEEP, level="middle"),
            point("model.language_model", "sum", DEEP),
        ),
        rules=(
            {"id": "write", "match": {"kind": "scatter"}, "normalize": "text"},
            {"id": "deep", "match": {"kind": "sum"}, "pairs": "all"},
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_granite_speech",
        build=granite_speech,
        inputs=lambda batch: {
            "input_ids": text_with_placeholders(batch, 4),
            "input_features": torch.randn(batch, 11, 10),
            "attention_mask": ones(batch, 10),
        },
        modalities={"text": ["input_ids"], "audio": ["input_features"]},
        # Windows of frames are folded into the batch and read by queries that are parameters.
        points=scatter_point("model", source="audio"),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_video_llava",
        build=video_llava,
        inputs=image_and_video,
        modalities={"image": ["pixel_values"], "video": ["pixel_values_videos"], "text": ["input_ids"]},
        points=(
            point("model", "scatter", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            point("model", "scatter", pooled(side("image+text", WIDTH), side("video", WIDTH))),
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_pe_audio_video",
        build=pe_audio_video,
        inputs=lambda batch: {
            "input_values": torch.randn(batch, 1, 48),
            "pixel_values_videos": torch.randn(batch, 4, 3, 32, 32),
        },
        modalities={"audio": ["input_values"], "video": ["pixel_values_videos"]},
        # Each video's frames are stretched to the length of its sound and written into zeros, one video after another.
        points=(point("embedder", "concat", pooled(side("audio", WIDTH), side("video", WIDTH))),),
        normalize="audio",
        against="video",
        stage=3,
    ),
    ZooCase(
        name="hf_prompt_depth_anything",
        build=prompt_depth_anything,
        inputs=lambda batch: {
            "pixel_values": torch.randn(batch, 3, 32, 32),
            "prompt_depth": torch.rand(batch, 1, 6, 6) * 5,
        },
        modalities={"image": ["pixel_values"], "depth": ["prompt_depth"]},
        # In each fusion layer the prompt's own features are added; before it, in the second, a map of the image from
        # another depth of the backbone. In the end the depth's range only scales and shifts.
        points=(
            point(
                "neck.fusion_stage.layers.0",
                "sum",
                flat(side("image", 10, 4, 4), side("depth", 10, 4, 4)),
                level="middle",
            ),
            point(
                "neck.fusion_stage.layers.1",
                "sum",
                flat(side("image+depth", 10, 8, 8), side("image", 10, 8, 8)),
                level="middle",
            ),
            point("neck.fusion_stage.layers.1", "sum", flat(side("image+depth", 10, 8, 8), side("depth", 10, 8, 8))),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "sum"}},),
        normalize="image",
        stage=3,
    ),
    ZooCase(
        name="hf_musicgen_melody",
        build=musicgen_melody,
        inputs=lambda batch: {
            "input_ids": tokens(batch, TEXT_LENGTH),
            "attention_mask": ones(batch, TEXT_LENGTH),
            "input_features": torch.rand(batch, 3, 12),
            "decoder_input_ids": torch.randint(0, 63, (2 * batch, 5)),  # two codebooks, folded into the batch
        },
        modalities={"melody": ["input_features"], "text": ["input_ids"], "music": ["decoder_input_ids"]},
        # The melody, repeated to its length, before the text; both before the music in the decoder.
        points=(
            point("", "concat", pooled(side("melody", WIDTH), side("text", WIDTH)), level="middle"),
            point("decoder.model.decoder", "concat", pooled(side("melody+text", WIDTH), side("music", WIDTH))),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "concat"}},),
        normalize="music",
        stage=3,
    ),
    ZooCase(
        name="hf_decision_transformer",
        build=decision_transformer,
        inputs=lambda batch: {
            "states": torch.randn(batch, 4, 7),
            "actions": torch.randn(batch, 4, 3),
            "returns_to_go": torch.rand(batch, 4, 1),
            "timesteps": torch.arange(4).repeat(batch, 1),
            "attention_mask": ones(batch, 4),
        },
        modalities={"state": ["states"], "action": ["actions"], "return": ["returns_to_go"]},
        # The same code of the time is added to all three, which are then stacked and interleaved.
        points=(
            point(
                "",
                "concat",
                pooled(side("return", 16), side("state", 16)),
                pooled(side("return", 16), side("action", 16)),
                pooled(side("state", 16), side("action", 16)),
            ),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "concat"}},),
        normalize="action",
        stage=3,
    ),
    ZooCase(
        name="hf_t5gemma2",
        build=t5gemma2,
        inputs=lambda batch: {
            "input_ids": text_with_placeholders(batch, 4),
            "pixel_values": torch.randn(batch, 3, 32, 32),
            "attention_mask": ones(batch, 10),
            "decoder_input_ids": tokens(batch, 5, vocabulary=90),
        },
        modalities={"image": ["pixel_values"], "text": ["input_ids"], "answer": ["decoder_input_ids"]},
        # The decoder has one attention for itself and for the encoder: T5Gemma2MergedAttention joins keys with keys
        # and values with values, by heads of 8.
        points=(
            point("model.encoder", "scatter", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            *keys_and_values("model.decoder.layers.0.self_attn", pooled(side("answer", 8), side("image+text", 8))),
            *keys_and_values("model.decoder.layers.1.self_attn", pooled(side("answer", 8), side("image+text", 8))),
        ),
        rules=(
            {"id": "write", "match": {"kind": "scatter"}, "normalize": "text"},
            {"id": "read", "match": {"kind": "concat"}, "normalize": "answer"},
        ),
        normalize="answer",
        stage=3,
    ),
    ZooCase(
        name="hf_evolla",
        build=evolla,
        inputs=lambda batch: {
            "input_ids": tokens(batch, TEXT_LENGTH),
            "attention_mask": ones(batch, TEXT_LENGTH),
            "protein_input_ids": tokens(batch, 9, vocabulary=40),
            "protein_attention_mask": ones(batch, 9),
        },
        modalities={"text": ["input_ids"], "protein": ["protein_input_ids"]},
        # The resampler's latents are parameters. Then both products in a helper of the adapter that ends each layer.
        points=two_layers("model.layers.{}.adapter", pooled(side("text", WIDTH), side("protein", WIDTH)), calls=2),
        normalize="text",
        against="protein",
        stage=3,
    ),
    ZooCase(
        name="hf_pi0",
        build=pi0,
        inputs=observed,
        modalities={
            "image": ["pixel_values"],
            "text": ["input_ids"],
            "state": ["state"],
            "action": ["noise"],
        },
        # Image features replace placeholders by `where`; the state is the token before the noisy actions. Each layer
        # of the action expert puts its keys and values behind those that the language model left in the cache.
        points=(
            point("model", "sum", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            point("embed_action_time", "concat", pooled(side("state", 16), side("action", 16)), level="middle"),
            *keys_and_values("model.dit.layers.0.self_attn", pooled(side("image+text", 8), side("state+action", 8))),
            *keys_and_values("model.dit.layers.1.self_attn", pooled(side("image+text", 8), side("state+action", 8))),
        ),
        rules=(
            {"id": "see", "match": {"kind": "sum"}, "normalize": "text", "allow_noncausal": True},
            {"id": "join", "match": {"kind": "concat"}, "pairs": "all", "allow_noncausal": True},
        ),
        normalize="action",
        stage=3,
    ),
)
