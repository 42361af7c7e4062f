"""Joint graphs for the tests of the planner: small steps, differentiated and cleaned up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import backpass as bp


def joint(step, *args):
    """The graph of `step` that the planner gets."""
    return bp.compile(step).lower(*args).graph


def parameters(layers, width, seed=0):
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(width, width)) / width**0.5).astype(np.float32) for _ in range(layers)
    ]


def rows(count, width, seed=1):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def mlp(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return (x**2).mean()


def skips(params, x):
    """A narrow middle, and values that jump over it."""
    kept = []
    for w in params[: len(params) // 2]:
        x = jax.nn.gelu(x @ w)
        kept.append(x)
    for w in params[len(params) // 2 :]:
        x = jax.nn.relu(x @ w) + kept.pop()
    return (x**2).mean()


def dropout(params, x, key=None):
    """A mask that both passes read."""
    key = jax.random.key(3) if key is None else key
    for w in params:
        key, mine = jax.random.split(key)
        x = jnp.where(jax.random.bernoulli(mine, 0.5, x.shape), jnp.tanh(x @ w), 0.0)
    return (x**2).sum()


def scanned(params, x):
    def layer(x, w):
        y = jnp.tanh(x @ w)
        return x + jax.nn.gelu(y), y.sum()

    x, sums = lax.scan(layer, x, jnp.stack(params))
    return (x**2).mean() + sums.sum()


def backwards(params, x):
    """A scan from the end, with a constant in its body and a carry of two."""
    w = params[0]

    def cell(state, x):
        h, c = state
        c = jnp.tanh(h @ w) * c + x
        return (jnp.sin(c), c), h

    _, hs = lax.scan(cell, (x, jnp.ones_like(x)), jnp.stack([x] * 6), reverse=True)
    return (hs**2).mean()


def sgd(loss, value_and_grad=bp.value_and_grad):
    """One step of gradient descent on `loss(params, x)`."""

    def step(params, x):
        value, grads = value_and_grad(loss)(params, x)
        return value, [p - 0.1 * g for p, g in zip(params, grads)]

    return step


LOSSES = {f.__name__: f for f in (mlp, skips, dropout, scanned, backwards)}
