"""Functions of the user's code: find one behind its decorators, read its syntax tree, tell whether it has changed."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from .._errors import RewriteError
from .._trace._source import instruction_of

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class NoSourceError(RewriteError):
    """The source of a function is not at hand, or is not what runs."""


@dataclass(frozen=True)
class FunctionSource:
    """A function and its definition in the syntax tree of its file; positions in the tree are those of the file."""

    function: FunctionType
    definition: Definition
    lines: tuple[str, ...]  # of the file
    imported: tuple[str, ...]  # names

    @property
    def name(self) -> str:
        return name_of(self.function)

    @property
    def file(self) -> str:
        return self.function.__code__.co_filename

    @property
    def first(self) -> int:
        """Number of the first line, decorators included."""
        decorators = getattr(self.definition, "decorator_list", [])
        lines: list[int] = [self.definition.lineno, *(decorator.lineno for decorator in decorators)]
        return min(lines)

    @property
    def text(self) -> str:
        return "".join(self.lines[self.first - 1 : self.definition.end_lineno])

    @property
    def own_text(self) -> str:
        """The same without what else stands on its lines, of which a lambda has the fewest."""
        return ast.unparse(self.definition) if isinstance(self.definition, ast.Lambda) else self.text

    def expressions(self) -> list[ast.AST]:
        """What can be a place, in the order in which ordinals count."""
        return list(_expressions(self.definition))

    def node_at(self, code: CodeType, instruction: int) -> ast.AST:
        """The expression that an instruction of the function, or of one inside it, belongs to.

        Raises:
            NoSourceError: where the compiler left no position there, or one that fits no expression.
        """
        positions = list(code.co_positions())
        place = positions[instruction // 2] if 0 <= instruction // 2 < len(positions) else (None,) * 4
        if None in place:
            raise NoSourceError(f"{self.name} was compiled without the columns of its calls")
        line, end_line, column, end_column = place
        found = [node for node in _expressions(self.definition) if _range(node) == (line, end_line, column, end_column)]
        if not found:  # a method call over several lines begins, for the compiler, where the name of the method stands
            found = [
                node
                for node in _expressions(self.definition)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.end_lineno == line
                and (node.end_lineno, node.end_col_offset) == (end_line, end_column)
            ]
        if not found:
            raise NoSourceError(f"{self.file}:{line}: no expression of {self.name} ends where the call does")
        return found[0]

    def ordinal_of(self, node: ast.AST) -> int:
        return next(i for i, other in enumerate(_expressions(self.definition)) if other is node)


def name_of(function: FunctionType) -> str:
    return f"{function.__globals__.get('__name__', '')}:{function.__code__.co_qualname}"


def _range(node: ast.AST) -> tuple[int | None, ...]:
    return tuple(getattr(node, name, None) for name in ("lineno", "end_lineno", "col_offset", "end_col_offset"))


def _expressions(definition: ast.AST) -> Iterator[ast.AST]:
    """Expressions and augmented assignments of a function's parameters and body, outer ones first; constants are left
    out, so that a docstring does not count."""
    body = definition.body if isinstance(definition, ast.Lambda) else [definition.args, *definition.body]  # type: ignore[attr-defined]
    for part in body if isinstance(body, list) else [body]:
        for node in _walk(part):
            if isinstance(node, ast.expr | ast.AugAssign) and not isinstance(node, ast.Constant):
                yield node


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


# -- finding functions ------------------------------------------------------------------------------------------------


def behind(value: Any, wanted: Callable[[CodeType], bool]) -> FunctionType | None:
    """The function behind decorators, methods and partials whose code is wanted."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        value = todo.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            if wanted(value.__code__):
                return value
            todo += [getattr(value, "__wrapped__", None), *_contents(value)]
        elif isinstance(value, functools.partial):
            todo.append(value.func)
        elif isinstance(value, type):
            continue
        elif value is not None:
            todo += [inspect.getattr_static(value, name, None) for name in ("__func__", "__wrapped__")]
            if inspect.ismethod(value) or isinstance(value, staticmethod | classmethod):
                todo.append(value.__func__)
    return None


def _contents(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return [value for value in found if callable(value) and not isinstance(value, type)]


@dataclass(frozen=True)
class Found:
    """A function as callers know it (`outer`, with its decorators) and the one whose code runs (`inner`)."""

    outer: Any
    inner: FunctionType


def find(qualified: str, module: str, cls: type, caller: FunctionType | None) -> Found | None:
    """A function by name: a method of `cls`, or what `caller` knows by that name, or what the module has."""
    last = qualified.rsplit(".", 1)[-1]

    def wanted(code: CodeType) -> bool:
        return code.co_qualname == qualified

    candidates = [vars(base).get(last) for base in cls.__mro__]
    if caller is not None:
        candidates += [*_contents(caller), _walked(caller.__globals__.get, qualified)]
    there = sys.modules.get(module)
    if there is not None:
        candidates.append(_walked(lambda name: getattr(there, name, None), qualified))
    for outer in candidates:
        inner = None if outer is None else behind(outer, wanted)
        if inner is not None:
            return Found(getattr(outer, "__func__", outer), inner)
    return None


def within_reach(functions: Iterable[FunctionType], others: Iterable[Any], qualified: str) -> list[FunctionType]:
    """Those by that name which functions can call without knowing the name: through a global or closure variable,
    out of a table that is kept under one, or as one of `others` (attributes, say). Lambdas are mostly found so."""
    values = list(others)
    for function in functions:
        names = {name for code in (function.__code__, *_codes(function.__code__)) for name in code.co_names}
        values += [*_contents(function), *(function.__globals__.get(name) for name in names)]
    for value in list(values):
        if isinstance(value, dict | list | tuple):
            values += value.values() if isinstance(value, dict) else value
    found = (behind(value, lambda code: code.co_qualname == qualified) for value in values)
    return list({function.__code__: function for function in found if function is not None}.values())


def _walked(first: Callable[[str], Any], qualified: str) -> Any:
    name, *rest = qualified.split(".")
    value = first(name)
    for name in rest:
        value = None if value is None else inspect.getattr_static(value, name, None)
    return value


# -- reading them -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


@functools.lru_cache(maxsize=64)
def _imported(text: str) -> tuple[str, ...]:
    """The names that a file imports at its top level."""
    found: dict[str, None] = {}
    todo: list[ast.AST] = [_parsed(text)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name.split(".")[0], None) for alias in node.names)
        elif not isinstance(node, Definition | ast.ClassDef | ast.expr):
            todo += ast.iter_child_nodes(node)
    return tuple(name for name in found if name.isidentifier() and name != "__future__")


def read(function: FunctionType) -> FunctionSource:
    """The source of a function.

    Raises:
        NoSourceError: where there is none, or where the file has changed since the function was made.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = tuple(linecache.getlines(code.co_filename, function.__globals__))
    if not lines:
        raise NoSourceError(f"the source of {name_of(function)} is not available ({code.co_filename})")
    try:
        tree = _parsed("".join(lines))
    except SyntaxError as error:
        raise NoSourceError(f"{code.co_filename} cannot be read as Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, Definition) and _is_of(node, code):
            source = FunctionSource(function, node, lines, _imported("".join(lines)))
            if _instructions(compiled(node, function, source.imported)) == _instructions(code):
                return source
    raise NoSourceError(
        f"{code.co_filename}:{code.co_firstlineno} does not hold the code of {name_of(function)} that runs; "
        "was the file edited after it was imported?"
    )


def _is_of(node: Definition, code: CodeType) -> bool:
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    lines = [node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]
    return name == code.co_name and min(lines) == code.co_firstlineno


def _instructions(code: CodeType) -> tuple[Any, ...]:
    inner = tuple(_instructions(const) for const in code.co_consts if isinstance(const, CodeType))
    return code.co_code, code.co_names, code.co_varnames, inner


def compiled(
    definition: Definition, function: FunctionType, imported: tuple[str, ...], free: tuple[str, ...] = ()
) -> CodeType:
    """The code of a definition that stands in for `function`: it knows the same names from around it, and `free`.
    `imported`: the names that its file imports.

    Raises:
        NoSourceError: where Python makes something else of it.
    """
    outer = ast.parse("def _around(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.args.args = [ast.arg(name) for name in dict.fromkeys((*function.__code__.co_freevars, *free))]
    statement: ast.stmt = ast.Expr(definition) if isinstance(definition, ast.Lambda) else _undecorated(definition)
    *_, owner, _last = ["", *function.__code__.co_qualname.split(".")]
    if owner.isidentifier():  # names with two underscores in front are known by the class around them
        statement = ast.ClassDef(owner, [], [], [statement], [])
        if sys.version_info >= (3, 12):
            statement.type_params = []
        # The class itself is known inside as it was: by a global name, or from around.
        known = owner in function.__code__.co_freevars
        outer.body = [statement] if known else [ast.Global([owner]), statement]
    else:
        outer.body = [statement]
    # The compiler loads what a file imports in another way than other names.
    imports: list[ast.stmt] = [ast.Import([ast.alias(name) for name in imported])] if imported else []
    module = ast.fix_missing_locations(ast.Module([*imports, outer], []))
    flags = function.__code__.co_flags & 0x1FE0000  # the `from __future__` imports of the file
    try:
        made = compile(module, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise NoSourceError(f"{name_of(function)} cannot be compiled by itself: {error}") from error
    name = function.__code__.co_name
    found = next((code for code in _codes(made) if code.co_name == name), None)
    if found is None:
        raise NoSourceError(f"{name_of(function)} cannot be compiled by itself")
    return found


def _undecorated(definition: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    if not definition.decorator_list:
        return definition
    plain = copy.copy(definition)
    plain.decorator_list = []
    return plain


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def is_inside(inner: CodeType, outer: CodeType) -> bool:
    """Whether a code is of a function, lambda or comprehension in the text of another."""
    return inner == outer or any(code == inner for code in _codes(outer))


@functools.lru_cache(maxsize=4096)
def expression_of(code: CodeType, offset: int) -> int:
    """The ordinal, among those of the outermost function around it, of the expression that an instruction belongs to;
    -1 where the source cannot tell. A rewritten function has the positions of the original."""
    positions = list(code.co_positions())
    line, end_line, column, end_column = positions[instruction_of(code, offset) // 2]
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        tree = _parsed("".join(linecache.getlines(code.co_filename)))
        for function in _outermost(tree):
            if line is None or not function.lineno <= line <= (function.end_lineno or 0):
                continue
            for ordinal, node in enumerate(_expressions(function)):
                if (node.end_lineno, node.end_col_offset) != (end_line, end_column):  # type: ignore[attr-defined]
                    continue
                if _range(node) == (line, end_line, column, end_column) or _names_method_at(node, line):
                    return ordinal
    return -1


def _names_method_at(node: ast.AST, line: int) -> bool:
    """Whether a call of a method over several lines begins, for the compiler, at this line, where its name stands."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.end_lineno == line


def _outermost(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield node
        else:
            yield from _outermost(node)


__all__ = [
    "Found",
    "FunctionSource",
    "NoSourceError",
    "behind",
    "compiled",
    "expression_of",
    "find",
    "is_inside",
    "name_of",
    "read",
    "within_reach",
]
