"""What an import brings with it, counted in modules: the compiler and the graph library come when they are needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COUNT = """
import json, sys
import torch
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
#: What takes long: together they cost more than torch itself.
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torch.distributed.fsdp",
    "sympy",
    "networkx",
    "transformers",
    "matplotlib",
    "scipy",
    "sklearn",
    "rich",
    "safetensors",
)


def brought_by(statement: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(statement=statement)], capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "statement",
    [
        "from regbn_surgery import regbnify, inspect",
        "from regbn_surgery import load_regbn, save_regbn, Recipe, verify, convert_sync_regbn",
    ],
)
def test_an_import_brings_no_compiler(statement: str) -> None:
    new = brought_by(statement)
    heavy = [name for name in new if any(name == slow or name.startswith(f"{slow}.") for slow in HEAVY)]
    assert heavy == []
    ours = [name for name in new if name.split(".")[0] == "regbn_surgery"]
    assert len(new) - len(ours) < 150, "pydantic, yaml and the engine of patterns are about a hundred"


def test_regbnify_and_a_step_bring_no_compiler_either() -> None:
    new = brought_by(
        "from torch import nn\n"
        "from regbn_surgery import regbnify\n"
        "from tests.surgery.models import Late, rules, vectors\n"
        "model = regbnify(Late(), rules('concat'), vectors())\n"
        "model(**vectors()).sum().backward()"
    )
    assert "networkx" in new
    assert "torch._dynamo" not in new


def test_the_help_lists_every_public_name_in_a_line() -> None:
    import regbn_surgery

    lines = [line.split(maxsplit=1) for line in (regbn_surgery.__doc__ or "").splitlines() if line.startswith("    ")]
    listed = [name for name, _ in lines]
    assert sorted(listed) == sorted(set(regbn_surgery.__all__) - {"__version__"})
    assert all(len(text) > 10 for _, text in lines)


def test_every_public_name_is_documented_and_loaded_on_first_use() -> None:
    code = (
        "import sys, regbn_surgery\n"
        "assert 'torch' not in sys.modules\n"
        "for name in regbn_surgery.__all__:\n"
        "    value = getattr(regbn_surgery, name)\n"
        "    assert isinstance(value, str) or (value.__doc__ or '').strip(), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
