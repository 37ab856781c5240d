"""What happens around the branches and their meeting: how calls differ, other pairs, loops, recursion, results."""

from __future__ import annotations

from collections.abc import Callable

from ._joins import LISTS, PAIRS, PLACES, SHARED, choose_join
from ._makes import COUNTED, QUIET, let, made_by, make_all
from ._writer import HIDDEN, WIDTHS, Way, Writer

#: A frame writes the body of `forward` and leaves the expressions of what it returns in `w.results`.
Frame = Callable[[Writer], None]


def as_in_the_example(w: Writer) -> None:
    place, join = w.choose("place", PLACES), choose_join(w, LISTS + PAIRS)
    make_all(w)
    w.line(f"z = {place(w, join, 'p', 'q')}")


def operands_written_inside_the_join(w: Writer) -> None:
    join = choose_join(w, [join for join in PAIRS if "{0}" in join.template])
    p, q = made_by(w, "a")(w, "a"), made_by(w, "b")(w, "b")
    p, q = (text if text.endswith(")") and " * " not in text else f"({text})" for text in (p, q))
    w.line(f"z = {join.write(w, w.marked('a', p), w.marked('b', q))}")


def joined_in_an_order_that_is_given(w: Writer) -> None:
    w.third = w.chance(0.4)
    join = choose_join(w, LISTS)
    names = ("a", "b", "c") if w.third else ("a", "b")
    w.argument("order", repr(names), tuple(reversed(names)), (*names[1:], names[0]))
    make_all(w)
    pairs = ", ".join(f'"{name}": {made}' for name, made in zip(names, "pqr", strict=False))
    w.line(f"named = {{{pairs}}}")
    sequence = w.choose("order", ["[named[name] for name in order]", "list(map(named.get, order))", "sorted"])
    if sequence == "sorted":
        sequence = "[named[name] for name in sorted(named, key=order.index)]"
    w.line(f"z = {join.write_list(w, sequence)}")


def exchanged_where_a_flag_says(w: Writer) -> None:
    join = choose_join(w, [join for join in LISTS + PAIRS if join.symmetric])
    w.argument("flip", "False", True)
    make_all(w)
    w.line("first, second = (q, p) if flip else (p, q)")
    w.line(f"z = {w.choose('place', PLACES)(w, join, 'first', 'second')}")


def branch_left_out_of_a_list(w: Writer) -> None:
    join = choose_join(w, LISTS)
    by_flag = w.chance(0.5)
    w.forms.append("left out by a flag" if by_flag else "left out by None")
    if by_flag:
        w.argument("use_b", "True", False)
    else:
        w.optional.add("b")
        w.ways.append(Way(without=("b",)))
    let(w, "a", made_by(w, "a"))
    w.line("present = [p]")
    w.line("if use_b:" if by_flag else "if b is not None:")
    w.depth += 1
    let(w, "b", made_by(w, "b"))
    w.line("present += [q]" if w.chance(0.5) else "present.append(q)")
    w.depth -= 1
    w.line(f"z = {join.write_list(w, 'present')}")


def early_return(w: Writer) -> None:
    w.optional.add("b")
    w.ways.append(Way(without=("b",)))
    place, join = w.choose("place", PLACES), choose_join(w, LISTS + PAIRS)
    let(w, "a", made_by(w, "a"))
    w.line("if b is None:\n    return self.finish(p)")
    let(w, "b", made_by(w, "b"))
    w.line(f"z = {place(w, join, 'p', 'q')}")


def conditional_expression(w: Writer) -> None:
    join = choose_join(w, PAIRS)
    w.argument("use_b", "True", False)
    w.third = True
    make_all(w, together=0)
    w.line(f"z = {join.write(w, 'p', 'q')} if use_b else torch.tanh(r)")


def match_on_a_mode(w: Writer) -> None:
    join = choose_join(w, PAIRS)
    w.argument("mode", '"join"', "first", ("weighted", 0.5))
    make_all(w)
    w.line(f"""
        match mode:
            case "join":
                z = {join.write(w, "p", "q")}
            case ("weighted", weight):
                z = p * weight
            case _:
                z = p.clone()
    """)


def other_pair_in_the_same_helper(w: Writer) -> None:
    w.third = True
    place, join = w.choose("place", SHARED), choose_join(w, LISTS + PAIRS)
    w.argument("use_b", "True", False)
    make_all(w)
    before = w.chance(0.4)
    if before:
        w.line(f"other = {place(w, join, 'p', 'r')}")
    w.line(f"z = torch.zeros(len(p), {HIDDEN})\nif use_b:\n    z = {place(w, join, 'p', 'q')}")
    if not before:
        w.line(f"other = {place(w, join, 'p', 'r')}")
    w.results.append("self.finish(other)")


def time_steps(w: Writer) -> None:
    join = choose_join(w, [join for join in LISTS + PAIRS if join.symmetric])
    w.argument("steps", "2", 4, 1)
    w.line("rounds = []")
    w.line("for step in range(steps):")
    w.depth += 1
    w.line(f"p = {w.marked('a', 'self.fa(a * (step + 1))')}")
    w.line(f"q = {w.marked('b', 'self.fb(b - step)')}")
    w.line(f"rounds.append({join.write(w, 'p', 'q')})")
    w.depth -= 1
    w.line("z = torch.stack(rounds).mean(0)")


def pairs_of_layers(w: Writer) -> None:
    join = choose_join(w, [join for join in LISTS + PAIRS if join.symmetric])
    w.sites.append("regbn_late_1")
    for name, width in (("firsts", WIDTHS["a"]), ("seconds", WIDTHS["b"])):
        w.attribute(f"self.{name} = nn.ModuleList([nn.Linear({width}, {HIDDEN}) for _ in range(2)])")
    chosen = w.choose("rounds", ["zip", "enumerate", "indices that are given"])
    if w.oracle:
        w.line("regbns = [self.regbn_late, self.regbn_late_1]")
    w.line("rounds = []")
    if chosen == "indices that are given":
        w.argument("layers", "(0, 1)", (1, 0), (1,))
        w.line("for n in layers:\n    first, second = self.firsts[n], self.seconds[n]")
    elif chosen == "zip" and not w.oracle:
        w.line("for first, second in zip(self.firsts, self.seconds):")
    else:
        w.line("for n, (first, second) in enumerate(zip(self.firsts, self.seconds)):")
    w.depth += 1
    w.line(f"p, q = {w.marked('a', 'first(a)', 'regbns[n]')}, {w.marked('b', 'second(b)', 'regbns[n]')}")
    w.line(f"rounds.append({join.write(w, 'p', 'q')})")
    w.depth -= 1
    w.line("z = torch.stack(rounds).mean(0)")


def two_joins_in_one_line(w: Writer) -> None:
    w.third = True
    join = choose_join(w, [join for join in PAIRS if join.symmetric and join.kind == "concat"])
    other = w.choose("the other join", ["torch.maximum(p, r)", "q * r", "q + r", "torch.cat([p, r], 1)"])
    w.argument("use_b", "True", False)
    make_all(w)
    together = join.write(w, "p", "q")
    w.line(f"z, other = {other}, ({together} if use_b else p)")
    w.results.append("self.finish(other)")


def two_sites_in_one_line(w: Writer) -> None:
    w.third = True
    join = choose_join(w, [join for join in LISTS + PAIRS if join.kind == "concat"])
    w.sites.append("regbn_more")
    w.more_rules.append({"id": "more", "match": {"kind": "product"}, "normalize": "b", "against": "c"})
    w.argument("use_c", "True", False)
    make_all(w)
    w.mark("b", regbn="self.regbn_more", side="f")
    w.mark("c", regbn="self.regbn_more", side="g")
    w.line(f"z, other = {join.write(w, 'p', 'q')}, ({w.join('{0} * {1}', 'q', 'r')} if use_c else q)")
    w.results.append("self.finish(other)")


def f_is_used_again(w: Writer) -> None:
    place, join = w.choose("place", PLACES), choose_join(w, LISTS + PAIRS)
    make_all(w)
    w.line(f"z = {place(w, join, 'p', 'q')}")
    w.attribute(f"self.again = nn.Linear({HIDDEN}, 2)")
    w.results.append("self.again(p)")
    if w.chance(0.5):
        w.results.append("q * 2")


def augmented_assignment(w: Writer) -> None:
    word = w.choose("assignment", ["+=", "*=", "-="])
    w.kinds = ("product" if word == "*=" else "sum",)
    if w.chance(0.5):
        make_all(w)
        w.line("z = p.clone()")
        w.mark("a", "z")
    else:
        w.line(f"z = {w.marked('a', 'self.fa(a)')}")
        let(w, "b", made_by(w, "b"))
    if w.oracle:
        w.line("z, q = join(z, q)\nz = z.clone()  # what RegBN has kept for its gradients is not written over")
    w.line(f"z {word} q")


def slices_written(w: Writer) -> None:
    w.kinds = ("scatter",)
    make_all(w)
    if w.oracle:
        w.line("p, q = join(p, q)")
    w.line(f"z = torch.zeros(len(a), {2 * HIDDEN})\nz[:, :{HIDDEN}] = p\nz[:, {HIDDEN}:] = q")


def values_decide_in_try(w: Writer) -> None:
    join = choose_join(w, LISTS + PAIRS)
    make_all(w)
    w.line(f"""
        try:
            factor = torch.linalg.cholesky(torch.eye({HIDDEN}) * a.detach().mean())
        except RuntimeError:
            factor = 2 * torch.eye({HIDDEN})
        p = {w.marked("a", "torch.relu(p @ factor)")}
    """)
    w.line(f"z = {w.choose('place', PLACES)(w, join, 'p', 'q')}")


FRAMES: list[Frame] = [
    as_in_the_example, as_in_the_example, operands_written_inside_the_join, joined_in_an_order_that_is_given,
    joined_in_an_order_that_is_given, exchanged_where_a_flag_says, branch_left_out_of_a_list, early_return,
    conditional_expression, match_on_a_mode, other_pair_in_the_same_helper, other_pair_in_the_same_helper, time_steps,
    pairs_of_layers, two_joins_in_one_line, two_sites_in_one_line, f_is_used_again, augmented_assignment,
    slices_written, values_decide_in_try,
]  # fmt: skip


# -- around the forward ------------------------------------------------------------------------------------------


def bare(w: Writer) -> None:
    """The class as it is."""


def calls_itself(w: Writer) -> None:
    w.argument("depth", "0", 1, 2)
    passed = w.passed().replace("depth=depth", "depth=depth - 1")
    call = w.random.choice(["self.forward", "self"])
    w.body.insert(0, f"if depth:\n    return scaled({call}({passed}), 0.5)")
    w.function("""
        def scaled(value, by):
            return value * by if isinstance(value, torch.Tensor) else value
    """)


def counted_forward(w: Writer) -> None:
    w.function(COUNTED)
    w.decorators.append("@counted")


def forward_in_a_context(w: Writer) -> None:
    w.function(QUIET.replace("quiet", "grad_as_it_is").replace("set_grad_enabled(False)", "set_grad_enabled(before)"))
    w.decorators.append("@grad_as_it_is()")


def inherited(w: Writer) -> None:
    w.class_name = "Base"
    w.after.append("class Net(Base):\n    pass")


def called_by_super(w: Writer) -> None:
    w.class_name = "Base"
    call = w.random.choice(["super().forward", "super(Net, self).forward", "Base.forward"])
    first = "self, " if call == "Base.forward" else ""
    w.after.append(
        f"class Net(Base):\n    def forward(self, {w.parameters()}):\n        return {call}({first}{w.passed()})"
    )


def inside_another_module(w: Writer) -> None:
    w.root = "Outer"
    w.after.append(
        "class Outer(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.net = Net()\n\n"
        f"    def forward(self, {w.parameters()}):\n        return self.net({w.passed()})"
    )


OUTSIDES: list[Frame] = [
    bare, bare, bare, calls_itself, counted_forward, forward_in_a_context, inherited, called_by_super,
    inside_another_module,
]  # fmt: skip


# -- results -----------------------------------------------------------------------------------------------------


def write_results(w: Writer) -> None:
    """Write what `forward` returns: a tensor, or all results as a tuple, a dict or a dataclass."""
    w.attribute("self.head = nn.Linear(64, 3)")
    w.method("""
        def finish(self, z):
            return F.linear(z, self.head.weight[:, : z.shape[1]], self.head.bias)
    """)
    results = ["self.finish(z)", *w.results]
    form = w.choose("result", ["tensor or tuple", "dict", "dataclass"])
    if form == "dict":
        w.line("return {" + ", ".join(f'"out_{n}": {text}' for n, text in enumerate(results)) + "}")
    elif form == "dataclass":
        fields = "\n".join(f"    out_{n}: torch.Tensor = None" for n in range(len(results)))
        w.function(f"@dataclasses.dataclass\nclass Output:\n{fields}")
        w.line(f"return Output({', '.join(results)})")
    else:
        w.line(f"return {', '.join(results)}")
