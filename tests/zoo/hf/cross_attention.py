"""Encoders and decoders in which one stream reads the other by cross-attention, layer after layer."""

from __future__ import annotations

import torch
from torch import nn

from .._case import Point, Site, ZooCase, point, pooled, side, tokens
from ._tiny import BLIP_VISION, IMAGE_AND_TEXT, SPECIAL, TEXT, TEXT_LENGTH, TOWER, WIDTH, image_and_text, ones

#: The stream that reads is f, as it must be where it is a causal decoder.
TEXT_READS_IMAGE = pooled(side("text", WIDTH), side("image", WIDTH))
DECODER_INPUTS = {"image": ["pixel_values"], "text": ["decoder_input_ids"]}


def two_layers(path: str, *sites: Site, calls: int) -> tuple[Point, ...]:
    """The same attention in two layers; only after the last is there no later meeting."""
    return tuple(
        point(path.format(layer), "attention", *sites, calls=calls, level=level)
        for layer, level in enumerate(("middle", "late"))
    )


def blip_matching() -> nn.Module:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    config = BlipConfig(
        text_config={**TEXT, **SPECIAL, "encoder_hidden_size": WIDTH},
        vision_config=BLIP_VISION,
        projection_dim=16,
        image_text_hidden_size=16,
    )
    return BlipForImageTextRetrieval(config)


def blip_captioning() -> nn.Module:
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {**TEXT, **SPECIAL, "encoder_hidden_size": WIDTH}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=BLIP_VISION, projection_dim=16))


def lxmert() -> nn.Module:
    from transformers import LxmertConfig, LxmertModel

    config = LxmertConfig(
        vocab_size=120,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        max_position_embeddings=64,
        l_layers=2,
        r_layers=2,
        x_layers=2,
        visual_feat_dim=20,
    )
    return LxmertModel(config)


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=120,
        d_model=WIDTH,
        num_mel_bins=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_source_positions=20,
        max_target_positions=40,
        decoder_start_token_id=3,
        **SPECIAL,
    )
    return WhisperForConditionalGeneration(config)


def trocr() -> nn.Module:
    from transformers import TrOCRConfig, TrOCRForCausalLM, VisionEncoderDecoderModel, ViTConfig, ViTModel

    decoder = TrOCRConfig(
        vocab_size=120,
        d_model=WIDTH,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=37,
        max_position_embeddings=64,
        cross_attention_hidden_size=WIDTH,
        is_decoder=True,
        add_cross_attention=True,
        **SPECIAL,
    )
    encoder = ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8))
    return VisionEncoderDecoderModel(encoder=encoder, decoder=TrOCRForCausalLM(decoder))


def vit_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

    decoder = GPT2Config(
        vocab_size=120,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=64,
        is_decoder=True,
        add_cross_attention=True,
        **SPECIAL,
    )
    encoder = ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=8))
    return VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(decoder))


def mllama() -> nn.Module:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    text = {
        **TEXT,
        **SPECIAL,
        "num_key_value_heads": 2,
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "vision_output_dim": 3 * WIDTH,  # two intermediate layers and the last
        "intermediate_layers_indices": [0, 1],
        "image_size": 32,
        "patch_size": 8,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=99)
    model = MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
            nn.init.constant_(parameter, 0.5)  # they start at 0, where nothing of the image would get through
    return model


def pix2struct() -> nn.Module:
    from transformers import Pix2StructConfig, Pix2StructForConditionalGeneration

    shared = {"hidden_size": WIDTH, "d_ff": 37, "d_kv": 8}
    text = {**shared, "vocab_size": 120, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    vision = {
        **shared,
        "patch_embed_hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_len": 64,
    }
    return Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=text, vision_config=vision))


def lxmert_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "attention_mask": ones(batch, TEXT_LENGTH),
        "visual_feats": torch.randn(batch, 5, 20),
        "visual_pos": torch.rand(batch, 5, 4),
    }


def image_to_text(batch: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32), "decoder_input_ids": tokens(batch, TEXT_LENGTH)}


def audio_to_text(batch: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(batch, 16, 40), "decoder_input_ids": tokens(batch, TEXT_LENGTH)}


def mllama_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "attention_mask": ones(batch, TEXT_LENGTH),
        "pixel_values": torch.randn(batch, 1, 1, 3, 32, 32),
        "aspect_ratio_ids": ones(batch, 1),
        "aspect_ratio_mask": torch.ones(batch, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(batch, TEXT_LENGTH, 1, 1, dtype=torch.long),
    }


def pix2struct_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Six patches of 8 x 8 x 3 pixels, each led by its row and column."""
    patches = torch.randn(batch, 6, 2 + 192)
    patches[..., 0] = torch.arange(6) // 3
    patches[..., 1] = torch.arange(6) % 3
    return {"flattened_patches": patches, "decoder_input_ids": tokens(batch, TEXT_LENGTH)}


CASES = (
    ZooCase(
        name="hf_blip_matching",
        build=blip_matching,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # QK and PV of BlipTextSelfAttention.forward where it is given encoder_hidden_states
        points=two_layers("text_encoder.encoder.layer.{}.crossattention.self", TEXT_READS_IMAGE, calls=2),
        normalize="text",
        against="image",
        stage=1,
    ),
    ZooCase(
        name="hf_blip_captioning",
        build=blip_captioning,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=two_layers("text_decoder.bert.encoder.layer.{}.crossattention.self", TEXT_READS_IMAGE, calls=2),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_lxmert",
        build=lxmert,
        inputs=lxmert_inputs,
        modalities={"text": ["input_ids"], "image": ["visual_feats", "visual_pos"]},
        # LxmertXLayer calls one LxmertAttention twice, with the roles of the streams swapped: a site for each.
        points=two_layers(
            "encoder.x_layers.{}.visual_attention.att",
            pooled(side("image", WIDTH), side("text", WIDTH)),
            pooled(side("image", WIDTH), side("text", WIDTH)),
            calls=4,
        ),
        normalize="image",
        against="text",
        stage=1,
    ),
    ZooCase(
        name="hf_whisper",
        build=whisper,
        inputs=audio_to_text,
        modalities={"audio": ["input_features"], "text": ["decoder_input_ids"]},
        points=two_layers(
            "model.decoder.layers.{}.encoder_attn",
            pooled(side("text", WIDTH), side("audio", WIDTH)),
            calls=1,
        ),
        normalize="text",
        against="audio",
    ),
    ZooCase(
        name="hf_trocr",
        build=trocr,
        inputs=image_to_text,
        modalities=DECODER_INPUTS,
        # bmm of the scores and bmm of the values in TrOCRAttention.forward
        points=two_layers("decoder.model.decoder.layers.{}.encoder_attn", TEXT_READS_IMAGE, calls=2),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_vit_gpt2",
        build=vit_gpt2,
        inputs=image_to_text,
        modalities=DECODER_INPUTS,
        points=two_layers("decoder.transformer.h.{}.crossattention", TEXT_READS_IMAGE, calls=1),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_mllama",
        build=mllama,
        inputs=mllama_inputs,
        modalities=IMAGE_AND_TEXT,
        points=(point("model.language_model.layers.1.cross_attn", "attention", TEXT_READS_IMAGE),),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="hf_pix2struct",
        build=pix2struct,
        inputs=pix2struct_inputs,
        modalities={"image": ["flattened_patches"], "text": ["decoder_input_ids"]},
        points=two_layers("decoder.layer.{}.encoder_decoder_attention.attention", TEXT_READS_IMAGE, calls=1),
        normalize="text",
        against="image",
    ),
)
