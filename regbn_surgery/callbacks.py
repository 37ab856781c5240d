"""Ready callbacks that hand `statistics` to the loggers of the transformers Trainer and of Lightning.

Neither library is imported before its callback is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ._errors import RegBNError
from ._spelling import did_you_mean, listing
from ._statistics import NAMES, statistics

if TYPE_CHECKING:
    from torch import Tensor, nn


def trainer_callback(prefix: str = "regbn/", keys: Sequence[str] | None = None) -> Any:
    """A `TrainerCallback` that adds the statistics of every RegBN to what the transformers Trainer logs.

    >>> callback = trainer_callback()
    >>> trainer = Trainer(model, ..., callbacks=[callback])
    >>> callback.attach(trainer)      # before `train`, so that TensorBoard, W&B and the like see them

    The Trainer logs every `logging_steps`; nothing is read from the device in between. Without `attach` they are in
    `trainer.state.log_history` alone, since the Trainer calls its reporters first. A key is
    `prefix` and that of `statistics`, as in `regbn/regbn_late/removed`. `keys` chooses among its eight
    figures, as in `keys=("removed", "skipped")`; default: all. Raises `RegBNError` without
    transformers, or for a key that `statistics` does not have.
    """
    chosen = _chosen(keys)
    TrainerCallback = _class("TrainerCallback", "transformers", hint="pip install 'regbn_surgery[hf]'")

    class RegBNStatistics(TrainerCallback):  # type: ignore[misc, valid-type]
        """See `regbn_surgery.callbacks.trainer_callback`."""

        def attach(self, trainer: Any) -> None:
            """Be called before the reporters of `trainer`."""
            others = [known for known in trainer.callback_handler.callbacks if known is not self]
            trainer.callback_handler.callbacks = [self, *others]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **rest: Any) -> None:
            if logs is None or model is None or "loss" not in logs:  # evaluation and the summary have their own entries
                return
            values = {name: float(value) for name, value in _figures(model, prefix, chosen).items()}
            logs.update(values)
            if state.log_history:
                state.log_history[-1].update(values)

    return RegBNStatistics()


def lightning_callback(prefix: str = "regbn/", keys: Sequence[str] | None = None) -> Any:
    """A Lightning `Callback` that logs the statistics of every RegBN each `log_every_n_steps` training steps.

    >>> trainer = Trainer(callbacks=[lightning_callback()])

    `keys`: as for `trainer_callback`. Raises `RegBNError` where neither `lightning` nor `pytorch_lightning` is
    installed, or for a key that `statistics` does not have.
    """
    chosen = _chosen(keys)
    Callback = _class("Callback", "lightning.pytorch", "pytorch_lightning", hint="pip install lightning")

    class RegBNStatistics(Callback):  # type: ignore[misc, valid-type]
        """See `regbn_surgery.callbacks.lightning_callback`."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step % trainer.log_every_n_steps == 0:
                values = {name: value.float() for name, value in _figures(pl_module, prefix, chosen).items()}
                pl_module.log_dict(values)

    return RegBNStatistics()


def _class(name: str, *modules: str, hint: str) -> Any:
    """The class of that name in the first of the modules that is installed."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            problem = error
    raise RegBNError(f"this callback needs {' or '.join(modules)}: {hint}") from problem


def _chosen(keys: Sequence[str] | None) -> frozenset[str]:
    """The figures to log; told at once where there is no such figure, not in the middle of a training."""
    names = NAMES if keys is None else (keys,) if isinstance(keys, str) else tuple(keys)
    for name in names:
        if name not in NAMES:
            raise RegBNError(f"keys: `statistics` has no {name!r}{did_you_mean(name, NAMES)} (it has {listing(NAMES)})")
    return frozenset(names)


def _figures(model: nn.Module, prefix: str, keys: Collection[str]) -> dict[str, Tensor]:
    found = statistics(model)
    return {prefix + name: value for name, value in found.items() if name.rpartition("/")[2] in keys}


__all__ = ["lightning_callback", "trainer_callback"]
