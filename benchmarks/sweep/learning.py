"""Ways of learning other than a label for an example, as an outsider writes them.

Sources: Schulman et al. 2017 (PPO), Fujimoto et al. 2018 (two critics), Finn et al. 2017 (MAML), Hu
et al. 2022 (adapters), Bishop 1994 (mixtures), Sabour et al. 2017 (capsules), Naumov et al. 2019
(recommendations), Gomez et al. 2017 (layers that are undone).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from backpass.bench.models.layers import dense, linear
from backpass.bench.models.model import Batch, Model, Params


def layers(key: Array, *sizes: int) -> list[Params]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [dense(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def mlp(params: Params, x: Array) -> Array:
    for p in params[:-1]:
        x = jax.nn.relu(linear(p, x))
    return linear(params[-1], x)


def policy(steps: int = 128, worlds: int = 16, width: int = 128) -> Model:
    """Advantages by a scan from the end, ratios that are clipped, and an entropy."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key)
        return {
            "actor": layers(keys[0], 24, width, width, 6),
            "critic": layers(keys[1], 24, width, width, 1),
        }

    def loss(params: Params, data: Batch) -> Array:
        seen, actions, before, rewards, ended = data
        values = mlp(params["critic"], seen)[..., 0]
        logp = jax.nn.log_softmax(mlp(params["actor"], seen))

        def back(after: Array, each: tuple[Array, ...]) -> tuple[Array, Array]:
            reward, end, value, following = each
            delta = reward + 0.99 * following * (1 - end) - value
            after = delta + 0.99 * 0.95 * (1 - end) * after
            return after, after

        fixed = lax.stop_gradient(values)
        following = jnp.concatenate([fixed[1:], jnp.zeros((1, worlds))])
        _, gains = lax.scan(
            back, jnp.zeros(worlds), (rewards, ended, fixed, following), reverse=True
        )
        normal = (gains - gains.mean()) / (gains.std() + 1e-8)
        share = jnp.exp(jnp.take_along_axis(logp, actions[..., None], -1)[..., 0] - before)
        gain = jnp.minimum(share * normal, jnp.clip(share, 0.8, 1.2) * normal).mean()
        entropy = -(jnp.exp(logp) * logp).sum(-1).mean()
        return 0.5 * jnp.mean((values - gains - fixed) ** 2) - gain - 0.01 * entropy

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 5)
        return (
            jax.random.normal(keys[0], (steps, worlds, 24)),
            jax.random.randint(keys[1], (steps, worlds), 0, 6),
            -jax.random.uniform(keys[2], (steps, worlds), minval=1.0, maxval=2.5),
            jax.random.normal(keys[3], (steps, worlds)),
            jax.random.bernoulli(keys[4], 0.02, (steps, worlds)).astype(jnp.float32),
        )

    return Model("policy", init, loss, draw)


def critics(batch: int = 256, width: int = 256) -> Model:
    """Two critics side by side by vmap, targets of copies that do not learn, a squashed actor."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 3)
        pair = jax.vmap(lambda k: layers(k, 22, width, width, 1))
        return {
            "actor": layers(keys[0], 16, width, width, 12),
            "critics": pair(jax.random.split(keys[1])),
            "targets": pair(jax.random.split(keys[1])),
            "heat": jnp.zeros(()),
        }

    def act(params: Params, seen: Array, key: Array) -> tuple[Array, Array]:
        mean, spread = jnp.split(mlp(params["actor"], seen), 2, -1)
        spread = jnp.clip(spread, -5, 2)
        noise = jax.random.normal(key, mean.shape)
        action = jnp.tanh(mean + jnp.exp(spread) * noise)
        return action, (-0.5 * noise**2 - spread - jnp.log1p(-(action**2) + 1e-6)).sum(-1)

    def judge(critics: Params, seen: Array, action: Array) -> Array:
        return jax.vmap(lambda p: mlp(p, jnp.concatenate([seen, action], -1))[:, 0])(critics)

    def loss(params: Params, data: Batch) -> Array:
        seen, action, reward, after, key = data
        one, two = jax.random.split(key)
        heat = jnp.exp(lax.stop_gradient(params["heat"]))
        then, logp = act(params, after, one)
        target = reward + 0.99 * (judge(params["targets"], after, then).min(0) - heat * logp)
        critic = jnp.mean((judge(params["critics"], seen, action) - lax.stop_gradient(target)) ** 2)
        now, logp = act(params, seen, two)
        actor = jnp.mean(
            heat * logp - judge(lax.stop_gradient(params["critics"]), seen, now).min(0)
        )
        return critic + actor - params["heat"] * lax.stop_gradient(logp - 6).mean()

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 5)
        return (
            jax.random.normal(keys[0], (batch, 16)),
            jnp.tanh(jax.random.normal(keys[1], (batch, 6))),
            jax.random.normal(keys[2], (batch,)),
            jax.random.normal(keys[3], (batch, 16)),
            keys[4],
        )

    return Model("critics", init, loss, draw)


def tasks(count: int = 16, shots: int = 32, width: int = 128, rounds: int = 3) -> Model:
    """Steps of gradient descent inside the loss, for each of many tasks."""

    def init(key: Array) -> Params:
        return {"net": layers(key, 1, width, width, 1), "rate": jnp.array(0.01)}

    def error(net: Params, x: Array, y: Array) -> Array:
        for p in net[:-1]:
            x = jnp.tanh(linear(p, x))
        return jnp.mean((linear(net[-1], x) - y) ** 2)

    def loss(params: Params, data: Batch) -> Array:
        def after(x: Array, y: Array) -> Array:
            net = params["net"]
            for _ in range(rounds):
                slopes = jax.grad(error)(net, x[:shots], y[:shots])
                net = jax.tree.map(lambda p, g: p - params["rate"] * g, net, slopes)
            return error(net, x[shots:], y[shots:])

        return jax.vmap(after)(*data).mean()

    def draw(key: Array) -> Batch:
        x = jax.random.uniform(key, (count, 2 * shots, 1), minval=-3.0, maxval=3.0)
        return x, jnp.sin(x + jnp.arange(count)[:, None, None])

    return Model("tasks", init, loss, draw)


def adapters(
    batch: int = 16, length: int = 64, width: int = 256, depth: int = 4, rank: int = 8
) -> Model:
    """Small matrices learned beside large ones that are given and stay."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, depth)
        return [
            {
                "down": width**-0.5 * jax.random.normal(k, (width, rank)),
                "up": jnp.zeros((rank, 4 * width)),
            }
            for k in keys
        ]

    def loss(params: Params, data: Batch) -> Array:
        x, given = data
        target = jnp.flip(x, -1)
        for p, g in zip(params, given, strict=True):
            h = x @ g["up"] + 2 * (x @ p["down"]) @ p["up"]
            x = x + jax.nn.gelu(h) @ g["down"]
            x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
        return jnp.mean((x - target) ** 2)

    def draw(key: Array) -> Batch:
        keys = iter(jax.random.split(key, 2 * depth + 1))
        given = [
            {
                "up": width**-0.5 * jax.random.normal(next(keys), (width, 4 * width)),
                "down": (4 * width) ** -0.5 * jax.random.normal(next(keys), (4 * width, width)),
            }
            for _ in range(depth)
        ]
        return jax.random.normal(next(keys), (batch, length, width)), given

    return Model("adapters", init, loss, draw)


def mixture(batch: int = 2048, width: int = 256, parts: int = 20, out: int = 4) -> Model:
    """A density of many bells, each with its own share, place and width."""

    def init(key: Array) -> Params:
        return layers(key, 16, width, width, parts * (2 * out + 1))

    def loss(params: Params, data: Batch) -> Array:
        x, y = data
        found = mlp(params, x)
        shares = jax.nn.log_softmax(found[:, :parts])
        places, spreads = jnp.split(found[:, parts:].reshape(batch, parts, 2 * out), 2, -1)
        bells = jax.scipy.stats.norm.logpdf(
            y[:, None], places, jax.nn.softplus(spreads) + 1e-3
        ).sum(-1)
        return -jax.nn.logsumexp(shares + bells, -1).mean()

    def draw(key: Array) -> Batch:
        x = jax.random.normal(key, (batch, 16))
        return x, x[:, :out] * x[:, out : 2 * out]

    return Model("mixture", init, loss, draw)


def capsules(batch: int = 16, inside: int = 288, out: int = 10, rounds: int = 3) -> Model:
    """Votes that are weighed by agreement, in rounds."""

    def init(key: Array) -> Params:
        one, two = jax.random.split(key)
        return {
            "in": dense(one, 784, inside * 8),
            "votes": 0.1 * jax.random.normal(two, (inside, out, 8, 16)),
        }

    def squash(x: Array) -> Array:
        size = jnp.sum(x**2, -1, keepdims=True)
        return size / (1 + size) * x / jnp.sqrt(size + 1e-8)

    def loss(params: Params, data: Batch) -> Array:
        x, labels = data
        u = squash(linear(params["in"], x).reshape(batch, inside, 8))
        votes = jnp.einsum("bik,ijkl->bijl", u, params["votes"])

        def agree(_: int, b: Array) -> Array:
            v = squash(jnp.einsum("bij,bijl->bjl", jax.nn.softmax(b, 2), lax.stop_gradient(votes)))
            return b + jnp.einsum("bijl,bjl->bij", lax.stop_gradient(votes), v)

        b = lax.fori_loop(0, rounds, agree, jnp.zeros((batch, inside, out)))
        v = squash(jnp.einsum("bij,bijl->bjl", jax.nn.softmax(b, 2), votes))
        sizes = jnp.sqrt(jnp.sum(v**2, -1) + 1e-8)
        hot = jax.nn.one_hot(labels, out)
        rows = hot * jax.nn.relu(0.9 - sizes) ** 2 + 0.5 * (1 - hot) * jax.nn.relu(sizes - 0.1) ** 2
        return rows.sum(-1).mean()

    def draw(key: Array) -> Batch:
        return jax.random.normal(key, (batch, 784)), jax.random.randint(key, (batch,), 0, out)

    return Model("capsules", init, loss, draw)


def recommendations(batch: int = 512, tables: int = 8, rows: int = 5000, width: int = 32) -> Model:
    """Rows of large tables, products of all pairs, and a loss of clicks."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 3)
        pairs = (tables + 1) * tables // 2
        return {
            "tables": 0.1 * jax.random.normal(keys[0], (tables, rows, width)),
            "bottom": layers(keys[1], 13, 128, width),
            "top": layers(keys[2], pairs + width, 256, 64, 1),
        }

    def loss(params: Params, data: Batch) -> Array:
        numbers, rows, clicks = data
        bottom = mlp(params["bottom"], numbers)
        found = jax.vmap(lambda table, ids: table[ids], (0, 1), 1)(params["tables"], rows)
        each = jnp.concatenate([bottom[:, None], found], 1)
        pairs = jnp.einsum("bid,bjd->bij", each, each)
        i, j = jnp.triu_indices(tables + 1, 1)
        logits = mlp(params["top"], jnp.concatenate([bottom, pairs[:, i, j]], -1))[:, 0]
        return jnp.mean(
            jnp.maximum(logits, 0) - logits * clicks + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        )

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 3)
        return (
            jax.random.normal(keys[0], (batch, 13)),
            jax.random.randint(keys[1], (batch, tables), 0, rows),
            jax.random.bernoulli(keys[2], 0.3, (batch,)).astype(jnp.float32),
        )

    return Model("recommendations", init, loss, draw)


def reversible(batch: int = 128, width: int = 256, depth: int = 12) -> Model:
    """Pairs that add to each other, scanned, with a branch that is taken in every third layer."""

    def init(key: Array) -> Params:
        make = lambda k: {
            "f": dense(k, width, width),
            "g": dense(jax.random.fold_in(k, 1), width, width),
        }
        return jax.vmap(make)(jax.random.split(key, depth))

    def loss(params: Params, x: Batch) -> Array:
        def step(
            pair: tuple[Array, Array], each: tuple[Params, Array]
        ) -> tuple[tuple[Array, Array], None]:
            p, i = each
            a, b = pair
            a = a + jnp.tanh(linear(p["f"], b))
            change = lax.cond(
                i % 3 == 0, lambda a: jax.nn.softplus(linear(p["g"], a)), lambda a: jnp.sin(a), a
            )
            return (a, b + change), None

        (a, b), _ = lax.scan(step, (x, x[::-1]), (params, jnp.arange(depth)))
        return jnp.mean((a - b) ** 2)

    return Model("reversible", init, loss, partial(jax.random.normal, shape=(batch, width)))
