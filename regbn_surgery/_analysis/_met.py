"""Records of a meeting: the operands of a call with what they carry, and the call at which their homes meet."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._trace import Call, TensorInfo
from .._types import Kind
from ._lineage import Home, Lineage


@dataclass(frozen=True)
class Met:
    """A tensor operand of an operation, with what it carried at that moment."""

    position: int  # among the operation's tensor operands
    info: TensorInfo
    lineage: Lineage

    @property
    def home(self) -> Home:
        return self.lineage.home


@dataclass
class Meeting:
    """A call at which incomparable homes meet, while the run is still being followed."""

    op: Call
    kind: Kind
    operands: tuple[Met, ...]
    home: Home
    note: str = ""
    gate: int | None = None  # position of the operand that only modulates the others
    real: bool = True  # a concatenation waits until something mixes its parts
    level: str = ""
    outer: bool = False  # an outer sum or product: each operand is stretched along the other's axes
    more: list[tuple[Call, tuple[Met, ...]]] = field(default_factory=list)  # calls that belong to the same point

    def all_operands(self) -> list[Met]:
        """Those of every call that belongs to it, scores left out."""
        operands = list(self.operands)
        for _, more in self.more:
            operands.extend(
                met for met in more if met.lineage.axes is None and all(met.info.uid != m.info.uid for m in operands)
            )
        return operands
