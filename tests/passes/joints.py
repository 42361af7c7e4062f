"""Joint graphs for the tests of the planner: small steps, differentiated and cleaned up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import backpass as bp
from backpass.passes import PLANNED


def joint(step, *args):
    """The graph of `step` that the planner gets."""
    return bp.compile(step, passes=PLANNED).lower(*args).graph


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


def residual(params, x):
    """Blocks that add to what they read, of different functions."""
    for i, w in enumerate(params):
        x = x + (jnp.sin if i % 2 else jax.nn.gelu)(x @ w)
    return (x**2).mean()


def attention(params, x):
    """One head over the rows, and a layer for each pair of parameters left."""
    q, k, v, *layers = params
    scores = jax.nn.softmax((x @ q) @ (x @ k).T / 4)
    x = x + scores @ (x @ v)
    for w in layers:
        x = x + jnp.tanh(x @ w)
    return (x**2).mean()


def coupled(params, x):
    """One half scaled and moved by what the other makes, with results of one node in many loops."""
    total = 0.0
    for w in params:
        x = x @ w
        left, right = jnp.split(x, 2, -1)
        h = jnp.tanh(left @ w[: left.shape[1]])
        scale, move = jnp.split(h, 2, -1)
        scale = 2 * jnp.tanh(scale / 2)
        x = jnp.concatenate([left, right * jnp.exp(scale) + move], -1)
        total += scale.sum()
    return (x**2).mean() - total


def drawn(seed):
    """A loss of 12 random steps, each of which reads one or two of the last four values."""
    draw = np.random.default_rng(seed)
    steps = [(int(draw.integers(6)), *map(int, draw.integers(1, 5, 2))) for _ in range(12)]

    def loss(params, x):
        made = [x]
        for i, (kind, a, b) in enumerate(steps):
            x, y = made[-min(a, len(made))], made[-min(b, len(made))]
            if kind < 3:
                x = x @ params[i % len(params)]
            x = [jnp.tanh(x), x, jnp.sin(x), x + y, x * y, jnp.exp(-x * x)][kind]
            made.append(x)
        return sum((x**2).mean() for x in made[-3:])

    return loss


def sgd(loss, value_and_grad=bp.value_and_grad):
    """One step of gradient descent on `loss(params, x)`."""

    def step(params, x):
        value, grads = value_and_grad(loss)(params, x)
        return value, [p - 0.1 * g for p, g in zip(params, grads)]

    return step


LOSSES = {f.__name__: f for f in (mlp, skips, dropout, scanned, backwards)}


def _less(params, grads):
    return [p - 0.1 * g for p, g in zip(params, grads)]


def _summed(many, grads):
    return [a + g for a, g in zip(many, grads)]


def accumulated(value_and_grad=bp.value_and_grad):
    """Gradients of parts of the batch, summed in a scan."""

    def step(params, x):
        def part(total, rows):
            value, grads = value_and_grad(mlp)(params, rows)
            return _summed(total, grads), value

        zeros = [jnp.zeros_like(p) for p in params]
        total, values = lax.scan(part, zeros, x.reshape(4, -1, x.shape[1]))
        return values.mean(), _less(params, total)

    return step


def unrolled(value_and_grad=bp.value_and_grad):
    """The same written out."""

    def step(params, x):
        total, sums = 0.0, [jnp.zeros_like(p) for p in params]
        for rows in x.reshape(4, -1, x.shape[1]):
            value, grads = value_and_grad(mlp)(params, rows)
            total, sums = total + value, _summed(sums, grads)
        return total, _less(params, sums)

    return step


def several(value_and_grad=bp.value_and_grad):
    """Steps one after the other in a loop whose length is not known."""

    def step(params, x):
        def one(state):
            at, _, params = state
            value, grads = value_and_grad(skips)(params, x)
            return at + 1, value, _less(params, grads)

        start = (0, jnp.float32(1), params)
        _, value, params = lax.while_loop(lambda s: (s[0] < 3) & (s[1] > 0), one, start)
        return value, params

    return step


def adversaries(value_and_grad=bp.value_and_grad):
    """Two gradients, the second at what the first has updated."""

    def step(params, x):
        half = len(params) // 2
        mine, yours = params[:half], params[half:]
        first, grads = value_and_grad(lambda p: mlp(p + yours, x))(mine)
        mine = _less(mine, grads)
        second, grads = value_and_grad(lambda p: skips(p + mine, x))(yours)
        return first + second, mine + _less(yours, grads)

    return step


def slope(value_and_grad):
    """A loss that is made of gradients by the data."""

    def loss(params, x):
        _, slopes = jax.vmap(value_and_grad(lambda row: mlp(params, row)))(x)
        return (slopes**2).mean()

    return loss


def penalised(value_and_grad=bp.value_and_grad):
    """The gradient of what holds a gradient, which is forward for the outer one."""
    penalty = slope(value_and_grad)
    return sgd(lambda params, x: mlp(params, x) + penalty(params, x), value_and_grad)


STEPS = {f.__name__: f for f in (accumulated, unrolled, several, adversaries, penalised)}
