"""Both sides change their shape on the way to the call at which they meet: RegBN's results go there all the same."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RewriteError, verify
from regbn_surgery._surgery._passage import Passage

from .models import operate, operate_by, site_of

ways = pytest.mark.parametrize("way", ["source", "mode"])


def example(batch: int = 3) -> dict[str, Tensor]:
    return {"a": torch.randn(batch, 4, 6), "b": torch.randn(batch, 5, 8)}


class Views(nn.Module):
    """Sums over all pairs of positions; a subclass writes how the two get there."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 12), nn.Linear(8, 12), nn.Linear(12, 3)

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.meet(a, b)).flatten(1, 2).sum(1))


class Indexed(Views):
    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        return self.enc_a(a)[:, :, None] + self.enc_b(b)[:, None]


class Exchanged(Views):
    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        return self.enc_b(b)[:, None] + self.enc_a(a)[:, :, None]


class Named(Views):
    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        f = self.enc_a(a).unsqueeze(2)
        g = self.enc_b(b).unsqueeze(1)
        return torch.add(f, g)


class Twice(Views):
    """A view of a view, which is followed for no further than one step."""

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        f = self.enc_a(a).unsqueeze(2).expand(-1, -1, 5, -1)
        return f + self.enc_b(b)[:, None]


class Weighed(Views):
    """g is read by another call before they meet."""

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        f = self.enc_a(a)[:, :, None]
        g = self.enc_b(b)
        return f + g[:, None] + g.mean(1)[:, None, None] * 0.1


class Here(Views):
    """Both exist before either is looked at."""

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return f[:, :, None] + g[:, None]


def operated(cls: type[Views], normalize: str, way: str = "source") -> Any:
    against = "b" if normalize == "a" else "a"
    if cls is Twice:  # only a graph of its calls can do them in another order
        return operate(cls(), example(), "sum", normalize=normalize, against=against)
    return operate_by(way, cls(), example(), "sum", normalize=normalize, against=against)


def influence(model: nn.Module, given: dict[str, Tensor]) -> list[bool]:
    """Whether the model's output depends on what RegBN returns for f, and for g."""
    usual = model(**given)
    depends = []
    for side in (0, 1):

        def noise(_: nn.Module, __: Any, made: tuple[Tensor, Tensor], side: int = side) -> tuple[Tensor, Tensor]:
            return tuple(torch.randn_like(x) if i == side else x for i, x in enumerate(made))  # type: ignore[return-value]

        handle = site_of(model).regbn.register_forward_hook(noise)
        depends.append(not torch.equal(model(**given), usual))
        handle.remove()
    return depends


@ways
@pytest.mark.parametrize("normalize", ["a", "b"])
@pytest.mark.parametrize("cls", [Indexed, Exchanged, Named, Twice, Weighed, Here])
def test_the_model_goes_on_with_both_results(cls: type[Views], normalize: str, way: str) -> None:
    torch.manual_seed(0)
    model = operated(cls, normalize, way).eval()
    assert influence(model, example(2)) == [True, True]
    assert influence(model, example(5)) == [True, True]
    assert influence(pickle.loads(pickle.dumps(model)), example(2)) == [True, True]
    assert verify(model, example(4)).ok


@pytest.mark.parametrize("normalize", ["a", "b"])
def test_results_are_those_of_the_same_model_written_out(normalize: str) -> None:
    torch.manual_seed(0)
    model = operated(Indexed, normalize).train()
    site = site_of(model)
    given = example(8)
    f, g = model.enc_a(given["a"]), model.enc_b(given["b"])
    model(**given)
    site.eval()
    sides = site(f, g) if normalize == "a" else site(g, f)[::-1]
    want = model.head(torch.relu(sides[0][:, :, None] + sides[1][:, None]).flatten(1, 2).sum(1))
    torch.testing.assert_close(model.eval()(**given), want)


def test_results_that_go_nowhere_are_refused_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check looks at what becomes of f' and g', whatever the reason why they were left aside."""
    model = operated(Indexed, "a")
    normalised = Passage._normalised

    def forgets_g(self: Passage, site: Any, f: Tensor, g: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        return normalised(self, site, f, g, mask)[0], g

    monkeypatch.setattr(Passage, "_normalised", forgets_g)
    found = verify(model, example(2))
    assert not found.ok
    assert found.sites[0].unused == ("g",)
    assert "RB204" in str(found)
    with pytest.raises(RewriteError, match="continues with g as before RegBN"):
        operated(Indexed, "a")
