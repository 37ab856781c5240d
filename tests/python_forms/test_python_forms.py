"""Models in many forms of Python against their oracles, and the oracles against mistakes that they must show.

`REGBN_PYTHON_FORMS=2000 pytest tests/python_forms -m slow` checks more; `python -m tests.python_forms` says what fails.
"""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from ._check import PARTS, OracleError, built, check, compare_all
from ._generate import Generated, generate, schedule
from ._importing import modules_forgotten
from ._limits import limit

#: The number of models in `make test`, and of those that `make test-all` adds.
FEW, MORE = 40, int(os.environ.get("REGBN_PYTHON_FORMS", "200"))
FORMS = ("frame: ", "place: ", "a: ", "f and g: ", "join: ", "around: ", "home: ", "later: ")


def covering(count: int) -> list[int]:
    """Return the first seeds that each bring a form which the ones before have not."""
    seen: set[str] = set()
    chosen: list[int] = []
    for seed in range(2000):
        generated = generate(seed)
        forms = {*generated.forms, f"home: {generated.home}", f"later: {generated.later}"}
        new = {form for form in forms - seen if form.startswith(FORMS)}
        if new and len(chosen) < count and not limit(generated):
            chosen.append(seed)
            seen |= forms
    return chosen


COVERING = covering(FEW)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", COVERING)
def test_forms(seed: int, tmp_path: Path) -> None:
    checked(generate(seed), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(10_000, 10_000 + MORE, 10))
def test_more_forms(first: int, tmp_path: Path) -> None:
    for generated in map(generate, range(first, first + 10)):
        if not limit(generated):
            checked(generated, tmp_path)


def checked(generated: Generated, folder: Path) -> None:
    try:
        check(generated, folder)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{generated}") from error


def test_the_same_seed_gives_the_same_model() -> None:
    assert str(generate(7)) == str(generate(7))
    assert generate(7).oracle == generate(7).oracle
    assert generate(7).source != generate(8).source


def test_all_forms_are_reached() -> None:
    """A generator that stopped writing a form would leave its tests green."""
    made = [generate(seed) for seed in range(500)]
    text = "\n".join(one.source for one in made)
    for word in (
        "torch.hstack", "torch.stack([", "torch.concat(tensors", "sum([", "functools.reduce", "(*[", ".add(", ".mul(",
        "@ q.T", "torch.bmm", "torch.einsum", "z += q", "z *= q", "z[:, :8] = p", "match ", "(joined := ", "yield ",
        "super().forward", "self.forward(", "scaled(self(", "functools.partial", "@staticmethod", "@classmethod",
        "@property", "@functools.wraps", "contextmanager", "dataclass", "except ", "with contextlib", "while ",
        "zip(self.layers", "ModuleDict", "lambda ", "SimpleNamespace", "b is None", "use_b", "sorted(named",
    ):  # fmt: skip
        assert word in text, word
    assert {one.home for one in made} == {"file", "prompt", "prompt with linecache"}
    assert len({one.later for one in made}) == 4
    assert {one.rules["rules"][0]["normalize"] for one in made} == {"a", "b"}


NO_REGBN = """
def join(*operands):
    return list(operands)


def join_pairwise(function, operands):
    return functools.reduce(function, operands)
"""
BY_POSITION = """
def join(*operands):
    marks = [getattr(operand, "_side_of_regbn", ()) for operand in operands]
    modules = [regbn for mark in marks for _, regbn in mark]
    return [*modules[0](*operands[:2]), *operands[2:]] if modules and len(operands) > 1 else list(operands)


def join_pairwise(function, operands):
    return functools.reduce(lambda x, y: function(*join(x, y)), operands)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", ["no RegBN", "f and g exchanged", "no gradient", "another output"])
@pytest.mark.parametrize("frame", ["as_in_the_example", "time_steps", "pairs_of_layers", "f_is_used_again"])
def test_a_mistake_shows(frame: str, mistake: str, tmp_path: Path) -> None:
    generated = first_with(f"frame: {frame}")
    wrong = {
        "no RegBN": generated.oracle + NO_REGBN,
        "f and g exchanged": generated.oracle.replace('"f"', '"-"').replace('"g"', '"f"').replace('"-"', '"g"'),
        "no gradient": generated.oracle.replace(
            "    def finish(self, z):", "    def finish(self, z):\n        z = z.detach()"
        ),
        "another output": generated.oracle.replace("self.head.bias)", "self.head.bias * 1.01)"),
    }[mistake]
    assert_shown(generated, wrong, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "frame",
    ["joined_in_an_order_that_is_given", "exchanged_where_a_flag_says", "other_pair_in_the_same_helper"],
)
def test_operands_taken_by_position_show(frame: str, tmp_path: Path) -> None:
    generated = first_with(f"frame: {frame}")
    assert_shown(generated, generated.oracle + BY_POSITION, tmp_path)


def first_with(form: str) -> Generated:
    """Return the first model with a form, without what only surgery can do wrong."""
    found = next(one for one in map(generate, range(1000)) if form in one.forms)
    return replace(found, home="file", later="the same model")


def assert_shown(generated: Generated, wrong: str, folder: Path) -> None:
    """Assert that an oracle agrees with its copy and not with the one that has a mistake."""
    with modules_forgotten(generated.name, f"{generated.name}_oracle"), warnings.catch_warnings():
        _, oracle = built(generated, folder)
        twin = replace(oracle, model=copy.deepcopy(oracle.model))
        _, mistaken = built(replace(generated, oracle=wrong), folder)
        steps = schedule(generated)
        compare_all(twin, oracle, steps, PARTS[:-1])
        with pytest.raises((AssertionError, OracleError), match="call"):
            compare_all(mistaken, replace(oracle, model=copy.deepcopy(oracle.model)), steps, PARTS[:-1])
