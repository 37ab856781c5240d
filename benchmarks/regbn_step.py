"""How long a step of RegBN takes, as ratios measured in one run, and how time and memory grow.

python benchmarks/regbn_step.py                         # the tables of docs/performance.md
python benchmarks/regbn_step.py --reference FILE        # also against your own copy of the published module file
                                                        # (with its device strings set to the CPU)
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from yardsticks import (
    LARGER,
    SHAPES,
    PlainClosedForm,
    PlainNorms,
    Shape,
    Step,
    evaluation_step,
    floor_evaluation,
    floor_training,
    load_reference,
    reference_layer,
    training_step,
)

from regbn_surgery import RegBN


def make(shape: Shape, device: torch.device, **options: object) -> RegBN:
    """RegBN with the published defaults unless told otherwise."""
    return RegBN(shape.f[0], shape.g[0], shape.f[1:], shape.g[1:], **options).to(device)


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step in each round. Within a round every step is timed, so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    calls = {}
    for name, step in steps.items():
        step()
        calls[name] = max(1, round(0.02 / max(_time(step, 2, device), 1e-6)))
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(_time(step, calls[name], device))
    return times


def _time(step: Step, calls: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of name / base."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*names: str) -> str:
    return row(*names) + "\n" + row(*["---"] * len(names))


def step_table(rounds: int, device: torch.device, reference: Path | None) -> None:
    """Training and evaluation step of each shape against the floor, the norms, the yardstick and the published one."""
    module = load_reference(reference) if reference else None
    columns = ["shape", "W", "train ms", "/ floor", "/ BN+LN", "yardstick / ours"]
    columns += ["all norms / floor", "published / ours"] if module else ["all norms / floor"]
    print(header(*columns, "eval ms", "/ floor", "/ BN+LN"))
    for shape in SHAPES:
        ours, norms = make(shape, device).train(), PlainNorms(shape).to(device).train()
        full = make(shape, device, normalize_input=True, affine=True).train()
        plain = PlainClosedForm(shape).to(device).train()
        steps = {
            "ours": training_step(ours, shape, device),
            "full": training_step(full, shape, device),
            "floor": floor_training(shape, device),
            "norms": training_step(norms, shape, device),
            "plain": training_step(plain, shape, device),
        }
        if module:
            steps["published"] = training_step(reference_layer(module, shape), shape, device)
        train = measure(steps, rounds, device)
        steps = {
            "ours": evaluation_step(ours.eval(), shape, device),
            "floor": floor_evaluation(shape, device),
            "norms": evaluation_step(norms.eval(), shape, device),
        }
        test = measure(steps, rounds, device)
        cells = [shape.name, f"{shape.m} x {shape.n}", f"{1e3 * statistics.median(train['ours']):.2f}"]
        cells += [f"{ratio(train, 'ours', base):.2f}" for base in ("floor", "norms")]
        cells += [f"{ratio(train, 'plain', 'ours'):.2f}", f"{ratio(train, 'full', 'floor'):.2f}"]
        if module:
            cells.append(f"{ratio(train, 'published', 'ours'):.1f}")
        cells.append(f"{1e3 * statistics.median(test['ours']):.3f}")
        cells += [f"{ratio(test, 'ours', base):.2f}" for base in ("floor", "norms")]
        print(row(*cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the published module file, devices set to CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {arguments.threads} threads\n")
    print(f"Goals: train / floor <= 2 on {', '.join(LARGER)}; eval / floor <= 1.3; yardstick / ours > 1.\n")
    step_table(arguments.rounds, device, arguments.reference)


if __name__ == "__main__":
    main()
