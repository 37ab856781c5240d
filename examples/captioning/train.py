"""Fine-tune a BLIP captioning model of `transformers` with RegBN in its cross-attentions, by the library's own Trainer:

    python examples/captioning/train.py

The model is tiny and starts from random weights, and the pictures are squares in a corner ("red upper left"), so that
nothing is downloaded and a minute on a CPU is enough; with `from_pretrained` and your own data the lines are the same.
Afterwards the model is saved beside its recipe, loaded into a fresh instance, and asked for the same captions again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BlipConfig, BlipForConditionalGeneration, Trainer, TrainingArguments

from regbn_surgery import RegBN, load_regbn, regbnify, save_regbn

RULES = Path(__file__).with_name("rules.yaml")
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.1, 0.2, 1.0), "yellow": (0.9, 0.9, 0.1)}
ROWS, COLUMNS = ("upper", "lower"), ("left", "right")
WORDS = ("<pad>", "<start>", "<end>", *COLOURS, *ROWS, *COLUMNS)
PAD, START, END = 0, 1, 2


class Squares(Dataset[dict[str, Tensor]]):
    """Pictures [3, 32, 32] of one square in a corner, with noise, and their captions of three words."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.3 * torch.rand(size, 3, 32, 32, generator=generator)
        captions = []
        for image in self.images:
            colour, row, column = (int(torch.randint(n, (), generator=generator)) for n in (len(COLOURS), 2, 2))
            top, left = 4 + 16 * row, 4 + 16 * column
            image[:, top : top + 8, left : left + 8] += (
                0.7 * torch.tensor(list(COLOURS.values())[colour])[:, None, None]
            )
            words = (list(COLOURS)[colour], ROWS[row], COLUMNS[column])
            captions.append([START, *map(WORDS.index, words), END])
        self.captions = torch.tensor(captions)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        caption = self.captions[index]
        return {"pixel_values": self.images[index], "input_ids": caption, "labels": caption}


def build() -> BlipForConditionalGeneration:
    """A BLIP of 64 channels and two layers a side, with random weights."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.1,  # the default is for hundreds of channels: so few would hardly move
    }
    special = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "sep_token_id": END}
    text = {**tower, **special, "vocab_size": len(WORDS), "max_position_embeddings": 8, "encoder_hidden_size": 64}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, label_smoothing=0.0))


@torch.no_grad()
def captions_of(model: BlipForConditionalGeneration, images: Tensor) -> list[str]:
    """What the model says to each picture, greedily, with its key-value cache."""
    tokens = model.eval().generate(images, max_new_tokens=4, do_sample=False)
    return [" ".join(WORDS[token] for token in row if token > END) for row in tokens.tolist()]


def accuracy(model: BlipForConditionalGeneration, data: Squares) -> float:
    """The share of captions with all words right."""
    wanted = [" ".join(WORDS[token] for token in row if token > END) for row in data.captions.tolist()]
    said = captions_of(model, data.images)
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / len(data)


def train(model: BlipForConditionalGeneration, data: Squares, steps: int, folder: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=20,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    Trainer(model, arguments, train_dataset=data).train()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="keep the trained model here (default: a folder that goes away)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    data, unseen = Squares(2048, seed=0), Squares(256, seed=1)

    example = {"pixel_values": data.images[:4], "input_ids": data.captions[:4]}
    model = regbnify(build(), RULES, example)  # still a BlipForConditionalGeneration
    regbns = {name: module for name, module in model.named_modules() if isinstance(module, RegBN)}
    for name, module in regbns.items():
        print(f"{name}: {module.extra_repr()}")

    before = accuracy(model, unseen)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.out or Path(spare)
        train(model, data, options.steps, folder)
        after = accuracy(model, unseen)
        print(f"captions of unseen pictures with all words right: {before:.0%} before, {after:.0%} after training")
        print("RegBN took", ", ".join(f"{int(module.num_steps)} steps" for module in regbns.values()))

        save_regbn(model, folder)  # config.json and model.safetensors as ever, and regbn.json
        again = load_regbn(BlipForConditionalGeneration.from_pretrained(folder), folder)
    same = captions_of(again, unseen.images) == captions_of(model, unseen.images)
    print(f"loaded into a fresh instance: {'the same captions' if same else 'OTHER captions'}")
    return {"before": before, "after": after, "same": same, "steps": [int(m.num_steps) for m in regbns.values()]}


if __name__ == "__main__":
    main()
