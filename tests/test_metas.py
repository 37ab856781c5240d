"""Meta tensors that pass for tensors on the CPU, so that a model without weights runs as it would with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery as rs
import regbn_surgery._analysis._capturing as capturing
from regbn_surgery._metas import MetaRunError, OnMeta


def meta(*shape: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=requires_grad)


def test_they_pass_for_tensors_on_the_cpu() -> None:
    x = meta(2, 3)
    with OnMeta():
        assert x.device == torch.device("cpu")
        assert not x.is_meta
        assert x.is_cpu
        assert x.get_device() == -1
        assert x.cpu() is x
        assert x.to("cpu", torch.float64).dtype == torch.float64
        assert x.to(device=torch.device("cpu")).shape == (2, 3)
        assert torch.zeros_like(x, device=x.device).shape == (2, 3)
    assert x.is_meta


def test_whole_numbers_stay_real_and_new_floating_ones_have_no_values() -> None:
    with OnMeta():
        made = torch.arange(4), torch.ones(2, dtype=torch.bool), torch.zeros(2, 3), torch.tensor(0.5)
        sums = torch.arange(4).sum().item(), torch.tensor(0.5).item()
    assert [tensor.is_meta for tensor in made] == [False, False, True, False]
    assert sums == (6, 0.5)


def test_real_operands_become_meta_where_they_meet_one() -> None:
    ids, mask = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[True, False], [True, True]])
    with OnMeta():
        words = F.embedding(ids, meta(5, 7))
        kept = words.masked_fill(mask[..., None], 0.0)
        joined = torch.cat([words, torch.ones(2, 1, 7)], dim=1)
    assert words.is_meta
    assert kept.is_meta
    assert words.shape == kept.shape == (2, 2, 7)
    assert joined.shape == (2, 3, 7)


def test_what_came_of_a_call_is_remembered_by_how_the_operands_look() -> None:
    x, weight = meta(2, 3), meta(4, 3)
    with OnMeta() as mode:
        first, second = F.linear(x, weight), F.linear(x, weight)
        other = F.linear(meta(5, 3), weight)
    assert first is not second
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert first.shape == second.shape == (2, 4)
    assert other.shape == (5, 4)
    assert len(mode._made) == 2


def test_numbers_that_are_equal_but_of_other_types_make_other_dtypes() -> None:
    ids = meta(3, dtype=torch.int64)
    flags = meta(3, dtype=torch.bool)
    with OnMeta():
        assert [(ids * factor).dtype for factor in (1, 1.0, 1)] == [torch.int64, torch.float32, torch.int64]
        assert [(flags * factor).dtype for factor in (True, 1, 1.0)] == [torch.bool, torch.int64, torch.float32]
        assert [torch.sum(x, -1, keepdim=True).dtype for x in (ids, flags, meta(3))][2] == torch.float32


def test_strides_are_part_of_how_a_tensor_looks() -> None:
    with OnMeta():
        plain, turned = meta(2, 3) * 2, meta(3, 2).t() * 2
    assert plain.stride() == (3, 1)
    assert turned.stride() == (1, 2)


def test_views_and_writes_in_place_share_memory_each_time() -> None:
    x = meta(2, 6)
    with OnMeta():
        for _ in range(2):
            assert x.view(3, 4).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert x.add_(1) is x
            assert x.contiguous() is x


def test_a_remembered_result_may_be_written_to_under_autograd() -> None:
    weight = meta(4, 3, requires_grad=True)
    with OnMeta():
        for _ in range(2):
            y = F.linear(meta(2, 3), weight)
            assert y.requires_grad
            assert not y.is_leaf
            y += 1
        with torch.no_grad():
            assert not F.linear(meta(2, 3), weight).requires_grad


@pytest.mark.parametrize(
    "call",
    [
        lambda real, x: real.add_(x),
        lambda real, x: torch.add(x, x, out=real),
        lambda real, x: real.__setitem__(0, x[0]),
        lambda real, x: real.__iadd__(x),
        lambda real, x: real.copy_(x),
    ],
)
def test_a_tensor_with_values_is_not_written_to(call: Callable[[Tensor, Tensor], object]) -> None:
    real = torch.zeros(2, 3)
    with OnMeta(), pytest.raises(MetaRunError, match="written to"):
        call(real, meta(2, 3))


def test_autocast_goes_by_the_device() -> None:
    with OnMeta(), torch.autocast("cpu", torch.bfloat16), pytest.raises(MetaRunError, match="autocast"):
        F.linear(meta(2, 3), meta(4, 3))


def test_values_are_not_to_be_had() -> None:
    with OnMeta(), pytest.raises(RuntimeError):
        meta(2).sum().item()


class Towers(nn.Module):
    """Two towers of repeated layers, and a mask made of the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.words = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(16, 5)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        x = self.table(ids) + torch.zeros(ids.shape[1], 8, device=self.table.weight.device)
        for layer in self.words:
            x = layer(x, src_key_padding_mask=ids == 0)
        y = self.norm(self.patches(pixels)).flatten(2).mean(-1)
        return self.head(torch.cat([x[:, 0], y], -1))


class Selects(Towers):
    """How many positions it keeps is known only with values; fakes have a name for that."""

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        rows = self.table(ids)[ids > 0]
        return super().forward(pixels, ids) + rows.mean()


def _example(size: int) -> rs.Inputs:
    return rs.Inputs(torch.randn(size, 3, 8, 8), torch.randint(1, 20, (size, 6)))


def _nobody(model: nn.Module) -> None:
    raise AssertionError("fakes were asked for")


def test_a_model_without_weights_runs_without_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Towers()
    with_fakes = rs.inspect(Towers(), _example).to_dict()
    monkeypatch.setattr(capturing, "standing_in", _nobody)
    found = rs.inspect(model, _example).to_dict()
    assert found == with_fakes
    assert [point["kind"] for point in found["fusion_points"]] == ["concat"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_meta_tensors_cannot_do_is_for_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Selects()
    found = rs.inspect(model, _example).to_dict()
    monkeypatch.setattr(capturing, "runs_on_meta", lambda model: False)
    assert found == rs.inspect(model, _example).to_dict()
    assert [point["kind"] for point in found["fusion_points"]] == ["concat"]
