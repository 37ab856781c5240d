"""A surgery as data: what `regbnify` has done to one model, to be done again to another instance of its class.

Neither rules nor example inputs are needed again. What the surgery relied on goes along (the classes, and the text of
every function that it looked into), and is compared before anything is touched.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._errors import AlreadyRewrittenError, RecipeError, RewriteError
from .._rewrite import Operation, explain, operations_of, repeat
from .._rewrite._classes import original_class
from .._rewrite._guard import ATTRIBUTE
from .._types import Layout
from .._version import __version__
from . import _json
from ._source import (
    FunctionSource,
    code_of,
    find_again,
    line_offsets,
    locate,
    named,
    signature_only,
)

FORMAT = 1


@dataclass(frozen=True)
class HostRecord:
    """A module that holds RegBN: its path, its class, and how its RegBN gets in (tiers as in `explain`)."""

    path: str
    host_class: str
    tier: int
    reason: str = ""


@dataclass(frozen=True)
class OpenedRecord:
    """A module that a host's graph looks into, for a pair between two towers: its path and its class."""

    path: str
    opened_class: str


@dataclass(frozen=True)
class Recipe:
    """What `regbnify` did to a model, as plain data that can be written to a small JSON file.

    Calls of a host are named by function and line within it, not by file, so that a recipe can be used on another
    machine. `versions` are for people: they are shown where something does not fit.
    """

    model: str  # "module:class"
    versions: Mapping[str, str]
    hosts: tuple[HostRecord, ...]
    sources: tuple[FunctionSource, ...]
    operations: tuple[Operation, ...]
    writes_parameters: bool = False
    opened: tuple[OpenedRecord, ...] = ()  # a recipe of an older version does not say

    @classmethod
    def of(cls, model: nn.Module) -> Recipe:
        """The recipe of a model that `regbnify` has rewritten.

        Raises:
            RecipeError: where the model carries no RegBN, or the source of its classes is not at hand.
        """
        operations = operations_of(model)
        if not operations:
            raise RecipeError(f"{type(model).__name__} carries no RegBN put in by regbnify.{_wrapped(model)}")
        hosts = tuple(
            HostRecord(report.host, _class_at(model, report.host), report.tier, report.reason)
            for report in explain(model)
        )
        opened = tuple(OpenedRecord(path, _class_at(model, path)) for path in _opened_by(operations))
        table = _Sources()
        graphs = [operation.host for operation in operations if operation.graph is not None]
        for path in dict.fromkeys([*graphs, *(module.path for module in opened)]):
            table.add_forward(original_class(model.get_submodule(path)))
        _refuse_without_text(operations)
        relative = tuple(_trimmed(table.relative_to_functions(model, operation)) for operation in operations)
        writes = any(
            module.__dict__[ATTRIBUTE].writes_parameters for module in model.modules() if ATTRIBUTE in module.__dict__
        )
        return cls(_class_at(model, ""), _versions(model), hosts, tuple(table.sources), relative, writes, opened)

    def apply(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """Put RegBN into `model`, a fresh instance of the same class, without running it.

        Each RegBN starts untrained. A host whose forward is generated is captured, and held to the original, when it
        is first called; call the model once before compiling or exporting it.

        Args:
            model: an instance of the class that the recipe was made from; its sizes must be the same.
            inplace: change `model` itself instead of a deep copy.

        Raises:
            RecipeError: where a class, or a function that the surgery looked into, is not what it was; it says what
                has changed. `model` is then as it was.
            AlreadyRewrittenError: where the model already carries RegBN.
        """
        from .._api import _copied
        from .._inspecting import refuse_wrapped

        refuse_wrapped(model)
        operations = self._fitted(model)
        target = model if inplace else _copied(model)
        by_mode = {host.path: host.reason for host in self.hosts if host.reason}
        try:
            repeat(target, operations, self.writes_parameters, by_mode)
        except AlreadyRewrittenError:
            raise
        except RewriteError as error:
            raise RecipeError(self._refusal(model, [str(error)])) from error
        return target

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as JSON."""
        document = {"format": FORMAT, **_json.to_json(self)}
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read what `write` has written.

        Raises:
            RecipeError: where the file is not there, or is no recipe that this version understands.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{os.fspath(path)} cannot be read as a recipe: {error}") from error
        found = document.pop("format", None) if isinstance(document, dict) else None
        if found != FORMAT:
            raise RecipeError(f"{os.fspath(path)} is no recipe of format {FORMAT}: its format is {found!r}")
        recipe: Recipe = _json.from_json(cls, document, "recipe")
        return recipe

    def __str__(self) -> str:
        lines = [f"RegBN in {self.model}"]
        for op in self.operations:
            planned = op.planned
            where = f"{op.host}.{planned.name}" if op.host else planned.name
            lines.append(f"  {where}: f is {planned.f.anchor}, g is {planned.g.anchor} (rule {planned.rule!r})")
        return "\n".join(lines)

    # -- does it still fit? ---------------------------------------------------------------------------------------

    def _fitted(self, model: nn.Module) -> tuple[Operation, ...]:
        """The operations with the files and lines of now."""
        problems, moved = self._compare_classes(model)
        problems += self._missing_layers(model)
        now: dict[int, tuple[str, int, dict[int, int]]] = {}
        for index, source in enumerate(self.sources):
            if source.module.split(".")[0] == "torch":
                continue  # compared with the class, by its signature
            found, wrong = find_again(source, moved)
            if found is None:
                problems.append(wrong)
                continue
            try:
                now[index] = (found.file, found.first, line_offsets(source.text, found.text))
            except RecipeError as error:
                problems.append(f"{source} says the same, but {error}")
        if problems:
            raise RecipeError(self._refusal(model, problems))

        def absolute(key: _Key) -> _Key:
            name, index, line, nth = key
            if not index:
                return key
            file, first, offsets = now[int(index)]
            return (name, file, first + offsets.get(line, line), nth)

        return tuple(_moved(op, absolute) for op in self.operations)

    def _compare_classes(self, model: nn.Module) -> tuple[list[str], dict[str, str]]:
        """What is wrong with the classes, and where modules that have only moved are now."""
        problems = []
        moved: dict[str, str] = {}
        forwards = {str(source): source.text for source in self.sources}
        classes = {"": self.model, **{host.path: host.host_class for host in self.hosts}}
        for path, recorded in {**classes, **{module.path: module.opened_class for module in self.opened}}.items():
            where = f"the module at `{path}`" if path else "the model"
            try:
                cls = original_class(model.get_submodule(path))
            except AttributeError:
                problems.append(f"there is no module at `{path}` any more; it was a {recorded}")
                continue
            module, _, name = recorded.partition(":")
            if cls.__qualname__ != name:
                problems.append(f"{where} was a {recorded}; now it is a {_name(cls)}")
                continue
            if module != cls.__module__:
                moved[module] = cls.__module__
            text = forwards.get(f"{module}:{name}.forward", "")
            if text and module.split(".")[0] == "torch" and signature_only(cls).text != text:
                now = signature_only(cls).text.strip()
                problems.append(f"the arguments of {recorded} have changed: {now} was {text.strip()}")
        return problems, moved

    def _missing_layers(self, model: nn.Module) -> list[str]:
        """Which of the layers that make f and g are not where they were, and are watched there or looked for."""
        sites = [(op.host, site) for op in self.operations if (site := op.code or op.graph) is not None]
        wanted = dict.fromkeys(f"{host}.{path}".lstrip(".") for host, site in sites for path in site.makers if path)
        there = dict(model.named_modules(remove_duplicate=False))
        return [
            f"there is no module at `{path}` any more; what it returned was normalised"
            for path in wanted
            if path not in there
        ]

    def _refusal(self, model: nn.Module, problems: list[str]) -> str:
        now = _versions(model)
        other = [f"{k} {v}, now {now.get(k, 'absent')}" for k, v in self.versions.items() if now.get(k) != v]
        return (
            f"The recipe for {self.model} does not fit this {_name(original_class(model))}; nothing was changed.\n- "
            + "\n- ".join(problems)
            + (f"\nIt was made with {'; '.join(other)}." if other else "")
            + "\nCall regbnify with the rules to make a new one, or go back to the code that it was made from."
        )


class _Sources:
    """The functions of a recipe in the making."""

    def __init__(self) -> None:
        self.sources: list[FunctionSource] = []

    def add_forward(self, cls: type[nn.Module]) -> None:
        if cls.__module__.split(".")[0] == "torch":
            self._index(signature_only(cls))
        else:
            file, line = code_of(cls.forward)
            self._index(named(locate(file, line), _definer(cls)))

    def relative_to_functions(self, model: nn.Module, operation: Operation) -> Operation:
        """The operation with every call named by the index of a function and the line within it."""
        owner = _definer(original_class(model.get_submodule(operation.host)))

        def relative(key: _Key) -> _Key:
            name, file, line, nth = key
            if not file:
                return key
            found = locate(file, line)
            return (name, str(self._index(named(found, owner))), line - found.first, nth)

        changed: Operation = _moved(operation, relative)
        return changed

    def _index(self, source: FunctionSource) -> int:
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)


_Key = tuple[str, str, int, int]


def _moved(value: Any, change: Any) -> Any:
    """The same data with every key of a call (name, file, line, count) exchanged."""
    if isinstance(value, tuple):
        if len(value) == 4 and [type(x) for x in value] == [str, str, int, int]:
            return change(value)
        return tuple(_moved(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), change) for field in fields(value)})
    return value


def _trimmed(value: Any) -> Any:
    """Without what only people read: the evidence for the axes."""
    if isinstance(value, Layout):
        return replace(value, evidence=())
    if isinstance(value, tuple):
        return tuple(_trimmed(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _trimmed(getattr(value, field.name)) for field in fields(value)})
    return value


def _refuse_without_text(operations: tuple[Operation, ...]) -> None:
    """Raises RecipeError where a function that surgery wrote into has no source, so that a change would go unseen."""
    bare = next((text.name for op in operations for text in op.texts if not text.text and not text.code), None)
    if bare is not None:
        raise RecipeError(
            f"{bare} has no source here, so a recipe could not tell whether it has changed. Move the code into a "
            "function of a file."
        )


def _opened_by(operations: tuple[Operation, ...]) -> tuple[str, ...]:
    """Paths of the modules that hosts look into, whose own code is then the host's."""
    found = (
        f"{op.host}.{path}" if op.host else path
        for op in operations
        if op.graph is not None and op.graph.across is not None
        for path in op.graph.across.opened
    )
    return tuple(dict.fromkeys(found))


def _class_at(model: nn.Module, path: str) -> str:
    return _name(original_class(model.get_submodule(path)))


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _definer(cls: type[nn.Module]) -> type:
    """The class among the bases that says what `forward` is."""
    return next(base for base in cls.__mro__ if "forward" in vars(base))


def _versions(model: nn.Module) -> dict[str, str]:
    found = {"regbn_surgery": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in sorted(_packages(model)):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # the user's own code
    return found


def _packages(model: nn.Module) -> Iterator[str]:
    names = {type(module).__module__.split(".")[0] for module in model.modules()}
    yield from names - {"torch", "regbn_surgery", "__main__"} - set(sys.stdlib_module_names)


def _wrapped(model: nn.Module) -> str:
    """What to do instead, where the model is in a wrapper of which the inside does carry RegBN."""
    for name in ("module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and operations_of(inner):
            return f" The model inside it does: pass `.{name}`."
    return ""
