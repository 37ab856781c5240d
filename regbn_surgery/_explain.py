"""What the surgery did to a model, as an object to print, to show in a notebook, and to take apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ._report.jsonout import hosts_to_list
from ._surgery import HostReport, no_regbn, rewritten_inside, the_rewritten
from ._surgery import explain as hosts_of
from ._surgery._classes import original_class
from ._visible import visible


@dataclass(frozen=True, repr=False)
class SurgeryReport:
    """What `regbnify` did to a model: each host that changed, with its code before and after."""

    model: str  # class name
    hosts: tuple[HostReport, ...]
    note: str = ""  # why there is nothing to report

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types."""
        return {"model": self.model, "hosts": hosts_to_list(self.hosts)}

    def __str__(self) -> str:
        from ._report.text import hosts_to_text

        return self.note or hosts_to_text(self.hosts)

    def __repr__(self) -> str:
        sites = ", ".join(site.path for host in self.hosts for site in host.sites)
        return visible(f"<SurgeryReport on {self.model}: RegBN {sites or 'nowhere'}>")

    def _repr_html_(self) -> str:
        from ._report.notebook import surgery_to_html

        return surgery_to_html(self.model, self.hosts, self.note)


def explain(model: nn.Module) -> SurgeryReport:
    """What `regbnify` did to `model`, to print, to show in a notebook, or as data.

    A wrapper with one rewritten model inside (see `verify`) stands for it. For a model without RegBN the data are
    empty, and the text says so.

    Raises:
        RewriteError: for a module with several rewritten models inside; it lists them.
    """
    if not rewritten_inside(model):
        return SurgeryReport(original_class(model).__name__, (), visible(no_regbn(model)))
    inner = the_rewritten(model)
    return SurgeryReport(original_class(inner).__name__, hosts_of(inner))
