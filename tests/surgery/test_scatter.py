"""Sites at calls that write one modality's values into another's tensor, live and held to the same written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import PlanError, RegBNError, RewriteError, unregbnify
from regbn_surgery._surgery import identity
from regbn_surgery.nn._compilers import OLD_COMPILER

from .models import build, counting, operate_by, run, site_of, step

WIDTH, PLACEHOLDER = 8, 1


class Scattering(nn.Module):
    """Image rows written over the placeholders of a text; `write` is how. Some samples have more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.image = nn.Linear(6, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        text, rows = self.embedding(b), self.image(a).flatten(0, -2)
        mask = b == PLACEHOLDER
        return self.head(self.write(text, mask, rows))


class Functional(Scattering):
    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return text.masked_scatter(mask[..., None], rows)


class InPlace(Scattering):
    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        text = text.clone()
        text.masked_scatter_(mask.unsqueeze(-1).expand_as(text), rows)
        return text


class ByMask(Scattering):
    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        text = text.clone()
        text[mask] = rows
        return text


class ByIndices(Scattering):
    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return text.index_put(mask.nonzero(as_tuple=True), rows)


class SequenceFirst(Scattering):
    def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        counts = mask.sum(1)
        by_sample = torch.repeat_interleave(torch.arange(len(mask)), counts)
        within = torch.cat([torch.arange(n) for n in counts.tolist()])
        order = torch.argsort(within * len(mask) + by_sample)  # as the transposed mask meets the placeholders
        return text.transpose(0, 1).masked_scatter(mask.T[..., None], rows[order]).transpose(0, 1)


every_way = pytest.mark.parametrize("way", ["source", "mode"])
WRITERS = [Functional, InPlace, ByMask, ByIndices]


def example(batch: int = 4, seed: int = 0, ragged: bool = True) -> dict[str, Tensor]:
    """`b` holds one to three placeholders per sample, `a` that many rows in all: [rows, 6] (ragged) or [B, 2, 6]."""
    generator = torch.Generator().manual_seed(10 * seed + batch)
    b = torch.randint(2, 20, (batch, 7), generator=generator)
    counts = [1 + i % 3 if ragged else 2 for i in range(batch)]
    for row, n in zip(b, counts, strict=True):
        row[1 : 1 + n] = PLACEHOLDER
    shape = (sum(counts), 6) if ragged else (batch, 2, 6)
    return {"a": torch.randn(shape, generator=generator), "b": b}


def operate(cls: type[nn.Module], way: str = "source", **rule: Any) -> tuple[Any, Any]:
    model = build(cls)
    given = {"normalize": "b", "against": "a", **rule}
    return model, operate_by(way, model, lambda batch: example(batch, ragged=False), "scatter", **given)


def by_hand(model: Any, inputs: dict[str, Tensor], into_is_f: bool = True) -> Tensor:
    """The live model with RegBN called sample by sample's own rows, padded by hand."""
    b = inputs["b"]
    text, rows, mask = model.embedding(b), model.image(inputs["a"]).flatten(0, -2), b == PLACEHOLDER
    counts = mask.sum(1).tolist()
    pieces = rows.split(counts)
    padded = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    there = torch.arange(padded.shape[1])[None] < torch.tensor(counts)[:, None]
    regbn = site_of(model).regbn
    first, second = (text, ~mask), (padded, there)
    (f, f_mask), (g, g_mask) = (first, second) if into_is_f else (second, first)
    f, g = regbn(f.mT, g.mT, f_mask=f_mask, g_mask=g_mask)
    text, padded = (f.mT, g.mT) if into_is_f else (g.mT, f.mT)
    return model.head(text.masked_scatter(mask[..., None], padded[there]))


# -- placeholders -----------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("cls", WRITERS)
def test_the_rewritten_model_is_the_one_written_by_hand(cls: type[nn.Module], way: str) -> None:
    _, rewritten = operate(cls, way)
    for seed, (batch, training) in enumerate([(4, True), (5, True), (3, False), (6, False)]):
        step(rewritten, example(batch, seed + 50))
        twin = copy.deepcopy(rewritten).train(training)
        inputs = example(batch, seed)
        with counting(rewritten) as calls:
            found = run(rewritten, inputs, training)
        assert dict(calls) == {"regbn_x": 1}
        expected = by_hand(twin, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if training:
            found.square().sum().backward()
            expected.square().sum().backward()
            for ours, theirs in zip(rewritten.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
            rewritten.zero_grad()


@every_way
@pytest.mark.parametrize("replace", ["both", "f"])
@pytest.mark.parametrize("cls", [Functional, ByMask])
def test_the_other_direction(cls: type[nn.Module], replace: str, way: str) -> None:
    _, rewritten = operate(cls, way, normalize="a", against="b", replace=replace)
    for batch in (4, 6):
        step(rewritten, example(batch))
        found = run(rewritten, example(batch, 3), False)
        torch.testing.assert_close(found, by_hand(rewritten, example(batch, 3), into_is_f=False), rtol=1e-5, atol=1e-6)


@every_way
@pytest.mark.parametrize("cls", [*WRITERS, SequenceFirst])
@pytest.mark.parametrize("training", [False, True])
def test_with_identity_in_place_nothing_changes_and_undo_gives_everything_back(
    cls: type[nn.Module], way: str, training: bool
) -> None:
    model, rewritten = operate(cls, way)
    for batch in (2, 3, 5):
        with identity(rewritten):
            found = run(rewritten, example(batch), training)
        torch.testing.assert_close(found, run(model, example(batch), training), rtol=0, atol=0)
        assert not torch.equal(run(rewritten, example(batch), training), found)
    unregbnify(rewritten)
    assert list(rewritten.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(run(rewritten, example(), training), run(model, example(), training), rtol=0, atol=0)


def test_a_sample_without_placeholders_is_left_in_its_place() -> None:
    _, rewritten = operate(Functional, regbn={"normalize_output": False})
    step(rewritten, example(6))
    inputs = example(4, ragged=False)
    inputs["b"][1][inputs["b"][1] == PLACEHOLDER] = 5
    inputs["a"] = torch.cat([inputs["a"][:1], inputs["a"][2:]]).flatten(0, 1)
    with identity(rewritten):
        plain = run(rewritten, inputs, False)
    found = run(rewritten, inputs, False)
    torch.testing.assert_close(found[1], plain[1])
    assert not torch.allclose(found[0], plain[0])


def test_later_readers_of_a_tensor_written_in_place_see_the_new_values() -> None:
    class ReadsLater(ByMask):
        def write(self, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
            text = text.clone()
            view = text[:, 3:]
            text[mask] = rows
            return text + view.mean(1, keepdim=True)

    _, rewritten = operate(ReadsLater)
    step(rewritten, example(5))
    found = run(rewritten, example(4), False)
    text = by_hand_text(rewritten, example(4))
    torch.testing.assert_close(found, rewritten.head(text + text[:, 3:].mean(1, keepdim=True)), rtol=1e-5, atol=1e-6)


def by_hand_text(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    head, model.head = model.head, nn.Identity()
    try:
        return by_hand(model, inputs)
    finally:
        model.head = head


# -- stretches --------------------------------------------------------------------------------------------------------


class Filled(nn.Module):
    """A joined tensor that is filled by slices, no `cat` in sight; `axis` 1 of vectors or of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)
        self.head = nn.LazyLinear(3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        n = f.shape[1]
        out = f.new_zeros(len(f), n + g.shape[1], *f.shape[2:])
        out[:, :n] = f
        out[:, n:] = g
        return self.head(out)


def filled_inputs(batch: int, tokens: bool, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + batch)
    shapes = ((batch, 4, 6), (batch, 3, 6)) if tokens else ((batch, 6), (batch, 6))
    return {name: torch.randn(shape, generator=generator) for name, shape in zip(("a", "b"), shapes, strict=True)}


@every_way
@pytest.mark.parametrize("tokens", [False, True], ids=["channels", "tokens"])
@pytest.mark.parametrize("normalize", ["a", "b"])
def test_a_tensor_filled_by_slices_is_a_concatenation(tokens: bool, way: str, normalize: str) -> None:
    model = build(Filled)
    model(**filled_inputs(2, tokens))
    against = "b" if normalize == "a" else "a"
    given: Any = filled_inputs(4, tokens)
    rewritten = operate_by(way, model, given, "scatter", normalize=normalize, against=against)
    regbn: Any = site_of(rewritten).regbn
    assert regbn.options.reduce == ("mean" if tokens else "flatten")
    for training in (True, False):
        step(rewritten, filled_inputs(6, tokens))
        twin = copy.deepcopy(rewritten).train(training)
        inputs = filled_inputs(5, tokens, 1)
        pair = [twin.enc_a(inputs["a"]), twin.enc_b(inputs["b"])][:: 1 if normalize == "a" else -1]
        pair = [x.mT if tokens else x for x in pair]
        made = [x.mT if tokens else x for x in site_of(twin).regbn(*pair)][:: 1 if normalize == "a" else -1]
        found = run(rewritten, inputs, training)
        torch.testing.assert_close(found, twin.head(torch.cat(made, dim=1)), rtol=1e-5, atol=1e-6)
        with identity(rewritten):
            torch.testing.assert_close(run(rewritten, inputs, training), run(_plain(twin), inputs, training))


def _plain(model: nn.Module) -> nn.Module:
    return unregbnify(copy.deepcopy(model))


def test_three_stretches_and_the_second_of_them_against_what_was_there() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoders = nn.ModuleList(nn.Linear(6, n) for n in (3, 4, 5))
            self.head = nn.Linear(12, 3)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            f, g, h = (encoder(x) for encoder, x in zip(self.encoders, (a, b, c), strict=True))
            out = a.new_empty(len(a), 12)
            out[:, 7:] = h
            out[:, :3] = f
            out[:, 3:7] = g
            return self.head(out)

    model = build(Three)
    inputs = {name: torch.randn(5, 6) for name in "abc"}
    given = {
        "version": 1,
        "rules": [{"id": "x", "match": {"kind": "scatter", "nth": 1}, "normalize": "b", "against": "a"}],
    }
    rewritten = regbn_surgery.regbnify(model, given, inputs)
    step(rewritten, inputs)
    f, g, h = (encoder(inputs[name]) for encoder, name in zip(rewritten.encoders, "abc", strict=True))
    rewritten.eval()
    new_g, rest = site_of(rewritten).regbn(g, torch.cat([f, h], dim=1))
    expected = rewritten.head(torch.cat([rest[:, :3], new_g, rest[:, 3:]], dim=1))
    torch.testing.assert_close(run(rewritten, inputs, False), expected, rtol=1e-5, atol=1e-6)


# -- refusals ---------------------------------------------------------------------------------------------------------


def refuse(write: Callable[..., Tensor], error: type[RegBNError], match: str, **rule: Any) -> None:
    cls = type("Refused", (Scattering,), {"write": write})
    with pytest.raises(error, match=match):
        operate(cls, **rule)


def test_a_call_that_chooses_single_channels_is_refused() -> None:
    def write(self: Any, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        chosen = mask[..., None].expand_as(text).clone()
        chosen[..., 0] = False
        return text.masked_scatter(chosen, rows[:, 1:])

    refuse(write, RewriteError, "single channels of a position.*normalise another point")


def test_a_call_that_writes_whole_samples_is_refused() -> None:
    def write(self: Any, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        text = text.clone()
        text[1:] = rows.mean(0)
        return text

    refuse(write, PlanError, "some of the samples of a batch")


def test_a_call_that_adds_is_refused() -> None:
    def write(self: Any, text: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return text.index_put(mask.nonzero(as_tuple=True), rows, accumulate=True)

    refuse(write, PlanError, "does more than replace values")


def test_reduce_flatten_is_refused() -> None:
    refuse(Functional.write, RewriteError, "has reduce: flatten.*use `reduce: mean`", reduce="flatten")


# -- symbols ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("rule", [{}, {"normalize": "a", "against": "b"}, {"replace": "f"}])
@pytest.mark.parametrize("cls", [Functional, InPlace])
def test_symbols_are_followed_through_the_call_that_writes(cls: type[nn.Module], rule: Any, train: bool) -> None:
    """The graph calls RegBN once; the original in its place would compute something else."""
    original, model = operate(cls, **rule)
    for seed in range(3):
        step(model, example(6, seed, ragged=False))
    model.train(train)
    alike = copy.deepcopy(model)
    traced: Any = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if "regbn" in str(node.target)] == ["regbn_x"]
    for batch in (5, 3):
        inputs = example(batch, seed=7)
        found, expected = traced(**inputs), run(alike, inputs, train)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, original.train(train)(**inputs))
    named = {name: value for name, value in traced.state_dict().items() if "regbn_" in name}
    torch.testing.assert_close(named, {name: alike.state_dict()[name] for name in named}, rtol=1e-5, atol=1e-6)


# -- padding ----------------------------------------------------------------------------------------------------------


class Padded(Functional):
    """The same with the mask that tokenizers give; `bias` is what the model itself makes of it."""

    def forward(self, a: Tensor, b: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        text, rows = self.embedding(b), self.image(a).flatten(0, -2)
        joint = self.write(text, b == PLACEHOLDER, rows)
        if attention_mask is not None and attention_mask.dim() == 2:
            joint = joint * (attention_mask > 0)[..., None]
        return self.head(joint)


class PaddedInPlace(Padded, ByMask):
    """Written into in place."""


class PaddedByName(Functional):
    """A mask of which True leaves out, among further arguments."""

    def forward(self, a: Tensor, b: Tensor, **others: Any) -> Tensor:
        text, rows = self.embedding(b), self.image(a).flatten(0, -2)
        return self.head(self.write(text, b == PLACEHOLDER, rows) * ~others["key_padding_mask"][..., None])


def with_pads(inputs: dict[str, Tensor], pads: int, left: bool = False, filler: int = 0) -> dict[str, Tensor]:
    b = inputs["b"]
    padding, keep = b.new_full((len(b), pads), filler), b.new_ones(b.shape)
    parts = [(b, padding), (keep, padding * 0)]
    b, keep = (torch.cat(pair[::-1] if left else pair, dim=1) for pair in parts)
    return {"a": inputs["a"], "b": b, "attention_mask": keep}


def operate_padded(cls: type[nn.Module], way: str = "source", given: Any = None, **rule: Any) -> Any:
    given = given or (lambda batch: with_pads(example(batch, ragged=False), 3))
    return operate_by(way, build(cls), given, "scatter", **{"normalize": "b", "against": "a", **rule})


@every_way
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rule", [{}, {"normalize": "a", "against": "b"}, {"replace": "f"}])
@pytest.mark.parametrize("cls", [Padded, PaddedInPlace])
def test_padding_counts_for_nothing(cls: type[nn.Module], rule: Any, left: bool, way: str) -> None:
    """Trained and evaluated on padded batches, the model is the one without padding, at every real position."""
    padded = operate_padded(cls, way, **rule)
    plain = copy.deepcopy(padded)
    for seed in range(3):
        bare = example(6, seed)
        given = with_pads(bare, 5, left)
        for training in (True, False):
            found, expected = run(padded, given, training), run(plain, {**bare, "attention_mask": None}, training)
            real = found[:, -7:] if left else found[:, :7]
            torch.testing.assert_close(real, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(site_of(padded).state_dict(), site_of(plain).state_dict(), rtol=1e-5, atol=1e-6)
    assert site_of(padded).regbn.W.abs().max() > 0


@every_way
def test_padding_stays_as_it_was(way: str) -> None:
    padded = operate_padded(Padded, way)
    inputs = with_pads(example(6), 5)
    step(padded, inputs)
    seen: list[Tensor] = []
    site_of(padded).register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    run(padded, inputs, False)
    before, after = seen
    torch.testing.assert_close(after[:, 7:], before[:, 7:], rtol=0, atol=0)
    assert not torch.equal(after[:, :7], before[:, :7])


@every_way
@pytest.mark.parametrize("form", ["bool", "additive", "int"])
def test_every_form_of_a_mask_is_understood(form: str, way: str) -> None:
    padded = operate_padded(Padded, way)
    inputs = with_pads(example(6), 5)
    keep = inputs["attention_mask"].bool()
    forms = {"bool": keep, "int": keep.int(), "additive": torch.zeros(keep.shape).masked_fill(~keep, -1e9)}
    other = copy.deepcopy(padded)
    for model, mask in ((padded, inputs["attention_mask"]), (other, forms[form])):
        run(model, {**inputs, "attention_mask": mask}, True)
    torch.testing.assert_close(site_of(other).state_dict(), site_of(padded).state_dict())


@every_way
@pytest.mark.parametrize("mask", [None, torch.zeros(6, 1, 12, 12), torch.zeros(1, 12, 12)])
def test_a_call_whose_mask_is_of_another_shape_has_no_padding(mask: Tensor | None, way: str) -> None:
    padded = operate_padded(Padded, way)
    inputs = {**with_pads(example(6), 5), "attention_mask": mask}
    seen: list[Any] = []
    regbn = site_of(padded).regbn
    regbn.register_forward_hook(lambda module, args, kwargs, out: seen.append(kwargs["f_mask"]), with_kwargs=True)
    run(padded, inputs, True)
    assert torch.equal(seen[0], inputs["b"] != PLACEHOLDER)


@every_way
def test_a_padding_mask_leaves_out_where_it_is_true(way: str) -> None:
    def given(batch: int, pads: int = 3, ragged: bool = False) -> dict[str, Tensor]:
        inputs = with_pads(example(batch, ragged=ragged), pads)
        return {"a": inputs["a"], "b": inputs["b"], "key_padding_mask": inputs["attention_mask"] == 0}

    padded = operate_padded(PaddedByName, way, given)
    plain = copy.deepcopy(padded)
    found = run(padded, given(6, 5, True), True)
    torch.testing.assert_close(found[:, :7], run(plain, given(6, 0, True), True), rtol=1e-5, atol=1e-6)


def test_an_example_without_the_mask_is_enough() -> None:
    """What the user trains on is padded, the example was not."""
    padded = operate_padded(Padded, given=lambda batch: example(batch, ragged=False))
    plain = copy.deepcopy(padded)
    found = run(padded, with_pads(example(6), 5), True)
    torch.testing.assert_close(found[:, :7], run(plain, example(6), True), rtol=1e-5, atol=1e-6)


class PaddedStraight(Functional):
    """No branch, so that symbols go through."""

    def forward(self, a: Tensor, b: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        text, rows = self.embedding(b), self.image(a).flatten(0, -2)
        return self.head(self.write(text, b == PLACEHOLDER, rows) * (attention_mask > 0)[..., None])


@pytest.mark.parametrize("train", [False, True])
def test_symbols_are_followed_with_the_mask(train: bool) -> None:
    model = operate_padded(PaddedStraight)
    plain = copy.deepcopy(model)
    traced: Any = torch.fx.symbolic_trace(model.train(train))
    for seed in range(3):
        bare = example(6, seed)
        found, expected = traced(**with_pads(bare, 5)), run(plain, with_pads(bare, 0), train)
        torch.testing.assert_close(found[:, :7], expected, rtol=1e-5, atol=1e-6)
        step(plain, with_pads(bare, 0))
        traced.load_state_dict(plain.state_dict())


@pytest.mark.skipif(OLD_COMPILER, reason="exported by an old torch, a host counts padding (docs/regbn.md)")
@pytest.mark.parametrize("rule", [{}, {"normalize": "a", "against": "b"}])
def test_an_exported_model_leaves_padding_out(rule: Any) -> None:
    model = operate_padded(Padded, **rule)
    for seed in range(3):
        step(model, with_pads(example(6, seed), 5))
    bare = example(5)
    exported = torch.export.export(model.eval(), (), kwargs=with_pads(bare, 4)).module()
    expected = run(model, bare, False)
    torch.testing.assert_close(exported(**with_pads(bare, 4))[:, :7], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(OLD_COMPILER, reason="compiled by an old torch, a host counts padding (docs/regbn.md)")
def test_a_compiled_model_leaves_padding_out() -> None:
    model = operate_padded(Padded)
    plain = copy.deepcopy(model)
    compiled: Any = torch.compile(model, backend="eager")
    for pads in (4, 6):
        bare = example(6, pads)
        found = run(compiled, with_pads(bare, pads), True)
        torch.testing.assert_close(found[:, :7], run(plain, bare, True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(site_of(model).state_dict(), site_of(plain).state_dict(), rtol=1e-5, atol=1e-6)


def test_a_recipe_of_before_masks_were_known_loads_and_counts_padding_as_it_did(tmp_path: Any) -> None:
    import json

    model = operate_padded(Padded)
    step(model, with_pads(example(6), 5))
    regbn_surgery.save_regbn(model, tmp_path)
    loaded = regbn_surgery.load_regbn(build(Padded), tmp_path)
    inputs = with_pads(example(5), 4)
    torch.testing.assert_close(run(loaded, inputs, True), run(model, inputs, True), rtol=1e-5, atol=1e-6)
    text = (tmp_path / "regbn.json").read_text()
    record = json.loads(text)
    assert '"attention_mask"' in text
    for operation in record["operations"]:
        del operation["code"]["masks"]
        operation["code"]["mask"] = operation["masking"] = None
    (tmp_path / "regbn.json").write_text(json.dumps(record))
    older = regbn_surgery.load_regbn(build(Padded), tmp_path)
    assert not torch.allclose(run(older, inputs, True)[:, :7], run(loaded, inputs, True)[:, :7])


# -- what is measured -------------------------------------------------------------------------------------------------


def batches(pads: int) -> list[dict[str, Tensor]]:
    return [with_pads(example(8, seed, ragged=False), pads, filler=7) for seed in range(6)]


def test_diagnose_measures_words_and_no_padding() -> None:
    rules = {
        "version": 1,
        "modalities": {"a": ["a"], "b": ["b"]},
        "rules": [{"id": "x", "match": {"kind": "scatter"}, "normalize": "b", "against": "a"}],
    }
    figures = []
    for pads in (0, 40):
        (measured,) = regbn_surgery.diagnose(build(Padded), batches(pads), rules=rules).rows
        assert measured.after is not None
        figures.append((measured.before.explained_variance, measured.after.explained_variance))
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


@pytest.mark.parametrize("rule", [{}, {"normalize": "a", "against": "b"}])
def test_what_a_plan_measures_is_what_regbn_is_given(rule: Any) -> None:
    model = operate_padded(Padded, **rule)
    site = site_of(model)
    seen: list[Any] = []
    site.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    site.regbn.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, kwargs)), with_kwargs=True)
    run(model, with_pads(example(6), 40), False)
    (args, kwargs), (given, masks) = seen
    pair = site.pair_of(*args, **kwargs)
    torch.testing.assert_close(pair, (*given[:2], masks["f_mask"], masks["g_mask"]))
    of_text = pair[3] if rule else pair[2]
    assert of_text is not None
    assert not of_text[:, 7:].any()
    assert of_text.any()


def test_words_that_go_with_the_image_look_so_among_pads() -> None:
    """RB118 is measured on words alone: the placeholders say nothing, and neither do pads."""

    def given(pads: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        inputs = with_pads(example(32, ragged=False), pads)
        words = torch.randint(2, 20, (32,), generator=generator)
        inputs["b"][:, :7][inputs["b"][:, :7] != PLACEHOLDER] = words.repeat_interleave(5)
        inputs["b"][:, 7:] = torch.randint(2, 20, (32, pads), generator=generator)
        inputs["a"] = build(Padded).embedding(words)[:, None, :6].detach().expand(-1, 2, -1).clone()
        return inputs

    rules = {
        "version": 1,
        "modalities": {"a": ["a"], "b": ["b"]},
        "rules": [{"id": "x", "match": {"kind": "scatter"}, "normalize": "b", "against": "a"}],
    }
    for pads in (0, 400):
        notes = regbn_surgery.plan(build(Padded), rules, given(pads)).notes
        assert not [note for note in notes if note.startswith("RB118")]
    unknown = {name: value for name, value in given(400).items() if name != "attention_mask"}
    assert [note for note in regbn_surgery.plan(build(Padded), rules, unknown).notes if note.startswith("RB118")]
