"""A trained model for use: RegBN held still, or folded into the layer behind it where that is exactly the same."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import _ops as fn
from .. import _tree
from .._adapter_copies import is_wrapper
from .._codes import coded
from .._errors import RegBNOptionError, RewriteError
from .._inputs import Inputs
from .._state import preserved
from .._user_code import warn_at_call
from ..nn import RegBN
from ..nn.fold import fold_into_linear
from ._adapters import watch_adapters_no_more
from ._arguments import own_arguments
from ._classes import uninstall
from ._compare import difference
from ._guard import ATTRIBUTE, RECORD, Guard
from ._hoist import HoistHook
from ._inside import no_regbn
from ._saving import save_recipe_no_more, save_recipe_too
from ._site import RegBNSite, sites_of

#: What a user can do where nothing could be folded.
_NEEDS = (
    "fold needs a RegBN that was trained with `normalize_output: false`, runs once in a forward pass, and returns f' "
    "and g' into one torch.cat of the two that one nn.Linear alone reads. Otherwise keep RegBN in the model: in "
    "evaluation it subtracts the running projection as it is, and `freeze(model)` holds it still in training, too"
)


def freeze(model: nn.Module, frozen: bool = True) -> nn.Module:
    """Hold every RegBN of `model` still: in training, too, the running projection is subtracted, and nothing moves it.

    Evaluation is what it was, exactly; the norms' weights, if any, need no gradient any more. Changes `model` in place
    and returns it; `frozen=False` takes it back.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`.
    """
    sites = _sites(model)
    for site in sites:
        site.frozen = frozen
        site.train(site.training)
        site.requires_grad_(not frozen)
    return model


def fold(model: nn.Module, inputs: Inputs) -> list[str]:
    """Fold RegBN into the linear layers behind it, in place, and take it out of the model; the names of those folded.

    Exact in evaluation, and for evaluation only: where f' and g' meet in one concatenation that a single `nn.Linear`
    reads, and RegBN is a linear map (`normalize_output: false`). What cannot be folded stays, with a warning.

    Raises:
        RewriteError: for a model that carries no RegBN, or none that can be folded, each with the reason.
    """
    _sites(model)
    model.eval()
    before = _run(model, inputs)
    watch = _Watch(model)
    try:
        with watch:
            _run(model, inputs)
    finally:
        watch.remove()
    folded, kept = [], []
    layers: list[tuple[nn.Linear, nn.Linear, nn.Linear]] = []  # the layer, what it is to be, what it was
    for name, site in watch.names.items():
        try:
            regbn = _foldable(site)
            linear, takes, path = watch.layer_behind(name)
            new = fold_into_linear(regbn, linear, takes, layer=f"`{path}`")  # type: ignore[arg-type]
        except (RewriteError, RegBNOptionError) as error:
            kept.append(f"{name}: {error}")
            continue
        folded.append(name)
        layers.append((linear, new, copy.deepcopy(linear)))
    if not folded:
        raise RewriteError(f"No RegBN can be folded exactly. {' | '.join(kept)}. {_NEEDS}")
    with torch.no_grad():
        for linear, new, _ in layers:
            _become(linear, new)
        for name in folded:
            watch.names[name].folded = True
        wrong = difference(before, _run(model, inputs))
        if wrong is not None:
            for linear, _, old in layers:
                _become(linear, old)
            for name in folded:
                watch.names[name].folded = False
            raise RewriteError(f"Folding would change what {type(model).__name__} computes: {wrong}")
    save_recipe_no_more(model)
    for name in folded:
        _take_out(model, watch.names[name])
    if RECORD in model.__dict__:
        save_recipe_too(model)
    else:
        watch_adapters_no_more(model)
    if kept:
        warn_at_call(coded("RB403", f"not folded: {' | '.join(kept)}"))
    return folded


def _foldable(site: RegBNSite) -> RegBN:
    """The RegBN of a site. Raises RewriteError where something else runs in its place."""
    if isinstance(site.regbn, RegBN):
        return site.regbn
    if is_wrapper(site.regbn):
        raise RewriteError("PEFT trains a copy of it: merge the adapters first (`merge_and_unload`)")
    raise RewriteError(f"{type(site.regbn).__name__} replaces RegBN here; only RegBN can be folded")


def _become(linear: nn.Linear, other: nn.Linear) -> None:
    """Take the weight and bias of another layer over, in place; a centred RegBN gives a bias where there was none."""
    linear.weight.copy_(other.weight)
    bias: Any = other.bias
    if bias is None or linear.bias is None:
        added = None if bias is None else nn.Parameter(bias.clone(), linear.weight.requires_grad)
        linear.register_parameter("bias", added)
    else:
        linear.bias.copy_(bias)


def _sites(model: nn.Module) -> list[RegBNSite]:
    sites = sites_of(model)
    if not sites or RECORD not in model.__dict__:
        raise RewriteError(no_regbn(model))
    return sites


def _run(model: nn.Module, inputs: Inputs) -> Any:
    args, kwargs = own_arguments(inputs.args, inputs.kwargs)
    with preserved(model), torch.no_grad():
        return model(*args, **kwargs)


class _Watch(TorchFunctionMode):
    """One run of the model: which calls read what a site returns, and what they make of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = {name: m for name, m in model.named_modules() if isinstance(m, RegBNSite)}
        self.results: dict[str, list[tuple[Tensor, Tensor] | Tensor]] = defaultdict(list)
        self.reads: dict[int, list[tuple[str, list[Tensor], Any, Any]]] = defaultdict(list)
        self.alive: list[Any] = []
        self.handles = [
            site.register_forward_hook(lambda module, args, output, name=name: self._note(name, output))
            for name, site in self.names.items()
        ]

    def _note(self, name: str, output: Any) -> None:
        self.results[name].append(output)
        for tensor in _tree.tensors(output):
            self.reads.pop(id(tensor), None)  # what the site itself has read does not count

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = fn.name_of(func)
        if not fn.is_silent(func, name):
            tensors = _tree.tensors((args, kwargs or {}))
            self.alive += [tensors, output]
            for tensor in {id(t): t for t in tensors}.values():
                self.reads[id(tensor)].append((name, tensors, args, output))
        return output

    def layer_behind(self, name: str) -> tuple[nn.Linear, str, str]:
        """The linear layer that reads the concatenation of what the site returns, and in which order.

        Raises:
            RewriteError: where anything else reads f', or the layer.
        """
        runs = len(self.results[name])
        if runs == 0:
            raise RewriteError(
                "it did not run on these example inputs, so the layer behind it is not known: give inputs in which "
                "both modalities meet"
            )
        if runs > 1:
            raise RewriteError(
                f"it runs {runs} times in one forward pass; only one that runs once can become a part of a layer"
            )
        result = self.results[name][0]
        if isinstance(result, Tensor):  # of a site that puts f' and g' into place itself
            raise RewriteError("f' and g' are written into one tensor at their positions, not joined by torch.cat")
        f, g = result
        joins = self.reads[id(f)]
        if len(joins) != 1 or joins[0][0] not in ("cat", "concat", "concatenate"):
            raise RewriteError("f' is used elsewhere than in one concatenation")
        _, parts, _, joined = joins[0]
        order = "fg" if parts[0] is f else "gf"
        apart = len(parts) == 2 and parts[0] is not parts[1] and all(part is f or part is g for part in parts)
        if not apart or f.dim() != 2 or joined.shape[1] != f.shape[1] + g.shape[1]:
            raise RewriteError("the concatenation is not of the two feature vectors alone")
        readers = self.reads[id(joined)]
        weight = readers[0][1][1] if len(readers) == 1 and readers[0][0] == "linear" else None
        layers = [
            (path, m) for path, m in self.model.named_modules() if isinstance(m, nn.Linear) and m.weight is weight
        ]
        if weight is None or len(layers) != 1 or len(self.reads[id(weight)]) != 1:
            raise RewriteError("the concatenation is not read by exactly one linear layer that is used nowhere else")
        path, linear = layers[0]
        return linear, order, path


def _take_out(model: nn.Module, site: RegBNSite) -> None:
    """Remove one site; a host without any more sites is the module it was."""
    gone: set[tuple[str, str]] = set()
    for path, module in model.named_modules():
        for held in (module._modules, module.__dict__):
            for name in [name for name, value in held.items() if value is site]:
                del held[name]
                gone.add((path, name))
                _forget(module, name)
    kept = tuple(op for op in model.__dict__[RECORD] if (op.host, op.planned.name) not in gone)
    if kept:
        model.__dict__[RECORD] = kept
    else:
        del model.__dict__[RECORD]
    surgeries = [module.__dict__[ATTRIBUTE] for module in model.modules() if ATTRIBUTE in module.__dict__]
    watched = {(surgery.token, local.name) for surgery in surgeries for local in surgery.sites}
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, Guard) and (hook.token, hook.site) not in watched:
                del module._forward_pre_hooks[key]


def _forget(module: nn.Module, name: str) -> None:
    surgery = module.__dict__.get(ATTRIBUTE)
    if surgery is not None:
        surgery.without(name)
        if not surgery.sites:
            uninstall(module)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, HoistHook):
            hook.specs = tuple(spec for spec in hook.specs if spec.site != name)
            if not hook.specs:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
