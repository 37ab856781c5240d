"""Whether a call may hand its operands over in other places than it did in the example, by its text.

`self.fuse(f, g)` always gives f first. `self.fuse(*pair)`, `self.fuse(xs[i], xs[j])` or `self.fuse({k: v for ...})`
may not, and nor may names that some line has exchanged.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ._functions import FunctionSource

#: In an argument, what may give another tensor in another call, though every name in it stays what it is.
_CHOOSES = (ast.Starred, ast.IfExp, ast.BoolOp, ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr)


def may_exchange(source: FunctionSource, ordinal: int) -> bool:
    """Whether the call at `ordinal` may give its two branches in exchanged places."""
    call = source.expressions()[ordinal]
    if not isinstance(call, ast.Call):
        return False
    others = [source.expressions()[other] for other in other_calls(source, ordinal)]
    if any(_arguments(other) != _arguments(call) for other in others):
        return True
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(keyword.arg is None for keyword in call.keywords):
        return True
    names = {node.id for value in given for node in _directly(value) if isinstance(node, ast.Name)}
    if any(_chooses(node) for value in given for node in _directly(value)):
        return True
    return any(_exchanges(node, names) for node in ast.walk(source.definition))


def other_calls(source: FunctionSource, ordinal: int) -> list[int]:
    """The ordinals of the function's other calls of what the call at `ordinal` calls."""
    nodes = source.expressions()
    called = getattr(nodes[ordinal], "func", None)
    if called is None:
        return []
    same = ast.unparse(called)
    calls = ((number, node) for number, node in enumerate(nodes) if isinstance(node, ast.Call) and number != ordinal)
    return [number for number, node in calls if ast.unparse(node.func) == same]


def _arguments(call: ast.AST) -> list[str]:
    assert isinstance(call, ast.Call), "others are told apart before"
    return [ast.unparse(value) for value in (*call.args, *call.keywords)]


def _directly(value: ast.expr) -> Iterator[ast.expr]:
    """What an argument is put together from; not what calls of layers in it are given."""
    yield value
    if isinstance(value, ast.Tuple | ast.List):
        parts = value.elts
    elif isinstance(value, ast.Dict):
        parts = value.values
    elif isinstance(value, ast.Call) and value.keywords and not value.args:  # an object of the two
        parts = [keyword.value for keyword in value.keywords]
    else:
        parts = []
    for part in parts:
        yield from _directly(part)


def _chooses(node: ast.expr) -> bool:
    by_value = isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant)
    by_name = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    return by_value or by_name or isinstance(node, _CHOOSES)


def _exchanges(node: ast.AST, names: set[str]) -> bool:
    """Whether an assignment gives one of the names what another of them was, or one of several things."""
    if not isinstance(node, ast.Assign | ast.For):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    assigned = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)} & names
    value = node.value if isinstance(node, ast.Assign) else node.iter
    if not assigned:
        return False
    if isinstance(node, ast.For) or any(_chooses(part) for part in _directly(value)):
        return True
    several = any(isinstance(target, ast.Tuple | ast.List) for target in targets)
    held = several and isinstance(value, ast.Name)  # taken out of what may have been put in in another order
    return held or any(isinstance(part, ast.Name) and part.id in names for part in _directly(value))
