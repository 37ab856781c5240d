"""Weights under other names: only the values say whether `from_pretrained` has put them into the model already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RecipeError, load_regbn, save_regbn
from regbn_surgery._checkpoint._held import holds
from tests.ecosystem._subject import BY_NAME
from tests.ecosystem.test_recipe import Published, published
from tests.surgery.models import everything
from tests.zoo._running import training_step


def zeros_and_ones() -> dict[str, Tensor]:
    """As many layers of a model begin: biases and scales are alike, and a weight is not."""
    return {
        "a": torch.randn(3, 40),
        "b": torch.zeros(40),
        "c": torch.ones(40),
        "d": torch.zeros(40),
        "e": torch.tensor(3),
    }


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"x.{name}": tensor.clone() for name, tensor in reversed(tensors.items())}


def test_names_do_not_count_and_values_do() -> None:
    own = zeros_and_ones()
    assert holds(nn.Module(), own, renamed(own))
    for name in own:
        other = renamed(own)
        other[f"x.{name}"].view(-1)[-1] += 1
        assert not holds(nn.Module(), own, other), f"{name} differs in its last value"


@pytest.mark.parametrize("side", [0, 1])
def test_each_side_has_the_other_sides(side: int) -> None:
    sides = [zeros_and_ones()]
    sides.append(renamed(sides[0]))
    sides[side]["more"] = torch.randn(3, 40)
    assert not holds(nn.Module(), *sides)


def test_a_tensor_with_nan_is_itself() -> None:
    own = {"a": torch.tensor([[1.0, float("nan")]])}
    assert holds(nn.Module(), own, renamed(own))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_may_hold_the_values_in_another_type(dtype: torch.dtype) -> None:
    theirs = zeros_and_ones()
    own = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in theirs.items()}
    assert holds(nn.Module(), own, renamed(theirs))


def test_numbers_that_are_counted_are_no_weights() -> None:
    """0.3 as a whole number is 0."""
    assert not holds(nn.Module(), {"a": torch.tensor([0, 0])}, {"b": torch.tensor([0.3, 0.4])})


def test_what_the_class_does_not_save_need_not_be_there() -> None:
    model: Any = nn.Module()
    own = zeros_and_ones()
    model._keys_to_ignore_on_save = [r"^position"]
    assert holds(model, {**own, "position": torch.randn(4)}, renamed(own))


def test_a_model_without_values_holds_none() -> None:
    own = {"a": torch.empty(3, device="meta")}
    assert not holds(nn.Module(), own, {"b": torch.zeros(3)})


def _part(model: Any) -> None:
    nn.init.normal_(model.right.enc_a.weight)


@pytest.mark.parametrize("spoil", [lambda model: None, _part])
def test_the_name_of_the_folder_does_not_stand_for_its_values(spoil: Callable[[Any], None], tmp_path: Path) -> None:
    model = published(tmp_path)
    fresh = Published()
    fresh.config._name_or_path = str(tmp_path)  # so says the config, too, when the model is made of it alone
    if spoil is _part:
        fresh.load_state_dict(model.state_dict(), strict=False)
    spoil(fresh)
    before = everything(fresh)
    with pytest.raises(RecipeError, match=r"do not fit .*Published\.from_pretrained\("):
        load_regbn(fresh, tmp_path)
    assert everything(fresh) == before


def test_a_folder_may_move_after_the_model_was_made_of_it(tmp_path: Path) -> None:
    model = published(tmp_path)
    fresh = Published()
    fresh.load_state_dict(model.state_dict(), strict=False)
    fresh.config._name_or_path = "elsewhere"
    torch.testing.assert_close(load_regbn(fresh, tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_packed_weights_are_those_of_the_folder_that_they_were_made_of(tmp_path: Path) -> None:
    """Only `from_pretrained` packs weights (`quantization_config`); their values are then nobody's but the model's."""
    model = published(tmp_path)
    fresh: Any = Published()
    fresh.is_quantized = True
    with pytest.raises(RecipeError, match="do not fit"):
        load_regbn(fresh, tmp_path)
    fresh.config._name_or_path = str(tmp_path)
    own = fresh.regbnet.weight.detach().clone()
    found: Any = load_regbn(fresh, tmp_path)
    assert torch.equal(found.regbnet.weight, own)
    assert torch.equal(found.left.fusion.regbn_x.regbn.W, model.left.fusion.regbn_x.regbn.W)


# -- transformers -----------------------------------------------------------------------------------------------------


#: All are written under other names; `hf_trocr` of tied weights but one.
RENAMED = ["hf_llava", "hf_altclip", "hf_trocr"]


def _folder(name: str, folder: Path) -> tuple[Any, Any]:
    """A rewritten model, trained and saved, and its class."""
    case = BY_NAME[name]
    model: Any = regbn_surgery.regbnify(case.model(), case.rules_dict(), case.example)
    training_step(model, case.example(3))
    save_regbn(model, folder)
    return model, type(case.model())


@pytest.mark.parametrize("name", RENAMED)
def test_a_model_made_of_the_config_alone_gets_the_values_of_the_folder(name: str, tmp_path: Path) -> None:
    """The library says under which name it writes each tensor; so does a model whose values are on the meta device."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model, cls = _folder(name, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert not set(written) <= set(model.state_dict())
    fresh = cls(transformers.AutoConfig.from_pretrained(tmp_path))
    torch.testing.assert_close(load_regbn(fresh, tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)
    half = load_regbn(cls.from_pretrained(tmp_path, dtype=torch.bfloat16), tmp_path)
    torch.testing.assert_close(
        {name: value.to(torch.bfloat16) for name, value in half.state_dict().items()},
        {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()},
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize("change", ["lost", "strange", "sized"])
def test_a_folder_of_other_names_that_does_not_fit_is_refused(change: str, name: str, tmp_path: Path) -> None:
    model, cls = _folder(name, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    other = next(key for key in written if key not in model.state_dict() and key.endswith("weight"))
    if change == "strange":
        written["of.another.weight"] = torch.zeros(3)
    elif change == "sized":
        written[other] = torch.zeros(3, 2)
    else:
        del written[other]
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    fresh = BY_NAME[name].model()
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    before = everything(fresh)
    with pytest.raises(RecipeError, match=rf"do not fit .*{cls.__name__}\.from_pretrained\("):
        load_regbn(fresh, tmp_path)
    assert everything(fresh) == before


def test_weights_that_are_split_as_they_are_written_are_found(tmp_path: Path) -> None:
    """Transformers 5 keeps the experts of a layer in one tensor, and writes each of them under a name of its own."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=11, num_key_value_heads=1, num_local_experts=3, **sizes)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    found = transformers.MixtralForCausalLM.from_pretrained(tmp_path)
    assert not {tuple(value.shape) for value in found.state_dict().values()} <= {
        tuple(value.shape) for value in written.values()
    }
    assert holds(found, found.state_dict(), written)
    assert not holds(found, transformers.MixtralForCausalLM(config).state_dict(), written)
