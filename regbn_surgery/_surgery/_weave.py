"""Compile a function of the user's again with some of its expressions wrapped, and put it behind its decorators.

`torch.cat([a, b], 1)` becomes `_regbn.call(3, torch.cat, [a, b], 1)`; 3 is the slot of the expression. Lines and
columns stay those of the user's file, so that tracebacks, breakpoints and coverage show it.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

from ._functions import FunctionSource, NoSourceError, compiled

#: The local variable of a rewritten function that holds what its call knows; and what makes it, around the function.
LOCAL, ENTER, OPERATORS = "_regbn", "_regbn_enter", "_regbn_operators"

_BINARY = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.MatMult: "matmul", ast.Pow: "pow",
    ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor",
    ast.LShift: "lshift", ast.RShift: "rshift",
}  # fmt: skip
_UNARY = {ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert"}
_COMPARE = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}


class Operators:
    """The functions behind the operators, under names that the user's code does not shadow."""

    slice = slice
    getattr = getattr
    getitem = operator.getitem

    @staticmethod
    def setitem(target: Any, index: Any, value: Any) -> None:
        """Written out, since dynamo does not follow `operator.setitem`."""
        target[index] = value


for _name in (*_BINARY.values(), *_UNARY.values(), *_COMPARE.values()):
    setattr(Operators, _name, staticmethod(getattr(operator, _name)))
for _name in _BINARY.values():
    setattr(Operators, f"i{_name.rstrip('_')}", staticmethod(getattr(operator, f"i{_name.rstrip('_')}")))


@dataclass(frozen=True)
class Wrapping:
    """How one expression is wrapped: its slot, and whether its operands are looked at or its result alone."""

    slot: int
    operands: bool


def weave(source: FunctionSource, wrappings: Mapping[int, Wrapping], arguments: tuple[str, ...] | None) -> FunctionType:
    """The function with the expressions at the given ordinals wrapped.

    `arguments` are the parameters that a host's forward hands over when it is entered; None for a helper, which gets
    the local variable as a keyword argument instead.

    Raises:
        NoSourceError: for an expression that cannot be wrapped; it says which.
    """
    numbered = {id(node): i for i, node in enumerate(source.expressions())}
    definition = _Wrapper(source, numbered, wrappings).visit_definition()
    function = source.function
    if arguments is None:
        definition.args.kwonlyargs.append(ast.arg(LOCAL))
        definition.args.kw_defaults.append(None)
    elif isinstance(definition, ast.Lambda):
        raise NoSourceError(f"{source.name} is a lambda, which has no place for a local variable")
    else:
        definition.body.insert(_after_docstring(definition), _entry(definition, arguments))
    ast.fix_missing_locations(definition)
    free = (OPERATORS,) if arguments is None else (ENTER, OPERATORS)
    code = compiled(definition, function, source.imported, free)
    return _made(function, code)


def _made(function: FunctionType, code: CodeType) -> FunctionType:
    from ._passage import enter

    own: dict[str, Any] = {ENTER: enter, OPERATORS: Operators}
    around = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells = tuple(around[name] if name in around else CellType(own[name]) for name in code.co_freevars)
    code = code.replace(co_qualname=function.__code__.co_qualname)
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update({name: value for name, value in vars(function).items() if name != "__wrapped__"})
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


def _after_docstring(definition: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return 1 if ast.get_docstring(definition, clean=False) is not None else 0


def _entry(definition: ast.FunctionDef | ast.AsyncFunctionDef, arguments: tuple[str, ...]) -> ast.stmt:
    args = definition.args
    first = next(iter([*args.posonlyargs, *args.args]), None)
    if first is None:
        raise NoSourceError(f"{definition.name} takes its module among `*{args.vararg.arg if args.vararg else ''}`")
    own = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg) if arg is not None}
    others = args.kwarg is not None and not own.issuperset(arguments)
    arguments = tuple(name for name in arguments if name in own)
    keys: list[ast.expr | None] = [ast.Constant(name) for name in arguments]
    values: list[ast.expr] = [ast.Name(name, ast.Load()) for name in arguments]
    if others and args.kwarg is not None:
        keys.append(None)
        values.append(ast.Name(args.kwarg.arg, ast.Load()))
    call = ast.Call(ast.Name(ENTER, ast.Load()), [ast.Name(first.arg, ast.Load()), ast.Dict(keys, values)], [])
    statement = ast.Assign([ast.Name(LOCAL, ast.Store())], call)
    # On the line of `def`, so that no breakpoint of the user's is on it.
    for node in ast.walk(statement):
        if isinstance(node, ast.expr | ast.stmt):
            node.lineno = node.end_lineno = definition.lineno
            node.col_offset = node.end_col_offset = definition.col_offset
    return statement


class _Wrapper(ast.NodeTransformer):
    """A copy of the definition with its expressions wrapped; the tree of the file is shared and stays as it is."""

    def __init__(self, source: FunctionSource, numbered: Mapping[int, int], wrappings: Mapping[int, Wrapping]) -> None:
        self.source = source
        self.numbered = numbered
        self.wrappings = wrappings
        self.by_node: dict[int, Wrapping] = {}

    def visit_definition(self) -> Any:
        originals = list(ast.walk(self.source.definition))
        clone = copy.deepcopy(self.source.definition)
        for old, new in zip(originals, ast.walk(clone), strict=True):
            ordinal = self.numbered.get(id(old))
            if ordinal is not None and ordinal in self.wrappings:
                self.by_node[id(new)] = self.wrappings[ordinal]
        self._kept = clone  # ids stay unique while the nodes live
        return self.generic_visit(clone)

    def visit(self, node: ast.AST) -> Any:
        wrapping = self.by_node.get(id(node))
        if isinstance(node, ast.Assign | ast.For | ast.comprehension):
            return self._statement(node)
        visited = self.generic_visit(node)
        if wrapping is None:
            return visited
        if isinstance(node, ast.AugAssign):
            return self._augmented(node, wrapping)
        if isinstance(node, ast.expr):
            return ast.copy_location(self._wrapped(node, wrapping), node)
        raise self._cannot(node, "is no expression")

    def _wrapped(self, node: ast.expr, wrapping: Wrapping) -> ast.expr:
        slot = wrapping.slot
        if not wrapping.operands:
            return _calling("made", slot, node)
        if isinstance(node, ast.Call):
            return self._call(node, slot)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _calling("call", slot, _operator(_BINARY[type(node.op)]), node.left, node.right)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return _calling("call", slot, _operator(_UNARY[type(node.op)]), node.operand)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
            return _calling("call", slot, _operator(_COMPARE[type(node.ops[0])]), node.left, node.comparators[0])
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            return _calling("call", slot, _operator("getitem"), node.value, _index(node.slice))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            return _calling("call", slot, _operator("getattr"), node.value, ast.Constant(self._mangled(node.attr)))
        raise self._cannot(node, "has no operands of its own")

    def _call(self, node: ast.Call, slot: int) -> ast.expr:
        func = node.func
        if isinstance(func, ast.Name) and func.id == "super":
            raise self._cannot(node, "is a call of super")
        if isinstance(func, ast.Attribute):  # the receiver of a tensor's method is an operand
            name = ast.Constant(self._mangled(func.attr))
            func = ast.copy_location(_calling("method", None, func.value, name), func)
        local = ast.Attribute(ast.Name(LOCAL, ast.Load()), "call", ast.Load())
        return ast.Call(local, [ast.Constant(slot), func, *node.args], node.keywords)

    def _mangled(self, name: str) -> str:
        owner = self.source.function.__code__.co_qualname.rpartition(".")[0].rpartition(".")[2]
        private = name.startswith("__") and not name.endswith("__") and owner.isidentifier()
        return f"_{owner.lstrip('_')}{name}" if private else name

    def _augmented(self, node: ast.AugAssign, wrapping: Wrapping) -> ast.stmt:
        target, name = node.target, "i" + _BINARY[type(node.op)].rstrip("_")
        if isinstance(target, ast.Subscript) or not _is_plain(target):
            raise self._cannot(node, "changes something that would have to be looked up twice")
        read = copy.deepcopy(target)
        for inner in ast.walk(read):
            if isinstance(inner, ast.Name | ast.Attribute):
                inner.ctx = ast.Load()
        value = ast.copy_location(_calling("call", wrapping.slot, _operator(name), read, node.value), node)
        return ast.copy_location(ast.Assign([target], value), node)

    def _statement(self, node: Any) -> Any:
        """What takes tensors apart or writes into them: `a, b = t`, `for x in t`, `t[i] = y`."""
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found = next((target for target in targets if id(target) in self.by_node), None)
        source = "value" if isinstance(node, ast.Assign) else "iter"
        wrapping = self.by_node.pop(id(found)) if found is not None else None
        iterated = self.by_node.get(id(getattr(node, source))) if source == "iter" else None
        if iterated is not None and not isinstance(getattr(node, source), ast.Call):
            self.by_node.pop(id(getattr(node, source)))
            wrapping = iterated
        visited = self.generic_visit(node)
        if wrapping is None:
            return visited
        value = getattr(visited, source)
        if isinstance(found, ast.Subscript):
            if len(targets) > 1:
                raise self._cannot(node, "assigns to several targets at once")
            return self._set_item(node, found, value, wrapping.slot)
        setattr(visited, source, ast.copy_location(_calling("unpack", wrapping.slot, value), value))
        return visited

    def _set_item(self, node: ast.Assign, target: ast.Subscript, value: ast.expr, slot: int) -> list[ast.stmt]:
        kept = ast.Name("_regbn_value", ast.Store())  # Python evaluates the value before the target
        first = ast.copy_location(ast.Assign([kept], value), node)
        given = ast.Name("_regbn_value", ast.Load())
        call = _calling("call", slot, _operator("setitem"), target.value, _index(target.slice), given)
        return [first, ast.copy_location(ast.Expr(ast.copy_location(call, node)), node)]

    def _cannot(self, node: Any, why: str) -> NoSourceError:
        text = ast.get_source_segment("".join(self.source.lines), node) or ast.unparse(node)
        return NoSourceError(f"{self.source.file}:{node.lineno}: `{text}` {why}")


def _is_plain(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) or (isinstance(target, ast.Attribute) and _is_plain(target.value))


def _calling(method: str, slot: int | None, *args: ast.expr) -> ast.Call:
    local = ast.Attribute(ast.Name(LOCAL, ast.Load()), method, ast.Load())
    return ast.Call(local, [*([] if slot is None else [ast.Constant(slot)]), *args], [])


def _operator(name: str) -> ast.expr:
    return ast.Attribute(ast.Name(OPERATORS, ast.Load()), name, ast.Load())


def _index(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Slice):
        bounds = [bound if bound is not None else ast.Constant(None) for bound in (node.lower, node.upper, node.step)]
        return ast.copy_location(ast.Call(_operator("slice"), bounds, []), node)
    if isinstance(node, ast.Tuple):
        return ast.copy_location(ast.Tuple([_index(item) for item in node.elts], ast.Load()), node)
    return node


# -- behind decorators ------------------------------------------------------------------------------------------------


def behind_decorators(outer: Any, old: FunctionType, new: FunctionType) -> Any:
    """`outer` as it is, with `new` in the place of the function `old` that it wraps.

    Raises:
        NoSourceError: where a decorator keeps the function in a way of its own.
    """
    made = _exchanged(outer, old, new, set())
    if made is outer and outer is not old:
        raise NoSourceError(f"{old.__qualname__} is wrapped by a decorator that stores it in an unknown way")
    return made


def _exchanged(value: Any, old: FunctionType, new: FunctionType, seen: set[int]) -> Any:
    if value is old:
        return new
    if isinstance(value, staticmethod | classmethod):
        inner = _exchanged(value.__func__, old, new, seen)
        return value if inner is value.__func__ else type(value)(inner)
    if not isinstance(value, FunctionType) or id(value) in seen:
        return value
    seen.add(id(value))
    cells, changed = [], False
    for cell in value.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            cells.append(cell)
            continue
        inner = _exchanged(content, old, new, seen)
        changed = changed or inner is not content
        cells.append(CellType(inner) if inner is not content else cell)
    if not changed:
        return value
    made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells))
    made.__kwdefaults__, made.__qualname__ = value.__kwdefaults__, value.__qualname__
    made.__dict__.update(vars(value))
    if hasattr(value, "__wrapped__"):
        made.__dict__["__wrapped__"] = _exchanged(value.__wrapped__, old, new, set())
    made.__doc__, made.__annotations__, made.__module__ = value.__doc__, value.__annotations__, value.__module__
    return made


# -- for people -------------------------------------------------------------------------------------------------------


def rewritten_text(source: FunctionSource, wrappings: Mapping[int, Wrapping]) -> str:
    """The text of the function with the same expressions wrapped, line by line as it stands in the file."""
    nodes = source.expressions()
    edits: list[tuple[tuple[Any, Any], int, str]] = []  # position, order of those at one position, text
    for ordinal, wrapping in wrappings.items():
        node: Any = nodes[ordinal]
        start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
        if isinstance(node, ast.Call) and wrapping.operands:
            edits.append((start, ordinal, f"{LOCAL}.call({wrapping.slot}, "))
            edits.append(((node.func.end_lineno, node.func.end_col_offset), -ordinal, "\0("))
        elif isinstance(node, ast.AugAssign):
            edits.append((end, -ordinal, f"  # {LOCAL}.call({wrapping.slot}, ...)"))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            edits.append((end, -ordinal, f"\0  # {LOCAL}.call({wrapping.slot}, ...)"))
        elif isinstance(node.ctx, ast.Store) if hasattr(node, "ctx") else False:
            edits.append((end, -ordinal, f"\0  # {LOCAL}.unpack({wrapping.slot}, ...)"))
        else:
            what = "call" if wrapping.operands else "made"
            edits.append((start, ordinal, f"{LOCAL}.{what}({wrapping.slot}, "))
            edits.append((end, -ordinal, ")"))
    return _edited(source, edits)


def _edited(source: FunctionSource, edits: list[tuple[tuple[Any, Any], int, str]]) -> str:
    lines = [line.encode() for line in source.lines]
    for (line, column), _, text in sorted(edits, key=lambda edit: (edit[0], edit[1]), reverse=True):
        before, after = lines[line - 1][:column], lines[line - 1][column:]
        if text == "\0(":  # the parenthesis of a call becomes the comma behind its function
            inner = after.lstrip()[1:] if after.lstrip().startswith(b"(") else after
            empty = inner.lstrip().startswith(b")")
            lines[line - 1] = before + (b"" if empty else b", ") + inner
        elif text.startswith("\0"):
            lines[line - 1] = lines[line - 1].rstrip(b"\n") + text[1:].encode() + b"\n"
        else:
            lines[line - 1] = before + text.encode() + after
    return b"".join(lines[source.first - 1 : source.definition.end_lineno]).decode()
