"""Adapters of PEFT hold what PEFT knows of; RegBN's state belongs to them only where the user names it."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn

from .._codes import coded
from .._user_code import warn_at_call
from ._guard import RECORD
from ._site import RegBNSite

_TOLD = "_regbn_told_adapters"
#: What PEFT puts around a module of `modules_to_save`.
_WRAPPER = "ModulesToSaveWrapper"
#: How to keep RegBN's state next to adapters that leave it out, in words.
KEEP_BESIDE = (
    'torch.save({k: v for k, v in model.state_dict().items() if "regbn_" in k}, path) beside the adapters; it comes '
    "back by model.load_state_dict(torch.load(path), strict=False), with the same adapters around a model with RegBN"
)

#: How the names of a model with adapters begin, where PEFT asks for its state to pick the adapters out of it.
_ADAPTED = "base_model.model."
#: What transformers sets where a model has adapters of its own (`add_adapter`): it then saves those alone.
OWN_ADAPTERS = "_hf_peft_config_loaded"


def watch_adapters(root: nn.Module) -> None:
    """Say so, once, where adapters of the model are saved without RegBN's state; adapters of its parts as well."""
    around = {""}
    for path, module in root.named_modules():
        while isinstance(module, RegBNSite) and path:
            path = path.rpartition(".")[0]
            around.add(path)
    for path in around:
        root.get_submodule(path).register_state_dict_post_hook(_tell_adapters)  # type: ignore[no-untyped-call]


def watch_adapters_no_more(root: nn.Module) -> None:
    """Take the hooks of `watch_adapters` off."""
    for module in root.modules():
        for key, hook in list(module._state_dict_hooks.items()):
            if hook is _tell_adapters:
                del module._state_dict_hooks[key]
        module.__dict__.pop(_TOLD, None)


def _tell_adapters(root: nn.Module, state: Any, prefix: str, _: Any) -> None:
    """`root`: the rewritten model, which may be a part of what has adapters, or the part of it that has them."""
    adapted = _ADAPTED in prefix if RECORD in root.__dict__ else prefix == _ADAPTED
    if not adapted or _TOLD in root.__dict__:
        return  # the state of the model itself, or of one around it, is whole
    whole = RECORD in root.__dict__ and prefix == _ADAPTED  # else there is no model that save_regbn writes whole
    tell_left_out(root, "save_regbn(copy.deepcopy(model).merge_and_unload(), folder), or " if whole else "")


def tell_left_out(root: nn.Module, first: str = "") -> None:
    """Say so, once, where adapters of `root` are saved without the state of RegBN; `first`: the best way to keep it."""
    left = [
        path
        for path, module in root.named_modules()
        if isinstance(module, RegBNSite) and type(module.regbn).__name__ != _WRAPPER
    ]
    if not left or _TOLD in root.__dict__:
        return
    root.__dict__[_TOLD] = True
    names = sorted({f"{path.rpartition('.')[2]}.regbn" for path in left})
    text = (
        f"The adapters of this {type(root).__name__} do not hold the state of RegBN ({', '.join(left)}): what PEFT "
        f"saves comes back with RegBN untrained. Make the adapters with `modules_to_save={names}` in their config. To "
        f"keep what is trained now, call {first}{KEEP_BESIDE}."
    )
    warn_at_call(coded("RB406", text))


def out_of_configs(model: nn.Module, gone: Collection[str]) -> None:
    """Take the names of modules that are gone out of `modules_to_save` of the adapters in `model`.

    `gone`: their paths. A name that fits another module as well stays. A config may be the user's own, for other
    models, too: it is exchanged for another one, not changed.
    """
    left = [path for path, _ in model.named_modules()]
    for module in model.modules():
        configs: Any = vars(module).get("peft_config")
        for adapter, config in list(configs.items()) if isinstance(configs, dict) else ():
            names = getattr(config, "modules_to_save", None)
            if not isinstance(names, list | tuple | set):
                continue
            kept = [name for name in names if _fits(name, left) or not _fits(name, gone)]
            if len(kept) < len(names):
                configs[adapter] = other = copy.copy(config)
                other.modules_to_save = kept or None


def _fits(name: Any, paths: Collection[str]) -> bool:
    """Whether PEFT takes one of the modules for the one that a name in `modules_to_save` means."""
    return isinstance(name, str) and any(path.endswith(name) for path in paths)


def adapted_in(model: nn.Module) -> list[str]:
    """Paths of the modules that PEFT has put around those of `model` itself, whose weights have names of PEFT's then.

    Those of a PeftModel within `model` do not count: its class makes them, in a fresh instance, too.
    """
    return [
        path
        for path, module in model.named_modules()
        if _is_of_peft(module) and not any(_is_a_peft_model(model.get_submodule(above)) for above in _and_above(path))
    ]


def _and_above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _is_of_peft(module: nn.Module) -> bool:
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)


def _is_a_peft_model(module: nn.Module) -> bool:
    return _is_of_peft(module) and any(cls.__name__ == "PeftModel" for cls in type(module).__mro__)
