"""Speech, music and other time series: encoders read by decoders, and records joined before them."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._tiny import SPECIAL, TEXT, TEXT_LENGTH, WIDTH, ones
from .cross_attention import two_layers

ENCODER_DECODER = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    **SPECIAL,
}
TEXT_READS_AUDIO = pooled(side("text", WIDTH), side("audio", WIDTH))


def clap() -> nn.Module:
    from transformers import ClapConfig, ClapModel

    audio = {
        "window_size": 4,
        "num_mel_bins": 16,
        "spec_size": 32,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "num_classes": 3,
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "projection_dim": 16,
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "num_attention_heads": [2, 2],
    }
    text = {**TEXT, **SPECIAL, "projection_dim": 16}
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))


def speecht5() -> nn.Module:
    from transformers import SpeechT5Config, SpeechT5ForSpeechToText

    config = SpeechT5Config(
        vocab_size=120,
        hidden_size=WIDTH,
        **ENCODER_DECODER,
        conv_dim=(16, 16),
        conv_stride=(4, 4),
        conv_kernel=(8, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        max_speech_positions=100,
        max_text_positions=40,
    )
    return SpeechT5ForSpeechToText(config)


def speech_to_text() -> nn.Module:
    from transformers import Speech2TextConfig, Speech2TextModel

    config = Speech2TextConfig(
        vocab_size=120,
        d_model=WIDTH,
        **ENCODER_DECODER,
        max_source_positions=64,
        max_target_positions=32,
        num_conv_layers=2,
        conv_kernel_sizes=(3, 3),
        conv_channels=16,
        input_feat_per_channel=16,
        input_channels=1,
    )
    return Speech2TextModel(config)


def seamless() -> nn.Module:
    from transformers import SeamlessM4TConfig, SeamlessM4TForSpeechToText

    config = SeamlessM4TConfig(
        vocab_size=120,
        hidden_size=WIDTH,
        **{**ENCODER_DECODER, "encoder_layers": 1},
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        speech_encoder_layerdrop=0.0,
        speech_encoder_layers=1,
        speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=37,
        feature_projection_input_dim=16,
        num_adapter_layers=1,
        max_position_embeddings=64,
        max_source_positions=64,
        t2u_vocab_size=60,
        t2u_encoder_layers=1,
        t2u_decoder_layers=1,
    )
    return SeamlessM4TForSpeechToText(config)


def musicgen() -> nn.Module:
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    decoder = MusicgenDecoderConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        ffn_dim=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_codebooks=2,
        max_position_embeddings=64,
        pad_token_id=63,
        bos_token_id=63,
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
    text = T5Config(vocab_size=120, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    config = MusicgenConfig(
        text_encoder={**text.to_dict(), "model_type": "t5"},
        audio_encoder={**codec.to_dict(), "model_type": "encodec"},
        decoder=decoder.to_dict(),
    )
    return MusicgenForConditionalGeneration(config)


def clvp() -> nn.Module:
    from transformers import ClvpConfig, ClvpModelForConditionalGeneration

    encoder = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
    }
    decoder = {
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "max_text_tokens": 60,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_mel_attn_blocks": 1,
        "feature_size": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    config = ClvpConfig(text_config=encoder, speech_config=encoder, decoder_config=decoder, projection_dim=16)
    return ClvpModelForConditionalGeneration(config)


def time_series() -> nn.Module:
    from transformers import TimeSeriesTransformerConfig, TimeSeriesTransformerModel

    config = TimeSeriesTransformerConfig(
        prediction_length=4,
        context_length=8,
        lags_sequence=[1, 2],
        num_time_features=2,
        num_static_categorical_features=1,
        cardinality=[5],
        embedding_dimension=[3],
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    return TimeSeriesTransformerModel(config)


def shop_records(batch: int) -> dict[str, torch.Tensor]:
    return {
        "past_values": torch.rand(batch, 10),
        "past_time_features": torch.randn(batch, 10, 2),
        "past_observed_mask": torch.ones(batch, 10),
        "static_categorical_features": torch.randint(0, 5, (batch, 1)),
        "future_values": torch.rand(batch, 4),
        "future_time_features": torch.randn(batch, 4, 2),
    }


CASES = (
    ZooCase(
        name="hf_clap",
        build=clap,
        inputs=lambda batch: {
            "input_ids": tokens(batch, TEXT_LENGTH),
            "input_features": torch.randn(batch, 1, 32, 16),
        },
        modalities={"text": ["input_ids"], "audio": ["input_features"]},
        # Two matrices of similarities with a scale each, in ClapModel.forward
        points=tuple(point("", "similarity", flat(side("text", 16), side("audio", 16))) for _ in ("text", "audio")),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_speecht5",
        build=speecht5,
        inputs=lambda batch: {
            "input_values": torch.randn(batch, 400),
            "decoder_input_ids": tokens(batch, TEXT_LENGTH),
        },
        modalities={"audio": ["input_values"], "text": ["decoder_input_ids"]},
        points=two_layers("speecht5.decoder.wrapped_decoder.layers.{}.encoder_attn", TEXT_READS_AUDIO, calls=2),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_speech_to_text",
        build=speech_to_text,
        inputs=lambda batch: {
            "input_features": torch.randn(batch, 24, 16),
            "decoder_input_ids": tokens(batch, TEXT_LENGTH),
        },
        modalities={"audio": ["input_features"], "text": ["decoder_input_ids"]},
        points=two_layers("decoder.layers.{}.encoder_attn", TEXT_READS_AUDIO, calls=2),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_seamless",
        build=seamless,
        inputs=lambda batch: {
            "input_features": torch.randn(batch, 20, 16),
            "attention_mask": ones(batch, 20),
            "decoder_input_ids": tokens(batch, TEXT_LENGTH),
        },
        modalities={"audio": ["input_features"], "text": ["decoder_input_ids"]},
        points=two_layers("text_decoder.layers.{}.cross_attention", TEXT_READS_AUDIO, calls=1),
        normalize="text",
        against="audio",
        stage=3,
    ),
    ZooCase(
        name="hf_musicgen",
        build=musicgen,
        inputs=lambda batch: {
            "input_ids": tokens(batch, TEXT_LENGTH),
            "decoder_input_ids": torch.randint(0, 63, (2 * batch, 5)),  # two codebooks, folded into the batch
        },
        modalities={"text": ["input_ids"], "music": ["decoder_input_ids"]},
        points=two_layers(
            "decoder.model.decoder.layers.{}.encoder_attn",
            pooled(side("music", WIDTH), side("text", WIDTH)),
            calls=1,
        ),
        normalize="music",
        against="text",
        stage=3,
    ),
    ZooCase(
        name="hf_clvp",
        build=clvp,
        inputs=lambda batch: {
            "input_ids": tokens(batch, TEXT_LENGTH),
            "input_features": torch.randn(batch, 16, 20),
        },
        modalities={"text": ["input_ids"], "speech": ["input_features"]},
        # concat([mel_spec, text_embeds], dim=1) in ClvpConditioningEncoder.forward. What the speech encoder reads are
        # codes chosen by an argmax: no content passes through it.
        points=(point("conditioning_encoder", "concat", pooled(side("text", WIDTH), side("speech", WIDTH))),),
        rules=({"id": "condition", "match": {"kind": "concat"}, "normalize": "text", "replace": "f"},),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_time_series",
        build=time_series,
        inputs=shop_records,
        modalities={
            "series": ["past_values", "future_values"],
            "calendar": ["past_time_features", "future_time_features"],
            "store": ["static_categorical_features"],
        },
        # TimeSeriesTransformerModel.create_network_inputs: the store beside the scale of the series, both beside the
        # calendar, all beside the lagged series
        points=(
            point("", "concat", flat(side("series", 2), side("store", 3)), level="middle"),
            point("", "concat", pooled(side("calendar", 2), side("series+store", 5)), level="middle"),
            point("", "concat", pooled(side("series+calendar+store", 7), side("series", 2))),
        ),
        rules=({"id": "all", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="series",
        stage=3,
    ),
)
