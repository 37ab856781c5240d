"""How a branch is written: the forms of Python in which f and g are made.

A `single` form is an expression for one modality. A `together` form is a block that makes p and q at once.
"""

from __future__ import annotations

from collections.abc import Callable

from ._writer import HIDDEN, MADE, WIDTHS, Way, Writer

Single = Callable[[Writer, str], str]


def child(w: Writer, m: str) -> str:
    return f"self.f{m}({m})"


def child_with_its_own_forward(w: Writer, m: str) -> str:
    w.function("""
        class Tower(nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.layer = nn.Linear(width, hidden)

            def forward(self, x):
                return torch.relu(self.layer(x))
    """)
    w.attribute(f"self.f{m} = Tower({WIDTHS[m]}, {HIDDEN})")
    return f"self.f{m}({m})"


def functional(w: Writer, m: str) -> str:
    return f"F.linear({m}, self.f{m}.weight, self.f{m}.bias)"


def helper_method(w: Writer, m: str) -> str:
    w.method("""
        def encode(self, name, x):
            return getattr(self, name)(x)
    """)
    return f'self.encode("f{m}", {m})'


def helper_function(w: Writer, m: str) -> str:
    w.function("""
        def encode(layer, x):
            hidden = layer(x)
            return torch.relu(hidden)
    """)
    return f"encode(self.f{m}, {m})"


def keyword_only(w: Writer, m: str) -> str:
    w.function("""
        def encode_by_name(*, layer, x):
            return layer(x)
    """)
    return f"encode_by_name(**dict(layer=self.f{m}, x={m}))"


def starred(w: Writer, m: str) -> str:
    w.function("""
        def encode_all(layer, *inputs):
            return layer(*inputs)
    """)
    return f"encode_all(*(self.f{m}, {m}))"


def partial(w: Writer, m: str) -> str:
    w.function("""
        def encode_scaled(layer, scale, x):
            return layer(x) * scale
    """)
    return f"functools.partial(encode_scaled, self.f{m}, 1.5)({m})"


def lambda_on_self(w: Writer, m: str) -> str:
    w.attribute("self.apply_layer = lambda layer, x: layer(x)")
    w.pickles = False
    return f"self.apply_layer(self.f{m}, {m})"


def property_(w: Writer, m: str) -> str:
    w.method(f"""
        @property
        def tower_of_{m}(self):
            return self.f{m}
    """)
    return f"self.tower_of_{m}({m})"


def static_method(w: Writer, m: str) -> str:
    w.method("""
        @staticmethod
        def run(layer, x):
            return layer(x)
    """)
    return f"self.run(self.f{m}, {m})"


def class_method(w: Writer, m: str) -> str:
    w.method("""
        @classmethod
        def run_for(cls, layer, x):
            return layer(x)
    """)
    return f"self.run_for(self.f{m}, {m})"


def nested_function(w: Writer, m: str) -> str:
    text = "def tower(name, x):\n    return getattr(self, name)(x)"
    if not any("def tower(" in line for line in w.body):
        w.line(text)
    return f'tower("f{m}", {m})'


def counting_decorator(w: Writer, m: str) -> str:
    w.function(COUNTED)
    w.method("""
        @counted
        def tower_counted(self, name, x):
            return getattr(self, name)(x)
    """)
    return f'self.tower_counted("f{m}", {m})'


def without_gradients(w: Writer, m: str) -> str:
    w.function(QUIET)
    w.method("""
        @quiet()
        def tower_quiet(self, name, x):
            return getattr(self, name)(x)
    """)
    return f'self.tower_quiet("f{m}", {m})' if m == "b" else child(w, m)


def gain_on_self(w: Writer, m: str) -> str:
    w.attribute("self.gain = 1.25")
    _set(w, "gain", 0.5)
    return f"self.f{m}({m}) * self.gain"


def list_on_self(w: Writer, m: str) -> str:
    w.attribute("self.gains = [1.5, 0.75]")
    _set(w, "gains", [0.25, 2.0])
    return f"self.f{m}({m}) * self.gains[0] + self.gains[1]"


def flag_on_self(w: Writer, m: str) -> str:
    w.attribute("self.rectify = False")
    _set(w, "rectify", True)
    w.method("""
        def activate(self, x):
            if self.rectify:
                return torch.relu(x)
            return x - 0.5
    """)
    return f"self.activate(self.f{m}({m}))"


def config_with_forty_fields(w: Writer, m: str) -> str:
    w.attribute('self.config = types.SimpleNamespace(**{f"option_{n}": n for n in range(39)}, branch_weight=1.0)')
    _set(w, "config.branch_weight", 0.25)
    return f"self.f{m}({m}) * self.config.branch_weight"


SINGLE: list[Single] = [
    child, child_with_its_own_forward, functional, helper_method, helper_function, keyword_only, starred, partial,
    lambda_on_self, property_, static_method, class_method, nested_function, counting_decorator, without_gradients,
    gain_on_self, list_on_self, flag_on_self, config_with_forty_fields,
]  # fmt: skip


def comprehension(w: Writer) -> None:
    _layers(w)
    w.line("p, q = [layer(x) for layer, x in zip(self.layers, (a, b))]")


def generator_expression(w: Writer) -> None:
    _layers(w)
    w.line("p, q = (layer(x) for layer, x in zip(self.layers, (a, b)))")


def for_loop(w: Writer) -> None:
    _layers(w)
    w.line("""
        outputs = []
        for layer, x in zip(self.layers, (a, b)):
            outputs.append(layer(x))
        p, q = outputs
    """)


def while_loop(w: Writer) -> None:
    _layers(w)
    w.line("""
        outputs, given, index = [], (a, b), 0
        while index < len(self.layers):
            outputs += [self.layers[index](given[index])]
            index += 1
        p, q = outputs
    """)


def dict_comprehension(w: Writer) -> None:
    _towers(w)
    w.line('made = {name: self.towers[name](x) for name, x in {"a": a, "b": b}.items()}')
    w.line('p, q = made["a"], made["b"]')


def made_in_an_order_that_is_given(w: Writer) -> None:
    _towers(w)
    w.argument("made_in", "('a', 'b')", ("b", "a"))
    w.line('given = {"a": a, "b": b}')
    w.line("made = {name: self.towers[name](given[name]) for name in made_in}")
    w.line('p, q = made["a"], made["b"]')


def map_over_layers(w: Writer) -> None:
    _layers(w)
    w.line("p, q = map(lambda layer, x: layer(x), self.layers, (a, b))")


def dataclass_holds_both(w: Writer) -> None:
    w.function("""
        @dataclasses.dataclass
        class Branches:
            first: torch.Tensor
            second: torch.Tensor

            @property
            def both(self):
                return [self.first, self.second]
    """)
    w.line("branches = Branches(second=self.fb(b), first=self.fa(a))")
    w.line("p, q = branches.both")


def helper_makes_both(w: Writer) -> None:
    w.method("""
        def encode_both(self, a, b):
            hidden_b = self.fb(b)
            hidden_a = self.fa(a)
            return hidden_a, hidden_b
    """)
    w.line("p, q = self.encode_both(a, b)")


def written_in_place(w: Writer) -> None:
    w.line("""
        p = self.fa(a)
        p[:, :2] = 0.5
        q = self.fb(b)
        q *= 1.5
        q += 0.25
    """)


def walrus_in_a_condition(w: Writer) -> None:
    w.line("""
        if (p := self.fa(a)) is None or (q := self.fb(b)) is None:
            raise ValueError("a branch is missing")
    """)


TOGETHER: list[Callable[[Writer], None]] = [
    comprehension, generator_expression, for_loop, while_loop, dict_comprehension, made_in_an_order_that_is_given,
    map_over_layers, dataclass_holds_both, helper_makes_both, written_in_place, walrus_in_a_condition,
]  # fmt: skip


def let(w: Writer, m: str, form: Single) -> None:
    """Write a line that makes the tensor of one modality under its name."""
    expression = form(w, m)
    w.line(f"{MADE[m]} = {w.marked(m, expression)}")


def made_by(w: Writer, m: str) -> Single:
    """Choose a form for one modality. What is squashed into a gate is taken as a layer makes it, before any scale."""
    return w.choose(m, SINGLE if w.symmetric or m != "b" else SINGLE[:4])


def make_all(w: Writer, together: float = 0.4) -> None:
    """Write what makes p and q (and r where the model has a third modality)."""
    if w.chance(together) and w.symmetric:
        w.choose("f and g", TOGETHER)(w)
        w.mark("a")
        w.mark("b")
    else:
        first, second = made_by(w, "a"), made_by(w, "b")
        order = [("a", first), ("b", second)]
        for m, form in order if w.chance(0.7) else reversed(order):
            let(w, m, form)
    if w.third:
        let(w, "c", w.choose("c", SINGLE[:6]))


def _layers(w: Writer) -> None:
    w.attribute(
        f"self.layers = nn.ModuleList([nn.Linear({WIDTHS['a']}, {HIDDEN}), nn.Linear({WIDTHS['b']}, {HIDDEN})])"
    )


def _towers(w: Writer) -> None:
    w.attribute(
        f'self.towers = nn.ModuleDict({{"a": nn.Linear({WIDTHS["a"]}, {HIDDEN}), '
        f'"b": nn.Linear({WIDTHS["b"]}, {HIDDEN})}})'
    )


def _set(w: Writer, name: str, value: object) -> None:
    if not any(name in way.settings for way in w.ways):
        w.ways.append(Way(settings={name: value}))


COUNTED = """
    CALLS = []


    def counted(function):
        calls = 0

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            CALLS.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper
"""
QUIET = """
    @contextlib.contextmanager
    def quiet():
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            yield
        finally:
            torch.set_grad_enabled(before)
"""
