"""Which module keeps the RegBN of a site among its children.

The host itself, unless its forward goes over its children: an `nn.Sequential` of somebody's own would run RegBN as one
more layer. Then the nearest module around it that does not keeps it, and the host knows it as a plain attribute.
"""

from __future__ import annotations

import inspect
import re

import torch
from torch import nn

from .._errors import RewriteError
from ._changed import named_at
from ._site import RegBNSite, is_site

_GOES_OVER = re.compile(r"self\.(children|named_children|_modules|modules|named_modules)\b|\bin self\s*[:)\]]")


def keep(model: nn.Module, path: str, name: str, site: RegBNSite) -> None:
    """Give the host at `path` the site by the name `name`.

    Raises:
        RewriteError: where the name is taken, or nothing around the host could keep the site.
    """
    host = model.get_submodule(path)
    if hasattr(host, name):
        raise RewriteError(f"{named_at(type(host), path)} already has an attribute {name!r}; give the rule another id")
    settle(site, _device_of(model, path))  # the self-check shows where f is: there is no such check after loading
    site.train(host.training)
    if not goes_over_children(host):
        host.add_module(name, site)
        return
    keeper = _keeper(model, path)
    if keeper is not None:
        around, inner = model.get_submodule(keeper[0]), f"{name}_{keeper[1]}"
        if hasattr(around, inner):
            raise RewriteError(f"{named_at(type(around), keeper[0])} already has an attribute '{inner}'")
        around.add_module(inner, site)
        host.__dict__[name] = site
        return
    if not _is_container(host):  # perhaps it minds no further child: the self-check will tell
        host.add_module(name, site)
        return
    raise RewriteError(
        f"the forward of {named_at(type(host), path)} iterates over its own children, and RegBN would become one "
        "of them. Wrap it in another module, on which RegBN can be registered, and rewrite that one."
    )


def settle(site: RegBNSite, device: torch.device) -> None:
    """Move a site to a device on which there are values."""
    if device.type != "meta":  # the values of RegBN's own start are not to be had again
        site.to(device)


def _device_of(model: nn.Module, path: str) -> torch.device:
    """The device of the module at `path`, or of the nearest module around it that has tensors."""
    while True:
        module = model.get_submodule(path)
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
        if not path:
            return torch.device("cpu")
        path = path.rpartition(".")[0]


def kept_at(model: nn.Module, path: str, name: str) -> str:
    """The path at which `keep` will register a site."""
    keeper = _keeper(model, path) if goes_over_children(model.get_submodule(path)) else None
    return f"{path}.{name}".lstrip(".") if keeper is None else f"{keeper[0]}.{name}_{keeper[1]}".lstrip(".")


def _keeper(model: nn.Module, path: str) -> tuple[str, str] | None:
    """The nearest module around one that does not go over its children, and what is added to a name there."""
    inner = ""
    while path:
        path, _, last = path.rpartition(".")
        inner = f"{last}_{inner}" if inner else last
        if not goes_over_children(model.get_submodule(path)):
            return path, inner
    return None


def forget(module: nn.Module) -> None:
    """Take every site out of the children and attributes of `module`."""
    for held in (module._modules, module.__dict__):
        for name, value in list(held.items()):
            if is_site(value):
                del held[name]


def goes_over_children(module: nn.Module) -> bool:
    if _is_container(module):
        return True
    try:
        source = inspect.getsource(inspect.unwrap(type(module).forward))
    except (OSError, TypeError):
        return False
    return _GOES_OVER.search(source) is not None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
