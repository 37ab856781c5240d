"""Documents: words, where they stand on the page, and the page itself."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._tiny import SPECIAL, TEXT, TEXT_LENGTH, WIDTH, ones

TEXT_AND_LAYOUT = {"text": ["input_ids"], "layout": ["bbox"]}


def layoutlm() -> nn.Module:
    from transformers import LayoutLMConfig, LayoutLMModel

    return LayoutLMModel(LayoutLMConfig(**TEXT, max_2d_position_embeddings=64))


def layoutlmv3() -> nn.Module:
    from transformers import LayoutLMv3Config, LayoutLMv3Model

    config = LayoutLMv3Config(
        **TEXT,
        **SPECIAL,
        max_2d_position_embeddings=1024,
        coordinate_size=4,
        shape_size=8,
        input_size=32,
        patch_size=8,
        rel_pos_bins=4,
        max_rel_pos=8,
        rel_2d_pos_bins=4,
        max_rel_2d_pos=8,
    )
    return LayoutLMv3Model(config)


def lilt() -> nn.Module:
    from transformers import LiltConfig, LiltModel

    text = {**TEXT, **SPECIAL, "hidden_size": 48}
    return LiltModel(LiltConfig(**text, max_2d_position_embeddings=64, channel_shrink_ratio=2))


def bros() -> nn.Module:
    from transformers import BrosConfig, BrosModel

    return BrosModel(BrosConfig(**{**TEXT, "hidden_size": 64}, dim_bbox=8, bbox_scale=100.0))


def udop() -> nn.Module:
    from transformers import UdopConfig, UdopForConditionalGeneration

    config = UdopConfig(
        vocab_size=120,
        d_model=WIDTH,
        d_kv=8,
        d_ff=37,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
        image_size=32,
        patch_size=8,
        max_2d_position_embeddings=64,
        max_length=64,
        relative_bias_args=[{"type": "1d"}],
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return UdopForConditionalGeneration(config)


def boxes(batch: int, length: int) -> torch.Tensor:
    corner = torch.randint(0, 20, (batch, length, 2))
    return torch.cat([corner, corner + torch.randint(1, 20, (batch, length, 2))], dim=-1)


def words_and_boxes(batch: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": tokens(batch, TEXT_LENGTH),
        "bbox": boxes(batch, TEXT_LENGTH),
        "attention_mask": ones(batch, TEXT_LENGTH),
    }


def pages(batch: int) -> dict[str, torch.Tensor]:
    return {**words_and_boxes(batch), "pixel_values": torch.randn(batch, 3, 32, 32)}


def pages_and_answers(batch: int) -> dict[str, torch.Tensor]:
    made = pages(batch)
    return {**made, "bbox": made["bbox"] / 64, "decoder_input_ids": tokens(batch, 5)}


def bros_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**words_and_boxes(batch), "bbox": torch.rand(batch, TEXT_LENGTH, 8)}


WORDS, PLACES = side("text", WIDTH), side("layout", WIDTH)

CASES = (
    ZooCase(
        name="hf_layoutlm",
        build=layoutlm,
        inputs=words_and_boxes,
        modalities=TEXT_AND_LAYOUT,
        # One sum of nine embeddings in LayoutLMEmbeddings.forward: six of them come of the box, one after another.
        points=(
            point("embeddings", "sum", pooled(WORDS, PLACES), level="middle"),
            *(
                point("embeddings", "sum", pooled(side("text+layout", WIDTH), PLACES), level=level)
                for level in ("middle",) * 4 + ("late",)
            ),
        ),
        rules=({"id": "boxes", "match": {"kind": "sum"}, "pairs": "all"},),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_layoutlmv3",
        build=layoutlmv3,
        inputs=pages,
        modalities={**TEXT_AND_LAYOUT, "image": ["pixel_values"]},
        # Words and boxes in the embeddings, the page's patches in the root; the boxes re-enter every layer as a bias of
        # its scores, where there are no channels to normalise.
        points=(
            point("embeddings", "sum", pooled(WORDS, PLACES), level="middle"),
            point("", "concat", pooled(side("text+layout", WIDTH), side("image", WIDTH)), level="middle"),
            *(
                point(
                    f"encoder.layer.{layer}.attention.self",
                    "sum",
                    meets=("text+layout+image", "layout"),
                    level=level,
                    selected=False,
                    sites_known=False,
                )
                for layer, level in enumerate(("middle", "late"))
            ),
        ),
        rules=(
            {"id": "boxes", "match": {"owner": "embeddings"}, "pairs": "all"},
            {"id": "page", "match": {"kind": "concat"}, "pairs": "all"},
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_lilt",
        build=lilt,
        inputs=words_and_boxes,
        modalities=TEXT_AND_LAYOUT,
        # Two streams whose attention scores are added to each other's in LiltSelfAttention.forward; residuals keep them
        # apart. Scores have no channels: RegBN goes between the embeddings.
        points=tuple(
            point(
                f"encoder.layer.{layer}.attention.self",
                "sum",
                meets=("text", "layout"),
                level=level,
                selected=False,
                sites_known=False,
            )
            for layer, level in enumerate(("middle", "late"))
            for _ in ("text's scores", "layout's scores")
        ),
        pair_sites=(pooled(side("text", 48), side("layout", 24)),),
        rules=({"id": "early", "pair": {"f": "module:embeddings", "g": "module:layout_embeddings"}},),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_bros",
        build=bros,
        inputs=bros_inputs,
        modalities=TEXT_AND_LAYOUT,
        # einsum of the queries with embedded relative boxes, [L, L, B, C], in BrosSelfAttention.forward
        points=tuple(
            point(
                f"encoder.layer.{layer}.attention.self",
                "matmul",
                pooled(side("text", 64), side("layout", 16)),
                level=level,
            )
            for layer, level in enumerate(("middle", "late"))
        ),
        normalize="text",
        stage=3,
    ),
    ZooCase(
        name="hf_udop",
        build=udop,
        inputs=pages_and_answers,
        modalities={"text": ["input_ids"], "image": ["pixel_values"], "answer": ["decoder_input_ids"]},
        # combine_image_text_embeddings: each word takes in the patch that it stands on, and the other patches are
        # appended. The decoder then reads both.
        points=(
            point("encoder", "sum", pooled(side("text", WIDTH), side("image", WIDTH)), level="middle"),
            point("encoder", "concat", pooled(side("text+image", WIDTH), side("image", WIDTH)), level="middle"),
            point(
                "decoder.block.0.layer.1.EncDecAttention",
                "attention",
                pooled(side("answer", WIDTH), side("text+image", WIDTH)),
            ),
        ),
        rules=(
            {"id": "page", "match": {"owner": "encoder"}, "normalize": "text", "against": "image"},
            {"id": "read", "match": {"kind": "attention"}, "normalize": "answer"},
        ),
        normalize="text",
        stage=3,
    ),
)
