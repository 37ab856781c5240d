"""Say where a traced call stands: which functions lead to it from the host's forward, and which expression it is."""

from __future__ import annotations

import ast
import builtins
import hashlib
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any

from ._functions import (
    FunctionSource,
    NoSourceError,
    behind,
    find,
    is_inside,
    name_of,
    read,
    within_reach,
)
from ._record import CodeSite, FunctionText, Place, Step

#: A function that runs, the offset of its current instruction, and the name of its module.
RunningFrame = tuple[CodeType, int, str]


class Locator:
    """Finds the functions of one host. `forward` is its forward as its class has it, decorators included; `attributes`
    are what the host itself holds, where some of its functions may be found; `texts` tell lambdas apart, which have no
    names of their own."""

    def __init__(
        self, cls: type, forward: Any, attributes: Iterable[Any] = (), texts: Iterable[FunctionText] = ()
    ) -> None:
        self.cls = cls
        self.forward = forward
        self.attributes = tuple(attributes)
        self.digests = {text.name: text.code for text in texts}
        self.reasons: list[str] = []  # why some places have no expression
        self._functions: dict[str, tuple[Any, FunctionType]] = {}  # by name, as callers know it and as it runs
        self._sources: dict[str, FunctionSource] = {}
        self._running: dict[str, CodeType] = {}  # by name, what was seen to run

    # -- from a traced call to a place --------------------------------------------------------------------------------

    def place(self, frames: Sequence[RunningFrame], op: str) -> Place | None:
        """The place of a call in which `frames` run, innermost first; None where no Python of the user's runs there."""
        groups = self.groups(frames)
        if not groups:
            return None
        steps: list[Step] = []
        caller: FunctionType | None = None
        number = 0
        while number < len(groups):
            found, number = self._next(groups, number, caller)
            outer, code, offset, module = groups[number]
            name = name_of(found) if found is not None else f"{module}:{outer.co_qualname}"
            self._running[name] = outer
            ordinal = self._ordinal(found, code, offset, op if number == len(groups) - 1 else "")
            steps.append(Step(name, ordinal, code.co_qualname, offset))
            caller = found
            number += 1
        return Place(tuple(steps), op)

    def _next(
        self, groups: Sequence[tuple[CodeType, CodeType, int, str]], number: int, caller: FunctionType | None
    ) -> tuple[FunctionType | None, int]:
        """The function that runs next, and which of the groups it is: the wrappers that decorators put around it come
        before it, and are left out."""
        code, _, _, module = groups[number]
        if number == 0:
            return self._resolve(code, module, None, first=True), 0
        for later in range(number + 1, len(groups)):
            inner, _, _, inner_module = groups[later]
            known = find(inner.co_qualname, inner_module, self.cls, caller)
            if known is not None and behind(known.outer, lambda other: other == code) is not None:
                return self._resolve(inner, inner_module, caller, first=False), later
        return self._resolve(code, module, caller, first=False), number

    def groups(
        self, frames: Sequence[RunningFrame], entry: FunctionType | None = None
    ) -> list[tuple[CodeType, CodeType, int, str]]:
        """The functions from the forward inwards: each with the code in it that runs, its instruction and its module.
        Lambdas and comprehensions in the text of a function belong to it; wrappers around the forward are left out."""
        inwards = list(reversed(frames))
        entry = entry or self.entry({code for code, _, _ in frames})
        # A forward that calls `self.forward` begins anew: the innermost call counts.
        starts = [i for i, (code, _, _) in enumerate(inwards) if entry and code == entry.__code__]
        if not starts:
            return []
        start = starts[-1]
        out: list[tuple[CodeType, CodeType, int, str]] = []
        for code, offset, module in inwards[start:]:
            if out and is_inside(code, out[-1][0]) and code != out[-1][0]:
                out[-1] = (out[-1][0], code, offset, module)
            else:
                out.append((code, code, offset, module))
        return out

    def entry(self, codes: set[CodeType] | None = None) -> FunctionType | None:
        """The function whose body is the forward's: the innermost behind `functools.wraps`, of those that run."""
        unwrapped = self.forward
        while getattr(unwrapped, "__wrapped__", None) is not None:
            unwrapped = unwrapped.__wrapped__
        for candidate in (unwrapped, self.forward):
            found = behind(candidate, lambda code: codes is None or code in codes)
            if found is not None:
                return found
        return None

    def _resolve(self, code: CodeType, module: str, caller: FunctionType | None, *, first: bool) -> FunctionType | None:
        key = f"{module}:{code.co_qualname}"
        if key not in self._functions:
            if first:
                entry = self.entry({code})
                assert entry is not None, "it was found among the frames"
                self._functions[key] = self.forward, entry
            else:
                outer, inner = self._found(key, caller, lambda other: other == code)
                if inner is None or inner.__code__ != code:
                    self.reasons.append(f"{key} cannot be found by its name")
                    return None
                self._functions[key] = outer, inner
        known = self._functions[key][1]
        if code.co_name == "<lambda>" and known.__code__ != code:
            self.reasons.append(f"{key} is the name of several functions")
            return None
        return known

    def _found(
        self, name: str, caller: FunctionType | None, wanted: Callable[[CodeType], bool]
    ) -> tuple[Any, FunctionType | None]:
        """A function as its callers know it and as it runs; of lambdas the one whose code is wanted."""
        module, _, qualified = name.partition(":")
        if qualified.endswith("<lambda>"):
            there = [function for function in self._within_reach(name) if wanted(function.__code__)]
            return (there[0], there[0]) if len(there) == 1 else (None, None)
        found = find(qualified, module, self.cls, caller)
        return (None, None) if found is None else (found.outer, found.inner)

    def _ordinal(self, function: FunctionType | None, code: CodeType, offset: int, op: str) -> int:
        if function is None:
            return -1
        try:
            source = self.source(function)
            node = source.node_at(code, offset)
        except NoSourceError as error:
            self.reasons.append(str(error))
            return -1
        if op and isinstance(node, ast.Call) and _called_name(node) in _CALLING_ON and _called_name(node) != op:
            self.reasons.append(f"{source.file}:{node.lineno}: `{ast.unparse(node)}` does more than one operation")
            return -1
        return source.ordinal_of(node)

    # -- functions by name --------------------------------------------------------------------------------------------

    def functions(self, place: Place) -> list[tuple[Any, FunctionType]]:
        """The functions on the way to a place, as their callers know them and as they run.

        Raises:
            NoSourceError: where one cannot be found by its name.
        """
        out: list[tuple[Any, FunctionType]] = []
        for number, step in enumerate(place.steps):
            if step.function not in self._functions:
                self._functions[step.function] = self._named(step.function, out[-1][1] if out else None, number == 0)
            out.append(self._functions[step.function])
        return out

    def entry_of(self, sites: Sequence[CodeSite]) -> FunctionType:
        """The function whose body is the forward's, by what the sites' places say."""
        join = sites[0].join
        return self.functions(Place(join.steps[:1], join.op))[0][1]

    def _named(self, name: str, caller: FunctionType | None, first: bool) -> tuple[Any, FunctionType]:
        _, _, qualified = name.partition(":")
        if first:
            inner = behind(self.forward, lambda code: code.co_qualname == qualified)
            if inner is not None:
                return self.forward, inner
        else:
            outer, inner = self._found(name, caller, lambda code: digest(code) == self.digests.get(name))
            if inner is None and qualified.endswith("<lambda>"):
                outer, inner = self._found(name, caller, lambda code: True)  # the only one: it is told what has changed
            if inner is not None:
                return outer, inner
            if qualified.endswith("<lambda>"):
                raise NoSourceError(f"{name} has changed since regbnify: no lambda found there has the same code")
        raise NoSourceError(f"{name}, which leads to a fusion in {self.cls.__name__}, no longer exists")

    def changed_without_name(self, texts: Sequence[FunctionText]) -> list[str]:
        """Which functions have changed, of those that go by no name; places that lead to them were looked up before."""
        unnamed = [text for text in texts if text.code and not text.text and text.name not in self._functions]
        return [text.name for text in unnamed if text.code not in self._codes_within_reach(text.name)]

    def _codes_within_reach(self, name: str) -> list[str]:
        return [digest(function.__code__) for function in self._within_reach(name)]

    def _within_reach(self, name: str) -> list[FunctionType]:
        """The functions by a name that the functions found so far can call in another way than by that name."""
        others = [*self.attributes, *(value for base in self.cls.__mro__ for value in vars(base).values())]
        return within_reach([inner for _, inner in self._functions.values()], others, name.partition(":")[2])

    def source(self, function: FunctionType) -> FunctionSource:
        name = name_of(function)
        if name not in self._sources or self._sources[name].function is not function:
            self._sources[name] = read(function)
        return self._sources[name]

    def text_of_entry(self) -> FunctionText:
        """The forward itself, as it is now."""
        entry = self.entry()
        assert entry is not None, "asked for where there is one"
        try:
            text = self.source(entry).own_text
        except NoSourceError:
            text = ""
        return FunctionText(name_of(entry), text, digest(entry.__code__))

    def texts(self, places: Sequence[Place]) -> tuple[FunctionText, ...]:
        """Every function on the way to the places, as it is now."""
        out: dict[str, FunctionText] = {}
        for place in places:
            for step in place.steps:
                if step.function in out:
                    continue
                known = self._functions.get(step.function)
                text = ""
                if known is not None:
                    try:
                        text = self.source(known[1]).own_text
                    except NoSourceError:
                        text = ""
                code = known[1].__code__ if known is not None else self._running.get(step.function)
                reach = [function.__code__ for function in self._within_reach(step.function)] if known is None else []
                if known is None and code not in reach:
                    code = None
                out[step.function] = FunctionText(step.function, text, "" if code is None else digest(code))
        return tuple(out.values())


def digest(code: CodeType) -> str:
    """What tells two compiled functions apart, positions and docstrings left out."""
    constants = [_spelt(const) for const in code.co_consts if not isinstance(const, CodeType)]
    if code.co_consts[:1] and isinstance(code.co_consts[0], str | None) and code.co_name != "<lambda>":
        del constants[0]  # where a docstring stands
    parts = [code.co_code, *(repr(part).encode() for part in (code.co_names, code.co_varnames, constants))]
    inner = [digest(const).encode() for const in code.co_consts if isinstance(const, CodeType)]
    return hashlib.sha256(b"|".join([*parts, *inner])).hexdigest()[:16]


def _spelt(constant: Any) -> str:
    """A constant in words that do not depend on the process."""
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


#: Functions without Python code of their own that call others, or add.
_CALLING_ON = frozenset({*dir(builtins), "accumulate", "starmap"}) - {"sum"}


def _called_name(node: ast.Call) -> str:
    return (
        node.func.id
        if isinstance(node.func, ast.Name)
        else node.func.attr
        if isinstance(node.func, ast.Attribute)
        else ""
    )
