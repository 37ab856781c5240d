"""Other modules at the sites of RegBN: a user's function makes one for each, and it is put in RegBN's place."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from .._errors import RewriteError
from .._types import PlannedSite
from ._site import RegBNSite
from ._surgery import explain, undone_on_error

#: From what the plan says of a site to the module that goes there.
Make = Callable[[PlannedSite], nn.Module]


def exchange(model: nn.Module, make: Make, only: Collection[str] | None = None) -> None:
    """Put what `make` returns in the place of RegBN at every site of a rewritten model (or at the paths in `only`).

    Where that fails, the surgery is undone: the model is then the original again.

    Raises:
        RewriteError: where it returns no module.
    """
    with undone_on_error(model):
        _exchange(model, make, only)


def _exchange(model: nn.Module, make: Make, only: Collection[str] | None) -> None:
    planned = {site.path: site for host in explain(model) for site in host.sites}
    made: list[tuple[RegBNSite, nn.Module]] = []
    for path, site in model.named_modules():
        if isinstance(site, RegBNSite) and (only is None or path in only):
            module: Any = make(planned[path])
            if not isinstance(module, nn.Module):
                raise RewriteError(
                    f"make returned a value of type {type(module).__name__} for `{path}`; an nn.Module is expected, "
                    "which is called with f and g, channels first, and returns (f', g') of the same shapes"
                )
            made.append((site, module))
    for site, module in made:  # only once all of them are there
        site.regbn = module.train(site.training)
        site.made = True


def made_paths(model: nn.Module) -> tuple[str, ...]:
    """The paths of the sites whose module a user's function has made."""
    return tuple(path for path, site in model.named_modules() if isinstance(site, RegBNSite) and site.made)
