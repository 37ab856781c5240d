"""What one call of a rewritten forward knows: f and g by identity, whatever else the forward does with them."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNWarning, RewriteError
from regbn_surgery._surgery import identity
from regbn_surgery._surgery._guard import ATTRIBUTE

from .models import build, counting, forced, operate_by, rules, site_of, vectors, ways

every_way = pytest.mark.parametrize("way", ["source", "mode"])


class Two(nn.Module):
    """Two encoders of one width; `how` says what the forward does, a forward in a subclass how."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)
        self.how = ""

    def cat(self, f: Tensor, g: Tensor) -> Tensor:
        return torch.cat([f, g], dim=1)


def told(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What RegBN is given, at every call; it gives back 2 f + 1 and 3 g."""
    seen: list[tuple[Tensor, Tensor]] = []

    def act(f: Tensor, g: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        seen.append((f, g))
        return 2 * f + 1, 3 * g

    site_of(model).forward = act  # type: ignore[method-assign]
    return seen


def made(cls: type[nn.Module], way: str, kind: str = "concat", **rule: Any) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    rewritten = operate_by(way, build(cls), vectors(), kind, **rule).eval()
    return rewritten, told(rewritten)


def sides(model: Any) -> tuple[Tensor, Tensor]:
    given = vectors()
    return model.enc_a(given["a"]), model.enc_b(given["b"])


class WritesInAHelper(Two):
    """A method copies f, joins g into the copy, and returns that very tensor."""

    def mix(self, f: Tensor, g: Tensor) -> Tensor:
        joined = f.clone()
        joined += g
        return joined

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.mix(f.view(2, -1).view(f.shape), g)


@every_way
def test_a_helper_that_returns_what_it_joined_into_makes_no_side_by_that(way: str) -> None:
    rewritten, _ = made(WritesInAHelper, way, "sum")
    f, g = sides(rewritten)
    torch.testing.assert_close(rewritten(**vectors()), 2 * f + 1 + 3 * g)


class Sampled(Two):
    """One line of the user's leads to several calls in torch's own code."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        p, q = (torch.distributions.Normal(side.tanh(), 1e-6) for side in (self.enc_a(a), self.enc_b(b)))
        if self.how == "each in its own place":
            return torch.cat([p.rsample(), q.rsample()], dim=1)
        return torch.cat([each.rsample() for each in (p, q)], dim=1)


class SampledApart(Sampled):
    def __init__(self) -> None:
        super().__init__()
        self.how = "each in its own place"


@pytest.mark.parametrize("cls", [Sampled, SampledApart])
def test_a_place_that_leads_to_several_calls_of_torch_is_visited_once(cls: type[nn.Module]) -> None:
    rewritten, _ = made(cls, "source")
    f, g = (side.tanh() for side in sides(rewritten))
    for _ in range(3):
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1), atol=1e-4, rtol=1e-4)


# -- operands by identity ---------------------------------------------------------------------------------------------


class Ordered(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        if self.how == "exchanged":
            return torch.cat([g, f], dim=1)
        left, right = (g, f) if self.how == "one place" else (f, g)
        if self.how == "f alone":
            right = f + 0
        if self.how == "f again":
            return torch.cat([f, g, f], dim=1) if self.training else self.cat(f, g) + torch.cat([f, f], dim=1)
        return torch.cat([left, right], dim=1)


@every_way
def test_whatever_the_order_each_side_gets_its_own_result(way: str) -> None:
    rewritten, seen = made(Ordered, way)
    f, g = sides(rewritten)
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    rewritten.how = "one place"
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([3 * g, 2 * f + 1], 1))
    assert len(seen) == 2
    for found in seen:
        torch.testing.assert_close(found, (f, g))


@every_way
def test_a_call_that_joins_something_else_is_left_alone_and_told_once(way: str) -> None:
    rewritten, seen = made(Ordered, way)
    f, _ = sides(rewritten)
    rewritten.how = "f alone"
    with pytest.warns(RegBNWarning, match=r"f and g do not meet at cat: RegBN `regbn_x` did not run"):
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([f, f], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([f, f], 1))
    assert not seen


class Pair:
    """Objects of the user's own, with both tensors in them."""

    def __init__(self, f: Tensor, g: Tensor) -> None:
        self.f, self.g = f, g

    def joined(self) -> Tensor:
        return torch.cat([self.f, self.g], dim=1)

    def __call__(self) -> Tensor:
        return torch.cat([self.f, self.g], dim=1)


class Cat:
    def __call__(self, f: Tensor, g: Tensor) -> Tensor:
        return torch.cat([f, g], dim=1)


class WithObjects(Two):
    def __init__(self) -> None:
        super().__init__()
        self.fuser = Cat()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        left, right = (g, f) if self.how == "exchanged" else (f * 1, g) if self.how == "another" else (f, g)
        return self.join(left, right)

    def join(self, f: Tensor, g: Tensor) -> Tensor:
        return Pair(f, g).joined()


class CalledPair(WithObjects):
    def join(self, f: Tensor, g: Tensor) -> Tensor:
        return Pair(f, g)()


class CalledCat(WithObjects):
    def join(self, f: Tensor, g: Tensor) -> Tensor:
        return self.fuser(f, g)


@every_way
@pytest.mark.parametrize("cls", [WithObjects, CalledPair, CalledCat])
def test_methods_of_other_objects_are_helpers_too(cls: type[Two], way: str) -> None:
    rewritten, _ = made(cls, way)
    f, g = sides(rewritten)
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    rewritten.how = "exchanged"
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([3 * g, 2 * f + 1], 1))
    rewritten.how = "another"
    with pytest.warns(RegBNWarning, match="did not run"):
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([f, g], 1))


class Views(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        if self.how == "view":
            f = f.view(f.shape)
        if self.how == "written":
            f = f.view(f.shape)
            f += 1
        return torch.cat([f, g], dim=1)


@every_way
def test_another_view_of_the_whole_side_is_the_side(way: str) -> None:
    rewritten, seen = made(Views, way)
    f, g = sides(rewritten)
    rewritten.how = "view"
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    assert len(seen) == 1


class Cast(Two):
    """Calls that give back what they get, in evaluation and in float32, and something else in other calls."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        if self.how == "exchanged":
            f, g = g, f
        f = F.dropout(f.to(self.head.weight.dtype), 0.5, self.training)
        g = g.type_as(f).contiguous()
        return torch.cat([f, g], dim=1)


@every_way
@pytest.mark.parametrize("how", ["", "exchanged"])
@pytest.mark.parametrize("training", [False, True])
def test_a_side_is_followed_through_casts_and_dropout(how: str, training: bool, way: str) -> None:
    rewritten, seen = made(Cast, way)
    rewritten.train(training).how = how
    with torch.autocast("cpu", torch.bfloat16):
        rewritten(**vectors())
        f, g = sides(rewritten)
    ((found_f, found_g),) = seen
    assert (f.dtype, found_f.dtype, found_g.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    dropped, kept = ((found_g, found_f), (g, f)) if how else ((found_f, found_g), (f, g))
    torch.testing.assert_close(dropped[1], kept[1].float())
    stays = dropped[0] != 0
    torch.testing.assert_close(dropped[0][stays], (kept[0].float() * (2 if training else 1))[stays])
    assert stays.all() != training


class Twice(Two):
    """The pair meets in one call, and both sides are read by others before and after."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        before = f.sum() + g.sum()
        joint = torch.cat([f, g], dim=1)
        return joint + before + f.mean() + g.mean()


@every_way
def test_only_the_call_in_which_they_meet_gets_the_results(way: str) -> None:
    rewritten, seen = made(Twice, way)
    f, g = sides(rewritten)
    expected = torch.cat([2 * f + 1, 3 * g], 1) + f.sum() + g.sum() + f.mean() + g.mean()
    torch.testing.assert_close(rewritten(**vectors()), expected)
    assert len(seen) == 1


class Nested(Two):
    """One tensor in lists, keyword arguments and a dict: wherever the call takes it from."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        parts = {"f": self.enc_a(a), "g": self.enc_b(b)}
        return torch.cat(tensors=list(parts.values()), dim=1)


@every_way
def test_keyword_operands_are_found(way: str) -> None:
    rewritten, seen = made(Nested, way)
    f, g = sides(rewritten)
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    assert len(seen) == 1


# -- sides that are taken before they meet ----------------------------------------------------------------------------

PAIR: dict[str, Any] = {**rules(), "rules": [{"id": "x", "pair": {"f": "module:enc_a", "g": "module:enc_b"}}]}


class Readers(Two):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        f, g = self.enc_a(a), self.enc_b(b)
        return f.sum(), torch.cat([f, g], dim=1), F.relu(g), f * 2


@every_way
def test_all_readers_behind_a_pair_get_one_result(way: str) -> None:
    with forced(way):
        rewritten: Any = regbn_surgery.regbnify(build(Readers), PAIR, vectors()).eval()
    assert ways(rewritten) == {way}
    seen = told(rewritten)
    f, g = sides(rewritten)
    new_f, new_g = 2 * f + 1, 3 * g
    expected = new_f.sum(), torch.cat([new_f, new_g], 1), F.relu(new_g), new_f * 2
    torch.testing.assert_close(rewritten(**vectors()), expected)
    assert len(seen) == 1, "computed once, and used four times"


# -- calls within calls -----------------------------------------------------------------------------------------------


class Recursive(Two):
    def forward(self, a: Tensor, b: Tensor, depth: int = 0) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        inner = self(a * 2, b, depth - 1) if depth else 0
        return torch.cat([f, g], dim=1) + inner


@every_way
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_forward_that_calls_itself_has_a_pair_in_each_call(way: str, depth: int) -> None:
    rewritten, seen = made(Recursive, way)
    expected = 0
    given = vectors()
    for i in range(depth + 1):
        f, g = rewritten.enc_a(given["a"] * 2**i), rewritten.enc_b(given["b"])
        expected = expected + torch.cat([2 * f + 1, 3 * g], 1)
    torch.testing.assert_close(rewritten(**given, depth=depth), expected)
    assert len(seen) == depth + 1


@every_way
def test_threads_do_not_see_each_others_sides(way: str) -> None:
    rewritten, _ = made(Ordered, way)
    barrier = threading.Barrier(2, timeout=600)

    def meet(*_: object) -> None:
        barrier.wait()

    rewritten.enc_a.register_forward_hook(meet)
    found: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        with torch.no_grad():
            found[seed] = rewritten(**vectors(seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    rewritten.enc_a._forward_hooks.clear()
    for seed in (1, 2):
        torch.testing.assert_close(found[seed], rewritten(**vectors(seed=seed)))


class Fails(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        if self.how == "fails":
            raise ValueError("on purpose")
        return torch.cat([f, g], dim=1)


@every_way
def test_a_call_that_fails_leaves_nothing_for_the_next(way: str) -> None:
    rewritten, seen = made(Fails, way)
    expected = rewritten(**vectors())
    rewritten.how = "fails"
    with pytest.raises(ValueError, match="on purpose"):
        rewritten(**vectors(seed=1))
    rewritten.how = ""
    torch.testing.assert_close(rewritten(**vectors()), expected)
    assert len(seen) == 2


# -- rounds -----------------------------------------------------------------------------------------------------------


class OneGenerator(Two):
    """Both sides are made by one call in a generator, which no layer of the rounds tells apart."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = (x.relu() for x in (self.enc_a(a), self.enc_b(b)))
        return torch.cat([f, g], dim=1)


class OneLoop(Two):
    """Both sides are made by one call in a loop over layers."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        made = []
        for layer, x in zip((self.enc_a, self.enc_b), (a, b), strict=True):
            made.append(layer(x).relu())
        return torch.cat(made, dim=1)


class OneHelper(Two):
    def encoded(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).relu()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.encoded(self.enc_a, a), self.encoded(self.enc_b, b)], dim=1)


@every_way
@pytest.mark.parametrize("cls", [OneGenerator, OneLoop, OneHelper])
def test_sides_that_one_place_makes_in_two_rounds_are_told_apart(cls: type[nn.Module], way: str) -> None:
    rewritten, seen = made(cls, way)
    f, g = (side.relu() for side in sides(rewritten))
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    ((found_f, found_g),) = seen
    torch.testing.assert_close((found_f, found_g), (f, g))


# -- writing in place -------------------------------------------------------------------------------------------------


class InPlace(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        same = f
        f += g
        return same * 2


@every_way
@pytest.mark.parametrize("training", [False, True])
def test_a_sum_in_place_is_seen_under_every_name_and_has_its_gradient(way: str, training: bool) -> None:
    rewritten = operate_by(way, build(InPlace), vectors(), "sum").train(training)
    with identity():
        torch.testing.assert_close(rewritten(**vectors()), 2 * sum(sides(rewritten)))
    with counting(rewritten) as calls:
        found = rewritten(**vectors())
    assert sum(calls.values()) == 1
    f, g = sides(rewritten)
    if not training:
        torch.testing.assert_close(found, 2 * sum(site_of(rewritten)(f, g)))
    found.square().sum().backward()
    assert rewritten.enc_a.weight.grad.abs().sum() > 0
    assert rewritten.enc_b.weight.grad.abs().sum() > 0


FUSIONS = {"cat": lambda parts: torch.cat(parts, dim=1), "reversed": lambda parts: torch.cat(parts[::-1], dim=1)}


class Configured(Two):
    """The fusion is a lambda out of a table, as code that is driven by a configuration has it."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = FUSIONS["cat"]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.fuse([g, f] if self.how == "exchanged" else [f * 1, g] if self.how == "another" else [f, g])


@every_way
def test_a_lambda_is_a_helper_too(way: str) -> None:
    rewritten, _ = made(Configured, way)
    rewritten = copy.deepcopy(rewritten)
    told(rewritten)
    f, g = sides(rewritten)
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([2 * f + 1, 3 * g], 1))
    rewritten.how = "exchanged"
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([3 * g, 2 * f + 1], 1))
    rewritten.how = "another"
    with pytest.warns(RegBNWarning, match="did not run"):
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([f, g], 1))


def test_another_lambda_in_its_place_is_not_taken_for_it() -> None:
    rewritten, seen = made(Configured, "source")
    f, g = sides(rewritten)
    rewritten.fuse = FUSIONS["reversed"]
    with pytest.warns(RegBNWarning, match="did not run"):
        torch.testing.assert_close(rewritten(**vectors()), torch.cat([g, f], 1))
    assert not seen
    surgery = rewritten.__dict__[ATTRIBUTE]
    surgery.__setstate__(surgery.__getstate__())  # as after loading: it looks for its functions again
    with pytest.raises(RewriteError, match="changed since regbnify"):
        rewritten(**vectors())


class TwoLambdas(Two):
    """One is called by the other, and both go by one name."""

    join = staticmethod(lambda f, g: torch.cat([f, g], dim=1))
    fuse = staticmethod(lambda join, f, g: join(f, g))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.fuse(self.join, *((g, f) if self.how == "exchanged" else (f, g)))


def test_lambdas_that_go_by_one_name_are_told_apart_by_a_mode() -> None:
    rewritten, _ = made(TwoLambdas, "mode")
    assert ways(regbn_surgery.regbnify(build(TwoLambdas), rules("concat", "a", "b"), vectors())) == {"mode"}
    f, g = sides(rewritten)
    rewritten.how = "exchanged"
    torch.testing.assert_close(rewritten(**vectors()), torch.cat([3 * g, 2 * f + 1], 1))
