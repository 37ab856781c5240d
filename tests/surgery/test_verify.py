"""Which streams come to each RegBN: in calls like the example, in others, and under each way in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, Recipe, RegBNWarning, RewriteError, load_regbn, regbnify, save_regbn, verify
from regbn_surgery._surgery import explain

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 5), torch.randn(batch, 7)


class Fuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([left, right], 1))


def hand(fuse: nn.Module, x: Tensor, y: Tensor) -> object:
    return fuse(x, y)


class Handing(nn.Module):
    """Hands its branches to a helper, in an order that the call says; the helper hands them to a hooked host."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.fuse = nn.Linear(5, 8), nn.Linear(7, 8), Fuse()

    def forward(self, a: Tensor, b: Tensor, exchanged: bool = False) -> Tensor:
        f, g = self.fa(a), self.fb(b)
        return hand(self.fuse, g, f) if exchanged else hand(self.fuse, f, g)


class Nested(nn.Module):
    """One nested function makes both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        def tower(name: str, x: Tensor) -> Tensor:
            return getattr(self, name)(x)

        return self.head(torch.cat([tower("fa", a), tower("fb", b)], 1))


class ByMode(nn.Module):
    """Its join stands in a lambda deep in a table, which no way but the mode serves."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)
        self.joins = {"by": {"cat": lambda x, y: torch.cat([x, y], 1)}}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.joins["by"]["cat"](self.fa(a), self.fb(b)))


@pytest.mark.parametrize("cls", [Handing, Nested, ByMode])
@pytest.mark.parametrize("training", [False, True])
def test_a_call_like_the_example_is_right(cls: type[nn.Module], training: bool) -> None:
    model = regbnify(cls(), RULES, inputs())
    found = verify(model, inputs(6), training=training)
    assert found.ok
    (site,) = found.sites
    assert (site.runs, site.carried, site.problem) == (1, ((("a",), ("b",)),), "")


def test_the_mode_is_what_serves_the_lambda() -> None:
    assert [host.way for host in explain(regbnify(ByMode(), RULES, inputs()))] == ["mode"]


def test_exchanged_arguments_of_a_hooked_host_are_told() -> None:
    model = regbnify(Handing(), RULES, inputs())
    found = verify(model, Inputs(*inputs(), exchanged=True))
    assert not found.ok
    assert "f and g are exchanged: f b and g a, where the rule says f a and g b" in str(found)
    assert found.to_dict()["sites"][0]["carried"] == [{"f": ["b"], "g": ["a"]}]


def test_the_model_is_as_it_was() -> None:
    model = regbnify(Handing(), RULES, inputs()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify(model, inputs())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_regbn_is_refused() -> None:
    with pytest.raises(RewriteError, match="nothing to verify"):
        verify(Handing(), inputs())


class Elsewhere(nn.Module):
    """The streams meet at the concatenation of the example, at a sum in another call, mixed at a third, or nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.z = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(3, 8)
        self.late = Joint()

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, how: str = "cat") -> torch.Tensor:
        x, y, z = self.x(x), self.y(y), self.z(z)
        if how == "cat":
            return self.late(x, y) + z.repeat(1, 2)
        if how == "sum":
            return self.late.added(x, y)
        if how == "mixed":
            return torch.stack([x.sin() * z, y], 1)
        return torch.relu(x)


class Joint(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, y], 1)

    def added(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y  # another call


class Branching(nn.Module):
    """The same call joins what another branch has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.other, self.y = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(7, 8)

    def forward(self, a: torch.Tensor, b: torch.Tensor, how: str = "layer") -> torch.Tensor:
        if how == "layer":
            f = self.x(a)
        elif how == "loop":
            for _ in range(2):
                f = torch.tanh(self.other(a))
        else:
            held = {"f": self.other(a) + 1}
            f = held["f"]
        return torch.cat([f, self.y(b)], 1)  # the joining call


def test_the_same_call_is_not_called_another_one() -> None:
    model = regbnify(Branching(), RULES, inputs())
    (site,) = verify(model, Inputs(*inputs(), how="stored")).sites
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# the joining call" in text)
    assert site.runs == 0
    assert site.problem.startswith(
        f"RB201 did not run: f a and g b meet at `cat` ({__file__}:{line}), but are computed"
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("normalize", ["x", "y"])
def test_a_regbn_that_did_not_run_names_the_call_at_which_its_streams_meet(normalize: str, training: bool) -> None:
    example = {"x": torch.randn(4, 4), "y": torch.randn(4, 5), "z": torch.randn(4, 3)}
    rules = {"version": 1, "rules": [{"id": "a", "match": {"owner": "late"}, "normalize": normalize}]}
    model = regbnify(Elsewhere(), rules, example)

    def told(how: str) -> str:
        (site,) = verify(model, {**{k: v[:3] for k, v in example.items()}, "how": how}, training=training).sites
        return site.problem

    assert told("cat") == ""
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# another call" in text)
    streams = "f x and g y" if normalize == "x" else "f y and g x"
    assert told("sum") == f"RB201 did not run: {streams} meet at another call, `add` ({__file__}:{line})"
    as_they_are = "f x+z and g y" if normalize == "x" else "f y and g x+z"
    assert told("mixed").startswith(f"RB201 did not run: {streams} meet at another call, `stack` ({__file__}:")
    assert told("mixed").endswith(f", as {as_they_are}")
    assert told("none") == f"RB201 did not run: {streams} do not meet in this call"


class Attending(nn.Module):
    """torch's own attention takes both sides; which is the query, a call may say."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(5, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, exchanged: bool = False) -> Tensor:
        a, b = self.a(x), self.b(y)
        if exchanged:
            a, b = b, a
        return self.attend(a, b, value=b)[0].mean(1)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fusion = Attending()

    def forward(self, x: Tensor, y: Tensor, exchanged: bool = False) -> Tensor:
        return self.fusion(x, y, exchanged).tanh()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", [Attending, Inside])
@pytest.mark.parametrize("normalize", ["x", "y"])
def test_a_layer_of_torch_is_not_looked_into_and_still_checked(
    cls: type[nn.Module], normalize: str, training: bool
) -> None:
    def example(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 5, 6), torch.randn(batch, 7, 5)

    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "attention"}, "normalize": normalize}]}
    model = regbnify(cls(), rules, example(4))
    found = verify(model, example(3), training=training)
    assert found.ok, found
    assert found.sites[0].runs == 1
    f, g = ("x", "y") if normalize == "x" else ("y", "x")
    assert found.sites[0].carried == (((f,), (g,)),)
    exchanged = verify(model, Inputs(*example(3), exchanged=True), training=training)
    assert not exchanged.ok


@pytest.mark.parametrize("modalities", [{"one": "a", "two": "b"}, {"b": "a", "a": "b"}])
def test_names_of_modalities_are_saved_with_the_model(modalities: dict[str, str], tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fa, self.fb, self.fuse = nn.Linear(5, 8), nn.Linear(7, 8), Fuse()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fuse(self.fa(a), self.fb(b))

    first, second = modalities
    rule = {"id": "late", "match": {"kind": "concat"}, "normalize": first, "against": second}
    model = regbnify(Two(), {"version": 1, "modalities": modalities, "rules": [rule]}, inputs())
    save_regbn(model, tmp_path)
    loaded = load_regbn(Two(), tmp_path)
    for each in (model, loaded, Recipe.of(model).apply(Two())):
        found = verify(each, inputs(3))
        assert found.ok, found
        assert found.sites[0].carried == (((first,), (second,)),)


class CrossThenPool(nn.Module):
    """The streams meet at an attention and, pooled in one of two ways, at a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
        x, y = self.fa(a), self.fb(b)
        x = x + self.cross(x, y, y, need_weights=False)[0]
        pooled = x.mean(1) if weights is None else torch.einsum("bl,blc->bc", weights, x)
        return self.head(torch.cat([pooled, y.mean(1)], 1))  # the place


def test_the_place_that_is_named_is_that_of_the_regbn() -> None:
    given = torch.randn(4, 6, 5), torch.randn(4, 3, 7)
    model = regbnify(CrossThenPool(), RULES, (*given, torch.rand(4, 6)))
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# the place" in text)
    (site,) = verify(model, given).sites
    assert site.problem.startswith("RB201")
    assert (
        f"meet at `cat` ({__file__}:{line}), but are computed there in a way that the example did not" in site.problem
    )


def test_a_warning_names_the_regbn_by_its_path_in_the_model() -> None:
    class WithoutB(CrossThenPool):
        def forward(self, a: Tensor, b: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            x = self.fa(a)
            if b is not None:
                y = self.fb(b)
                x = x + self.cross(x * 1.0, y, y, need_weights=False)[0]
            return x if mask is None else x * mask[..., None]

    mask = {"a": {"argument": "mask", "marks": "content"}}
    rule = {"id": "c", "match": {"kind": "attention"}, "normalize": "a", "against": "b", "reduce": "mean", "mask": mask}
    rules = {"version": 1, "rules": [rule]}
    given = torch.randn(4, 6, 5), torch.randn(4, 3, 7), torch.ones(4, 6)
    model = regbnify(WithoutB(), rules, given)
    with pytest.warns(RegBNWarning, match=r"RB401 .*RegBN `cross\.regbn_c` did not run"):
        model(given[0], None, given[2])
