"""A surgery written down and done again to a fresh instance, without rules and without running the model."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import AlreadyRewrittenError, CaptureError, Recipe, RecipeError, load_regbn, save_regbn, unregbnify
from regbn_surgery._checkpoint._source import code_of, locate
from regbn_surgery._surgery import explain, operations_of
from tests.surgery.models import Cross, Late, Nested, build, counting, everything, operate, run, step, vectors
from tests.surgery.models import token_pairs as tokens
from tests.zoo import CASES
from tests.zoo._running import run as run_case
from tests.zoo._running import training_step

BY_NAME = {case.name: case for case in CASES}
#: One for each way in: a hook, a generated forward, a forward that runs as it is; shared roles, helpers, loops.
SAMPLE = ("concat", "fusenet", "hf_vilt", "hf_lxmert", "stepwise_gate")


def zoo_parameters() -> list[Any]:
    return [
        pytest.param(case.name, marks=() if case.name in SAMPLE else pytest.mark.slow)
        for case in CASES
        if "surgery" not in case.pending
    ]


@pytest.mark.parametrize("name", zoo_parameters())
def test_a_fresh_instance_computes_what_the_first_one_does(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    first = regbn_surgery.regbnify(case.model(), case.rules_dict(), case.example)
    path = tmp_path / "regbn.json"
    Recipe.of(first).write(path)
    second = Recipe.read(path).apply(case.model())
    training_step(first, case.example(3))
    assert second.load_state_dict(first.state_dict())
    for batch in case.batches:
        for train in (False, True):
            expected = run_case(first, case.example(batch), train=train)
            found = run_case(second, case.example(batch), train=train)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [(r.host, r.tier, r.sites) for r in explain(first)] == [
        (r.host, r.tier, _with_evidence(r.sites, first)) for r in explain(second)
    ]
    assert path.stat().st_size < 8_000 * max(4, sum(len(each.sites) for each in explain(first)))


def _with_evidence(sites: tuple[Any, ...], model: nn.Module) -> tuple[Any, ...]:
    """The recipe leaves out what only people read; where the rest agrees, the sites are the first model's."""
    originals = {(op.planned.host, op.planned.name): op.planned for op in operations_of(model)}
    found = [originals[site.host, site.name] for site in sites]
    for site, original in zip(sites, found, strict=True):
        assert (site.f.shape, site.g.shape, site.options) == (original.f.shape, original.g.shape, original.options)
    return tuple(found)


@pytest.mark.parametrize(
    ("cls", "example", "kind"), [(Late, vectors, "concat"), (Nested, vectors, "concat"), (Cross, tokens, "attention")]
)
def test_nothing_is_run_and_regbn_works_at_once(cls: type[nn.Module], example: Any, kind: str) -> None:
    recipe = Recipe.of(operate(build(cls), example(), kind))
    model = build(cls)
    ran: list[str] = []
    handle = model.register_forward_pre_hook(lambda *_: ran.append("forward"))
    rewritten = recipe.apply(model)
    assert not ran
    handle.remove()
    with counting(rewritten) as calls:
        run(rewritten, example(5), training=True)
        run(rewritten, example(3), training=False)
    assert list(calls.values()) == [2]
    assert type(rewritten).__name__ == cls.__name__
    assert isinstance(rewritten, cls)


def test_a_copy_is_changed_unless_asked_otherwise() -> None:
    recipe = Recipe.of(operate(build(Late), vectors()))
    model = build(Late)
    before = everything(model)
    assert recipe.apply(model) is not model
    assert everything(model) == before
    assert recipe.apply(model, inplace=True) is model
    with pytest.raises(AlreadyRewrittenError):
        recipe.apply(model)
    assert everything(unregbnify(model)) == before


def test_what_was_applied_can_be_written_again() -> None:
    recipe = Recipe.of(operate(build(Late), vectors()))
    assert Recipe.of(recipe.apply(build(Late))) == recipe


class Reads(Late):
    """Looks at a value, and holds its weights in bounds, in place."""

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            self.head.weight.clamp_(-0.05, 0.05)
        joint = torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1)
        return self.head(joint) * (2 if joint.sum().item() > 0 else 3)


def test_a_forward_that_reads_values_and_writes_its_parameters_is_rewritten_without_running_it(tmp_path: Path) -> None:
    first = operate(build(Reads), vectors())
    (report,) = explain(first)
    assert (report.tier, report.way) == (2, "source")
    path = tmp_path / "regbn.json"
    Recipe.of(first).write(path)
    model = build(Reads)
    weight = model.head.weight.detach().clone()
    second = Recipe.read(path).apply(model, inplace=True)
    assert [(r.tier, r.way, r.after) for r in explain(second)] == [(2, "source", report.after)]
    assert Recipe.read(path).writes_parameters
    assert second._regbn_host.writes_parameters
    assert torch.equal(second.head.weight, weight)
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(run(second, vectors(), False), run(first, vectors(), False), rtol=0, atol=0)


def test_a_wrapped_model_is_refused_before_its_class_is_compared() -> None:
    recipe = Recipe.of(operate(build(Late), vectors()))
    with pytest.raises(CaptureError, match="put RegBN into the module first, and wrap the result"):
        recipe.apply(nn.DataParallel(build(Late)))


def test_a_layer_of_torch_goes_by_its_arguments() -> None:
    recipe = Recipe.of(operate(build(Cross), tokens(), "attention"))
    (layer,) = [source for source in recipe.sources if source.name.startswith("torch.")]
    assert layer.code.startswith("(self, query: torch.Tensor, key: torch.Tensor")
    older = dataclasses.replace(layer, code=layer.code.replace("key:", "keys:"))
    sources = tuple(older if source is layer else source for source in recipe.sources)
    with pytest.raises(
        RecipeError, match=r"the arguments of torch\..*:MultiheadAttention.forward have changed: .* were .*keys:"
    ):
        dataclasses.replace(recipe, sources=sources).apply(build(Cross))


def test_it_reads_well() -> None:
    recipe = Recipe.of(operate(build(Nested), vectors()))
    assert str(recipe).splitlines() == [
        "RegBN in tests.surgery.models:Nested",
        "  fusion.regbn_x: f is argument `left`, g is argument `right` (rule 'x')",
    ]


def test_only_a_rewritten_model_has_one() -> None:
    with pytest.raises(RecipeError, match="Late carries no RegBN"):
        Recipe.of(build(Late))
    wrapped = nn.DataParallel(operate(build(Late), vectors()))
    with pytest.raises(RecipeError, match=r"pass `\.module`"):
        Recipe.of(wrapped)


# -- a class that is not what it was ----------------------------------------------------------------------------------

SOURCE = '''
import torch
from torch import nn


def joined(f, g):
    """Put together."""
    return torch.cat([f, g], dim=-1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc_a = nn.Linear(6, 8)
        self.enc_b = nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, a, b):
        f = self.enc_a(a)
        g = self.enc_b(b)
        return self.head(joined(f, g))
'''


class Workshop:
    """A module whose source a test changes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.count = 0

    def load(self, text: str, name: str = "workshop") -> types.ModuleType:
        self.count += 1
        path = self.folder / f"version_{self.count}.py"
        path.write_text(text)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        self.monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, str(path), "exec"), module.__dict__)
        return module

    def recipe(self) -> Recipe:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.load(SOURCE).Model()
        return Recipe.of(operate(model, vectors()))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("g = self.enc_b(b)", "g = self.enc_b(b) * 2", r"Model\.forward has changed(.|\n)*\+ .*enc_b\(b\) \* 2"),
        ("[f, g], dim=-1", "[g, f], dim=-1", r"workshop:joined has changed"),
        ("class Model(", "class Other(", r"the model was a workshop:Model; now it is a workshop:Other"),
        ("def joined(f, g)", "def put(f, g)", r"workshop:joined, .*, no longer exists"),
    ],
)  # fmt: skip
def test_a_changed_class_is_refused_with_what_changed(workshop: Workshop, old: str, new: str, said: str) -> None:
    recipe = workshop.recipe()
    assert old in SOURCE
    text = SOURCE.replace(old, new).replace(
        "self.head(joined(", "self.head(put(" if "def put" in new else "self.head(joined("
    )
    module = workshop.load(text)
    model = getattr(module, "Other" if "Other" in new else "Model")()
    before = everything(model)
    with pytest.raises(RecipeError, match=said) as caught:
        recipe.apply(model, inplace=True)
    assert str(caught.value).count("Call regbnify with the rules") == 1
    assert everything(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "'''A long\n\n\nheader.'''\n\nLIMIT = 3\n" + text,
        lambda text: text.replace('"""Put together."""', '"""Put\n    two things\n    together.\n    """\n    # so\n'),
        lambda text: text.replace("        f = self.enc_a(a)\n", "        f = self.enc_a(\n            a)\n"),
        lambda text: text.replace("        g = self", "        # the other one\n\n        g = self"),
        lambda text: text.replace("class Model", "def other():\n    return 1\n\n\nclass Model"),
    ],
)
def test_comments_docstrings_and_the_rest_of_the_file_may_change(workshop: Workshop, change: Any) -> None:
    recipe = workshop.recipe()
    text = change(SOURCE)
    assert text != SOURCE
    model = workshop.load(text).Model()
    assert_works(recipe.apply(model))


def assert_works(model: nn.Module) -> None:
    with counting(model) as calls:
        run(model, vectors(), training=True)
    assert list(calls.values()) == [1]


def test_a_module_may_be_called_something_else(workshop: Workshop) -> None:
    recipe = workshop.recipe()
    module = workshop.load(SOURCE, name="__other_main__")
    workshop.monkeypatch.delitem(sys.modules, "workshop")
    assert_works(recipe.apply(module.Model()))


def test_versions_are_told_where_it_does_not_fit(workshop: Workshop) -> None:
    recipe = workshop.recipe()
    older = json.loads(json.dumps(dict(recipe.versions)))
    older["torch"] = "1.0.0"
    model = workshop.load(SOURCE.replace("[f, g]", "[f, g, g]")).Model()
    with pytest.raises(RecipeError, match=r"It was made with torch 1\.0\.0, now "):
        type(recipe)(**{**vars(recipe), "versions": older}).apply(model)


def test_a_missing_host_is_refused() -> None:
    recipe = Recipe.of(operate(build(Nested), vectors()))
    model = build(Nested)
    model.fusion = nn.Identity()
    with pytest.raises(
        RecipeError, match=r"the module at `fusion` was a tests\.surgery\.models:Fusion; now it is a torch"
    ):
        recipe.apply(model)
    del model.fusion
    with pytest.raises(RecipeError, match="there is no module at `fusion` any more"):
        recipe.apply(model)


def test_code_outside_of_functions_is_refused(workshop: Workshop) -> None:
    head = 'def joined(f, g):\n    """Put together."""\n    return '
    start = SOURCE.index(head)
    end = SOURCE.index("\n", start + len(head))
    body = SOURCE[start + len(head) : end]
    kept = f"class Kept:\n    def __init__(self): self.joined = lambda f, g: {body}\n\n\nkept = Kept()"
    text = (SOURCE[:start] + kept + SOURCE[end:]).replace("self.head(joined(", "self.head(kept.joined(")
    model = operate(workshop.load(text).Model(), vectors())
    with pytest.raises(RecipeError, match=r"Kept\.__init__\.<locals>\.<lambda> has no name to find it by"):
        Recipe.of(model)


@pytest.mark.parametrize(
    ("kept", "call"),
    [
        ("joined = lambda f, g: {}", "joined("),
        ("TABLE = {{'cat': lambda f, g: {}, 'sum': lambda f, g: f + g}}", "TABLE['cat']("),
        ("class Base(nn.Module):\n    joined = staticmethod(lambda f, g: {})", "self.joined("),
    ],
)
@pytest.mark.parametrize("change", ["2 * torch.cat", "torch.cat([g, f], dim=-1) if 0 else torch.cat", "dim=1"])
def test_a_lambda_is_held_to_what_it_does(workshop: Workshop, kept: str, call: str, change: str) -> None:
    head = 'def joined(f, g):\n    """Put together."""\n    return torch.cat([f, g], dim=-1)'
    assert head in SOURCE

    def text(body: str) -> str:
        out = SOURCE.replace(head, kept.format(body)).replace("self.head(joined(", f"self.head({call}")
        return out.replace("class Model(nn.Module)", "class Model(Base)") if "Base" in kept else out

    recipe = Recipe.of(operate(workshop.load(text("torch.cat([f, g], dim=-1)")).Model(), vectors()))
    assert_works(recipe.apply(workshop.load("# moved\n" + text("torch.cat([f, g], dim=-1)")).Model()))
    other = "torch.cat([f, g], dim=1)" if change == "dim=1" else change + "([f, g], dim=-1)"
    with pytest.raises(RecipeError, match=r"<lambda> has changed since regbnify"):
        recipe.apply(workshop.load(text(other)).Model())


# -- towers that a host looks into ------------------------------------------------------------------------------------

TOWERS = """
import torch
from torch import nn


class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(width, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.second(torch.relu(x))


class Streams(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = Tower(6), Tower(5)

    def forward(self, a, b):
        return self.left(a), self.right(b)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.streams = Streams()
        self.head = nn.Linear(8, 3)

    def forward(self, a, b):
        return self.head(torch.cat(self.streams(a, b), dim=1))
"""
ACROSS = {
    "version": 1,
    "rules": [{"id": "x", "pair": {"f": "module:streams.left.first", "g": "module:streams.right.first"}}],
}


def across(workshop: Workshop) -> Recipe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = workshop.load(TOWERS).Model()
    return Recipe.of(regbn_surgery.regbnify(model, ACROSS, vectors()))


def test_towers_that_a_host_looks_into_are_written_down(workshop: Workshop, tmp_path: Path) -> None:
    recipe = across(workshop)
    assert [(module.path, module.opened_class) for module in recipe.opened] == [
        ("streams.left", "workshop:Tower"), ("streams.right", "workshop:Tower")
    ]  # fmt: skip
    functions = [source.name.partition(":")[2] for source in recipe.sources]
    assert sorted(functions) == ["Streams.forward", "Tower.forward"], "each of them once"
    recipe.write(tmp_path / "regbn.json")
    again = Recipe.read(tmp_path / "regbn.json")
    assert again == recipe
    moved = TOWERS.replace("        x = self.first(x)", "        # a comment\n\n        x = self.first(x)")
    assert_works(again.apply(workshop.load(moved).Model()))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "torch.relu(x)",
            "torch.tanh(x)",
            r"workshop:Tower\.forward has changed since regbnify(.|\n)*\+ .*torch\.tanh\(x\)",
        ),
        (
            "class Streams(nn.Module):",
            "class Other(Tower):\n    pass\n\n\nclass Streams(nn.Module):",
            r"the module at `streams\.right` was a workshop:Tower; now it is a workshop:Other",
        ),
        (", Tower(5)", ", nn.Identity()", r"the module at `streams\.right` was a workshop:Tower; now it is a torch"),
        ("self.left, self.right", "self.left, self.away", r"there is no module at `streams\.right` any more"),
    ],
)
def test_a_changed_tower_is_refused_with_what_changed(workshop: Workshop, old: str, new: str, said: str) -> None:
    recipe = across(workshop)
    text = TOWERS.replace(old, new)
    assert text != TOWERS
    model = workshop.load(text.replace("Tower(5)", "Other(5)") if "Other" in new else text).Model()
    before = everything(model)
    with pytest.raises(RecipeError, match=said):
        recipe.apply(model, inplace=True)
    assert everything(model) == before


def test_a_tower_without_the_place_of_a_side_is_refused(workshop: Workshop) -> None:
    recipe = across(workshop)
    model = workshop.load(TOWERS).Model()
    model.streams.left.first, model.streams.left.start = None, model.streams.left.first
    before = everything(model)
    with pytest.raises(RecipeError, match=r"there is no module at `streams\.left\.first` any more"):
        recipe.apply(model, inplace=True)
    assert everything(model) == before


def test_a_recipe_from_before_towers_were_written_down_is_read_and_applied(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "regbn.json"
    across(workshop).write(path)
    older = json.loads(path.read_text())
    del older["opened"]
    older["sources"] = [source for source in older["sources"] if "Tower" not in source["name"]]
    path.write_text(json.dumps(older))
    assert_works(Recipe.read(path).apply(workshop.load(TOWERS).Model()))


# -- files ------------------------------------------------------------------------------------------------------------


def test_recipe_and_weights_in_one_directory(tmp_path: Path) -> None:
    model = operate(build(Late), vectors())
    step(model, vectors())
    save_regbn(model, tmp_path / "new" / "folder")
    found = load_regbn(Late(), tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["model.safetensors", "regbn.json"]
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(run(found, vectors(), False), run(model, vectors(), False), rtol=0, atol=0)


class Tied(Late):
    """Two names for one weight, of which safetensors keeps one."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(12, 3)
        self.second.weight = self.head.weight

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        joint = torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1)
        return self.head(joint) + self.second(joint)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = operate(build(Tied), vectors())
    save_regbn(model, tmp_path)
    found: Any = load_regbn(Tied(), tmp_path)
    assert found.second.weight is found.head.weight
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path: Path) -> None:
    save_regbn(operate(build(Late), vectors()), tmp_path)
    wider, longer, shorter = build(Late), build(Late), build(Late)
    wider.head = nn.Linear(12, 7)
    longer.extra = nn.Linear(2, 2)
    del shorter.norm
    for model, said in (
        (wider, r"of another size: .*head\.weight \[3, 12\] instead of \[7, 12\]"),
        (longer, r"missing: extra\.weight"),
        (shorter, r"unknown to the model: .*norm\.bias"),
    ):
        before = everything(model)
        with pytest.raises(RecipeError, match=said):
            load_regbn(model, tmp_path)
        assert everything(model) == before


def test_files_that_are_not_there_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="It is written by save_regbn"):
        load_regbn(Late(), tmp_path)
    with pytest.raises(RecipeError, match="carries no RegBN"):
        save_regbn(build(Late), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    model = operate(build(Late), vectors())
    save_regbn(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_regbn(Late(), tmp_path)
    path = tmp_path / "regbn.json"
    good = json.loads(path.read_text())
    assert not {"opened", "writes_parameters"} & set(good), "what is as it mostly is, is not written down"

    for change, said in (
        ("{", "is not a recipe: not JSON"),
        ("[]", "a mapping is expected; found list"),
        (json.dumps({**good, "format": 7}), "format: this release reads format 1 of recipes; found 7"),
    ):
        path.write_text(change)
        with pytest.raises(RecipeError, match=said):
            Recipe.read(path)


def test_weights_in_several_files(tmp_path: Path) -> None:
    """As `save_pretrained` splits large ones."""
    model = operate(build(Late), vectors())
    step(model, vectors())
    save_regbn(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = load_regbn(Late(), tmp_path)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "outside",
    ["../taken.safetensors", "{above}/taken.safetensors", "a/../../taken.safetensors", "..\\taken", "C:x", ""],
)
def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path, outside: str) -> None:
    model, folder = operate(build(Late), vectors()), tmp_path / "saved"
    save_regbn(model, folder)
    (folder / "model.safetensors").rename(tmp_path / "taken.safetensors")
    index = {"weight_map": {"x": outside.format(above=tmp_path)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fresh = build(Late)
    with pytest.raises(RecipeError, match="refers to a file outside its folder"):
        load_regbn(fresh, folder)
    assert regbn_surgery.explain(fresh).hosts == ()


def test_a_link_to_weights_elsewhere_is_followed(tmp_path: Path) -> None:
    """The hub's cache keeps its files so."""
    model, folder = operate(build(Late), vectors()), tmp_path / "saved"
    save_regbn(model, folder)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    found = load_regbn(Late(), folder)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 5}', '{"weight_map": {"x": 1}}', "{}", "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    save_regbn(operate(build(Late), vectors()), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_regbn(build(Late), tmp_path)


class Published(nn.Module):
    """Writes its weights under other names, as some models of transformers do, and has a name of its own like ours."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = build(Nested), build(Nested)
        self.regbnet = nn.Linear(3, 3)
        self.config = types.SimpleNamespace(_name_or_path="")
        self.names = lambda name: f"published.{name}"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.regbnet(self.left(a, b) + self.right(a, b))

    def save_pretrained(self, folder: Path) -> None:
        named = {self.names(name): tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(named, folder / "model.safetensors")


def published(folder: Path, names: Any = None) -> Any:
    model = operate(Published(), vectors())
    step(model, vectors())
    model.names = names or model.names
    save_regbn(model, folder)
    return model


def test_weights_under_other_names_are_found_by_the_ends_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    fresh = Published()
    fresh.config._name_or_path = "saved"  # as from_pretrained("saved") says it
    fresh.load_state_dict(model.state_dict(), strict=False)  # as it does
    own = fresh.regbnet.weight.detach().clone()
    found: Any = load_regbn(fresh, tmp_path / "saved")
    for ours, theirs in ((found.left, model.left), (found.right, model.right)):
        assert theirs.fusion.regbn_x.regbn.W.any()
        assert torch.equal(ours.fusion.regbn_x.regbn.W, theirs.fusion.regbn_x.regbn.W)
    assert torch.equal(found.regbnet.weight, own), "the model's own weights are from_pretrained's business"


def test_weights_whose_names_cannot_be_told_apart_are_not_loaded(tmp_path: Path) -> None:
    model = published(tmp_path, lambda name: name.replace("left.", "one.").replace("right.", "two."))
    fresh = Published()
    fresh.load_state_dict(model.state_dict(), strict=False)
    before = everything(fresh)
    with pytest.raises(RecipeError, match="under names that cannot be matched"):
        load_regbn(fresh, tmp_path)
    assert everything(fresh) == before


# -- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "hf_blip_captioning",
        "hf_altclip",
        pytest.param("hf_trocr", marks=pytest.mark.slow),
        pytest.param("hf_mllama", marks=pytest.mark.slow),
    ],
)
def test_save_pretrained_writes_the_original_class_and_the_loader_brings_regbn_back(name: str, tmp_path: Path) -> None:
    """The last three are written under the names of their published checkpoints, which differ from the model's."""
    case = BY_NAME[name]
    original: Any = case.model()
    model: Any = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    training_step(model, case.example(3))
    save_regbn(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(original).__name__]
    plain = type(original).from_pretrained(tmp_path)
    assert type(plain) is type(original)
    assert list(plain.state_dict()) == list(original.state_dict())
    found = load_regbn(plain, tmp_path)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    batch = case.example(3)
    torch.testing.assert_close(run_case(found, batch, train=False), run_case(model, batch, train=False), rtol=0, atol=0)


def test_weights_under_other_names_are_not_taken_for_loaded(tmp_path: Path) -> None:
    """A model with random weights must not pass for one of `from_pretrained`: it gets those of the folder."""
    case = BY_NAME["hf_altclip"]
    model = regbn_surgery.regbnify(case.model(), case.rules_dict(), case.example)
    save_regbn(model, tmp_path)
    fresh = case.model()  # which has the weights that were saved
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(load_regbn(fresh, tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_without_a_recipe_take_one_from_elsewhere(tmp_path: Path) -> None:
    case = BY_NAME["hf_blip_captioning"]
    model: Any = regbn_surgery.regbnify(case.model(), case.rules_dict(), case.example)
    training_step(model, case.example(3))
    model.save_pretrained(tmp_path)
    (tmp_path / "regbn.json").unlink()
    fresh = type(case.model()).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"recipe=Recipe\.of"):
        load_regbn(fresh, tmp_path)
    found = load_regbn(fresh, tmp_path, recipe=Recipe.of(model))
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_what_the_readme_says_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (text,) = [block for block in readme.split("```python\n") if "save_regbn" in block]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": operate(build(Late), vectors()), "MyModel": Late}
    exec(text.split("```")[0], names)
    with counting(names["model"]) as calls:
        run(names["model"], vectors(), training=True)
    assert list(calls.values()) == [1]


def test_code_under_a_name_is_located_though_it_stands_in_no_function(tmp_path: Path) -> None:
    """Configuration-driven code keeps a table of lambdas at the top of a module, or of a class."""
    file = tmp_path / "tables.py"
    file.write_text(
        "import torch\n\n"
        "FUSIONS = {\n    'sum': lambda a, b: a + b,\n    'cat': lambda a, b: torch.cat([a, b], 1),\n}\n"
        "class Table:\n    rows: dict = {'sum': lambda a, b: a + b}\n"
        "def made():\n    add = lambda a, b: a + b\n    return add\n"
    )
    found = [locate(str(file), line) for line in (4, 5, 8, 10)]
    assert [(item.function, item.first) for item in found] == [
        ("FUSIONS", 3), ("FUSIONS", 3), ("Table.rows", 8), ("made", 9)
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="is outside every function"):
        locate(str(file), 1)


def test_a_line_is_in_the_innermost_function_and_its_decorators_belong_to_it(tmp_path: Path) -> None:
    file = tmp_path / "nested.py"
    file.write_text(
        "def outer(x):\n    def inner(y):\n        return y\n    return inner(x)\n\n@print\ndef f(x):\n    pass\n"
    )
    found = [locate(str(file), line) for line in (1, 3, 4, 6, 8)]
    assert [(item.function, item.first) for item in found] == [
        ("outer", 1), ("outer.inner", 2), ("outer", 1), ("f", 6), ("f", 6)
    ]  # fmt: skip
    assert found[-1].text == "@print\ndef f(x):\n    pass\n"
    file.write_text("# One more line.\n" + file.read_text())
    assert locate(str(file), 4).first == 3, "the file as it is now"


def test_a_wrapped_function_is_the_one_inside() -> None:
    @functools.wraps(published)
    def wrapper() -> None: ...

    assert code_of(wrapper) == (__file__, published.__code__.co_firstlineno)
    with pytest.raises(RecipeError, match="is not a Python function"):
        code_of(len)
