"""What `--modality` says: inputs, stretches of inputs, or outputs of modules, as reports print them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import click

_FORM = (
    "write NAME=INPUT, as in --modality image=pixel_values; NAME=INPUT[:, 0:8] for a slice of an axis, "
    "NAME=module:PATH for the output of a module"
)
_MODULE = "module:"
_CUT = re.compile(r"(?P<input>[^\[\]]+)\[(?P<axes>[^\[\]]*)\]")
_STRETCH = re.compile(r"(?P<start>\d*)\s*:\s*(?P<stop>\d*)")


def parse_modalities(values: Sequence[str]) -> dict[str, Any]:
    """`image=pixel_values`, given once for each modality or input, in the form that `inspect` takes.

    Raises `click.BadParameter` for what is none.
    """
    said: dict[str, list[str]] = {}
    for value in values:
        name, equals, text = value.partition("=")
        parts = list(_parts(text))
        if not equals or not name.strip() or not parts:
            raise click.BadParameter(f"{value!r}: {_FORM}")
        said.setdefault(name.strip(), []).extend(parts)
    return {name: _modality(name, parts) for name, parts in said.items()}


def _parts(text: str) -> Iterator[str]:
    """What stands between commas, those in brackets aside."""
    for part in re.split(r",(?![^\[]*\])", text):
        if part.strip():
            yield part.strip()


def _modality(name: str, parts: Sequence[str]) -> list[str] | dict[str, Any]:
    modules = [part.removeprefix(_MODULE).strip() for part in parts if part.startswith(_MODULE)]
    if modules and len(modules) < len(parts):
        raise click.BadParameter(f"{name!r} has inputs and modules: a modality has either; make it two modalities")
    if modules:
        if "" in modules:
            raise click.BadParameter(
                f"{name!r}: which module? Write {name}=module:PATH, as in text=module:text_encoder"
            )
        return {"modules": modules}
    cuts = {_cut(part)[1] for part in parts}
    if len(cuts) > 1:
        raise click.BadParameter(
            f"{name!r}: all inputs of a modality must have the same slice; found {', '.join(parts)}"
        )
    inputs = [_cut(part)[0] for part in parts]
    (cut,) = cuts
    return inputs if cut is None else {"inputs": inputs, "slice": {"dim": cut[0], "range": list(cut[1:])}}


def _cut(text: str) -> tuple[str, tuple[int, int, int | None] | None]:
    """`x[:, 0:8]` as the input and (dim, start, stop); a plain name has no stretch. `...` counts axes from the end."""
    match = None if text.startswith("re:") else _CUT.fullmatch(text)
    if match is None:
        if "[" in text and not text.startswith("re:"):
            raise click.BadParameter(f"{text!r}: {_FORM}")
        return text, None
    axes = [axis.strip() for axis in match["axes"].split(",")]
    cut = [index for index, axis in enumerate(axes) if axis not in (":", "...")]
    stretch = _STRETCH.fullmatch(axes[cut[0]]) if len(cut) == 1 else None
    if stretch is None or axes.count("...") > 1 or (not stretch["start"] and not stretch["stop"]):
        raise click.BadParameter(
            f"{text!r}: exactly one axis can be sliced, with ends counted from the front, as in x[:, 0:8], x[:, 8:] or "
            "x[..., 0:3]"
        )
    start, stop = int(stretch["start"] or 0), int(stretch["stop"]) if stretch["stop"] else None
    if stop is not None and start >= stop:
        raise click.BadParameter(f"{text!r}: the slice from {start} to {stop} is empty")
    dim = cut[0] - len(axes) if "..." in axes[: cut[0]] else cut[0]
    return match["input"].strip(), (dim, start, stop)
