"""Throws broken files at the loader: `python -m tests.rules.fuzz 100000 [SEED]`, from the top of the repository.

A third are random bytes, a third are valid files with bytes changed, cut and doubled, a third are deep or wide
structures and files made of the language's own words. Whatever comes, the loader answers with rules or with
`RulesError`, within seconds and a fixed amount of memory; anything else is told, and the exit code is 1.
"""

from __future__ import annotations

import collections
import contextlib
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regbn_surgery import RulesError
from regbn_surgery._rules import Rules

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [path.read_bytes() for path in sorted((*ROOT.glob("rules/*.yaml"), *ROOT.glob("examples/**/*.yaml")))]
SEEDS += [path.read_bytes() for path in sorted(Path(__file__).parent.glob("broken/*.yaml"))]
WORDS = re.findall(
    r"\S+",
    "version strict inputs modalities defaults exclude rules overrides id match pair f g kind owner between level nth "
    "point normalize against pairs all regbn reduce replace fit methods allow_noncausal action skip expect min max "
    "shape dtype range dim slice modules concat sum late early momentum rank 1 0 -1 1e-3 .nan .inf ~ null true on 1:30 "
    "0x10 re:( re:.* ** a..b input:x module:a.b \\1 [] {} '' \"\" |- >2 & * ! !!int !!map % @ `",
)
GLUE = [": ", ":", "\n", "\n  ", "\n    ", ", ", "- ", "{", "}", "[", "]", " ", "#", "'", '"', "\n- ", "? ", "---\n"]
#: Longest time for one file, in seconds, and growth of memory over all of them, in MiB.
SLOWEST, MEMORY = 30.0, 300
_SUSPECT = 0.1  # seconds on the wall that make a file worth measuring


@dataclass
class Outcome:
    """What a run of the fuzzer has seen."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    grown: float = 0.0  # MiB
    faults: list[str] = field(default_factory=list)
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def good(self) -> bool:
        return not self.faults and self.slowest < SLOWEST and self.grown < MEMORY


def random_bytes(draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return draw.randbytes(draw.randrange(400))
    characters = "abz019 \n\t:-[]{}#&*!|>'\"%@`,?\x00\x07\u0085\u2028\ufeff\ud7ff\U0001f600é"
    return "".join(draw.choices(characters, k=draw.randrange(400))).encode()


def mutated(draw: random.Random) -> bytes:
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.randrange(12))
        change = draw.randrange(5)
        if change == 0:
            data[at:to] = draw.randbytes(draw.randrange(4))
        elif change == 1:
            data[at:at] = draw.choice(WORDS).encode()
        elif change == 2:
            data[at:at] = data[at:to] * draw.randrange(1, 4)
        elif change == 3:
            del data[at:to]
        else:
            other = draw.choice(SEEDS)
            start = draw.randrange(len(other) + 1)
            data[at:to] = other[start : start + 30]
    return bytes(data)


def _mostly_small(draw: random.Random, small: list[int], large: list[int]) -> int:
    """What is large takes long to read, so it comes once in a hundred times."""
    return draw.choice(large if draw.random() < 0.01 else small)


def structured(draw: random.Random) -> bytes:
    shape = draw.randrange(6)
    if shape == 0:  # deep
        opening, closing = draw.choice(["[]", "{}", ("- ", ""), ("a: ", ""), ("? ", ""), ("{a: ", "}"), ("[[", "]]")])
        depth = _mostly_small(draw, [5, 23, 24, 25, 26, 100], [1000, 10000])
        return f"version: 1\nrules: {opening * depth}{closing * depth}".encode()
    if shape == 1:  # wide
        count = _mostly_small(draw, [3, 10], [100, 800])
        return (
            "version: 1\nrules:\n" + "".join(f"  - {{id: r{i}, match: {{nth: {i}}}}}\n" for i in range(count))
        ).encode()
    if shape == 2:  # anchors that refer to one another
        lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
        return "\n".join(lines).encode()
    if shape == 3:  # patterns
        pattern = "".join(
            draw.choices(["re:", "(a+)+", "**", ".", "*", "a{9999}", "(?P<x>", ")", "\\1", "[", "(" * 60], k=6)
        )
        return f"version: 1\nrules:\n  - {{id: r, match: {{owner: '{pattern}'}}}}".encode()
    if shape == 4:  # long scalars
        return b"version: " + draw.choice([b"1", b"9", b"-", b"a", b"1."]) * _mostly_small(
            draw, [10, 500], [5000, 140000]
        )
    return "".join(draw.choice(WORDS) + draw.choice(GLUE) for _ in range(draw.randrange(60))).encode()


MAKERS: tuple[Callable[[random.Random], bytes], ...] = (random_bytes, mutated, structured)


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The same files for the same seed."""
    draw = random.Random(seed)
    for number in range(count):
        maker = MAKERS[number % len(MAKERS)]
        yield maker.__name__, maker(draw)


def fuzz(count: int, seed: int = 0) -> Outcome:
    """Feed `count` files to the loader."""
    outcome = Outcome()
    start = _memory()
    for kind, data in cases(count, seed):
        outcome.cases += 1
        began = time.perf_counter()
        try:
            Rules.from_text(data, "fuzz.yaml")
            outcome.accepted += 1
            outcome.kinds[kind] += 1
        except RulesError as error:
            outcome.refused += 1
            if not str(error).strip():
                outcome.faults.append(f"an empty message for {data[:200]!r}")
        except Exception as error:  # noqa: BLE001 - any other exception is what is looked for, and each is told
            outcome.faults.append(f"{type(error).__name__}: {error} for {data[:200]!r}")
        if time.perf_counter() - began > max(_SUSPECT, outcome.slowest):  # or the machine was busy
            outcome.slowest = max(outcome.slowest, _seconds(data))
    outcome.grown = _memory() - start
    return outcome


def _seconds(data: bytes) -> float:
    """What one file takes of the processor."""
    began = time.process_time()
    with contextlib.suppress(RulesError):
        Rules.from_text(data, "fuzz.yaml")
    return time.process_time() - began


def _memory() -> float:
    """The most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main(arguments: list[str]) -> int:
    count, seed = int(arguments[0]) if arguments else 1000, int(arguments[1]) if len(arguments) > 1 else 0
    began = time.perf_counter()
    outcome = fuzz(count, seed)
    accepted = ", ".join(f"{number} of {kind}" for kind, number in sorted(outcome.kinds.items())) or "none"
    sys.stdout.write(
        f"{outcome.cases} files in {time.perf_counter() - began:.0f} s: {outcome.refused} refused with our own error, "
        f"{outcome.accepted} accepted ({accepted}); slowest {outcome.slowest:.2f} s, memory grew by "
        f"{outcome.grown:.0f} MiB\n"
    )
    for fault in outcome.faults[:20]:
        sys.stdout.write(f"FAULT {fault}\n")
    sys.stdout.write(f"{len(outcome.faults)} faults\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
