"""Models that are wrapped already, code that has changed since the plan, and faults in the newer stages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import CaptureError, PlanError, RegBNError, RewriteError, unregbnify
from regbn_surgery._surgery import (
    _classes,
    _graph_host,
    _host,
    _keep,
    _local,
    _operations,
    _passage,
    _reorder,
    _trials,
    _woven,
    explain,
)
from regbn_surgery._types import Plan

from .models import Late, Nested, build, counting, everything, operate, rules, run, vectors
from .test_across import TwoTowers, images, layerwise
from .test_scatter import ByMask, Functional, example

# -- wrapped already --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_rank() -> Iterator[None]:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compiled_in_place() -> nn.Module:
    model = build(Late)
    model.compile(backend="eager")
    return model


def test_a_compiled_model_is_refused_with_the_order_to_use() -> None:
    torch._dynamo.reset()
    for model, match in (
        (compiled_in_place(), "call compile.. after regbnify"),
        (torch.compile(build(Late)), "compile"),
    ):
        with pytest.raises(CaptureError, match=match):
            operate(model, vectors())  # type: ignore[arg-type]


def test_a_scripted_model_is_refused_with_what_to_pass() -> None:
    with pytest.raises(CaptureError, match="pass the module it was made from"):
        operate(torch.jit.trace(build(Nested).eval(), tuple(vectors().values())), vectors())


def test_distributed_models_are_refused_with_the_order_to_use(one_rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with pytest.raises(CaptureError, match="put RegBN into the module first, and wrap the result"):
        operate(nn.parallel.DistributedDataParallel(build(Late)), vectors())
    mesh = init_device_mesh("cpu", (1,))
    whole, part = build(Late), build(Late)
    fully_shard(whole, mesh=mesh)
    fully_shard(part.enc_a, mesh=mesh)
    for model, what in ((whole, "It has"), (part, "`enc_a` in it has")):
        before = type(model)
        with pytest.raises(CaptureError, match=f"{what} been sharded.*put RegBN into the model first, and shard"):
            operate(model, vectors(), inplace=True)
        assert type(model) is before
    if not torch.__version__.startswith("2.6."):  # whose builds for CUDA cannot gather on a CPU
        assert whole(**vectors()).isfinite().all()


# -- changed since the plan -------------------------------------------------------------------------------------------


def changed(self: Any, left: Tensor, right: Tensor) -> Tensor:
    return self.out(torch.cat([left, right], dim=-1)) * 2


def test_a_host_whose_code_has_changed_since_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Nested)
    plan = regbn_surgery.plan(model, rules(), vectors())
    stored = Plan.from_json(plan.to_json())
    assert stored == plan
    monkeypatch.setattr(type(model.fusion), "forward", changed)
    before = everything(model)
    for given in (plan, stored):
        with pytest.raises(PlanError, match=r"Fusion.forward at `fusion` has changed since the plan was made"):
            regbn_surgery.regbnify(model, given, vectors(), inplace=True)
    assert everything(model) == before
    monkeypatch.undo()
    assert explain(regbn_surgery.regbnify(model, stored, vectors()))


def test_the_layout_of_the_code_and_its_comments_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def first() -> Any:
        def forward(self: Any, left: Tensor, right: Tensor) -> Tensor:
            return self.out(torch.cat([left, right], dim=-1))

        return forward

    def second() -> Any:
        def forward(self: Any, left: Tensor, right: Tensor) -> Tensor:
            """Says more about itself."""
            # Another comment, and other line breaks.
            return self.out(
                torch.cat([left, right], dim=-1),
            )

        return forward

    model = build(Nested)
    monkeypatch.setattr(type(model.fusion), "forward", first())
    plan = regbn_surgery.plan(model, rules(), vectors())
    assert [path for path, fingerprint in plan.forwards if fingerprint] == ["fusion"]
    monkeypatch.setattr(type(model.fusion), "forward", second())
    assert explain(regbn_surgery.regbnify(model, plan, vectors()))


# -- faults -----------------------------------------------------------------------------------------------------------


def explode(*args: Any, **kwargs: Any) -> Any:
    raise RewriteError("on purpose")


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


SCATTER = rules("scatter", "b", "a")
MODELS: dict[str, tuple[Any, Any, Any]] = {
    "across": (lambda: build(TwoTowers), layerwise(), images()),
    "scatter": (lambda: build(Functional), SCATTER, example(ragged=False)),
    "in place": (lambda: build(ByMask), SCATTER, example(ragged=False)),
}
STAGES: list[tuple[Any, str]] = [
    (_operations, "keep"),
    (_operations, "_guard"),
    (_operations, "refuse_hooks"),
    (_operations, "_site_module"),
    (_trials, "reordered"),
    (_operations, "code_site"),
    (_host, "woven"),
    (_host, "refuse_changed_functions"),
    (_host, "remember_caches"),
    (_woven, "weave"),
    (_passage, "run_scatter"),
    (_graph_host, "leaf_rule"),
    (_graph_host, "states"),
    (_graph_host, "settings_of"),
    (_classes, "rewritten_class"),
    (_trials, "own_arguments"),
    (_classes, "refuse_methods"),
    (_local, "insert_scatter"),
    (_local, "dependents"),
    (_local, "refuse_hazard"),
    (_keep, "goes_over_children"),
    (_reorder._NoDropout, "__torch_function__"),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("owner", "stage"), STAGES, ids=[stage for _, stage in STAGES])
def test_a_fault_at_any_stage_leaves_the_model_as_it_was(
    name: str, owner: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, given, inputs = MODELS[name]
    model = make().train()
    output = run(model, inputs, training=False)
    model.train()
    for failure in (explode, interrupt):
        before = everything(model)
        reached: list[bool] = []

        def fail(*args: Any, failure: Any = failure, reached: list[bool] = reached, **kwargs: Any) -> Any:
            reached.append(True)
            return failure()

        monkeypatch.setattr(owner, stage, fail)
        try:
            regbn_surgery.regbnify(model, given, inputs, inplace=True)
        except (RegBNError, KeyboardInterrupt):
            assert reached
        else:
            if not reached:
                pytest.skip("this stage is not on the way of this model")
            unregbnify(model)  # another tier has stepped in
        monkeypatch.undo()
        assert everything(model) == before
        assert torch.is_grad_enabled()
        assert not torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        assert nn.Module.__call__.__module__.startswith("torch")
    torch.testing.assert_close(run(model, inputs, training=False), output, rtol=0, atol=0)
    with counting(regbn_surgery.regbnify(model, given, inputs, inplace=True)) as calls:
        run(model, inputs, training=False)
    assert calls
