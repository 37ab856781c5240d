"""Example inputs: every accepted form, their names, and the same inputs at two batch sizes."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import Inputs, InputsError
from regbn_surgery._inputs import (
    BATCH_SIZES,
    as_inputs,
    find_inputs,
    from_specs,
    make_batches,
    named_tensors,
)

from .trace.replay import make

X, Y = torch.arange(20.0).reshape(4, 5), torch.arange(4)


class Encoding(UserDict):
    """As transformers' BatchEncoding: a mapping that is no dict."""


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def two(self: Any, a: Tensor, b: Tensor | None = None, *rest: Tensor, **more: Any) -> Tensor:
    return a


def spec(shape: tuple[int, ...], dtype: str = "float32", range: tuple[int, int] | None = None) -> Any:
    return SimpleNamespace(shape=shape, dtype=dtype, range=range)


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        (X, [X], {}),
        ((X, Y), [X, Y], {}),
        ({"a": X, "b": Y}, [], {"a": X, "b": Y}),
        (Encoding(a=X, b=Y), [], {"a": X, "b": Y}),
        (Inputs(X, b=Y), [X], {"b": Y}),
        (Inputs([X, Y]), [[X, Y]], {}),
    ],
    ids=["tensor", "tuple", "dict", "mapping", "Inputs", "list in Inputs"],
)
def test_accepted_forms(example: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    inputs = as_inputs(example)
    assert len(inputs.args) == len(args)
    assert all(a is b or a == b for a, b in zip(inputs.args, args, strict=True))
    assert inputs.kwargs.keys() == kwargs.keys()
    assert all(inputs.kwargs[name] is value for name, value in kwargs.items())


@pytest.mark.parametrize(
    ("example", "found"), [([X, Y], "a list"), (Pair(X, Y), "Pair"), (3, "builtins.int"), ("x", "builtins.str")]
)
def test_forms_that_could_mean_two_things_are_refused(example: Any, found: str) -> None:
    with pytest.raises(InputsError, match=found) as caught:
        as_inputs(example)
    assert "Inputs(*args, **kwargs)" in str(caught.value)


def test_inputs_are_named_by_parameter_and_place() -> None:
    inputs = Inputs(X, {"x": X, "y": [X, 3]}, X, k=Pair(X, Y), flag=True)
    names = [name for name, _ in named_tensors(make(two), inputs)]
    assert names == ["a", "b.x", "b.y.0", "rest.0", "k.a", "k.b"]


def test_arguments_that_do_not_fit_are_told_with_what_was_given() -> None:
    module = make(lambda self, a: a)
    with pytest.raises(InputsError, match=r"do not fit Made\.forward: .*Given: Inputs\(float32\[4, 5\], int64"):
        make_batches(module, (X, Y))
    with pytest.raises(InputsError, match=r"A dict means keyword arguments.*Inputs\(\{\.\.\.\}\)"):
        make_batches(module, {"image": X})
    with pytest.raises(InputsError, match="contain no tensor"):
        make_batches(module, (3,))


# -- two batch sizes --------------------------------------------------------------------------------------------------


def test_samples_are_cut_and_repeated_along_the_shared_axis() -> None:
    batches = make_batches(make(two), Inputs(X, Y, {"deep": [X]}, temperature=2.0, table=torch.zeros(4, 2)))
    assert batches.sizes == BATCH_SIZES == (2, 3)
    for inputs, size in zip(batches.each(), BATCH_SIZES, strict=True):
        torch.testing.assert_close(inputs.args[0], X[:size])
        torch.testing.assert_close(inputs.args[1], Y[:size])
        torch.testing.assert_close(inputs.args[2]["deep"][0], X[:size])
        assert inputs.kwargs["temperature"] == 2.0
    assert X.shape == (4, 5)
    pair = make_batches(make(two), X[:2])
    torch.testing.assert_close(pair.each()[1].args[0], X[[0, 1, 0]])


def test_a_tensor_without_axes_is_handed_on_as_it_is() -> None:
    batches = make_batches(make(two), (X, torch.tensor(0.5)))
    assert [inputs.args[1].item() for inputs in batches.each()] == [0.5, 0.5]
    assert [len(inputs.args[0]) for inputs in batches.each()] == [2, 3]


def test_gradients_and_dtypes_of_the_example_are_kept_out_and_kept() -> None:
    x = X.clone().requires_grad_()
    small = make_batches(make(two), (x, X.half(), Y.bool())).small
    assert not small.args[0].requires_grad
    assert [tensor.dtype for tensor in small.args] == [torch.float32, torch.float16, torch.bool]
    assert x.grad is None


@pytest.mark.parametrize("shapes", [[(1, 3)], [(1, 3), (1, 8, 8)], [(1, 1)]])
def test_a_batch_of_one_is_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(InputsError, match=r"batch size 1 .*give at least 2 samples"):
        make_batches(make(two), tuple(torch.zeros(shape) for shape in shapes))


def test_axis_0_is_the_batch_unless_only_axis_1_agrees() -> None:
    first = make_batches(make(two), (torch.zeros(4, 6), torch.zeros(4, 7)))
    assert [tensor.shape for tensor in first.small.args] == [(2, 6), (2, 7)]
    second = make_batches(make(two), (torch.zeros(5, 4, 6), torch.zeros(7, 4, 6)))
    assert [tensor.shape for tensor in second.small.args] == [(5, 2, 6), (7, 2, 6)]
    assert [tensor.shape for tensor in second.each()[1].args] == [(5, 3, 6), (7, 3, 6)]


def test_shared_features_are_no_batch_axis_but_shared_columns_of_ids_are() -> None:
    features = make_batches(make(two), (torch.zeros(4, 8), torch.zeros(5, 8)))
    assert features.large is None
    assert [tensor.shape for tensor in features.small.args] == [(4, 8), (5, 8)]
    ids = make_batches(make(two), (torch.zeros(5, 4).long(), torch.zeros(7, 4, 6)))
    assert [tensor.shape for tensor in ids.small.args] == [(5, 2), (7, 2, 6)]


@pytest.mark.parametrize(("batch_first", "shape"), [(True, (2, 4, 6)), (False, (5, 2, 6))])
def test_where_both_axes_agree_the_layers_of_the_model_decide(batch_first: bool, shape: tuple[int, ...]) -> None:
    module = make(two, attention=nn.MultiheadAttention(6, 2, batch_first=batch_first))
    batches = make_batches(module, (torch.zeros(5, 4, 6), torch.zeros(5, 4, 6)))
    assert batches.small.args[0].shape == shape


def test_without_a_shared_axis_one_run_and_a_note() -> None:
    batches = make_batches(make(two), (torch.zeros(4, 6), torch.zeros(5, 7)))
    assert batches.large is None
    assert len(batches.each()) == 1
    assert "share no batch axis (a [4, 6], b [5, 7])" in batches.notes[0]
    assert "function of the batch size" in batches.notes[0]


def test_a_function_of_the_batch_size_is_asked_for_both() -> None:
    asked: list[int] = []

    def example(size: int) -> Any:
        asked.append(size)
        return torch.zeros(size * 7, 3), {"n": size}

    batches = make_batches(make(two), example)
    assert asked == [2, 3]
    assert [inputs.args[0].shape for inputs in batches.each()] == [(14, 3), (21, 3)]
    with pytest.raises(InputsError, match="do not fit"):
        make_batches(make(lambda self, a: a), example)


# -- where they come from ---------------------------------------------------------------------------------------------


def test_the_callers_example_comes_first_then_the_rules_then_the_models_own() -> None:
    module = make(two)
    with pytest.raises(InputsError, match=r"No example inputs for Made: pass example_inputs.*`inputs:` section"):
        find_inputs(module, None)
    module.dummy_inputs = {"a": X}
    assert find_inputs(module, None).kwargs == {"a": X}
    from_rules = find_inputs(module, None, {"b": spec((2, 3))})
    assert list(from_rules.kwargs) == ["b"]
    assert find_inputs(module, X, {"b": spec((2, 3))}) is X


def test_specs_make_inputs_of_shape_dtype_and_range() -> None:
    inputs = from_specs(
        {
            "image": spec((4, 3, 8, 8)),
            "ids": spec((4, 200), "int64", (5, 9)),
            "flags": spec((4, 200), "int32"),
            "mask": spec((4, 200), "bool"),
            "wave": spec((4, 6), "complex64"),
            "small": spec((4, 6), "bfloat16"),
        }
    ).kwargs
    assert {name: (tuple(x.shape), str(x.dtype)[6:]) for name, x in inputs.items()} == {
        "image": ((4, 3, 8, 8), "float32"), "ids": ((4, 200), "int64"), "flags": ((4, 200), "int32"),
        "mask": ((4, 200), "bool"), "wave": ((4, 6), "complex64"), "small": ((4, 6), "bfloat16"),
    }  # fmt: skip
    assert set(inputs["ids"].flatten().tolist()) == {5, 6, 7, 8}
    assert set(inputs["flags"].flatten().tolist()) == {0, 1}
    assert 0 < inputs["mask"].float().mean() < 1
    assert inputs["image"].std() > 0.5
    again = from_specs({"image": spec((4, 3, 8, 8))}).kwargs["image"]
    torch.testing.assert_close(again, inputs["image"], rtol=0, atol=0)
    with pytest.raises(InputsError, match="'floot' is not a torch dtype"):
        from_specs({"x": spec((2,), "floot")})


def test_dotted_names_of_specs_make_dicts_and_lists() -> None:
    flat = {name: spec((2, i + 1)) for i, name in enumerate(["b.audio", "v.1", "v.0", "b.more.x", "plain"])}
    made = from_specs(flat).kwargs
    shapes = {name: tuple(x.shape) for name, x in named_tensors(make(lambda self, b, v, plain: b), Inputs(**made))}
    assert shapes == {"b.audio": (2, 1), "b.more.x": (2, 4), "v.0": (2, 3), "v.1": (2, 2), "plain": (2, 5)}
    assert isinstance(made["v"], list)


def test_inputs_show_their_shapes() -> None:
    assert repr(Inputs(X, ids=Y, flag=True)) == "Inputs(float32[4, 5], ids=int64[4], flag=True)"
    assert repr(Inputs([X, (Y, None)], {"a": X})) == "Inputs([float32[4, 5], (int64[4], None)], {'a': float32[4, 5]})"


def test_two_examples_of_different_lengths() -> None:
    short, long = Inputs(torch.zeros(4, 6, 5), torch.zeros(4, 6)), Inputs(torch.zeros(5, 9, 5), torch.zeros(5, 9))
    batches = make_batches(make(two), [short, long])
    assert [tuple(inputs.args[0].shape) for inputs in batches.each()] == [(2, 6, 5), (3, 6, 5), (2, 9, 5)]
    assert as_inputs([short, long]) is short
    with pytest.raises(InputsError, match="two examples of different lengths"):
        make_batches(make(two), [torch.zeros(4, 6), torch.zeros(4, 6)])


def test_inputs_that_are_no_tuple_are_refused_in_words() -> None:
    with pytest.raises(InputsError, match=r"inspect\(model, \(x, y\)\)"):
        regbn_surgery.inspect(nn.Linear(2, 2), torch.rand(2, 2), torch.rand(2, 2))
