"""Write down all that a run needs to go on as if it had never stopped, and read it back without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from errors import ExampleError
from torch import Tensor

FORMAT = 1


@dataclass
class Checkpoint:
    """The state of a run after `epoch` epochs. Plain types and tensors only, so that `weights_only` can load it.

    Attributes:
        epoch: finished epochs.
        settings: what the run was started with; a resumed run must have the same.
        model: the model's state dict, with what the surgery added to it.
        optimizer: the optimizer's state dict.
        random: states of torch's generators by device ("cpu", "cuda:0").
        sampler: state of the generator that shuffles the training digits.
        history: a row of plain values for each measurement so far.
    """

    epoch: int
    settings: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    sampler: Tensor
    history: list[dict[str, Any]]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` in one move: whoever stops the run in between leaves the former checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT, **vars(checkpoint)}, file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors land on the CPU (loading a state dict moves them to where they belong).

    Raises:
        ExampleError: there is none, it is damaged, or it is no checkpoint of this example.
    """
    if not path.is_file():
        raise ExampleError(f"there is no checkpoint at {path}. Train first: add --train and leave --resume out.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first_line = str(error).partition("\n")[0]
        raise ExampleError(
            f"the checkpoint {path} cannot be read ({first_line}). Delete it and train again without --resume."
        ) from error
    expected = {"format", *Checkpoint.__dataclass_fields__}
    if not isinstance(content, dict) or set(content) != expected or content["format"] != FORMAT:
        raise ExampleError(
            f"{path} is no checkpoint of this version of the example. "
            "Train again without --resume, or give another --out."
        )
    del content["format"]
    return Checkpoint(**content)


def check_same_settings(saved: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other settings than the run began with.

    Raises:
        ExampleError: they differ; the message lists every difference.
    """
    names = sorted(set(saved) | set(asked))
    differences = [
        f"{name}: {saved.get(name)!r} then, {asked.get(name)!r} now"
        for name in names
        if saved.get(name) != asked.get(name)
    ]
    if differences:
        raise ExampleError(
            f"the run in {path.parent} was started with other settings ({'; '.join(differences)}). "
            "Use the same, or leave --resume out to start anew, or give another --out."
        )


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that a run on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """The reverse of `random_states`; a run that moves to another kind of device keeps what both know."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
