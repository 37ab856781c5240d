"""The functions of the user's code: found behind decorators, read from their file, and refused where it has changed."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from regbn_surgery._surgery._changed import fingerprint
from regbn_surgery._surgery._functions import NoSourceError, behind, compiled, find, name_of, read
from regbn_surgery._trace._source import instruction_of

Write = Callable[[str], Any]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module, and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(text: str) -> ModuleType:
        (tmp_path / "written_here.py").write_text(textwrap.dedent(text), encoding="utf-8")
        sys.modules.pop("written_here", None)
        importlib.invalidate_caches()
        return importlib.import_module("written_here")

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield made
    sys.modules.pop("written_here", None)
    linecache.clearcache()


# -- reading ----------------------------------------------------------------------------------------------------------


def plain(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


def test_a_function_is_read_with_its_text_and_place() -> None:
    source = read(plain)
    assert source.text == 'def plain(a: int, b: int = 2) -> int:\n    """Adds."""\n    return a + b\n'
    assert source.name == f"{__name__}:plain"
    assert source.first == plain.__code__.co_firstlineno
    assert Path(source.file).name == "test_functions.py"
    kinds = [type(node).__name__ for node in source.expressions()]
    assert kinds == ["Name", "Name", "BinOp", "Name", "Name"], "annotations and what is computed, no constants"


KINDS: dict[str, str] = {
    "decorated": """
        def twice(function):
            return function
        class Model:
            @twice
            @twice
            def forward(self, x):
                return x + 1
        """,
    "closure": """
        def around(scale):
            class Model:
                def forward(self, x):
                    return x * scale
            return Model
        Model = around(3)
        """,
    "mangled": """
        class Model:
            def forward(self, x):
                return self.__own(x) + self.__width
        """,
    "mangled, by a class that begins with an underscore": """
        class _Inner:
            def forward(self, x):
                return self.__own(x)
        Model = _Inner
        """,
    "super": """
        class Base:
            pass
        class Model(Base):
            def forward(self, x):
                return super().forward(x) + __class__.width
        """,
    "its own class by name": """
        class Model:
            def forward(self, x):
                return super(Model, self).forward(x) if type(self) is Model else x
        """,
    "its own class by name, in a function": """
        def around():
            class Model:
                def forward(self, x):
                    return super(Model, self).forward(x)
            return Model
        Model = around()
        """,
    "annotations that are text": """
        from __future__ import annotations
        class Model:
            def forward(self, x: Unknown) -> Unknown:
                y: Unknown = x
                return y
        """,
    "imported names": """
        import os.path
        import math as m
        class Model:
            def forward(self, x):
                return os.path.join(x) + m.floor(x)
        """,
    "globals and locals": """
        count = 0
        class Model:
            def forward(self, x):
                global count
                count += 1
                total = 0
                def add(y):
                    nonlocal total
                    total += y
                add(x)
                return total, [y for y in range(total)], lambda z: z + total
        """,
    "generators, walruses and matches": """
        class Model:
            def forward(self, x):
                match x:
                    case [first, *rest]:
                        return sum(y for y in rest if (z := y) > first)
                    case _:
                        return f"{x!r:>{10}}"
        """,
    "two on one line": """
        class Model:
            def forward(self, x): return (lambda y: y + 1)(x)
        """,
}


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_every_kind_are_read(kind: str, write: Write) -> None:
    module = write(KINDS[kind])
    source = read(module.Model.forward)
    assert source.text.lstrip().startswith(("def forward", "@twice"))
    assert isinstance(source.definition, ast.FunctionDef)


def test_two_functions_of_one_name_are_told_apart_by_their_lines(write: Write) -> None:
    module = write("""
        class A:
            def forward(self, x):
                return x + 1
        class B:
            def forward(self, x):
                return x * 2
        """)
    assert "x + 1" in read(module.A.forward).text
    assert "x * 2" in read(module.B.forward).text


def test_of_lambdas_that_start_in_one_line_the_one_that_runs_is_read(write: Write) -> None:
    module = write("first, second = (lambda x: x + 1), (lambda x: x - 1)\n")
    assert ast.unparse(read(module.first).definition) == "lambda x: x + 1"
    assert ast.unparse(read(module.second).definition) == "lambda x: x - 1"


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_file_that_has_changed_since_it_was_imported_is_refused(write: Write, tmp_path: Path) -> None:
    text = "def forward(x):\n    return x + 1\n"
    module = write(text)
    read(module.forward)
    (tmp_path / "written_here.py").write_text(text.replace("+ 1", "- 1"), encoding="utf-8")
    with pytest.raises(
        NoSourceError, match=r"written_here.py:1 does not hold the code of written_here:forward that runs"
    ):
        read(module.forward)
    (tmp_path / "written_here.py").write_text("# A line on top.\n" + text, encoding="utf-8")
    with pytest.raises(NoSourceError, match="does not hold the code of"):
        read(module.forward)
    (tmp_path / "written_here.py").write_text(text + "\n\ndef more(:\n", encoding="utf-8")
    with pytest.raises(NoSourceError, match="cannot be read as Python"):
        read(module.forward)
    (tmp_path / "written_here.py").write_text(text.replace("return x", "return  x") + "# more\n", encoding="utf-8")
    assert read(module.forward).text == "def forward(x):\n    return  x + 1\n"


def test_code_typed_at_a_prompt_is_read_where_linecache_has_it() -> None:
    text = "def forward(x):\n    return x + 1\n"
    names: dict[str, Any] = {"__name__": "prompt"}
    exec(compile(text, "<prompt 1>", "exec"), names)
    with pytest.raises(NoSourceError, match=r"source of prompt:forward is not available \(<prompt 1>\)"):
        read(names["forward"])
    linecache.cache["<prompt 1>"] = (len(text), None, text.splitlines(True), "<prompt 1>")
    try:
        assert read(names["forward"]).text == text
    finally:
        del linecache.cache["<prompt 1>"]


# -- from an instruction to an expression -----------------------------------------------------------------------------


def offsets(code: CodeType, opcode: str) -> list[int]:
    import dis

    return [instruction.offset for instruction in dis.get_instructions(code) if instruction.opname == opcode]


def methods(x: Any, y: Any) -> Any:
    return (
        x.first(y)
        .second(
            y,
        )
        .third()
    )


def test_a_chain_of_methods_over_several_lines_is_told_apart() -> None:
    source = read(methods)
    found = [source.node_at(methods.__code__, offset) for offset in offsets(methods.__code__, "CALL")]
    assert [ast.unparse(node.func).rpartition(".")[2] for node in found] == ["first", "second", "third"]  # type: ignore[attr-defined]
    assert [source.ordinal_of(node) for node in found] == sorted((source.ordinal_of(n) for n in found), reverse=True)


def same_text_twice(x: Any) -> Any:
    return x(1), x(1)


def test_two_calls_of_one_text_in_one_line_are_two_expressions() -> None:
    source = read(same_text_twice)
    first, second = (source.node_at(same_text_twice.__code__, at) for at in offsets(same_text_twice.__code__, "CALL"))
    assert first is not second
    assert ast.unparse(first) == ast.unparse(second) == "x(1)"


def test_code_without_columns_is_refused() -> None:
    source = read(plain)
    with pytest.raises(NoSourceError, match="without the columns of its calls"):
        source.node_at(plain.__code__.replace(co_linetable=b""), 10_000)


def test_every_instruction_of_a_call_counts_as_its_first() -> None:
    code = same_text_twice.__code__
    calls = offsets(code, "CALL")
    assert len({instruction_of(code, offset) for offset in calls}) == 2
    for offset in calls:
        assert instruction_of(code, offset + 2) == instruction_of(code, offset), "caches of the interpreter's"


# -- finding ----------------------------------------------------------------------------------------------------------


def counted(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def unwrapped(function: Any) -> Any:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Owner:
    @counted
    @unwrapped
    def decorated(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    @classmethod
    def of_class(cls) -> None: ...


class Child(Owner):
    def decorated(self) -> None: ...


def named(function: str) -> Callable[[CodeType], bool]:
    return lambda code: code.co_qualname == function


def test_a_function_is_found_behind_decorators_methods_and_partials() -> None:
    inner = behind(Owner.decorated, named("Owner.decorated"))
    assert isinstance(inner, FunctionType)
    assert inner is not Owner.decorated
    assert behind(functools.partial(Owner().decorated, 1), named("Owner.decorated")) is inner
    assert behind(Owner.decorated, named("Owner.another")) is None
    assert behind(None, named("x")) is None


@pytest.mark.parametrize("name", ["decorated", "static", "of_class"])
def test_methods_are_found_by_their_qualified_names(name: str) -> None:
    found = find(f"Owner.{name}", __name__, Owner, None)
    assert found is not None
    assert found.inner.__code__.co_qualname == f"Owner.{name}"
    assert found.outer is getattr(vars(Owner)[name], "__func__", vars(Owner)[name])


def test_a_method_of_a_parent_is_not_taken_for_the_childs() -> None:
    parents, own = (find(f"{cls}.decorated", __name__, Child, None) for cls in ("Owner", "Child"))
    assert parents is not None
    assert own is not None
    assert parents.outer is Owner.decorated
    assert own.outer is Child.decorated


def test_functions_are_found_in_the_callers_module_its_closure_and_by_path() -> None:
    def helper() -> None: ...

    def caller() -> Any:
        return helper

    inner = find(name_of(helper).partition(":")[2], "nowhere", Owner, caller)
    assert inner is not None
    assert inner.inner is helper
    known = find("plain", "nowhere", Owner, caller)
    assert known is not None
    assert known.inner is plain
    assert find("plain", __name__, Owner, None) is not None
    assert find("plain", "nowhere", Owner, None) is None


# -- changed? ---------------------------------------------------------------------------------------------------------

BEFORE = '''def f(x):
    """Says."""
    y = x + 1  # why
    return g(y, "a")
'''


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (BEFORE.replace("# why", "# because"), True),
        (BEFORE.replace("Says.", "Says more."), True),
        (BEFORE.replace('    """Says."""\n', ""), True),
        (BEFORE.replace('g(y, "a")', "g(\n        y,\n        'a',\n    )"), True),
        (textwrap.indent(BEFORE, "    "), True),
        (BEFORE.replace("+ 1", "+ 2"), False),
        (BEFORE.replace("y", "z"), False),
        (BEFORE.replace('"a"', '"b"'), False),
        (BEFORE.replace("(x)", "(x, z=1)"), False),
        ("@decorated\n" + BEFORE, False),
    ],
    ids=range(10),
)
def test_a_fingerprint_changes_with_what_is_said_and_not_with_how(text: str, same: bool) -> None:
    assert (fingerprint(text) == fingerprint(BEFORE)) is same


def test_what_is_compiled_again_is_the_very_code(write: Write) -> None:
    for kind, text in KINDS.items():
        function = write(text).Model.forward
        source = read(function)
        code = compiled(source.definition, function, source.imported)
        assert code.co_code == function.__code__.co_code, kind
        positions = [list(made.co_positions())[1:] for made in (code, function.__code__)]  # the first is the `def`'s
        assert positions[0] == positions[1], kind
        assert code.co_flags | inspect.CO_NESTED == function.__code__.co_flags | inspect.CO_NESTED, kind
