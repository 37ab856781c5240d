"""The rules language as a JSON Schema, for completion and checks in editors.

Made from the pydantic models, so that the two cannot drift apart, and told what those do not say by themselves: the
shorthands (one value for a list of one), the options of RegBN, and which keys of a rule go together. What depends on
several keys or on the model is left to `regbn-surgery check` and `plan`.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from .._codes import KINDS
from ..nn.options import CHOICES, DOCS, INTEGERS, RegBNOptions
from .checks import RULE_LEVEL, SIZES
from .schema import Document

ID = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

#: One line on each key, shown by editors; by the part of the file it stands in.
DESCRIPTIONS: dict[str, dict[str, str]] = {
    "Document": {
        "version": "Version of this language: 1.",
        "strict": "By default a rule that matches nothing is an error, and a point that RegBN cannot go to a warning; "
        "true: both are errors; warn: both are warnings.",
        "ignore": "Codes of notes and warnings to switch off, as in [RB114]; docs/notes.md lists them.",
        "inputs": "Example inputs to make up, by dotted name.",
        "modalities": "Which inputs, slices of inputs or modules are which modality.",
        "defaults": "What holds for every rule that does not say otherwise.",
        "exclude": "Fusion points that no rule may touch.",
        "rules": "In order: the first that matches a fusion point decides it.",
        "overrides": "Changes to single fusion points, by id.",
    },
    "InputSpec": {
        "shape": "Shape with the batch axis in its place: [8, 3, 32, 32].",
        "dtype": "A torch dtype; whole numbers need a range.",
        "range": "[low, high], high left out; for whole numbers.",
    },
    "ModalitySpec": {
        "inputs": "Inputs by dotted name or glob.",
        "modules": "Modules whose outputs start the modality, by glob or re:.",
        "slice": "The stretch of one axis of the inputs that belongs to it.",
    },
    "Slice": {"dim": "The axis; -1 is the last.", "range": "[low, high], high left out; null for all the rest."},
    "Match": {
        "kind": "What the call does: one or several.",
        "owner": "Path of the module whose forward contains the call: a glob or re:.",
        "between": "Modalities that meet there, each in a branch of its own; video+audio is one branch.",
        "level": "Where in the model: early, middle, late, or remeeting.",
        "point": "Id of the fusion point: a glob or re:.",
        "nth": "Of the points that match so far the n-th, from 0; -1 is the last.",
    },
    "Pair": {
        "f": "input:NAME or module:PATH, or re: over these; it is normalised.",
        "g": "input:NAME or module:PATH; what it explains is taken out of f. \\1 is the first group of f's re:.",
    },
    "MaskSpec": {
        "argument": "An argument of the module in which the fusion happens, or an input that it is given as it is.",
        "marks": "What 1 (or true) in it marks; needed where neither its name nor its use tells.",
    },
    "Count": {"min": "At least so many.", "max": "At most so many."},
    "Rule": {
        "id": "Names the new modules, regbn_<id>.",
        "match": "Which fusion points; {} means all.",
        "pair": "Two tensors named outright, instead of match.",
        "normalize": "Modality of f, which is normalised; video+audio for a branch that carries both.",
        "against": "Modality of g; what it predicts linearly of f is subtracted.",
        "pairs": "all: every pair that meets, in the order of modalities.",
        "regbn": "Options of the RegBN module.",
        "reduce": "flatten: each position has its own rows of W; mean: fitted on the means over positions.",
        "replace": "both: g is normalised, too; f: g stays as it is.",
        "fit": "batch: subtract with this batch's projection; running: with the one from before the step.",
        "methods": "Methods of the host beside forward in which RegBN counts, too.",
        "missing": "What to do in a call in which f and g do not meet: warn once, raise an error, or nothing.",
        "samples": "batch: what follows the batch size; rows: each row of f and g is a sample (time folded into the "
        "batch, nodes of a graph).",
        "mask": "With reduce: mean, the argument that marks padding, [batch, length]; by modality where its shape does "
        "not tell the side; none: leave nothing out.",
        "allow_noncausal": "true: a causal stream may be g.",
        "action": "skip: leave the points that match alone.",
        "expect": "How many points the rule must decide.",
    },
}
DESCRIPTIONS["Treatment"] = DESCRIPTIONS["Override"] = DESCRIPTIONS["Rule"]

#: Keys that take one value for a list of one.
_LISTS = {
    ("Document", "ignore"),
    ("Match", "kind"),
    ("Match", "owner"),
    ("Match", "point"),
    ("Match", "level"),
    ("Match", "nth"),
    ("ModalitySpec", "inputs"),
    ("ModalitySpec", "modules"),
    *((part, "methods") for part in ("Treatment", "Override", "Rule")),
}


def rules_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a rules file."""
    schema = Document.model_json_schema()
    parts: dict[str, Schema] = {**schema.pop("$defs"), "Document": schema}
    for name, part in parts.items():
        part.pop("title", None)
        part["properties"] = {key: _tidy(value) for key, value in part["properties"].items()}
        for key, value in part["properties"].items():
            value["description"] = DESCRIPTIONS[name][key]
            if (name, key) in _LISTS:
                part["properties"][key] = _one_or_list(value)
            if key == "regbn":
                part["properties"][key] = {"description": value["description"], "$ref": "#/$defs/RegBN"}
    _shorthands(parts)
    _combinations(parts)
    root = parts.pop("Document")
    return {
        "$schema": ID,
        "title": "Rules of regbn_surgery",
        **{key: value for key, value in root.items() if key != "description"},
        "$defs": {**parts, "RegBN": _options()},
    }


def _tidy(value: Any) -> Schema:
    """Without titles, without null (a key with nothing after it is an error), and with `minItems` for lists."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]  # type: ignore[return-value]
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    out: Schema = {
        key: item if key in ("default", "enum") else _tidy(item) for key, item in value.items() if key != "title"
    }
    if "default" in out and out["default"] in (None, [], {}):
        del out["default"]
    if "anyOf" in out:
        kept = [item for item in out["anyOf"] if item != {"type": "null"}]
        if len(kept) == 1 and "prefixItems" not in value:
            del out["anyOf"]
            out.update(kept[0])
    if out.get("type") == "array" and "minLength" in out:
        out["minItems"] = out.pop("minLength")
    return out


def _one_or_list(value: Schema) -> Schema:
    described = value.pop("description")
    return {"description": described, "anyOf": [value["items"], value]}


def _shorthands(parts: dict[str, Schema]) -> None:
    """Forms that are short for others, which pydantic's own schema does not show."""
    document = parts["Document"]["properties"]
    names = parts["ModalitySpec"]["properties"]["inputs"]["anyOf"]
    document["modalities"]["additionalProperties"] = {"anyOf": [*names, {"$ref": "#/$defs/ModalitySpec"}]}
    code = {"type": "string", "enum": list(KINDS)}
    document["ignore"]["anyOf"] = [code, {**document["ignore"]["anyOf"][1], "items": code}]
    exclude = document["exclude"]
    match = {**exclude.pop("items"), "minProperties": 1}
    for key in ("type", "minItems"):
        exclude.pop(key, None)
    exclude["anyOf"] = [match, {"type": "array", "items": match}]
    expect = parts["Rule"]["properties"]["expect"]
    parts["Rule"]["properties"]["expect"] = {
        "description": expect["description"],
        "anyOf": [{"type": "integer", "minimum": 0}, {"$ref": "#/$defs/Count"}],
    }
    for part in ("Treatment", "Override", "Rule"):
        mask = parts[part]["properties"]["mask"]
        name: Schema = {"type": "string", "minLength": 1}
        by_modality = {"type": "object", "minProperties": 1}
        by_modality["additionalProperties"] = {"anyOf": [name, {"$ref": "#/$defs/MaskSpec"}]}
        parts[part]["properties"]["mask"] = {"description": mask["description"], "anyOf": [name, by_modality]}
    stretch = parts["Slice"]["properties"]["range"]
    stretch["prefixItems"] = [{"type": "integer", "minimum": 0}, {"type": ["integer", "null"]}]


def _combinations(parts: dict[str, Schema]) -> None:
    """Which keys go together."""
    parts["ModalitySpec"]["oneOf"] = [{"required": ["inputs"]}, {"required": ["modules"]}]
    parts["ModalitySpec"]["dependentSchemas"] = {"slice": {"required": ["inputs"]}}
    rule = parts["Rule"]
    rule["oneOf"] = [{"required": ["match"]}, {"required": ["pair"]}]
    treats = [
        "normalize",
        "against",
        "pairs",
        "regbn",
        *RULE_LEVEL,
        "methods",
        "missing",
        "samples",
        "mask",
        "allow_noncausal",
        "pair",
    ]
    rule["allOf"] = [
        {
            "if": {"properties": {"action": {"const": "skip"}}, "required": ["action"]},
            "then": {"properties": dict.fromkeys(treats, False)},
        },
        {"if": {"required": ["pair"]}, "then": {"properties": dict.fromkeys(("normalize", "against", "pairs"), False)}},
        {"if": {"required": ["pairs"]}, "then": {"properties": dict.fromkeys(("normalize", "against"), False)}},
    ]


def _options() -> Schema:
    names = (name for name in (*RegBNOptions.names(), *SIZES) if name not in RULE_LEVEL)
    return {"type": "object", "additionalProperties": False, "properties": {name: _option(name) for name in names}}


#: Bounds of numbers, as `RegBNOptions` checks them.
_BOUNDS: dict[str, Schema] = {
    "beta1": {"minimum": 0, "exclusiveMaximum": 1},
    "beta2": {"minimum": 0, "exclusiveMaximum": 1},
    "momentum": {"minimum": 0, "maximum": 1},
    "lam": {"minimum": 0},
    "sigma_THR": {"minimum": 0},
    "sigma_MIN": {"minimum": 0},
    "max_dense_gib": {"exclusiveMinimum": 0},
}


def _option(name: str) -> Schema:
    """The schema of one option of RegBN, from its default and choices."""
    size: Schema = {"type": "integer", "minimum": 1}
    if name in SIZES:
        what = "Stated, it is checked against what is found."
        return {"description": what, **({"type": "array", "items": size} if name.endswith("_dim") else size)}
    default = next(entry.default for entry in fields(RegBNOptions) if entry.name == name)
    assert default is not MISSING, "every option has a default"
    described: Schema = {"description": DOCS[name], "default": default}
    if name in CHOICES:
        return {**described, "enum": list(CHOICES[name])}
    if isinstance(default, bool):
        return {**described, "type": "boolean"}
    if default is None:
        value = size if name in INTEGERS else {"type": "number", **_BOUNDS[name]}
        return {**described, "anyOf": [value, {"type": "null"}]}
    return {**described, "type": "number", **_BOUNDS[name]}
