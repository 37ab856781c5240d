"""`Rules`: a rules file, read, checked and frozen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from .._codes import KINDS
from .._errors import RulesError
from .._types import Modality
from . import checks
from .patterns import matches
from .presets import preset_names, preset_path
from .problems import Marks, Path, Problem, did_you_mean, listing, render, spell
from .schema import Document, InputSpec, Match, ModalitySpec, Override, Rule, Slice, Treatment
from .shadows import shadowed
from .validate import validate
from .yaml_tree import DEEPEST, read_tree

_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Rules:
    """What the user wants done, as read from a rules file or a dict; see `docs/rules.md` for the language.

    Two `Rules` are equal if they say the same, wherever they were read from.
    """

    document: Document
    marks: Marks = field(default_factory=Marks, compare=False, repr=False)

    @classmethod
    def load(cls, rules: Rules | str | os.PathLike[str] | Mapping[str, Any]) -> Rules:
        """Take rules in any form: a path, the name of a preset, a dict, or `Rules`.

        Raises `RulesError` listing every problem with its place.
        """
        if isinstance(rules, Rules):
            return rules
        if isinstance(rules, Mapping):
            return cls.from_dict(rules)
        if isinstance(rules, str | os.PathLike):
            return cls.from_file(rules)
        raise RulesError(f"rules must be a path, the name of a preset, a dict or `Rules`; found {type(rules).__name__}")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Rules:
        """Read a YAML rules file, or the preset of that name where no such file exists."""
        name = os.fspath(path)
        if "\n" in name:
            raise RulesError("found the text of a rules file, not its path; read it by Rules.from_text(text)")
        where = preset_path(name) or FilePath(name)
        try:
            data = where.read_bytes()
        except FileNotFoundError as error:
            raise RulesError(_not_found(name)) from error
        except (OSError, ValueError) as error:  # a directory, no permission, a NUL in the name
            raise RulesError(f"cannot read the rules file {name!r}: {error}") from error
        return cls.from_text(data, name)

    @classmethod
    def from_text(cls, text: str | bytes, name: str = "<text>") -> Rules:
        """Read YAML text; `name` is used for it in messages."""
        tree = read_tree(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, name)
        return cls._build(tree.value, tree.marks, tree.problems)

    @classmethod
    def from_dict(cls, rules: Mapping[str, Any]) -> Rules:
        """Take the content of a rules file as a dict of plain Python values."""
        problems: list[Problem] = []
        value = _plain(rules, (), problems)
        return cls._build(value, Marks(), problems)

    @classmethod
    def _build(cls, value: Any, marks: Marks, spelling: list[Problem]) -> Rules:
        if value is None and spelling:
            raise RulesError(render(spelling, marks, {}))
        document, wrong_types = validate(value)
        known = {problem.path for problem in spelling}
        problems = [*spelling]
        # What a misspelt or blank value leads to is no problem of its own.
        for found in (checks.check(value), wrong_types):
            fresh = [problem for problem in found if not any(problem.path[: len(p)] == p for p in known if p)]
            problems += fresh
            known |= {problem.path for problem in fresh if not problem.at_key}
        if document is not None and not problems and document.strict != "warn":
            problems += shadowed(document)
        if problems or document is None:
            raise RulesError(render(problems, marks, _ids(value)))
        return cls(document, marks)

    @property
    def strict(self) -> bool:
        """Whether a rule, exclude or override that matches nothing is an error (else a note in the plan)."""
        return self.document.strict != "warn"

    @property
    def wants_all(self) -> bool:
        """Whether a point that a rule selects and RegBN cannot go to is an error; else it gives a warning."""
        return self.document.strict is True

    @property
    def ignore(self) -> tuple[str, ...]:
        """Codes of notes and warnings that are switched off."""
        return self.document.ignore

    def ignoring(self, codes: Iterable[str]) -> Rules:
        """The same rules with further codes switched off. Raises RulesError for a code that no note has."""
        wrong = [checks.unknown_code(code) for code in codes if code not in KINDS]
        if wrong:
            raise RulesError("; ".join(wrong))
        ignore = tuple(dict.fromkeys((*self.ignore, *codes)))
        return Rules(self.document.model_copy(update={"ignore": ignore}), self.marks)

    def with_modalities(self, modalities: Mapping[str, Any]) -> Rules:
        """The same rules with these modalities, each as a rules file has it; they must name none themselves.

        Raises `RulesError` where they do, and where the modalities do not fit the rules.
        """
        if not modalities:
            return self
        if self.modalities:
            raise RulesError(
                f"{self.where('modalities', key=True)}: the rules name the modalities themselves "
                f"({', '.join(self.modalities)}); leave the others out ({', '.join(modalities)}), or change the file"
            )
        made = Rules.from_dict({**self.to_dict(), "modalities": dict(modalities)})
        return Rules(made.document, self.marks)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """Example inputs to make up, by dotted name."""
        return self.document.inputs

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """Each modality with the inputs or modules that belong to it; empty where the file leaves it open."""
        return self.document.modalities

    @property
    def defaults(self) -> Treatment:
        """What holds for every rule that does not say otherwise."""
        return self.document.defaults

    @property
    def exclude(self) -> tuple[Match, ...]:
        """Fusion points that no rule may touch."""
        return self.document.exclude

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in order: the first that matches a point decides it."""
        return self.document.rules

    @property
    def overrides(self) -> Mapping[str, Override]:
        """Changes to single fusion points, by id."""
        return self.document.overrides

    def check_inputs(self, parameters: Sequence[str]) -> None:
        """Hold the `inputs:` section to the parameters of the model's `forward`.

        Raises `RulesError` for a name that is none of them.
        """
        problems = []
        for name in self.inputs:
            head = name.partition(".")[0]
            if head not in parameters:
                text = f"`forward` has no parameter `{head}`{did_you_mean(head, parameters)}"
                problems.append(Problem(("inputs", name), f"{text} (it has {listing(parameters)})", at_key=True))
        if problems:
            raise RulesError(render(problems, self.marks, {}))

    def resolve_modalities(
        self, inputs: Mapping[str, tuple[int, ...]], modules: Iterable[str] | None = None
    ) -> dict[str, Modality]:
        """Each modality with the model's input names that belong to it (globs resolved), in input order.

        `inputs` are the model's with their shapes, `modules` the paths of its modules, where they are known. Raises
        `RulesError` for a name or glob that fits no input or module, for an input in two modalities, and for a slice
        that reaches beyond its axis.
        """
        problems: list[Problem] = []
        found = {name: _inputs_of(name, spec, tuple(inputs), problems) for name, spec in self.modalities.items()}
        paths = None if modules is None else list(modules)
        for name, spec in self.modalities.items():
            problems += _clashes(name, found, self.modalities)
            problems += _too_long(name, spec, {item: inputs[item] for item in found[name]})
            for index, pattern in enumerate(spec.modules if paths is not None else ()):
                if not any(matches(pattern, path) for path in paths or ()):
                    named = [path for path in paths or () if path]
                    hint = did_you_mean(pattern.removesuffix(".**"), named) or f" (it has {listing(named)})"
                    text = f"no module is called `{pattern}`{hint}"
                    problems.append(Problem(("modalities", name, "modules", index), text))
        if problems:
            raise RulesError(render(problems, self.marks, {}))
        return {
            name: Modality(name, found[name], spec.modules, None if spec.slice is None else _cut(spec.slice))
            for name, spec in self.modalities.items()
        }

    def spelt_modalities(self) -> tuple[Modality, ...]:
        """Each modality as the file has it, with the patterns for its inputs."""
        return tuple(
            Modality(name, spec.inputs, spec.modules, None if spec.slice is None else _cut(spec.slice))
            for name, spec in self.modalities.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON, YAML and `from_dict`."""
        return self.document.model_dump(mode="json", exclude_unset=True)

    def to_yaml(self) -> str:
        """The same as the text of a rules file, without its comments; `from_text` reads it back."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)
        return text

    def where(self, *path: str | int, key: bool = False) -> str:
        """`file:line:column` of a value, for messages."""
        return self.marks.at(path, key=key)


def _inputs_of(name: str, spec: ModalitySpec, inputs: tuple[str, ...], problems: list[Problem]) -> tuple[str, ...]:
    chosen: set[str] = set()
    for index, pattern in enumerate(spec.inputs):
        # A name stands for all that it holds: `batch` for `batch.audio` and `batch.video`.
        hits = {item for item in inputs if matches(pattern, item) or item.startswith(pattern + ".")}
        if not hits:
            text = f"no input is called `{pattern}`{did_you_mean(pattern, inputs)} (the model's: {listing(inputs)})"
            problems.append(Problem(("modalities", name, "inputs", index), text))
        chosen |= hits
    return tuple(item for item in inputs if item in chosen)


def _clashes(name: str, found: Mapping[str, tuple[str, ...]], specs: Mapping[str, ModalitySpec]) -> Iterator[Problem]:
    """Inputs that an earlier modality has already."""
    earlier = list(found)[: list(found).index(name)]
    for item in found[name]:
        for other in earlier:
            why = checks.overlap(_stretch(specs[other]), _stretch(specs[name])) if item in found[other] else None
            if why:
                text = f"input `{item}` already belongs to modality `{other}`; {why}"
                yield Problem(("modalities", name, "inputs"), text)


def _too_long(name: str, spec: ModalitySpec, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    if spec.slice is None:
        return
    dim, low, high = _cut(spec.slice)
    for item, shape in shapes.items():
        spelt = "×".join(str(size) for size in shape)
        if not -len(shape) <= dim < len(shape):
            text = f"input `{item}` has {len(shape)} axes ({spelt}); there is no axis {dim}"
            yield Problem(("modalities", name, "slice", "dim"), text)
        elif low >= shape[dim] or (high or 0) > shape[dim]:
            text = f"input `{item}` has {shape[dim]} along axis {dim} ({spelt}); the range reaches beyond it"
            yield Problem(("modalities", name, "slice", "range"), text)


def _cut(cut: Slice) -> tuple[int, int, int | None]:
    return cut.dim, *cut.range


def _stretch(spec: ModalitySpec) -> dict[str, Any] | None:
    return None if spec.slice is None else {"dim": spec.slice.dim, "range": spec.slice.range}


def _ids(value: Any) -> dict[int, str]:
    rules = value.get("rules") if isinstance(value, dict) else None
    if not isinstance(rules, list):
        return {}
    return {i: rule["id"] for i, rule in enumerate(rules) if isinstance(rule, dict) and isinstance(rule.get("id"), str)}


def _plain(value: Any, path: Path, problems: list[Problem]) -> Any:
    """Copy a user's values into dicts, lists and scalars, as YAML would have given them."""
    if len(path) > DEEPEST:
        problems.append(Problem(path[:DEEPEST], f"values are nested more than {DEEPEST} deep (a cycle?)"))
        return None
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, child in _held(value, value.items, path):
            if isinstance(key, str):
                out[key] = _plain(child, (*path, key), problems)
            else:
                problems.append(Problem(path, f"keys are text; found the {type(key).__name__} {key!r}"))
        return out
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        children = _held(value, lambda: value, path)
        return [_plain(child, (*path, index), problems) for index, child in enumerate(children)]
    if isinstance(value, _PLAIN):
        return value
    problems.append(Problem(path, f"rules hold text, numbers, lists and mappings; found a {type(value).__name__}"))
    return None


def _held(value: object, children: Callable[[], Iterable[Any]], path: Path) -> list[Any]:
    """What a container holds; those of other libraries compute values, and fail in ways of their own.

    Raises:
        RulesError: with what the library says (OmegaConf: a value of `???`, an interpolation that leads nowhere).
    """
    try:
        return list(children())
    except Exception as error:
        where = f"{spell(path)}: " if path else ""
        raise RulesError(f"<dict>: {where}the {type(value).__name__} cannot be read: {error}") from error


def _not_found(name: str) -> str:
    presets = preset_names()
    hint = did_you_mean(name, presets)
    return (
        f"there is no rules file {name!r} in {os.getcwd()!r}, and no preset of that name{hint} "
        f"(presets: {listing(presets)})"
    )
