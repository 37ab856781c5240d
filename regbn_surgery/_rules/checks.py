"""What the schema alone cannot say: values that must fit together, exist, or be readable as patterns.

Works on the plain values, before the schema has accepted them, so that all problems of a file come out at once;
each check therefore looks only at values of the type it expects and leaves the others to the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._codes import KINDS
from .._errors import RegBNOptionError
from ..nn.options import RegBNOptions, check_value
from . import references
from .naming import parts_of, unknown_part
from .patterns import PatternError, compile_pattern
from .problems import Path, Problem, did_you_mean, listing
from .validate import boolean_hint, show

SIZES = ("f_num_channels", "g_num_channels", "f_layer_dim", "g_layer_dim")
#: Options that are keys of the rule itself, since they change where tensors are taken and put back.
RULE_LEVEL = ("reduce", "replace", "fit")
#: What only a rule that normalises can say.
_TREATMENT = (
    "normalize", "against", "pairs", "regbn", *RULE_LEVEL, "methods", "missing", "samples", "mask", "allow_noncausal",
)  # fmt: skip
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


def check(value: Any) -> list[Problem]:
    """Every problem of a rules file's plain values that the schema does not see."""
    if not isinstance(value, dict):
        return []
    problems = list(_blanks(value, ()))
    problems += [
        Problem(path, unknown_code(code))
        for code, path in _texts(value.get("ignore"), ("ignore",))
        if code not in KINDS
    ]
    problems += _check_inputs(_mapping(value.get("inputs")))
    problems += _check_modalities(_mapping(value.get("modalities")))
    problems += _check_matches(value)
    problems += _check_ids(_rules(value))
    defaults = _mapping(value.get("defaults"))
    problems += _check_options(_mapping(defaults.get("regbn")), None, ("defaults", "regbn"))
    shared = _mapping(defaults.get("regbn"))
    names = list(_mapping(value.get("modalities")))
    problems += _check_names(defaults, names, ("defaults",))
    for index, rule in _rules(value):
        path: Path = ("rules", index)
        problems += _check_shape(rule, path)
        problems += _check_options(_mapping(rule.get("regbn")), shared, (*path, "regbn"))
        problems += _check_names(rule, names, path)
    for key, override in _mapping(value.get("overrides")).items():
        over = _mapping(override)
        problems += _check_options(_mapping(over.get("regbn")), None, ("overrides", key, "regbn"))
        problems += _check_names(over, names, ("overrides", key))
    return problems


def unknown_code(code: str) -> str:
    """What is wrong with a code that no note has."""
    return f"no note has the code `{code}`{did_you_mean(code, KINDS)} (codes are listed in docs/notes.md)"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any, path: Path) -> Iterator[tuple[str, Path]]:
    """Each text of a value that may be one text or a list of them, with where it stands."""
    if isinstance(value, str):
        yield value, path
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str):
                yield item, (*path, index)


def _rules(value: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    rules = value.get("rules")
    if not isinstance(rules, list):
        return []
    return [(index, rule) for index, rule in enumerate(rules) if isinstance(rule, dict)]


def _blanks(value: Any, path: Path) -> Iterator[Problem]:
    """A key with nothing after it: `kind:` alone would otherwise mean every kind."""
    means_none = path[-2:-1] == ("regbn",) or path[-3:] == ("slice", "range", 1)
    if value is None and path and not means_none:
        yield Problem(path, "this key has no value; give it one or remove it")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in children:
        yield from _blanks(child, (*path, step))


def _check_inputs(inputs: dict[str, Any]) -> Iterator[Problem]:
    for name, spec in inputs.items():
        path: Path = ("inputs", name)
        if not all(name.split(".")):
            yield Problem(path, f"`{name}` is not an input name: a segment between dots is empty", at_key=True)
        above = ".".join(name.split(".")[:-1])
        if above and above in inputs:
            yield Problem(path, f"`{above}` is given as a tensor, so it cannot also hold `{name}`", at_key=True)
        if not isinstance(spec, dict):
            continue
        dtype, bounds = spec.get("dtype", "float32"), spec.get("range")
        integer = isinstance(dtype, str) and dtype in _INTEGERS
        if integer and bounds is None and "range" not in spec:
            yield Problem(
                path,
                f"an input of dtype {dtype} needs its range, as in `range: [0, 100]` (high left out): "
                "indices outside an embedding table would fail",
            )
        if not integer and bounds is not None:
            yield Problem(
                (*path, "range"),
                "a range is for whole numbers; floating inputs are drawn from a standard normal",
            )
        numbers = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(x, int) for x in bounds)
        if integer and isinstance(bounds, list) and numbers and bounds[0] >= bounds[1]:
            yield Problem((*path, "range"), f"low must be below high; found {bounds[0]} and {bounds[1]}")


def _check_modalities(modalities: dict[str, Any]) -> Iterator[Problem]:
    owners: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for name, spec in modalities.items():
        path: Path = ("modalities", name)
        if name == "":
            yield Problem(path, "a modality needs a name", at_key=True)
        if not isinstance(spec, dict):
            spec, short = {"inputs": spec}, True
        else:
            short = False
            yield from _check_parts(spec, path)
        for key in ("inputs", "modules"):
            for text, where in _texts(spec.get(key), path if short else (*path, key)):
                yield from _check_pattern(text, where)
                for other, stretch in owners.get((key, text), []):
                    why = overlap(stretch, spec.get("slice")) if key == "inputs" else "name each module once"
                    if why:
                        yield Problem(where, f"`{text}` already belongs to modality `{other}`; {why}")
                owners.setdefault((key, text), []).append((name, spec.get("slice")))


def _check_parts(spec: dict[str, Any], path: Path) -> Iterator[Problem]:
    """Which keys of a modality go together."""
    if "inputs" not in spec and "modules" not in spec and not _misspelt(spec):
        yield Problem(path, "a modality needs `inputs`, as in `inputs: [pixel_values]`, or `modules`")
    if "inputs" in spec and "modules" in spec:
        yield Problem((*path, "modules"), "a modality has `inputs` or `modules`, not both; make two of it", at_key=True)
    if "slice" not in spec:
        return
    if "modules" in spec:
        yield Problem((*path, "slice"), "`slice` cuts inputs, not the outputs of modules", at_key=True)
    bounds = _mapping(spec["slice"]).get("range")
    if isinstance(bounds, list) and len(bounds) == 2 and isinstance(bounds[0], int):
        if bounds[0] < 0:
            yield Problem((*path, "slice", "range"), f"a slice counts from the front, from 0; found {bounds[0]}")
        elif isinstance(bounds[1], int) and bounds[0] >= bounds[1]:
            yield Problem((*path, "slice", "range"), f"low must be below high; found {bounds[0]} and {bounds[1]}")


def _misspelt(spec: dict[str, Any]) -> bool:
    return any(did_you_mean(key, ("inputs", "modules")) for key in spec)


def overlap(first: Any, second: Any) -> str | None:
    """Why two modalities cannot share an input; None where they take stretches of it that lie side by side.

    Stretches are mappings with `dim` and `range`; what is not of that form the schema refuses.
    """
    if first is None or second is None:
        return "an input has one modality, unless each takes a `slice` of it"
    one, two = _mapping(first), _mapping(second)
    ranges = one.get("range"), two.get("range")
    if not all(isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[0], int) for r in ranges):
        return None
    if one.get("dim") != two.get("dim"):
        return f"slices of one input lie along one axis; found dim {one.get('dim')} and dim {two.get('dim')}"
    (low, high), (other_low, other_high) = (
        (r[0], r[1] if isinstance(r[1], int) else float("inf"))  # type: ignore[index]
        for r in ranges
    )
    return "their slices overlap" if low < other_high and other_low < high else None


def _check_matches(value: dict[str, Any]) -> Iterator[Problem]:
    found: list[tuple[dict[str, Any], Path]] = []
    exclude = value.get("exclude")
    for index, item in enumerate(exclude if isinstance(exclude, list) else [exclude]):
        path: Path = ("exclude", index) if isinstance(exclude, list) else ("exclude",)
        if item == {}:
            yield Problem(path, "this excludes every fusion point; name a kind, owner, point, level or modalities")
        found.append((_mapping(item), path))
    for index, rule in _rules(value):
        found.append((_mapping(rule.get("match")), ("rules", index, "match")))
    for match, path in found:
        for key in ("owner", "point"):
            for text, where in _texts(match.get(key), (*path, key)):
                yield from _check_pattern(text, where)
        names = [text for text, _ in _texts(match.get("between"), ())]
        for name in sorted({name for name in names if sum(_same(name, other) for other in names) > 1}):
            yield Problem((*path, "between"), f"`{name}` is named twice; a modality does not meet itself")


def _check_pattern(text: str, path: Path) -> Iterator[Problem]:
    try:
        compile_pattern(text)
    except PatternError as error:
        yield Problem(path, str(error))


def _check_ids(rules: list[tuple[int, dict[str, Any]]]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, rule in rules:
        name = rule.get("id")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield Problem(
                ("rules", index, "id"), f"the id `{name}` is already that of rule {first[name] + 1}; choose another"
            )


def _check_shape(rule: dict[str, Any], path: Path) -> Iterator[Problem]:
    """Which keys of a rule go together."""
    if "match" in rule and "pair" in rule:
        yield Problem((*path, "pair"), "a rule has `match` or `pair`, not both; make two rules of it", at_key=True)
    if "match" not in rule and "pair" not in rule:
        yield Problem(path, "a rule needs `match` (which fusion points; `match: {}` for all) or `pair`")
    if rule.get("action") == "skip":
        if "pair" in rule:
            yield Problem(
                (*path, "action"),
                "a pair is only normalised if a rule asks for it, so there is nothing to skip; remove this rule",
            )
        for key in _TREATMENT:
            if key in rule:
                yield Problem((*path, key), f"`{key}` does nothing in a rule that skips; remove it", at_key=True)
    elif "pair" in rule:
        for key in ("normalize", "against", "pairs"):
            if key in rule:
                yield Problem((*path, key), f"`{key}` does not go with `pair`, which names f and g", at_key=True)
        named = [text for text in _mapping(rule["pair"]).values() if isinstance(text, str)]
        if "expect" in rule and not any(references.is_pattern(text) for text in named):
            yield Problem(
                (*path, "expect"), "a `pair` without a pattern is always one pair; remove `expect`", at_key=True
            )
    elif "pairs" in rule:
        for key in ("normalize", "against"):
            if key in rule:
                yield Problem(
                    (*path, key),
                    f"`{key}` does not go with `pairs: all`, which takes every pair in the order of `modalities`",
                    at_key=True,
                )
    pair = _mapping(rule.get("pair"))
    f, g = pair.get("f"), pair.get("g")
    if isinstance(f, str) or isinstance(g, str):  # the other may be missing, which is told elsewhere
        for wrong in references.wrongs(f if isinstance(f, str) else None, g if isinstance(g, str) else None):
            yield Problem((*path, "pair", *filter(None, [wrong.letter])), wrong.text)
    count = _mapping(rule.get("expect"))
    low, high = count.get("min", 0), count.get("max")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        yield Problem((*path, "expect"), f"min {low} is above max {high}")


def _check_names(rule: dict[str, Any], modalities: list[str], path: Path) -> Iterator[Problem]:
    """Modalities that a rule names, where the file itself lists them (else the model's inputs decide, later)."""
    normalize, against = rule.get("normalize"), rule.get("against")
    if isinstance(normalize, str) and isinstance(against, str) and _same(normalize, against):
        yield Problem((*path, "against"), f"`{against}` cannot be normalised against itself")
    if not modalities:
        return
    named = [
        *_texts(normalize, (*path, "normalize")),
        *_texts(against, (*path, "against")),
        *_texts(_mapping(rule.get("match")).get("between"), (*path, "match", "between")),
    ]
    named += [(name, (*path, "mask", name)) for name in _mapping(rule.get("mask")) if isinstance(name, str)]
    for name, where in named:
        if parts_of(name, modalities) is None:
            yield Problem(where, unknown_modality(name, modalities))


def _same(name: str, other: str) -> bool:
    """Whether two names say the same modalities, in whatever order."""
    return set(name.split("+")) == set(other.split("+"))


def unknown_modality(name: str, known: list[str]) -> str:
    """The sentence for a modality that nobody defined."""
    wrong = unknown_part(name, known)
    inside = "" if wrong == name else f" (in `{name}`)"
    return f"there is no modality `{wrong}`{inside}{did_you_mean(wrong, known)} (known: {listing(known)})"


def _check_options(options: dict[str, Any], shared: dict[str, Any] | None, path: Path) -> Iterator[Problem]:
    """Names, types and ranges of RegBN's options, each by itself and then together with the defaults.

    `shared` None: these are defaults or an override, which the options of a rule complete.
    """
    good: dict[str, Any] = {}
    names = RegBNOptions.names()
    for name, value in options.items():
        where: Path = (*path, name)
        if name in SIZES:
            if not _is_size(name, value):
                wanted = "a list of whole numbers of at least 1" if name.endswith("dim") else "a whole number"
                yield Problem(where, f"`{name}` is {wanted}; found {show(value)}")
        elif name in RULE_LEVEL:
            yield Problem(where, f"`{name}` is a key of the rule itself: move it one level up", at_key=True)
        elif name not in names:
            known = [known for known in (*names, *SIZES) if known not in RULE_LEVEL]
            hint = did_you_mean(name, known) or f"; known: {listing(known, limit=40)}"
            yield Problem(where, f"RegBN has no option `{name}`{hint}", at_key=True)
        elif text := _value_error(name, value):
            yield Problem(where, text)
        else:
            good[name] = value
    # A misspelt value says nothing about the others.
    all_good = all(name in good for name in options if name in names and name not in RULE_LEVEL)
    if shared is None:  # a rule adds what is missing here: only what stands here can be judged
        good = {name: value for name, value in good.items() if name not in _WITH_ANOTHER and value != "fixed"}
    usable = {key: value for key, value in (shared or {}).items() if key in names and not _value_error(key, value)}
    if good and all_good and (text := _contradiction({**usable, **good})):
        yield Problem(path, text)


#: Options that mean something only beside another one.
_WITH_ANOTHER = ("rank", "lam", "lam_scale")


def _value_error(name: str, value: Any) -> str | None:
    try:
        check_value(name, value)
    except RegBNOptionError as error:
        return f"{error}{boolean_hint(value)}"
    return None


def _contradiction(options: dict[str, Any]) -> str | None:
    try:
        RegBNOptions(**options)
    except RegBNOptionError as error:
        return str(error)
    return None


def _is_size(name: str, value: Any) -> bool:
    def whole(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= 1

    if name.endswith("_dim"):
        return isinstance(value, list) and all(whole(item) for item in value)
    return whole(value)
