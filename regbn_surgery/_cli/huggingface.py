"""`hf:ClassName` and `hf:CONFIG.json`: models of `transformers` with random weights, and inputs that fit them.

Nothing is downloaded: a class is built from its default configuration, a file says all there is to know.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._rules.problems import did_you_mean
from .._spelling import listing
from .._user_code import cause_text
from .loading import ModelNotLoadedError

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Parameters from which on a model that is only looked at is built without values, on the meta device.
LARGE = 20_000_000
#: The same for `plan`, which with values sees what `show` sees (2 GB of them): causal streams, and a surgery tried out.
LARGE_FOR_PLANS = 500_000_000
_BATCH = 2
#: How transformers names weights, whole or in shards; `training_args.bin` and the like are none.
_WEIGHTS = re.compile(r"(pytorch_)?model([-.].*)?\.(safetensors|bin)")
_TEXT_LENGTH = 8


def unread_weights(spec: str) -> list[str]:
    """The files of weights that lie beside the configuration that `spec` (after `hf:`) names, and are not read."""
    path = Path(spec)
    if not (spec.endswith(".json") or path.is_dir()):
        return []
    folder = path if path.is_dir() else path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
    return [str(folder / name) for name in names if _WEIGHTS.fullmatch(name)]


def tell_of_unread_weights(spec: str) -> str | None:
    """What to say where weights lie beside the configuration, and how they are loaded; None where there are none."""
    files = unread_weights(spec)
    if not files:
        return None
    remedy = f"--checkpoint {shlex.quote(files[0])}, or " if len(files) == 1 else ""
    return (
        f"note: hf:{spec} gives the model random weights; the weights beside its configuration are not read. To load "
        f"them: {remedy}a function that returns Class.from_pretrained(folder), as MODEL"
    )


def load_pretrained_class(
    spec: str, arguments: Mapping[str, Any] | tuple[Any, ...], *, weights: bool, large: int = LARGE
) -> tuple[nn.Module, Any]:
    """Build a model from what follows `hf:`; `arguments` change its configuration.

    Returns the model and example inputs, or None for these where the configuration does not tell what they are.
    Models of `large` parameters or more are built on the meta device unless `weights`. Raises `ModelNotLoadedError`.
    """
    import torch

    if not isinstance(arguments, Mapping):
        if arguments:
            raise ModelNotLoadedError("--model-args of an `hf:` model is a JSON object: keys of its configuration")
        arguments = {}
    model_class, config = _class_and_config(spec, arguments)
    try:
        with torch.device("meta"):
            model = model_class(config)
        if weights or sum(p.numel() for p in model.parameters()) < large:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = model_class(config)
    except Exception as error:
        raise ModelNotLoadedError(f"building {model_class.__name__} failed: {cause_text(error)}") from error
    return model, example_inputs(model, config)


def _no_class(spec: str, model_type: Any) -> str:
    """What to say of a configuration that does not name its model, as one that was never saved with a model."""
    if model_type is None:
        return f"{spec!r} lacks `model_type`, so that its model is not known; transformers writes it into a config.json"
    from transformers.models.auto import modeling_auto

    tables = [table for name, table in vars(modeling_auto).items() if re.fullmatch("MODEL_.*MAPPING_NAMES", name)]
    named = [table[model_type] for table in tables if isinstance(table.get(model_type), str)]
    classes = listing(list(dict.fromkeys(named)), limit=6) if named else "its class"
    example = next((name for name in named if "For" in name), named[0] if named else "...")
    return (
        f"{spec!r} lacks `architectures`, which names the class of the model (of {model_type} there are {classes}). "
        f'Write it into the file, as in "architectures": ["{example}"]; `save_pretrained` of a model does so'
    )


def _class_and_config(spec: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise ModelNotLoadedError(
            f"`hf:{spec}` needs transformers, which is not installed: pip install 'regbn_surgery[hf]'"
        ) from error
    if spec.endswith(".json") or os.path.exists(spec):
        content = {**_read(spec), **changes}
        name = next(iter(content.get("architectures") or ()), None)
        model_type = content.pop("model_type", None)
        if name is None or model_type is None:
            raise ModelNotLoadedError(_no_class(spec, model_type))
        model_class = _find(transformers, name, spec)
    else:
        content, model_type, model_class = dict(changes), None, _find(transformers, spec, f"hf:{spec}")
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise ModelNotLoadedError(f"transformers.{model_class.__name__} is not a model class with a configuration")
    try:
        if model_type is not None:
            config = transformers.AutoConfig.for_model(model_type, **content)
        else:
            config = config_class(**content)
    except Exception as error:
        raise ModelNotLoadedError(f"the configuration of {model_class.__name__} failed: {cause_text(error)}") from error
    if getattr(config, "image_token_index", 0) is None:  # BLIP-2 leaves it open, and does not run without it
        config.image_token_index = _part(config, "text_config").vocab_size - 1
    return model_class, config


def _read(spec: str) -> dict[str, Any]:
    path = Path(spec)
    if path.is_dir():
        path = path / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotLoadedError(f"the configuration {str(path)!r} does not exist") from error
    except (OSError, ValueError) as error:
        raise ModelNotLoadedError(f"the configuration {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelNotLoadedError(f"the configuration {str(path)!r} holds a {type(content).__name__}, not an object")
    return content


def _find(transformers: Any, name: str, spec: str) -> Any:
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type):
        hint = did_you_mean(name, [key for key in dir(transformers) if key[:1].isupper()])
        raise ModelNotLoadedError(f"{spec}: transformers has no class {name!r}{hint}")
    return found


def example_inputs(model: nn.Module, config: Any) -> dict[str, torch.Tensor] | None:
    """Random inputs as the configuration describes them, or None where an input it cannot describe is needed.

    Pictures and token ids, with placeholder tokens for the pictures where the model asks for them.
    """
    import torch

    parameters = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    inputs: dict[str, torch.Tensor] = {}
    if "pixel_values" in parameters:
        size = getattr(vision, "image_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(vision, "num_channels", 3)
        inputs["pixel_values"] = torch.randn(_BATCH, channels, height, width, generator=generator)
    if "input_ids" in parameters:
        vocabulary = getattr(text, "vocab_size", None)
        if vocabulary is None:
            return None
        ids = torch.randint(3, min(vocabulary, 1000), (_BATCH, _TEXT_LENGTH), generator=generator)
        if "pixel_values" in inputs:
            ids = torch.cat([_placeholders(config, vision), ids], dim=1)
        inputs["input_ids"] = ids
        if "attention_mask" in parameters:
            inputs["attention_mask"] = torch.ones_like(ids)
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
            inputs["decoder_input_ids"] = ids.clone()
        elif "decoder_input_ids" in parameters and parameters["decoder_input_ids"].default is inspect.Parameter.empty:
            return None
    return inputs or None


def _part(config: Any, name: str) -> Any:
    return getattr(config, name, None) or config


def _placeholders(config: Any, vision: Any) -> torch.Tensor:
    """The token ids that stand for one picture: `[batch, tokens]`, none where the model does without."""
    import torch

    tokens = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
    token = next((token for token in tokens if token is not None), None)
    count = 0
    if token is not None:
        if hasattr(config, "num_query_tokens"):
            count = config.num_query_tokens
        elif hasattr(vision, "patch_size"):
            count = (vision.image_size // vision.patch_size) ** 2
    return torch.full((_BATCH, count), token or 0)
