"""Every kind of expression, wrapped and compiled again: the same values in the same order, on the user's own lines."""

from __future__ import annotations

import ast
import functools
import io
import pdb
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from regbn_surgery._surgery._functions import FunctionSource, NoSourceError, read
from regbn_surgery._surgery._here import TensorMethod
from regbn_surgery._surgery._weave import Wrapping, behind_decorators, rewritten_text, weave

X, Y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])


class Telling:
    """Stands in for the passage: does what is wrapped, and notes it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def call(self, slot: int, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(func, TensorMethod):
            self.told.append((f"call {func.name}", (func.receiver, *args)))
            return getattr(func.receiver, func.name)(*args, **kwargs)
        self.told.append((f"call {getattr(func, '__name__', func)}", args))
        return func(*args, **kwargs)

    def made(self, slot: int, value: Any, /) -> Any:
        self.told.append(("made", value))
        return value

    def unpack(self, slot: int, value: Any, /) -> Any:
        self.told.append(("unpack", value))
        return value.unbind(0) if isinstance(value, Tensor) else value

    def method(self, receiver: Any, name: str, /) -> Any:
        return TensorMethod(receiver, name) if isinstance(receiver, Tensor) else getattr(receiver, name)


def pick(source: FunctionSource, text: str) -> int:
    """The ordinal of the expression that reads like `text`; a marked one (`@@`) is what an assignment writes to."""
    wanted, stored = text.removeprefix("@@"), text.startswith("@@")
    found = [
        i
        for i, node in enumerate(source.expressions())
        if ast.unparse(node) == wanted and isinstance(getattr(node, "ctx", None), ast.Store) is stored
    ]
    assert len(found) == 1, f"{text}: {len(found)} times in {source.text}"
    return found[0]


def wrapped(function: Any, *texts: str, operands: bool = True) -> Callable[..., Any]:
    """The function with the expressions wrapped, as a helper: it is told where it is by a keyword argument."""
    source = read(function)
    return weave(source, {pick(source, text): Wrapping(i, operands) for i, text in enumerate(texts)}, None)


class Holder:
    width = 2

    def __init__(self) -> None:
        self.total = torch.zeros(2, 2)
        self.__hidden = 10.0

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return x + y * scale

    def private(self, x: Tensor) -> Tensor:
        return self.__twice(x) + self.__hidden

    def __twice(self, x: Tensor) -> Tensor:
        return x * 2


class Heir(Holder):
    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return super().add(x, y) * __class__.width  # type: ignore[name-defined]


class _Quiet:
    def private(self, x: Tensor) -> Tensor:
        return self.__same(x)

    def __same(self, x: Tensor) -> Tensor:
        return x * 3


def by_call(x: Any, y: Any) -> Any:
    return torch.cat([x, y], dim=1) * 2


def by_method(x: Any, y: Any) -> Any:
    return x.add(y, alpha=2).relu()


def by_operator(x: Any, y: Any) -> Any:
    return (x @ y - x) / y


def by_unary(x: Any, y: Any) -> Any:
    return -x + y


def by_comparison(x: Any, y: Any) -> Any:
    return torch.where(x < y, x, y)


def by_subscript(x: Any, y: Any) -> Any:
    return x[:, 1:] + y[..., None, 0]


def by_attribute(x: Any, y: Any) -> Any:
    return x.T + y


def by_stars(x: Any, y: Any) -> Any:
    args, more = (x, y), {"dim": 0}
    return torch.stack([*args], **more)


def by_augmented_name(x: Any, y: Any) -> Any:
    total = x.clone()
    same = total
    total += y
    return same, total


def by_augmented_attribute(x: Any, y: Any) -> Any:
    holder = Holder()
    holder.total *= 0
    holder.total += x * y
    return holder.total


def by_item(x: Any, y: Any) -> Any:
    total = x.clone()
    total[:, 0] = y[:, 0]
    return total


def by_unpacking(x: Any, y: Any) -> Any:
    first, second = x + y
    return first * second


def by_loop(x: Any, y: Any) -> Any:
    total = 0
    for row in x:
        total = total + row
    return total + y


def by_comprehension(x: Any, y: Any) -> Any:
    return [torch.add(a, y) for a in x for _ in range(2)]


def by_generator(x: Any, y: Any) -> Any:
    return torch.stack(tuple(a.mul(y) for a in (x, y)))


def by_walrus(x: Any, y: Any) -> Any:
    return torch.relu(z) if (z := torch.add(x, y)).sum() > 0 else z


def by_lambda(x: Any, y: Any) -> Any:
    return (lambda a: torch.mul(a, y))(x)


def by_nested_function(x: Any, y: Any) -> Any:
    def inner(a: Any) -> Any:
        return torch.sub(a, y)

    return inner(x)


def by_condition(x: Any, y: Any) -> Any:
    return x.add(y) if x.dim() == 2 and y.dim() == 2 else None


def by_fstring(x: Any, y: Any) -> Any:
    return f"{torch.add(x, y).sum().item():.1f}"


def over_lines(x: Any, y: Any) -> Any:
    return (
        x.add(
            y,
        )
        .mul(
            x,
        )
        .sum()
    )


CASES: list[tuple[Any, str, str]] = [
    (by_call, "torch.cat([x, y], dim=1)", "call cat"),
    (by_method, "x.add(y, alpha=2)", "call add"),
    (by_method, "x.add(y, alpha=2).relu()", "call relu"),
    (by_operator, "x @ y", "call matmul"),
    (by_operator, "x @ y - x", "call sub"),
    (by_operator, "(x @ y - x) / y", "call truediv"),
    (by_unary, "-x", "call neg"),
    (by_comparison, "x < y", "call lt"),
    (by_subscript, "x[:, 1:]", "call getitem"),
    (by_subscript, "y[..., None, 0]", "call getitem"),
    (by_attribute, "x.T", "call getattr"),
    (by_stars, "torch.stack([*args], **more)", "call stack"),
    (by_augmented_name, "total += y", "call iadd"),
    (by_augmented_attribute, "holder.total += x * y", "call iadd"),
    (by_item, "@@total[:, 0]", "call setitem"),
    (by_unpacking, "@@(first, second)", "unpack"),
    (by_loop, "@@row", "unpack"),
    (by_loop, "total + row", "call add"),
    (by_comprehension, "torch.add(a, y)", "call add"),
    (by_comprehension, "@@a", "unpack"),
    (by_generator, "a.mul(y)", "call mul"),
    (by_walrus, "torch.add(x, y)", "call add"),
    (by_lambda, "torch.mul(a, y)", "call mul"),
    (by_nested_function, "torch.sub(a, y)", "call sub"),
    (by_condition, "x.add(y)", "call add"),
    (by_fstring, "torch.add(x, y)", "call add"),
    (over_lines, "x.add(y)", "call add"),
    (over_lines, "x.add(y).mul(x).sum()", "call sum"),
]


@pytest.mark.parametrize(("function", "text", "told"), CASES, ids=[f"{f.__name__}: {t}" for f, t, _ in CASES])
def test_an_expression_of_every_kind_is_told_and_does_what_it_did(function: Any, text: str, told: str) -> None:
    telling = Telling()
    found = wrapped(function, text)(X.clone(), Y.clone(), _regbn=telling)
    expected = function(X.clone(), Y.clone())
    if isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert telling.told
    assert {name for name, _ in telling.told} == {told}


def test_the_receiver_of_a_method_is_an_operand_and_the_value_of_an_assignment_too() -> None:
    telling = Telling()
    x, y = X.clone(), Y.clone()
    wrapped(by_method, "x.add(y, alpha=2)")(x, y, _regbn=telling)
    ((_, (receiver, other)),) = telling.told
    assert receiver is x
    assert other is y
    telling = Telling()
    total = wrapped(by_item, "@@total[:, 0]")(x, y, _regbn=telling)
    ((_, (target, index, value)),) = telling.told
    assert target is total
    assert index == (slice(None), 0)
    assert torch.equal(value, y[:, 0])


def test_what_is_made_is_told_once_it_is_there() -> None:
    telling = Telling()
    found = wrapped(by_operator, "x @ y - x", operands=False)(X, Y, _regbn=telling)
    ((name, value),) = telling.told
    assert name == "made"
    assert torch.equal(value, X @ Y - X)
    assert torch.equal(found, (X @ Y - X) / Y)


def test_other_objects_with_methods_of_that_name_are_called_as_ever() -> None:
    class Other:
        def add(self, y: Any, alpha: int) -> Any:
            return Y * alpha

    telling = Telling()
    torch.testing.assert_close(wrapped(by_method, "x.add(y, alpha=2)")(Other(), Y, _regbn=telling), Y * 2)
    assert telling.told == [("call add", (Y,))]


def in_order(x: Any, log: Any) -> Any:
    total = x.clone()
    log("target")[log("index")] = log("value")
    return log("f")(log("a"), *log("b"), c=log("c"), **log("d")) + total


def test_operands_are_computed_in_pythons_order() -> None:
    def run(function: Any, **more: Any) -> list[str]:
        said: list[str] = []
        things = {
            "target": {}, "index": 1, "value": X, "b": [2], "d": {}, "a": 1, "c": 3,
            "f": lambda a, b, c: torch.ones(2, 2),
        }  # fmt: skip

        def log(name: str) -> Any:
            said.append(name)
            return things[name]

        function(X, log, **more)
        return said

    made = wrapped(
        in_order,
        "@@log('target')[log('index')]",
        "log('f')(log('a'), *log('b'), c=log('c'), **log('d'))",
        "log('f')(log('a'), *log('b'), c=log('c'), **log('d')) + total",
    )
    assert run(made, _regbn=Telling()) == run(in_order) == ["value", "target", "index", "f", "a", "b", "c", "d"]


# -- methods ----------------------------------------------------------------------------------------------------------


def test_private_names_super_and_class_cells_work() -> None:
    telling = Telling()
    found = wrapped(Holder.private, "self.__twice(x)")(Holder(), X, _regbn=telling)
    torch.testing.assert_close(found, X * 2 + 10)
    assert [args for _, args in telling.told] == [(X,)]
    found = wrapped(_Quiet.private, "self.__same(x)")(_Quiet(), X, _regbn=Telling())
    torch.testing.assert_close(found, X * 3)
    found = wrapped(Heir.add, "super().add(x, y)")(Heir(), X, Y, _regbn=Telling())
    torch.testing.assert_close(found, (X + Y) * 2)
    with pytest.raises(NoSourceError, match="is a call of super"):
        wrapped(Heir.add, "super()")


def test_defaults_annotations_names_and_closures_are_kept() -> None:
    scale = 3.0

    def helper(x: Tensor, y: float = 2.0, *, z: float = 1.0) -> Tensor:
        """Scales."""
        return x.mul(y) * scale + z

    made: Any = wrapped(helper, "x.mul(y)")
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__", "__defaults__"):
        assert getattr(made, name) == getattr(helper, name)
    torch.testing.assert_close(made(X, _regbn=Telling()), X * 6 + 1)
    scale = 5.0
    torch.testing.assert_close(made(X, z=0.0, _regbn=Telling()), X * 10)


def counted(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        wrapper.calls += 1  # type: ignore[attr-defined]
        return function(*args, **kwargs)

    wrapper.calls = 0  # type: ignore[attr-defined]
    return wrapper


class Keeps:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def test_decorators_stay_around_the_new_function() -> None:
    def add(x: Tensor) -> Tensor:
        return x + 1

    def replacement(x: Tensor) -> Tensor:
        return x + 2

    outer = torch.no_grad()(counted(add))
    made = behind_decorators(outer, add, replacement)
    assert made is not outer
    torch.testing.assert_close(made(X), X + 2)
    torch.testing.assert_close(outer(X), X + 1)
    assert behind_decorators(add, add, replacement) is replacement
    assert behind_decorators(staticmethod(add), add, replacement).__func__ is replacement
    with pytest.raises(NoSourceError, match="wrapped by a decorator that stores it in an unknown way"):
        behind_decorators(Keeps(add), add, replacement)


# -- what cannot be wrapped -------------------------------------------------------------------------------------------


def cannot(x: Any, y: Any) -> Any:
    box = [x]
    box[0] += y
    first = second = [0]
    first[0] = second[0] = y
    return 0 < x.sum() < 100, (x, y), first


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("box[0] += y", "would have to be looked up twice"),
        ("@@first[0]", "assigns to several targets at once"),
        ("0 < x.sum() < 100", "has no operands of its own"),
        ("(x, y)", "has no operands of its own"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(NoSourceError, match=rf"test_weave.py:\d+: `.*` .*{why}"):
        wrapped(cannot, text)


def test_the_syntax_tree_of_the_file_stays_as_it_is() -> None:
    before = ast.dump(read(by_item).definition, include_attributes=True)
    wrapped(by_item, "@@total[:, 0]", "y[:, 0]")
    assert ast.dump(read(by_item).definition, include_attributes=True) == before


# -- lines ------------------------------------------------------------------------------------------------------------


def fails(x: Any, y: Any) -> Any:
    z = x.add(
        y,
    )
    return torch.cat([z, y.nothing_of_that_name])


def test_tracebacks_show_the_users_own_lines() -> None:
    with pytest.raises(AttributeError) as caught:
        wrapped(fails, "torch.cat([z, y.nothing_of_that_name])", "x.add(y)")(X, Y, _regbn=Telling())
    frame = traceback.extract_tb(caught.tb)[-1]
    assert (frame.filename, frame.name) == (fails.__code__.co_filename, "fails")
    assert frame.line == "return torch.cat([z, y.nothing_of_that_name])"


@contextmanager
def tracing(filename: str) -> Iterator[list[int]]:
    lines: list[int] = []

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != filename:
            return None
        if event == "line":
            lines.append(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(
    ("function", "text"), [(f, t) for f, t, _ in CASES], ids=[f"{f.__name__}: {t}" for f, t, _ in CASES]
)
def test_the_lines_that_are_run_are_the_users(function: Any, text: str) -> None:
    made = wrapped(function, text)
    first, last = function.__code__.co_firstlineno, read(function).definition.end_lineno
    with tracing(function.__code__.co_filename) as lines:
        function(X.clone(), Y.clone())
    expected = {line for line in lines if first <= line <= (last or 0)}
    with tracing(function.__code__.co_filename) as lines:
        made(X.clone(), Y.clone(), _regbn=Telling())
    found = {line for line in lines if first <= line <= (last or 0)}
    assert expected <= found
    assert found == expected or function is over_lines, "within an expression over several lines there may be more"


def test_a_breakpoint_of_pdb_on_the_users_line_is_hit() -> None:
    said = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("p x.shape\np _regbn\nc\n"), stdout=said, nosigint=True, readrc=False)
    line = by_item.__code__.co_firstlineno + 2
    assert debugger.set_break(by_item.__code__.co_filename, line) is None
    made = wrapped(by_item, "@@total[:, 0]")
    try:
        debugger.runcall(made, X.clone(), Y.clone(), _regbn=Telling())
    finally:
        debugger.clear_all_breaks()
        sys.settrace(None)
    assert "total[:, 0] = y[:, 0]" in said.getvalue()
    assert "torch.Size([2, 2])" in said.getvalue()


# -- for people -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "text", "line"),
    [
        (by_call, "torch.cat([x, y], dim=1)", "return _regbn.call(0, torch.cat, [x, y], dim=1) * 2"),
        (by_operator, "x @ y - x", "return (_regbn.call(0, x @ y - x)) / y"),
        (by_method, "x.add(y, alpha=2)", "return _regbn.call(0, x.add, y, alpha=2).relu()"),
        (by_augmented_name, "total += y", "total += y  # _regbn.call(0, ...)"),
        (by_item, "@@total[:, 0]", "total[:, 0] = y[:, 0]  # _regbn.call(0, ...)"),
        (by_unpacking, "@@(first, second)", "first, second = x + y  # _regbn.unpack(0, ...)"),
    ],
)
def test_what_is_shown_is_the_users_text_with_one_line_changed(function: Any, text: str, line: str) -> None:
    source = read(function)
    after = rewritten_text(source, {pick(source, text): Wrapping(0, True)}).splitlines()
    changed = [new for old, new in zip(source.text.splitlines(), after, strict=True) if old != new]
    assert [row.strip() for row in changed] == [line]
