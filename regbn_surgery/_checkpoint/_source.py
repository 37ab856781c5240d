"""The functions of hosts that go by graph: where they stand, and where their lines are now.

The graph of a host knows calls by file and line. In a recipe they go by function and offset instead, with the
function's text, so that the file may lie elsewhere, and comments, docstrings and whole other functions may change.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import RecipeError
from .._surgery._changed import change_of, tree_of
from .._surgery._record import FunctionText

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Located:
    """A function in a file; `first` is the line on which its text starts."""

    file: str
    function: str
    first: int
    text: str


def locate(file: str, line: int) -> Located:
    """The innermost function around a line.

    Raises:
        RecipeError: where there is no source, or the line stands outside of every function.
    """
    around = [found for found in _functions(file) if found.first <= line < found.first + found.text.count("\n")]
    if not around:
        state = "is outside every function" if _text(file) else "has no source text"
        raise RecipeError(
            f"{file}:{line} {state}, so a recipe cannot record its position. Move the code into a function in a file."
        )
    return max(around, key=lambda found: found.first)


def code_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File and first line of a function, behind its decorators."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        raise RecipeError(f"{function!r} is not a Python function, so a recipe cannot detect whether it has changed")
    return code.co_filename, code.co_firstlineno


def named(found: Located, owner: type) -> FunctionText:
    """The located function by the name of its module; where no module has its file, it is taken for `owner`'s."""
    file = os.path.abspath(found.file)
    names = (owner.__module__, *sys.modules)
    module = next((name for name in names if _file_of_module(name) == file), owner.__module__)
    return FunctionText(f"{module}:{found.function}", found.text, "")


def signature_only(cls: type) -> FunctionText:
    """Stands for a forward of torch itself, of which only the names of the arguments matter."""
    signature = str(inspect.signature(cls.forward))  # type: ignore[attr-defined]
    return FunctionText(f"{cls.__module__}:{cls.__qualname__}.forward", "", signature)


def find_again(then: FunctionText, moved: Mapping[str, str]) -> tuple[Located | None, str]:
    """The same function now, and a sentence on what is wrong where it is gone or says something else.

    `moved` maps modules of the recipe to where the model's classes are now (`__main__` in a script, say).
    """
    module, _, function = then.name.partition(":")
    name = moved.get(module, module)
    files = [file for file in (_file_by_name(name, function), _file_of_module(name)) if file]
    if not files:
        return None, f"{then.name} was not found: no module {name!r} is imported"
    candidates = [found for file in files for found in _functions(file) if found.function == function]
    if not candidates:
        return None, f"{then.name} no longer exists ({files[0]})"
    changes = [change_of(then, FunctionText(then.name, found.text, "")) for found in candidates]
    same = next((found for found, change in zip(candidates, changes, strict=True) if not change), None)
    return same, "" if same is not None else changes[-1]


def line_offsets(before: str, after: str) -> dict[int, int]:
    """For two texts of the same meaning: on which line of `after` each line of `before` stands, counted from 0.

    Raises:
        RecipeError: where the lines were broken anew, so that calls cannot be told apart by line any more.
    """
    offsets: dict[int, int] = {}
    pairs = zip(_nodes(before), _nodes(after), strict=True)
    for old, new in pairs:
        for attribute in ("lineno", "end_lineno"):
            line, now = getattr(old, attribute, None), getattr(new, attribute, None)
            if line is not None and now is not None and offsets.setdefault(line - 1, now - 1) != now - 1:
                raise RecipeError("its line breaks have changed, so calls cannot be found by their lines")
    return offsets


# -- files ------------------------------------------------------------------------------------------------------------


def _text(file: str) -> str:
    linecache.checkcache(file)
    return "".join(linecache.getlines(file))


def _functions(file: str) -> tuple[Located, ...]:
    try:
        return _parsed(file, _text(file))
    except SyntaxError as error:
        raise RecipeError(f"{file} cannot be read as Python: {error}") from error


@functools.lru_cache(maxsize=32)
def _parsed(file: str, text: str) -> tuple[Located, ...]:
    lines = text.splitlines(keepends=True)

    def located(names: tuple[str, ...], first: int, last: int | None) -> Located:
        body = "".join(lines[first - 1 : last])
        return Located(file, ".".join(names), first, body if body.endswith("\n") else body + "\n")

    def walk(node: ast.AST, path: tuple[str, ...], *, in_function: bool) -> Iterator[Located]:
        for child in ast.iter_child_nodes(node):
            inner = (*path, child.name) if isinstance(child, _Definition) else path
            is_function = isinstance(child, _Definition) and not isinstance(child, ast.ClassDef)
            if isinstance(child, _Definition) and is_function:
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                yield located(inner, first, child.end_lineno)
            elif not in_function and isinstance(child, ast.Assign | ast.AnnAssign):
                # A table of lambdas, say: its code is outside every function, but under a name.
                target = child.target if isinstance(child, ast.AnnAssign) else child.targets[0]
                yield located((*path, ast.unparse(target)), child.lineno, child.end_lineno)
            yield from walk(child, inner, in_function=in_function or is_function)

    return tuple(walk(ast.parse(text), (), in_function=False))


def _file_by_name(module: str, function: str) -> str | None:
    value: Any = sys.modules.get(module)
    for name in function.split("."):
        value = getattr(value, name, None)
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    return code.co_filename if code is not None else None


def _file_of_module(name: str) -> str | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) else None


def _nodes(text: str) -> list[ast.AST]:
    """The nodes of a function's tree but the blocks, whose end goes with the comments behind it."""
    return [node for node in ast.walk(tree_of(text)) if isinstance(node, ast.expr)]
