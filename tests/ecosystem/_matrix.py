"""The compatibility matrix: every zoo model in every situation, each cell measured in a process that may be lost.

A worker goes along one row after the other and reports each cell as a line of JSON; a cell that takes too long, or
takes the process with it, is recorded as such, and a new worker goes on behind it. Results are kept in a file, so that
a run can be broken off and taken up again.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

Status = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True)
class Cell:
    """One measurement: whether `model` bears `situation`, what was said where it does not, and how long it took."""

    model: str
    situation: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    commit: str = ""  # of the project that was measured

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.situation


def situations() -> dict[str, Callable[[Any], None]]:
    """The columns, in order."""
    from . import _as_a_module, _first_calls, _in_training, _tensor_parallel, _with_ranks, _with_trainers

    return {
        **_as_a_module.SITUATIONS,
        **_in_training.SITUATIONS,
        **_with_trainers.SITUATIONS,
        **_with_ranks.SITUATIONS,
        **_first_calls.SITUATIONS,
        **_tensor_parallel.SITUATIONS,
    }


def measure(model: str, situation: str) -> Cell:
    """Put one model into one situation, here and now."""
    from ._subject import DoesNotApplyError, Subject

    started = time.perf_counter()
    try:
        situations()[situation](Subject(model))
        status, reason = "pass", ""
    except DoesNotApplyError as error:
        status, reason = "n/a", str(error)
    except Exception as error:  # noqa: BLE001 - a matrix of failures is the purpose, and each is shown
        status, reason = "fail", f"{type(error).__name__}: {error}"
    return Cell(model, situation, status, _one_line(reason), round(time.perf_counter() - started, 2))  # type: ignore[arg-type]


def _one_line(text: str, limit: int = 240) -> str:
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return words if len(words) <= limit else words[: limit - 4] + " ..."


# -- workers ----------------------------------------------------------------------------------------------------------


def serve(lines: Iterable[str], out: TextIO) -> None:
    """A worker: for each `{"model": ..., "situations": [...]}` a line of JSON for each cell."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in lines:
        row = json.loads(line)
        for situation in row["situations"]:
            print(json.dumps(asdict(measure(row["model"], situation))), file=out, flush=True)


_COMMAND = (sys.executable, "-m", "tests.ecosystem.matrix", "--worker")


class Worker:
    """A subprocess that serves rows. Lost and made anew where a cell takes longer than `limit` seconds."""

    def __init__(self, limit: float, command: Sequence[str] = _COMMAND) -> None:
        self.limit = limit
        self.command = command
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()

    def row(self, model: str, columns: Sequence[str], keep: Callable[[Cell], None]) -> None:
        left = list(columns)
        while left:
            self._ask(model, left)
            while left:
                started = time.perf_counter()
                trouble = ""
                try:
                    line = self.answers.get(timeout=self.limit)
                    trouble = "" if line is not None else f"the process ended ({self._ended()})"
                except queue.Empty:
                    line, trouble = None, f"no result within {self.limit:.0f} seconds"
                if trouble:
                    self.close()
                    keep(Cell(model, left.pop(0), "fail", trouble, round(time.perf_counter() - started, 2)))
                    break
                assert line is not None
                cell = Cell(**json.loads(line))
                assert cell.model == model, f"an answer about {cell.model}, asked about {model}"
                left.remove(cell.situation)
                keep(cell)

    def _ask(self, model: str, columns: Sequence[str]) -> None:
        if self.process is None:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                start_new_session=True,
            )
            self.answers = queue.Queue()
            threading.Thread(target=_read, args=(self.process, self.answers), daemon=True).start()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"model": model, "situations": list(columns)}) + "\n")
        self.process.stdin.flush()

    def _ended(self) -> str:
        assert self.process is not None
        return f"exit status {self.process.wait()}"

    def close(self) -> None:
        """End the worker and whatever it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):  # what was still to be written is lost with the worker
                    stream.close()
            self.process = None


def _read(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):  # libraries print, too
            answers.put(line)
    answers.put(None)


def run(
    models: Sequence[str],
    columns: Sequence[str],
    results: Path,
    *,
    workers: int = 2,
    limit: float = 300.0,
    tell: Callable[[Cell], None] = lambda cell: None,
    commit: str = "",
) -> list[Cell]:
    """Measure what `results` does not hold yet, write each cell there as it comes, and return all of them.

    `commit`: what is measured, noted with each cell.
    """
    known = {cell.key: cell for cell in read(results)}
    rows: queue.Queue[tuple[str, list[str]]] = queue.Queue()
    for model in models:
        missing = [column for column in columns if (model, column) not in known]
        if missing:
            rows.put((model, missing))
    lock = threading.Lock()

    def keep(cell: Cell) -> None:
        cell = replace(cell, commit=commit)
        with lock:
            known[cell.key] = cell
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
            tell(cell)

    def work() -> None:
        worker = Worker(limit)
        try:
            while True:
                worker.row(*rows.get_nowait(), keep)
        except queue.Empty:
            pass  # all rows are done
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [known[model, column] for model in models for column in columns if (model, column) in known]


def read(results: Path) -> list[Cell]:
    """The cells of a results file; a later one of the same model and situation replaces an earlier one."""
    if not results.exists():
        return []
    cells = [Cell(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
    return list({cell.key: cell for cell in cells}.values())


def write(results: Path, cells: Sequence[Cell]) -> None:
    """Replace the content of a results file."""
    results.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells), encoding="utf-8")
