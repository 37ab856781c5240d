"""How f and g meet: the joining calls, and the places in the source where such a call can stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ._writer import Writer


@dataclass(frozen=True)
class Join:
    """A joining call. `{0}` and `{1}` of the template are its operands, or `{0}` is the list of all of them."""

    template: str
    kind: str = "concat"
    of_list: bool = False
    symmetric: bool = True

    @property
    def __name__(self) -> str:
        return self.template

    def write(self, w: Writer, x: str, y: str) -> str:
        """Write the call for two operands."""
        if self.of_list:
            return self.write_list(w, f"[{x}, {y}]")
        return w.join(self.template, x, y)

    def write_list(self, w: Writer, operands: str) -> str:
        """Write the call for an expression that gives the list of the operands."""
        if self.template in PAIRWISE and w.oracle:
            return f"join_pairwise(operator.add, {operands})"
        return w.join_list(self.template, operands)


PAIRWISE = ("sum({0})", "functools.reduce(operator.add, {0})")
LISTS = [
    Join("torch.cat({0}, 1)", of_list=True),
    Join("torch.cat({0}, dim=-1)", of_list=True),
    Join("torch.concat(tensors={0}, dim=1)", of_list=True),
    Join("torch.cat((*{0},), 1)", of_list=True),
    Join("torch.cat(**dict(tensors={0}, dim=1))", of_list=True),
    Join("torch.hstack({0})", of_list=True),
    Join("torch.stack({0}, 1).flatten(1)", of_list=True),
    Join("sum({0})", "sum", of_list=True),
    Join("functools.reduce(operator.add, {0})", "sum", of_list=True),
]
PAIRS = [
    Join("torch.cat([{0}, {1}], 1)"),
    Join("torch.cat(({0}, {1}), dim=1)"),
    Join("torch.stack([{0}, {1}]).movedim(0, 1).flatten(1)"),
    Join("{0} + {1}", "sum"),
    Join("torch.add({0}, {1})", "sum"),
    Join("({0}).add({1})", "sum"),
    Join("operator.add({0}, {1})", "sum"),
    Join("{0} * {1}", "product"),
    Join("torch.mul({0}, {1})", "product"),
    Join("({0}).mul({1})", "product"),
    Join("({0})[:, :, None].mul(({1})[:, None, :]).flatten(1)", "product"),
    Join("{0} * torch.sigmoid({1})", "product", symmetric=False),
    Join("{0} @ {1}.T", "similarity"),
    Join("torch.matmul({0}, ({1}).t())", "similarity"),
    Join("torch.bmm({0}[:, :, None], {1}[:, None, :]).flatten(1)", "matmul"),
    Join('torch.einsum("bi,bj->bij", {0}, {1}).flatten(1)', "matmul"),
]
#: A place: writes the call of a join for two operands, and returns the expression of its result.
Place = Callable[[Writer, Join, str, str], str]


def in_forward(w: Writer, join: Join, x: str, y: str) -> str:
    return join.write(w, x, y)


def in_method(w: Writer, join: Join, x: str, y: str) -> str:
    w.method(f"def fuse(self, x, y):\n    return {join.write(w, 'x', 'y')}")
    return f"self.fuse({x}, {y})"


def in_function(w: Writer, join: Join, x: str, y: str) -> str:
    w.function(f"def fuse(x, y):\n    fused = {join.write(w, 'x', 'y')}\n    return fused")
    return f"fuse({x}, {y})"


def in_function_with_keywords(w: Writer, join: Join, x: str, y: str) -> str:
    w.function(f"def fuse_by_name(*, first, second):\n    return {join.write(w, 'first', 'second')}")
    return f'fuse_by_name(**{{"second": {y}, "first": {x}}})'


def in_function_with_stars(w: Writer, join: Join, x: str, y: str) -> str:
    call = join.write_list(w, "list(xs)") if join.of_list else join.write(w, "xs[0]", "xs[1]")
    w.function(f"def fuse_all(*xs):\n    return {call}")
    return f"fuse_all(*[{x}, {y}])"


def in_closure(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        first, second = {x}, {y}

        def fused_here(scale=1.0):
            return ({join.write(w, "first", "second")}) * scale
    """)
    return "fused_here(0.5)"


def in_lambda(w: Writer, join: Join, x: str, y: str) -> str:
    w.attribute(f"self.fuse_by = lambda x, y: {join.write(w, 'x', 'y')}")
    w.pickles = False
    return f"self.fuse_by({x}, {y})"


def in_partial(w: Writer, join: Join, x: str, y: str) -> str:
    w.function(f"def fuse_scaled(scale, x, y):\n    return ({join.write(w, 'x', 'y')}) * scale")
    w.attribute("self.fuse_partly = functools.partial(fuse_scaled, 0.75)")
    return f"self.fuse_partly({x}, {y})"


def in_static_method(w: Writer, join: Join, x: str, y: str) -> str:
    w.method(f"@staticmethod\ndef fuse_statically(x, y):\n    return {join.write(w, 'x', 'y')}")
    return f"self.fuse_statically({x}, {y})"


def in_class_method(w: Writer, join: Join, x: str, y: str) -> str:
    w.method(f"@classmethod\ndef fuse_of_class(cls, x, y):\n    return {join.write(w, 'x', 'y')}")
    return f"type(self).fuse_of_class({x}, {y})"


def in_decorated_method(w: Writer, join: Join, x: str, y: str) -> str:
    from ._makes import COUNTED

    w.function(COUNTED)
    w.method(f"@counted\ndef fuse_counted(self, x, y):\n    return {join.write(w, 'x', 'y')}")
    return f"self.fuse_counted({x}, {y})"


def in_comprehension(w: Writer, join: Join, x: str, y: str) -> str:
    return f"[{join.write(w, x, y)} for _ in range(1)][0]"


def in_comprehension_over_pairs(w: Writer, join: Join, x: str, y: str) -> str:
    return f"[{join.write(w, 'x', 'y')} for x, y in [({x}, {y})]][0]"


def in_generator(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        def fused_one_by_one(pairs):
            for x, y in pairs:
                yield {join.write(w, "x", "y")}
    """)
    return f"next(fused_one_by_one([({x}, {y})]))"


def in_walrus(w: Writer, join: Join, x: str, y: str) -> str:
    return f"(joined if (joined := {join.write(w, x, y)}).ndim else joined)"


def in_with_block(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        with contextlib.ExitStack() as stack, torch.autograd.set_detect_anomaly(False):
            stack.enter_context(contextlib.nullcontext())
            joined = {join.write(w, x, y)}
    """)
    return "joined"


def in_try(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        try:
            joined = {join.write(w, x, y)}
        except (RuntimeError, TypeError) as error:
            raise ValueError("the branches do not fit") from error
        finally:
            first = second = None
    """)
    return "joined"


def in_match(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        match ({x}, {y}):
            case (first, None):
                joined = first
            case (first, second):
                joined = {join.write(w, "first", "second")}
    """)
    return "joined"


def in_dataclass(w: Writer, join: Join, x: str, y: str) -> str:
    w.function(f"""
        @dataclasses.dataclass
        class Pair:
            first: torch.Tensor
            second: torch.Tensor

            def joined(self):
                return {join.write(w, "self.first", "self.second")}
    """)
    return f"Pair({x}, second={y}).joined()"


def in_conditional_expression(w: Writer, join: Join, x: str, y: str) -> str:
    return f"({join.write(w, x, y)} if len({x}) else {x})"


def in_loop_of_one_round(w: Writer, join: Join, x: str, y: str) -> str:
    w.line(f"""
        joined = None
        while joined is None:
            joined = {join.write(w, x, y)}
    """)
    return "joined"


#: Places that one helper has, so that other pairs can go through the same line.
SHARED: list[Place] = [
    in_method, in_function, in_function_with_keywords, in_function_with_stars, in_static_method, in_class_method,
    in_decorated_method, in_lambda, in_partial, in_dataclass,
]  # fmt: skip
PLACES: list[Place] = [
    in_forward, *SHARED, in_closure, in_comprehension, in_comprehension_over_pairs, in_generator, in_walrus,
    in_with_block, in_try, in_match, in_conditional_expression, in_loop_of_one_round,
]  # fmt: skip


def choose_join(w: Writer, joins: list[Join]) -> Join:
    """Choose a joining call, and with it what the rule has to match and to replace."""
    join: Join = w.choose("join", joins)
    w.kinds = (join.kind,)
    if not join.symmetric:
        w.sides, w.replace, w.symmetric = {"a": "f", "b": "g"}, "f", False
    return join
