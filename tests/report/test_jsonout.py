"""The JSON of an inspection is a promise: its schema ships with the package and is held here."""

import json
from importlib.resources import files

import pytest

from regbn_surgery._types import KINDS, LEVELS

from ..plan.fakes import MAP, TOKENS, UNKNOWN, inspection, point, side, site

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads(files("regbn_surgery._report").joinpath("inspect.schema.json").read_text())


def example():
    return inspection(
        point("cat", side("gray", (8, 96, 7, 7), MAP), side("gray+colored", (8, 5, 32), TOKENS), owner="fusion"),
        point("odd", side("gray", (8, 28, 28), UNKNOWN), side("colored"), source=None, kind="loss",
              sites=(site(side("gray"), side("colored"), obstacle="a folded batch"),), note="seen in train only"),
        notes=("`gray` never meets `sound`",),
    )  # fmt: skip


def test_output_is_what_the_schema_says():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = example().to_dict()
    assert json.loads(json.dumps(data)) == data  # plain JSON types, nothing that turns into something else
    jsonschema.validate(data, SCHEMA)


def test_schema_knows_every_kind_and_level():
    properties = SCHEMA["$defs"]["point"]["properties"]
    assert tuple(properties["kind"]["enum"]) == KINDS
    assert tuple(properties["level"]["enum"]) == LEVELS


@pytest.mark.parametrize("key", ["schema_version", "model", "modalities", "fusion_points", "notes"])
def test_schema_refuses_what_lacks_a_part(key):
    data = example().to_dict()
    del data[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


def test_keys_are_those_promised():
    data = example().to_dict()
    assert list(data) == ["schema_version", "model", "modalities", "fusion_points", "notes"]
    cat = data["fusion_points"][0]
    assert list(cat) == [
        "id", "owner", "owner_class", "kind", "op", "source", "level", "selected_by_default", "operands", "sites",
    ]  # fmt: skip
    assert list(cat["operands"][0]) == [
        "modalities", "home", "producer", "shape", "dtype", "batch_dim", "channel_dim", "spatial_dims", "evidence",
    ]  # fmt: skip
    assert list(cat["sites"][0]) == ["f", "g", "host", "batch_dim", "channel_dim", "spatial_dims", "reduce"]


def test_content():
    data = example().to_dict()
    cat, odd = data["fusion_points"]
    assert data["modalities"] == {"gray": ["gray"], "colored": ["colored"]}
    assert (cat["owner"], cat["source"]) == ("fusion", "/home/me/model.py:42")
    assert cat["operands"][1]["home"] == ["gray", "colored"]
    assert cat["operands"][1]["channel_dim"] == 2
    assert cat["sites"][0]["f"]["shape"] == [8, 96, 7, 7]
    assert cat["sites"][0]["g"]["spatial_dims"] == [1]
    assert odd["source"] is None
    assert odd["operands"][0]["channel_dim"] is None
    assert data["notes"] == [
        "RB013 `odd`: RegBN cannot go there: a folded batch",
        "`gray` never meets `sound`",
        "RB014 `odd`: seen in train only",
        "RB015 `mask` is not counted as a modality: its name says mask",
    ]


def test_what_is_the_same_of_many_is_told_once_with_their_names():
    obstacle = "a folded batch"
    points = [
        point(f"layer.{i}.cat", side("gray"), side("colored"), note="seen in train only",
              sites=(site(side("gray"), side("colored"), obstacle=obstacle),))
        for i in range(6)
    ]  # fmt: skip
    names = "`layer.0.cat`, `layer.1.cat`, `layer.2.cat`, `layer.3.cat` and 2 more"
    assert inspection(*points).to_dict()["notes"][:2] == [
        f"RB013 {names}: RegBN cannot go there: {obstacle}", f"RB014 {names}: seen in train only",
    ]  # fmt: skip
