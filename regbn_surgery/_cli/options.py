"""The options that every command with a MODEL shares, and how their values are read. Nothing slow is imported here."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .completing import complete_model

if TYPE_CHECKING:
    from torch import nn

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class TensorSpec:
    """A random tensor to make: what `--input` says. `range` is [low, high) for whole numbers."""

    shape: tuple[int, ...]
    dtype: str
    range: tuple[int, int] | None = None


@dataclass(frozen=True)
class ModelRequest:
    """Which model the command line asks for, and on which inputs; nothing is imported before `load`."""

    spec: str
    arguments: Mapping[str, Any] | tuple[Any, ...] = ()
    checkpoint: str | None = None
    inputs_from: str | None = None
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    words: tuple[str, ...] = ()  # options that say which model, inputs and modalities, each with its value

    @property
    def command(self) -> tuple[str, ...]:
        """MODEL and the options with which another command means the same model, as words of a command line."""
        return (self.spec, *self.words)

    @property
    def with_rules(self) -> tuple[str, ...]:
        """The same for a command with rules, which name the modalities themselves."""
        pairs = zip(self.words[::2], self.words[1::2], strict=True)
        return (self.spec, *(word for pair in pairs if pair[0] != "--modality" for word in pair))

    def load(
        self, *, weights: bool = False, section: Mapping[str, Any] | None = None, planning: bool = False
    ) -> tuple[nn.Module, Any]:
        """The model and its example inputs (None where nobody gives any). Runs the user's code.

        `weights` asks for values in the parameters, which a large `hf:` model else does without; a plan is of use only
        with them, so that with `planning` just a very large one does. `section` is the rules' `inputs:`, to which
        `--input` adds.
        """
        from .loading import load_request

        return load_request(self, weights=weights, section=section, planning=planning)


_WORDS = f"{__name__}.words"


def _said(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Remember the words of an option, for the command lines that a command proposes; returns the value."""
    given = value if isinstance(value, tuple) else () if value is None else (value,)
    for text in given:
        context.meta.setdefault(_WORDS, []).extend((option.opts[0], str(text)))
    return value


def _codes(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`RB114`, `RB114,RB115`, once or several times."""
    from .._codes import KINDS
    from .._rules.problems import did_you_mean

    codes = [code for value in values for code in value.replace(",", " ").split()]
    for code in codes:
        if code not in KINDS:
            raise click.BadParameter(f"no note has the code {code!r}{did_you_mean(code, KINDS)}")
    return tuple(dict.fromkeys(codes))


#: For commands that print notes; the command gets `verbose`.
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show all notes, not only the first ten.")
#: For commands that print notes or warnings; the command gets `ignore`.
ignore_option = click.option(
    "--ignore",
    multiple=True,
    metavar="CODE",
    callback=_codes,
    help="Leave out notes and warnings with this code (RB114; docs/notes.md lists them); once for each.",
)


def model_options(command: _Command) -> _Command:
    """Give a command the argument MODEL and its options; the command gets them as one `request`."""

    @click.argument("model", shell_complete=complete_model)
    @click.option(
        "--model-args",
        "arguments",
        metavar="JSON",
        callback=_arguments,
        help="Arguments for the factory or class: a JSON object of keyword arguments, or a list of positional ones.",
    )
    @click.option(
        "--checkpoint",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False),
        callback=_said,
        help="Load weights into the model (a state dict; nothing else in the file is run).",
    )
    @click.option(
        "--inputs",
        "inputs_from",
        metavar="MODULE:NAME",
        shell_complete=complete_model,
        callback=_said,
        help="Example inputs: a value, or a function of nothing or of the batch size.",
    )
    @click.option(
        "--input",
        "tensors",
        metavar="NAME=TYPE[SHAPE]",
        multiple=True,
        callback=_tensors,
        help="A random example input, in place of or beside those of the model: image=f32[8,3,32,32], or "
        "ids=int64[8,7]<100 for whole numbers below 100.",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        model: str,
        arguments: Mapping[str, Any] | tuple[Any, ...],
        checkpoint: str | None,
        inputs_from: str | None,
        tensors: Mapping[str, TensorSpec],
        **kwargs: Any,
    ) -> Any:
        words = click.get_current_context().meta.get(_WORDS, ())
        request = ModelRequest(model, arguments, checkpoint, inputs_from, tensors, tuple(words))
        if request.checkpoint is None and (request.spec or "").startswith("hf:"):
            from .huggingface import tell_of_unread_weights
            from .output import message

            told = tell_of_unread_weights(request.spec.removeprefix("hf:"))
            if told is not None:
                message(told)
        return command(*args, request=request, **kwargs)

    return wrapped  # type: ignore[return-value]


def _modalities(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    from .modalities import parse_modalities

    _said(context, option, values)
    return parse_modalities(values)


#: For commands without rules, where nothing else names the modalities. The command gets `modalities`.
modality_option = click.option(
    "--modality",
    "modalities",
    multiple=True,
    callback=_modalities,
    metavar="NAME=WHAT",
    help="Which inputs belong to which modality (once for each): image=pixel_values, a stretch of an axis as in "
    "'depth=x[:, 3:4]', or what comes out of a module, text=module:text_encoder. By default each floating or token-id "
    "input is one.",
)


#: For commands with rules. The command gets `modalities`.
rules_modality_option = click.option(
    "--modality",
    "modalities",
    multiple=True,
    callback=_modalities,
    metavar="NAME=WHAT",
    help="Which inputs belong to which modality, for rules that name none (presets): as for `inspect`.",
)


def _arguments(
    context: click.Context, option: click.Parameter, value: str | None
) -> Mapping[str, Any] | tuple[Any, ...]:
    if value is None:
        return ()
    _said(context, option, value)
    try:
        read = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is not JSON ({error}); write '{{\"width\": 32}}' or '[32]'") from error
    if isinstance(read, list):
        return tuple(read)
    if not isinstance(read, dict):
        raise click.BadParameter(f"{value!r}: a JSON object of keyword arguments or a list of positional ones")
    return read


_TENSOR = re.compile(
    r"(?P<name>[^=\s]+)=(?P<dtype>[a-z]\w*)\[(?P<shape>[\d,\s]*)\](?:<(?P<high>\d+))?", re.IGNORECASE | re.ASCII
)
_SHORT = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i8": "int8", "i16": "int16",
    "i32": "int32", "i64": "int64", "u8": "uint8", "c64": "complex64", "float": "float32", "int": "int64",
}  # fmt: skip
_DTYPES = (*_SHORT.values(), "bool")


def _tensors(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, TensorSpec]:
    """`image=f32[8,3,32,32]` and `ids=int64[8,7]<100`, once for each input."""
    out: dict[str, TensorSpec] = {}
    _said(context, option, values)
    for value in values:
        name, spec = parse_tensor(value)
        if name in out:
            raise click.BadParameter(f"{name!r} is given twice")
        out[name] = spec
    return out


def parse_tensor(text: str) -> tuple[str, TensorSpec]:
    """`ids=int64[8,7]<100` as a name and what to make. Raises `click.BadParameter` for what is none."""
    form = "write NAME=TYPE[SHAPE], as in image=f32[8,3,32,32] or ids=int64[8,7]<100"
    match = _TENSOR.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r}: {form}")
    dtype = _SHORT.get(match["dtype"].lower(), match["dtype"].lower())
    if dtype not in _DTYPES:
        raise click.BadParameter(
            f"{text!r}: {match['dtype']!r} is no type of tensor; use one of {', '.join(sorted(set(_DTYPES)))} "
            f"or the short forms {', '.join(sorted(_SHORT))}"
        )
    sizes = [size.strip() for size in match["shape"].split(",")] if match["shape"].strip() else []
    if "" in sizes:
        raise click.BadParameter(f"{text!r}: a size is missing between commas; {form}")
    whole = dtype.startswith(("int", "uint"))
    if match["high"] is not None and (not whole or int(match["high"]) < 1):
        raise click.BadParameter(f"{text!r}: '<{match['high']}' bounds whole numbers from 0, of which it leaves none")
    return match["name"], TensorSpec(
        tuple(int(size) for size in sizes), dtype, (0, int(match["high"])) if match["high"] else None
    )
