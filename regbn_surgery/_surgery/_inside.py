"""Where the rewritten model is: the module itself, or the only one inside a wrapper (PEFT's, DDP, `torch.compile`).

What reads a rewritten model looks inside by itself. What changes it does so, too, unless the wrapper has taken note of
the parameters that would change.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .._errors import RewriteError
from ..nn import RegBN
from ._guard import RECORD
from ._operations import Operation
from ._site import RegBNSite

#: Wrappers that keep a list of the parameters (DDP), or hold them in a form of their own (FSDP).
_KEEPS_A_LIST, _SHARDS = "DistributedDataParallel", "FullyShardedDataParallel"
#: How many models are listed.
_NAMED = 6


def operations_of(model: nn.Module) -> tuple[Operation, ...]:
    """What `perform` has put into `model`, as plain data; empty where it carries no RegBN."""
    found: tuple[Operation, ...] = model.__dict__.get(RECORD, ())
    return found


def rewritten_inside(model: nn.Module) -> Mapping[str, nn.Module]:
    """The rewritten models in `model` by path, "" for itself; what is inside another one does not count."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():  # a wrapper comes before what it holds
        inner = any(path.startswith(f"{above}.") or not above for above in found)
        if not inner and operations_of(module):
            found[path] = module
    return found


def the_rewritten(model: nn.Module, so: str = "") -> nn.Module:
    """The model that `regbnify` has rewritten: `model`, or the only such one inside it.

    Raises:
        RewriteError: where there is none, or several; `so` is what follows from it.
    """
    found = rewritten_inside(model)
    if len(found) != 1:
        raise RewriteError(no_regbn(model, so))
    return next(iter(found.values()))


def the_rewritten_to_change(model: nn.Module, call: str, so: str = "") -> nn.Module:
    """The same, for a call that changes RegBN's parameters.

    Raises:
        RewriteError: also where a wrapper in between goes by the parameters that it was made with.
    """
    inner = the_rewritten(model, so)
    (path,) = rewritten_inside(model)
    parts = path.split(".") if path else []
    for count in range(len(parts)):
        around = model.get_submodule(".".join(parts[:count]))
        names = {base.__name__ for base in type(around).__mro__}
        if _SHARDS in names or (_KEEPS_A_LIST in names and _has_parameters(inner)):
            raise RewriteError(
                f"{type(around).__name__} goes by the parameters that it was made with, and {call} changes which "
                f"of RegBN's there are or are trained. Call {call}(model) on the {type(inner).__name__} inside it "
                f"(`.{path}`) and wrap the result anew."
            )
    return inner


def _has_parameters(model: nn.Module) -> bool:
    sites = (module for module in model.modules() if isinstance(module, RegBNSite))
    return any(True for site in sites for _ in site.parameters())


def no_regbn(model: nn.Module, so: str = "") -> str:
    """What to say where `model` is none that `perform` has rewritten, and not one is inside; `so`: what follows."""
    name = type(model).__name__
    found = rewritten_inside(model)
    if not found:
        by_hand = any(isinstance(module, RegBN) for module in model.modules())
        hint = " Its RegBN was put in by hand: the model's own state_dict() has all of it." if by_hand else ""
        return f"{name} carries no RegBN put in by regbnify{so}.{hint}"
    places = ", ".join(f"`.{path}` ({type(module).__name__})" for path, module in list(found.items())[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{name} contains {len(found)} models with RegBN: {places}{more}. Pass one of them."


def around_regbn(model: nn.Module) -> str:
    """What to say where the rewritten model itself is to be saved, and `model` is none; perhaps it is around one."""
    found = rewritten_inside(model)
    if len(found) != 1:
        return no_regbn(model)
    ((path, inner),) = found.items()
    text = (
        f"{type(model).__name__} is around a model with RegBN ({type(inner).__name__}). save_regbn and Recipe.of take "
        f"that model alone, without what is around it: pass `.{path}`."
    )
    if callable(getattr(model, "merge_and_unload", None)):
        text += (
            " It would not write the adapters: to write the model with them merged, call "
            "save_regbn(copy.deepcopy(model).merge_and_unload(), folder); or save them by save_pretrained, with RegBN "
            "in their `modules_to_save`."
        )
    return text
