"""No call of a rewritten model goes by RegBN without a word: methods that fuse by themselves, caches, new arguments."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import regbn_surgery
from regbn_surgery import RegBNBypassedError, RegBNWarning, RewriteError, unregbnify
from regbn_surgery._surgery import identity
from regbn_surgery._surgery._guard import Guard

from .models import Joined, build, counting, operate_by, rules, run, site_of, step, vectors


class Captioner(Joined):
    """Fuses in `forward`, and once more in `generate`, as BLIP-2 does."""

    @torch.no_grad()
    def generate(self, a: Tensor, b: Tensor, steps: int = 2) -> Tensor:
        """What `forward` computes, `steps` times, in other words."""
        rows = [self.enc_a(row[None]) for row in a]
        joint = torch.cat((torch.cat(rows).float(), self.encode_b(b)), dim=-1)
        out = self.head(joint)
        for _ in range(steps - 1):
            out = out + self.head(joint)
        return out

    def encode_b(self, b: Tensor) -> Tensor:
        return self.enc_b(b).view(len(b), -1)

    def one_step(self, a: Tensor, b: Tensor) -> Tensor:
        return self(a, b)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Captioner()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a, b)

    def predict(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner.generate(a, b)


def operated(cls: type[nn.Module] = Captioner, **rule: Any) -> Any:
    return regbn_surgery.regbnify(build(cls), rules(**rule), vectors()).eval()


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "method"), [(Captioner, "generate"), (Outer, "predict")])
def test_a_method_that_fuses_by_itself_is_an_error_that_names_it(cls: type[nn.Module], method: str) -> None:
    rewritten = operated(cls)
    for _ in range(2):
        with pytest.raises(RegBNBypassedError, match=rf"{cls.__name__}\.{method} .*RegBN `regbn_x`.*methods: \["):
            getattr(rewritten, method)(**vectors())
    with counting(rewritten) as calls:
        run(rewritten, vectors(), False)
    assert sum(calls.values()) == 1
    getattr(unregbnify(rewritten), method)(**vectors())


def test_features_of_one_branch_and_calls_from_outside_are_nobodys_bypass() -> None:
    rewritten = operated()
    rewritten.encode_b(vectors()["b"])
    rewritten.enc_a(vectors()["a"])
    rewritten.enc_b(vectors()["b"])
    rewritten.encode_b(vectors()["b"])
    with counting(rewritten) as calls:
        rewritten.one_step(**vectors())
    assert dict(calls) == {"regbn_x": 1}


def test_two_methods_that_each_want_one_branch_and_a_trainer_around_the_model_bypass_nothing() -> None:
    class Encodes(Captioner):
        def encode_a(self, a: Tensor) -> Tensor:
            return self.enc_a(a)

    class Trainer(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def align(self, a: Tensor, b: Tensor) -> Tensor:
            return self.model.enc_a(a).mean() - self.model.enc_b(b).mean()

    rewritten = operated(Encodes)
    for _ in range(2):
        rewritten.encode_a(vectors()["a"])
        rewritten.encode_b(vectors()["b"])
    assert Trainer(rewritten).align(**vectors()).isfinite()
    with pytest.raises(RegBNBypassedError):
        rewritten.generate(**vectors())


def test_a_backward_pass_that_computes_again_is_nobodys_bypass() -> None:
    class Again(Captioner):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            assert a.sum().item() < 1e9, "what keeps the forward as it is"
            f = checkpoint(self.enc_a, a, use_reentrant=False)
            g = checkpoint(self.enc_b, b, use_reentrant=False)
            return self.head(torch.cat([f, g], dim=-1))

        def fit(self, a: Tensor, b: Tensor) -> None:
            self(a, b).square().sum().backward()

    rewritten = operated(Again).train()
    rewritten.fit(vectors()["a"].requires_grad_(), vectors()["b"].requires_grad_())
    assert rewritten.enc_a.weight.grad is not None


def test_copies_pickles_and_threads_are_guarded_too_and_a_layer_alone_drags_nothing_along() -> None:
    rewritten = operated()
    for model in (copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        with pytest.raises(RegBNBypassedError):
            model.generate(**vectors())
        run(model, vectors(), False)
    assert len(pickle.dumps(rewritten.enc_a)) < len(pickle.dumps(rewritten)) / 2
    failures: list[BaseException] = []

    def work() -> None:
        try:
            rewritten(**vectors())
            rewritten.generate(**vectors())
        except RegBNBypassedError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(failures) == 1


def test_undo_takes_the_guards_away() -> None:
    model = build(Captioner)
    rewritten = operated()
    hooks = [hook for module in rewritten.modules() for hook in module._forward_pre_hooks.values()]
    assert sorted((hook.side, hook.site) for hook in hooks if isinstance(hook, Guard)) == [
        ("f", "regbn_x"),
        ("g", "regbn_x"),
    ]
    unregbnify(rewritten)
    assert not any(module._forward_pre_hooks for module in rewritten.modules())
    torch.testing.assert_close(rewritten.generate(**vectors()), model.generate(**vectors()))


@pytest.mark.parametrize("replace", ["both", "f"])
def test_a_method_that_the_rule_names_goes_through_regbn(replace: str) -> None:
    rewritten = operated(methods=["generate"], replace=replace)
    step(rewritten, vectors(9))
    rewritten.eval()
    with counting(rewritten) as calls:
        found = rewritten.generate(**vectors(), steps=3)
    assert dict(calls) == {"regbn_x": 1}
    torch.testing.assert_close(found, 3 * rewritten(**vectors()))
    with identity(rewritten):
        plain = rewritten.generate(**vectors(), steps=3)
    torch.testing.assert_close(plain, unregbnify(copy.deepcopy(rewritten)).generate(**vectors(), steps=3))
    assert not torch.allclose(plain, found)
    again = pickle.loads(pickle.dumps(rewritten))
    torch.testing.assert_close(again.generate(**vectors(), steps=3), found)
    assert rewritten.generate.__name__ == "generate"
    assert "in other words" in rewritten.generate.__doc__


def test_a_named_method_that_never_fuses_is_an_error() -> None:
    rewritten = operated(methods=["encode_b"])
    with pytest.raises(RegBNBypassedError, match=r"encode_b is listed in `methods:`, but did not reach regbn_x"):
        rewritten.encode_b(vectors()["b"])
    run(rewritten, vectors(), False)
    named = operated(methods=["one_step"])
    with counting(named) as calls:
        torch.testing.assert_close(named.one_step(**vectors()), named(**vectors()))
    assert dict(calls) == {"regbn_x": 2}


def test_a_method_that_is_not_there_is_refused() -> None:
    model = build(Captioner)
    with pytest.raises(RewriteError, match=r"Captioner has no such method"):
        regbn_surgery.regbnify(model, rules(methods=["genrate"]), vectors(), inplace=True)
    assert type(model) is Captioner
    assert not any(module._forward_pre_hooks for module in model.modules())


# -- caches -----------------------------------------------------------------------------------------------------------


class Cache:
    """Keys of the tokens so far, as `transformers` keeps them."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def get_seq_length(self) -> int:
        return sum(layer.shape[1] for layer in self.layers)

    def update(self, x: Tensor) -> Tensor:
        self.layers.append(x)
        return torch.cat(self.layers, dim=1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        seen = x if cache is None else cache.update(x)
        return x + self.out(seen.mean(1, keepdim=True))


class Joint(nn.Module):
    """Image tokens before text tokens in one sequence (GIT).

    With a cache, the image is there at the first step alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.layer = Layer()

    def forward(self, b: Tensor, a: Tensor | None = None, past_key_values: Cache | None = None) -> Tensor:
        x = self.enc_b(b)
        if a is not None:
            x = torch.cat([self.enc_a(a), x], dim=1)
        return self.layer(x, past_key_values)


def tokens(batch: int = 4, length: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "b": torch.randn(batch, length, 5, generator=generator),
        "a": torch.randn(batch, 2, 6, generator=generator),
    }


def joint(way: str) -> tuple[Any, Any]:
    model = build(Joint)
    rewritten = operate_by(way, model, tokens(), normalize="b", against="a").eval()
    return model.eval(), rewritten


both_ways = pytest.mark.parametrize("way", ["source", "mode"])


@both_ways
def test_a_cache_is_filled_once_and_a_step_without_the_other_modality_goes_on_from_it(way: str) -> None:
    model, rewritten = joint(way)
    for _ in range(3):
        ours, theirs = Cache(), Cache()
        with identity(rewritten):
            found = rewritten(**tokens(), past_key_values=ours)
        with counting(rewritten) as calls:
            rewritten(**tokens(), past_key_values=Cache())
        assert dict(calls) == {"regbn_x": 1}
        torch.testing.assert_close(found, model(**tokens(), past_key_values=theirs))
        assert ours.get_seq_length() == theirs.get_seq_length() == 5
        with identity(rewritten):
            found = rewritten(b=tokens()["b"][:, :1], past_key_values=ours)
        torch.testing.assert_close(found, model(b=tokens()["b"][:, :1], past_key_values=theirs))


@both_ways
def test_in_steps_with_a_growing_cache_and_both_modalities_regbn_runs_once(way: str) -> None:
    model, rewritten = joint(way)
    ours, theirs, live = Cache(), Cache(), Cache()
    for _ in range(20):
        with identity(rewritten):
            found = rewritten(**tokens(), past_key_values=ours)
        with counting(rewritten) as calls:
            rewritten(**tokens(), past_key_values=live)
        assert dict(calls) == {"regbn_x": 1}
        torch.testing.assert_close(found, model(**tokens(), past_key_values=theirs))
    assert ours.get_seq_length() == theirs.get_seq_length()


@both_ways
def test_a_call_in_which_nothing_meets_runs_as_it_always_did_and_says_so(way: str) -> None:
    model, rewritten = joint(way)
    with pytest.warns(RegBNWarning, match=r"Joint was called \(.*\), and only f was computed: RegBN `regbn_x`"):
        found = rewritten(tokens()["b"])
    torch.testing.assert_close(found, model(tokens()["b"]))


@both_ways
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*did not run, and this call computes what the original does")
def test_a_text_alone_is_generated_with_a_cache_as_it_always_was(way: str) -> None:
    """Nothing has met in what the cache holds; where something has, even a known kind of call has to do with RegBN."""
    model, rewritten = joint(way)
    ours, theirs = Cache(), Cache()
    for i in range(3):
        found = rewritten(tokens()["b"][:, i : i + 1], past_key_values=ours)
        torch.testing.assert_close(found, model(tokens()["b"][:, i : i + 1], past_key_values=theirs))
    assert ours.get_seq_length() == theirs.get_seq_length() == 3
    met = Cache()
    rewritten(**tokens(), past_key_values=met)
    token = tokens()["b"][:, :1]
    for _ in range(2):
        found = rewritten(token, past_key_values=copy.deepcopy(met))
        with identity(rewritten):
            plain = rewritten(token, past_key_values=copy.deepcopy(met))
        assert not torch.allclose(found, plain)


# -- BLIP-2 -----------------------------------------------------------------------------------------------------------


def test_blip2_generates_through_regbn_or_not_at_all() -> None:
    from tests.zoo.hf.scatter import CASES

    case = next(case for case in CASES if case.name == "hf_blip2")
    inputs = case.example(2)
    plain = regbn_surgery.regbnify(case.model(), case.rules_dict(), case.example).eval()
    with pytest.raises(RegBNBypassedError, match=r"Blip2ForConditionalGeneration\.generate"):
        plain.generate(**inputs, max_new_tokens=3)
    named = case.rules_dict()
    named["rules"][0]["methods"] = ["generate"]
    rewritten = regbn_surgery.regbnify(case.model(), named, case.example).eval()
    with counting(rewritten) as calls:
        rewritten.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert dict(calls) == {site_name(rewritten): 1}
    with identity(rewritten):
        found = rewritten.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, case.model().eval().generate(**inputs, max_new_tokens=3, do_sample=False))


def site_name(model: nn.Module) -> str:
    site = site_of(model)
    return next(name for name, module in model.named_modules() if module is site)
