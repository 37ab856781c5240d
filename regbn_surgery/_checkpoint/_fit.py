"""Does a recipe fit its model? Classes, layers and functions are compared before anything is touched."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._errors import RecipeError
from .._surgery import Operation
from .._surgery._changed import change_of
from .._surgery._classes import original_class
from .._version import __version__
from ._source import find_again, line_offsets, signature_only
from ._sources import Key, with_keys

if TYPE_CHECKING:
    from ._recipe import Recipe


def fitted(recipe: Recipe, model: nn.Module) -> tuple[Operation, ...]:
    """The operations with the functions of the recipe, and the files and lines of now.

    Raises:
        RecipeError: where the model is not what the recipe was made from; it says what has changed.
    """
    problems, moved = _compare_classes(recipe, model)
    problems += _missing_modules(recipe, model)
    lines, changed = _lines_now(recipe, moved)
    if problems or changed:
        raise RecipeError(refusal(recipe, model, problems + changed))

    def absolute(key: Key) -> Key:
        name, number, line, nth = key
        if not number:
            return key
        if int(number) not in lines:
            raise RecipeError(
                refusal(
                    recipe,
                    model,
                    [f"a graph refers to {recipe.sources[int(number)].name}, of which the recipe has no source text"],
                )
            )
        file, first, offsets = lines[int(number)]
        return (name, file, first + offsets.get(line, line), nth)

    functions = {(host.path, host.tier == 1): host.functions for host in recipe.hosts}
    texts = {host: tuple(recipe.sources[number] for number in numbers) for host, numbers in functions.items()}
    return tuple(
        replace(op, graph=with_keys(op.graph, absolute), texts=texts.get((op.host, op.tier == 1), ()))
        for op in recipe.operations
    )


def _lines_now(recipe: Recipe, moved: dict[str, str]) -> tuple[dict[int, tuple[str, int, dict[int, int]]], list[str]]:
    """Of functions that graphs name: file, first line and where each line stands now; and what has changed in them.
    All others are compared when the surgery looks into them."""
    now: dict[int, tuple[str, int, dict[int, int]]] = {}
    problems = []
    for number, source in enumerate(recipe.sources):
        if source.code:
            continue
        found, wrong = find_again(source, moved)
        if found is None:
            problems.append(wrong)
            continue
        try:
            now[number] = (found.file, found.first, line_offsets(source.text, found.text))
        except RecipeError as error:
            problems.append(f"{source.name} is the same code, but {error}")
    return now, problems


def _compare_classes(recipe: Recipe, model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """What is wrong with the classes, and where modules that have only moved are now."""
    problems = []
    moved: dict[str, str] = {}
    forwards = {source.name: source for source in recipe.sources}
    classes = {"": recipe.model, **{host.path: host.host_class for host in recipe.hosts}}
    for path, recorded in {**classes, **{module.path: module.opened_class for module in recipe.opened}}.items():
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
        then = forwards.get(f"{module}:{name}.forward")
        if then is not None and module.split(".")[0] == "torch":
            problems += [change for change in [change_of(then, signature_only(cls))] if change]
    return problems, moved


def _missing_modules(recipe: Recipe, model: nn.Module) -> list[str]:
    """Which of the layers that make f and g, or that call or keep a site, are not where they were."""
    there = dict(model.named_modules(remove_duplicate=False))
    sites = [(op.host, site) for op in recipe.operations if (site := op.code or op.graph) is not None]
    makers = dict.fromkeys(f"{host}.{path}".lstrip(".") for host, site in sites for path in site.makers if path)
    others = dict.fromkeys(
        path for op in recipe.operations for path in (op.keeper, *(op.roles[1:] if op.roles else ())) if path
    )
    return [
        f"there is no module at `{path}` any more{why}"
        for paths, why in ((makers, "; RegBN used its output"), (others, ""))
        for path in paths
        if path not in there
    ]


def refusal(recipe: Recipe, model: nn.Module, problems: list[str]) -> str:
    """What is told where a recipe does not fit."""
    now = versions_of(model)
    other = [f"{k} {v}, now {now.get(k, 'absent')}" for k, v in recipe.versions.items() if now.get(k) != v]
    return (
        f"The recipe for {recipe.model} does not fit this {_name(original_class(model))}; nothing was changed.\n- "
        + "\n- ".join(problems)
        + (f"\nIt was made with {'; '.join(other)}." if other else "")
        + "\nCall regbnify with the rules to make a new one, or restore the code that it was made from."
    )


def class_at(model: nn.Module, path: str) -> str:
    return _name(original_class(model.get_submodule(path)))


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def versions_of(model: nn.Module) -> dict[str, str]:
    """Of what a model is made with, by package."""
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
