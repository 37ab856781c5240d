"""A surgery as data: what `regbnify` has done to one model, to be done again to another instance of its class.

Neither rules nor example inputs are needed again. What the surgery relied on goes along (the classes, and the text of
every function that it looked into), and is compared before anything is touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import _codec
from .._analysis import MODEL_ERRORS
from .._codec import CodecError
from .._copying import Model
from .._errors import AlreadyRewrittenError, RecipeError, RegBNError
from .._surgery import Make, Operation, around_regbn, exchange, explain, made_paths, operations_of, repeat
from .._surgery._changed import ChangedError
from .._surgery._classes import original_class
from .._surgery._guard import ATTRIBUTE, MODALITIES
from .._surgery._record import FunctionText
from .._types import Layout, Modality
from .._visible import visible
from ._fit import class_at, fitted, refusal, versions_of
from ._older import modernised
from ._sound import refuse_unsound_operation
from ._sources import Sources

FORMAT = 1


@dataclass(frozen=True)
class HostRecord:
    """A module that holds RegBN: its path, its class, how its RegBN gets in (tiers as in `explain`), and which of the
    recipe's functions surgery wrote into there, by number."""

    path: str
    host_class: str
    tier: int
    reason: str = ""
    functions: tuple[int, ...] = ()


@dataclass(frozen=True)
class OpenedRecord:
    """A module that a host's graph looks into, for a pair between two towers: its path and its class."""

    path: str
    opened_class: str


@dataclass(frozen=True)
class Recipe:
    """What `regbnify` did to a model, as plain data that can be written to a small JSON file.

    Calls of a host are named by function and what they are in it, not by file, so that a recipe can be used on another
    machine. `sources` are the functions that the surgery looked into, each of them once. `versions` are for people:
    they are shown where something does not fit.
    """

    model: str  # "module:class"
    versions: Mapping[str, str]
    hosts: tuple[HostRecord, ...]
    sources: tuple[FunctionText, ...]
    operations: tuple[Operation, ...]
    writes_parameters: bool = False
    opened: tuple[OpenedRecord, ...] = ()  # a recipe of an older version does not say
    made: tuple[str, ...] = ()  # paths of sites whose module is none of ours: `make` of `regbnify` made it
    modalities: tuple[Modality, ...] = ()  # by which names `verify` follows the inputs

    @classmethod
    def of(cls, model: nn.Module) -> Recipe:
        """The recipe of a model that `regbnify` has rewritten.

        Raises:
            RecipeError: where the model carries no RegBN, or the source of its classes is not available.
        """
        operations = operations_of(model)
        if not operations:
            raise RecipeError(around_regbn(model))
        table = Sources(model)
        hosts = []
        for report in explain(model):
            members = [op for op in operations if (op.host, op.tier) == (report.host, 2 if report.tier > 1 else 1)]
            functions = tuple(dict.fromkeys(table.index(text) for op in members for text in op.texts))
            host_class = class_at(model, report.host)
            hosts.append(HostRecord(report.host, host_class, report.tier, report.reason, functions))
        opened = tuple(OpenedRecord(path, class_at(model, path)) for path in _opened_by(operations))
        graphs = [operation.host for operation in operations if operation.graph is not None]
        for path in dict.fromkeys([*graphs, *(module.path for module in opened)]):
            table.add_forward(original_class(model.get_submodule(path)))
        _refuse_unseen(operations)
        kept = tuple(_trimmed(replace(table.relative_to_functions(op), texts=())) for op in operations)
        writes = any(
            module.__dict__[ATTRIBUTE].writes_parameters for module in model.modules() if ATTRIBUTE in module.__dict__
        )
        versions = versions_of(model)
        made, modalities = made_paths(model), tuple(model.__dict__.get(MODALITIES, ()))
        return cls(
            class_at(model, ""), versions, tuple(hosts), tuple(table.sources), kept, writes, opened, made, modalities
        )

    def apply(self, model: Model, *, inplace: bool = False, make: Make | None = None) -> Model:
        """Put RegBN into `model`, a fresh instance of the same class, without running it.

        Each RegBN starts untrained. A host whose forward is generated is captured, and compared with the original, when
        it is first called; call the model once before compiling or exporting it.

        Args:
            model: an instance of the class that the recipe was made from; its sizes must be the same.
            inplace: change `model` itself instead of a deep copy.
            make: as given to `regbnify`, where it was; a recipe contains no code.

        Raises:
            RecipeError: where `make` was used and is not given; where a class, or a function that the surgery looked
                into, is not what it was; it says what has changed. `model` is then as it was.
            AlreadyRewrittenError: where the model already carries RegBN.
        """
        from .._api import _copied

        return self._put_into(model, lambda: model if inplace else _copied(model), make)

    def put_into_empty(self, model: Model, make: Make | None) -> Model:
        """`apply` in place, to a model whose parameters may be on the meta device: the caller gives them values."""
        return self._put_into(model, lambda: model, make, empty=True)

    def _put_into(
        self, model: Model, to_change: Callable[[], Model], make: Make | None, *, empty: bool = False
    ) -> Model:
        from .._inspecting import refuse_wrapped

        if self.made and make is None:
            raise RecipeError(
                f"the modules at {', '.join(self.made)} were created by the function passed to regbnify as make=, "
                "which a recipe does not store. Pass the same function as make= here"
            )
        refuse_wrapped(model)
        operations = fitted(self, model)
        target = to_change()
        by_mode = {host.path: host.reason for host in self.hosts if host.reason}
        try:
            repeat(target, operations, self.writes_parameters, by_mode, empty=empty)
            if make is not None and self.made:
                exchange(target, make, self.made)
            if self.modalities:
                target.__dict__[MODALITIES] = self.modalities
        except AlreadyRewrittenError:
            raise
        except ChangedError as error:
            raise RecipeError(refusal(self, model, [error.what])) from error
        except (RegBNError, *MODEL_ERRORS) as error:
            raise RecipeError(refusal(self, model, [str(error)])) from error
        return target

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as JSON."""
        try:
            document = {"format": FORMAT, **_codec.plain(self, defaults=False)}
        except CodecError as fault:
            raise RecipeError(f"the recipe cannot be written: {fault}") from fault
        Path(path).write_text(_laid_out(document), encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read what `write` has written.

        Raises:
            RecipeError: where the file is not there, or is no recipe that this version understands.
        """
        try:
            with Path(path).open("rb") as file:
                return cls._from_content(_codec.parse(file.read(_codec.LARGEST + 1)))
        except OSError as error:
            raise RecipeError(f"{os.fspath(path)} cannot be read as a recipe: {error}") from error
        except CodecError as fault:
            newer = " Was it written by a newer version of regbn_surgery?" if "unknown key" in fault.text else ""
            raise RecipeError(f"{os.fspath(path)} is not a recipe: {fault}.{newer}") from fault

    @classmethod
    def _from_content(cls, content: Any) -> Recipe:
        if not isinstance(content, dict):
            raise CodecError("", f"a mapping is expected; found {type(content).__name__}")
        found = content.pop("format", None)
        if found != FORMAT or isinstance(found, bool):
            raise CodecError("format", f"this release reads format {FORMAT} of recipes; found {found!r}")
        recipe = _codec.build(cls, modernised(content))
        if not recipe.operations:
            raise CodecError("operations", "at least one is expected; found none")
        for number, source in enumerate(recipe.sources):
            if not source.text and not source.code:
                raise CodecError(f"sources[{number}]", "the source text of a function or its compiled code is expected")
        for number, host in enumerate(recipe.hosts):
            if any(not 0 <= index < len(recipe.sources) for index in host.functions):
                raise CodecError(f"hosts[{number}].functions", f"numbers below {len(recipe.sources)} are expected")
        for number, operation in enumerate(recipe.operations):
            refuse_unsound_operation(operation, len(recipe.sources), f"operations[{number}]")
            if operation.host not in [host.path for host in recipe.hosts]:
                raise CodecError(f"operations[{number}].host", f"{operation.host!r} is not among `hosts`")
        return recipe

    def __str__(self) -> str:
        lines = [f"RegBN in {self.model}"]
        for op in self.operations:
            planned = op.planned
            lines.append(f"  {planned.path}: f is {planned.f.anchor}, g is {planned.g.anchor} (rule {planned.rule!r})")
        return visible("\n".join(lines))


def _laid_out(document: Mapping[str, Any]) -> str:
    """JSON with one record a line, so that recipes stay small and can be compared line by line."""

    def rows(value: Any) -> str:
        lines = ",\n  ".join(json.dumps(item) for item in value) if isinstance(value, list) and value else ""
        return f"[\n  {lines}\n ]" if lines else json.dumps(value)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {rows(value)}" for key, value in document.items()) + "\n}\n"


def _trimmed(value: Any) -> Any:
    """Without what only people read: the evidence for the axes."""
    if isinstance(value, Layout):
        return replace(value, evidence=())
    if isinstance(value, tuple):
        return tuple(_trimmed(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _trimmed(getattr(value, field.name)) for field in fields(value)})
    return value


def _refuse_unseen(operations: tuple[Operation, ...]) -> None:
    """Raises RecipeError where a function that surgery wrote into could change without anybody seeing it."""
    bare = [text.name for op in operations for text in op.texts if not text.text and not text.code]
    if bare:
        raise RecipeError(
            f"{bare[0]} has no name to find it by and no source text, so a recipe could not detect whether it has "
            "changed. Define it as a named function (`def`) in a file."
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
