"""Write the source of a model once as a user would, and once as its oracle, from the same choices.

A form says what it writes by `let` and `make` (f and g are made here) and by `join` (they meet here). In the plain
source these are the bare expressions; in the oracle they carry the marks that `_by_hand` reads.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTHS = {"a": 6, "b": 5, "c": 7}
HIDDEN = 8
#: Names of the tensors that the branches of a, b and c make.
MADE = {"a": "p", "b": "q", "c": "r"}


@dataclass
class Way:
    """One way to call the model: arguments beside the inputs, attributes set before, and inputs left out."""

    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


class Writer:
    """Collects the parts of one source. The same seed gives the same choices for the model and for its oracle."""

    def __init__(self, seed: int, oracle: bool) -> None:
        self.random = random.Random(seed)
        self.oracle = oracle
        self.forms: list[str] = []
        self.functions: list[str] = []
        self.methods: list[str] = []
        self.init: list[str] = []
        self.body: list[str] = []
        self.arguments: dict[str, str] = {}
        self.ways: list[Way] = []
        self.kinds: tuple[str, ...] = ("concat",)
        self.sides = {"a": "g", "b": "f"} if self.chance(0.3) else {"a": "f", "b": "g"}
        self.sites = ["regbn_late"]
        self.more_rules: list[dict[str, Any]] = []
        self.third = False
        self.optional: set[str] = set()
        self.replace: str | None = None
        self.symmetric = True
        self.pickles = True
        self.depth = 0
        self.decorators: list[str] = []
        self.class_name = "Net"
        self.after: list[str] = []
        self.root = "Net"
        self.results: list[str] = []

    # -- choices -----------------------------------------------------------------------------------------------

    def choose(self, what: str, options: Sequence[Any]) -> Any:
        """Choose one of some functions or texts, and remember its name as a form."""
        chosen = self.random.choice(options)
        self.forms.append(f"{what}: {chosen if isinstance(chosen, str) else chosen.__name__.strip('_')}")
        return chosen

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    # -- parts of the source -----------------------------------------------------------------------------------

    def function(self, text: str) -> None:
        """Write a function or class of the module, once."""
        text = textwrap.dedent(text).strip("\n")
        if text not in self.functions:
            self.functions.append(text)

    def method(self, text: str) -> None:
        """Write a method of the model's class, once."""
        text = textwrap.dedent(text).strip("\n")
        if text not in self.methods:
            self.methods.append(text)

    def attribute(self, line: str) -> None:
        """Write a line of `__init__`, once."""
        if line not in self.init:
            self.init.append(line)

    def line(self, text: str) -> None:
        """Write lines of `forward`, at the present depth."""
        self.body.append(textwrap.indent(textwrap.dedent(text).strip("\n"), "    " * self.depth))

    def argument(self, name: str, default: str, *others: Any) -> None:
        """Give `forward` a keyword argument, and a way to call it for each other value."""
        self.arguments[name] = default
        self.ways += [Way({name: value}) for value in others]

    # -- what the oracle marks ---------------------------------------------------------------------------------

    def marked(self, modality: str, expression: str, regbn: str = "self.regbn_late", side: str | None = None) -> str:
        """Write an expression that makes the tensor of a modality, as the side that the first rule gives it."""
        side = side or self.sides.get(modality)
        if not self.oracle or side is None:
            return expression
        return f'mark({expression}, "{side}", {regbn})'

    def mark(self, modality: str, name: str = "", regbn: str = "self.regbn_late", side: str | None = None) -> None:
        """Mark a tensor that the lines before have made."""
        if self.oracle:
            self.line(self.marked(modality, name or MADE[modality], regbn, side))

    def join(self, template: str, *operands: str) -> str:
        """Write a joining call: `{0}`, `{1}`, ... of the template are its operands."""
        if not self.oracle:
            return template.format(*operands)
        names = [f"operand_{index}" for index in range(len(operands))]
        return f"(lambda {', '.join(names)}: {template.format(*names)})(*join({', '.join(operands)}))"

    def join_list(self, template: str, sequence: str) -> str:
        """Write a joining call: `{0}` of the template is an expression that gives the list of its operands."""
        return template.format(f"join(*{sequence})" if self.oracle else sequence)

    # -- the whole ---------------------------------------------------------------------------------------------

    def parameters(self) -> str:
        """Return the parameters of `forward` after self."""
        inputs = ["a", "b", *(["c"] if self.third else [])]
        first = min((inputs.index(name) for name in self.optional), default=len(inputs))
        given = [name if index < first else f"{name}=None" for index, name in enumerate(inputs)]
        return ", ".join([*given, *(f"{name}={value}" for name, value in self.arguments.items())])

    def passed(self) -> str:
        """Return the arguments of `forward` as a caller with the same parameters passes them on."""
        inputs = ["a", "b", *(["c"] if self.third else [])]
        return ", ".join([*inputs, *(f"{name}={name}" for name in self.arguments)])

    def source(self) -> str:
        layers = [f"self.f{name} = nn.Linear({WIDTHS[name]}, {HIDDEN})" for name in ("a", "b", "c")]
        made = {line.split(" = ")[0] for line in self.init}
        lines = [
            f'"""Forms: {"; ".join(self.forms)}."""',
            *IMPORTS,
            *(["from tests.python_forms._by_hand import join, join_pairwise, mark"] if self.oracle else []),
            *(f"\n\n{text}" for text in self.functions),
            f"\n\nclass {self.class_name}(nn.Module):",
            _indented("def __init__(self):", 1),
            _indented("super().__init__()", 2),
            *(_indented(line, 2) for line in layers if line.split(" = ")[0] not in made),
            *(_indented(line, 2) for line in self.init),
            "",
            *(_indented(line, 1) for line in self.decorators),
            f"    def forward(self, {self.parameters()}):",
            *(_indented(line, 2) for line in self.body),
            *(f"\n{_indented(method, 1)}" for method in self.methods),
            *(f"\n\n{text}" for text in self.after),
        ]
        return "\n".join(lines) + "\n"


IMPORTS: Sequence[str] = (
    "import contextlib",
    "import dataclasses",
    "import functools",
    "import operator",
    "import types",
    "import torch",
    "import torch.nn.functional as F",
    "from torch import nn",
)


def _indented(text: str, depth: int) -> str:
    return textwrap.indent(text, "    " * depth)
