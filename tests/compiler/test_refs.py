"""Mutable arrays, `jax.Ref`: those that a function makes itself are values; others are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from models.comparison import assert_close

X = np.array([1.5, -2.0, 0.5], np.float32)


def written(x):
    ref = jax.new_ref(jnp.zeros(3))
    ref[...] = x * 2
    ref[0] = ref[1] + 1
    return (ref[...] ** 2).sum()


def added(x):
    ref = jax.new_ref(jnp.zeros(3))
    jax.ref.addupdate(ref, slice(0, 2), x[:2])
    return (ref[...] * x).sum()


def frozen(x):
    ref = jax.new_ref(x)
    ref[1] = x[0] * 3
    return (jax.freeze(ref) ** 2).sum()


def around_a_scan(x):
    total = jax.new_ref(jnp.zeros(()))

    def body(carry, each):
        total[...] += each * carry
        return carry * each, total[...]

    carry, sums = lax.scan(body, 1.0, x)
    return total[...] ** 2 + sums.sum() + carry


def in_a_scan(x):
    def body(carry, each):
        ref = jax.new_ref(carry)
        ref[...] = jnp.sin(ref[...]) * each
        return ref[...], ()

    return lax.scan(body, 1.0, x)[0]


def in_a_branch(x):
    return lax.cond(x[0] > 0, frozen, lambda x: x.sum(), x)


def in_a_call(x):
    return jax.jit(frozen)(x) * jax.jit(written)(x)


LOSSES = (written, added, frozen, around_a_scan, in_a_scan, in_a_branch, in_a_call)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_written_has_a_gradient(loss):
    value, grads = jax.jit(jax.value_and_grad(loss))(X)
    step = bp.compile(bp.value_and_grad(loss))
    assert_close(step(X), (value, grads))
    assert not any(node.op.foreign for node in step.lower(X).graph.walk())


def test_without_a_gradient():
    assert_close(bp.compile(written)(X), written(X))
    assert_close(bp.grad(added)(X), jax.grad(added)(X))


def test_in_a_transpose_of_ones_own():
    def squares(x):
        ref = jax.new_ref(x)
        ref[...] = ref[...] ** 2
        return jax.freeze(ref)

    def loss(x):
        def times(held, y):
            return y * squares(held)

        return jax.custom_derivatives.linear_call(times, times, X, x).sum()

    assert_close(bp.compile(bp.grad(loss))(X), X**2)


def test_those_of_others_are_refused():
    ref = jax.new_ref(jnp.zeros(3))

    def loss(x):
        ref[...] = x * 2
        return (ref[...] ** 2).sum()

    for fun in (loss, bp.grad(loss)):
        with pytest.raises(bp.TraceError, match="made outside.*\n.*jax.new_ref"):
            bp.compile(fun)(X)
    np.testing.assert_array_equal(ref[...], np.zeros(3))


def test_as_an_argument():
    def store(ref, x):
        ref[...] = x * 2

    with pytest.raises(bp.ArgumentError, match=r"got a mutable one, .* at args\[0\]\n.*its value"):
        bp.compile(store)(jax.new_ref(jnp.zeros(3)), X)


def test_tokens_are_refused():
    def fun(x):
        lax.create_token(x)
        return x

    with pytest.raises(bp.TraceError, match="wants arrays, found .*Token"):
        bp.compile(fun)(X)
