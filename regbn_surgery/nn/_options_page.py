"""The reference of RegBN's options as `docs/options.md`, from the descriptions and defaults that the code has.

`python -m regbn_surgery.nn._options_page > docs/options.md` writes it; a test compares it with the code.
"""

from __future__ import annotations

import json
from dataclasses import fields

from .options import CHOICES, DOCS, RegBNOptions

#: What the experiments of docs/results.md found for strong constraints; docs/regbn.md has the same sentence.
END_TO_END = "trained end to end, `fixed` 0.1 and `gcv` cost a head on both sides 4 to 7 points of accuracy"
#: What to begin with, and why: an option, its value for the rules file, the reason.
START = (
    ("centre", True, "subtract the means before the fit, so that no mean of g gets into f; `init` writes it, and all "
     "presets have it"),
    ("normalize_output", False, "in a pretrained model: its outputs then stay as they are until the first training "
     "step. When training from scratch leave it at true"),
    ("constraint", "gcv", "where `diagnose` finds several shared directions, as preprocessing or before a part that "
     "sees f' alone: `smoother`, the default, takes about one. Measure it against `smoother` and the norms alone "
     f"(`sweep`): {END_TO_END} ([results](results.md))"),
    ("correct_start", True, "in short trainings (fewer than about 150 steps): the running projection starts at zero"),
    ("affine", True, "if the layers behind expect features with a learned scale, as after BatchNorm with weights"),
)  # fmt: skip
_GROUPS = {
    "What is removed": ("constraint", "lam", "lam_scale", "centre", "sigma_THR", "sigma_MIN", "residual"),
    "Norms around it": ("normalize_input", "normalize_output", "affine"),
    "The running projection": ("momentum", "beta1", "beta2", "correct_start", "steps_per_epoch", "step_size"),
    "Where and how it is applied (keys of the rule itself)": ("reduce", "fit", "replace"),
    "Size and cost": ("projection", "rank", "form", "max_dense_gib"),
    "Training": ("lambda_grad", "sync", "verbose"),
}


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Options of RegBN",
        "",
        "<!-- Written by `python -m regbn_surgery.nn._options_page > docs/options.md`; a test compares it. -->",
        "",
        "f is the features that are normalised, g those that they are normalised against, W the projection that",
        "predicts f from g, K = g g^T over the samples of a batch. Options stand under `regbn:` in a rules file, and",
        "are keyword arguments of `RegBN`.",
        "",
        "## Where to start",
        "",
        "Begin with `regbn: {centre: true}`, measure with `regbn-surgery diagnose`, and change one option at a time.",
        "",
        "| option | when and why |",
        "| --- | --- |",
    ]
    lines += [f"| `{name}: {_shown(value)}` | {why} |" for name, value, why in START]
    defaults = {entry.name: entry.default for entry in fields(RegBNOptions)}
    for title, names in _GROUPS.items():
        lines += ["", f"## {title}", "", "| option | default | what it does |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | `{_shown(defaults[name])}` | {_meaning(name)} |" for name in names]
    return "\n".join(lines) + "\n"


def _meaning(name: str) -> str:
    text = DOCS[name].replace("|", "\\|")
    choices = CHOICES.get(name)
    return f"{text} (one of {', '.join(f'`{choice}`' for choice in choices)})" if choices else text


def _shown(value: object) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
