"""Two and four real processes (gloo) against one process with the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from regbn_surgery import RegBN, RegBNWarning, convert_sync_regbn

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo backend"
)
ROOT = Path(__file__).parents[2]

CASES: dict[str, dict[str, object]] = {
    "dual": {"form": "dual"},
    "primal": {"form": "primal", "constraint": "frobenius"},
    "implicit": {"lambda_grad": "implicit"},
    "mean": {"reduce": "mean"},
    "running": {"fit": "running"},
    "low_rank": {"projection": "low_rank", "rank": 10},
    "normalized": {"residual": "normalized"},
    "gcv": {"constraint": "gcv", "centre": True, "correct_start": True},
    "gcv primal": {"constraint": "gcv", "centre": True, "form": "primal"},
    "missing": {"constraint": "fixed", "lam": 0.1, "centre": True},
    "missing primal": {"form": "primal", "residual": "normalized"},
}
#: Rows of each batch in which g is missing: all that one of four ranks has, none of another's.
MISSING = [1, 5, 6]


def build(case: str) -> torch.nn.Module:
    """A layer with parameters before RegBN, so that DDP has gradients to reduce."""
    torch.manual_seed(0)
    sizes = ((), ()) if case == "mean" else ((2, 2), (3,))
    return torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(4, 4, 1),
            "regbn": RegBN(4, 5, *sizes, normalize_input=case != "low_rank", affine=True, **CASES[case]),
        }
    )


class Model(torch.nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        self.parts = build(case)

    def forward(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts["regbn"](self.parts["conv"](f), g)


def batch(step: int, b: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.randn(b, *size, generator=generator) for size in ((4, 2, 2), (5, 3), (4, 2, 2), (5, 3)))


#: Where each rank's rows start, in the first two batches of 12 and in the last one of 7: one rank of four has a
#: single sample, and none of the last batch.
STARTS = {1: ([0, 12], [0, 7]), 2: ([0, 7, 12], [0, 4, 7]), 4: ([0, 5, 6, 9, 12], [0, 3, 3, 5, 7])}


def train(model: torch.nn.Module, rank: int, world: int, case: str) -> dict[str, torch.Tensor]:
    """Three steps on this rank's rows. The loss is a sum over samples; DDP's mean over ranks is undone."""
    record = {}
    for step in range(3):
        starts = STARTS[world][step == 2]
        f, g, r_f, r_g = batch(step, starts[-1])
        if case.startswith("missing"):
            g[MISSING] = 0.0
        f, g, r_f, r_g = (x[starts[rank] : starts[rank + 1]] for x in (f, g, r_f, r_g))
        f, g = f.clone().requires_grad_(), g.clone().requires_grad_()
        model.zero_grad()
        f_out, g_out = model(f, g)
        ((f_out * r_f).sum() + (g_out * r_g).sum()).backward()
        record |= {f"f_out{step}": f_out.detach(), f"g_out{step}": g_out.detach()}
        record |= {f"grad_f{step}": f.grad, f"grad_g{step}": g.grad}
    module = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    record |= {f"param {name}": p.grad * world for name, p in module.named_parameters()}
    record |= {f"state {name}": value.clone() for name, value in module.state_dict().items()}
    return record


def train_unjoined(model: torch.nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Without the converter each rank fits on its own rows, and DDP hands round rank 0's state before each step."""
    starts = STARTS[2][0]
    rows = slice(starts[rank], starts[rank + 1])
    for step in range(3):
        f, g, _, _ = (x[rows] for x in batch(step, 12))
        sum(x.pow(3).sum() for x in model(f, g)).backward()
    model.eval()
    return {"f_out": model(*(x[:3] for x in batch(0, 12)[:2]))[0].detach()}


def worker(folder: str) -> None:
    """What each process runs: every case, under DDP, on its uneven share of the rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=int(os.environ["RANK"]),
                            world_size=int(os.environ["WORLD_SIZE"]))  # fmt: skip
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {}
    warnings.simplefilter("error", RegBNWarning)  # nothing to say of what is converted
    for case in CASES:
        model = torch.nn.parallel.DistributedDataParallel(convert_sync_regbn(Model(case)))
        results[case] = train(model, rank, world, case)
    group = dist.new_group(list(range(world)))
    for case in ("dual", "low_rank"):
        around = torch.nn.Sequential(Model(case))  # by torch's converter, of a model that holds it; it has no BatchNorm
        converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(around, group)[0]
        assert converted.parts["regbn"].process_group is group
        results[f"by torch {case}"] = train(torch.nn.parallel.DistributedDataParallel(converted), rank, world, case)
    if world == 2:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            Model("dual").eval()(*batch(0, 12)[:2])
            assert not told, "in evaluation there is nothing to join"
            results["own batches"] = train_unjoined(torch.nn.parallel.DistributedDataParallel(Model("dual")), rank)
        texts = [str(one.message) for one in told if issubclass(one.category, RegBNWarning)]
        assert len(texts) == 1, texts
        assert "trained on 2 ranks" in texts[0]
        assert "regbn_surgery.convert_sync_regbn(model)" in texts[0]
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def spawn(folder: Path, world: int) -> list[dict[str, dict[str, torch.Tensor]]]:
    code = f"from tests.nn.test_ranks import worker; worker({str(folder)!r})"
    environment = {**os.environ, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, "RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=1800)
            assert rank.returncode == 0, errors[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_one_process_with_the_joined_batch(world: int, tmp_path: Path) -> None:
    """Outputs, gradients, parameters' gradients and running state, within 1e-5, on uneven shares and last batches."""
    results = spawn(tmp_path, world)
    for case in CASES:
        want = train(Model(case), 0, 1, case)
        for name, value in want.items():
            if name.startswith(("f_out", "g_out", "grad")):
                ours = torch.cat([result[case][name] for result in results])
                torch.testing.assert_close(ours, value, atol=1e-5, rtol=1e-5)
                continue
            for result in results:
                ours = result[case][name]
                if name.endswith(("W_left", "W_right")):
                    continue  # unique up to a rotation: their product is compared below
                torch.testing.assert_close(ours, value, atol=1e-5, rtol=1e-4)
        if case == "low_rank":
            left, right = "state parts.regbn.W_left", "state parts.regbn.W_right"
            for result in results:
                product = result[case][left] @ result[case][right]
                torch.testing.assert_close(product, want[left] @ want[right], atol=1e-5, rtol=1e-4)
    for result in results:
        for case in ("dual", "low_rank"):
            for name, value in result[case].items():
                assert torch.equal(result[f"by torch {case}"][name], value), (case, name)
    for name, value in results[0]["by torch dual"].items():
        if name.startswith("state") and "zero_weight" not in name:
            assert all(torch.equal(result["by torch dual"][name], value) for result in results), name
    if world == 2:
        want = train_unjoined(Model("dual"), 0)["f_out"]
        for result in results:
            torch.testing.assert_close(result["own batches"]["f_out"], want)


def test_converter_and_single_process() -> None:
    """The converter reaches every RegBN; where nothing is initialised the module fits on its own batch."""
    model = torch.nn.Sequential(RegBN(4, 3), torch.nn.ModuleList([RegBN(2, 2)]))
    assert convert_sync_regbn(model) is model
    assert all(module.options.sync for module in model.modules() if isinstance(module, RegBN))
    f, g = torch.randn(8, 4), torch.randn(8, 3)
    assert torch.equal(model[0](f, g)[0], RegBN(4, 3)(f, g)[0])


class _Holds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = torch.nn.BatchNorm1d(4), torch.nn.ModuleList([RegBN(4, 3, normalize_input=True)])


def by_torch(model: torch.nn.Module, group: object) -> torch.nn.Module:
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, group)


def convert_syncbn_model(module: torch.nn.Module, process_group: object = None) -> torch.nn.Module:
    """As apex has it, but for the layers."""
    for name, child in module.named_children():
        module.add_module(name, convert_syncbn_model(child, process_group))
    return module


@pytest.mark.parametrize("convert", [by_torch, convert_syncbn_model])
def test_conversions_of_batchnorm_take_regbn_along(convert: Callable[..., torch.nn.Module]) -> None:
    model, group = _Holds(), object()
    state = list(model.state_dict())
    assert convert(model, group) is model
    (regbn,) = model.inner
    assert regbn.options.sync
    assert regbn.process_group is group
    assert list(model.state_dict()) == state


def test_a_regbn_by_itself_is_converted() -> None:
    regbn = RegBN(4, 3)
    assert torch.nn.SyncBatchNorm.convert_sync_batchnorm(regbn) is regbn
    assert regbn.options.sync
    assert regbn.process_group is None


def test_whoever_else_adds_the_children_anew_converts_nothing() -> None:
    def revert_sync_batchnorm(module: torch.nn.Module, process_group: object = None) -> torch.nn.Module:
        for name, child in module.named_children():
            module.add_module(name, revert_sync_batchnorm(child))
        return module

    model = revert_sync_batchnorm(_Holds())
    assert not model.inner[0].options.sync
    regbn = RegBN(4, 3)
    regbn.add_module("more", torch.nn.Identity())
    assert not regbn.options.sync


ONE_MACHINE = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
    # `--multi_gpu` is its word for several processes on a machine; the example itself asks for gloo.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *ONE_MACHINE],
}


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_the_example_runs_under_its_launchers(launcher: list[str], options: list[str]) -> None:
    if "accelerate.commands.launch" in launcher:
        pytest.importorskip("accelerate")
    if "--fsdp" in options and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 of this torch does not run on a CPU")
    example = ROOT / "examples" / "distributed" / "train.py"
    command = [sys.executable, "-m", *launcher, str(example)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*command, "--steps", "20", *options],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "W differs between the ranks by 0" in run.stdout


DIES = """
import sys
import torch
import torch.distributed as dist
from regbn_surgery import RegBN, convert_sync_regbn

dist.init_process_group("gloo")
regbn = convert_sync_regbn(RegBN(4, 3))
regbn(torch.randn(8, 4), torch.randn(8, 3))
if dist.get_rank() == 1:
    raise ValueError("this rank has had enough")
for _ in range(3):
    regbn(torch.randn(8, 4), torch.randn(8, 3))
print("went on alone")
"""


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path: Path) -> None:
    """Rank 0 waits for the rows of rank 1 meanwhile; `timeout` is what a hang would run into."""
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert run.returncode != 0
    assert "this rank has had enough" in run.stderr
    assert "went on alone" not in run.stdout
