"""Question answering and sentiment models whose streams read each other by attention, layer upon layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import PatchEncoder, TokenEncoder


class Hop(nn.Module):
    """One hop of a stacked attention network: the query looks at the regions and takes in what it saw."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.region = nn.Linear(features, hidden, bias=False)
        self.query = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, regions: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        seen = torch.tanh(self.region(regions) + self.query(query).unsqueeze(dim=1))
        weights = F.softmax(self.score(seen), dim=1)
        return (weights * regions).sum(dim=1) + query


class StackedAttention(nn.Module):
    """Two hops over the regions of an image (Yang et al., 2016)."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, features)
        self.embedding = nn.Embedding(40, 6)
        self.question_encoder = nn.LSTM(6, features, batch_first=True)
        self.hops = nn.ModuleList([Hop(features, 10) for _ in range(2)])
        self.head = nn.Linear(features, 5)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        regions = self.image_encoder(image)
        _, (state, _) = self.question_encoder(self.embedding(question))
        query = state.squeeze(0)
        for hop in self.hops:
            query = hop(regions, query)
        return self.head(query)


class CoAttention(nn.Module):
    """ViLBERT's BertBiAttention: each stream queries the keys and values of the other, in one forward."""

    def __init__(self, image_features: int, text_features: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, hidden // heads
        self.query1, self.key1, self.value1 = (nn.Linear(image_features, hidden) for _ in range(3))
        self.query2, self.key2, self.value2 = (nn.Linear(text_features, hidden) for _ in range(3))
        self.dropout1, self.dropout2 = nn.Dropout(0.1), nn.Dropout(0.1)
        self.out1, self.out2 = nn.Linear(hidden, image_features), nn.Linear(hidden, text_features)

    def transpose_for_scores(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.size()[:-1], self.heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query1, key1, value1 = (self.transpose_for_scores(f(image)) for f in (self.query1, self.key1, self.value1))
        query2, key2, value2 = (self.transpose_for_scores(f(text)) for f in (self.query2, self.key2, self.value2))
        scores1 = torch.matmul(query2, key1.transpose(-1, -2)) / math.sqrt(self.head_size)
        context1 = torch.matmul(self.dropout1(scores1.softmax(dim=-1)), value1)
        scores2 = torch.matmul(query1, key2.transpose(-1, -2)) / math.sqrt(self.head_size)
        context2 = torch.matmul(self.dropout2(scores2.softmax(dim=-1)), value2)
        context1 = context1.permute(0, 2, 1, 3).contiguous().flatten(2)
        context2 = context2.permute(0, 2, 1, 3).contiguous().flatten(2)
        return self.out1(context2), self.out2(context1)


class CoAttentionLayer(nn.Module):
    def __init__(self, image_features: int, text_features: int) -> None:
        super().__init__()
        self.biattention = CoAttention(image_features, text_features, 8, heads=2)
        self.image_norm, self.text_norm = nn.LayerNorm(image_features), nn.LayerNorm(text_features)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image_read, text_read = self.biattention(image, text)
        return self.image_norm(image + image_read), self.text_norm(text + text_read)


class ViLBertLike(nn.Module):
    """Two co-attending streams and a product of their pooled first tokens (Lu et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, 12)
        self.text_encoder = TokenEncoder(40, 10)
        self.layers = nn.ModuleList([CoAttentionLayer(12, 10) for _ in range(2)])
        self.image_pooler, self.text_pooler = nn.Linear(12, 6), nn.Linear(10, 6)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(6, 2)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, text = self.image_encoder(image), self.text_encoder(text)
        for layer in self.layers:
            image, text = layer(image, text)
        pooled_image = torch.relu(self.image_pooler(image[:, 0]))
        pooled_text = torch.relu(self.text_pooler(text[:, 0]))
        return self.head(self.dropout(pooled_text * pooled_image))


class MHAtt(nn.Module):
    """Multi-head attention in MCAN's argument order: values, keys, queries, mask."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_v, self.linear_k, self.linear_q = (nn.Linear(features, features) for _ in range(3))
        self.linear_merge = nn.Linear(features, features)

    def forward(self, v: torch.Tensor, k: torch.Tensor, q: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, size = q.size(0), q.size(-1) // self.heads
        v = self.linear_v(v).view(batch, -1, self.heads, size).transpose(1, 2)
        k = self.linear_k(k).view(batch, -1, self.heads, size).transpose(1, 2)
        q = self.linear_q(q).view(batch, -1, self.heads, size).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(size)
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        out = torch.matmul(F.softmax(scores, dim=-1), v).transpose(1, 2).contiguous()
        return self.linear_merge(out.view(batch, -1, self.heads * size))


class SelfAttentionUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.mhatt = MHAtt(features, 2)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.norm(x + self.mhatt(x, x, x, mask))


class GuidedAttentionUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.mhatt1, self.mhatt2 = MHAtt(features, 2), MHAtt(features, 2)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, x: torch.Tensor, y: torch.Tensor, y_mask: torch.Tensor | None) -> torch.Tensor:
        x = self.norm1(x + self.mhatt1(v=x, k=x, q=x, mask=None))
        return self.norm2(x + self.mhatt2(v=y, k=y, q=x, mask=y_mask))


class AttFlat(nn.Module):
    """Attentive pooling of a sequence to a vector."""

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, 1))
        self.linear_merge = nn.Linear(features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = F.softmax(self.mlp(x), dim=1)
        glimpses = [torch.sum(weights[:, :, i : i + 1] * x, dim=1) for i in range(weights.size(2))]
        return self.linear_merge(torch.cat(glimpses, dim=1))


class ModularCoAttention(nn.Module):
    """MCAN (Yu et al., 2019): the question encodes itself, then guides the regions, then both are summed."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, features)
        self.embedding = nn.Embedding(40, features, padding_idx=0)
        self.encoders = nn.ModuleList([SelfAttentionUnit(features) for _ in range(2)])
        self.decoders = nn.ModuleList([GuidedAttentionUnit(features) for _ in range(2)])
        self.flat_image, self.flat_question = AttFlat(features, 10), AttFlat(features, 10)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        y_mask = (question == 0)[:, None, None, :]
        x, y = self.image_encoder(image), self.embedding(question)
        for encoder in self.encoders:
            y = encoder(y, y_mask)
        for decoder in self.decoders:
            x = decoder(x, y, y_mask)
        return self.head(self.norm(self.flat_question(y) + self.flat_image(x)))


class AdaptationGate(nn.Module):
    """MAG (Rahman et al., 2020): shifts each word vector by what was seen and heard while it was said."""

    def __init__(self, text: int, visual: int, acoustic: int, beta: float = 0.5) -> None:
        super().__init__()
        self.beta = beta
        self.W_hv, self.W_ha = nn.Linear(visual + text, text), nn.Linear(acoustic + text, text)
        self.W_v, self.W_a = nn.Linear(visual, text), nn.Linear(acoustic, text)
        self.norm, self.dropout = nn.LayerNorm(text), nn.Dropout(0.1)

    def forward(self, text: torch.Tensor, visual: torch.Tensor, acoustic: torch.Tensor) -> torch.Tensor:
        weight_v = F.relu(self.W_hv(torch.cat((visual, text), dim=-1)))
        weight_a = F.relu(self.W_ha(torch.cat((acoustic, text), dim=-1)))
        h_m = weight_v * self.W_v(visual) + weight_a * self.W_a(acoustic)
        threshold = text.norm(2, dim=-1) / (h_m.norm(2, dim=-1) + 1e-6) * self.beta
        alpha = torch.min(threshold, torch.ones_like(threshold)).unsqueeze(dim=-1)
        return self.dropout(self.norm(alpha * h_m + text))


class MagBertLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = TokenEncoder(40, 8)
        self.gate = AdaptationGate(8, 5, 6)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, text: torch.Tensor, visual: torch.Tensor, acoustic: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.gate(self.embedding(text), visual, acoustic))[:, 0])


class Seq2Seq(nn.Module):
    """`nn.Transformer` from image patches to words; the words then meet the image once more."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, features)
        self.text_encoder = TokenEncoder(40, features)
        self.transformer = nn.Transformer(features, 2, 1, 1, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(2 * features, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, text = self.image_encoder(image), self.text_encoder(text)
        words = self.transformer(image, text)
        return self.head(torch.cat([words.mean(dim=1), image.mean(dim=1)], dim=-1))


class EfficientAttention(nn.Module):
    """Linear attention: keys meet values of their own stream first, so queries read a summary (Shen et al., 2021)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(features, features), nn.Linear(features, 2 * features)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q = self.q(x).softmax(dim=-1)
        k, v = self.kv(context).chunk(2, dim=-1)
        summary = k.softmax(dim=1).transpose(1, 2) @ v
        return x + q @ summary


class LinearCrossAttention(nn.Module):
    """The reading stream keeps its home, so it meets the other again in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.thermal = PatchEncoder(3, 8), PatchEncoder(1, 8)
        self.cross = EfficientAttention(8)
        self.head = nn.Linear(16, 4)

    def forward(self, rgb: torch.Tensor, thermal: torch.Tensor) -> torch.Tensor:
        rgb, thermal = self.rgb(rgb), self.thermal(thermal)
        rgb = self.cross(rgb, thermal)
        return self.head(torch.cat([rgb.mean(1), thermal.mean(1)], dim=1))


class AttendAndTell(nn.Module):
    """A caption decoder that looks at the image anew before every word (Xu et al., 2015)."""

    def __init__(self, features: int = 8, hidden: int = 10) -> None:
        super().__init__()
        self.hidden = hidden
        self.image_encoder = PatchEncoder(3, features)
        self.embedding = nn.Embedding(40, 6)
        self.image_score, self.state_score = nn.Linear(features, 7), nn.Linear(hidden, 7)
        self.score = nn.Linear(7, 1)
        self.cell = nn.LSTMCell(6 + features, hidden)
        self.head = nn.Linear(hidden, 40)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        regions, words = self.image_encoder(image), self.embedding(text)
        h = regions.new_zeros(regions.size(0), self.hidden)
        c = torch.zeros_like(h)
        outputs = []
        for t in range(words.size(1)):
            scores = self.score(torch.relu(self.image_score(regions) + self.state_score(h)[:, None])).squeeze(2)
            context = (regions * scores.softmax(dim=1)[:, :, None]).sum(dim=1)
            h, c = self.cell(torch.cat([words[:, t], context], dim=1), (h, c))
            outputs.append(self.head(h))
        return torch.stack(outputs, dim=1)


IMAGE_AND_TEXT = {"image": ["image"], "text": ["text"]}
IMAGE_AND_QUESTION = {"image": ["image"], "question": ["question"]}


def image_and_text(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)


CASES = (
    ZooCase(
        name="stacked_attention",
        build=StackedAttention,
        inputs=image_and_text,
        modalities=IMAGE_AND_QUESTION,
        # The query is added all over the regions, which stay the image's; then it takes in what was seen. In the
        # second hop it is image and question already, so only what it takes in re-enters.
        points=(
            point("hops.0", "sum", pooled(side("image", 10), side("question", 10)), level="middle"),
            point("hops.0", "sum", flat(side("image", 8), side("question", 8)), level="middle"),
            point("hops.1", "sum", flat(side("image", 8), side("image+question", 8))),
        ),
        rules=({"id": "hops", "match": {"kind": "sum"}, "normalize": "image"},),
        normalize="image",
    ),
    ZooCase(
        name="vilbert_coattention",
        build=ViLBertLike,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(
            *(
                point(
                    f"layers.{layer}.biattention",
                    "attention",
                    pooled(side("image", 12), side("text", 10)),
                    calls=2,
                    level="middle",
                )
                for layer in range(2)
                for _ in ("image reads text", "text reads image")
            ),
            point("", "product", flat(side("text", 6), side("image", 6))),
        ),
        normalize="image",
    ),
    ZooCase(
        name="mcan",
        build=ModularCoAttention,
        inputs=image_and_text,
        modalities=IMAGE_AND_QUESTION,
        points=(
            *(
                point(
                    f"decoders.{layer}.mhatt2",
                    "attention",
                    pooled(side("image", 8), side("question", 8)),
                    calls=2,
                    level="middle",
                )
                for layer in range(2)
            ),
            point("", "sum", flat(side("question", 10), side("image", 10))),
        ),
        normalize="image",
        against="question",
    ),
    ZooCase(
        name="mag_bert",
        build=MagBertLike,
        inputs=lambda batch: (tokens(batch, 5, vocabulary=40), torch.randn(batch, 5, 5), torch.randn(batch, 5, 6)),
        modalities={"text": ["text"], "visual": ["visual"], "acoustic": ["acoustic"]},
        # Weights of a modality and text scale that modality, which keeps its home. The ratio of norms is a product
        # of two streams, too, but one number per word: no place for RegBN.
        points=(
            point("gate", "concat", pooled(side("text", 8), side("visual", 5)), level="middle"),
            point("gate", "concat", pooled(side("text", 8), side("acoustic", 6)), level="middle"),
            point("gate", "sum", pooled(side("visual", 8), side("acoustic", 8)), level="middle"),
            point(
                "gate", "product", meets=("text", "visual+acoustic"), level="middle", selected=False, sites_known=False
            ),
            point("gate", "sum", pooled(side("visual+acoustic", 8), side("text", 8))),
        ),
        rules=({"id": "gate", "match": {"kind": ["concat", "sum"]}, "pairs": "all"},),
        normalize="text",
    ),
    ZooCase(
        name="torch_transformer",
        build=Seq2Seq,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # What comes out are the words, which have read the image: they meet it again.
        points=(
            point("", "attention", pooled(side("text", 8), side("image", 8)), level="middle"),
            point("", "concat", flat(side("text", 8), side("image", 8))),
        ),
        normalize="text",
    ),
    ZooCase(
        name="linear_cross_attention",
        build=LinearCrossAttention,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities={"rgb": ["rgb"], "thermal": ["thermal"]},
        points=(
            point("cross", "matmul", meets=("rgb", "thermal"), level="middle", selected=False, sites_known=False),
            point("", "concat", flat(side("rgb", 8), side("thermal", 8))),
        ),
        rules=({"id": "join", "match": {"kind": "concat"}, "normalize": "rgb"},),
        normalize="rgb",
    ),
    ZooCase(
        name="attend_and_tell",
        build=AttendAndTell,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        # At the first word the state is zeros; later it is both, added all over the regions, which stay the image's.
        points=(point("", "concat", flat(side("text", 6), side("image", 8))),),
        normalize="text",
        against="image",
    ),
)
