"""A side of a site that is read before the other exists, and the calls by which that is no harm: they give a view."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._table import Path

_NAMES = (
    "getitem", "unsqueeze", "squeeze", "view", "reshape", "expand", "permute", "transpose", "flatten", "unflatten",
    "movedim", "t", "swapaxes", "narrow", "select", "view_as", "expand_as",
)  # fmt: skip
#: Names under which functions, methods and operators that give a view of a tensor are called (written out: the compiler
#: of torch 2.10 cannot strip a text).
VIEWS = frozenset(form.format(name) for name in _NAMES for form in ("{}", "{}_", "_{}", "__{}__"))


class Early:
    """A side of a site that was read before the other existed, or after such a read of the other and before the two
    meet: by the call at `path`, or by `call` where that only gives another view of it (function, operands, keyword
    arguments and result)."""

    def __init__(self, site: str, side: Tensor) -> None:
        self.site = site
        self.side = side
        self.path: Path | None = None
        self.call: tuple[Any, tuple[Any, ...], dict[str, Any], Tensor] | None = None
