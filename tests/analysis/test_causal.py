"""Causal streams: told apart from those that see both ways, and from those that see no other position at all."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from regbn_surgery import Inputs, Plan, plan, regbnify
from regbn_surgery._analysis import Analysis, analyse
from regbn_surgery._errors import PlanError
from regbn_surgery._facts import find_facts
from regbn_surgery._inputs import make_batches
from regbn_surgery._surgery._site import sites_of

TOKENS = 6


class Reader(nn.Module):
    """Tokens read causally, both ways, or one by one; an image is attended to; one prediction for each token."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(50, 8)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.image = nn.Linear(5, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        if self.how in ("causal", "both ways", "pooled"):
            length = ids.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).triu(1) if self.how != "both ways" else None
            x = x + self.own(x, x, x, attn_mask=mask, need_weights=False)[0]
        elif self.how == "recurrent both ways":
            x = self.recurrent(x)[0]
        image = self.image(image)
        x = x + self.cross(x, image, image, need_weights=False)[0]
        return self.head(x.mean(1) if self.how == "pooled" else x)


def looked_at(model: nn.Module, inputs: Inputs) -> Analysis:
    return analyse(model, make_batches(model, inputs))


def causal(model: nn.Module, inputs: Inputs) -> frozenset[str]:
    return find_facts(model, looked_at(model, inputs)).causal


def found(how: str, model: nn.Module | None = None) -> frozenset[str]:
    torch.manual_seed(0)
    model = model or Reader(how)
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, TOKENS)))
    return causal(model, inputs)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("causal", {"ids"}),
        ("both ways", set()),
        ("recurrent both ways", set()),
        ("one by one", set()),  # position-wise: no position sees another one, so nothing can leak through a decoder
        ("pooled", set()),  # causal inside, but nothing is predicted position by position
    ],
)
def test_streams(how: str, expected: set[str]) -> None:
    assert found(how) == expected


class Padded(nn.Module):
    """A text with padding that nobody attends to; `how`: causal or both ways, and whether padding comes out as zero."""

    def __init__(self, how: str, zeroed: bool) -> None:
        super().__init__()
        self.how, self.zeroed = how, zeroed
        self.words, self.image, self.head = nn.Embedding(50, 8), nn.Linear(5, 8), nn.Linear(8, 9)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        seen = attention_mask[:, None].expand(-1, length, -1).clone()
        if self.how == "causal":
            seen = seen * torch.ones(length, length, dtype=torch.int64).tril()
        seen = seen | torch.eye(length, dtype=torch.int64)  # a row without any key would be NaN
        x = self.words(ids)
        x = x + self.own(x, x, x, attn_mask=(seen == 0).repeat_interleave(2, 0), need_weights=False)[0]
        image = self.image(image)
        x = self.head(x + self.cross(x, image, image, need_weights=False)[0])
        return x * attention_mask[..., None] if self.zeroed else x


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize(("how", "expected"), [("causal", {"ids"}), ("both ways", set())])
@pytest.mark.parametrize("lengths", [(12, 12), (12, 10), (10, 10), (11, 11), (9, 6), (4, 5), (2, 2)])
@pytest.mark.parametrize("sides", ["right", "left", "both"])
def test_padding_hides_no_order(
    sides: str, lengths: tuple[int, int], how: str, expected: set[str], zeroed: bool
) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(2, 12, dtype=torch.int64)
    for row, (many, length) in enumerate(zip(mask, lengths, strict=True)):
        words = slice(12 - length, None) if sides == "left" or (sides == "both" and row) else slice(length)
        many[words] = 1
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, 12)) * mask, mask)
    assert causal(Padded(how, zeroed), inputs) == expected


def test_a_recurrent_decoder_is_causal() -> None:
    model = Reader("recurrent both ways")
    model.recurrent = nn.LSTM(8, 8, batch_first=True)
    assert found("", model) == {"ids"}


def test_tokens_that_the_model_refuses_are_passed_over() -> None:
    class Strict(Reader):
        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            if int(ids[:, -1].min()) != int(ids[:, -1].max()) or int(ids[0, -1]) not in (7, 8):
                raise ValueError("the last token must be 7 or 8")
            return super().forward(image, ids)

    torch.manual_seed(0)
    ids = torch.randint(9, 50, (2, TOKENS))
    ids[:, -1] = 7
    model = Strict("causal")
    inputs = Inputs(torch.randn(2, 4, 5), ids)
    assert causal(model, inputs) == {"ids"}


@pytest.mark.parametrize("highest", [0, 9, 49])
def test_no_token_is_tried_that_the_table_may_not_have(highest: int) -> None:
    model = Reader("causal")
    seen: list[int] = []
    model.words.register_forward_pre_hook(lambda _, args: seen.append(int(args[0].max())))
    torch.manual_seed(0)
    ids = torch.full((2, TOKENS), highest)
    inputs = Inputs(torch.randn(2, 4, 5), ids)
    assert causal(model, inputs) == {"ids"}
    assert max(seen) <= max(highest, 1)


def test_the_model_is_left_as_it_was() -> None:
    model = Reader("causal").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found("", model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_weights_nothing_is_said() -> None:
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, TOKENS)))
    with torch.device("meta"):
        empty = Reader("causal")
    assert causal(empty, inputs) == frozenset()


class Decoder(nn.Module):
    """A causal text tower, whose states are an output; what meets the image is made of them in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(50, 8)
        self.own = nn.LSTM(8, 8, batch_first=True)
        self.strided = nn.Conv1d(8, 8, 2, stride=2)
        self.project = nn.Linear(8, 8)
        self.image = nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)
        self.predict = nn.Linear(8, 50)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.own(self.words(ids))[0]
        image = self.image(image)  # [B, N, C]
        if self.how == "last":  # [B, C]
            fused = self.head(torch.cat([image.mean(1), states[:, -1]], dim=-1))
        elif self.how == "queries":  # ids are [B * Q, L], as of a detector that is asked for Q things
            ends = ids.argmax(dim=-1)
            queries = self.project(states[torch.arange(len(ids)), ends]).view(len(image), -1, 8)  # [B, Q, C]
            fused = self.attend(queries, image)
        elif self.how == "strided":  # [B, L / 2, C]
            fused = self.attend(self.strided(states.transpose(1, 2)).transpose(1, 2), image)
        elif self.how == "channels first":
            fused = torch.cat([self.strided(states.transpose(1, 2)), image.mean(1)[:, :, None].expand(-1, -1, 3)], 1)
        else:  # [B, L, C]
            fused = self.attend(states, image)
        return fused, self.predict(states)

    def attend(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (image @ text.transpose(1, 2)).softmax(-1) @ text


def images_and_texts(batch: int, queries: int = 1) -> Inputs:
    torch.manual_seed(0)
    ids = torch.stack([torch.randperm(46)[:TOKENS] + 3 for _ in range(batch * queries)])
    return Inputs(torch.randn(batch, 4, 5), ids)


def planned(how: str, queries: int = 1, **extra: object) -> Plan:
    inputs = functools.partial(images_and_texts, queries=queries)
    rules = {"version": 1, "rules": [{"id": "r", "match": {}, "normalize": "image", "against": "ids", **extra}]}
    return plan(Decoder(how).eval(), rules, inputs)


@pytest.mark.parametrize("how", ["stream", "strided", "channels first"])
def test_a_causal_stream_cannot_be_g_whatever_its_length_and_layout(how: str) -> None:
    with pytest.raises(PlanError, match="would leak later positions into earlier ones"):
        planned(how)
    assert planned(how, allow_noncausal=True).sites[0].g.causal


def test_a_plan_that_is_given_on_keeps_what_it_knows() -> None:
    made = planned("stream", allow_noncausal=True)
    model = regbnify(Decoder("stream").eval(), made, images_and_texts)
    assert [site.causal_g for site in sites_of(model)] == [True]


@pytest.mark.parametrize(("how", "queries"), [("last", 1), ("queries", 3), ("queries", TOKENS)])
def test_one_vector_for_each_text_is_no_stream(how: str, queries: int) -> None:
    (site,) = planned(how, queries).sites
    assert site.g.causal is False
    assert how == "last" or site.g.layout.sequence


def test_a_stream_that_is_read_as_it_is_where_the_decoder_has_another_input() -> None:
    """Encoder and decoder tokens are one modality: what is read of the encoder has no later positions to hide."""

    class Captioner(Reader):
        def forward(self, image: torch.Tensor, ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
            memory = self.recurrent(self.words(ids))[0]
            image = self.image(image)
            image = image + self.cross(image, memory, memory, need_weights=False)[0]
            states = self.words(target_ids)
            mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
            states = states + self.own(states, states, states, attn_mask=mask, need_weights=False)[0]
            return self.head(states + self.cross(states, image, image, need_weights=False)[0])

    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, TOKENS)), torch.randint(3, 50, (2, TOKENS)))
    rule = {"id": "r", "match": {"kind": "attention"}, "normalize": "image", "against": "text"}
    rules = {"version": 1, "modalities": {"image": "image", "text": ["ids", "target_ids"]}, "rules": [rule]}
    with pytest.raises(PlanError) as raised:
        plan(Captioner("").eval(), rules, inputs)
    assert str(raised.value).count("would leak later positions") == 1  # of the decoder's reading


def test_a_pair_of_modules_is_looked_at_in_the_same_way() -> None:
    class Pooled(Decoder):
        def __init__(self) -> None:
            super().__init__("queries")
            self.pooled = nn.Linear(8, 8)

        def attend(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return super().attend(self.pooled(text), image)

    def rules(module: str) -> dict[str, object]:
        pair = {"f": "module:image", "g": f"module:{module}"}
        return {"version": 1, "rules": [{"id": "r", "pair": pair, "replace": "f"}]}

    assert (
        plan(Pooled().eval(), rules("pooled"), functools.partial(images_and_texts, queries=3)).sites[0].g.causal
        is False
    )
    with pytest.raises(PlanError, match="would leak later positions"):
        plan(Decoder("stream").eval(), rules("words"), images_and_texts)


class Blind(nn.Module):
    """A causal text behind padding: what attends to nothing but padding is NaN, as in torch's own layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.image, self.head = nn.Embedding(50, 8), nn.Linear(5, 8), nn.Linear(8, 9)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        unseen = attention_mask[:, None] == 0
        if self.how == "causal":
            unseen = unseen | torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        scores = (x @ x.transpose(1, 2)).masked_fill(unseen, float("-inf"))
        x = x + scores.softmax(-1) @ x
        image = self.image(image)
        return self.head(x + self.cross(x, image, image, need_weights=False)[0])


@pytest.mark.filterwarnings("ignore:RB016")
@pytest.mark.parametrize(("how", "expected"), [("causal", {"ids"}), ("both ways", set())])
def test_not_a_number_at_padding_hides_no_order(how: str, expected: set[str]) -> None:
    torch.manual_seed(0)
    mask = (torch.arange(12) >= torch.tensor([[5], [7]])).long()
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, 12)) * mask, mask)
    assert torch.isnan(Blind(how)(*inputs.args)).any() == (how == "causal")
    assert causal(Blind(how), inputs) == expected
