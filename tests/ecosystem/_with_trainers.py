"""Situations: the training loops that others have written, twenty steps each, broken off at the tenth and resumed."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.zoo._running import call

from ._subject import Subject, assert_regbn_learned, assert_same, loss_of, unless_the_original_fails

STEPS, BROKEN_AT = 20, 10


class _Batches(Dataset[Any]):
    """Ten batches, of three and of four samples in turn; a batch is an item."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __len__(self) -> int:
        return BROKEN_AT

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": torch.tensor(index), "example": self.subject.example(3 + index % 2)}


def _loader(subject: Subject) -> DataLoader[Any]:
    return DataLoader(_Batches(subject), batch_size=None, collate_fn=lambda item: item)


def _loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Seeded by the batch, so that dropout after a resumption draws what it would have drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(int(batch["index"]))
        return loss_of(call(model, copy.deepcopy(batch["example"])))


def transformers_trainer(subject: Subject) -> None:
    """The `Trainer` of transformers: twenty steps, and ten more from its checkpoint, end at the same weights."""
    trained = unless_the_original_fails(
        "resume with the Trainer",
        lambda: _hf_twice(subject.rewritten, subject),
        lambda: _hf_twice(subject.original, subject),
    )
    assert_regbn_learned(trained)
    assert type(trained).__name__ == type(subject.original()).__name__


def _hf_twice(make: Callable[[], nn.Module], subject: Subject) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        first, second = make(), make()
        _hf(first, subject, STEPS, Path(folder))
        checkpoint = Path(folder) / f"checkpoint-{BROKEN_AT}"
        assert checkpoint.exists()
        _hf(second, subject, STEPS, Path(folder), str(checkpoint))
    assert_same(second.state_dict(), first.state_dict())
    return first


def _hf(model: nn.Module, subject: Subject, steps: int, folder: Path | None, resume: str | None = None) -> None:
    from transformers import Trainer, TrainingArguments

    class OurTrainer(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            return _loss(model, inputs)

    with tempfile.TemporaryDirectory() as spare:
        arguments = TrainingArguments(
            output_dir=str(folder or spare),
            max_steps=steps,
            per_device_train_batch_size=1,
            save_strategy="steps" if folder is not None else "no",
            save_steps=BROKEN_AT,
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
        )
        trainer = OurTrainer(model, arguments, train_dataset=_Batches(subject), data_collator=lambda items: items[0])
        trainer.remove_callback(_progress())
        trainer.get_train_dataloader = lambda: _loader(subject)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == steps


def _progress() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def lightning_trainer(subject: Subject) -> None:
    """Lightning: twenty steps, and ten more from its checkpoint, end at the same weights."""
    trained = unless_the_original_fails(
        "resume with Lightning",
        lambda: _lightning_twice(subject.rewritten, subject),
        lambda: _lightning_twice(subject.original, subject),
    )
    assert_regbn_learned(trained)


def _lightning_twice(make: Callable[[], nn.Module], subject: Subject) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        first, second = make(), make()
        _lightning(first, subject, STEPS, Path(folder))
        (checkpoint,) = Path(folder).glob(f"step={BROKEN_AT}.ckpt")
        _lightning(second, subject, STEPS, None, str(checkpoint))
    assert_same(second.state_dict(), first.state_dict())
    return first


def _lightning(model: nn.Module, subject: Subject, steps: int, folder: Path | None, resume: str | None = None) -> None:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
            return _loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    callbacks = []
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=BROKEN_AT, save_top_k=-1))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as spare:
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=spare,
        )
        module = Module()
        module.train()  # Lightning leaves the modes of submodules as they are
        trainer.fit(module, _loader(subject), ckpt_path=resume, weights_only=False)
        assert trainer.global_step == steps


SITUATIONS: dict[str, Callable[[Subject], None]] = {
    "transformers Trainer": transformers_trainer,
    "Lightning": lightning_trainer,
}
