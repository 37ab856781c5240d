"""Show how a run goes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measure import Measurement
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from train import Run, Step

_LINES = 5  # for a whole run, where there is no terminal


@contextmanager
def watch(run: Run, title: str, console: Console) -> Iterator[Callable[[Step], None]]:
    """Gives the observer for `Run.train`."""
    epochs, start = run.settings.epochs, run.epoch
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=epochs, completed=start, state="")

        def observe(step: Step) -> None:
            if not step.measured:
                done = step.epoch - 1 + step.step / step.steps_per_epoch
                bar.update(task, completed=round(done, 1), state=f"loss {step.loss:.3f}")
                return
            bar.update(task, completed=step.epoch, state=summary(step.measured))
            every = max(1, epochs // _LINES)
            if step.epoch == epochs or (not console.is_terminal and step.epoch % every == 0):
                console.print(
                    f"{title}  epoch {step.epoch}/{epochs}  {summary(step.measured)}", highlight=False, markup=False
                )

        yield observe


def summary(measured: tuple[Measurement, ...]) -> str:
    """One line: the accuracies in testing, and the joint one in training."""
    test = "  ".join(f"{m.modality} {m.accuracy:.1%}" for m in measured if m.split == "test")
    train = next(m.accuracy for m in measured if m.split == "train" and m.modality == "joint")
    return f"test: {test}  (train: joint {train:.1%})"
