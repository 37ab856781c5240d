"""A shared owner that is called in several roles has one RegBN for each, and never mistakes one for another."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from regbn_surgery import unregbnify
from regbn_surgery._surgery import RegBNSite
from regbn_surgery._surgery._roles import NO_ROLE, RoleReset, Roles

from .models import Swapped, build, counting, operate, run, step, token_pairs


def test_roles_go_round_and_start_anew() -> None:
    roles = Roles((NO_ROLE, 0, 1))
    assert [roles.next() for _ in range(7)] == [-1, 0, 1, -1, 0, 1, -1]
    RoleReset(roles)(torch.nn.Identity(), ())
    assert roles.next() == NO_ROLE


def by_hand(model: Swapped, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Swapped's forward with the two RegBN modules where they belong, around the attention's own class."""
    sites = [module for module in model.cross.children() if isinstance(module, RegBNSite)]
    forth, back = sites

    def attend(hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        scores = model.cross.q(hidden) @ model.cross.k(context).transpose(-1, -2) / 8**0.5
        return hidden + scores.softmax(-1) @ model.cross.v(context)

    a, b = model.enc_a(a), model.enc_b(b)
    own = attend(a, a)
    new_a = attend(*forth(own, b))
    f, g = back(torch.tanh(own), b)
    return new_a, attend(g, f)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_each_role_has_its_own_module_and_self_attention_none(checkpointed: bool) -> None:
    model = build(Swapped, checkpointed)
    rewritten = operate(model, token_pairs(), "attention")
    sites = [name for name, module in rewritten.named_modules() if isinstance(module, RegBNSite)]
    assert sites == ["cross.regbn_x", "cross.regbn_x_1"]
    with counting(rewritten) as calls:
        run(rewritten, token_pairs(), False)
    assert calls == dict.fromkeys(sites, 1)
    step(rewritten, token_pairs())
    first, second = (module.regbn for module in rewritten.modules() if isinstance(module, RegBNSite))
    assert not torch.equal(first.W, second.W)
    rewritten.eval()
    torch.testing.assert_close(run(rewritten, token_pairs(3)), by_hand(rewritten, **token_pairs(3)))


def test_roles_are_told_apart_in_one_compiled_graph() -> None:
    rewritten = operate(build(Swapped, False), token_pairs(), "attention")
    step(rewritten, token_pairs())
    rewritten.eval()
    expected = run(rewritten, token_pairs(3))
    run(rewritten, token_pairs())
    compiled = torch.compile(rewritten, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(compiled, token_pairs(3)), expected)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(run(compiled, token_pairs(3))))
    thread.start()
    thread.join()
    torch.testing.assert_close(found, [expected])
    torch.testing.assert_close(run(rewritten, token_pairs(3)), expected)


def test_a_checkpoints_recomputation_does_not_put_the_roles_out_of_step() -> None:
    plain, checkpointed = (
        operate(build(Swapped, checkpointed), token_pairs(), "attention") for checkpointed in (False, True)
    )
    for batch in (4, 4, 5):
        with counting(checkpointed) as calls:
            step(checkpointed, token_pairs(batch))
        assert len(set(calls.values())) == 1
        step(plain, token_pairs(batch))
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(q, p, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(run(checkpointed, token_pairs(), False), run(plain, token_pairs(), False))


def test_an_exception_between_two_roles_does_not_put_them_out_of_step() -> None:
    rewritten = operate(build(Swapped), token_pairs(), "attention").eval()
    expected = run(rewritten, token_pairs())
    rewritten.fail_after_first = True
    with pytest.raises(ValueError, match="on purpose"):
        run(rewritten, token_pairs())
    rewritten.fail_after_first = False
    torch.testing.assert_close(run(rewritten, token_pairs()), expected, rtol=0, atol=0)


def test_a_copy_counts_for_itself() -> None:
    rewritten = operate(build(Swapped), token_pairs(), "attention").eval()
    expected = run(rewritten, token_pairs())
    twin = copy.deepcopy(rewritten)
    rewritten.fail_after_first = True
    with pytest.raises(ValueError, match="on purpose"):
        run(rewritten, token_pairs())
    torch.testing.assert_close(run(twin, token_pairs()), expected, rtol=0, atol=0)
    assert not any(isinstance(hook, RoleReset) for hook in unregbnify(twin)._forward_pre_hooks.values())


def test_two_threads_that_evaluate_one_model_do_not_mix_the_roles() -> None:
    rewritten = operate(build(Swapped), token_pairs(), "attention").eval()
    expected = run(rewritten, token_pairs())
    barrier = threading.Barrier(2, timeout=600)

    def meet(*_: object) -> None:
        barrier.wait()

    rewritten.cross.q.register_forward_hook(meet)  # every attention of one thread waits for the other's
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def work() -> None:
        with torch.no_grad():
            found.append(rewritten(**token_pairs()))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    for outputs in found:
        torch.testing.assert_close(outputs, expected)
