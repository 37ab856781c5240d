"""Run variants over seeds and write down what came out. Every file is written below one folder:

OUT/seed0/none/checkpoint.pt    state after the last finished epoch
OUT/seed0/none/history.csv      loss and accuracy by epoch, split and modality
OUT/seed0/curves.png            the variants of this seed side by side
OUT/comparison.{csv,md,png}     all variants over all seeds (`--compare`, by `regbn_surgery.sweep`, which adds
OUT/sweep.{csv,md}              the same as it writes it, and
OUT/runs/                       what each finished run came to)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from checkpoint import Checkpoint, load_checkpoint
from data import Data
from errors import ExampleError
from measure import Measurement, evaluate
from model import factory
from plots import plot_comparison, plot_curves
from progress import watch
from rich.console import Console
from tables import Result, measures_of, paired, results_of, to_markdown, verdicts, write_results
from torch import nn
from train import Run, Settings
from variants import Variant

from regbn_surgery import SweepError, sweep


@dataclass(frozen=True)
class Experiment:
    """What the runs have in common. `load(seed)` gives the data of a seed."""

    settings: Settings
    load: Callable[[int], Data]
    out: Path
    device: torch.device
    console: Console

    def train(self, variant: Variant, seed: int, *, resume: bool) -> Run:
        """Train one model to the end, on screen; with `resume` from its last finished epoch, if it has one."""
        run, title = self._run(variant, seed), f"{variant.name}, seed {seed}"
        if resume and not run.checkpoint_path.is_file():
            self._say(f"{title}: no epoch of it was finished, so it starts at the beginning")
            resume = False
        self._train(run, title, resume=resume)
        return run

    def _train(self, run: Run, title: str, *, resume: bool) -> None:
        if resume:
            run.resume()
            self._say(f"{title}: going on after epoch {run.epoch}")
            if run.epoch > self.settings.epochs:
                self._say(f"  it has had more than the {self.settings.epochs} epochs asked for: nothing to do")
        with watch(run, title, self.console) as observe:
            run.train(observe)

    def test(self, variant: Variant, seed: int) -> list[Measurement]:
        """Measure the saved model of a variant."""
        run = self._run(variant, seed)
        run.resume()
        parts = (("train", run.data.train), ("test", run.data.test))
        return [m for name, split in parts for m in evaluate(run.model, split, name, run.epoch, self.device)]

    def compare(self, variants: Sequence[Variant], seeds: Sequence[int], *, resume: bool) -> list[Path]:
        """Train every variant with every seed; with `resume`, finished and begun runs are taken up where they are.

        The model without RegBN is always among them.

        Returns:
            The files written: the comparison, and the curves of each seed.
        """
        if not resume:
            shutil.rmtree(self.out / "runs", ignore_errors=True)  # results of runs that are now trained anew
        variants = [Variant("none", None), *(v for v in variants if v.rules is not None)]
        named = {self._run_folder(v, seed): v for v in variants for seed in seeds}

        def train(model: nn.Module, seed: int, folder: Path) -> dict[str, float]:
            run = self._run(named[folder], seed, model)
            self._train(run, f"{named[folder].name}, seed {seed}", resume=resume and run.checkpoint_path.is_file())
            return measures_of(run.history, self.settings.epochs)

        try:
            swept = sweep(
                factory, rules={v.name: v.rules for v in variants if v.rules is not None}, train=train, seeds=seeds,
                out=self.out, resume=True, control=False, settings=self._settings_of_a_sweep(seeds),
            )  # fmt: skip
        except SweepError as error:
            if isinstance(error.__cause__, ExampleError):
                raise error.__cause__ from None
            raise
        results = results_of(swept, self.settings.epochs)
        trained = [v.name for v in variants if v.name not in dict(swept.same)]
        curves = [self.draw_curves(seed, trained) for seed in seeds]
        return [*self._write_comparison(results, len(seeds), swept.same), *curves]

    def _settings_of_a_sweep(self, seeds: Sequence[int]) -> dict[str, object]:
        """What decides its results, beside seeds and rules."""
        settings = asdict(self.settings)
        del settings["seed"]
        return {**settings, "data": [self._data_identity(seed) for seed in seeds[:1]]}

    def draw_curves(self, seed: int, names: Sequence[str] | None = None) -> Path:
        """Draw the runs of a seed side by side: those of `names`, or all that were trained alike."""
        folder = self._seed_folder(seed)
        names = names or self._trained_alike(seed)
        histories = {name: [Measurement(**row) for row in self._saved(seed, name).history] for name in names}
        plot_curves(histories, f"{self.load(seed).name}, seed {seed}", folder / "curves.png")
        return folder / "curves.png"

    def _saved(self, seed: int, name: str) -> Checkpoint:
        return load_checkpoint(self._seed_folder(seed) / name / "checkpoint.pt")

    def _trained_alike(self, seed: int) -> list[str]:
        """Variants in the folder of a seed that differ from what was asked in nothing but the rules.

        By their checkpoints, which are written whole: a run that was stopped before its first epoch ended has none.
        """
        wanted = self._shared_settings(seed)
        names = []
        for path in sorted(self._seed_folder(seed).glob("*/checkpoint.pt")):
            name = path.parent.name
            try:
                saved = self._saved(seed, name).settings
            except ExampleError as error:
                self._say(f"{name} is left out of the plot: {error}")
                continue
            if {key: value for key, value in saved.items() if key != "rules"} == wanted:
                names.append(name)
            else:
                self._say(f"{name} is left out of the plot: it was trained with other settings")
        return sorted(names, key=lambda name: (name != "none", name))

    def _write_comparison(
        self, results: Sequence[Result], seeds: int, same: Sequence[tuple[str, str]] = ()
    ) -> list[Path]:
        files = [self.out / f"comparison.{end}" for end in ("csv", "md", "png")]
        write_results(results, files[0])
        table = to_markdown(results)
        compared = replace(paired(results), same=tuple(same))
        table += f"\n{compared}"
        files[1].write_text(table, encoding="utf-8")
        seed_words = "1 seed" if seeds == 1 else f"{seeds} seeds"
        plot_comparison(results, f"after {self.settings.epochs} epochs, {seed_words}", files[2])
        self._say(f"\nAccuracy in percent after the last epoch, {seed_words}:\n{table}")
        for line in verdicts(compared):
            self._say(line)
        if seeds < 2:
            self._say("Give several seeds: --seeds 0 1 2 3 4. Eight seeds on MNIST digits: docs/results.md, section 4")
        return files

    def _run(self, variant: Variant, seed: int, model: nn.Module | None = None) -> Run:
        settings, data = replace(self.settings, seed=seed), self.load(seed)
        identity = {"data": self._data_identity(seed), "rules": variant.fingerprint}
        model = variant.build(seed) if model is None else model
        return Run(model, data, settings, identity, self._run_folder(variant, seed), self.device)

    def _shared_settings(self, seed: int) -> dict[str, object]:
        """What two variants of one seed must share to be drawn side by side, as their checkpoints hold it."""
        shared = {**asdict(replace(self.settings, seed=seed)), "data": self._data_identity(seed)}
        del shared["epochs"]
        return shared

    def _data_identity(self, seed: int) -> str:
        data = self.load(seed)
        return f"{data.name} ({data.digest})"

    def _seed_folder(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def _run_folder(self, variant: Variant, seed: int) -> Path:
        return self._seed_folder(seed) / variant.name

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
