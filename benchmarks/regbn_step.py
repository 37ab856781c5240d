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
from reference import load_reference, reference_layer
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
    training_step,
)

from regbn_surgery import RegBN

#: Seconds: of the wall, or of this process on the processors (with one thread, on a machine that others use too).
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = CLOCKS["wall"]


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
    start = CLOCK()
    for _ in range(calls):
        step()
    _wait(device)
    return (CLOCK() - start) / calls


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
    published = load_reference(reference) if reference else None
    columns = ["shape", "W", "train ms", "/ floor", "/ BN+LN", "yardstick / ours"]
    columns += ["all norms / floor", "/ their floor", "rms / mean"] + (["published / ours"] * bool(published))
    layers = {}
    if published and reference:  # all of them before anything is measured
        layers = {shape.name: reference_layer(published, shape, device, reference) for shape in SHAPES}
    print(header(*columns, "eval ms", "/ floor", "/ BN+LN"))
    for shape in SHAPES:
        ours, norms = make(shape, device).train(), PlainNorms(shape).to(device).train()
        full = make(shape, device, normalize_input=True, affine=True).train()
        rms = make(shape, device, normalize_input=True, affine=True, step_size="rms").train()
        plain = PlainClosedForm(shape).to(device).train()
        steps = {
            "ours": training_step(ours, shape, device),
            "full": training_step(full, shape, device),
            "rms": training_step(rms, shape, device),
            "floor": floor_training(shape, device),
            "full floor": floor_training(shape, device, normalized=True),
            "norms": training_step(norms, shape, device),
            "plain": training_step(plain, shape, device),
        }
        if layers:
            steps["published"] = training_step(layers[shape.name], shape, device)
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
        cells += [f"{ratio(train, 'full', 'full floor'):.2f}", f"{ratio(train, 'rms', 'full'):.2f}"]
        if layers:
            cells.append(f"{ratio(train, 'published', 'ours'):.1f}")
        cells.append(f"{1e3 * statistics.median(test['ours']):.3f}")
        cells += [f"{ratio(test, 'ours', base):.2f}" for base in ("floor", "norms")]
        print(row(*cells), flush=True)


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most memory that one call of `step` holds at a time beyond what was there before."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return peak


def memory_table(device: torch.device) -> None:
    """Peak memory of a training step (forward and backward) beyond inputs and W."""
    print(header("shape", "inputs MiB", "W MiB", "ours: peak beyond them MiB", "plain closed form MiB"))
    for shape in SHAPES:
        inputs = 4 * shape.batch * (shape.m + shape.n) / 2**20
        ours = peak_bytes(training_step(make(shape, device).train(), shape, device), device)
        plain = peak_bytes(training_step(PlainClosedForm(shape).to(device).train(), shape, device), device)
        W = 4 * shape.m * shape.n / 2**20
        print(row(shape.name, f"{inputs:.2f}", f"{W:.2f}", f"{ours / 2**20:.2f}", f"{plain / 2**20:.2f}"))


def growth_table(rounds: int, device: torch.device) -> None:
    """Training step over doublings of the batch, of n and of m, one at a time."""
    print(header("batch", "n", "m", "train ms", "x the row before", "form"))
    for varied in ("batch", "n", "m"):
        before = None
        for doubling in range(4):
            size = {"batch": 32, "n": 512, "m": 1024}
            size[varied] <<= doubling
            shape = Shape("growth", (size["n"],), (size["m"],), size["batch"])
            layer = make(shape, device).train()
            times = measure({"ours": training_step(layer, shape, device)}, rounds, device)
            took = statistics.median(times["ours"])
            factor = "" if before is None else f"{took / before:.2f}"
            form = "primal" if size["m"] < size["batch"] else "dual"
            print(row(size["batch"], size["n"], size["m"], f"{1e3 * took:.2f}", factor, form), flush=True)
            before = took


def low_rank_table(device: torch.device) -> None:
    """Feature maps whose dense W would not fit: seconds per training step and memory of the factors."""
    print(
        header("shape", "rank", "dense W would be GiB", "factors GiB", "train s", "peak beyond inputs and factors GiB")
    )
    shape = Shape("64x56x56 by 64x56x56", (64, 56, 56), (64, 56, 56), 16)
    for rank in (16, 64):
        step = training_step(make(shape, device, projection="low_rank", rank=rank).train(), shape, device)
        peak = peak_bytes(step, device)
        took = min(_time(step, 1, device) for _ in range(3))
        dense, factors = 4 * shape.m * shape.n / 2**30, 4 * rank * (shape.m + shape.n) / 2**30
        print(row(shape.name, rank, f"{dense:.0f}", f"{factors:.3f}", f"{took:.2f}", f"{peak / 2**30:.2f}"), flush=True)


def check_gpu(device: torch.device) -> None:
    """No host synchronisation in forward, and capture in a CUDA graph."""
    shape = SHAPES[0]
    layer = make(shape, device, normalize_input=True).train()
    f, g, _, _ = shape.tensors(device)
    layer(f, g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(f, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        layer(f, g)
    graph.replay()
    torch.cuda.synchronize()
    print("no host synchronisation in forward; captured and replayed as a CUDA graph\n")


def captured(step: Step, device: torch.device) -> Step:
    """The same step, replayed from a CUDA graph: what the device computes, without the launches from Python."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def captured_table(rounds: int, device: torch.device) -> None:
    """A training step as `torch.cuda.CUDAGraph` replays it, against the floor and the norms replayed the same way."""
    print(header("shape", "captured: train ms", "/ floor", "/ BN+LN", "all norms / floor", "/ their floor"))
    for shape in SHAPES:
        layers = {
            "ours": training_step(make(shape, device).train(), shape, device),
            "full": training_step(make(shape, device, normalize_input=True, affine=True).train(), shape, device),
            "floor": floor_training(shape, device),
            "full floor": floor_training(shape, device, normalized=True),
            "norms": training_step(PlainNorms(shape).to(device).train(), shape, device),
        }
        times = measure({name: captured(step, device) for name, step in layers.items()}, rounds, device)
        cells = [shape.name, f"{1e3 * statistics.median(times['ours']):.3f}"]
        cells += [f"{ratio(times, 'ours', base):.2f}" for base in ("floor", "norms")]
        cells += [f"{ratio(times, 'full', base):.2f}" for base in ("floor", "full floor")]
        print(row(*cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the published module file, devices set to CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--steps-only", action="store_true", help="the first table alone")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    global CLOCK
    CLOCK = CLOCKS[arguments.clock]
    device = torch.device(arguments.device)
    machine = platform.processor() or platform.machine()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, {machine}, {arguments.threads} thread(s), {arguments.clock} clock\n")
    print(f"Goals: all norms / floor <= 2.2 on {', '.join(LARGER)}; eval / floor <= 1.3; yardstick / ours > 1.\n")
    if device.type == "cuda":
        check_gpu(device)
    step_table(arguments.rounds, device, arguments.reference)
    if device.type == "cuda":
        print("\nReplayed from a CUDA graph\n")
        captured_table(arguments.rounds, device)
    if arguments.steps_only:
        return
    print("\nPeak memory of a training step beyond inputs and W\n")
    memory_table(device)
    print("\nGrowth\n")
    growth_table(arguments.rounds, device)
    print("\nLow rank\n")
    low_rank_table(device)


if __name__ == "__main__":
    main()
