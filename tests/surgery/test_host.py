"""A rewritten host goes on being the module it was, however it is called next."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBNError, RegBNWarning, RewriteError, unregbnify
from regbn_surgery._surgery import _host, explain, identity

from .models import Late, Nested, build, counting, operate, operate_by, run, site_of, step, vectors


class Host(nn.Module):
    """Two encoders and a concatenation in the root; `middle` is what a test wants to see survive."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.head(self.join(a, b))


def assert_follows(model: nn.Module, rewritten: nn.Module, example: dict[str, Any], training: bool = False) -> None:
    """With identity in place the same outputs; live, RegBN is called and changes them."""
    example = {**example}
    expected = run(model, copy.deepcopy(example), training)
    with identity(rewritten), counting(rewritten) as calls:
        torch.testing.assert_close(run(rewritten, copy.deepcopy(example), training), expected, rtol=1e-5, atol=1e-6)
    assert calls, "RegBN was passed by"
    assert not torch.equal(run(rewritten, copy.deepcopy(example), training), expected)


# -- calls that were not seen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_an_optional_input_that_was_not_given_before(training: bool) -> None:
    model = build(Late, dropout=0.5)
    rewritten = operate(model, vectors())
    assert_follows(model, rewritten, {**vectors(), "bias": torch.ones(3)}, training)
    assert_follows(model, rewritten, vectors(), training)


@pytest.mark.parametrize("batch", [2, 5, 33])
def test_other_batch_sizes_and_branches_on_them(batch: int) -> None:
    class OnSize(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            joint = self.join(a, b)
            if len(joint) > 20:
                joint = joint * 2
            return self.head(joint) / len(joint)

    model = OnSize()
    rewritten = operate(model, vectors())
    for size in (batch, 2, 3, 4, 6, batch):
        assert_follows(model, rewritten, vectors(size))


def test_a_changed_attribute_is_noticed() -> None:
    model = build(Late)
    rewritten = operate(model, vectors())
    for temperature in (4.0, 0.5, 1.0):
        model.temperature = rewritten.temperature = temperature
        assert_follows(model, rewritten, vectors())


def test_a_changed_attribute_inside_a_list_or_on_the_class_is_noticed() -> None:
    class Listed(Host):
        power = 1

        def __init__(self) -> None:
            super().__init__()
            self.weights = [1.0, 2.0]

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.join(a, b) * self.weights[1]) ** self.power

    model = Listed()
    rewritten = operate(model, vectors())
    model.weights[1] = rewritten.weights[1] = 7.0
    assert_follows(model, rewritten, vectors())
    Listed.power = 2
    assert_follows(model, rewritten, vectors())


def test_the_mode_of_a_child_alone_is_noticed() -> None:
    class Peeks(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            joint = self.join(a, b)
            return self.head(joint) if self.head.training else self.head(joint) * 3

    model = Peeks().eval()
    rewritten = operate(model, vectors())
    for found in (model, rewritten):
        found.head.train()
    with identity(rewritten):
        torch.testing.assert_close(rewritten(**vectors()), model(**vectors()))


def test_replaced_children_and_parameters_are_used() -> None:
    model = build(Late)
    rewritten = operate(model, vectors())
    model.head = rewritten.head = nn.Linear(12, 2)
    model.enc_a.weight = rewritten.enc_a.weight = nn.Parameter(torch.randn(8, 6))
    assert_follows(model, rewritten, vectors())


def test_the_same_tensor_twice_is_another_kind_of_call() -> None:
    class Same(Host):
        def __init__(self) -> None:
            super().__init__()
            self.enc_b = nn.Linear(6, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.join(a, b)) + a.sum()

    model = Same()
    rewritten = operate(model, {"a": torch.randn(4, 6), "b": torch.randn(4, 6)})
    x = torch.randn(4, 6)
    expected = model(x, x)
    with identity(rewritten):
        torch.testing.assert_close(rewritten(x, x), expected)
        torch.testing.assert_close(rewritten(x, x + 1), model(x, x + 1))


def test_a_rank_that_does_not_fit_is_told_by_the_librarys_own_error() -> None:
    rewritten = operate(build(Late), vectors())
    with pytest.raises((RegBNError, ValueError), match=r"RegBN|dim|shape"):
        rewritten.eval()(torch.randn(2, 7, 6), torch.randn(2, 7, 5))


def test_a_new_kind_of_call_is_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    rewritten = operate(build(Late), vectors())
    step(rewritten, vectors(9))
    rewritten.eval()
    compiled = torch.compile(rewritten, backend="eager", fullgraph=True)
    for more in ({}, {"bias": torch.ones(3)}):
        found = compiled(**vectors(), **more)
        torch.testing.assert_close(found, rewritten(**vectors(), **more))
        with identity(rewritten):
            assert not torch.allclose(found, rewritten(**vectors(), **more))
    torch._dynamo.reset()


class KeepsNothing(Late):
    """Exports with torch 2.6, too, which refuses to keep a tensor as an attribute."""

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        out = self.head(torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1))
        return out if bias is None else out + bias


def test_a_new_kind_of_call_is_exported() -> None:
    rewritten = operate(build(KeepsNothing), vectors())
    step(rewritten, vectors(9))
    rewritten.eval()
    for more in ({}, {"bias": torch.ones(3)}):
        given = {**vectors(), **more}
        with torch.no_grad():
            exported = torch.export.export(rewritten, (), given, strict=False)
            found = exported.module()(**given)
        torch.testing.assert_close(found, rewritten(**given))
        with identity(rewritten):
            assert not torch.allclose(found, rewritten(**given))


@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("kind", ["argument", "attribute", "step"])
def test_a_number_that_changes_every_step_is_seen_at_every_step(kind: str, way: str) -> None:
    class Anneals(Host):
        alpha = 1.0

        def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
            return self.head(self.join(a, b) * scale * self.alpha)

    model = Anneals()
    rewritten = operate_by(way, model, vectors())
    for i in range(9):
        extra = {"argument": {"scale": 1 + i / 7}, "step": {"scale": i + 1}}.get(kind, {})
        if kind == "attribute":
            model.alpha = rewritten.alpha = 1 + i / 7
        assert_follows(model, rewritten, {**vectors(), **extra})


# -- what a forward does beside computing -----------------------------------------------------------------------------


def test_what_it_keeps_on_itself_is_kept() -> None:
    model = build(Late)
    rewritten = operate(model, vectors())
    assert rewritten.last is None
    output = run(rewritten, vectors(), False)
    torch.testing.assert_close(rewritten.last, output)


def test_a_counter_goes_on_counting() -> None:
    class Counts(Host):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            self.calls += 1
            return self.head(self.join(a, b)) * self.calls

    model = Counts()
    rewritten = operate(model, vectors())
    assert rewritten.calls == 0
    for _ in range(3):
        with identity(rewritten):
            torch.testing.assert_close(rewritten(**vectors()), model(**vectors()))
    assert rewritten.calls == model.calls == 3


@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_value_that_is_read_is_never_frozen(way: str) -> None:
    class Reads(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            joint = self.join(a, b)
            return self.head(joint / joint.detach().abs().max().item()) * (2 if joint.sum() > 0 else 3)

    model = Reads()
    rewritten = operate_by(way, model, vectors())
    for seed in (1, 2, 3, 4):
        assert_follows(model, rewritten, vectors(seed=seed))


def test_random_numbers_of_python_are_drawn_anew() -> None:
    class Draws(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.join(a, b)) * random.random()

    model = Draws()
    rewritten = operate(model, vectors())
    with identity(rewritten):
        first, second = rewritten(**vectors()), rewritten(**vectors())
    assert not torch.equal(first, second)


def test_an_input_that_is_written_to_is_written_to_once() -> None:
    class Writes(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            a += 1
            return self.head(self.join(a, b))

    model = Writes()
    rewritten = operate(model, vectors())
    for batch in (4, 9, 17):
        ours, theirs = vectors(batch), vectors(batch)
        with identity(rewritten):
            torch.testing.assert_close(rewritten(**ours), model(**theirs))
        torch.testing.assert_close(ours["a"], theirs["a"])


def test_batch_statistics_are_updated_once_per_step() -> None:
    model = build(Late)
    rewritten = operate(model, vectors())
    for batch in (4, 9, 17):
        run(model, vectors(batch), True)
        with identity(rewritten):
            run(rewritten, vectors(batch), True)
        assert rewritten.norm.num_batches_tracked == model.norm.num_batches_tracked
        torch.testing.assert_close(rewritten.norm.running_mean, model.norm.running_mean)


def test_dropout_draws_what_it_would_have_drawn() -> None:
    model = build(Late, dropout=0.5)
    rewritten = operate(model, vectors())
    for batch in (4, 9, 17, 9):
        expected = run(model, vectors(batch), True)
        with identity(rewritten):
            torch.testing.assert_close(run(rewritten, vectors(batch), True), expected)


def test_autocast_inside_stays_autocast() -> None:
    class Casts(Host):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            joint = self.join(a, b)
            with torch.autocast("cpu", enabled=False):
                scale = joint.float() @ joint.float().T
            return self.head(joint) + scale.sum()

    model = Casts()
    rewritten = operate(model, vectors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**vectors())
        with identity(rewritten):
            found = rewritten(**vectors())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def clean_modes() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    torch.autocast_decrement_nesting()


@pytest.mark.parametrize("kind", ["no_grad", "autocast"])
def test_a_child_that_fails_leaves_no_mode_behind(kind: str, clean_modes: None) -> None:
    class Careful(Host):
        fail = False

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            joint = self.join(a, b)
            with torch.no_grad() if kind == "no_grad" else torch.autocast("cpu", dtype=torch.bfloat16):
                out = self.head(joint)
            return out.float()

    rewritten = operate(Careful(), vectors())
    rewritten(**vectors())

    def fail(*args: Any) -> None:
        raise ValueError("on purpose")

    rewritten.head.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        rewritten(**vectors())
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_an_exception_in_the_middle_leaves_the_next_call_right() -> None:
    model = build(Late)
    rewritten = operate(model, vectors())
    with pytest.raises(RuntimeError):
        rewritten(torch.randn(4, 7), vectors()["b"])
    assert_follows(model, rewritten, vectors())


# -- the class --------------------------------------------------------------------------------------------------------


def test_the_signature_the_doc_and_the_methods_are_the_classs() -> None:
    import inspect

    rewritten = operate(build(Late), vectors())
    assert inspect.signature(rewritten.forward) == inspect.signature(build(Late).forward)
    assert rewritten.__doc__ == Late.__doc__
    assert type(rewritten).forward.__name__ == "forward"
    assert type(operate(build(Late), vectors())) is type(rewritten), "one class for all rewritten instances"


def test_super_and_properties_still_work() -> None:
    class Child(Host):
        @property
        def width(self) -> int:
            return self.head.out_features

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a, b) * self.width

    model = Child()
    rewritten = operate(model, vectors())
    assert rewritten.width == 3
    assert_follows(model, rewritten, vectors())


def test_an_instance_whose_forward_was_replaced_is_refused() -> None:
    model = build(Late)
    original = model.forward
    model.forward = lambda a, b: original(a, b)
    with pytest.raises(RewriteError, match="forward"):
        operate(model, vectors())
    assert "forward" in model.__dict__


def test_two_hosts_in_one_model_and_a_host_in_a_host() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = Host(), Host()
            self.mix = nn.Linear(3, 5)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            first = self.left(a, b)
            other = self.right(a, b)
            return torch.cat([self.mix(first + a.mean()), b], dim=-1) + other.sum()

    torch.manual_seed(0)
    model = Two()
    rewritten = operate(model, vectors())
    with counting(rewritten) as calls:
        assert torch.isfinite(run(rewritten, vectors(), True)).all()
    assert {name.rpartition(".")[0] for name in calls} >= {"left", "right"}
    assert set(calls.values()) == {1}
    step(rewritten, vectors())
    with identity(rewritten):
        torch.testing.assert_close(
            run(unregbnify(copy.deepcopy(rewritten)), vectors(), False), run(rewritten, vectors(), False)
        )


def test_a_call_that_does_not_come_by_any_site_runs_as_it_always_did_and_says_so_once() -> None:
    class Optional(Host):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            if b is None:
                return self.enc_a(a)
            return self.head(self.join(a, b))

    model = Optional()
    rewritten = operate(model, vectors())
    with pytest.warns(UserWarning, match=r"called \(.*\), and neither f nor g was computed: RegBN `regbn_x` did"):
        found = rewritten(vectors()["a"])
    torch.testing.assert_close(found, model(vectors()["a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(rewritten(vectors()["a"]), model(vectors()["a"]))


def test_data_parallel_training_code_sees_ordinary_parameters() -> None:
    rewritten = operate(build(Nested), vectors())
    assert all(p.is_leaf and p.requires_grad for p in rewritten.parameters())
    assert not site_of(rewritten).regbn.W.requires_grad
    assert rewritten.to(torch.float64).fusion.regbn_x.regbn.W.dtype == torch.float64


def test_code_that_fails_rewritten_gives_way_to_the_forward_itself_under_a_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _host.woven

    def failing(*args: Any) -> Any:
        def function(*_: Any, **__: Any) -> Any:
            raise KeyError("of the rewritten code alone")

        return dataclasses.replace(made(*args), forward=function)

    monkeypatch.setattr(_host, "woven", failing)
    rewritten = operate(build(Late), vectors()).eval()
    (report,) = explain(rewritten)
    assert (report.way, report.tier) == ("mode", 3)
    assert "after the rewrite it did not compute the same: 'of the rewritten code alone'" in report.reason
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert sum(calls.values()) == 1


def test_a_new_one_of_the_same_class_is_the_original_and_says_so() -> None:
    rewritten = operate(build(Host), vectors())
    fresh = type(rewritten)()
    fresh.load_state_dict({k: v for k, v in rewritten.state_dict().items() if "regbn" not in k})
    with pytest.warns(RegBNWarning, match="contains no RegBN"):
        found = fresh(**vectors())
    torch.testing.assert_close(found, unregbnify(rewritten)(**vectors()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh(**vectors())
        again = operate(fresh, vectors())
    assert site_of(again).regbn.training
    copied = pickle.loads(pickle.dumps(again))
    torch.testing.assert_close(copied.eval()(**vectors()), again.eval()(**vectors()))
    assert type(unregbnify(again)) is Host
