"""`update_regbn`: the plain average of the batches' projections, nothing else moved, all put back if it fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regbn_surgery import (
    InputsError,
    RegBN,
    RegBNWarning,
    freeze,
    load_regbn,
    regbnify,
    save_regbn,
    statistics,
    update_regbn,
)

RULES: dict[str, Any] = {
    "version": 1,
    "rules": [
        {
            "id": "late",
            "match": {"kind": "concat"},
            "normalize": "image",
            "regbn": {"centre": True, "constraint": "gcv"},
        }
    ],
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.t, self.h = nn.Linear(8, 6), nn.Linear(5, 4), nn.Linear(10, 2)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.h(torch.cat([self.drop(self.norm(self.i(image))), self.t(table)], 1))


class Chain(nn.Module):
    """Two RegBN by hand: the later one takes f' of the earlier one."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second = RegBN(6, 4, **options), RegBN(6, 3, **options)

    def forward(self, f: torch.Tensor, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(f, g)[0], h)[0]


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(count, 5, generator=generator)
    image = torch.randn(count, 8, generator=generator)
    image[:, :5] += table
    return image, table


def batches(count: int = 6, size: int = 16, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [samples(size, seed * 100 + number) for number in range(count)]


def trained(steps: int = 5, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model = regbnify(Model(), {**RULES, **more}, samples(4)).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for pair in batches(steps, seed=7):
        optimizer.zero_grad()
        model(*pair).square().sum().backward()
        optimizer.step()
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def average(model: nn.Module, data: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """W and the mean of g of each batch, by a fresh RegBN that takes its first batch whole, averaged by hand."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    site = model.regbn_late
    handle = site.regbn.register_forward_pre_hook(lambda _, args: pairs.append(args[:2]))
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(*batch)
    handle.remove()
    found = []
    for f, g in pairs:
        one = RegBN(6, 4, constraint="gcv", centre=True, correct_start=True)
        one(f, g)
        found.append((one.W, one.mean_g))
    W, mean = (torch.stack(values).mean(0) for values in zip(*found, strict=True))
    return W, mean


@pytest.mark.parametrize("options", [{}, {"correct_start": True}, {"step_size": "rms"}, {"form": "dual"}])
def test_it_is_the_plain_average_and_nothing_else_moves(options: dict[str, Any]) -> None:
    model = trained(defaults={"regbn": options})
    data = batches()
    W, mean = average(copy.deepcopy(model), data)
    model.train()
    model.norm.eval()
    modes, before = [module.training for module in model.modules()], state(model)
    assert update_regbn(model, data) == {"regbn_late": 6}
    regbn = model.regbn_late.regbn
    torch.testing.assert_close(regbn.W, W, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(regbn.mean_g, mean)
    assert [module.training for module in model.modules()] == modes
    start = {"regbn_late.regbn.zero_weight"} if "correct_start" in options else set()
    assert changed(model, before) == {"regbn_late.regbn.W", "regbn_late.regbn.mean_g"} | start
    assert all(p.grad is None or p.requires_grad for p in model.parameters())
    again = state(model)
    update_regbn(model, data)  # what stood there before has no part in it
    assert all(torch.allclose(value, again[name], rtol=1e-5, atol=1e-7) for name, value in state(model).items())
    model.train()(*data[0]).sum().backward()  # and training goes on from there
    assert not torch.equal(regbn.W, again["regbn_late.regbn.W"])
    torch.testing.assert_close(regbn.W, W, rtol=0.3, atol=0.3)


def test_a_low_rank_projection_of_full_rank_is_the_same_average() -> None:
    whole, cut = (trained(defaults={"regbn": {"projection": kind}}) for kind in ("dense", "low_rank"))
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if "regbn.W" not in k}, strict=False)
    for model in (whole, cut):
        update_regbn(model, batches())
    factors = cut.regbn_late.regbn.factors
    torch.testing.assert_close(factors[0] @ factors[1], whole.regbn_late.regbn.W, rtol=1e-3, atol=1e-5)


def test_a_projection_with_nan_or_of_another_size_leaves_nothing_behind() -> None:
    model = trained()
    update_regbn(model, batches())
    want = model.regbn_late.regbn.W.clone()
    for spoilt in (float("nan"), 1e12):
        with torch.no_grad():
            model.regbn_late.regbn.W.fill_(spoilt)
        update_regbn(model, batches())
        torch.testing.assert_close(model.regbn_late.regbn.W, want)


def test_a_later_one_is_fitted_on_what_an_earlier_one_returns_in_training() -> None:
    model = Chain(constraint="fixed", lam=0.1)
    data = [(torch.randn(16, 6), torch.randn(16, 4), torch.randn(16, 3)) for _ in range(4)]
    found = []
    for f, g, h in data:
        alone = RegBN(6, 3, constraint="fixed", lam=0.1, correct_start=True)
        alone(RegBN(6, 4, constraint="fixed", lam=0.1)(f, g)[0], h)
        found.append(alone.W)
    model.eval()
    assert update_regbn(model, data) == {"first": 4, "second": 4}
    torch.testing.assert_close(model.second.W, torch.stack(found).mean(0))
    assert not model.training


def test_one_that_follows_a_mode_of_its_own_is_formed_again_too() -> None:
    class Published(nn.Module):
        """RegBN by hand, told of the mode at each call, as its published form is."""

        def __init__(self) -> None:
            super().__init__()
            self.regbn = RegBN(6, 4)

        def forward(self, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return self.regbn(f, g, is_training=self.training)[0]

    model, bare = Published(), RegBN(6, 4)
    data = [(torch.randn(12, 6), torch.randn(12, 4)) for _ in range(3)]
    assert update_regbn(model, data) == {"regbn": 3}
    assert update_regbn(bare, data) == {"": 3}
    assert torch.equal(model.regbn.W, bare.W)
    assert float(bare.W.norm()) > 0
    assert int(bare.num_steps) == 0


def test_statistics_of_maps_are_averaged_too() -> None:
    torch.manual_seed(0)
    regbn = RegBN(3, 2, [4, 4], [4, 4], normalize_input=True, residual="normalized")
    data = [(torch.randn(8, 3, 4, 4) + 2, torch.randn(8, 2, 4, 4)) for _ in range(5)]
    update_regbn(regbn, data)
    means = torch.stack([f.mean((0, 2, 3)) for f, _ in data]).mean(0)
    torch.testing.assert_close(regbn.norm_f.running_mean, means)
    assert int(regbn.norm_f.num_batches_tracked) == 0


def test_frozen_ones_are_formed_again_and_stay_frozen() -> None:
    model, other = freeze(trained()), trained()
    update_regbn(model, batches())
    update_regbn(other, batches())
    assert model.regbn_late.frozen
    assert torch.equal(model.regbn_late.regbn.W, other.regbn_late.regbn.W)


@pytest.mark.parametrize("form", ["pairs", "flat", "dicts", "lists"])
def test_forms_of_batches(form: str) -> None:
    model, other = trained(), trained()
    update_regbn(other, batches())
    label = torch.zeros(16)
    made = {
        "pairs": lambda image, table: ((image, table), label),
        "flat": lambda image, table: (image, table, label),
        "dicts": lambda image, table: {"image": image, "table": table},
        "lists": lambda image, table: [[image, table], label],
    }[form]
    assert update_regbn(model, (made(*batch) for batch in batches())) == {"regbn_late": 6}
    assert torch.equal(model.regbn_late.regbn.W, other.regbn_late.regbn.W)


def test_a_last_batch_of_one_sample_and_one_that_is_not_finite_are_left_out() -> None:
    model, other = trained(), trained()
    loader = DataLoader(TensorDataset(*samples(33)), 16)
    assert update_regbn(model, loader) == {"regbn_late": 2}
    assert update_regbn(other, loader, count=2, device="cpu") == {"regbn_late": 2}
    assert torch.equal(model.regbn_late.regbn.W, other.regbn_late.regbn.W)
    before = int(model.regbn_late.regbn.num_skipped)
    spoilt = (torch.full((16, 8), torch.nan), torch.randn(16, 5))
    assert update_regbn(model, [spoilt, *batches(3)]) == {"regbn_late": 3}
    assert bool(model.regbn_late.regbn.W.isfinite().all())
    assert int(model.regbn_late.regbn.num_skipped) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_everything_is_put_back_where_it_fails(stop: type[BaseException]) -> None:
    model = trained(defaults={"regbn": {"correct_start": True}}).train()
    model.i.eval()
    modes, before = [module.training for module in model.modules()], state(model)

    def data() -> Any:
        yield from batches(2)
        raise stop("no more")

    with pytest.raises(InputsError if stop is ValueError else stop, match="no more"):
        update_regbn(model, data())
    assert changed(model, before) == set()
    assert [module.training for module in model.modules()] == modes
    model(*samples(16))
    assert int(model.regbn_late.regbn.num_steps) == 6, "it trains as before"


def test_a_regbn_without_a_batch_stays_as_it_was() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = RegBN(6, 4), RegBN(6, 4)

        def forward(self, f: torch.Tensor, g: torch.Tensor, other: bool = False) -> torch.Tensor:
            return (self.unused if other else self.used)(f, g)[0]

    model = Either()
    model(torch.randn(8, 6), torch.randn(8, 4), True)
    kept = model.unused.W.clone()
    data = [(torch.randn(8, 6), torch.randn(8, 4))]
    with pytest.warns(RegBNWarning, match=r"RB416 `unused` could not be fitted on any of 1 batch") as told:
        assert update_regbn(model, data) == {"used": 1, "unused": 0}
    assert told[0].filename == __file__
    assert torch.equal(model.unused.W, kept)
    assert float(kept.norm()) > 0
    with pytest.raises(InputsError, match="changed nothing"):
        update_regbn(model, [(torch.randn(1, 6), torch.randn(1, 4))])


def test_a_model_without_regbn_is_left_alone_with_a_warning() -> None:
    model = Model()
    with pytest.warns(RegBNWarning, match="RB419 Model has no RegBN") as told:
        assert update_regbn(model, iter(())) == {}  # not a batch is asked for
    assert told[0].filename == __file__


def test_what_cannot_be_formed_again_is_refused() -> None:
    with pytest.raises(InputsError, match="the data gave no batch"):
        update_regbn(trained(), [])
    with pytest.raises(InputsError, match="could not be run on batch 2"):
        update_regbn(trained(), [samples(8), (torch.randn(8, 3), torch.randn(8, 5))])
    with pytest.raises(InputsError, match="no argument `batches`"):
        update_regbn(trained(), batches(), batches=3)  # type: ignore[call-arg]


def test_after_loading_and_in_wrappers(tmp_path: Any) -> None:
    model = trained()
    save_regbn(model, tmp_path)
    loaded = load_regbn(Model(), tmp_path)
    update_regbn(model, batches())
    want = model.regbn_late.regbn.W.clone()
    update_regbn(loaded, batches())
    torch.testing.assert_close(loaded.regbn_late.regbn.W, want)
    pairs = [(batch, torch.zeros(16)) for batch in batches()]
    parallel = nn.DataParallel(copy.deepcopy(model))  # its forward takes whatever comes: the model's own tells
    flat = [(*batch, torch.zeros(16)) for batch in batches()]
    for data in (pairs, flat):
        assert update_regbn(parallel, data) == {"regbn_late": 6}
        torch.testing.assert_close(parallel.module.regbn_late.regbn.W, want)


def test_the_active_copy_of_adapters_is_formed_again() -> None:
    peft = pytest.importorskip("peft")
    model = trained()
    update_regbn(other := copy.deepcopy(model), batches())
    config = peft.LoraConfig(target_modules=["i", "t"], modules_to_save=["regbn_late.regbn"])
    wrapped = peft.get_peft_model(model, config)
    flat = [(*batch, torch.zeros(16)) for batch in batches()]
    assert list(update_regbn(wrapped, flat).values()) == [6]
    copies = {name: module for name, module in wrapped.named_modules() if isinstance(module, RegBN)}
    (saved,) = (module for name, module in copies.items() if "modules_to_save.default" in name)
    (original,) = (module for name, module in copies.items() if "original_module" in name)
    assert len({name.rpartition("/")[0] for name in statistics(wrapped)}) == 1, "of a wrapper only what runs counts"
    torch.testing.assert_close(saved.W, other.regbn_late.regbn.W)
    assert not torch.equal(original.W, saved.W)


def test_evaluation_removes_what_it_lags_behind() -> None:
    """Branches that still learn: after training the running projection removes little, formed again it removes most."""
    torch.manual_seed(0)
    regbn = RegBN(16, 8, constraint="gcv", centre=True, normalize_output=False, correct_start=True)
    to_f, turn = torch.randn(8, 16), torch.linalg.qr(torch.randn(8, 8))[0]

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.randn(count, 8)
        return g @ to_f + 0.5 * torch.randn(count, 16), g

    for step in range(96):
        f, g = draw(64)
        regbn(f, g @ torch.matrix_exp(0.05 * step * (turn - turn.mT)))
    last = torch.matrix_exp(0.05 * 96 * (turn - turn.mT))
    f, g = draw(2000)

    def left() -> float:
        with torch.no_grad():
            return float(copy.deepcopy(regbn).eval()(f, g @ last)[0].var() / f.var())

    lagging = left()
    update_regbn(regbn, [(f, g @ last) for f, g in (draw(64) for _ in range(10))])
    assert lagging > 0.5
    assert left() < 0.1


class Twice(Model):
    """Two hosts of one rule: the model itself, and a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Model()

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.h(torch.cat([self.i(image), self.t(table)], 1)) + self.part(image, table)


def with_adapters(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["i"], modules_to_save=["regbn_late.regbn"]))


def in_ddp(model: nn.Module) -> nn.Module:
    class DistributedDataParallel(nn.Module):
        """As torch's holds its model, without a process group."""

        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    return DistributedDataParallel()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


WRAPPERS: list[Any] = [lambda model: model, with_adapters, nn.DataParallel, in_ddp, compiled]
WRAPPERS += [lambda model: in_ddp(with_adapters(model)), lambda model: compiled(in_ddp(model))]


@pytest.mark.parametrize(("cls", "names"), [(Model, {"regbn_late"}), (Twice, {"regbn_late", "part.regbn_late"})])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_it_names_them_as_statistics_does_with_anything_around(wrap: Any, cls: type[nn.Module], names: Any) -> None:
    model = wrap(regbnify(cls(), RULES, samples(4)))
    assert update_regbn(model, batches(2)) == dict.fromkeys(names, 2)
    assert {name.rpartition("/")[0] for name in statistics(model)} == names
    bare = nn.DataParallel(RegBN(6, 4))
    assert set(update_regbn(bare, [(torch.randn(8, 6), torch.randn(8, 4))])) == {""}
    assert set(statistics(bare)) == set(statistics(bare.module))
