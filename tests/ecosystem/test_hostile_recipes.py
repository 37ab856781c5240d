"""A recipe may come from anybody: what is none is refused with its place, and only RecipeError is ever raised."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import regbn_surgery
from regbn_surgery import Recipe, RecipeError, RegBNWarning
from tests.surgery.models import Cross, Late, Nested, build, everything, operate, vectors
from tests.surgery.models import token_pairs as tokens

Content = dict[str, Any]


class Towers(nn.Module):
    """Goes in by a graph: the right tower has to run before the left one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
        self.right = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4))

    def forward(self, a: Any, b: Any) -> Any:
        left = self.left(a)
        return left + self.right(b)


PAIR = {"version": 1, "rules": [{"id": "x", "pair": {"f": "module:left.0", "g": "module:right.0"}}]}
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "source": (lambda: build(Late), lambda: operate(build(Late), vectors())),
    "hook": (lambda: build(Nested), lambda: operate(build(Nested), vectors())),
    "attention": (lambda: build(Cross), lambda: operate(build(Cross), tokens(), "attention")),
    "graph": (lambda: build(Towers), lambda: regbn_surgery.regbnify(build(Towers), PAIR, vectors())),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Content]:
    """What `write` writes for one model of each way in."""
    out = {}
    for name, (_, rewritten) in MODELS.items():
        path = tmp_path_factory.mktemp(name) / "regbn.json"
        Recipe.of(rewritten()).write(path)
        out[name] = json.loads(path.read_text())
    return out


def test_they_go_in_by_the_ways_that_they_are_here_for(good: dict[str, Content]) -> None:
    ways = {name: {"hook", "code", "graph"} & set(content["operations"][0]) for name, content in good.items()}
    assert ways == {"source": {"code"}, "hook": {"hook"}, "attention": {"hook"}, "graph": {"graph"}}


def read(content: Any, folder: Path) -> Recipe:
    path = folder / "regbn.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Recipe.read(path)


def changed(content: Content, path: str, value: Any) -> Content:
    """A copy with one value exchanged; with `...` it is left out."""
    content = copy.deepcopy(content)
    place: Any = content
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


SITE = "operations/0/planned"
WRONG: tuple[tuple[str, str, Any, str], ...] = (
    ("source", "hosts", ..., "the key 'hosts' is missing"),
    ("source", "hosts", 3, "hosts: a list is expected; found int"),
    ("source", "format", True, "format: this release reads format 1 of recipes; found True"),
    ("source", "colour", 1, "unknown key 'colour'. Was it written by a newer version"),
    ("source", "writes_parameters", "no", "writes_parameters: bool is expected; found str"),
    ("source", "versions", {"torch": 2}, "versions.torch: str is expected; found int"),
    ("source", "hosts/0/functions", [7], "hosts[0].functions: numbers below 1 are expected"),
    ("graph", "sources/0/text", "", "sources[0]: the source text of a function or its compiled code"),
    ("source", "operations/0", [], "operations[0]: a mapping is expected; found list"),
    ("source", "operations/0/kode", {}, "operations[0]: unknown key 'kode'; did you mean `code`?"),
    ("source", "operations/0/code", ..., "exactly one of `hook`, `code` and `graph` is expected; found 0"),
    (
        "source",
        "operations/0/host",
        "../x",
        "operations[0].host: the dotted path of a module is expected; found '../x'",
    ),
    ("source", "operations/0/host", "x", "operations[0].host: 'x' is not among `hosts`"),
    ("source", "operations/0/keeper", "..", "operations[0].keeper: the dotted path of a module"),
    ("source", "operations/0/masking", "h", "operations[0]: unknown key 'masking'"),
    (
        "source",
        "operations/0/code/masks",
        [{"side": "h", "argument": "m", "leaves_out": True}],
        "operations[0].code.masks[0].side: must be one of `f` and `g`",
    ),
    (
        "source",
        "operations/0/code/masks",
        [{"side": "f", "argument": name, "leaves_out": True} for name in "mn"],
        "operations[0].code.masks: at most one mask for each side is expected",
    ),
    ("source", "operations/0/code/masks", ["m"], "operations[0].code.masks[0]: a mapping is expected; found str"),
    ("source", "operations/0/roles", [[], ""], "operations[0].roles[0]: the roles of a shared owner are expected"),
    ("source", f"{SITE}/name", "a.b", "operations[0].planned.name: a name that begins with `regbn_` is expected"),
    ("source", f"{SITE}/name", "forward", "operations[0].planned.name: a name that begins with `regbn_` is expected"),
    ("source", f"{SITE}/name", "regbn_y", "operations[0].code.name: 'regbn_y' is expected; found 'regbn_x'"),
    ("source", f"{SITE}/host", "../x", "operations[0].planned.host: the dotted path of a module is expected"),
    ("source", f"{SITE}/reduce", "median", "operations[0].planned.reduce: must be one of `flatten` and `mean`"),
    ("source", f"{SITE}/methods", ["a b"], "operations[0].planned.methods[0]: the name of a method is expected"),
    (
        "source",
        f"{SITE}/f/layout/batch_dim",
        5,
        "planned.f.layout.batch_dim: an axis of a tensor of 2 axes is expected",
    ),
    ("source", f"{SITE}/f/layout/batch_dim", None, "planned.f.layout.batch_dim: RegBN needs this axis"),
    ("source", f"{SITE}/f/layout/channel_dim", 0, "planned.f.layout.channel_dim: axis 0 is named twice"),
    (
        "source",
        f"{SITE}/g/shape/1",
        -1,
        "operations[0].planned.g.shape[1]: the length of an axis is expected; found -1",
    ),
    ("source", f"{SITE}/g/shape/1", 0, "operations[0].planned.g.shape[1]: there are no channels"),
    ("source", f"{SITE}/g/shape/1", 10**30, "planned.g.shape[1]: the length of an axis is expected"),
    ("source", f"{SITE}/g/shape/1", 4.5, "operations[0].planned.g.shape[1]: int is expected; found float"),
    ("source", f"{SITE}/options", {"momentun": 1}, "RegBN has no option 'momentun'; did you mean `momentum`?"),
    ("source", f"{SITE}/options", {"momentum": 7}, "planned.options: RegBN option momentum must be a number in [0, 1]"),
    ("source", f"{SITE}/options", {"momentum": [[]]}, "planned.options: RegBN option momentum must be a finite number"),
    ("source", "operations/0/code/join/steps", [], "code.join.steps: the steps that lead to a call are expected"),
    ("source", "operations/0/code/join/steps/0/ordinal", -2, "join.steps[0].ordinal: a number from -1 is expected"),
    ("source", "operations/0/code/f/output", -1, "operations[0].code.f.output: a number from 0 is expected; found -1"),
    ("source", "operations/0/texts", [{"name": "", "text": "", "code": ""}], "texts: must be empty: functions"),
    ("hook", "operations/0/hook/f", [], "operations[0].hook: at least one argument for f and one for g"),
    ("hook", "operations/0/hook/masks", [{"side": "f"}], "operations[0].hook.masks[0]: the key 'argument' is missing"),
    ("hook", "operations/0/hook/site", "head", "operations[0].hook.site: 'regbn_x' is expected; found 'head'"),
    ("graph", "operations/0/graph/f/at/0/1", "99", "graph.f.at[0][1]: the number of one of 2 functions is expected"),
    ("graph", "operations/0/graph/f/at/0/1", "a.py", "graph.f.at[0][1]: the number of one of 2 functions is expected"),
    ("graph", "operations/0/graph/f/at/0", ["add", "0"], "graph.f.at[0]: a list of 4 is expected; found 2"),
)


@pytest.mark.parametrize(("way", "place", "value", "says"), WRONG, ids=[f"{w[1]}-{w[3][-20:]}" for w in WRONG])
def test_what_is_no_recipe(
    good: dict[str, Content], tmp_path: Path, way: str, place: str, value: Any, says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(changed(good[way], place, value), tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100000, '{"a":' * 100000, "3", "null", "[]", '{"format": 1}', '"\\ud800"', "\x00", "9" * 6000],
    ids=range(11),
)
def test_text_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="is not a recipe"):
        read(text, tmp_path)


def test_a_key_that_is_there_twice_is_refused(good: dict[str, Content], tmp_path: Path) -> None:
    text = json.dumps(good["source"])
    with pytest.raises(RecipeError, match=r"the key 'format' is there twice"):
        read('{"format": 1, ' + text[1:], tmp_path)
    with pytest.raises(RecipeError, match=r"the key 'rule' is there twice"):
        read(text.replace('"planned": {', '"planned": {"rule": "y", ', 1), tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        Recipe.read(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        Recipe.read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not a recipe"):
        Recipe.read(tmp_path / "bytes.json")
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(RecipeError, match="larger than 32 MiB"):
        Recipe.read(tmp_path / "long.json")


def test_what_is_not_said_is_at_its_default(good: dict[str, Content], tmp_path: Path) -> None:
    assert not {"opened", "writes_parameters"} & set(good["source"])
    operation = good["source"]["operations"][0]
    assert not {"hook", "graph", "roles", "texts"} & set(operation)
    for name, (_, rewritten) in MODELS.items():
        recipe = Recipe.of(rewritten())
        recipe.write(tmp_path / name)
        assert len((tmp_path / name).read_text().splitlines()) < 25, "one record a line"
        assert Recipe.read(tmp_path / name) == recipe


# -- by chance --------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(content: Content, chance: random.Random) -> Content:
    """One to three values exchanged, left out, added or moved elsewhere."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        known = [path for path in places(content) if path]
        path = chance.choice(known)
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        match chance.randrange(6):
            case 0:
                del place[path[-1]]
            case 1:
                other: Any = content
                for step in chance.choice(known) if path in known else ():
                    try:
                        other = other[step]
                    except (KeyError, IndexError, TypeError):
                        break
                place[path[-1]] = copy.deepcopy(other)
            case 2 if isinstance(place, list):
                place.append(copy.deepcopy(place[path[-1]]))
            case 2:
                place[chance.choice(WORDS)] = chance.choice(VALUES)
            case 3 if isinstance(place[path[-1]], int):
                place[path[-1]] += chance.choice((-1, 1, 7, 2**31, -(2**40)))
            case _:
                place[path[-1]] = copy.deepcopy(chance.choice(VALUES))
    return content


WORDS = ("forward", "name", "host", "code", "__class__", "training", "", "a.b")
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 5, 2**31, 10**400, 1.5, float("nan"), float("inf"),
    "", "x", "a.b", "../x", "forward", "f", "0", "99", "head", "enc_a", "regbn_x", "__class__", "training", "\ud800",
    "head.weight", "torch:Tensor.__add__", "os:system",
    [], [[]], {}, {"a": 1}, [None], ["f", True], [[0], ""], [[0, 1, 7], "head"], ["head", "enc_a"],
)  # fmt: skip


def attack(good: dict[str, Content], folder: Path, seeds: range) -> tuple[int, int]:
    """How many of the mutated recipes were read, and how many of these applied."""
    number_read = number_applied = 0
    for seed in seeds:
        chance = random.Random(seed)
        way = chance.choice(list(MODELS))
        content = mutated(good[way], chance)
        try:
            recipe = read(content, folder)
            number_read += 1
            model = MODELS[way][0]()
            before = everything(model)
            try:
                recipe.apply(model, inplace=True)
                number_applied += 1
            except RecipeError:
                assert everything(model) == before
        except RecipeError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, {way}: {error!r}") from error
    return number_read, number_applied


def test_nothing_but_a_recipe_error_is_raised(good: dict[str, Content], tmp_path: Path) -> None:
    number_read, number_applied = attack(good, tmp_path, range(1000))
    assert 50 < number_applied < number_read - 10 < 690, "it has to get past the door, and to be refused inside, too"


@pytest.mark.parametrize("text", ["../x", "-" * 100000 + "x", "((" * 9000, "\x00", "def f(): pass"], ids=range(5))
@pytest.mark.parametrize("way", ["source", "graph", "hook"])
def test_a_text_that_is_no_python_is_another_one(good: dict[str, Content], tmp_path: Path, way: str, text: str) -> None:
    recipe = read(changed(good[way], "sources/0/text", text), tmp_path)
    with pytest.raises(RecipeError, match="has changed since regbnify"):
        recipe.apply(MODELS[way][0]())


@pytest.mark.slow
def test_nothing_but_a_recipe_error_is_raised_at_length(good: dict[str, Content], tmp_path: Path) -> None:
    attack(good, tmp_path, range(1000, 100000))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)
        yield
