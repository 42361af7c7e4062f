"""Attention under a known mask, in blocks of queries: every spelling, no look-alike."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.passes import DEFAULT, Fuse, planned
from passes.attentions import MATCH, MISS

B, T, H, D = 2, 24, 2, 4
PASSES = tuple(Fuse(block=6, scores=1) if each.name == "fuse" else each for each in DEFAULT)
LEAN = tuple(
    replace(each, block=4, scores=1) if each.name == "fuse" else each for each in planned("cpu")[0]
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def arguments():
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (B, T, H, D), jnp.float64) for key in keys]


def step(attention, grad):
    def loss(q, k, v):
        out = attention(q, k, v)
        return (out * jnp.sin(jnp.arange(out.size).reshape(out.shape))).sum()

    return lambda *args: grad(loss, argnums=(0, 1, 2))(*args)


def tolerance(name):
    """Some spellings compute in float32."""
    single = ("float32", "dot_product", "grouped_queries", "local_window")
    return 1e-5 if name.startswith(single) else 1e-9


def compare(attention, args, tolerance=1e-9, passes=PASSES):
    ours = bp.compile(step(attention, bp.value_and_grad), passes=passes, debug=True)
    got, want = ours(*args), step(attention, jax.value_and_grad)(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    return ours.lower(*args)


@pytest.mark.parametrize("name", MATCH)
def test_spelling_is_computed_in_blocks(name):
    low = compare(MATCH[name], arguments(), tolerance(name))
    assert any(each.matched for each in low.fusions), list(map(str, low.fusions))
    largest = max(n.outputs[0].type.size for n in low.graph.walk() if n.op.name == "dot_general")
    assert largest < B * H * T * T


@pytest.mark.parametrize("name", MISS)
def test_look_alike_is_left_alone(name):
    low = compare(MISS[name], arguments())
    assert not any(each.matched for each in low.fusions)


def unmasked(q, k, v):
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), v)


def padded(q, k, v):
    """The mask is known when it runs; one row sees nothing."""
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    seen = (q[:, :, 0, 0] < q[:, :, 0, 0].max()) & (k[:, :, 0, 0] > 0)
    p = jax.nn.softmax(jnp.where(seen[:, None, :, None], s, -1e9))
    return jnp.einsum("bhqk,bkhd->bqhd", p, v)


@pytest.mark.parametrize("attention", [unmasked, padded, MISS["every_other_key"]])
def test_where_memory_is_short_blocks_need_no_mask(attention):
    low = compare(attention, arguments(), passes=LEAN)
    assert any(each.matched for each in low.fusions), list(map(str, low.fusions))
    largest = max(n.outputs[0].type.size for n in low.graph.walk() if n.op.name == "dot_general")
    assert largest == B * H * T * 6
    assert not any(each.matched for each in compare(attention, arguments()).fusions)


@pytest.mark.parametrize("name", [*MATCH, *MISS])
def test_where_memory_is_short_values_are_the_same(name):
    compare({**MATCH, **MISS}[name], arguments(), tolerance(name), LEAN)


def test_near_misses_tell_why():
    reasons = {
        "causal_then_unknown": "a mask that is known only when it runs may hide all of a row",
        "strictly_causal": "its mask hides all of a row",
        "every_other_key": "no mask that is known leaves out any",
        "cumulative": "cumsum at tests/passes/attentions.py",
        "weights_returned": "as a whole is read by",
    }
    for name, reason in reasons.items():
        low = bp.compile(step(MISS[name], bp.grad), passes=PASSES).lower(*arguments())
        assert any(reason in each.reason for each in low.fusions), (name, low.fusions)
        assert all("attentions.py" in each.source for each in low.fusions)


def test_other_numbers_of_queries_and_keys():
    q, k, v = arguments()

    def attend(q, k, v):
        """The last queries of a sequence whose keys are all there."""
        i, j = jnp.arange(q.shape[1])[:, None] + 2, jnp.arange(k.shape[1])[None]
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(i >= j, s, -1e9)), v)

    low = compare(attend, (q[:, :22], k, v))
    assert any(each.matched for each in low.fusions)


def test_second_derivative_goes_through_the_blocks():
    q, k, v = arguments()

    def along(grad):
        first = grad(lambda q: (MATCH["naive"](q, k, v) ** 2).sum())
        return lambda q: (first(q) * jnp.cos(q)).sum()

    ours = bp.compile(bp.grad(along(bp.grad)), passes=PASSES, debug=True)
    assert any(each.matched for each in ours.lower(q).fusions)
    np.testing.assert_allclose(ours(q), jax.grad(along(jax.grad))(q), rtol=1e-9, atol=1e-9)


def test_a_layer_of_a_scan():
    q, k, v = arguments()

    def loss(w):
        def layer(x, w):
            return x + MATCH["naive"](x * w, x, x), None

        return jnp.square(jax.lax.scan(layer, q, w)[0]).sum()

    w = jnp.stack([k[0, 0], v[0, 0]])
    ours = bp.compile(lambda w: bp.value_and_grad(loss)(w), passes=PASSES, debug=True)
    assert any(each.matched for each in ours.lower(w).fusions)
    for a, b in zip(ours(w), jax.value_and_grad(loss)(w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_rows_of_several_dimensions():
    """A memory that tokens look up, a part of which is hidden: rows are batch and time together."""
    x, w, _ = arguments()
    x, w = jnp.tile(x.reshape(B, T, -1), (1, 2, 1)), jnp.tile(w.reshape(B * T, -1).T, (1, 2))

    def loss(x, w):
        s = jnp.where(jnp.arange(w.shape[1]) < 40, x @ w, -1e9)
        return jnp.square(jax.nn.softmax(s) @ w.T).sum()

    ours = bp.compile(lambda x, w: bp.grad(loss)(x, w), passes=PASSES, debug=True)
    np.testing.assert_allclose(ours(x, w), jax.grad(loss)(x, w), rtol=1e-9, atol=1e-9)
    assert any(each.matched for each in ours.lower(x, w).fusions)


def test_masks_that_are_closed_over_or_traced():
    q, k, v = arguments()
    mask = np.tril(np.ones((T, T), bool))

    def attend(q, k, v, mask=mask):
        s = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k), -1e9)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s), v)

    assert any(each.matched for each in compare(attend, (q, k, v)).fusions)
    whole = jax.jit(lambda m: bp.compile(bp.grad(lambda q: attend(q, k, v, m).sum()))(q))(mask)
    np.testing.assert_allclose(whole, jax.grad(lambda q: attend(q, k, v).sum())(q), atol=1e-9)
