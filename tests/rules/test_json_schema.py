"""The JSON Schema as an editor uses it: what the loader takes passes, what is wrong in shape or name fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from regbn_surgery import RulesError
from regbn_surgery._rules import Rules, preset_names
from regbn_surgery._rules.json_schema import DESCRIPTIONS, rules_schema
from regbn_surgery._rules.presets import preset_text
from regbn_surgery._rules.schema import Document
from regbn_surgery._rules.yaml_tree import read_tree
from regbn_surgery.nn.options import CHOICES, RegBNOptions

HERE = Path(__file__).parent
SCHEMA = rules_schema()
EDITOR = jsonschema.Draft202012Validator(SCHEMA)

#: Broken files in which single values, names and keys are as the language has them: they contradict each other, or
#: name what is not there, which is for `check` and `plan` to tell.
BEYOND_A_SCHEMA = {
    "input-ids-without-range", "input-inside-a-tensor", "input-range-backwards", "input-range-of-floats",
    "match-bad-glob", "match-bad-regex", "match-between-twice", "match-half-double-star", "match-long-pattern",
    "match-regex-without-re", "mask-modality-unknown", "modality-bad-glob", "modality-input-twice",
    "modality-module-twice",
    "modality-slice-backwards", "modality-slices-of-two-axes", "modality-slices-overlap", "modality-unknown",
    "modality-unknown-in-between", "option-contradiction", "option-contradicts-defaults", "option-nan",
    "pair-and-expect", "pair-bad-escape", "pair-bad-regex", "pair-group-name", "pair-group-too-high",
    "pair-group-without-regex", "pair-same", "pair-two-regexes", "pair-unknown-head", "pair-without-head",
    "pair-without-name", "rule-expect-min-above-max", "rule-id-twice", "rule-normalize-itself", "rule-shadowed",
    "rule-shadowed-by-exclude", "version-float",
}  # fmt: skip


def documents() -> dict[str, Any]:
    """Broken files that are YAML at all, as an editor's parser reads them."""
    out = {}
    for path in sorted((HERE / "broken").glob("*.yaml")):
        tree = read_tree(path.read_bytes(), path.name)
        if tree.value is not None and not tree.problems:
            out[path.stem] = tree.value
    return out


def test_it_is_a_schema_and_says_which() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", preset_names())
def test_presets_pass(name: str) -> None:
    EDITOR.validate(yaml.safe_load(preset_text(name)))


@pytest.mark.parametrize(
    "path",
    [HERE / "the_language.yaml", *sorted((HERE / "broken_on_a_model").glob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_what_the_loader_takes_passes(path: Path) -> None:
    Rules.from_file(path)
    EDITOR.validate(read_tree(path.read_bytes(), path.name).value)


@pytest.mark.parametrize("name", sorted(documents()))
def test_what_is_wrong_in_shape_or_name_fails(name: str) -> None:
    assert EDITOR.is_valid(documents()[name]) == (name in BEYOND_A_SCHEMA)


def test_most_broken_files_are_seen_in_the_editor() -> None:
    assert set(documents()) >= BEYOND_A_SCHEMA
    assert len(documents()) - len(BEYOND_A_SCHEMA) >= 50


@pytest.mark.parametrize(
    "rule",
    [
        {"match": {"kind": "concat"}},
        {"match": {"kind": ["concat", "sum"], "nth": -1, "owner": "a", "point": ["a", "b"]}},
        {"match": {}, "expect": 2},
        {"match": {}, "expect": {"min": 1}},
        {"match": {}, "methods": "generate", "allow_noncausal": True, "fit": "running"},
        {"match": {}, "mask": "none"},
        {"match": {}, "mask": {"a": "words", "b": {"argument": "pads", "marks": "padding"}}},
        {"match": {}, "regbn": {"rank": None, "momentum": 1, "f_layer_dim": [7, 7]}},
        {"pair": {"f": "input:a", "g": "input:b"}, "reduce": "mean"},
        {"match": {}, "action": "skip", "expect": 1},
    ],
)
def test_short_and_long_forms_pass(rule: dict[str, Any]) -> None:
    document = {"version": 1, "rules": [{"id": "r", **rule}]}
    Rules.from_dict(document)
    EDITOR.validate(document)


@pytest.mark.parametrize(
    "rest",
    [
        {"modalities": {"a": "x", "b": ["y", "z"], "c": {"modules": "m.**"}}},
        {"modalities": {"a": {"inputs": "x", "slice": {"dim": -1, "range": [3, None]}}}},
        {"exclude": {"kind": "sum"}},
        {"defaults": {"reduce": "mean", "fit": "batch"}, "overrides": {"cat": {"normalize": "a"}}, "strict": "warn"},
    ],
)
def test_short_and_long_forms_of_the_file_pass(rest: dict[str, Any]) -> None:
    document = {"version": 1, "rules": [{"id": "r", "match": {"level": "late"}}], **rest}
    Rules.from_dict(document)
    EDITOR.validate(document)


def test_every_key_has_a_description_and_every_option_its_own() -> None:
    """What completion shows."""
    for name, part in {**SCHEMA["$defs"], "Document": SCHEMA}.items():
        for key, value in part["properties"].items():
            assert value["description"], (name, key)
    options = SCHEMA["$defs"]["RegBN"]["properties"]
    assert set(RegBNOptions.names()) - set(options) == {"reduce", "replace", "fit"}
    assert options["constraint"]["enum"] == list(CHOICES["constraint"])
    assert set(DESCRIPTIONS["Document"]) == set(Document.model_fields)


@pytest.mark.parametrize("name", [n for n in RegBNOptions.names() if n not in ("reduce", "replace", "fit")])
@pytest.mark.parametrize("value", [-1, 0, 0.5, 1, 2, True, "smoother", "auto", "dense", None, []])
def test_options_are_bounded_as_the_operator_bounds_them(name: str, value: Any) -> None:
    document = {"version": 1, "rules": [{"id": "r", "match": {}, "regbn": {name: value}}]}
    try:
        Rules.from_dict(document)
        taken = True
    except RulesError as error:
        other = {"rank": "projection", "lam": "constraint"}.get(name)
        taken = other is not None and f"{other}=" in str(error)  # good by itself, and told to go with another option
    assert EDITOR.is_valid(document) == taken
