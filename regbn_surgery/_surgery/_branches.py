"""Which other expressions of a function make the same side of a site, in branches that the example did not take.

`f = relu(self.fa(a))` in one branch and `f = tanh(self.fa(a))` in another give what is joined as `f` afterwards. An
expression counts where it is assigned to the same name, or is the other choice of one expression, and where it uses
nothing but what the known one uses, and nothing that tells the other side: it must not be another stream.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from ._functions import FunctionSource, NoSourceError
from ._locate import Locator
from ._record import CodeSite, End, Place


def with_branches(locator: Locator, site: CodeSite) -> CodeSite:
    """The site with the places that make its sides in other branches. Only where RegBN acts on the operands of the
    join: these must be there, so that no intermediate value is taken for a side."""
    if not site.operands or site.scatter is not None:
        return site
    f, g = (_with_branches(locator, site, end, other) for end, other in ((site.f, site.g), (site.g, site.f)))
    return replace(site, f=f, g=g)


def _with_branches(locator: Locator, site: CodeSite, end: End, other: End) -> End:
    made = end.maker
    if made is None or end.turn >= 0 or end.looped or made.steps[:-1] != site.join.steps[:-1]:
        return end
    *before, last = made.steps
    if last.ordinal < 0 or last.function != site.join.steps[-1].function:
        return end
    try:
        source = locator.source(locator.functions(made)[-1][1])
    except NoSourceError:
        return end
    nodes = source.expressions()
    there = other.maker
    theirs: set[str] = set() if other.argument is None else {other.argument.split(".")[0]}
    if there is not None and there.steps[:-1] == made.steps[:-1] and there.steps[-1].ordinal >= 0:
        if there.steps[-1].function != last.function:
            return end
        theirs |= _words(nodes[there.steps[-1].ordinal])
    known = {*end.also, (made, end.output)}
    also = list(end.also)
    for node in alternatives(source, nodes[last.ordinal], theirs):
        ordinal = next(number for number, each in enumerate(nodes) if each is node)
        place = Place((*before, replace(last, ordinal=ordinal, instruction=-1)), made.op)
        if (place, 0) not in known and place not in (site.join, there):
            also.append((place, 0))
    return replace(end, also=tuple(also))


def alternatives(source: FunctionSource, maker: ast.AST, theirs: set[str]) -> list[ast.expr]:
    """Other expressions that make what `maker` makes. `theirs`: the words of the expression that makes the other
    side."""
    parents = {id(child): node for node in ast.walk(source.definition) for child in ast.iter_child_nodes(node)}
    top = maker
    while isinstance(parents.get(id(top)), ast.IfExp) and parents[id(top)].test is not top:  # type: ignore[attr-defined]
        top = parents[id(top)]
    found = list(_choices(top)) if isinstance(top, ast.IfExp) else []
    name = next((name for name, value in _assigned(source.definition) if value is top), None)
    for other, value in _assigned(source.definition) if name is not None else ():
        if other == name and value is not top:
            found += _choices(value)
    used = _Used(source)
    mine = used.chains(maker)
    if name is not None and name in mine and len(found) == 1:
        mine = mine | used.chains(found[0])  # what the maker refines is the same stream before
    own = _words(maker)
    same = []
    for node in found:
        chains = used.chains(node)
        if node is not maker and chains and chains - {name} <= mine and not _words(node) & (theirs - own):
            same.append(node)
    if name is None or _always(source.definition, name, [maker, *same]):
        return same
    return [node for node in same if name not in used.chains(node)]  # what is refined may be another stream by then


def _always(definition: ast.AST, name: str, same: list[ast.AST]) -> bool:
    """Whether all that a name ever holds is made by one of these expressions."""
    values = [value for other, value in _assigned(definition) if other == name]
    stores = [node for node in ast.walk(definition) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    if sum(node.id == name for node in stores) != len(values):
        return False
    arms = [arm for value in values for arm in _arms(value)]
    return all(any(arm is node for node in same) for arm in arms)


def _arms(node: ast.expr) -> list[ast.expr]:
    return [*_arms(node.body), *_arms(node.orelse)] if isinstance(node, ast.IfExp) else [node]


class _Used:
    """What expressions of a function use of its arguments and variables: `a`, `batch.image`, `views[0]`."""

    def __init__(self, source: FunctionSource) -> None:
        nodes = list(ast.walk(source.definition))
        self.names = {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        around = source.function.__code__.co_qualname.rpartition(".")[0]
        arguments = source.definition.args
        first = next(iter((*arguments.posonlyargs, *arguments.args)), None)
        if around and not around.endswith("<locals>") and first is not None:
            self.names.discard(first.arg)  # the module itself

    def chains(self, expression: ast.AST) -> set[str]:
        found: set[str] = set()
        self._collect(expression, found)
        return found

    def _collect(self, node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            for part in (node.func.value, *node.args, *node.keywords):  # the name of a method is not part of it
                self._collect(part, found)
            return
        root = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Name) and isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            if root.id in self.names:
                found.add(ast.unparse(node))
            return
        for part in ast.iter_child_nodes(node):
            self._collect(part, found)


def _choices(node: ast.expr | ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.IfExp):
        yield from _choices(node.body)
        yield from _choices(node.orelse)
    elif isinstance(node, ast.Call | ast.BinOp | ast.Subscript):
        yield node


def _assigned(definition: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names and what is assigned to them, tuples item by item."""
    for node in ast.walk(definition):
        if isinstance(node, ast.NamedExpr):
            yield node.target.id, node.value
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets if isinstance(value, ast.expr) else ():
            if isinstance(target, ast.Name) and isinstance(value, ast.expr):
                yield target.id, value
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                pairs = zip(target.elts, value.elts, strict=True)
                yield from ((each.id, item) for each, item in pairs if isinstance(each, ast.Name))


def _words(node: ast.AST) -> set[str]:
    """The names, attributes and constants of an expression."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            found.add(each.id)
        elif isinstance(each, ast.Attribute):
            found.add(each.attr)
        elif isinstance(each, ast.Constant):
            found.add(repr(each.value))
    return found
