"""Whether a function of the user's is still what it was when surgery looked into it, and what has changed in it."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import hashlib

from .._errors import RewriteError
from ._record import FunctionText


class ChangedError(RewriteError):
    """A function is another than it was when surgery looked into it; `what` says which, with the difference."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(
            f"RegBN no longer fits {where}: {what}\nCall regbnify with the rules on a fresh model, or restore the code "
            "that it was made for."
        )
        self.what = what


def named_at(cls: type, path: str) -> str:
    """A host, for people."""
    return f"{cls.__name__} at `{path}`" if path else cls.__name__


def refuse_another(then: FunctionText, now: FunctionText, where: str) -> None:
    """Raises ChangedError where a function is another than it was, with the difference."""
    if what := change_of(then, now):
        raise ChangedError(what, where)


def change_of(then: FunctionText, now: FunctionText) -> str:
    """What has changed in a function, with the difference; "" where it is the same."""
    if then.text and now.text:
        same = fingerprint(then.text) == fingerprint(now.text)
    else:
        same = not now.code or then.code == now.code  # one that goes by no name cannot be looked up again
    if same:
        return ""
    if not then.text and not now.text and then.code.startswith("("):  # a forward of torch's own
        return f"the arguments of {then.name} have changed: they were {then.code}, and are now {now.code}"
    lines = difflib.unified_diff(then.text.splitlines(), now.text.splitlines(), "then", "now", lineterm="", n=1)
    return "\n".join([f"{then.name} has changed since regbnify.", *list(lines)[:_SHOWN]])


#: Lines of a difference that are shown.
_SHOWN = 24


@functools.lru_cache(maxsize=256)
def fingerprint(text: str) -> str:
    """What tells two functions apart: their code without comments, docstrings and layout. It is written out from the
    syntax tree again, so that versions of Python whose trees differ agree. What is no Python goes as it is."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        text = ast.unparse(tree_of(text))
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def tree_of(text: str) -> ast.Module:
    """The syntax tree of a function's text, which may be indented, without its docstrings."""
    indented = text[:1].isspace()
    tree = ast.parse(f"if 1:\n{text}" if indented else text)
    if indented and isinstance(tree.body[0], ast.If):
        ast.increment_lineno(tree, -1)
        tree.body = tree.body[0].body
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass(lineno=node.body[0].lineno, col_offset=0)]
    return tree


_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
