"""The whole operation: what is kept, what is put in, what is given back, and what a failure leaves behind."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import AlreadyRewrittenError, RegBN, RegBNError, RewriteError, unregbnify
from regbn_surgery._surgery import (
    RegBNSite,
    _hoist,
    _host,
    _locate,
    _operations,
    _passage,
    _surgery,
    _trials,
    _weave,
    explain,
    identity,
)

from .models import (
    Cross,
    Late,
    Nested,
    Swapped,
    build,
    counting,
    everything,
    forced,
    operate,
    operate_by,
    rules,
    run,
    site_of,
    step,
    token_pairs,
    vectors,
    ways,
)

CASES: dict[str, tuple[type[nn.Module], Callable[..., dict[str, Tensor]], str, str]] = {
    "source": (Late, vectors, "concat", "source"),
    "mode": (Late, vectors, "concat", "mode"),
    "hook": (Nested, vectors, "concat", "hook"),
    "leaf": (Cross, token_pairs, "attention", "hook"),
    "roles": (Swapped, token_pairs, "attention", "hook"),
    "roles in source": (Swapped, token_pairs, "attention", "source"),
    "roles by mode": (Swapped, token_pairs, "attention", "mode"),
}
every_case = pytest.mark.parametrize("case", CASES)


def prepared(case: str, **options: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    cls, inputs, kind, way = CASES[case]
    model = build(cls)
    return model, operate_by(way, model, inputs(), kind, **options), inputs()


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# -- what is kept -----------------------------------------------------------------------------------------------------


@every_case
def test_class_keys_and_values_are_kept_and_the_original_is_not_touched(case: str) -> None:
    cls, inputs, kind, way = CASES[case]
    model = build(cls)
    before = everything(model)
    rewritten = operate_by(way, model, inputs(), kind)
    assert everything(model) == before
    assert isinstance(rewritten, cls)
    assert type(rewritten).__name__ == cls.__name__
    assert type(rewritten).__module__ == cls.__module__
    old, new = model.state_dict(), rewritten.state_dict()
    assert_equal({key: new[key] for key in old}, dict(old))
    added = [key for key in new if key not in old]
    assert added
    assert all(any(part.startswith("regbn_") for part in key.split(".")) for key in added)
    assert {report.tier for report in explain(rewritten)} == {{"hook": 1, "source": 2, "mode": 3}[way]}
    assert rewritten.training == model.training


@every_case
@pytest.mark.parametrize("training", [False, True])
def test_with_identity_in_place_the_outputs_are_the_originals(case: str, training: bool) -> None:
    model, rewritten, _ = prepared(case)
    inputs = CASES[case][1]
    for batch in (2, 3, 7):
        with identity(rewritten):
            found = run(rewritten, inputs(batch), training)
        assert_equal(found, run(model, inputs(batch), training))


def test_inplace_changes_the_model_itself_and_without_it_a_copy() -> None:
    model = build(Late)
    assert operate(model, vectors(), inplace=True) is model
    assert isinstance(model.regbn_x, RegBNSite)
    other = build(Late)
    copied = operate(other, vectors())
    assert copied is not other
    assert {id(p) for p in copied.parameters()}.isdisjoint({id(p) for p in other.parameters()})


def test_mode_device_and_dtype_follow_the_host() -> None:
    model = build(Late).double().eval()
    rewritten = operate(model, {name: x.double() for name, x in vectors().items()})
    site = site_of(rewritten)
    assert not site.training
    assert run(rewritten, {name: x.double() for name, x in vectors().items()}).dtype == torch.float64


# -- what goes in -----------------------------------------------------------------------------------------------------


def by_hand(model: Any, a: Tensor, b: Tensor) -> Tensor:
    f, g = model.regbn_x.regbn(torch.relu(model.enc_a(a)), torch.relu(model.enc_b(b)))
    return model.head(model.norm(torch.cat([f, g], dim=-1)))


@pytest.mark.parametrize("training", [False, True])
def test_the_rewritten_model_is_the_one_written_by_hand(training: bool) -> None:
    _, rewritten, example = prepared("source")
    step(rewritten, example)
    twin = copy.deepcopy(rewritten)
    found = run(rewritten, vectors(5), training)
    twin.train(training)
    expected = by_hand(twin, **vectors(5))
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(rewritten.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert rewritten.enc_a.weight.grad.abs().sum() > 0
    assert rewritten.enc_b.weight.grad.abs().sum() > 0
    torch.testing.assert_close(rewritten.regbn_x.regbn.state_dict(), twin.regbn_x.regbn.state_dict())


def test_only_f_is_replaced_where_the_rules_say_so() -> None:
    model = operate(build(Nested), vectors(), replace="f")
    step(model, vectors())
    model.eval()
    a, b = model.enc_a(vectors()["a"]), model.enc_b(vectors()["b"])
    f, _ = model.fusion.regbn_x.regbn(a, b)
    torch.testing.assert_close(run(model, vectors()), model.fusion.out(torch.cat([f, b], -1)))


def test_the_direction_is_the_rules() -> None:
    forth, back = operate(build(Late), vectors()), operate(build(Late), vectors(), normalize="b", against="a")
    assert (forth.regbn_x.regbn.f_num_channels, forth.regbn_x.regbn.g_num_channels) == (8, 4)
    assert (back.regbn_x.regbn.f_num_channels, back.regbn_x.regbn.g_num_channels) == (4, 8)
    step(back, vectors())
    back.eval()
    f, g = back.regbn_x.regbn(torch.relu(back.enc_b(vectors()["b"])), torch.relu(back.enc_a(vectors()["a"])))
    torch.testing.assert_close(run(back, vectors()), back.head(back.norm(torch.cat([g, f], -1))))


@every_case
def test_training_moves_the_projection_and_evaluation_only_reads_it(case: str) -> None:
    _, model, example = prepared(case)
    sites = [module for module in model.modules() if isinstance(module, RegBNSite)]
    before = [site.regbn.W.clone() for site in sites]
    step(model, example)
    assert all(not torch.equal(site.regbn.W, old) for site, old in zip(sites, before, strict=True))
    model.eval()
    state = copy.deepcopy(model.state_dict())
    first, second = run(model, example), run(model, example)
    assert_equal(first, second)
    assert_equal(dict(model.state_dict()), dict(state))


def test_a_pair_of_inputs_is_normalised_on_the_way_in() -> None:
    rule = {"id": "early", "pair": {"f": "input:a", "g": "input:b"}}
    model = regbn_surgery.regbnify(build(Late), {**rules(), "rules": [rule]}, vectors())
    step(model, vectors())
    model.eval()
    f, g = model.regbn_early.regbn(*vectors(3).values())
    expected = Late.forward(model, f, g)
    torch.testing.assert_close(run(model, vectors(3)), expected)
    assert isinstance(model, Late)
    assert (ways(model), type(model).__name__) == ({"hook"}, "Late")
    assert type(regbn_surgery.unregbnify(model)) is Late


# -- copies, pickles, checkpoints -------------------------------------------------------------------------------------


@every_case
def test_a_deep_copy_is_a_model_of_its_own(case: str) -> None:
    _, model, example = prepared(case)
    step(model, example)
    twin = copy.deepcopy(model)
    expected = run(model, example, training=False)
    assert_equal(run(twin, example, training=False), expected)
    with counting(model) as ours, counting(twin) as theirs:
        step(twin, example)
    assert not ours
    assert theirs
    assert_equal(run(model, example, training=False), expected)
    assert everything(unregbnify(twin)).keys() == everything(build(CASES[case][0])).keys()
    assert_equal(run(model, example, training=False), expected)


@every_case
@pytest.mark.parametrize("save", ["pickle", "torch.save"])
def test_a_pickled_model_comes_back_and_trains(case: str, save: str) -> None:
    _, model, example = prepared(case)
    step(model, example)
    file = io.BytesIO()
    if save == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(model)
    with counting(loaded) as calls:
        assert_equal(run(loaded, example, training=False), run(model, example, training=False))
    assert calls
    for trained in (loaded, model):
        step(trained, example)
    assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    restored = unregbnify(loaded)
    assert type(restored) is CASES[case][0]
    assert restored.state_dict().keys() == build(CASES[case][0]).state_dict().keys()


@every_case
def test_a_state_dict_is_plain_tensors_and_loads_into_a_fresh_model(case: str) -> None:
    _, model, example = prepared(case)
    step(model, example)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    _, fresh, _ = prepared(case)
    fresh.load_state_dict(state, strict=True)
    assert_equal(run(fresh, example, training=False), run(model, example, training=False))


@every_case
def test_a_checkpoint_of_the_original_loads(case: str) -> None:
    model, rewritten, example = prepared(case)
    step(model, example)
    loaded = rewritten.load_state_dict(model.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all("regbn_" in key for key in loaded.missing_keys)
    with identity(rewritten):
        assert_equal(run(rewritten, example, False), run(model, example, False))


# -- giving back ------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("used", [False, True])
def test_unregbnify_gives_the_very_model_back(case: str, used: bool) -> None:
    cls, inputs, kind, way = CASES[case]
    model = build(cls)
    model.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None, with_kwargs=False)
    output = run(model, inputs(), False)
    model.train()
    before = everything(model)
    operate_by(way, model, inputs(), kind, inplace=True)
    if used:
        state = copy.deepcopy(model.state_dict())
        step(model, inputs())
        run(model, inputs(5), training=False)
        model.load_state_dict(state)
        model.train()
    assert unregbnify(model) is model
    after = everything(model)
    for _, held in (*after.values(), *before.values()):
        held.pop("last", None)  # what a forward stashes is its own
    assert after == before
    assert_equal(run(model, inputs(), False), output)
    assert_equal(operate(model.train(), inputs(), kind, inplace=True).training, True)


def test_there_is_nothing_to_undo_in_a_model_that_was_not_rewritten() -> None:
    with pytest.raises(RewriteError, match="Late carries no RegBN"):
        unregbnify(build(Late))


@every_case
@pytest.mark.parametrize("inplace", [False, True])
def test_a_second_operation_is_refused_and_changes_nothing(case: str, inplace: bool) -> None:
    _, model, example = prepared(case)
    before = everything(model)
    with pytest.raises(AlreadyRewrittenError, match=r"already contains RegBN \(.*regbn_x.*unregbnify\(model\)"):
        operate(model, example, CASES[case][2], inplace=inplace)
    assert everything(model) == before


@pytest.mark.parametrize("look", [regbn_surgery.inspect, regbn_surgery.starter_rules, regbn_surgery.plan])
def test_regbn_within_is_not_taken_for_fusion_points(look: Callable[..., Any]) -> None:
    _, model, example = prepared("source")
    more = ({"version": 1, "rules": [{"id": "r", "match": {}, "pairs": "all"}]},) if look is regbn_surgery.plan else ()
    with pytest.raises(AlreadyRewrittenError, match=r"unregbnify\(model\)"):
        look(model, *more, example)


# -- failures ---------------------------------------------------------------------------------------------------------


def explode(*args: Any, **kwargs: Any) -> Any:
    raise RewriteError("on purpose")


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


STAGES: list[tuple[Any, str]] = [
    (_host, "woven"),
    (_host, "run_by_mode"),
    (_host, "refuse_changed_functions"),
    (_host.HostSurgery, "bind"),
    (_host.HostSurgery, "run"),
    (_locate.Locator, "place"),
    (_passage.Passage, "visit"),
    (_weave, "compiled"),
    (_operations, "install"),
    (_surgery, "put_in"),
    (_surgery, "operations_for"),
    (_surgery, "check"),
    (_surgery, "observe"),
    (_trials, "observe"),
    (_operations, "positions_of"),
    (_operations, "RoleReset"),
    (_trials, "difference"),
    (RegBNSite, "__init__"),
    (RegBNSite, "forward"),
    (RegBN, "__init__"),
    (_hoist.HoistHook, "__call__"),
    (_hoist.HoistHook, "__init__"),
]


@pytest.mark.parametrize("case", ["source", "roles"])
@pytest.mark.parametrize(("owner", "name"), STAGES, ids=[f"{o.__name__.split('.')[-1]}.{n}" for o, n in STAGES])
def test_a_failure_at_any_stage_leaves_the_model_as_it_was(
    case: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, inputs, kind, _ = CASES[case]
    failure = interrupt if len(name) % 2 else explode
    model = build(cls).train()
    output = run(model, inputs(), training=False)
    model.train()
    if cls is Late:
        model.last = None
    before = everything(model)
    reached: list[bool] = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        reached.append(True)
        return failure()

    monkeypatch.setattr(owner, name, fail)
    try:
        operate(model, inputs(), kind, inplace=True)
    except (RegBNError, KeyboardInterrupt):
        pass
    else:
        assert not reached or explain(model), "a failure went unnoticed"
        if reached:  # the other tier stepped in
            unregbnify(model)
        else:
            pytest.skip("this stage is not on the way of this case")
    assert everything(model) == before
    monkeypatch.undo()
    assert nn.Module.__call__.__module__.startswith("torch")
    assert_equal(run(model, inputs(), training=False), output)


def test_a_forward_that_fails_in_one_mode_is_told_with_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Late):
        def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
            if not self.training:
                raise ValueError("on purpose")
            return super().forward(a, b)

    model = Fails().eval()
    before = everything(model)
    with pytest.raises(RegBNError, match=r"Fails could not be run in evaluation mode.*ValueError: on purpose"):
        operate(model, vectors(), inplace=True)
    assert everything(model) == before


def test_a_model_that_cannot_be_copied_can_be_changed_in_place() -> None:
    class Uncopyable(Late):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a socket")

    with pytest.raises(RewriteError, match=r"cannot be copied \(TypeError: holds a socket\).*inplace=True"):
        operate(Uncopyable(), vectors())
    assert site_of(operate(Uncopyable(), vectors(), inplace=True))


def test_a_name_that_is_taken_is_not_overwritten() -> None:
    model = build(Late)
    model.regbn_x = "mine"
    before = everything(model)
    with pytest.raises(RewriteError, match="already has an attribute 'regbn_x'"):
        operate(model, vectors(), inplace=True)
    assert everything(model) == before


def test_parameters_on_the_meta_device_are_refused_with_the_parameter() -> None:
    with torch.device("meta"):
        model = Late()
    with pytest.raises(RegBNError, match="meta"):
        operate(model, vectors())


# -- the user's own hooks ---------------------------------------------------------------------------------------------


@every_case
def test_hooks_of_the_user_go_on_firing(case: str) -> None:
    cls, inputs, kind, _ = CASES[case]
    model = build(cls)
    calls: list[str] = []
    owner = {Nested: "fusion", Cross: "attention", Swapped: "cross"}.get(cls, "")
    for name in ("", owner, "enc_a"):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(f"pre {name}"))
        module.register_forward_hook(lambda *_, name=name: calls.append(f"post {name}"))
        module.register_full_backward_hook(lambda *_, name=name: calls.append(f"back {name}"))
    run(model, {k: x.requires_grad_() for k, x in inputs().items()}, True)
    expected, calls[:] = list(calls), []
    rewritten = operate_by(CASES[case][3], model, inputs(), kind)
    calls.clear()
    outputs = run(rewritten, {k: x.requires_grad_() for k, x in inputs().items()}, True)
    assert calls == expected
    calls.clear()
    sum(out.sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert {f"back {name}" for name in ("", owner, "enc_a")} <= set(calls)


def test_a_hook_that_changes_a_childs_output_is_seen_by_regbn() -> None:
    model = build(Late)
    model.enc_a.register_forward_hook(lambda module, args, output: F.relu(output) + 1)
    rewritten = operate(model, vectors())
    site = site_of(rewritten)
    seen: list[Tensor] = []
    site.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(rewritten, vectors(), False)
    assert seen[0].min() >= 1


def test_a_rewritten_model_shows_its_sites_and_code() -> None:
    _, model, _ = prepared("source")
    (report,) = explain(model)
    assert (report.host, report.host_class, report.tier, report.way) == ("", "Late", 2, "source")
    assert "_regbn.call(0, torch.cat, [_regbn" in report.after
    assert "_regbn" not in report.before
    assert "joint = torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1)" in report.before
    ((file, before, after, first),) = report.files
    assert (before, after) == (report.before, report.after)
    assert Path(file).read_text(encoding="utf-8").splitlines()[first - 1] == before.splitlines()[0]
    assert "regbn_x" in repr(model)


def test_why_a_host_is_not_hooked_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RewriteError("this hook will not do")

    with monkeypatch.context() as patch:
        patch.setattr(_hoist.HoistHook, "__call__", fail)
        (report,) = explain(operate(build(Nested), vectors()))
    assert (report.way, report.unhooked) == ("source", "this hook will not do")
    (report,) = explain(operate(build(Nested), vectors()))
    assert (report.way, report.unhooked) == ("hook", "")
    (report,) = explain(operate(build(Late), vectors()))
    assert (report.way, report.unhooked) == ("source", "")


def test_why_a_host_runs_under_a_mode_is_in_the_report() -> None:
    _, model, _ = prepared("mode")
    (report,) = explain(model)
    assert (report.tier, report.way, report.reason, report.before) == (3, "mode", "for the test", "")


class Listened(nn.Module):
    """Gives something else while somebody records its calls, as code does that looks for modes."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        joint = torch.cat([self.enc_a(a), self.enc_b(b)], dim=1)
        return joint * (2 if torch.overrides._get_current_function_mode_stack() else 1)  # type: ignore[no-untyped-call]


def test_a_model_that_differs_while_it_is_recorded_is_held_to_a_plain_run() -> None:
    model = build(Listened).eval()
    rewritten = operate(model, vectors()).eval()
    with identity(rewritten):
        torch.testing.assert_close(rewritten(**vectors()), model(**vectors()))
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert list(calls.values()) == [1]


FUSIONS = {"by": [lambda f, g: torch.cat([f, g], dim=1)]}


class ListenedByMode(Listened):
    """The same where no way but the mode serves, which is there in all its calls."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        joint = FUSIONS["by"][0](self.enc_a(a), self.enc_b(b))
        return joint * (2 if torch.overrides._get_current_function_mode_stack() else 1)  # type: ignore[no-untyped-call]


def test_one_that_a_mode_changes_is_refused_where_only_a_mode_would_serve() -> None:
    model = build(ListenedByMode).eval()
    before = everything(model)
    with pytest.raises(RewriteError, match="self-check failed in evaluation mode"):
        operate(model, vectors(), inplace=True)
    assert everything(model) == before


@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_fault_at_the_other_batch_size_alone_is_seen(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger batch is looked at in the run that follows the streams."""
    visit, sizes = _passage.Passage.visit, set()

    def wrong_at_three(self: Any, path: Any, func: Any, layer: Any, operands: Any, kwargs: Any) -> Any:
        output = visit(self, path, func, layer, operands, kwargs)
        sizes.add(len(output))
        return 2 * output if len(output) > 2 else output

    monkeypatch.setattr(_passage.Passage, "visit", wrong_at_three)
    with pytest.raises(RewriteError, match="self-check failed"), forced(way):
        operate(build(Late), vectors())
    assert min(sizes) == 2
    assert max(sizes) > 2
