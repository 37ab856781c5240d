"""`hf:` names a model of transformers without any download, and inputs that it runs on."""

from __future__ import annotations

import json
import re

import pytest

from regbn_surgery._cli.loading import ModelNotLoadedError
from regbn_surgery._cli.options import ModelRequest

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {**TOWER, "vocab_size": 120, "max_position_embeddings": 64}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}


def config_file(folder, **changes):
    content = {**CLIP, "model_type": "clip", "architectures": ["CLIPModel"], **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return str(folder / "config.json")


@pytest.mark.parametrize("form", ["class", "file", "folder"])
def test_every_form_gives_a_model_and_inputs(tmp_path, form):
    path = config_file(tmp_path)
    spec = {"class": "CLIPModel", "file": path, "folder": str(tmp_path)}[form]
    model, inputs = ModelRequest(f"hf:{spec}", CLIP if form == "class" else {}).load()
    assert type(model) is transformers.CLIPModel
    assert {name: list(x.shape) for name, x in inputs.items()} == {
        "pixel_values": [2, 3, 32, 32], "input_ids": [2, 8], "attention_mask": [2, 8],
    }  # fmt: skip
    assert model(**inputs).logits_per_image.shape == (2, 2)


def test_a_large_model_has_no_values_unless_they_are_asked_for():
    request = ModelRequest("hf:CLIPModel", {**CLIP, "projection_dim": 2**20})
    assert next(request.load()[0].parameters()).is_meta
    assert not any(p.is_meta for p in request.load(weights=True)[0].parameters())


def test_weights_are_the_same_each_time():
    first, second = (ModelRequest("hf:CLIPModel", CLIP).load()[0] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_placeholder_tokens_are_given_where_pictures_go():
    qformer = {**TEXT, "encoder_hidden_size": 32}
    text = {"model_type": "opt", "vocab_size": 120, "hidden_size": 32, "ffn_dim": 37, "num_hidden_layers": 1,
            "num_attention_heads": 4, "word_embed_proj_dim": 32}  # fmt: skip
    changes = {"vision_config": VISION, "qformer_config": qformer, "text_config": text, "num_query_tokens": 5}
    model, inputs = ModelRequest("hf:Blip2ForConditionalGeneration", changes).load()
    assert (inputs["input_ids"] == model.config.image_token_index).sum(1).tolist() == [5, 5]
    assert model(**inputs).logits.shape[:2] == (2, 13)


def test_from_the_shell(run, tmp_path):
    result = run("inspect", f"hf:{config_file(tmp_path)}")
    assert result.exit_code == 0, result.stderr
    assert "similarity" in result.stdout


def test_one_input_more_leaves_those_that_are_made(run, tmp_path):
    path = f"hf:{config_file(tmp_path)}"
    result = run("inspect", path, "--input", "position_ids=int64[2,8]<8", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)["modalities"]) == ["input_ids", "pixel_values"]


def test_a_first_rules_file_for_towers_that_meet_in_their_similarity(run, tmp_path):
    path = f"hf:{config_file(tmp_path)}"
    assert run("init", path, "-o", "rules.yaml").exit_code == 0
    made = run("plan", path, "rules.yaml")
    assert made.exit_code == 0, made.stderr
    assert "1 of 1 fusion point normalised" in made.stdout


def test_the_first_rules_file_says_what_pretrained_weights_need(run, tmp_path):
    text = run("init", f"hf:{config_file(tmp_path)}").stdout
    assert "\n# defaults: {regbn: {normalize_output: false, centre: true}}\n" in text
    assert "The preset `similarity` has these options" in text


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("model.safetensors",), True),
        (("pytorch_model.bin",), True),
        (("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), True),
        (("training_args.bin", "adapter_model.safetensors", "optimizer.pt"), False),
    ],
)
def test_weights_beside_the_configuration_are_said_to_be_unread(run, tmp_path, form, names, said):
    path = config_file(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    result = run("inspect", f"hf:{path if form == 'file' else tmp_path}", "--format", "json")
    assert json.loads(result.stdout)
    assert result.stderr.count("random weights") == said
    assert (f"--checkpoint {tmp_path / names[0]}" in result.stderr) == (said and len(names) == 1)
    quiet = run("inspect", f"hf:{path}", "--format", "json", "--quiet")
    assert "random weights" not in quiet.stderr


def test_the_checkpoint_that_the_message_names_is_loaded_and_nothing_is_said(run, tmp_path):
    transformers.CLIPModel(transformers.CLIPConfig(**CLIP)).save_pretrained(tmp_path)
    told = run("inspect", f"hf:{tmp_path}").stderr
    result = run("inspect", f"hf:{tmp_path}", "--checkpoint", str(tmp_path / "model.safetensors"))
    assert result.exit_code == 0, result.stderr
    assert "random weights" in told
    assert "random weights" not in result.stderr


@pytest.mark.parametrize("name", ["hf_trocr", "hf_blip_captioning"])
def test_a_checkpoint_of_save_pretrained_has_names_of_its_own_and_one_of_tied_weights(tmp_path, name):
    """As one has in `hf:folder --checkpoint folder/model.safetensors`."""
    import torch
    from safetensors.torch import load_file

    from tests.zoo import CASES

    (case,) = (case for case in CASES if case.name == name)
    model = case.model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    assert set(load_file(path)) != set(model.state_dict())
    found, _ = ModelRequest(f"hf:{tmp_path}", checkpoint=str(path)).load()
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_checkpoint_that_lacks_weights_says_what_reads_it(run, tmp_path, suffix):
    import torch
    from safetensors.torch import save_file

    model = transformers.CLIPModel(transformers.CLIPConfig(**CLIP))
    state = {name: x.clone() for name, x in model.state_dict().items() if "token_embedding" not in name}
    path = tmp_path / f"model.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    result = run("inspect", f"hf:{config_file(tmp_path)}", "--checkpoint", str(path))
    assert result.exit_code == 2
    assert "Missing key(s)" in result.stderr
    assert "def build(): return CLIPModel.from_pretrained('FOLDER')" in result.stderr


@pytest.mark.parametrize(
    ("spec", "arguments", "says"),
    [
        ("hf:ClipModel", {}, "did you mean `CLIPModel`"),
        ("hf:clipmodel", {}, "did you mean `CLIPModel`"),
        ("hf:CLIPModle", {}, "did you mean.*CLIPModel"),
        ("hf:none.json", {}, "'none.json' does not exist"),
        ("hf:CLIPTokenizer", {}, "is not a model class"),
        ("hf:CLIPModel", (3,), "a JSON object"),
        ("hf:CLIPModel", {"text_config": {**TEXT, "num_attention_heads": 5}}, "CLIPModel failed"),
    ],
)
def test_what_cannot_be_had(spec, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotLoadedError, match=says):
        ModelRequest(spec, arguments).load()


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("architectures", r'of clip there are .*`CLIPModel`.*"architectures": \["'),
        ("model_type", "lacks `model_type`"),
    ],
)
def test_a_file_that_does_not_say_which_class(tmp_path, missing, says):
    with pytest.raises(ModelNotLoadedError, match=says):
        ModelRequest(f"hf:{config_file(tmp_path, **{missing: None})}").load()


@pytest.mark.parametrize(("text", "says"), [("{", "cannot be read"), ("[]", "not an object")])
def test_a_file_that_is_no_configuration(tmp_path, text, says):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelNotLoadedError, match=says):
        ModelRequest(f"hf:{tmp_path}/config.json").load()


VILT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37, "image_size": 64,
        "patch_size": 32, "vocab_size": 120, "max_position_embeddings": 16}  # fmt: skip


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr("regbn_surgery._cli.huggingface.LARGE", 0)
    monkeypatch.setattr("regbn_surgery._cli.huggingface.LARGE_FOR_PLANS", 0)


def notes_of(text):
    """The notes of a plan, each as one line, as they stand below the tables."""
    block = text.partition("\nnotes:\n")[2].partition("\n\n")[0].partition("\nNext")[0]
    return [" ".join(note.split()) for note in re.split(r"\n (?=RB\d)", "\n" + block) if note.strip()]


BLIP = {"text_config": {**TEXT, "encoder_hidden_size": 32, "is_decoder": True}, "vision_config": VISION,
        "projection_dim": 16}  # fmt: skip
CROSS = """version: 1
modalities: {image: [pixel_values], text: [input_ids]}
rules:
  - {id: x, match: {kind: attention}, normalize: text, against: image}
"""


def test_plan_and_show_of_a_large_model_say_the_same(run, tmp_path, monkeypatch):
    """It writes one token after the other, which only a model with values shows."""
    (tmp_path / "x.yaml").write_text(CROSS)
    model = ("hf:BlipForConditionalGeneration", "--model-args", json.dumps(BLIP))
    monkeypatch.setattr("regbn_surgery._cli.huggingface.LARGE", 0)
    planned, shown = (run(command, *model, "x.yaml", "--verbose") for command in ("plan", "show"))
    assert planned.exit_code == shown.exit_code == 0, planned.stderr
    assert notes_of(planned.stdout) == notes_of(shown.stdout)
    assert any(note.startswith("RB109") for note in notes_of(planned.stdout))
    assert "RB120" not in planned.stdout


def test_a_plan_of_a_very_large_model_says_what_it_could_not_look_at(run, tmp_path, all_are_large):
    (tmp_path / "x.yaml").write_text(CROSS)
    planned = run("plan", "hf:BlipForConditionalGeneration", "--model-args", json.dumps(BLIP), "x.yaml")
    assert planned.exit_code == 0, planned.stderr
    assert notes_of(planned.stdout)[0].startswith("RB120 the model has no weights")
    quiet = run(
        "plan", "hf:BlipForConditionalGeneration", "--model-args", json.dumps(BLIP), "x.yaml", "--ignore", "RB120"
    )
    assert "RB120" not in quiet.stdout


def test_a_large_model_that_needs_values_is_built_again_with_them(run, all_are_large):
    """ViLT chooses patches by values: it runs neither on the meta device nor with fakes."""
    model = ("hf:ViltModel", "--model-args", json.dumps(VILT))
    for command in (("inspect", *model), ("init", *model, "-o", "rules.yaml"), ("plan", *model, "rules.yaml")):
        result = run(*command)
        assert result.exit_code == 0, result.stderr
        assert "ViltModel does not run without values, so it is built again with random weights" in result.stderr
    assert "1 of 1 fusion point normalised" in result.stdout
    quiet = run("inspect", *model, "--quiet")
    assert "embeddings.cat" in quiet.stdout
    assert quiet.stderr == ""


def test_a_large_model_that_runs_in_no_way_is_refused_with_its_own_error(run, all_are_large):
    result = run("inspect", "hf:ViltModel", "--model-args", json.dumps(VILT), "--input", "input_ids=int64[2,99]<100")
    assert result.exit_code == 2
    assert "could not be run in evaluation mode" in result.stderr
    assert "Check that the same call works without regbn_surgery" in result.stderr
