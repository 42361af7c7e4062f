"""Networks and losses of the sciences, as an outsider writes them: derivatives inside the loss too.

Sources: Rasmussen and Williams 2006 (likelihood), Raissi et al. 2019 (residuals of an equation),
Schuett et al. 2017 (forces), Chen et al. 2018 (trajectories), Bai et al. 2019 (equilibria),
Velickovic et al. 2018 (attention on graphs).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from sweep.learning import layers

from backpass.bench.models.layers import dense, linear
from backpass.bench.models.model import Batch, Model, Params


def mlp(params: Params, x: Array) -> Array:
    for p in params[:-1]:
        x = jnp.tanh(linear(p, x))
    return linear(params[-1], x)


def likelihood(points: int = 512, inside: int = 8, features: int = 64) -> Model:
    """Minus the log likelihood of a Gaussian process whose kernel is of learned features."""

    def init(key: Array) -> Params:
        return {
            "net": layers(key, inside, features, features, 16),
            "width": jnp.zeros(16),
            "noise": jnp.array(-2.0),
        }

    def loss(params: Params, data: Batch) -> Array:
        x, y = data
        z = mlp(params["net"], x) / jnp.exp(params["width"])
        far = jnp.sum((z[:, None] - z[None]) ** 2, -1)
        kernel = jnp.exp(-0.5 * far) + (jnp.exp(params["noise"]) + 1e-4) * jnp.eye(points)
        lower = jnp.linalg.cholesky(kernel)
        alpha = jax.scipy.linalg.cho_solve((lower, True), y)
        return (0.5 * y @ alpha + jnp.log(jnp.diagonal(lower)).sum()) / points

    def draw(key: Array) -> Batch:
        x = jax.random.normal(key, (points, inside))
        return x, jnp.sin(x.sum(-1))

    return Model("likelihood", init, loss, draw)


def residuals(points: int = 512, width: int = 64, depth: int = 4) -> Model:
    """u_t + u u_x = nu u_xx at points inside, by derivatives of the network's own."""

    def init(key: Array) -> Params:
        return layers(key, 2, *[width] * depth, 1)

    def loss(params: Params, x: Batch) -> Array:
        value = lambda p: mlp(params, p)[0]

        def residual(p: Array) -> Array:
            u, slope = jax.value_and_grad(value)(p)
            bend = jax.hessian(value)(p)[0, 0]
            return slope[1] + u * slope[0] - 0.01 / jnp.pi * bend

        edge = jax.vmap(value)(x.at[:, 0].set(1.0))
        return jnp.mean(jax.vmap(residual)(x) ** 2) + jnp.mean(edge**2)

    return Model(
        "residuals", init, loss, partial(jax.random.uniform, shape=(points, 2), minval=-1.0)
    )


def forces(batch: int = 16, atoms: int = 24, width: int = 64, depth: int = 3) -> Model:
    """Energies of atoms by their distances; the loss is of the energy's slope."""

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 3 * depth + 2))
        blocks = [
            {
                "filter": layers(next(keys), 16, width, width),
                "in": dense(next(keys), width, width),
                "out": layers(next(keys), width, width, width),
            }
            for _ in range(depth)
        ]
        return {
            "kinds": jax.random.normal(next(keys), (4, width)),
            "blocks": blocks,
            "last": layers(next(keys), width, 32, 1),
        }

    def energy(params: Params, places: Array, kinds: Array) -> Array:
        apart = places[:, None] - places[None]
        far = jnp.sqrt(jnp.sum(apart**2, -1) + jnp.eye(atoms))
        bumps = jnp.exp(-10 * (far[..., None] - jnp.linspace(0, 4, 16)) ** 2)
        near = jnp.where(far < 4, 0.5 * (jnp.cos(jnp.pi * far / 4) + 1), 0) * (1 - jnp.eye(atoms))
        x = params["kinds"][kinds]
        for p in params["blocks"]:
            w = mlp(p["filter"], bumps) * near[..., None]
            x = x + mlp(p["out"], jnp.sum(w * linear(p["in"], x)[None], 1))
        return jnp.sum(mlp(params["last"], x))

    def loss(params: Params, data: Batch) -> Array:
        places, kinds, energies, pulls = data
        found, slopes = jax.vmap(jax.value_and_grad(energy, 1), (None, 0, 0))(params, places, kinds)
        return jnp.mean((found - energies) ** 2) / atoms + jnp.mean((slopes + pulls) ** 2)

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 4)
        return (
            2 * jax.random.normal(keys[0], (batch, atoms, 3)),
            jax.random.randint(keys[1], (batch, atoms), 0, 4),
            jax.random.normal(keys[2], (batch,)),
            jax.random.normal(keys[3], (batch, atoms, 3)),
        )

    return Model("forces", init, loss, draw)


def trajectories(batch: int = 256, width: int = 128, steps: int = 30) -> Model:
    """A learned field followed by Runge and Kutta's method, in a fori_loop's form of scan."""

    def init(key: Array) -> Params:
        return layers(key, 4, width, width, 4)

    def loss(params: Params, data: Batch) -> Array:
        start, end = data
        field = partial(mlp, params)
        h = 1 / steps

        def step(_: int, x: Array) -> Array:
            a = field(x)
            b = field(x + h / 2 * a)
            c = field(x + h / 2 * b)
            d = field(x + h * c)
            return x + h / 6 * (a + 2 * b + 2 * c + d)

        return jnp.mean((lax.fori_loop(0, steps, step, start) - end) ** 2)

    def draw(key: Array) -> Batch:
        x = jax.random.normal(key, (batch, 4))
        return x, jnp.roll(x, 1, -1)

    return Model("trajectories", init, loss, draw)


def stencil(size: int = 512, steps: int = 20) -> Model:
    """Reaction and diffusion, written out step by step: what the speeds were, from the end."""

    def init(key: Array) -> Params:
        return {
            "feed": jnp.array(0.04),
            "kill": jnp.array(0.06),
            "speed": 0.2 * jnp.ones((size, size)),
        }

    def loss(params: Params, data: Batch) -> Array:
        u, v, seen = data
        around = lambda x: sum(jnp.roll(x, s, a) for s in (1, -1) for a in (0, 1)) - 4 * x
        for _ in range(steps):
            reaction = 0.1 * u * v**2
            u, v = (
                u + params["speed"] * around(u) - reaction + params["feed"] * (1 - u),
                v
                + 0.5 * params["speed"] * around(v)
                + reaction
                - (params["feed"] + params["kill"]) * v,
            )
        return jnp.mean((v - seen) ** 2)

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 3)
        return tuple(jax.random.uniform(k, (size, size)) for k in keys)

    return Model("stencil", init, loss, draw)


def equilibrium(batch: int = 64, width: int = 128, rounds: int = 20) -> Model:
    """A layer at its fixed point; its gradient is another fixed point, by a rule of its own."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 3)
        return {
            "w": 0.3 * width**-0.5 * jax.random.normal(keys[0], (width, width)),
            "u": dense(keys[1], 32, width),
            "out": dense(keys[2], width, 10),
        }

    def layer(params: Params, z: Array, x: Array) -> Array:
        return jnp.tanh(z @ params["w"] + linear(params["u"], x))

    def settle(f: partial[Array], z: Array) -> Array:
        def far(state: tuple[Array, Array, Array]) -> Array:
            before, z, i = state
            return (jnp.abs(z - before).max() > 1e-6) & (i < rounds)

        step = lambda state: (state[1], f(state[1]), state[2] + 1)
        return lax.while_loop(far, step, (z, f(z), jnp.int32(0)))[1]

    @jax.custom_vjp
    def solve(params: Params, x: Array) -> Array:
        return settle(partial(layer, params, x=x), jnp.zeros((batch, width)))

    def forward(params: Params, x: Array) -> tuple[Array, tuple[Params, Array, Array]]:
        z = solve(params, x)
        return z, (params, x, z)

    def backward(kept: tuple[Params, Array, Array], ct: Array) -> tuple[Params, Array]:
        params, x, z = kept
        _, pull = jax.vjp(layer, params, z, x)
        w = settle(partial(lambda w: ct + pull(w)[1]), ct)
        found = pull(w)
        return found[0], found[2]

    solve.defvjp(forward, backward)

    def loss(params: Params, data: Batch) -> Array:
        x, labels = data
        logits = linear(params["out"], solve(params, x))
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(batch), labels])

    def draw(key: Array) -> Batch:
        return jax.random.normal(key, (batch, 32)), jax.random.randint(key, (batch,), 0, 10)

    return Model("equilibrium", init, loss, draw)


def graph(nodes: int = 1024, edges: int = 8192, width: int = 64, depth: int = 3) -> Model:
    """Attention along the edges of a graph, by sums and maxima of segments."""
    heads = 4

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 2 * depth + 1))
        blocks = [
            {
                "w": dense(next(keys), width, width),
                "a": jax.random.normal(next(keys), (2, heads, width // heads)),
            }
            for _ in range(depth)
        ]
        return {"blocks": blocks, "out": dense(next(keys), width, 7)}

    def loss(params: Params, data: Batch) -> Array:
        x, source, target, labels, known = data
        for p in params["blocks"]:
            h = linear(p["w"], x).reshape(nodes, heads, -1)
            scores = (h * p["a"][0]).sum(-1)[source] + (h * p["a"][1]).sum(-1)[target]
            scores = jax.nn.leaky_relu(scores, 0.2)
            top = jax.ops.segment_max(scores, target, nodes)
            weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0)[target])
            total = jax.ops.segment_sum(weights, target, nodes)
            weights = weights / (total[target] + 1e-9)
            y = jax.ops.segment_sum(weights[..., None] * h[source], target, nodes)
            x = x + jax.nn.elu(y.reshape(nodes, -1))
        logp = jax.nn.log_softmax(linear(params["out"], x))
        return -jnp.sum(logp[jnp.arange(nodes), labels] * known) / known.sum()

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 5)
        ends = jax.random.randint(keys[1], (2, edges), 0, nodes)
        return (
            jax.random.normal(keys[0], (nodes, width)),
            ends[0],
            ends[1],
            jax.random.randint(keys[2], (nodes,), 0, 7),
            jax.random.bernoulli(keys[3], 0.3, (nodes,)),
        )

    return Model("graph", init, loss, draw)
