"""What the surgery costs: in each call of a rewritten model beside RegBN itself, and once, when `regbnify` does it.

python benchmarks/surgery.py                 # both tables
python benchmarks/surgery.py --only calls    # what is added to a call
python benchmarks/surgery.py --only once     # `regbnify` against `inspect`, on CLIP ViT-B/32

A call: RegBN's own computation is replaced by one that hands f and g back. The rewritten model is then held to the
same model with that computation written in by hand. Both run in turn, many times; the smallest times count. The tables
are written in Markdown, for docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inspect_models import CLOCKS, clip
from torch import Tensor, nn

from regbn_surgery import Rules, inspect, regbnify
from regbn_surgery._surgery import operations_of, repeat
from regbn_surgery._surgery._site import sites_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "pmr"))
from model import TwoBranchClassifier

Clock = Callable[[], float]
Pair = tuple[Tensor, Tensor]
RULES = {
    "version": 1,
    "modalities": {"gray": {"inputs": ["gray"]}, "colored": {"inputs": ["colored"]}},
    "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "gray", "against": "colored"}],
}

CLIP_RULES = {
    "version": 1,
    "modalities": {"text": {"inputs": ["input_ids", "attention_mask"]}, "image": {"inputs": ["pixel_values"]}},
    "rules": [{"id": "r", "match": {"kind": "similarity"}, "normalize": "text", "against": "image"}],
}


# -- models -----------------------------------------------------------------------------------------------------------


def through(f: Tensor, g: Tensor, *_: Any, **__: Any) -> Pair:
    """What stands in for RegBN's computation."""
    return f, g


class Through(nn.Module):
    """The same as a module, as somebody would write RegBN in by hand."""

    def forward(self, f: Tensor, g: Tensor) -> Pair:
        return f, g


class Joined(nn.Module):
    """The owner of the fusion where that is a module of its own, so that a hook serves."""

    def forward(self, gray: Tensor, colored: Tensor) -> Tensor:
        return torch.cat((gray, colored), dim=1)


class TwoLinears(nn.Module):
    """The smallest two-branch model: its own forward takes a few microseconds for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gray_branch = nn.Linear(16, 8)
        self.colored_branch = nn.Linear(16, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, gray: Tensor, colored: Tensor) -> Tensor:
        return self.head(torch.cat((self.gray_branch(gray), self.colored_branch(colored)), dim=1))


def with_joined(base: type[nn.Module]) -> nn.Module:
    """The model with the concatenation in a module of its own."""

    class WithJoined(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.joined = Joined()

        def forward(self, gray: Tensor, colored: Tensor) -> Any:
            return self.head(self.joined(self.gray_branch(gray), self.colored_branch(colored)))

    return WithJoined()


def by_hand(base: type[nn.Module], joined: bool) -> nn.Module:
    """The model with `Through` where RegBN goes."""

    class ByHand(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.regbn = Through()
            self.joined = Joined()

        def forward(self, gray: Tensor, colored: Tensor) -> Any:
            f, g = self.regbn(self.gray_branch(gray), self.colored_branch(colored))
            return self.head(self.joined(f, g) if joined else torch.cat((f, g), dim=1))

    return ByHand()


def rewritten(base: type[nn.Module], way: str, inputs: Pair) -> nn.Module:
    """The model with RegBN put in by one way, its computation replaced by `through`."""
    model = with_joined(base) if way == "hook" else base()
    made = regbnify(model, RULES, inputs)
    if way == "mode":
        operations = operations_of(made)
        made = base()
        repeat(made, operations, False, {operation.host: "measured" for operation in operations})
    for site in sites_of(made):
        site.regbn.forward = through  # type: ignore[method-assign]
    return made


MODELS: dict[str, tuple[type[nn.Module], Pair]] = {
    "two `nn.Linear`": (TwoLinears, (torch.randn(4, 16), torch.randn(4, 16))),
    "examples/pmr/model.py": (TwoBranchClassifier, (torch.rand(4, 1, 28, 28), torch.rand(4, 3, 28, 28))),
}


# -- a call -----------------------------------------------------------------------------------------------------------


def smallest(models: list[nn.Module], inputs: Pair, rounds: int, calls: int, clock: Clock) -> list[float]:
    """The time of one call of each model: of those in one round the mean, of the rounds the smallest. In seconds."""
    best = [float("inf")] * len(models)
    for _ in range(rounds):
        for i, model in enumerate(models):
            start = clock()
            for _ in range(calls):
                model(*inputs)
            best[i] = min(best[i], (clock() - start) / calls)
    return best


def call_rows(rounds: int, clock: Clock) -> list[tuple[str, str, str, float, float, float]]:
    """For each model, way and mode: the original, by hand and rewritten, in microseconds."""
    rows = []
    for name, (base, inputs) in MODELS.items():
        calls = 50 if base is TwoLinears else 5  # short rounds, so that others leave some of them alone
        for way in ("hook", "source", "mode"):
            models = [base(), by_hand(base, way == "hook"), rewritten(base, way, inputs)]
            for training in (False, True):
                for model in models:
                    model.train(training)
                gc.collect()
                with torch.set_grad_enabled(training):
                    smallest(models, inputs, 2, calls, clock)  # the first calls of everything are slower
                    original, hand, ours = (1e6 * s for s in smallest(models, inputs, rounds, calls, clock))
                rows.append((name, way, "train" if training else "eval", original, hand, ours))
    return rows


def call_table(rows: list[tuple[str, str, str, float, float, float]]) -> str:
    lines = [
        "| model | way | mode | original µs | by hand µs | rewritten µs | added µs | added / original |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, way, mode, original, hand, ours in rows:
        lines.append(
            f"| {name} | {way} | {mode} | {original:.1f} | {hand:.1f} | {ours:.1f} | {ours - hand:.1f} | "
            f"{(ours - hand) / original:.2f} |"
        )
    return "\n".join(lines)


# -- once -------------------------------------------------------------------------------------------------------------


def once_table(rounds: int, clock: Clock) -> str:
    """`inspect` and `regbnify` in turn; the smallest of each."""
    torch.manual_seed(0)
    model, example = clip()
    model.eval()
    rules = Rules.load(CLIP_RULES)
    looked, done = [], []
    for _ in range(rounds):
        for times, work in ((looked, inspect), (done, lambda m, e: regbnify(m, rules, e))):
            gc.collect()
            start = clock()
            work(model, example)
            times.append(clock() - start)
    first, second = min(looked), min(done)
    return "\n".join([
        "| model | inspect s | regbnify s | (regbnify - 1 s) / inspect | a second on each |",
        "| --- | --- | --- | --- | --- |",
        f"| `{type(model).__name__}` (ViT-B/32) | {first:.2f} | {second:.2f} | {(second - 1) / first:.2f} | "
        f"{', '.join(f'{(b - 1) / a:.2f}' for a, b in zip(looked, done, strict=True))} |",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("calls", "once"))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=300, help="of calls; `regbnify` is done a hundredth as often")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    if options.only != "once":
        print(call_table(call_rows(options.rounds, clock)))
    if options.only != "calls":
        print(once_table(max(options.rounds // 100, 1), clock))


if __name__ == "__main__":
    main()
