"""Training: reproducible, resumable bit for bit, with RegBN put in by the rules alone."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from checkpoint import Checkpoint, check_same_settings, load_checkpoint, save_checkpoint
from errors import ExampleError
from measure import read_history
from torch import nn
from train import OPTIMIZERS, Run, Settings, make_optimizer
from variants import find_variant, find_variants

CPU = torch.device("cpu")
SETTINGS = Settings(seed=3, epochs=3, batch_size=50)
ALL = ["none", "early", "late"]


def new_run(data, folder, variant="none", settings=SETTINGS) -> Run:
    model = find_variant(variant).build(settings.seed)
    return Run(model, data, settings, {"data": data.digest, "rules": variant}, folder, CPU)


def assert_equal(a, b, path="") -> None:
    """Equal to the last bit, through dicts, lists and tensors."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path


class StopsAt:
    """An observer that presses Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.where = (epoch, step)

    def __call__(self, step) -> None:
        if (step.epoch, step.step) == self.where and not step.measured:
            raise KeyboardInterrupt


@pytest.mark.parametrize("variant", ALL)
def test_a_resumed_run_equals_an_unbroken_one(small_data, tmp_path, variant):
    unbroken = new_run(small_data, tmp_path / "unbroken", variant)
    unbroken.train()

    broken = new_run(small_data, tmp_path / "broken", variant)
    with pytest.raises(KeyboardInterrupt):
        broken.train(StopsAt(epoch=2, step=2))
    torch.manual_seed(99)  # whatever happens in between

    resumed = new_run(small_data, tmp_path / "broken", variant)
    resumed.resume()
    assert resumed.epoch == 1
    resumed.train()
    assert_equal(vars(load_checkpoint(unbroken.checkpoint_path)), vars(load_checkpoint(resumed.checkpoint_path)))
    assert unbroken.history_path.read_bytes() == resumed.history_path.read_bytes()


@pytest.mark.parametrize("variant", ALL)
def test_a_run_can_be_made_longer(small_data, tmp_path, variant):
    long = new_run(small_data, tmp_path / "long", variant)
    long.train()
    short = new_run(small_data, tmp_path / "short", variant, replace(SETTINGS, epochs=1))
    short.train()
    longer = new_run(small_data, tmp_path / "short", variant)
    longer.resume()
    longer.train()
    assert_equal(long.model.state_dict(), longer.model.state_dict())
    assert long.history == longer.history


def test_equal_seeds_give_equal_runs_and_others_do_not(small_data, tmp_path):
    runs = [
        new_run(small_data, tmp_path / str(i), settings=replace(SETTINGS, seed=seed))
        for i, seed in enumerate((3, 3, 4))
    ]
    for run in runs:
        run.train()
    assert_equal(runs[0].model.state_dict(), runs[1].model.state_dict())
    assert not torch.equal(runs[0].model.head.linear.weight, runs[2].model.head.linear.weight)


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("early", (3 * 28 * 28, 28 * 28)),
        ("early_swapped", (28 * 28, 3 * 28 * 28)),
        ("late", (96, 96)),
    ],
)
def test_rules_put_regbn_in_and_leave_the_rest(variant, shape):
    from regbn_surgery import RegBN

    plain, normalised = (find_variant(name).build(seed=5) for name in ("none", variant))
    layers = [m for m in normalised.modules() if isinstance(m, RegBN)]
    assert len(layers) == 1
    assert isinstance(normalised, type(plain))
    state = normalised.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], value), key
    assert layers[0].W.shape == shape  # flat g by flat f


@pytest.mark.parametrize("variant", ["early", "late"])
def test_training_moves_the_projection(small_data, tmp_path, variant):
    from regbn_surgery import RegBN

    run = new_run(small_data, tmp_path, variant, replace(SETTINGS, epochs=1))
    layer = next(m for m in run.model.modules() if isinstance(m, RegBN))
    before = layer.W.clone()
    run.train()
    assert not torch.equal(layer.W, before)
    assert all(math.isfinite(m.loss) for m in run.history)


@pytest.mark.parametrize("variant", ["early", "late"])
def test_controls_are_the_same_without_the_projection(small_data, tmp_path, variant):
    control = new_run(small_data, tmp_path, f"{variant}_control", replace(SETTINGS, epochs=1))
    control.train()
    state = {key.replace("_control", ""): value for key, value in control.model.state_dict().items()}
    assert state.keys() == find_variant(variant).build(seed=3).state_dict().keys()
    projection = next(value for key, value in state.items() if key.endswith("W"))
    assert not projection.any()


def test_late_swapped_normalises_colour(small_data):
    """The output norms act on both alike, so the projection decides: with W set, only colour changes."""
    from regbn_surgery import RegBN

    changed = {}
    gray, colored, _ = small_data.test.batch(slice(0, 8), CPU)
    for variant in ("late", "late_swapped"):
        model = find_variant(variant).build(seed=3).eval()
        before = model(gray, colored)
        next(m for m in model.modules() if isinstance(m, RegBN)).W.normal_()
        after = model(gray, colored)
        changed[variant] = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == {"late": [True, True, False], "late_swapped": [True, False, True]}


def test_building_a_model_leaves_the_global_random_state(small_data):
    state = torch.get_rng_state()
    find_variant("none").build(seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_training_learns(small_data, tmp_path):
    run = new_run(small_data, tmp_path, settings=replace(SETTINGS, epochs=20, learning_rate=0.01))
    run.train()
    joint = [m for m in run.history if (m.split, m.modality) == ("train", "joint")]
    assert joint[-1].loss < 0.5 < joint[0].loss
    assert joint[-1].accuracy > 0.9


def test_whole_batches_only_and_all_digits_in_turn(small_data, tmp_path):
    """120 digits in batches of 50: two steps, and another hundred of them in each epoch."""
    run = new_run(small_data, tmp_path)
    seen = []
    batch = type(small_data.train).batch

    class Watched(type(small_data.train)):
        def batch(self, index, device):
            if isinstance(index, torch.Tensor):
                seen.append(index)
            return batch(self, index, device)

    split = small_data.train
    run.data = replace(small_data, train=Watched(split.gray, split.colored, split.labels))
    run.train()
    assert [len(index) for index in seen] == [50] * 6
    epochs = [torch.cat(seen[i : i + 2]) for i in (0, 2, 4)]
    assert all(len(e.unique()) == 100 for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_model_that_comes_in_evaluation_mode_is_trained_all_the_same(small_data, tmp_path):
    run = new_run(small_data, tmp_path, settings=replace(SETTINGS, epochs=1))
    run.model.eval()
    run.train()
    assert run.model.gray_branch[1].num_batches_tracked == run.steps_per_epoch


def test_history_survives_its_csv(small_data, tmp_path):
    run = new_run(small_data, tmp_path)
    run.train()
    assert read_history(run.history_path) == run.history
    assert len(run.history) == 3 * 2 * 3  # epochs, splits, modalities


def test_published_optimizer():
    optimizer = make_optimizer(nn.Linear(2, 2), Settings())
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    assert {type(make_optimizer(nn.Linear(2, 2), Settings(optimizer=name))).__name__ for name in OPTIMIZERS} == {
        "Adam",
        "AdamW",
        "SGD",
    }


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 0.1}, "learning_rate: 0.001 then, 0.1 now"),
        ({"batch_size": 20}, "batch_size: 50 then, 20 now"),
        ({"seed": 4}, "seed: 3 then, 4 now"),
        ({"optimizer": "SGD"}, "optimizer: 'Adam' then, 'SGD' now"),
    ],
)
def test_resuming_with_other_settings_is_refused(small_data, tmp_path, change, says):
    new_run(small_data, tmp_path, settings=replace(SETTINGS, epochs=1)).train()
    with pytest.raises(ExampleError, match=says):
        new_run(small_data, tmp_path, settings=replace(SETTINGS, **change)).resume()


def test_resuming_with_other_data_or_rules_is_refused():
    with pytest.raises(ExampleError, match="data: 'a' then, 'b' now; rules: 'x' then, None now"):
        check_same_settings({"data": "a", "rules": "x"}, {"data": "b"}, Path("runs/checkpoint.pt"))


def test_checkpoint_of_another_model_is_refused(small_data, tmp_path):
    run = new_run(small_data, tmp_path, settings=replace(SETTINGS, epochs=1))
    run.train()
    saved = load_checkpoint(run.checkpoint_path)
    del saved.model["head.linear.bias"]
    save_checkpoint(saved, run.checkpoint_path)
    with pytest.raises(ExampleError, match="is of another model"):
        new_run(small_data, tmp_path).resume()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_checkpoint(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ExampleError, match=r"cannot be read .*Delete it and train again"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_checkpoint_runs_no_code(tmp_path):
    import os

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save({"format": 1, "epoch": Hostile()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ExampleError, match="cannot be read"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "marker").exists()


def test_missing_and_foreign_checkpoint(tmp_path):
    with pytest.raises(ExampleError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ExampleError, match="no checkpoint of this version"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_failed_save_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    state = {"settings": {}, "model": {}, "optimizer": {}, "random": {}, "sampler": torch.zeros(1), "history": []}
    save_checkpoint(Checkpoint(epoch=1, **state), path)

    def fails(content, file):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(Checkpoint(epoch=2, **state), path)
    assert load_checkpoint(path).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("size", [1, 121])
def test_impossible_batch_size(small_data, tmp_path, size):
    with pytest.raises(ExampleError, match=f"--batch_size {size}: must be from 2 .* to the 120"):
        new_run(small_data, tmp_path, settings=replace(SETTINGS, batch_size=size))


def test_a_diverging_run_says_so(small_data, tmp_path):
    run = new_run(small_data, tmp_path, settings=replace(SETTINGS, learning_rate=1e38, optimizer="SGD"))
    with pytest.raises(ExampleError, match=r"the loss is (nan|inf) in epoch \d.* Lower --learning_rate"):
        run.train()


def test_variants(tmp_path):
    assert [asdict(v)["name"] for v in find_variants(ALL)] == ALL
    with pytest.raises(ExampleError, match=r"those that ship are: early, .*late"):
        find_variant("absent.yaml")
    (tmp_path / "early.yaml").write_text("version: 1\n")
    with pytest.raises(ExampleError, match="two of the rules to compare are called 'early'"):
        find_variants(["early", str(tmp_path / "early.yaml")])
    assert find_variant("early").fingerprint != find_variant(str(tmp_path / "early.yaml")).fingerprint
