"""Solvers, inference, meta-learning: each compiled, and by `bp.grad` as it is called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backpass as bp
from models.comparison import assert_close, draw
from models.methods import TABLE
from models.networks import Init, labels, mlp, mlp_params


@pytest.mark.parametrize("name", TABLE)
def test_gradient_is_that_of_jax(name):
    build, args = TABLE[name]
    theirs = jax.jit(jax.value_and_grad(build(jax.grad)))
    expected = theirs(*args)
    ours = bp.value_and_grad(build(bp.grad))
    assert_close(bp.compile(ours, debug=True)(*args), expected)
    assert_close(ours(*args), expected)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(expected[1]))


def test_per_example_gradients():
    params, x, y = mlp_params(Init(0), 3, 4, 2), draw(1, 5, 3), labels(2, 2, 5)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(mlp(params, x), y)

    expected = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
    each = jax.vmap(bp.grad(loss), in_axes=(None, 0, 0))
    assert_close(each(params, x, y), expected)
    assert_close(bp.compile(each)(params, x, y), expected)


def test_second_order_step():
    """Sophia's form: a Hessian-vector product in the step estimates the curvature to divide by."""

    def step(grad):
        def run(params, m, h, key, x, y):
            def loss(params):
                out = mlp(params, x)
                return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

            def along(params):
                slopes = jax.tree.leaves(grad(loss)(params))
                return sum(jnp.vdot(g, u) for g, u in zip(slopes, signs, strict=True))

            leaves = jax.tree.leaves(params)
            keys = jax.random.split(key, len(leaves))
            signs = [
                jax.random.rademacher(k, leaf.shape, leaf.dtype)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
            product = grad(along)(params)
            signs = jax.tree.unflatten(jax.tree.structure(params), signs)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grad(loss)(params))
            h = jax.tree.map(lambda h, u, hu: 0.9 * h + 0.1 * u * hu, h, signs, product)
            moves = jax.tree.map(lambda m, h: jnp.clip(m / jnp.maximum(h, 1e-3), -1, 1), m, h)
            return jax.tree.map(lambda p, u: p - 0.05 * u, params, moves), m, h

        return run

    params, x, y = mlp_params(Init(0), 3, 4, 2), draw(1, 5, 3), labels(2, 2, 5)
    ours = bp.compile(step(bp.grad), debug=True)
    theirs = jax.jit(step(jax.grad))
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = expected = (params, zeros, zeros)
    for i in range(3):
        found = ours(*found, jax.random.key(i), x, y)
        expected = theirs(*expected, jax.random.key(i), x, y)
    assert_close(found, expected)
    assert len(ours.explain().traces) == theirs._cache_size() == 1
