"""Pairs between the stages of two towers: the host is their common ancestor, and its calls are put in another order."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import PlanError, RegBNError, RewriteError, unregbnify
from regbn_surgery._surgery import explain, identity

from .models import build, counting, everything, run


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...] = (4, 6, 8), dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(widths[0], widths[0], 1))
        self.layer2 = nn.Sequential(Block(widths[0], widths[1], 2))
        self.layer3 = nn.Sequential(Block(widths[1], widths[2], 2))
        self.drop = nn.Dropout(dropout)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.drop(x.mean((2, 3))) * self.scale


class Streams(nn.Module):
    """Holds the towers one level further down."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.rgb, self.depth = ResNet(3, dropout=dropout), ResNet(1, (4, 5, 7), dropout=dropout)

    def forward(self, rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        return self.rgb(rgb), self.depth(depth)


class TwoTowers(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.streams = Streams(dropout)
        self.head = nn.Linear(15, 3)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.head(torch.cat(self.streams(rgb, depth), dim=1))


def images(batch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(10 * seed + batch)
    return {
        "rgb": torch.randn(batch, 3, 8, 8, generator=generator),
        "depth": torch.randn(batch, 1, 8, 8, generator=generator),
    }


STAGES = ("layer1", "layer2", "layer3")


def pairs(*places: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "rules": [
            {"id": f"p{i}", "pair": {"f": f"module:streams.{f}", "g": f"module:streams.{g}"}, **more}
            for i, (f, g) in enumerate(places)
        ],
    }


def layerwise(f: str = "rgb", g: str = "depth", **more: Any) -> dict[str, Any]:
    return pairs(*((f"{f}.{stage}", f"{g}.{stage}") for stage in STAGES), **more)


def by_hand(model: Any, rgb: Tensor, depth: Tensor, f_is_rgb: bool = True) -> Tensor:
    """Stage by stage, as one would write it."""
    towers, sites = model.streams, [getattr(model.streams, f"regbn_p{i}") for i in range(3)]
    x = towers.rgb.relu(towers.rgb.bn1(towers.rgb.conv1(rgb)))
    y = towers.depth.relu(towers.depth.bn1(towers.depth.conv1(depth)))
    for stage, site in zip(STAGES, sites, strict=True):
        x, y = getattr(towers.rgb, stage)(x), getattr(towers.depth, stage)(y)
        x, y = site.regbn(x, y) if f_is_rgb else site.regbn(y, x)[::-1]
    return model.head(torch.cat([x.mean((2, 3)), y.mean((2, 3))], dim=1))


@pytest.mark.parametrize("f_is_rgb", [True, False])
def test_layer_by_layer_it_is_the_model_written_by_hand(f_is_rgb: bool) -> None:
    rewritten = regbn_surgery.regbnify(
        build(TwoTowers), layerwise() if f_is_rgb else layerwise("depth", "rgb"), images()
    )
    (report,) = explain(rewritten)
    assert (report.host, report.tier, len(report.sites)) == ("streams", 2, 3)
    optimizer = torch.optim.SGD(rewritten.parameters(), lr=0.05)
    for seed, (batch, training) in enumerate([(4, True), (5, True), (3, False), (6, True), (2, False)]):
        twin = copy.deepcopy(rewritten).train(training)
        with counting(rewritten) as calls:
            found = run(rewritten, images(batch, seed), training)
        assert dict(calls) == {f"streams.regbn_p{i}": 1 for i in range(3)}
        expected = by_hand(twin, **images(batch, seed), f_is_rgb=f_is_rgb)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.square().sum().backward()
        expected.square().sum().backward()
        for (name, ours), theirs in zip(rewritten.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        optimizer.step()
        optimizer.zero_grad()
    assert all(getattr(rewritten.streams, f"regbn_p{i}").regbn.W.any() for i in range(3))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", [False, True])
def test_with_identity_in_place_it_is_the_model_it_was(dropout: float, training: bool) -> None:
    """Outputs, gradients and buffers; in training with dropout on, the order of its draws is another."""
    model = build(TwoTowers, dropout)
    rewritten = regbn_surgery.regbnify(model, layerwise(), images())
    assert isinstance(rewritten.streams, Streams)
    for copied in (rewritten, copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        original = copy.deepcopy(model)
        for batch in (2, 3, 5):
            for found in (original, copied):
                found.zero_grad()
            with identity(copied):
                output = run(copied, images(batch), training)
            expected = run(original, images(batch), training)
            if training and dropout:
                continue
            torch.testing.assert_close(output, expected)
            output.square().sum().backward()
            expected.square().sum().backward()
            for name, parameter in original.named_parameters():
                torch.testing.assert_close(copied.get_parameter(name).grad, parameter.grad)
            for name, buffer in original.named_buffers():
                torch.testing.assert_close(copied.get_buffer(name), buffer)


def test_undo_gives_the_very_model_back() -> None:
    model = build(TwoTowers)
    rewritten = regbn_surgery.regbnify(model, layerwise(), images())
    run(rewritten, images(), True)
    restored = unregbnify(rewritten)
    assert [type(m) for m in restored.modules()] == [type(m) for m in model.modules()]
    assert list(restored.state_dict()) == list(model.state_dict())
    assert not any(module._forward_pre_hooks for module in restored.modules())


def test_pairs_across_levels_and_in_both_directions() -> None:
    given = pairs(("rgb.layer1", "depth"), ("depth.layer2", "rgb.layer3.0"))
    with pytest.raises(RewriteError, match="neither can come first"):
        regbn_surgery.regbnify(build(TwoTowers), given, images())
    given = pairs(("rgb.layer1", "depth.layer1"), ("depth.layer2", "rgb.layer2"), ("rgb.layer3.0", "depth.layer3"))
    rewritten = regbn_surgery.regbnify(build(TwoTowers), given, images())
    with counting(rewritten) as calls:
        run(rewritten, images(), True)
    assert sum(calls.values()) == 3


def test_an_input_with_the_inside_of_a_tower_and_a_fusion_point_beside() -> None:
    given = {
        "version": 1,
        "rules": [
            {"id": "in", "pair": {"f": "module:streams.rgb.layer1", "g": "input:depth"}},
            {"id": "late", "match": {"kind": "concat"}, "normalize": "rgb"},
        ],
    }
    rewritten = regbn_surgery.regbnify(build(TwoTowers), given, images())
    with counting(rewritten) as calls:
        found = run(rewritten, images(5), False)
    assert dict(calls) == {"regbn_in": 1, "regbn_late": 1}
    towers = rewritten.streams
    x = towers.rgb.layer1(towers.rgb.relu(towers.rgb.bn1(towers.rgb.conv1(images(5)["rgb"]))))
    x, depth = rewritten.regbn_in.regbn(x, images(5)["depth"])
    x = towers.rgb.layer3(towers.rgb.layer2(x)).mean((2, 3))
    f, g = rewritten.regbn_late.regbn(x, towers.depth(depth))
    torch.testing.assert_close(found, rewritten.head(torch.cat([f, g], dim=1)), rtol=1e-4, atol=1e-5)


# -- what the order must not change -----------------------------------------------------------------------------------


class Chained(TwoTowers):
    """The second tower reads what the first one made."""

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        x = self.streams.rgb(rgb)
        return self.head(torch.cat([x, self.streams.depth(depth + x.mean((1,))[:, None, None, None])], dim=1))


def test_a_cycle_is_refused_with_both_places_named() -> None:
    model = build(Chained)
    before = everything(model)
    with pytest.raises(RegBNError, match=r"neither can come first|computed from") as caught:
        regbn_surgery.regbnify(model, layerwise(), images(), inplace=True)
    assert "streams.rgb.layer1" in str(caught.value)
    assert "streams.depth.layer1" in str(caught.value)
    assert everything(model) == before
    rewritten = regbn_surgery.regbnify(model, layerwise("depth", "rgb", replace="f"), images())
    with counting(rewritten) as calls:
        run(rewritten, images(), True)
    assert sum(calls.values()) == 3


class Hazard(nn.Module):
    """The second tower's caller writes to what the first tower goes on reading."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Stage(), Stage()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        bias = torch.ones_like(a)
        x = self.one(a, bias)
        bias.mul_(3)
        return x + self.two(b, bias)


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.second(self.first(x)) + bias


def test_a_write_in_place_that_would_change_places_is_refused_with_both_calls_named() -> None:
    inputs = {"a": torch.randn(4, 6), "b": torch.randn(4, 6)}
    given = {"version": 1, "rules": [{"id": "x", "pair": {"f": "module:one.first", "g": "module:two.first"}}]}
    with pytest.raises(RewriteError, match=r"mul at .*test_across.py:\d+ writes in place what .* at .*test_across.py"):
        regbn_surgery.regbnify(build(Hazard), given, inputs)
    given["rules"][0] |= {"pair": {"f": "module:two.first", "g": "module:one.first"}, "replace": "f"}
    rewritten = regbn_surgery.regbnify(build(Hazard), given, inputs)
    with identity(rewritten):
        torch.testing.assert_close(run(rewritten, inputs, True), run(build(Hazard), inputs, True))


class Modes(Hazard):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.one(a, torch.zeros_like(a))
        with torch.no_grad():
            y = self.two(b, torch.zeros_like(b))
        return x + y


def test_a_change_of_mode_that_would_be_crossed_is_refused() -> None:
    inputs = {"a": torch.randn(4, 6), "b": torch.randn(4, 6)}
    given = {"version": 1, "rules": [{"id": "x", "pair": {"f": "module:one.first", "g": "module:two.first"}}]}
    with pytest.raises(RewriteError, match="across a change of the gradient or autocast mode"):
        regbn_surgery.regbnify(build(Modes), given, inputs)


# -- opened modules ---------------------------------------------------------------------------------------------------


def test_hooks_inside_an_opened_tower_fire_and_hooks_on_it_are_an_error() -> None:
    rewritten = regbn_surgery.regbnify(build(TwoTowers), layerwise(), images())
    run(rewritten, images(), True)
    fired: list[str] = []
    for stage in STAGES:
        layer = getattr(rewritten.streams.rgb, stage)
        layer.register_forward_hook(lambda module, args, output, stage=stage: fired.append(stage))
    run(rewritten, images(), True)
    assert fired == list(STAGES)
    handle = rewritten.streams.rgb.register_forward_hook(lambda *_: None)
    with pytest.raises(RewriteError, match=r"ResNet at `rgb` of Streams has hooks.*Put the hooks on its submodules"):
        run(rewritten, images(), False)
    handle.remove()
    run(rewritten, images(), False)


def test_a_changed_attribute_of_an_opened_tower_is_noticed() -> None:
    model = build(TwoTowers)
    rewritten = regbn_surgery.regbnify(model, layerwise(), images())
    for scale in (3.0, 0.5):
        model.streams.rgb.scale = rewritten.streams.rgb.scale = scale
        with identity(rewritten):
            torch.testing.assert_close(run(rewritten, images(), False), run(model, images(), False))


def test_a_tower_that_keeps_something_on_itself_is_refused() -> None:
    class Keeps(ResNet):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    model = build(TwoTowers)
    model.streams.rgb = Keeps(3)
    with pytest.raises(RewriteError, match=r"Keeps at `rgb` sets an attribute of itself \(`self.last`\)"):
        regbn_surgery.regbnify(model, layerwise(), images())


def test_a_tower_whose_forward_no_graph_can_repeat_is_refused_with_both_places() -> None:
    class Reads(ResNet):
        def forward(self, x: Tensor) -> Tensor:
            assert x.sum().item() < 1e9
            return super().forward(x)

    model = build(TwoTowers)
    model.streams.rgb = Reads(3)
    match = r"between module `streams.rgb.layer1` and module `streams.depth.layer1`.*reads a tensor's value"
    with pytest.raises(RewriteError, match=match):
        regbn_surgery.regbnify(model, layerwise(), images())


def test_a_place_that_is_not_there_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match=r"layer9"):
        regbn_surgery.regbnify(build(TwoTowers), pairs(("rgb.layer9", "depth.layer1")), images())
