"""What `statistics` tells, against what a step by hand shows; and the callbacks in the loops that they are for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from regbn_surgery import RegBN, RegBNError, regbnify, statistics
from regbn_surgery._statistics import NAMES
from regbn_surgery.callbacks import lightning_callback, trainer_callback

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "image"}]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.t, self.h = nn.Linear(8, 6), nn.Linear(5, 4), nn.Linear(10, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor, labels: torch.Tensor | None = None):
        out = self.h(torch.cat([self.i(image), self.t(table)], 1))
        return out if labels is None else {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 8), torch.randn(size, 5)


@pytest.mark.parametrize("form", ["dual", "primal", "low_rank"])
def test_the_figures_are_those_of_the_last_step(form: str) -> None:
    torch.manual_seed(0)
    chosen = {"projection": "low_rank"} if form == "low_rank" else {"form": form}
    regbn = RegBN(4, 5, normalize_output=False, **chosen)
    for _ in range(3):
        f, g = torch.randn(12, 4), torch.randn(12, 5)
        out = regbn(f, g)[0]
    found = {name.partition("/")[2]: float(value) for name, value in statistics(nn.ModuleDict({"x": regbn})).items()}
    lam = float(regbn.multiplier)
    W_batch = torch.linalg.solve(g.T @ g + lam * torch.eye(5), g.T @ f)
    W = torch.linalg.multi_dot(regbn.factors) if form == "low_rank" else regbn.W
    want = {
        "lambda": lam,
        "norm_W": float(W.norm()),
        "norm_W_batch": float(W_batch.norm()),
        "running_to_batch": float(W.norm() / W_batch.norm()),
        "removed": float((f - out).norm() / f.norm()),
        "steps": 3,
        "skipped": 0,
    }
    for name, value in want.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert 0 < found["share"] < 0.03


def test_values_stay_what_they_were_and_are_not_read() -> None:
    model = regbnify(Model(), RULES, batch(4)).train()
    model(*batch())
    first = statistics(model)
    assert {name.partition("/")[0] for name in first} == {"regbn_late"}
    kept = {name: value.clone() for name, value in first.items()}
    model(*batch())
    assert all(torch.equal(first[name], kept[name]) for name in first)
    assert not torch.equal(statistics(model)["regbn_late/norm_W"], kept["regbn_late/norm_W"])
    assert statistics(Model()) == {}
    meta = RegBN(4, 5).to("meta")  # whatever would read a value raises there
    assert all(value.is_meta for value in statistics(meta).values())


def test_a_skipped_batch_is_counted_and_the_rest_stays() -> None:
    regbn = RegBN(4, 5)
    regbn(torch.randn(8, 4), torch.randn(8, 5))
    before = statistics(regbn)
    regbn(torch.randn(8, 4), torch.zeros(8, 5))
    after = statistics(regbn)
    assert int(after["skipped"]) == 1
    assert all(torch.equal(before[name], after[name]) for name in before if not name.endswith("skipped"))


@pytest.mark.parametrize("keys", [None, ("steps",)])
def test_the_trainer_logs_them(keys, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = regbnify(Model(), RULES, batch(4))
    rows = [{"image": torch.randn(8), "table": torch.randn(5), "labels": torch.tensor(i % 2)} for i in range(32)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=8, logging_steps=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    seen = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            seen.append(dict(logs))

    callback = trainer_callback(keys=keys)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[Reporter(), callback])
    callback.attach(trainer)
    trainer.train()
    for entries in (trainer.state.log_history, seen):
        steps = [entry["regbn/regbn_late/steps"] for entry in entries if "loss" in entry]
        assert steps == [2.0, 4.0]
        logged = {key.rpartition("/")[2] for entry in entries for key in entry if key.startswith("regbn/")}
        assert logged == set(keys or NAMES)
    json.dumps(trainer.state.log_history)


@pytest.mark.parametrize("make", [trainer_callback, lightning_callback])
@pytest.mark.parametrize("keys", [("removd",), "removd"])
def test_a_key_that_there_is_not_is_told_before_training(make, keys) -> None:
    with pytest.raises(RegBNError, match=r"no 'removd'.*did you mean `removed`.*norm_W"):
        make(keys=keys)


@pytest.mark.parametrize("keys", [None, ("steps", "lambda")])
def test_lightning_logs_them(keys, tmp_path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = regbnify(Model(), RULES, batch(4))

        def training_step(self, data, index):
            return self.model(*data).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(32)), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=1, log_every_n_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[lightning_callback("r/", keys=keys)],
    )  # fmt: skip
    trainer.fit(Module(), data)
    assert float(trainer.callback_metrics["r/regbn_late/steps"]) == 4.0
    logged = {key.rpartition("/")[2] for key in trainer.callback_metrics if key.startswith("r/")}
    assert logged == set(keys or NAMES)


def test_importing_them_imports_neither_library() -> None:
    code = (
        "import sys, regbn_surgery.callbacks; "
        "assert not {'transformers', 'lightning', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_the_last_step_nothing_is_known_after_loading() -> None:
    trained, loaded = RegBN(4, 5, (), ()), RegBN(4, 5, (), ())
    unknown = {"share", "lambda", "norm_W_batch", "running_to_batch", "removed"}
    assert {name for name, value in statistics(loaded).items() if value.isnan()} == unknown
    trained(torch.randn(8, 4), torch.randn(8, 5))
    assert not any(value.isnan() for value in statistics(trained).values())
    loaded.load_state_dict(trained.state_dict())
    found = statistics(loaded)
    assert {name for name, value in found.items() if value.isnan()} == unknown
    assert found["norm_W"] == statistics(trained)["norm_W"] > 0
    loaded(torch.randn(8, 4), torch.zeros(8, 5))  # skipped: it moves nothing
    assert {name for name, value in statistics(loaded).items() if value.isnan()} == unknown
    loaded(torch.randn(8, 4), torch.randn(8, 5))
    assert not any(value.isnan() for value in statistics(loaded).values())
