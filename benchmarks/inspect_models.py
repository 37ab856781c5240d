"""How long `inspect` takes on models of real size, as multiples of the eager runs of the same batches.

python benchmarks/inspect_models.py                  # every model below, each in a process of its own
python benchmarks/inspect_models.py clip blip        # some of them
python benchmarks/inspect_models.py --clock cpu      # processor time, on a machine that others use too

The models are `transformers` models built from their default configurations with random weights; those marked "meta"
are built without weights and inspected by their shapes. The table is written in Markdown, for docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regbn_surgery import Inputs, inspect

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Example = Callable[[int], Inputs]


def _ids(batch: int, length: int, low: int = 10, high: int = 1000) -> torch.Tensor:
    return torch.randint(low, high, (batch, length), generator=torch.Generator().manual_seed(batch))


def _pixels(batch: int, side: int) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def _text_and_image(model: nn.Module, side: int, length: int = 16, **more: Any) -> tuple[nn.Module, Example]:
    def example(batch: int) -> Inputs:
        ids = _ids(batch, length)
        return Inputs(input_ids=ids, pixel_values=_pixels(batch, side), attention_mask=torch.ones_like(ids), **more)

    return model, example


def clip() -> tuple[nn.Module, Example]:
    from transformers import CLIPConfig, CLIPModel

    return _text_and_image(CLIPModel(CLIPConfig()), 224)


def siglip() -> tuple[nn.Module, Example]:
    from transformers import SiglipConfig, SiglipModel

    return _text_and_image(SiglipModel(SiglipConfig()), 224)


def blip() -> tuple[nn.Module, Example]:
    from transformers import BlipConfig, BlipForConditionalGeneration

    return _text_and_image(BlipForConditionalGeneration(BlipConfig()), 384)


def vilt() -> tuple[nn.Module, Example]:
    from transformers import ViltConfig, ViltModel

    return _text_and_image(ViltModel(ViltConfig()), 384)


def git() -> tuple[nn.Module, Example]:
    from transformers import GitConfig, GitForCausalLM

    return _text_and_image(GitForCausalLM(GitConfig()), 224)


def lxmert() -> tuple[nn.Module, Example]:
    from transformers import LxmertConfig, LxmertModel

    def example(batch: int) -> Inputs:
        return Inputs(
            input_ids=_ids(batch, 16), visual_feats=torch.randn(batch, 36, 2048), visual_pos=torch.rand(batch, 36, 4)
        )

    return LxmertModel(LxmertConfig()), example


def whisper() -> tuple[nn.Module, Example]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    def example(batch: int) -> Inputs:
        return Inputs(input_features=torch.randn(batch, 80, 3000), decoder_input_ids=_ids(batch, 12))

    return WhisperForConditionalGeneration(WhisperConfig()), example


def clip_large_on_meta() -> tuple[nn.Module, Example]:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "patch_size": 14, "projection_dim": 768}  # fmt: skip
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    return _text_and_image(model, 224)


def llava_7b_on_meta() -> tuple[nn.Module, Example]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig())

    def example(batch: int) -> Inputs:
        ids = _ids(batch, 20 + 576)
        ids[:, 5 : 5 + 576] = model.config.image_token_id
        return Inputs(input_ids=ids, pixel_values=_pixels(batch, 336), attention_mask=torch.ones_like(ids))

    return model, example


MODELS: dict[str, Callable[[], tuple[nn.Module, Example]]] = {
    "clip": clip,
    "siglip": siglip,
    "blip": blip,
    "vilt": vilt,
    "git": git,
    "lxmert": lxmert,
    "whisper": whisper,
    "clip_large_on_meta": clip_large_on_meta,
    "llava_7b_on_meta": llava_7b_on_meta,
}


def eager_seconds(model: nn.Module, example: Example, clock: Callable[[], float]) -> float:
    """The runs that `inspect` makes, without it: evaluation at two batch sizes and training at the smaller one."""
    total = 0.0
    for training, batch in ((False, 2), (False, 3), (True, 2)):
        model.train(training)
        inputs = example(batch)
        with torch.set_grad_enabled(training):
            start = clock()
            model(*inputs.args, **inputs.kwargs)
            total += clock() - start
    model.eval()
    return total


def measure(name: str, clock_name: str) -> dict[str, Any]:
    """One row of the table."""
    clock = CLOCKS[clock_name]
    torch.manual_seed(0)
    model, example = MODELS[name]()
    model.eval()
    meta = next(model.parameters()).is_meta
    row: dict[str, Any] = {"model": name, "class": type(model).__name__}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    if not meta:
        eager_seconds(model, example, clock)  # the first call of everything is slower
        row["eager"] = eager_seconds(model, example, clock)
    gc.collect()
    start = clock()
    found = inspect(model, example)
    row["inspect"] = clock() - start
    row["points"] = len(found.fusion_points)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | parameters | points | eager runs | inspect | (inspect - 1 s) / eager | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        eager = row.get("eager")
        ratio = "" if eager is None else f"{max(row['inspect'] - 1, 0) / eager:.2f}"
        shown = "no weights" if eager is None else f"{eager:.2f} s"
        lines.append(
            f"| `{row['class']}` ({row['model']}) | {row['parameters'] / 1e6:.0f} M | {row['points']} | {shown} | "
            f"{row['inspect']:.2f} s | {ratio} | {row['peak_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        print(json.dumps(measure(options.models[0], options.clock)))
        return
    unknown = sorted(set(options.models) - set(MODELS))
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(MODELS)}")
    rows = []
    for name in options.models or MODELS:  # a process each, so that the peak is its own
        command = [sys.executable, __file__, name, "--row", "--clock", options.clock, "--threads", str(options.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name}: {rows[-1]['inspect']:.1f} s", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
