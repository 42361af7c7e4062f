"""A plan starts from the program as it is without one, or from others that need less."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass.compiler.budget import peak_bytes
from backpass.ir import evaluate, verify
from backpass.ir.device import DEVICES
from backpass.ir.fingerprint import fingerprint
from backpass.passes.rematerialise import Forms
from passes.joints import sgd

STEPS, BATCH, WIDTH = 61, 64, 32


def recurrent(params, xs):
    """Its weights' gradients are sums over all steps: as one product, or step by step."""

    def cell(h, x):
        h = jnp.tanh(x @ params[0] + h @ params[1])
        return h, h

    _, hs = lax.scan(cell, xs[0], xs)
    return jnp.mean(hs**2)


def arguments():
    random = np.random.default_rng(0)
    params = [random.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 9 for _ in range(2)]
    return params, random.normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32)


def peak(compiled):
    return peak_bytes(compiled.memory_analysis())


def planned(budget, **options):
    step = bp.compile(sgd(recurrent), memory_budget=budget, **options)
    return step.lower(*arguments()).compile()


@pytest.fixture(scope="module")
def usual():
    return bp.compile(sgd(recurrent)).lower(*arguments()).compile()


@pytest.fixture(scope="module")
def least():
    with pytest.raises(bp.BudgetError) as caught:
        planned(1)
    return caught.value.minimum_bytes


def test_where_the_usual_program_fits_it_is_the_plan(usual):
    found = planned(peak(usual) + 1000)
    assert found.plan.choice["form"] == 0
    assert found.plan.rounds == 1
    assert peak(found) == peak(usual)
    assert fingerprint(found.stages[-1].graph) == fingerprint(usual.stages[-1].graph)
    assert [s.name for s in found.stages] == [*(s.name for s in usual.stages), "rematerialise"]


def test_where_it_does_not_loops_are_left_as_they_are(usual, least):
    found = planned(least)
    assert peak(found) <= least < 0.8 * peak(usual)
    assert found.plan.choice["form"] == 1
    names = [stage.name for stage in found.stages]
    assert "hoist" not in names and "defer" not in names
    want = jax.jit(sgd(recurrent, jax.value_and_grad))(*arguments())
    got = bp.compile(sgd(recurrent), memory_budget=least)(*arguments())
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_lower_budget_has_no_higher_peak_across_forms(usual, least):
    peaks = [peak(planned(int(b))) for b in np.linspace(peak(usual), least, 6)]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_a_plan_of_either_form_is_saved_and_pinned(part, usual, least, tmp_path):
    budget = int(least + part * (peak(usual) + 1000 - least))
    found = planned(budget)
    found.plan.save(tmp_path / "plan.json")
    again = bp.MemoryPlan.load(tmp_path / "plan.json")
    pinned = bp.compile(sgd(recurrent), plan=again).lower(*arguments()).compile()
    assert pinned.plan.choice == found.plan.choice
    assert peak(pinned) == peak(found)
    wrong = replace(again, choice={**again.choice, "form": 7})
    with pytest.raises(bp.ArgumentError, match="the plan is none of"):
        bp.compile(sgd(recurrent), plan=wrong).lower(*arguments())


def test_what_measurements_chose_is_not_overruled_by_predictions(monkeypatch):
    """Where products take long, loops that stack less are predicted to; so are others that fit."""
    slow = replace(DEVICES["cpu"], flops=2e10)
    monkeypatch.setattr("backpass.compiler.budget.live_spec", lambda: slow)
    given = arguments()
    step = bp.compile(sgd(stack), memory_budget="1GiB").lower(*given)
    found = step.compile()
    graphs, donated = bp.compile(sgd(stack)).forms(given, {})
    first, other = Forms.of_graphs(graphs, slow, donated).planners
    assert other.plain.seconds < first.plain.seconds
    assert found.plan.choice["form"] == 0 and found.plan.rounds == 1
    usual = bp.compile(sgd(stack)).lower(*given).graph
    assert fingerprint(found.stages[-1].graph) == fingerprint(usual)


def test_a_program_that_passes_leave_alone_has_one_form():
    def loss(params, xs):
        return jnp.mean(jnp.tanh(xs[0] @ params[0]) @ params[1])

    graphs, _ = bp.compile(sgd(loss)).forms(arguments(), {})
    assert len(graphs) == 1
    assert len(bp.compile(sgd(recurrent)).forms(arguments(), {})[0]) == 2
    assert len(bp.compile(sgd(recurrent), passes="autodiff,dce").forms(arguments(), {})[0]) == 1


def test_what_is_planned_is_the_usual_program_where_it_fits(usual):
    plans = bp.plan(sgd(recurrent), *arguments(), budgets=["1GiB"])
    assert plans[0].predicted_bytes == plans.plain_bytes
    assert plans.plain_bytes == pytest.approx(peak(usual), rel=0.1)


def test_between_the_two_are_loops_in_strips(monkeypatch):
    """Where a step's products are small: less memory than the usual program, quicker than by steps."""
    monkeypatch.setenv("BACKPASS_DEVICE", "cpu")
    params, _ = arguments()
    xs = np.random.default_rng(1).normal(size=(128, 16, WIDTH)).astype(np.float32)
    usual = bp.compile(sgd(recurrent)).lower(params, xs).compile()
    step = bp.compile(sgd(recurrent), memory_budget=peak(usual) * 2 // 3)
    found = step.lower(params, xs).compile()
    assert found.plan.choice["form"] == 2
    assert "strip" in [stage.name for stage in found.stages]
    lengths = {n.attrs["length"] for n in found.stages[-1].graph.walk() if n.op.name == "scan"}
    assert lengths == {8, 16}
    want = jax.jit(sgd(recurrent, jax.value_and_grad))(params, xs)
    for ours, theirs in zip(jax.tree.leaves(found(params, xs)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def attend(qkv, weights):
    """Each query sees each key, or those that a mask tells when the step runs."""
    q, k, v = qkv
    mask = weights[:, :1] < weights[:, :1].max()
    p = jax.nn.softmax(jnp.where(mask.T, q @ k.T, -1e9))
    return jnp.mean((p @ v) * weights)


def test_attention_takes_a_block_of_its_scores_where_memory_is_short():
    random = np.random.default_rng(0)
    *qkv, weights = random.normal(size=(4, 1024, WIDTH)).astype(np.float32)
    usual = bp.compile(sgd(attend)).lower(qkv, weights).compile()
    scores = 4 * 1024 * 1024
    assert peak(usual) > 2 * scores
    step = bp.compile(sgd(attend), memory_budget=int(1.1 * scores))
    found = step.lower(qkv, weights).compile()
    assert found.plan.choice["form"] == 1 and peak(found) <= 1.1 * scores
    want = jax.jit(sgd(attend, jax.value_and_grad))(qkv, weights)
    for ours, theirs in zip(jax.tree.leaves(found(qkv, weights)), jax.tree.leaves(want)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_form_is_one_that_comes_to_something_else():
    """More blocks of few queries are the blocks that there are."""
    random = np.random.default_rng(0)
    few, many = (list(random.normal(size=(4, n, WIDTH)).astype(np.float32)) for n in (100, 1024))
    assert len(bp.compile(sgd(attend)).forms((few[:3], few[3]), {})[0]) == 1
    assert len(bp.compile(sgd(attend)).forms((many[:3], many[3]), {})[0]) == 2
    plain = bp.compile(sgd(attend), passes="-fuse")
    assert len(plain.forms((many[:3], many[3]), {})[0]) == 1


def stack(params, x):
    """Layers under a scan, whose stacks the usual passes choose before a planner does."""
    layers = [jnp.stack([p] * 6) for p in params]

    def layer(x, p):
        y = jnp.sin(x @ p[0])
        return x + jnp.tanh(y) @ p[1], None

    return jnp.mean(lax.scan(layer, x.reshape(-1, WIDTH), layers)[0] ** 2)


@pytest.mark.parametrize("loss", [recurrent, stack])
def test_plans_of_each_form_are_sound(loss):
    """Also where a scan that stacks less already is to stack less still."""
    params, xs = arguments()
    args = params, np.concatenate([xs, xs, xs])
    graphs, donated = bp.compile(sgd(loss)).forms(args, {})
    want = jax.tree.leaves(jax.jit(sgd(loss, jax.value_and_grad))(*args))
    assert len(graphs) > 1
    for planner in Forms.of_graphs(graphs, DEVICES["cpu"], donated).planners:
        found = {planner.leanest: 0}
        for part in (0.1, 0.4, 0.7, 1.0):
            room = planner.leanest.bytes + part * (planner.plain.bytes - planner.leanest.bytes)
            found[planner.fastest(room)] = 0
        for plan in found:
            verify(plan.graph)
        assert len(found) > 1
        got = jax.jit(partial(evaluate, planner.leanest.graph))(*jax.tree.leaves(args))
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
