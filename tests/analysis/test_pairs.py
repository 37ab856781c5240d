"""Which tensor `module:PATH` names where the module returns several: the first that its caller reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import PlanError, regbnify


class Encoder(nn.Module):
    """Its own forward reads what it returns first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = self.gru(x)
        return out, out[:, -1]


class Net(nn.Module):
    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.gru, self.lstm = nn.GRU(8, 6, batch_first=True), nn.LSTM(8, 6, batch_first=True)
        self.encoder, self.audio, self.head = Encoder(), nn.Linear(5, 4), nn.Linear(10, 2)

    def features(self, video: Tensor) -> Tensor:
        if self.which == "gru":
            _, h = self.gru(video)
            return h[-1]
        if self.which == "lstm":
            _, (_, c) = self.lstm(video)
            return c[-1]
        _, last = self.encoder(video)
        return last

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        return self.head(torch.cat([self.features(video), self.audio(audio)], 1))


class Parent(nn.Module):
    """Calls the layer of f in another module than that of g, so that this is the host."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.video, self.audio, self.head = Net(which), nn.Sequential(nn.Linear(5, 4)), nn.Linear(10, 2)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        return self.head(torch.cat([self.video.features(video), self.audio(audio)], 1))


def inputs(batch: int = 7, steps: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, steps, 8), torch.randn(batch, 5)


def pair(f: str, g: str = "audio") -> dict[str, Any]:
    rule = {"id": "p", "pair": {"f": f"module:{f}", "g": f"module:{g}"}, "reduce": "mean", "replace": "f"}
    return {"version": 1, "rules": [rule]}


def taken(model: nn.Module, path: str, *calls: tuple[Tensor, ...]) -> list[tuple[Any, Tensor]]:
    """What the module returned and what RegBN took as f, for each call."""
    for call in calls:  # a new kind of call is looked at in runs of its own, where calls are put in another order
        model(*call)
    returned: list[Any] = []
    fs: list[Tensor] = []
    model.get_submodule(path).register_forward_hook(lambda m, args, output: returned.append(output))
    site = next(m for name, m in model.named_modules() if name.endswith("regbn_p"))
    site.register_forward_pre_hook(lambda m, args: fs.append(args[0]))
    for call in calls:
        model(*call)
    return list(zip(returned, fs, strict=True))


@pytest.mark.parametrize(
    ("which", "path", "of"),
    [
        ("gru", "gru", lambda output: output[1]),
        ("lstm", "lstm", lambda output: output[1][1]),
        ("encoder", "encoder", lambda output: output[1]),
        ("encoder", "encoder.gru", lambda output: output[0]),
    ],
)
@pytest.mark.parametrize("parent", [False, True])
def test_the_tensor_that_is_read(which: str, path: str, of: Any, parent: bool) -> None:
    model: nn.Module = Parent(which) if parent else Net(which)
    path = f"video.{path}" if parent else path
    model = regbnify(model, pair(path, "audio.0" if parent else "audio"), inputs())
    found = taken(model, path, inputs(), inputs(4, 5), inputs(9, 5))
    assert len(found) == 3
    for output, f in found:
        assert torch.equal(f, of(output))


def test_what_nobody_reads_is_no_side() -> None:
    class Idle(Net):
        def forward(self, video: Tensor, audio: Tensor) -> Tensor:
            self.gru(video)
            return super().forward(video, audio)

    with pytest.raises(PlanError, match="nothing in the model's own forward reads what 'module:gru' gives"):
        regbnify(Idle("lstm"), pair("gru"), inputs())


class Two(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.beside, self.main = nn.Linear(features, 4), nn.Linear(features, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.beside(x), self.main(x)


class Tower(nn.Module):
    """Training reads the first of two tensors as well."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = Two(features), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        beside, main = self.first(x)
        return self.second(main + beside if self.training else main)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Tower(6), Tower(5)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(a), self.b(b)


def test_what_another_kind_of_call_reads_changes_no_side() -> None:
    """The pair is of the same tensors in training and in evaluation, whatever else one of them reads."""
    model = regbnify(Towers(), pair("a.first", "b.first"), (torch.randn(4, 6), torch.randn(4, 5)))
    for training in (True, False, True):
        ((returned, f),) = taken(model.train(training), "a.first.main", (torch.randn(8, 6), torch.randn(8, 5)))
        assert torch.equal(returned, f)
