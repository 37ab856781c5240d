"""Records, omics, recommendations and graphs: fields of a table, samples as nodes, messages between modalities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import TokenEncoder, VectorEncoder


class DeepFM(nn.Module):
    """Field embeddings through a factorisation machine and a network at once (Guo et al., 2017)."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, features), nn.Embedding(30, features)
        self.context = nn.Linear(5, features)
        self.user_bias, self.item_bias = nn.Embedding(20, 1), nn.Embedding(30, 1)
        self.context_bias = nn.Linear(5, 1)
        self.deep = nn.Sequential(nn.Linear(3 * features, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        first = self.user_bias(user) + self.item_bias(item) + self.context_bias(context)
        fields = torch.stack([self.user(user), self.item(item), self.context(context)], dim=1)
        second = 0.5 * (fields.sum(dim=1).pow(2) - fields.pow(2).sum(dim=1)).sum(dim=1, keepdim=True)
        return torch.sigmoid(first + second + self.deep(fields.flatten(1)))


class TwoTowers(nn.Module):
    """User and item towers, their inner product as one more feature of a network over both."""

    def __init__(self) -> None:
        super().__init__()
        self.history = nn.EmbeddingBag(30, 8, mode="mean")
        self.item_id = nn.Embedding(30, 8)
        self.user_tower, self.item_tower = VectorEncoder(8, 6), VectorEncoder(8, 6)
        self.ranker = nn.Linear(6 + 6 + 1, 1)

    def forward(self, history: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        user, item = self.user_tower(self.history(history)), self.item_tower(self.item_id(item))
        match = (user * item).sum(dim=-1, keepdim=True)
        return self.ranker(torch.cat([user, item, match], dim=-1))


class SampleGraphConvolution(nn.Module):
    """A graph convolution between the samples of the batch, over a similarity computed from the features."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, features) * 0.3)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        return torch.mm(adjacency, torch.mm(x, self.weight)) + self.bias


class OmicsClassifier(nn.Module):
    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.gc1, self.gc2 = SampleGraphConvolution(in_features, 6), SampleGraphConvolution(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(x, p=2, dim=1)
        adjacency = torch.softmax(unit @ unit.t(), dim=1)
        return self.gc2(F.leaky_relu(self.gc1(x, adjacency), 0.25), adjacency)


class ViewCorrelation(nn.Module):
    """VCDN: every combination of the classes that the views name (Wang et al., 2021)."""

    def __init__(self, classes: int, views: int) -> None:
        super().__init__()
        self.classes = classes
        self.model = nn.Sequential(nn.Linear(classes**views, 8), nn.LeakyReLU(0.25), nn.Linear(8, classes))

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        views = [torch.sigmoid(view) for view in views]
        x = torch.matmul(views[0].unsqueeze(-1), views[1].unsqueeze(1)).reshape(-1, self.classes**2, 1)
        for view in views[2:]:
            x = torch.matmul(x, view.unsqueeze(1)).reshape(view.size(0), -1, 1)
        return self.model(x.reshape(x.size(0), -1))


class Mogonet(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList([OmicsClassifier(size, classes) for size in (9, 7, 5)])
        self.vcdn = ViewCorrelation(classes, views=3)

    def forward(self, mrna: torch.Tensor, methylation: torch.Tensor, mirna: torch.Tensor) -> torch.Tensor:
        views = zip(self.classifiers, (mrna, methylation, mirna), strict=True)
        return self.vcdn([classifier(x) for classifier, x in views])


class VitalsAndNotes(nn.Module):
    """Hourly vitals of unequal length, a note, and what was known at admission (after Khadanga et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.vitals_lstm = nn.LSTM(5, 8, batch_first=True, bidirectional=True)
        self.embedding = nn.Embedding(40, 6, padding_idx=0)
        self.convolutions = nn.ModuleList([nn.Conv1d(6, 4, width, padding=1) for width in (2, 3)])
        self.admission = nn.Linear(4, 5)
        self.head = nn.Linear(16 + 8 + 5, 2)

    def forward(
        self, vitals: torch.Tensor, notes: torch.Tensor, admission: torch.Tensor, vitals_length: torch.Tensor
    ) -> torch.Tensor:
        packed = pack_padded_sequence(vitals, vitals_length, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.vitals_lstm(packed)[0], batch_first=True)
        course = states.sum(dim=1) / vitals_length[:, None]
        words = self.embedding(notes).transpose(1, 2)
        note = torch.cat([F.relu(conv(words)).max(dim=-1)[0] for conv in self.convolutions], dim=1)
        return self.head(torch.cat((course, note, F.relu(self.admission(admission))), dim=1))


class KnowledgeAttention(nn.Module):
    """A question looks at the triples of its subgraph; heads, relations and tails are one modality."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, features)
        self.entity, self.relation = nn.Embedding(25, features), nn.Embedding(6, features)
        self.score = nn.Linear(2 * features, 1)
        self.merge = nn.Linear(2 * features, features)
        self.head = nn.Linear(features, 4)

    def forward(self, text: torch.Tensor, triples: torch.Tensor) -> torch.Tensor:
        h, r, t = triples.unbind(dim=-1)
        facts = torch.tanh(self.entity(h) + self.relation(r)) * self.entity(t)
        query = self.text_encoder(text).mean(dim=1)
        pairs = torch.cat([query.unsqueeze(1).expand(-1, facts.size(1), -1), facts], dim=-1)
        weights = torch.softmax(self.score(pairs).squeeze(-1), dim=-1)
        known = torch.bmm(weights.unsqueeze(1), facts).squeeze(1)
        return self.head(torch.relu(self.merge(torch.cat([query, known], dim=-1))))


class WordsToRegions(nn.Module):
    """Messages along edges from words to regions, summed at the regions, then a gated update of them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.message = nn.Linear(features, features)
        self.update = nn.Linear(features, features)

    def forward(self, regions: torch.Tensor, words: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        source, target = edge_index
        inbox = torch.zeros_like(regions).index_add(1, target, self.message(words).index_select(1, source))
        return F.relu(self.update(regions) + inbox)


class HeterogeneousGraph(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, features)
        self.region_encoder = nn.Linear(7, features)
        self.messages = WordsToRegions(features)
        self.head = nn.Linear(features, 4)

    def forward(self, regions: torch.Tensor, words: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.head(self.messages(self.region_encoder(regions), self.text_encoder(words), edge_index).amax(1))


class AlignedEntities(nn.Module):
    """ERNIE's information fusion (Zhang et al., 2019): each word and the entity it names share one hidden layer."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.words, self.entities = TokenEncoder(40, features), nn.Embedding(25, 6)
        self.word_in, self.entity_in = nn.Linear(features, 10), nn.Linear(6, 10)
        self.word_out, self.entity_out = nn.Linear(10, features), nn.Linear(10, 6)
        self.head = nn.Linear(features, 3)

    def forward(self, words: torch.Tensor, entities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, e = self.words(words), self.entities(entities)
        h = F.gelu(self.word_in(w) + self.entity_in(e))
        return self.head(F.gelu(self.word_out(h))[:, 0]), F.gelu(self.entity_out(h))


class TabularTransformer(nn.Module):
    """Columns of a table as tokens beside the patches of an image, read through a class token."""

    def __init__(self, columns: int = 5, features: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, features, 4, stride=4)
        self.column_weight = nn.Parameter(torch.randn(columns, features) * 0.3)
        self.column_bias = nn.Parameter(torch.zeros(columns, features))
        self.cls = nn.Parameter(torch.zeros(1, 1, features))
        self.layer = nn.TransformerEncoderLayer(features, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(features, 3)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        patches = self.patches(image).flatten(2).mT
        columns = table.unsqueeze(-1) * self.column_weight + self.column_bias
        x = torch.cat([self.cls.expand(image.shape[0], -1, -1), patches, columns], dim=1)
        return self.head(self.layer(x)[:, 0])


def vitals_and_notes(batch: int) -> dict[str, torch.Tensor]:
    return {
        "vitals": torch.randn(batch, 6, 5),
        "notes": tokens(batch, 7, vocabulary=40),
        "admission": torch.randn(batch, 4),
        "vitals_length": torch.tensor([6, 4, 5, 3] * batch)[:batch],
    }


EDGES = torch.tensor([[0, 1, 2, 3, 4, 4], [0, 0, 1, 2, 2, 3]])

CASES = (
    ZooCase(
        name="deepfm",
        build=DeepFM,
        inputs=lambda batch: (
            torch.randint(0, 20, (batch,)),
            torch.randint(0, 30, (batch,)),
            torch.randn(batch, 5),
        ),
        modalities={"user": ["user"], "item": ["item"], "context": ["context"]},
        # Two sums of biases; one stack of fields, of which the machine and the network are two readings. The three
        # parts of the logit have met by then: two re-meetings.
        points=(
            point("", "sum", meets=("user", "item"), level="middle", selected=False, sites_known=False),
            point("", "sum", meets=("user+item", "context"), level="middle", selected=False, sites_known=False),
            point(
                "",
                "concat",
                flat(side("user", 6), side("item", 6)),
                flat(side("user", 6), side("context", 6)),
                flat(side("item", 6), side("context", 6)),
                level=None,
            ),
            point("", "sum", meets=("user+item+context",), level="remeeting", selected=False, sites_known=False),
        ),
        rules=({"id": "fields", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="user",
    ),
    ZooCase(
        name="two_towers",
        build=TwoTowers,
        inputs=lambda batch: (tokens(batch, 4, vocabulary=30), torch.randint(0, 30, (batch,))),
        modalities={"history": ["history"], "item": ["item"]},
        points=(
            point("", "product", flat(side("history", 6), side("item", 6)), level="middle"),
            point("", "concat", meets=("history", "item", "history+item"), selected=False, sites_known=False),
        ),
        rules=({"id": "match", "match": {"kind": "product"}, "normalize": "history"},),
        normalize="history",
    ),
    ZooCase(
        name="mogonet",
        build=Mogonet,
        inputs=lambda batch: (torch.randn(batch, 9), torch.randn(batch, 7), torch.randn(batch, 5)),
        modalities={"mrna": ["mrna"], "methylation": ["methylation"], "mirna": ["mirna"]},
        # Outer products of class scores, taken at the owner's arguments; then of the combinations with a third view.
        points=(
            point("vcdn", "matmul", flat(side("mrna", 3), side("methylation", 3)), level="middle"),
            point("vcdn", "matmul", meets=("mrna+methylation", "mirna"), selected=False, sites_known=False),
        ),
        rules=({"id": "views", "match": {"kind": "matmul", "level": "middle"}, "normalize": "mrna"},),
        normalize="mrna",
    ),
    ZooCase(
        name="vitals_and_notes",
        build=VitalsAndNotes,
        inputs=vitals_and_notes,
        modalities={"vitals": ["vitals"], "notes": ["notes"], "admission": ["admission"]},
        points=(
            point(
                "",
                "concat",
                flat(side("vitals", 16), side("notes", 8)),
                flat(side("vitals", 16), side("admission", 5)),
                flat(side("notes", 8), side("admission", 5)),
            ),
        ),
        rules=({"id": "all", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="vitals",
    ),
    ZooCase(
        name="knowledge_attention",
        build=KnowledgeAttention,
        inputs=lambda batch: (
            tokens(batch, 5, vocabulary=40),
            torch.randint(0, 6, (batch, 7, 3)),
        ),
        modalities={"text": ["text"], "triples": ["triples"]},
        # The question is laid out beside every fact to score it; then it takes in what it knows. The weights of the
        # facts hold both, and gate them: `known` is made of facts.
        points=(
            point("", "concat", pooled(side("text", 8), side("triples", 8)), level="middle"),
            point("", "concat", flat(side("text", 8), side("triples", 8))),
        ),
        normalize="text",
    ),
    ZooCase(
        name="heterogeneous_graph",
        build=HeterogeneousGraph,
        inputs=lambda batch: (torch.randn(batch, 4, 7), tokens(batch, 5, vocabulary=40), EDGES.clone()),
        modalities={"regions": ["regions"], "words": ["words"]},
        # Messages are written into zeros, which belong to nobody; the inbox and the regions are summed.
        points=(point("messages", "sum", pooled(side("regions", 8), side("words", 8))),),
        normalize="regions",
    ),
    ZooCase(
        name="aligned_entities",
        build=AlignedEntities,
        inputs=lambda batch: (tokens(batch, 5, vocabulary=40), torch.randint(0, 25, (batch, 5))),
        modalities={"words": ["words"], "entities": ["entities"]},
        points=(point("", "sum", pooled(side("words", 10), side("entities", 10))),),
        normalize="words",
    ),
    ZooCase(
        name="tabular_transformer",
        build=TabularTransformer,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 5)),
        modalities={"image": ["image"], "table": ["table"]},
        points=(point("", "concat", pooled(side("image", 8), side("table", 8))),),
        normalize="image",
    ),
)
