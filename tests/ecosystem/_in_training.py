"""Situations: the ways of training that stand between a forward and an optimizer's step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from regbn_surgery import RegBNBypassedError, explain
from regbn_surgery._surgery import identity
from tests.zoo._running import call, copied, tensors_of

from ._subject import (
    SEED,
    DoesNotApplyError,
    Subject,
    assert_regbn_learned,
    assert_same,
    backward,
    counting,
    gradients,
    loss_of,
    outputs,
    regbns,
    seeded_call,
    the_original_must,
    unless_the_original_fails,
    warmed,
    with_uneven_weights,
)


def compiled(subject: Subject) -> None:
    """`torch.compile` in evaluation and in training: the eager results, and no more graph breaks than the original has,
    or has with a function around each host that only calls it."""
    example = subject.example()
    for train in (False, True):
        eager = warmed(subject.rewritten(), example).train(train)
        model = warmed(subject.rewritten(), example).train(train)  # a copy of `eager` would have other objects

        def original(train: bool = train) -> Any:
            return _breaks(subject.original().train(train), example)

        breaks, found = unless_the_original_fails("compile", lambda model=model: _breaks(model, example), original)
        expected = list(tensors_of(seeded_call(eager, example)))
        assert_same(found, [out.detach() for out in expected], rtol=1e-4, atol=1e-5)
        if train:
            for name, module in regbns(eager).items():
                assert regbns(model)[name].num_steps == module.num_steps > 0, name
        if breaks:
            allowed, _ = the_original_must("compile", original)
            if len(breaks) > len(allowed):
                allowed, _ = _breaks(_called_around(subject.original(), eager).train(train), example)
            mode = "training" if train else "evaluation"
            assert len(breaks) <= len(allowed), (
                f"{len(breaks)} graph breaks in {mode}, where the original has {len(allowed)}: {breaks[0]}"
            )


def _called_around(original: nn.Module, rewritten: nn.Module) -> nn.Module:
    """The original with a function around each host of `rewritten`, as a subclass or a hook of the user's would be.

    Where a graph breaks, dynamo counts a break in each function around the place, so the same places are counted once
    more with one more function; a frame that is given up as a whole is counted with a function around it alone.
    """
    for report in explain(rewritten).hosts:
        host = original.get_submodule(report.host)
        if report.tier == 1:
            host.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)
            continue
        cls: Any = type(host)

        def forward(self: nn.Module, *args: Any, cls: Any = cls, **kwargs: Any) -> Any:
            return cls.forward(self, *args, **kwargs)

        host.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return original


def _breaks(model: nn.Module, example: Any) -> tuple[list[str], list[torch.Tensor]]:
    """Where dynamo has to leave a graph of the model to Python, and what comes out."""
    torch._dynamo.reset()
    counters.clear()
    try:
        ours = torch.compile(model, backend="eager")
        with torch.set_grad_enabled(model.training):
            found = [out.detach() for out in tensors_of(seeded_call(ours, example))]
        breaks = [reason for reason, times in counters["graph_break"].items() for _ in range(times)]
        frames = counters["frames"]
        given_up = frames["total"] - frames["ok"] if not breaks else 0  # a break gives the frames around it up, too
    finally:
        torch._dynamo.reset()
    return breaks + ["a frame that dynamo gave up"] * given_up, found


def mixed_precision(subject: Subject) -> None:
    """Autocast to bfloat16 with a GradScaler: identity gives the original's results, RegBN keeps float32."""
    example = subject.example()
    original = subject.original().train()

    def autocast(model: nn.Module) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return outputs(model, example)

    expected = the_original_must("run under autocast", lambda: autocast(original))
    twin = subject.rewritten().train()
    with identity(twin):
        assert_same(autocast(twin), expected, rtol=2e-2, atol=2e-2)
    model = subject.rewritten().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(call(model, subject.example(4 + step)))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert loss.isfinite()
    assert_regbn_learned(model, None)
    for name, module in regbns(model).items():
        assert all(factor.dtype == torch.float32 for factor in module.factors), name
    assert all(out.isfinite().all() for out in autocast(model.eval()) if out.is_floating_point())


def gradient_accumulation(subject: Subject) -> None:
    """Two micro-batches before a step: the gradients add up, and RegBN follows each of them."""
    micro = [subject.example(3), subject.example(4)]
    together, apart = subject.rewritten().train(), subject.rewritten().train()
    total: dict[str, torch.Tensor] = {}
    for example in micro:
        backward(together, example)
        apart.zero_grad()
        backward(apart, example)
        for name, gradient in gradients(apart).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
    assert_same(gradients(together), total, rtol=1e-4, atol=1e-7)
    steps = {name: int(module.num_steps) for name, module in regbns(together).items()}
    assert all(count >= len(micro) for count in steps.values()), steps


def gradient_checkpointing(subject: Subject) -> None:
    """The whole forward computed again in the backward pass: the same gradients, and RegBN moves once."""
    example = subject.example()
    the_original_must("bear checkpointing", lambda: _checkpointed(subject.original().train(), example))
    plain = warmed(subject.rewritten(), example).train()
    model = copied(plain)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        loss_of(call(plain, copy.deepcopy(example))).backward()
    _checkpointed(model, example)
    assert_same(gradients(model), gradients(plain), rtol=1e-4, atol=1e-6)
    for name, module in regbns(plain).items():
        assert_same(dict(regbns(model)[name].named_buffers()), dict(module.named_buffers()))
    enable = getattr(subject.original(), "gradient_checkpointing_enable", None)
    if enable is not None and getattr(subject.original(), "supports_gradient_checkpointing", False):
        ours = subject.rewritten().train()
        ours.gradient_checkpointing_enable()

        def original() -> None:
            plain = subject.original().train()
            plain.gradient_checkpointing_enable()
            backward(plain, example)

        with counting(ours) as calls:
            unless_the_original_fails("bear gradient_checkpointing_enable", lambda: backward(ours, example), original)
        assert all(calls.values())
        for name, module in regbns(plain).items():
            assert regbns(ours)[name].num_steps == module.num_steps, name


def _checkpointed(model: nn.Module, example: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        result = checkpoint(lambda: call(model, copy.deepcopy(example)), use_reentrant=False)
        loss_of(result).backward()


def averaged_weights(subject: Subject) -> None:
    """An exponential moving average of weights and buffers, and `update_bn` over it."""
    model = subject.rewritten()
    averaged = unless_the_original_fails(
        "average", lambda: _averaged(model, subject), lambda: _averaged(subject.original(), subject)
    )
    assert_regbn_learned(averaged.module)
    for name, module in regbns(model).items():
        mean = regbns(averaged.module)[name]
        for live, smooth in zip(module.factors, mean.factors, strict=True):
            assert not torch.equal(live, smooth), f"{name}: W was not averaged"
    with counting(averaged) as calls:
        found = outputs(averaged.eval(), subject.example(3))
    assert all(calls.values())
    live = outputs(model.eval(), subject.example(3))
    for smooth, out in zip(found, live, strict=True):  # a model that diverges does so without an average, too
        assert smooth.isfinite().all() or not out.isfinite().all()


def _averaged(model: nn.Module, subject: Subject) -> AveragedModel:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        model.train()
        optimizer.zero_grad()
        backward(model, subject.example(4 + step))
        optimizer.step()
        averaged.update_parameters(model)
    args, kwargs = subject.example_for()
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        update_bn([args[0]], averaged)
    return averaged


def generation(subject: Subject) -> None:
    """`generate` with a key-value cache: what it says without one, RegBN at every step, no change with identity."""
    original: Any = subject.original().eval()
    if not hasattr(original, "generate") or not hasattr(original, "generation_config"):
        raise DoesNotApplyError("the model does not generate")
    example = {k: v for k, v in subject.example(2).items() if k not in ("decoder_input_ids", "labels")}
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    for name in ("bos_token_id", "decoder_start_token_id"):
        if getattr(original.generation_config, name, None) is None and "decoder_input_ids" in subject.example(2):
            settings[name] = 3

    def said(model: Any, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens, and the logits behind each new one."""
        out = model.generate(
            **copy.deepcopy(example), **settings, use_cache=use_cache, return_dict_in_generate=True, output_logits=True
        )
        return out.sequences, torch.stack(out.logits)

    expected = the_original_must("generate", lambda: said(original, use_cache=True))
    model: Any = with_uneven_weights(subject.rewritten())
    try:
        said(model, use_cache=True)
    except RegBNBypassedError as error:
        if "`methods: [generate]`" not in str(error):
            raise
        model = with_uneven_weights(subject.rewritten(("generate",)))
    with identity(model):
        assert_same(said(model, use_cache=True), expected)
    hosts = _hosts(model)
    met = dict.fromkeys(hosts, 0)
    handles = [
        model.get_submodule(path).register_forward_pre_hook(_meeting(path, met), with_kwargs=True) for path in met
    ]
    with counting(model) as calls:
        found = said(model, use_cache=True)
    for handle in handles:
        handle.remove()
    assert all(calls.values()), calls
    crossing = {point.kind for point in subject.case.points} == {"attention"}
    if crossing or not original.config.is_encoder_decoder:  # text meets the other modality at every token
        steps = {name: met[host] or STEPS for name, host in zip(calls, hosts, strict=True)}
        assert calls == steps, f"{calls} calls in {steps} steps"
        assert (min if crossing else max)(steps.values()) >= STEPS, steps
    if _the_same(said(original, use_cache=False), expected):
        assert_same(found, said(model, use_cache=False), rtol=1e-4, atol=1e-5)


#: Tokens that `generation` asks for.
STEPS = 5


def _the_same(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(found[0], expected[0]) and torch.allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)


def _hosts(model: nn.Module) -> list[str]:
    return [name.rsplit(".regbn_", 1)[0] if ".regbn_" in name else "" for name in regbns(model)]


def _meeting(path: str, met: dict[str, int]) -> Callable[..., None]:
    def count(*_: Any) -> None:
        met[path] += 1

    return count


def exported(subject: Subject) -> None:
    """`torch.export` of the evaluated model: the eager results."""
    args, kwargs = subject.example_for(3)
    model = warmed(_trained(subject), subject.example(3)).eval()

    def same(model: nn.Module) -> None:
        expected = outputs(model, subject.example(3))
        program = _export(model, args, kwargs)
        with torch.no_grad():
            found = [out.clone() for out in tensors_of(program.module()(*args, **kwargs))]
        assert_same(found, expected, rtol=1e-4, atol=1e-5)

    unless_the_original_fails("export", lambda: same(model), lambda: same(subject.original().eval()))


def _trained(subject: Subject) -> nn.Module:
    model = subject.rewritten().train()
    backward(model, subject.example())
    return model.eval()


def _export(model: nn.Module, args: Any, kwargs: Any) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, copy.deepcopy(args), copy.deepcopy(kwargs))


def to_onnx(subject: Subject) -> None:
    """ONNX of the evaluated model, run by onnxruntime: the eager results."""
    args, kwargs = subject.example_for(3)
    model = warmed(_trained(subject), subject.example(3)).eval()
    expected = outputs(model, subject.example(3))

    def original() -> None:
        plain = subject.original().eval()
        assert_same(through_onnx(plain, args, kwargs), outputs(plain, subject.example(3)), rtol=1e-3, atol=1e-4)

    unless_the_original_fails(
        "go to ONNX", lambda: assert_same(through_onnx(model, args, kwargs), expected, rtol=1e-3, atol=1e-4), original
    )


def through_onnx(model: nn.Module, args: Any, kwargs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        program = torch.onnx.export(
            model, copy.deepcopy(args), kwargs=copy.deepcopy(kwargs), dynamo=True, verbose=False
        )
        assert program is not None
        return [torch.as_tensor(out) for out in program(*args, **kwargs)]


SITUATIONS: dict[str, Callable[[Subject], None]] = {
    "autocast and GradScaler": mixed_precision,
    "accumulation": gradient_accumulation,
    "checkpointing": gradient_checkpointing,
    "EMA": averaged_weights,
    "torch.compile": compiled,
    "generate with cache": generation,
    "torch.export": exported,
    "ONNX": to_onnx,
}
