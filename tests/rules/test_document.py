import contextlib
import subprocess
import sys
from collections import UserDict, UserList

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from regbn_surgery import RegBNError, RulesError
from regbn_surgery._rules import Rules
from regbn_surgery._types import Modality
from regbn_surgery.nn.options import RegBNOptions

FULL = """\
version: 1
strict: true
inputs: {gray: {shape: [8, 1, 28, 28]}, ids: {shape: [8, 7], dtype: int64, range: [0, 100]}}
modalities:
  gray: {inputs: [gray]}
  colored: ["col*"]
  text: ids
defaults: {regbn: {momentum: 0.02, affine: true}}
exclude: [{owner: "re:.*\\\\.aux\\\\..*"}]
rules:
  - id: late
    match: {kind: [concat, sum], owner: "fusion.**", between: [gray, colored], level: late, nth: 0}
    normalize: gray
    against: colored
    regbn: {normalize_input: false, projection: low_rank, rank: 64}
    expect: 1
  - {id: early, pair: {f: "input:gray", g: "input:colored"}, reduce: flatten}
  - {id: no-gates, match: {kind: product}, action: skip}
  - {id: every, match: {}, pairs: all}
overrides: {"fusion.cat": {regbn: {momentum: 0.05}}}
"""


def broken(body: str) -> str:
    """The message for a file whose `rules` are as given."""
    with pytest.raises(RulesError) as caught:
        Rules.from_text("version: 1\nrules:\n" + body, "r.yaml")
    return str(caught.value)


def test_the_whole_language_is_read():
    rules = Rules.from_text(FULL)
    assert rules.strict
    inputs = {name: spec.inputs for name, spec in rules.modalities.items()}
    assert inputs == {"gray": ("gray",), "colored": ("col*",), "text": ("ids",)}
    assert rules.inputs["ids"].range == (0, 100)
    assert rules.inputs["gray"].dtype == "float32"
    late = rules.rules[0]
    assert late.match is not None
    assert late.match.kind == ("concat", "sum")
    assert late.match.nth == (0,)
    assert late.expect is not None
    assert (late.expect.min, late.expect.max) == (1, 1)
    assert rules.overrides["fusion.cat"].regbn == {"momentum": 0.05}


def test_dict_file_and_round_trip_mean_the_same(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(FULL)
    from_file = Rules.from_file(path)
    assert Rules.from_dict(yaml.safe_load(FULL)) == from_file
    assert Rules.from_dict(from_file.to_dict()) == from_file
    assert Rules.from_text(yaml.safe_dump(from_file.to_dict())) == from_file
    assert Rules.load(from_file) is from_file
    assert Rules.load(str(path)) == Rules.load(path) == from_file


def test_rules_cannot_be_changed():
    rules = Rules.from_text(FULL)
    with pytest.raises(Exception, match="frozen"):
        rules.rules[0].id = "x"
    with pytest.raises(AttributeError):
        rules.document = None


def test_all_problems_come_at_once_in_file_order():
    text = broken(
        "  - {id: a, match: {kind: cat}, normalise: x}\n"
        "  - {id: a, match: {owner: 'a..b'}, regbn: {momentun: 1, beta1: 2}}\n"
    )
    head, *lines = text.splitlines()
    assert head == "6 problems in r.yaml:"
    places = [tuple(int(part) for part in line.split(":")[1:3]) for line in lines]
    assert places == sorted(places)
    assert [place[0] for place in places] == [3, 3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("  - {id: a, match: {kind: concta}}", "r.yaml:3:27: rule `a`: rules[0].match.kind: must be one of"),
        ("  - {id: a, match: {kind: concta}}", "did you mean `concat`?"),
        ("  - {id: a, match: {kind: }}", "this key has no value"),
        (
            "  - {id: a, match: {}, normalise: x}",
            "r.yaml:3:24: rule `a`: rules[0].normalise: unknown key `normalise`; did you mean `normalize`?",
        ),
        ("  - {id: a, match: {}, momentum: 1}", "it is an option of RegBN; put it under `regbn:`"),
        ("  - {id: a, match: {ownr: x}}", "did you mean `owner`?"),
        ("  - {id: a, match: {between: [x]}}", "at least two modalities"),
        ("  - {id: a, match: {between: [x, x]}}", "`x` is named twice"),
        ("  - {id: a, match: {kind: []}}", "the list is empty"),
        ("  - {id: a, match: {nth: '0'}}", "expected a whole number; found `0`"),
        ("  - {id: a}", "a rule needs `match`"),
        ("  - {match: {}}", "`id` is missing"),
        ("  - {id: 'a b', match: {}}", "an id is made of letters"),
        ("  - {id: a, match: {}}\n  - {id: a, match: {}}", "already that of rule 1"),
        ("  - {id: a, match: {}, pair: {f: 'input:x', g: 'input:y'}}", "`match` or `pair`, not both"),
        ("  - {id: a, pair: {f: 'input:x'}}", "`g` is missing: a pair names both"),
        ("  - {id: a, pair: {f: 'inptu:x', g: 'input:y'}}", "did you mean `input`?"),
        ("  - {id: a, pair: {f: 'input:', g: 'input:y'}}", "lacks a name"),
        ("  - {id: a, pair: {f: 'input:y', g: 'input:y'}}", "the same tensor"),
        ("  - {id: a, pair: {f: 'input:x', g: 'input:y'}, normalize: x}", "does not go with `pair`"),
        ("  - {id: a, match: {}, action: skip, reduce: mean}", "does nothing in a rule that skips"),
        ("  - {id: a, match: {}, pairs: all, against: x}", "does not go with `pairs: all`"),
        ("  - {id: a, match: {}, normalize: x, against: x}", "against itself"),
        ("  - {id: a, match: {}, normalize: 1}", "expected text; found `1`; put it in quotes"),
        ("  - {id: a, match: {}, reduce: flaten}", "did you mean `flatten`?"),
        ("  - {id: a, match: {}, expect: {min: 3, max: 1}}", "min 3 is above max 1"),
        ("  - {id: a, match: {}, expect: -1}", "must be at least 0"),
        ("  - {id: a, match: {owner: 're:['}}", "bad regular expression"),
        ("  - {id: a, match: {}, regbn: {momentum: 2}}", "a number in [0, 1]; found 2"),
        ("  - {id: a, match: {}, regbn: {affine: on}}", "write `true` (YAML 1.2 reads `on` as text)"),
        ("  - {id: a, match: {}, regbn: {momentum: 1:30}}", "must be a finite number; found '1:30'"),
        ("  - {id: a, match: {}, regbn: {reduce: mean}}", "move it one level up"),
        ("  - {id: a, match: {}, regbn: {f_layer_dim: 7}}", "a list of whole numbers"),
        ("  - {id: a, match: {}, regbn: {rank: 4, projection: dense}}", "rank=4 was given with projection='dense'"),
        ("  - 3", "expected a mapping"),
        ("  []", "the list is empty"),
    ],
)
def test_each_mistake_gets_its_message(body, says):
    assert says in broken(body)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("", "`version` is missing: write `version: 1`"),
        ("version: 2", "this release reads version 1 of the rules language; found `2`"),
        ("version: '1'", "found `1`"),
        ("version: 1\nstrict: false", "or `warn`"),
        ("version: 1\ninputs: {x: {shape: [0]}}", "must be at least 1; found `0`"),
        ("version: 1\ninputs: {x: {shape: [2], dtype: int64}}", "needs its range"),
        ("version: 1\ninputs: {x: {shape: [2], dtype: int}}", "did you mean `int8`?"),
        ("version: 1\ninputs: {x: {shape: [2], dtype: int64, range: [5, 5]}}", "low must be below high"),
        ("version: 1\ninputs: {x: {shape: [2], range: [0, 5]}}", "a range is for whole numbers"),
        ("version: 1\ninputs: {a: {shape: [2]}, a.b: {shape: [2]}}", "cannot also hold `a.b`"),
        ("version: 1\nmodalities: {a: x, b: x}", "already belongs to modality `a`"),
        ("version: 1\nmodalities: {a: {input: x}}", "did you mean `inputs`?"),
        ("version: 1\nexclude: [{}]", "excludes every fusion point"),
        ("version: 1\nmodalities: {gray: x, color: y}\noverrides: {p: {normalize: grey}}", "did you mean `gray`?"),
        ("version: 1\nrule: []", "unknown key `rule`; did you mean `rules`?"),
        ("version: 1\ndefaults: {regbn: {bta1: 0.1}}", "RegBN has no option `bta1`; did you mean `beta1`?"),
    ],
)
def test_mistakes_outside_rules(head, says):
    with pytest.raises(RulesError) as caught:
        Rules.from_text(head + "\nrules: [{id: a, match: {}}]", "r.yaml")
    assert says in str(caught.value)


def test_every_option_of_the_operator_can_be_set():
    own = ("reduce", "replace", "fit")  # keys of the rule itself
    values = dict(RegBNOptions().__dict__)
    above = {name: values.pop(name) for name in own}
    rules = Rules.from_dict({"version": 1, "rules": [{"id": "a", "match": {}, "regbn": values, **above}]})
    (rule,) = rules.rules
    assert rule.regbn == values
    assert {name: getattr(rule, name) for name in own} == above


def test_a_file_that_is_not_there_names_folder_and_presets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RulesError, match=r"no rules file 'layr-wise' in .*did you mean `layer-wise`\?"):
        Rules.load("layr-wise")
    with pytest.raises(RulesError, match="cannot read the rules file"):
        Rules.load(tmp_path)
    with pytest.raises(RulesError, match="cannot read the rules file"):
        Rules.load("a\0b")


@pytest.mark.parametrize("text", ["3", "[version]", "version", "true"])
def test_a_file_that_is_no_mapping(text):
    with pytest.raises(RulesError) as caught:
        Rules.from_text(text, "r.yaml")
    assert str(caught.value).startswith("r.yaml:1:1: expected a mapping (`key: value`); found ")


def test_dicts_that_no_file_could_say():
    loop: dict = {"version": 1}
    loop["rules"] = loop
    with pytest.raises(RulesError, match="a cycle"):
        Rules.from_dict(loop)
    with pytest.raises(RulesError, match="keys are text; found the int 1"):
        Rules.from_dict({1: 2})
    with pytest.raises(RulesError, match="found a set"):
        Rules.from_dict({"version": {1}})
    with pytest.raises(RulesError, match="found int"):
        Rules.load(3)


def test_lists_and_mappings_of_other_libraries_are_taken():
    """As OmegaConf has them: a Sequence and a Mapping that are no list and no dict."""
    rules = UserDict(version=1, rules=UserList([UserDict(id="x", match=UserDict(kind=UserList(["concat", "sum"])))]))
    assert Rules.load(rules).rules[0].match.kind == ("concat", "sum")
    with pytest.raises(RulesError, match="found a bytes"):
        Rules.load({"version": 1, "rules": b"x"})


class Interpolated(UserDict):
    """A mapping whose values are computed, and fail, as OmegaConf's interpolations do."""

    def items(self):
        raise KeyError("Interpolation key 'v' not found")


class Missing(UserList):
    def __iter__(self):
        raise LookupError("Missing mandatory value: rules[0]")


def test_what_a_container_of_another_library_raises_is_told_with_its_place():
    given = {"version": 1, "rules": [Interpolated(id="x")]}
    with pytest.raises(RulesError, match=r"rules\[0\]: the Interpolated cannot be read: .*key 'v' not found") as told:
        Rules.load(given)
    assert isinstance(told.value.__cause__, KeyError)
    with pytest.raises(RulesError, match=r"rules: the Missing cannot be read: Missing mandatory value"):
        Rules.load({"version": 1, "rules": Missing()})
    with pytest.raises(RulesError, match=r"^<dict>: the Interpolated cannot be read"):
        Rules.load(Interpolated(version=1))


def test_modalities_are_resolved_to_inputs():
    rules = Rules.from_dict(
        {"version": 1, "modalities": {"a": ["x*"], "b": "batch"}, "rules": [{"id": "r", "match": {}}]}
    )
    inputs = dict.fromkeys(("x2", "batch.u", "x1", "batch.v"), (2, 3))
    found = rules.resolve_modalities(inputs)
    assert found == {"a": Modality("a", ("x2", "x1")), "b": Modality("b", ("batch.u", "batch.v"))}
    with pytest.raises(RulesError, match=r"no input is called `batch`; did you mean `batches`\?"):
        rules.resolve_modalities({"x": (2,), "batches": (2,)})


def test_the_inputs_section_is_held_to_forward():
    text = "version: 1\ninputs:\n  grya: {shape: [2, 3]}\n  batch.x: {shape: [2]}\nrules: [{id: r, match: {}}]\n"
    rules = Rules.from_text(text, "r.yaml")
    rules.check_inputs(["grya", "batch"])
    with pytest.raises(RulesError) as caught:
        rules.check_inputs(["gray", "batch"])
    assert str(caught.value) == (
        "r.yaml:3:3: inputs.grya: `forward` has no parameter `grya`; did you mean `gray`? (it has `gray` and `batch`)"
    )


def test_loading_needs_no_torch():
    code = "import sys; from regbn_surgery._rules import Rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_WORDS = st.sampled_from(
    ["version", "rules", "id", "match", "kind", "concat", "pair", "f", "g", "regbn", "rank", "inputs", "shape", "x"]
)
_TREES = st.recursive(
    _LEAVES | _WORDS, lambda sub: st.lists(sub, max_size=3) | st.dictionaries(_WORDS, sub, max_size=4), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(_TREES)
def test_any_dict_gives_rules_or_our_own_error(tree):
    with contextlib.suppress(RegBNError):
        Rules.load({"version": 1, "rules": tree} if not isinstance(tree, dict) else {"version": 1, **tree})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(FULL)), st.integers(0, 40))
def test_mutated_files_give_rules_or_our_own_error(junk, start, length):
    data = FULL.encode()
    with contextlib.suppress(RegBNError):
        Rules.from_text(data[:start] + junk + data[start + length :])


def test_the_text_of_a_file_is_not_taken_for_its_path() -> None:
    with pytest.raises(RulesError, match=r"Rules\.from_text"):
        Rules.load("version: 1\nrules: []\n")
