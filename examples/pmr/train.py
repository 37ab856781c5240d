"""The training loop: knows a model with two inputs and three outputs, and nothing of what may have been put into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint import (
    Checkpoint,
    check_same_settings,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from data import Data
from errors import ExampleError
from measure import Measurement, evaluate, write_history
from torch import nn
from torch.nn import functional as F

OPTIMIZERS = ("Adam", "AdamW", "SGD")


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, beside the data, the rules and the device."""

    seed: int = 0
    epochs: int = 20
    batch_size: int = 50
    learning_rate: float = 1e-3
    optimizer: str = "Adam"


@dataclass(frozen=True)
class Step:
    """Told to the observer after each training step, and after each epoch with what was measured."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    measured: tuple[Measurement, ...] = ()


class Run:
    """One model being trained, with all its state in one place.

    Args:
        model: takes `(gray, colored)`, returns the logits `(joint, gray, colored)`.
        identity: further settings that a resumed run must share (data, rules).
        folder: where `checkpoint.pt` and `history.csv` go.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: Settings,
        identity: dict[str, Any],
        folder: Path,
        device: torch.device,
    ) -> None:
        if not 2 <= settings.batch_size <= len(data.train):
            raise ExampleError(
                f"--batch_size {settings.batch_size}: must be from 2 (statistics over a batch need two) to the "
                f"{len(data.train)} training digits of {data.name}."
            )
        self.model = model.to(device)
        self.data = data
        self.settings = settings
        self.device = device
        self.checkpoint_path = folder / "checkpoint.pt"
        self.history_path = folder / "history.csv"
        self.optimizer = make_optimizer(model, settings)
        self.sampler = torch.Generator().manual_seed(settings.seed)
        self.epoch = 0
        self.history: list[Measurement] = []
        self._settings = {**asdict(settings), **identity}
        del self._settings["epochs"]  # a run may be continued for longer

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train) // self.settings.batch_size

    def resume(self) -> None:
        """Take up the saved state.

        Raises:
            ExampleError: there is no usable checkpoint, or it is of a run with other settings.
        """
        saved = load_checkpoint(self.checkpoint_path)
        check_same_settings(saved.settings, self._settings, self.checkpoint_path)
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            raise ExampleError(
                f"the checkpoint {self.checkpoint_path} is of another model ({str(error).splitlines()[0]}). "
                "Train again without --resume, or give another --out."
            ) from error
        self.sampler.set_state(saved.sampler)
        self.history = [Measurement(**row) for row in saved.history]
        self.epoch = saved.epoch
        restore_random_states(saved.random, self.device)

    def train(self, observe: Callable[[Step], None] = lambda step: None) -> None:
        """Train up to `settings.epochs`, measuring and saving after each epoch."""
        if self.epoch == 0:
            torch.manual_seed(self.settings.seed)
        while self.epoch < self.settings.epochs:
            loss = self._train_epoch(observe)
            self.epoch += 1
            measured = self._measure()
            self.history += measured
            self.save()
            observe(Step(self.epoch, self.steps_per_epoch, self.steps_per_epoch, loss, tuple(measured)))

    def _train_epoch(self, observe: Callable[[Step], None]) -> float:
        self.model.train()
        order = torch.randperm(len(self.data.train), generator=self.sampler)
        # Whole batches only: a remainder of one sample has no statistics.
        batches = order[: self.steps_per_epoch * self.settings.batch_size].split(self.settings.batch_size)
        for step, index in enumerate(batches, start=1):
            gray, colored, labels = self.data.train.batch(index, self.device)
            joint = self.model(gray, colored)[0]
            loss = F.cross_entropy(joint, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            value = loss.item()
            if not value < float("inf"):
                raise ExampleError(
                    f"the loss is {value} in epoch {self.epoch + 1}, step {step}. Lower --learning_rate "
                    f"(it is {self.settings.learning_rate})."
                )
            observe(Step(self.epoch + 1, step, self.steps_per_epoch, value))
        return value

    def _measure(self) -> list[Measurement]:
        parts = (("train", self.data.train), ("test", self.data.test))
        return [m for name, split in parts for m in evaluate(self.model, split, name, self.epoch, self.device)]

    def save(self) -> None:
        """Write the checkpoint and the CSV of the history so far."""
        checkpoint = Checkpoint(
            epoch=self.epoch,
            settings=self._settings,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=random_states(self.device),
            sampler=self.sampler.get_state(),
            history=[asdict(m) for m in self.history],
        )
        save_checkpoint(checkpoint, self.checkpoint_path)
        write_history(self.history, self.history_path)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The published settings for Adam (betas 0.9 and 0.99); the usual momentum for SGD."""
    parameters, lr = model.parameters(), settings.learning_rate
    if settings.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    return kinds[settings.optimizer](parameters, lr=lr, betas=(0.9, 0.99))
