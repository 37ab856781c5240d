"""The table of torch operations: one row for each, and no other room that knows operations by name."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

import regbn_surgery
from regbn_surgery import _ops
from regbn_surgery._ops import ROWS, as_operator, canonical, is_inplace, is_silent, name_of, operation
from regbn_surgery._types import Kind

PACKAGE = Path(regbn_surgery.__file__).parent
SPELLINGS = {spelling for row in ROWS for spelling in (row.name, *row.spellings)}
#: Being rewritten; what these ask by name goes with them.
_LEFT = PACKAGE / "_surgery"


class TestSpellings:
    @pytest.mark.parametrize(
        ("spellings", "name"),
        [
            ("add __add__ __radd__ __iadd__ add_", "add"),
            ("cat concat concatenate", "cat"),
            ("mul multiply __mul__ __rmul__ __imul__ mul_", "mul"),
            ("div true_divide __truediv__ __itruediv__ div_", "div"),
            ("__getitem__", "getitem"),
            ("masked_scatter masked_scatter_", "masked_scatter"),
            ("transpose swapaxes swapdims transpose_", "transpose"),
        ],
    )
    def test_spellings_of_one_operation_have_one_name(self, spellings, name):
        assert {canonical(spelling) for spelling in spellings.split()} == {name}

    def test_operands_in_another_order_are_another_operation(self):
        assert len({canonical(name) for name in ("div", "__rtruediv__", "sub", "__rsub__", "pow", "__rpow__")}) == 6

    def test_what_is_not_in_the_table_keeps_its_name(self):
        for name in ("erfinv", "my_kernel_", "__custom__"):
            assert canonical(name) == name
            assert operation(name).family == "other"

    def test_functions_methods_operators_and_properties(self):
        names = [name_of(func) for func in (torch.concat, torch.Tensor.add_, torch.Tensor.T.__get__, operator.add)]
        assert [canonical(name) for name in names] == ["cat", "add", "T", "add"]

    def test_layers_are_known_by_their_names(self):
        assert (operation("LazyConv2d").axes, operation("LazyConv2d").channels) == ("convolution", "first")
        assert (operation("AdaptiveMaxPool3d").axes, operation("AdaptiveMaxPool3d").spatial) == ("pool", 3)
        assert operation("ReflectionPad1d").axes == "pad_sides"
        assert operation("FusedLayerNorm").axes == "layer_norm"
        assert operation("triplet_margin_loss").family == "loss"


class TestCalls:
    def test_operators_are_written_as_operators(self):
        assert as_operator("__rsub__", ("x", 1), {})[1] == (1, "x")
        assert as_operator("add", ("x", "y"), {})[1] == ("x", "y")
        assert as_operator("add_", ("x", "y"), {}) is None
        assert as_operator("sub", ("x", "y"), {"alpha": 2}) is None

    def test_what_writes_to_its_operand(self):
        assert all(is_inplace(name, {}) for name in ("add_", "__iadd__", "__setitem__"))
        assert not any(is_inplace(name, {}) for name in ("add", "__invert__", "__index__", "__int__"))
        assert is_inplace("add", {"out": torch.ones(1)})

    def test_what_leaves_no_operation(self):
        assert is_silent(torch.Tensor.size, "size")
        assert is_silent(torch.Tensor.item, "item")
        assert is_silent(torch.Tensor.dim, "dim")
        assert not is_silent(torch.Tensor.add, "add")
        assert not is_silent(torch.manual_seed, "manual_seed")


class TestOneTable:
    def test_each_spelling_has_one_row(self):
        assert len(SPELLINGS) == sum(1 + len(row.spellings) for row in ROWS)

    @pytest.mark.parametrize(
        "file",
        [path for path in sorted(PACKAGE.rglob("*.py")) if not {PACKAGE / "_ops", _LEFT} & {*path.parents}],
        ids=lambda path: str(path.relative_to(PACKAGE)),
    )
    def test_no_other_room_asks_for_an_operation_by_name(self, file):
        found = [f"line {line}: {names}" for line, names in _sets_of_names(ast.parse(file.read_text("utf-8")))]
        assert not found, "a row of regbn_surgery/_ops says what an operation does; ask it"


def _sets_of_names(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Sets of operation names, and comparisons of the name of a call with one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Set):
            names = _strings(node.elts)
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).endswith(("op.name", "call.name")):
            names = [name for right in node.comparators for name in _strings(getattr(right, "elts", [right]))]
        else:
            continue
        if SPELLINGS.intersection(names) and not set(names) <= set(get_args(Kind)):
            yield node.lineno, names


def _strings(nodes: list[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_room_has_a_door():
    assert set(_ops.__all__) <= set(dir(_ops))
