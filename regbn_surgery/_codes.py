"""The codes of all notes and warnings: one meaning each, for good. A note is a text that begins with its code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class NoteKind:
    """What a code means and what to do about it. `minor` ones are shown only to who asks for all notes."""

    code: str
    title: str
    advice: str
    minor: bool = False


_KINDS = (
    # inspect
    NoteKind("RB001", "fewer than two modalities", "Name them: `--modality NAME=INPUT`, or `modalities=` in Python."),
    NoteKind("RB002", "two modalities never meet", "Nothing, if the model keeps them apart on purpose."),
    NoteKind(
        "RB003",
        "two modalities are stacked into one batch and processed together",
        "RegBN cannot tell them apart there; use the model before that call, or name places by a rule with `pair`.",
    ),
    NoteKind(
        "RB004",
        "the stream of a modality ends before it meets another one",
        "Look at the line that is named: its result carries no features, or goes on as a Python value.",
    ),
    NoteKind(
        "RB005",
        "two modalities may meet in code that cannot be followed",
        "See the RB007 notes for the places.",
    ),
    NoteKind(
        "RB006",
        "two modalities that are parts of one input are processed together",
        "Give them to the model as inputs of their own, or normalise later, where they are apart.",
    ),
    NoteKind(
        "RB007",
        "a tensor is created by code that cannot be followed",
        "Replace numpy, scripted functions or extensions on the way of the data by torch operations.",
    ),
    NoteKind(
        "RB008",
        "the forward does something that a graph of it does not repeat",
        "Nothing, as long as RegBN can be put in: the model's own code runs.",
    ),
    NoteKind(
        "RB009",
        "tensor values are read into Python, so that the path may depend on them",
        "Nothing, if all inputs take the same path; else give a second example, `[one, other]`, or use `verify`.",
        minor=True,
    ),
    NoteKind(
        "RB010",
        "the model does not run in training mode on the example",
        "Add to the example what training needs, such as targets.",
    ),
    NoteKind(
        "RB011",
        "batch axes are unknown: the inputs share no batch axis",
        "Give example inputs as a function of the batch size, or a second example of another batch size.",
    ),
    NoteKind(
        "RB012",
        "batch axes are unknown: the model runs on no other number of samples",
        "Give a second example of another batch size, or say `samples: rows` in a rule.",
    ),
    NoteKind("RB013", "RegBN cannot go to a fusion point", "The note says why; leave the point out."),
    NoteKind("RB014", "a remark on a fusion point", "Nothing; it says how the modalities meet there."),
    NoteKind(
        "RB015",
        "an input is not counted as a modality",
        "If it is one, list it under `modalities` or by `--modality`.",
    ),
    NoteKind(
        "RB016",
        "values on the example are not finite",
        "Look at the operation that is named, or at the data: RegBN learns nothing from batches with NaN or inf.",
    ),
    NoteKind(
        "RB017",
        "the model calls a RegBN that its author has placed",
        "Nothing, if it is to stay: rules put further ones in. Else take the call out of `forward`.",
    ),
    # plan and regbnify
    NoteKind(
        "RB101",
        "a rule, an exclude or an override selects nothing (under `strict: warn`)",
        "Correct or remove it.",
    ),
    NoteKind(
        "RB102",
        "a fusion point is left out, since RegBN cannot go there",
        "The note says why; `action: skip` for the point makes it explicit.",
    ),
    NoteKind(
        "RB103",
        "a fusion point is left out, since putting RegBN in failed",
        "The note says why; `action: skip` for the point makes it explicit.",
    ),
    NoteKind(
        "RB104",
        "RegBN takes values out of the range that the next function needs",
        "Normalise before that function by a rule with `pair`, or leave the point out.",
    ),
    NoteKind(
        "RB105",
        "the projections of all sites are large together",
        "`regbn: {projection: low_rank}`, `reduce: mean`, or fewer points.",
    ),
    NoteKind("RB106", "the surgery fails on a copy of the model", "The note has the error; `regbnify` would raise it."),
    NoteKind(
        "RB107",
        "the output norms change a pretrained model before the first training step",
        "Set `regbn: {normalize_output: false}`.",
    ),
    NoteKind(
        "RB108",
        "a causal f is fitted on its own batch, so that training sees later positions",
        "Leave `fit` at `running`.",
    ),
    NoteKind("RB109", "a causal f is normalised with the projection from before the step", "Nothing.", minor=True),
    NoteKind(
        "RB110",
        "the output norms of a causal f run over its positions",
        "Set `reduce: mean` or `normalize_output: false`.",
    ),
    NoteKind(
        "RB111",
        "g is causal: what is predicted at one position sees later ones",
        "Exchange f and g, unless that is wanted (`allow_noncausal`).",
    ),
    NoteKind(
        "RB112",
        "the training steps are too few for the running projection",
        "Raise `momentum`, or set `correct_start: true`.",
    ),
    NoteKind(
        "RB113",
        "a similarity head is normalised",
        "Make sure that this is wanted: RegBN removes what such a head measures.",
    ),
    NoteKind(
        "RB114",
        "the same two modalities are normalised at several points",
        "Keep those that are wanted, for example the last one (`nth: -1`).",
    ),
    NoteKind(
        "RB115",
        "one batch does not determine the projection: g has more features than the example has samples",
        "Nothing, if training batches are larger than g has features; else larger batches or `reduce: mean` help.",
        minor=True,
    ),
    NoteKind("RB116", "one projection is large", "`regbn: {projection: low_rank}` or `reduce: mean`."),
    NoteKind(
        "RB117",
        "the model does not run on all samples of the example",
        "Nothing; independence was not tested.",
        minor=True,
    ),
    NoteKind(
        "RB118",
        "f and g look linearly independent in the example",
        "There may be nothing to remove: measure with `diagnose` on more data.",
    ),
    NoteKind(
        "RB119",
        "one point has several operands of one modality, and a RegBN for each",
        "If one is enough, name the layers that make its operands: `pair: {f: ..., g: ...}`.",
    ),
    NoteKind(
        "RB120",
        "planned for a model without weights: less is known than with them",
        "Load weights (any values do) before you rely on the plan; `show` and `regbnify` need them anyway.",
    ),
    NoteKind(
        "RB121",
        "f or g is all but the same for all samples of the example",
        "Look at what makes it: an encoder that has collapsed, an input that does not reach it, an example of copies. "
        "For a g like this, `normalize_input: true` or `constraint: fixed` bounds the projection.",
    ),
    NoteKind(
        "RB123",
        "a side is averaged over positions, padding included, although the model has a mask that marks it",
        "Nothing, or `mask: none` in the rule, if your batches are not padded. Else name the mask in the rule, as in "
        "`mask: {text: attention_mask}`; it is an argument of the module in which the fusion happens. See "
        "[padding](regbn.md#padding).",
    ),
    NoteKind(
        "RB125",
        "g contains f already, by an earlier fusion",
        "`pair` with the layer that makes g before that fusion. Leave it where it is meant, as between two rounds of "
        "co-attention.",
    ),
    NoteKind(
        "RB126",
        "a residual connection adds a side to the result of its attention as it was",
        "`pair` with the layers that make both sides (and `replace: f`), so that all that follows reads f'. Leave it "
        "where RegBN is to act on the attention alone.",
    ),
    # verify
    NoteKind(
        "RB201",
        "a RegBN did not run in a call",
        "Nothing, if a modality is left out in it (see `missing` in the rules). If the note names a call at which f "
        "and g meet, give `regbnify` such a call as a second example, or add a rule for that call.",
    ),
    NoteKind("RB202", "f and g are exchanged in a call", "Name both sides in the rule: `normalize` and `against`."),
    NoteKind(
        "RB203", "a RegBN ran on other modalities in a call", "Split the rule, or give `regbnify` such a call, too."
    ),
    NoteKind(
        "RB204",
        "a RegBN ran in a call, but the model does not use what it returned",
        "Give `regbnify` such a call as a second example; if the note remains, report the model.",
    ),
    NoteKind(
        "RB205",
        "a RegBN ran inside a layer of torch, where f and g cannot be checked",
        "Nothing; to have it checked, write the layer as a module of your own.",
    ),
    # diagnose
    NoteKind("RB301", "after RegBN g explains more of f than before", "The note names the option that helps."),
    NoteKind("RB302", "f and g share next to nothing linear: there is little to remove", "Leave RegBN out there."),
    NoteKind("RB303", "how many shared directions the chosen constraint removes", "The note names the alternative."),
    NoteKind("RB304", "evaluation removes less than training", "`update_regbn` after training, or larger batches."),
    NoteKind("RB305", "too few samples were seen at a site", "Give more batches: `--batches`."),
    NoteKind(
        "RB306",
        "the steps of `diagnose` are too few for the running projection",
        "Give more `--steps`, or leave them out.",
    ),
    NoteKind("RB307", "batches of one sample are left out of the fit", "Give batches of two or more samples."),
    NoteKind("RB308", "samples whose features are not finite are left out", "Look for NaN and inf in the data."),
    NoteKind(
        "RB309", "a RegBN of the measured model has seen no training step", "Train it first, or load its weights."
    ),
    # a rewritten model in use
    NoteKind(
        "RB401",
        "a call of a rewritten model does not fuse its modalities",
        "Nothing, if the call is meant so: `missing: ignore` in the rule.",
    ),
    NoteKind(
        "RB402",
        "a module with several RegBN is called from a place that the example did not show",
        "Give `regbnify` a second example that takes this path.",
    ),
    NoteKind("RB403", "a RegBN could not be folded", "The warning says why; it stays in the model."),
    NoteKind("RB404", "the recipe could not be written beside the weights", "Call `save_regbn`."),
    NoteKind("RB405", "a checkpoint with RegBN was loaded without it", "Call `load_regbn` after `from_pretrained`."),
    NoteKind(
        "RB406",
        "adapters do not save the state of RegBN",
        "Add the names to `modules_to_save`; the warning says how to keep what is trained already.",
    ),
    NoteKind("RB407", "a call reaches none of the RegBN of its host", "Nothing, if the call is meant so."),
    NoteKind("RB408", "a new instance of a rewritten class has no RegBN", "Call `load_regbn` or `regbnify`."),
    NoteKind("RB409", "each rank fits its own part of the batch", "Call `convert_sync_regbn(model)`."),
    NoteKind("RB410", "a batch was not finite and was skipped", "Look for NaN in the data or the loss."),
    NoteKind("RB411", "Python or torch is newer than this release was tried with", "`verify` the rewritten model."),
    NoteKind("RB412", "a model around saves RegBN's weights, but no recipe", "Call `regbnify` on it, or `save_regbn`."),
    NoteKind(
        "RB413",
        "a RegBN subtracted far more than the size of f, or would in evaluation, by its running projection",
        "g hardly varied when W was fitted, or has grown since: look at g, or set `normalize_input: true`, or "
        "`constraint: fixed` with `lam`. If g is as it should be now, `update_regbn` forms the running projection "
        "again.",
    ),
    NoteKind(
        "RB414",
        "a folder holds the weights of a model with adapters, under names of PEFT's",
        "Merge the adapters before `save_regbn`; the warning gives the line.",
    ),
    NoteKind(
        "RB416",
        "`update_regbn` could not fit a RegBN on any batch",
        "Give batches that are finite and have two or more samples in which both modalities are there.",
    ),
    NoteKind(
        "RB417",
        "a batch has more items than the model requires: how they were passed, or which were left out",
        "Nothing, if it was passed as the warning says; else give pairs `((inputs), target)`, or dicts of arguments.",
    ),
    NoteKind(
        "RB418",
        "a mask that a training step was given fits no side of a RegBN, so that padding counts",
        "Give it as `[batch, length]`, as in the example, or leave it out.",
    ),
    NoteKind(
        "RB419",
        "`update_regbn` was called on a model without RegBN",
        "Nothing, where that is meant; else give the model that `regbnify` has returned.",
    ),
)
#: Every kind of note by its code.
KINDS = MappingProxyType({kind.code: kind for kind in _KINDS})

_CODE = re.compile(r"(RB\d{3}) ")


def coded(code: str, text: str) -> str:
    """A note: `RB002 ...`. Raises KeyError for a code that the table does not have."""
    return f"{KINDS[code].code} {text}"


def code_of(note: str) -> str:
    """The code with which a note begins; "" for a text without."""
    found = _CODE.match(note)
    return found[1] if found else ""


def text_of(note: str) -> str:
    """A note without its code."""
    return _CODE.sub("", note, count=1)


def is_minor(note: str) -> bool:
    kind = KINDS.get(code_of(note))
    return kind is not None and kind.minor


def kept(notes: Iterable[str], ignore: Collection[str]) -> tuple[str, ...]:
    """The notes whose codes are not ignored."""
    return tuple(note for note in notes if code_of(note) not in ignore)


def page() -> str:
    """The table of all codes, as `docs/notes.md`."""
    lines = [
        "# Notes and warnings",
        "",
        "<!-- Written by `python -m regbn_surgery._codes > docs/notes.md`; a test compares it with the code. -->",
        "",
        "Every note and warning begins with a code that keeps its meaning. To switch some off, list them in the rules",
        "file (`ignore: [RB114]`) or give `--ignore RB114` to a command. Warnings of a model in use (RB4..) are",
        'Python warnings: `warnings.filterwarnings("ignore", message="RB401")`. Codes marked * are shown with',
        "`--verbose` only.",
    ]
    for start, title in _SECTIONS.items():
        lines += ["", f"## {title}", "", "| code | meaning | what to do |", "| --- | --- | --- |"]
        chosen = [kind for kind in _KINDS if kind.code.startswith(start)]
        lines += [f"| {kind.code}{'*' if kind.minor else ''} | {kind.title} | {kind.advice} |" for kind in chosen]
    return "\n".join(lines) + "\n"


_SECTIONS = {
    "RB0": "What `inspect` found",
    "RB1": "What `plan` and `regbnify` do",
    "RB2": "What `verify` found",
    "RB3": "What `diagnose` measured",
    "RB4": "A rewritten model in use",
}


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
