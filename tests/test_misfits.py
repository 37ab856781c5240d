"""A misspelt name of an input, in whatever form it comes, is told with the one that was meant."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import CaptureError, Inputs, InputsError, RegBNError
from regbn_surgery._added_inputs import with_specs
from regbn_surgery._misfits import missing_key
from regbn_surgery._rules.schema import InputSpec

RULES = {"version": 1, "rules": [{"id": "late", "match": {}, "normalize": "gray"}]}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(6, 4)

    def forward(self, gray: Tensor, colored: Tensor, *, extra: Any = None) -> Tensor:
        return torch.cat([self.a(gray), self.b(colored)], 1)


class Open(Named):
    def forward(self, gray: Tensor, **rest: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(gray, rest["colored"])


class Batch(Named):
    def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().forward(batch["images"]["gray"], batch["colored"])


GRAY, COLORED = torch.randn(4, 5), torch.randn(4, 6)
RIGHT = {"gray": GRAY, "colored": COLORED}


def rewritten() -> nn.Module:
    return regbn_surgery.regbnify(Named(), RULES, RIGHT)


CALLS: dict[str, Callable[[Any], Any]] = {
    "inspect": lambda x: regbn_surgery.inspect(Named(), x),
    "plan": lambda x: regbn_surgery.plan(Named(), RULES, x),
    "regbnify": lambda x: regbn_surgery.regbnify(Named(), RULES, x),
    "verify": lambda x: regbn_surgery.verify(rewritten(), x),
    "summary": lambda x: regbn_surgery.summary(rewritten(), x),
    "starter_rules": lambda x: regbn_surgery.starter_rules(Named(), x),
    "diagnose": lambda x: regbn_surgery.diagnose(Named(), [x]),
    "trace": lambda x: regbn_surgery.trace(Named(), x),
    "a second call": lambda x: regbn_surgery.inspect(Named(), [RIGHT, x]),
    "a function": lambda x: regbn_surgery.inspect(Named(), lambda size: x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gary": GRAY, "colored": COLORED}, "it has no parameter `gary`; did you mean `gray`?"),
        ({"gray": GRAY, "Colored": COLORED}, "it has no parameter `Colored`; did you mean `colored`?"),
        (Inputs(GRAY, COLORED, extar=1), "it has no parameter `extar`; did you mean `extra`?"),
        ({"zzz": GRAY, "colored": COLORED}, "it has no parameter `zzz` (it has `gray`, `colored` and `extra`)"),
        ({"gray": GRAY}, "missing a required argument: 'colored' (it has `gray`, `colored` and `extra`)"),
    ],
)
def test_a_misspelt_parameter(call: Callable[[Any], Any], wrong: Any, says: str) -> None:
    with pytest.raises(InputsError) as caught:
        call(wrong)
    assert says in str(caught.value)


def test_an_input_of_the_command_line() -> None:
    for example in (None, RIGHT, (GRAY, COLORED), lambda size: RIGHT):
        made = with_specs(Named(), example, {"extar": InputSpec(shape=(4, 5))})
        with pytest.raises(InputsError, match="no parameter `extar`; did you mean `extra`"):
            regbn_surgery.inspect(Named(), made)


def test_a_name_among_those_that_any_name_may_join() -> None:
    with pytest.raises(InputsError, match="`gary` is none of its named parameters; did you mean `gray`"):
        regbn_surgery.inspect(Open(), {"gary": GRAY, "colored": COLORED})
    with pytest.raises(CaptureError, match="The inputs have no `colored`, but `colord`: is it misspelt"):
        regbn_surgery.inspect(Open(), {"gray": GRAY, "colord": COLORED})


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"images": {"gary": GRAY}, "colored": COLORED}, "The inputs have no `gray`, but `gary`: is it misspelt?"),
        ({"image": {"gray": GRAY}, "colored": COLORED}, "The inputs have no `images`, but `image`: is it misspelt?"),
    ],
)
def test_a_key_inside_of_an_input(batch: Any, says: str) -> None:
    with pytest.raises(CaptureError) as caught:
        regbn_surgery.inspect(Batch(), Inputs(batch))
    assert says in str(caught.value)


def test_other_errors_say_nothing_of_keys() -> None:
    assert missing_key(KeyError("gray"), RIGHT) == ""  # it is there: something else has no such key
    assert missing_key(KeyError(3), RIGHT) == missing_key(ValueError("gary"), RIGHT) == ""
    assert missing_key(KeyError("something else"), [SimpleNamespace(x=RIGHT)]) == ""
    assert "`gray`" in missing_key(KeyError("grey"), [SimpleNamespace(x=RIGHT)])


def test_inputs_that_are_given_as_arguments_of_ours() -> None:
    with pytest.raises(InputsError) as caught:
        regbn_surgery.inspect(Named(), gary=GRAY, colored=COLORED)  # type: ignore[call-arg]
    assert 'as a dict: {"gray": ..., "colored": ...}; did you mean `gray`?' in str(caught.value)
    with pytest.raises(InputsError, match=r'as a dict: \{"gray": \.\.\., "colored": \.\.\.\}$'):
        regbn_surgery.regbnify(model=Named(), rules=RULES, gray=GRAY)  # type: ignore[call-arg]
    for call in (regbn_surgery.plan, regbn_surgery.regbnify):
        with pytest.raises(InputsError, match=r"\(\) has no argument `example_input`; did you mean `example_inputs`"):
            call(Named(), RULES, example_input=RIGHT)  # type: ignore[call-arg]
    with pytest.raises(RegBNError, match="has no argument `something`"):
        regbn_surgery.inspect(3, something=1)  # type: ignore[arg-type, call-arg]


def test_a_misspelt_key_of_a_modality() -> None:
    with pytest.raises(InputsError, match="did you mean `inputs`"):
        regbn_surgery.inspect(Named(), RIGHT, {"a": {"input": ["gray"]}, "b": ["colored"]})
