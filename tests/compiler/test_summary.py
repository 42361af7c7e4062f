"""`Lowered.summary()`: what belongs to which layer."""

import jax
import jax.numpy as jnp
import pytest

import backpass as bp

F32 = jnp.float32
WS, H, X = (jax.ShapeDtypeStruct(s, F32) for s in ((5, 16, 16), (16, 4), (8, 16)))


def loss(params, x):
    with jax.named_scope("stack"):

        def body(x, p):
            with jax.named_scope("layer"):
                return jnp.tanh(x @ p), None

        x, _ = jax.lax.scan(body, x, params["ws"])
    with jax.named_scope("head/proj"):
        return jnp.mean((x @ params["h"]) ** 2)


def update(params, x):
    value, grads = bp.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


@pytest.fixture
def lowered():
    return bp.compile(update).lower({"ws": WS, "h": H}, X)


def test_layers(lowered):
    rows = {row.name: row for row in lowered.summary(depth=1).rows}
    assert list(rows) == ["stack", "head"]
    assert rows["stack"].parameters == 5 * 16 * 16 and rows["head"].parameters == 16 * 4
    product = 2 * 8 * 16 * 16
    assert rows["stack"].forward_flops == 5 * (product + 8 * 16)
    assert rows["stack"].backward_flops == 5 * (2 * product + 3 * 8 * 16)
    assert rows["stack"].saved_bytes >= 5 * 8 * 16 * 4, "what the backward pass reads of each step"
    assert sum(row.recomputed_bytes for row in rows.values()) == 0


def test_depth_and_total(lowered):
    fine, coarse = lowered.summary(), lowered.summary(depth=1)
    assert {row.name for row in fine.rows} == {"stack", "stack/layer", "head/proj"}
    assert fine.total == coarse.total
    cost = bp.ir.cost(lowered.graph).by_phase
    assert fine.total.forward_flops == cost["forward"].flops
    assert fine.total.backward_flops == cost["backward"].flops
    lines = str(fine).splitlines()
    assert lines[0].split()[0] == "layer" and lines[-1].split()[:2] == ["total", "1,344"]


def test_without_scopes_layers_are_lines():
    def plain(w, x):
        return jnp.mean(jnp.tanh(x @ w))

    lowered = bp.compile(bp.grad(plain)).lower(H, X)
    (row,) = lowered.summary().rows
    assert row.name.startswith("tests/compiler/test_summary.py:") and row.parameters == 64


def test_what_a_plan_makes_again():
    def deep(params, x):
        for i, w in enumerate(params):
            with jax.named_scope(f"layer{i}"):
                x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def step(params, x):
        return bp.grad(deep)(params, x)

    args = [jax.ShapeDtypeStruct((32, 32), F32)] * 6, jax.ShapeDtypeStruct((512, 32), F32)
    least = bp.plan(step, *args).minimum_bytes
    plain, lean = (
        bp.compile(step, **budget).lower(*args).summary()
        for budget in ({}, {"memory_budget": least * 11 // 10})
    )
    assert plain.total.recomputed_bytes == 0 < lean.total.recomputed_bytes
    assert lean.total.saved_bytes < plain.total.saved_bytes
    assert {row.name for row in lean.rows if row.recomputed_bytes} <= {
        f"layer{i}" for i in range(6)
    }


def test_a_program_without_gradients():
    (row,) = bp.compile(lambda x: jnp.tanh(x) * 2).lower(X).summary().rows
    assert row.parameters == row.backward_flops == row.saved_bytes == 0 < row.forward_flops
