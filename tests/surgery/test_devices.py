"""RegBN goes to the device on which its features are, also where its host has no parameters to tell."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, load_regbn, regbnify, save_regbn, verify
from regbn_surgery._surgery import _keep, _surgery
from regbn_surgery._surgery._site import RegBNSite

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


class Join(nn.Module):
    """A fusion without parameters of its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=-1)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(4, 8), nn.Linear(3, 6)
        self.join = Join()
        self.head = nn.Linear(14, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined: Tensor = self.join(self.enc_a(a), self.enc_b(b))
        return self.head(joined)


def example(batch: int = 8, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {name: torch.randn(batch, size, generator=generator).to(device) for name, size in (("a", 4), ("b", 3))}


def test_a_site_goes_where_f_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one device here, so that it is the asking which is looked at."""
    asked: list[tuple[RegBNSite, torch.device]] = []
    monkeypatch.setattr(_surgery, "settle", lambda site, device: asked.append((site, device)))
    model = regbnify(Joined(), RULES, example())
    assert asked == [(model.join.regbn_late, torch.device("cpu"))]


@pytest.mark.parametrize(("host", "device"), [("join", "meta"), ("head", "cpu"), ("", "meta")])
def test_the_device_of_a_host_without_tensors_is_that_of_what_is_around_it(host: str, device: str) -> None:
    model = Joined().to("meta")
    model.head.to_empty(device="cpu")
    assert _keep._device_of(model, host) == torch.device(device)


def test_a_model_without_tensors_is_on_the_cpu() -> None:
    assert _keep._device_of(nn.ModuleDict({"join": Join()}), "join") == torch.device("cpu")


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@cuda
def test_a_model_on_a_gpu_is_rewritten_there(tmp_path: object) -> None:
    plain = Joined()
    model = regbnify(copy.deepcopy(plain).cuda(), RULES, example(device="cuda"))
    assert on_devices(model) == {"cuda"}
    here = regbnify(copy.deepcopy(plain), RULES, example())
    for batch in (8, 5, 8):
        ours, theirs = model(**example(batch, "cuda")), here(**example(batch))
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-4)
        ours.sum().backward()
    model.eval(), here.eval()
    torch.testing.assert_close(model(**example(3, "cuda")).cpu(), here(**example(3)), atol=1e-4, rtol=1e-4)
    assert verify(model, example(device="cuda")).ok


@cuda
def test_it_goes_from_device_to_device_and_through_files(tmp_path: object) -> None:
    model = regbnify(Joined(), RULES, example()).cuda()
    model(**example(device="cuda"))
    expected = model.eval()(**example(4, "cuda"))
    back = pickle.loads(pickle.dumps(model)).cpu()
    torch.testing.assert_close(back(**example(4)), expected.cpu(), atol=1e-4, rtol=1e-4)
    save_regbn(model, tmp_path)  # type: ignore[arg-type]
    loaded = load_regbn(Joined().cuda(), tmp_path)  # type: ignore[arg-type]
    assert on_devices(loaded) == {"cuda"}
    torch.testing.assert_close(loaded.eval()(**example(4, "cuda")), expected, atol=1e-6, rtol=1e-6)
    assert [type(module) for module in loaded.modules() if isinstance(module, RegBN)] == [RegBN]
