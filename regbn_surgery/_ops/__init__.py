"""One table of torch's operations: what each does to values and axes, and how it joins its operands.

Everything that depends on the name of an operation stands here; the other rooms ask a row for what they need. A new
operation is a row in `_joins`, `_moves`, `_elementwise` or `_silent`.
"""

from ._calls import (
    as_operator,
    is_inplace,
    is_method,
    is_property,
    is_property_write,
    is_silent,
    name_of,
)
from ._operation import Axes, Family, Operation, Value
from ._table import ROWS, canonical, names_a_norm, operation

__all__ = [
    "ROWS",
    "Axes",
    "Family",
    "Operation",
    "Value",
    "as_operator",
    "canonical",
    "is_inplace",
    "is_method",
    "is_property",
    "is_property_write",
    "is_silent",
    "name_of",
    "names_a_norm",
    "operation",
]
