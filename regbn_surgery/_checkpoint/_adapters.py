"""Folders that PEFT's adapters were saved in: they hold no model, and are loaded in another way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

#: What PEFT writes beside the weights of adapters.
CONFIG_FILE = "adapter_config.json"
#: How all names of adapters' weights begin.
_PREFIX = "base_model.model."


def adapters_instead(folder: Path, *, below: bool = False) -> str:
    """What to say of a folder that is no checkpoint of a model but of adapters around one; empty for any other.

    `below`: look in the folders in it, too, since adapters that are not called "default" lie in one of their name.
    """
    patterns = (CONFIG_FILE, f"*/{CONFIG_FILE}") if below else (CONFIG_FILE,)
    configs = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not configs:
        return ""
    found = configs[0].parent
    what = f"{folder} is a folder of PEFT adapters ({(found / CONFIG_FILE).relative_to(folder)})"
    return f"{what}, without the model that they belong to: {_how_to_load(repr(str(found)))}."


def are_adapters(names: Collection[str]) -> bool:
    """Whether weights of these names are those of adapters, or of a whole PeftModel."""
    return bool(names) and all(isinstance(name, str) and name.startswith(_PREFIX) for name in names)


def adapters_without_folder() -> str:
    """How to load weights of adapters, or of a whole PeftModel, whose folder is not known."""
    return (
        f"a PeftModel saved it, around a model that it is without: {_how_to_load('folder')}, with the folder that "
        "save_pretrained of the PeftModel has written"
    )


def _how_to_load(folder: str) -> str:
    return f"`regbnify` the base model with the same rules, then call PeftModel.from_pretrained(model, {folder})"
