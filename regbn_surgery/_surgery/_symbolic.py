"""`torch.fx.symbolic_trace` gives a host symbols in place of tensors, which RegBN would let by without a word."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

from .._errors import RegBNBypassedError


def refuse_symbols(host: nn.Module, args: Any, kwargs: Any) -> None:
    """Raises RegBNBypassedError where a host is called with symbols. A root's `*args` is one symbol as a whole."""
    if type(args) is tuple and type(kwargs) is dict:
        if not any(isinstance(value, Proxy) for value in (*args, *kwargs.values())):
            return
    elif not isinstance(args, Proxy) and not isinstance(kwargs, Proxy):
        return
    raise RegBNBypassedError(
        f"torch.fx.symbolic_trace cannot follow {type(host).__name__} with RegBN in it: RegBN identifies f and g by "
        "the calls that compute them in a real run. Use torch.export.export(model.eval(), example) for a graph with "
        "RegBN, regbn_surgery.trace(model, example) to look at one, or trace the model before regbnify."
    )
