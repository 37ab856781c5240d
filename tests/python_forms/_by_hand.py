"""What the oracles import: RegBN written into a source by hand, at the places that the generator knows.

The oracle marks f and g where it makes them, and gives the operands of each joining call to `join`. A mark is an
attribute of the very tensor, so that it says which tensor this is: no order of operands and no other call changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

#: The attribute of a tensor that says which side of which RegBN modules it is.
MARK = "_side_of_regbn"


@dataclass
class Log:
    """What happened at the marked places of the oracle since the last `clear`."""

    made: list[str] = field(default_factory=list)
    ran: int = 0
    idle: set[int] = field(default_factory=set)  # RegBN modules of which a side was made, and that have not run

    def clear(self) -> None:
        self.made.clear()
        self.ran = 0
        self.idle.clear()

    @property
    def may_warn(self) -> bool:
        """Say whether a RegBN did not run in a call that made one of its sides, or none ran at all."""
        return not self.ran or bool(self.idle)

    @property
    def must_warn(self) -> bool:
        """Say whether a call made f and no g, so that RegBN could not run."""
        return not self.ran and "f" in self.made and "g" not in self.made


LOG = Log()


def mark(tensor: Tensor, side: str, regbn: nn.Module) -> Tensor:
    """Say that `tensor` is f or g (`side`) of `regbn`, and return it."""
    setattr(tensor, MARK, (*getattr(tensor, MARK, ()), (side, regbn)))
    LOG.made.append(side)
    LOG.idle.add(id(regbn))
    return tensor


def join(*operands: Any) -> list[Any]:
    """Return the operands of a joining call, with f' and g' in place of f and g where both are among them."""
    result = list(operands)
    sides: dict[int, dict[str, int]] = {}
    modules: dict[int, nn.Module] = {}
    for index, operand in enumerate(operands):
        for side, regbn in getattr(operand, MARK, ()):
            sides.setdefault(id(regbn), {})[side] = index
            modules[id(regbn)] = regbn
    for key, found in sides.items():
        if len(found) == 2:
            f, g = found["f"], found["g"]
            result[f], result[g] = modules[key](result[f], result[g])
            LOG.ran += 1
            LOG.idle.discard(key)
    return result


def join_pairwise(function: Callable[[Any, Any], Any], operands: Iterable[Any], start: Any = None) -> Any:
    """Do what `functools.reduce` and builtin `sum` do. The whole is one joining call: f and g are among its operands in
    whatever order they are added."""
    items = iter(join(*operands))
    value = next(items) if start is None else start
    for item in items:
        value = function(value, item)
    return value
