"""Steps that go on from a key-value cache without the other modality: RegBN does to them what it does without one."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBN, RegBNBypassedError
from regbn_surgery._surgery import identity
from regbn_surgery._surgery._memory import _ATTRIBUTE

from .models import build
from .talkers import (
    PLACEHOLDER,
    WIDTH,
    Beside,
    Cache,
    Causal,
    Elsewhere,
    InPlace,
    Joining,
    Reading,
    See,
    Writing,
    example,
    rewritten,
    talk,
)

WAYS = [
    pytest.param(cls, way, id=f"{cls.__name__}-{way}")
    for cls in (Writing, InPlace, Joining, Beside)
    for way in ("source", "mode")
] + [pytest.param(Reading, "hook", id="Reading-hook")]
every_way = pytest.mark.parametrize(("cls", "way"), WAYS)


@contextmanager
def running(model: nn.Module) -> Iterator[list[int]]:
    """How many positions of f each run of RegBN was given."""
    runs: list[int] = []
    handles = [
        module.register_forward_hook(lambda _, args, __: runs.append(args[0].shape[-1]))
        for module in model.modules()
        if isinstance(module, RegBN)
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@every_way
def test_with_a_cache_it_says_what_it_says_without(cls: type[nn.Module], way: str) -> None:
    model = rewritten(cls, way)
    without = talk(model, example())
    for _ in range(2):
        with running(model) as runs:
            found = talk(model, example(), cache=Cache())
        assert runs[1:] == [1, 1, 1], "one run for each new token"
        torch.testing.assert_close(found, without)
    plain = build(cls).eval()
    with identity(model):
        torch.testing.assert_close(talk(model, example(), cache=Cache()), talk(plain, example(), cache=Cache()))
    assert not torch.allclose(talk(plain, example(), cache=Cache())[1][1:], found[1][1:], atol=0.01)


@every_way
def test_the_tokens_after_the_first_would_be_others_with_the_image_of_another_sample(
    cls: type[nn.Module], way: str
) -> None:
    """What the tests above would not notice if all samples, or all generations, had the same g."""
    model = rewritten(cls, way)
    given, other = example(), example(image=1)
    caches = [Cache(), Cache()]
    with torch.no_grad():
        for cache, each in zip(caches, (given, other), strict=True):
            model(each["ids"], each["image"], cache)
        token = given["ids"][:, -1:]
        found = [model(token, cache=cache) for cache in caches]
        longer = [model(torch.cat([each["ids"], token], dim=1), each["image"])[:, -1:] for each in (given, other)]
    torch.testing.assert_close(found, longer)
    assert not torch.allclose(*found, atol=0.01)


@every_way
def test_a_token_whose_embedding_is_zero_is_no_absent_one(cls: type[nn.Module], way: str) -> None:
    """Padding has such an embedding. Without a cache it is one position of many; alone it must count as well."""
    model, given, cache = rewritten(cls, way), example(), Cache()
    token = given["ids"][:, -1:] + 1
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[token] = 0
        model(given["ids"], given["image"], cache)
        found = model(token, cache=cache)
        longer = model(torch.cat([given["ids"], token], dim=1), given["image"])[:, -1:]
    torch.testing.assert_close(found, longer)


def test_it_lies_on_the_cache_and_goes_with_it() -> None:
    model = rewritten(Writing)
    cache = Cache()
    talk(model, example(), steps=1, cache=cache)
    (met,) = getattr(cache, _ATTRIBUTE).values()
    gone = weakref.ref(met), weakref.ref(met.g)
    size = len(pickle.dumps(copy.deepcopy(model)))
    del met, cache
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    talk(model, example(64), steps=2, cache=Cache())
    assert len(pickle.dumps(model)) < size + 1000


def test_copies_of_a_cache_go_on_each_for_itself_and_so_do_copies_of_the_model() -> None:
    model = rewritten(Writing)
    prompt = Cache()
    with torch.no_grad():
        model(**example(), cache=prompt)
        copies = [copy.deepcopy(prompt), copy.deepcopy(prompt)]
        token = example()["ids"][:, -1:]
        for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            expected = other(torch.cat([example()["ids"], token], dim=1), example()["image"])[:, -1:]
            torch.testing.assert_close(other(token, cache=copy.deepcopy(copies[0])), expected)
        model(token, cache=copies[0])
    assert (prompt.get_seq_length(), copies[0].get_seq_length(), copies[1].get_seq_length()) == (5, 6, 5)


def test_beams_may_change_places_and_another_number_of_samples_is_refused() -> None:
    model = rewritten(Writing)
    given = {name: value.repeat_interleave(2, 0) for name, value in example().items()}
    given["ids"][::2, -1] = 3
    given["ids"][1::2, -1] = 4
    cache = Cache()
    with torch.no_grad():
        model(**given, cache=cache)
        places = torch.tensor([1, 0, 3, 3, 4, 4])
        cache.reorder(places)
        token = torch.full((6, 1), 7)
        found = model(token, cache=cache)
        longer = model(torch.cat([given["ids"][places], token], dim=1), given["image"])[:, -1:]
        torch.testing.assert_close(found, longer)
        cache.reorder(torch.tensor([0, 1]))
        with pytest.raises(RegBNBypassedError, match=r"2 samples of f, the cache 6 of g"):
            model(token[:2], cache=cache)


@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_second_image_is_one_too_many_and_the_same_once_more_is_not(way: str) -> None:
    model = rewritten(Writing, way)
    given, token = example(), example()["ids"][:, -1:]
    with torch.no_grad():
        cache = Cache()
        model(**given, cache=cache)
        model(given["ids"].clone(), given["image"].clone(), cache)
        model(token, cache=cache)
        model(given["ids"], example(image=1)["image"], cache)
        with pytest.raises(RegBNBypassedError, match=r"regbn_x.*different values.*use_cache=False"):
            model(token, cache=cache)
        emptied = Cache()
        for image in (0, 1):
            emptied.kept = None
            model(**example(image=image), cache=emptied)
            found = model(token, cache=emptied)
        expected = model(torch.cat([given["ids"], token], 1), example(image=1)["image"])[:, -1:]
        torch.testing.assert_close(found, expected)


def test_an_emptied_cache_knows_nothing_of_an_image() -> None:
    model = rewritten(Writing)
    cache = Cache()
    model(**example(), cache=cache)
    cache.kept = None
    with pytest.warns(regbn_surgery.RegBNWarning, match="only f was computed: RegBN `regbn_x` did not run"):
        found = model(example()["ids"], cache=cache)
    torch.testing.assert_close(found, build(Writing).eval()(example()["ids"]))


@pytest.mark.parametrize("way", ["source", "mode"])
def test_what_was_filled_in_training_or_goes_on_in_training_is_refused(way: str) -> None:
    model = rewritten(Writing, way)
    token = example()["ids"][:, -1:]
    cache = Cache()
    model.train()(**example(), cache=cache)
    with pytest.raises(RegBNBypassedError, match=r"filled in training.*use_cache=False"):
        model.eval()(token, cache=cache)
    cache = Cache()
    model(**example(), cache=cache)
    with pytest.raises(RegBNBypassedError, match=r"continue from a cache, without .*use_cache=False"):
        model.train()(token, cache=cache)


@pytest.mark.parametrize("cls", [Writing, Joining, Reading])
def test_an_image_against_growing_words_is_refused(cls: type[nn.Module]) -> None:
    """Without a cache each new word would change every image token."""
    model = rewritten(cls, normalize="image", allow_noncausal=True)
    cache = Cache()
    with torch.no_grad():
        model(**example(), cache=cache)
        with pytest.raises(RegBNBypassedError, match=r"from a cache.*use_cache=False"):
            model(example()["ids"][:, -1:], cache=cache)


@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_step_that_goes_another_way_is_refused(way: str) -> None:
    model = rewritten(Elsewhere, way)
    cache = Cache()
    with torch.no_grad():
        model(**example(), cache=cache)
        with pytest.raises(
            RegBNBypassedError, match=r"reads them in another way than the earlier one.*use_cache=False"
        ):
            model(example()["ids"][:, -1:], cache=cache)


def test_memory_that_is_written_to_afterwards_is_not_gone_on_from() -> None:
    model = rewritten(Reading)
    seen: list[Tensor] = []
    model.cross.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    cache = Cache()
    with torch.no_grad():
        model(**example(), cache=cache)
        expected = model(example()["ids"][:, -1:], cache=copy.deepcopy(cache))
        seen[0].zero_()
        torch.testing.assert_close(model(example()["ids"][:, -1:], cache=cache), expected)


# -- several modalities in one text -----------------------------------------------------------------------------------


class Hearing(Writing):
    """Sound tokens are written over placeholders as well, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.hear = See(4)

    def forward(
        self, ids: Tensor, image: Tensor | None = None, sound: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        x = self.embed(ids)
        if sound is not None:
            x = x.masked_scatter((ids == 18)[..., None].expand_as(x), self.hear(sound))
        if image is not None:
            x = self.meet(ids, x, image)
        return self.head(self.layer(x, cache))


def heard(batch: int = 3) -> dict[str, Tensor]:
    given = example(batch)
    given["ids"][given["ids"] == 18] = 1
    given["ids"][:, 3] = 18
    return {**given, "sound": torch.randn(batch, 1, 4, generator=torch.Generator().manual_seed(batch))}


def test_two_modalities_in_one_text_go_on_one_behind_the_other() -> None:
    rules: dict[str, Any] = {
        "version": 1,
        "modalities": {"words": ["ids"], "image": ["image"], "sound": ["sound"]},
        "rules": [{"id": "x", "match": {"kind": "scatter"}, "pairs": "all"}],
    }
    rules["rules"] = [
        {
            "id": "s",
            "match": {"kind": "scatter", "between": ["words", "sound"]},
            "normalize": "words",
            "against": "sound",
        },
        {
            "id": "i",
            "match": {"kind": "scatter", "between": ["words", "image"]},
            "normalize": "words",
            "against": "image",
        },
    ]
    model = regbn_surgery.regbnify(build(Hearing), rules, heard).eval()
    for i, module in enumerate(m for m in model.modules() if isinstance(m, RegBN)):
        for factor in module.factors:
            factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(i)))
    given, cache = heard(), Cache()
    token = torch.full((3, 1), 5)
    with torch.no_grad():
        model(**given, cache=cache)
        with running(model) as runs:
            found = model(token, cache=cache)
        longer = model(torch.cat([given["ids"], token], dim=1), given["image"], given["sound"])[:, -1:]
    assert runs == [1, 1]
    torch.testing.assert_close(found, longer)


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Writing, Reading])
def test_a_compiled_model_is_refused_the_second_token_or_says_the_right_one(cls: type[nn.Module]) -> None:
    model = rewritten(cls)
    expected = talk(model, example(), steps=2, cache=Cache())
    filled = Cache()
    with torch.no_grad():
        model(**example(), cache=filled)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(RegBNBypassedError, match="compiled"):
        talk(compiled, example(), steps=2, cache=Cache())
    try:
        found = compiled(expected[0][:, :1], cache=filled)
    except RegBNBypassedError:
        return
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(found[:, -1], expected[1][1])


# -- further methods --------------------------------------------------------------------------------------------------


class Speech(nn.Module):
    """A language model with a loop of its own. `cache`s may be shared out in tuples, as in old times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layer, self.head = Causal(), nn.Linear(WIDTH, 20)

    def forward(self, ids: Tensor | None = None, x: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        return self.head(self.layer(self.embed(ids) if x is None else x, cache))

    @torch.no_grad()
    def generate(self, x: Tensor, steps: int = 3, beams: int = 1) -> Tensor:
        cache, said = Cache(), []
        logits = self(x=x.repeat_interleave(beams, dim=0), cache=cache)[:, -1]
        for _ in range(steps - 1):
            said.append(logits)
            logits = self(logits[:, :PLACEHOLDER].argmax(-1, keepdim=True), cache=cache)[:, -1]
        return torch.stack([*said, logits])


class Answering(nn.Module):
    """Fuses in `generate` by itself and leaves the rest to its language model (BLIP-2)."""

    def __init__(self) -> None:
        super().__init__()
        self.lm, self.see = Speech(), See()

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        return self.lm(x=self.fused(ids, image))

    def fused(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.lm.embed(ids)
        return x.masked_scatter((ids == PLACEHOLDER)[..., None].expand_as(x), self.see(image))

    def generate(self, ids: Tensor, image: Tensor, **settings: Any) -> Tensor:
        return self.lm.generate(self.fused(ids, image), **settings)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_method_that_the_rule_names_goes_on_inside_its_language_model(beams: int) -> None:
    model = rewritten(Answering, methods=["generate"])
    given = example()
    with running(model) as runs:
        said = model.generate(**given, steps=4, beams=beams)
    assert runs == [5, 1, 1, 1]
    ids = {name: value.repeat_interleave(beams, 0) for name, value in given.items()}
    torch.testing.assert_close(said, talk(model, ids)[1])
    with identity(model):
        torch.testing.assert_close(model.generate(**given), build(Answering).generate(**given))
    assert not torch.allclose(build(Answering).generate(**given, steps=4, beams=beams)[1:], said[1:], atol=0.01)


class Translating(Answering):
    """The image goes into an encoder; a decoder with the same embeddings writes words that never met it (T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Speech()
        self.decoder.embed = self.lm.embed

    def generate(self, ids: Tensor, image: Tensor) -> Tensor:
        start = self.lm(x=self.fused(ids, image)).mean(1, keepdim=True)[..., :WIDTH]
        return self.decoder.generate(start)


def test_another_module_with_the_same_layer_is_left_alone() -> None:
    model = rewritten(Translating, methods=["generate"])
    with running(model) as runs:
        model.generate(**example())
    assert runs == [5]


class ByHand(Answering):
    """Goes on token by token in the method itself."""

    @torch.no_grad()
    def generate(self, ids: Tensor, image: Tensor, steps: int = 3) -> Tensor:
        cache = Cache()
        logits = self.lm.head(self.lm.layer(self.fused(ids, image), cache))[:, -1]
        for _ in range(steps - 1):
            x = self.lm.embed(logits[:, :PLACEHOLDER].argmax(-1, keepdim=True))
            logits = self.lm.head(self.lm.layer(x, cache))[:, -1]
        return logits


def test_a_method_that_goes_on_by_itself_is_refused_at_the_second_token() -> None:
    model = rewritten(ByHand, methods=["generate"])
    model.generate(**example(), steps=1)
    with pytest.raises(
        RegBNBypassedError, match=r"continues from a cache that a call with regbn_x filled.*with a loop that calls"
    ):
        model.generate(**example(), steps=2)


class Padding(Writing):
    """Reads a mask over its text, which decoding steps give for all that has been said."""

    def forward(
        self, ids: Tensor, image: Tensor | None = None, cache: Cache | None = None, attention_mask: Any = None
    ) -> Tensor:
        return super().forward(ids, image, cache)


def test_padded_prompts_go_on_from_their_cache_as_without_one() -> None:
    model = rewritten(Padding)
    given = example()
    given["ids"] = torch.cat([torch.zeros_like(given["ids"][:, :3]), given["ids"]], dim=1)  # on the left
    mask = (torch.arange(given["ids"].shape[1]) >= 3).long().expand(len(given["ids"]), -1)
    cache = Cache()
    ids = given["ids"]
    logits = [model(**given, cache=cache, attention_mask=mask)]
    for _ in range(3):
        said = logits[-1][:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, said], dim=1), torch.cat([mask, torch.ones_like(said)], dim=1)
        logits.append(model(said, cache=cache, attention_mask=mask))
    whole = model(ids, given["image"], attention_mask=mask)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-5, atol=1e-5)
    unmasked = model(ids, given["image"])
    assert not torch.allclose(unmasked[:, :3], whole[:, :3])  # padding stays as it was


class PaddedAnswering(Answering):
    def forward(self, ids: Tensor, image: Tensor, attention_mask: Any = None) -> Tensor:
        return super().forward(ids, image)

    def generate(self, ids: Tensor, image: Tensor, attention_mask: Any = None, **settings: Any) -> Tensor:
        return super().generate(ids, image, **settings)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_method_that_the_rule_names_leaves_padding_out_as_forward_does(by_name: bool) -> None:
    model = rewritten(PaddedAnswering, methods=["generate"])
    given = example()
    mask = (torch.arange(given["ids"].shape[1]) != 0).long().expand(len(given["ids"]), -1)
    seen: list[Any] = []
    (site,) = [module for module in model.modules() if hasattr(module, "regbn")]
    site.regbn.register_forward_hook(lambda m, args, kwargs, out: seen.append(kwargs.get("f_mask")), with_kwargs=True)
    model(given["ids"], given["image"], mask)
    if by_name:
        model.generate(**given, attention_mask=mask)
    else:
        model.generate(given["ids"], given["image"], mask)
    assert torch.equal(seen[0], seen[1])
    assert not seen[0][:, 0].any()
