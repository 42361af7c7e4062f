"""Networks over sequences, as an outsider writes them.

Sources: Vaswani et al. 2017 (encoder and decoder), Touvron et al. 2023 (Llama), Raffel et al. 2020
(bias by distance), Gu et al. 2022 (kernels by FFT), Gu and Dao 2023 (Mamba), Katharopoulos et al.
2020 (linear attention), Graves et al. 2006 (CTC), Bahdanau et al. 2015 (attention of a decoder),
van den Oord et al. 2016 (WaveNet), Dauphin et al. 2017 (gated convolutions).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from backpass.bench.models.layers import dense, linear
from backpass.bench.models.model import Batch, Model, Params


def rms(scale: Array, x: Array) -> Array:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


def dropout(key: Array, rate: float, x: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def attend(p: Params, x: Array, y: Array, heads: int, mask: Array | None = None) -> Array:
    """Attention of `x[n, t, d]` to `y[n, s, d]`."""
    q, k, v = (
        linear(p[name], z).reshape(*z.shape[:2], heads, -1)
        for name, z in (("q", x), ("k", y), ("v", y))
    )
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    return linear(p["o"], jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).reshape(x.shape))


def translation(
    batch: int = 8, length: int = 64, width: int = 128, depth: int = 3, words: int = 1000
) -> Model:
    """Encoder and decoder with padding, dropout, smoothed labels and one table of words."""
    heads = 4

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 20 * depth + 1))
        attention = lambda: {name: dense(next(keys), width, width) for name in "qkvo"}
        feed = lambda: {
            "up": dense(next(keys), width, 4 * width),
            "down": dense(next(keys), 4 * width, width),
        }
        ones = jnp.ones(width)
        return {
            "words": 0.05 * jax.random.normal(next(keys), (words, width)),
            "encoder": [
                {"own": attention(), "feed": feed(), "norms": [ones] * 2} for _ in range(depth)
            ],
            "decoder": [
                {"own": attention(), "cross": attention(), "feed": feed(), "norms": [ones] * 3}
                for _ in range(depth)
            ],
        }

    def loss(params: Params, data: Batch) -> Array:
        source, target, key = data
        angles = jnp.arange(length)[:, None] / 10000 ** (jnp.arange(0, width, 2) / width)
        place = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(length, width)
        keys = iter(jax.random.split(key, 5 * depth))
        drop = lambda x: dropout(next(keys), 0.1, x)
        feed = lambda p, x: linear(p["down"], jax.nn.relu(linear(p["up"], x)))
        there = (source != 0)[:, None, None, :]
        x = params["words"][source] * width**0.5 + place
        for p in params["encoder"]:
            x = rms(p["norms"][0], x + drop(attend(p["own"], x, x, heads, there)))
            x = rms(p["norms"][1], x + drop(feed(p["feed"], x)))
        past = jnp.tril(jnp.ones((length, length), bool))
        y = params["words"][target[:, :-1]] * width**0.5 + place
        for p in params["decoder"]:
            y = rms(p["norms"][0], y + drop(attend(p["own"], y, y, heads, past)))
            y = rms(p["norms"][1], y + drop(attend(p["cross"], y, x, heads, there)))
            y = rms(p["norms"][2], y + drop(feed(p["feed"], y)))
        logits = y @ params["words"].T
        labels = optax.smooth_labels(jax.nn.one_hot(target[:, 1:], words), 0.1)
        rows = optax.softmax_cross_entropy(logits, labels)
        mask = target[:, 1:] != 0
        return jnp.sum(rows * mask) / jnp.maximum(jnp.sum(mask), 1)

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 3)
        source = jax.random.randint(keys[0], (batch, length), 1, words)
        target = jax.random.randint(keys[1], (batch, length + 1), 1, words)
        stop = jnp.arange(length) < length - jnp.arange(batch)[:, None]
        return source * stop, target.at[:, :-1].multiply(stop), keys[2]

    return Model("translation", init, loss, draw)


def llama(
    batch: int = 4, length: int = 128, width: int = 128, depth: int = 8, words: int = 2048
) -> Model:
    """Scanned layers of grouped queries, rotations and gates."""
    heads, groups = 8, 2
    size = width // heads

    def init(key: Array) -> Params:
        def layer(key: Array) -> Params:
            keys = jax.random.split(key, 7)
            make = lambda k, a, b: a**-0.5 * jax.random.normal(k, (a, b))
            return {
                "n1": jnp.ones(width),
                "q": make(keys[0], width, width),
                "k": make(keys[1], width, groups * size),
                "v": make(keys[2], width, groups * size),
                "o": make(keys[3], width, width),
                "n2": jnp.ones(width),
                "gate": make(keys[4], width, 3 * width),
                "up": make(keys[5], width, 3 * width),
                "down": make(keys[6], 3 * width, width),
            }

        one, two, three = jax.random.split(key, 3)
        return {
            "words": 0.05 * jax.random.normal(one, (words, width)),
            "layers": jax.vmap(layer)(jax.random.split(two, depth)),
            "norm": jnp.ones(width),
            "head": 0.05 * jax.random.normal(three, (width, words)),
        }

    def turn(x: Array) -> Array:
        angles = jnp.arange(length)[:, None] / 10000 ** (jnp.arange(0, size, 2) / size)
        sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def layer(x: Array, p: Params) -> tuple[Array, None]:
        h = rms(p["n1"], x)
        q = turn((h @ p["q"]).reshape(batch, length, heads, size))
        k = turn((h @ p["k"]).reshape(batch, length, groups, size))
        v = (h @ p["v"]).reshape(batch, length, groups, size)
        q = q.reshape(batch, length, groups, heads // groups, size)
        scores = jnp.einsum("btghd,bsgd->bghts", q, k) * size**-0.5
        mask = jnp.tril(jnp.ones((length, length), bool))
        scores = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), -1)
        x = x + jnp.einsum("bghts,bsgd->btghd", scores, v).reshape(x.shape) @ p["o"]
        h = rms(p["n2"], x)
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    def loss(params: Params, tokens: Batch) -> Array:
        x, _ = lax.scan(layer, params["words"][tokens[:, :-1]], params["layers"])
        logits = rms(params["norm"], x) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return Model(
        "llama", init, loss, lambda key: jax.random.randint(key, (batch, length + 1), 0, words)
    )


def distances(batch: int = 4, length: int = 128, width: int = 128, depth: int = 4) -> Model:
    """Attention with a learned bias by the distance, in buckets, the same in all layers."""
    heads, buckets = 4, 16

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 6 * depth + 1))
        layers = [
            {
                "attention": {name: dense(next(keys), width, width) for name in "qkvo"},
                "up": dense(next(keys), width, 4 * width),
                "down": dense(next(keys), 4 * width, width),
                "n1": jnp.ones(width),
                "n2": jnp.ones(width),
            }
            for _ in range(depth)
        ]
        return {"bias": jax.random.normal(next(keys), (buckets, heads)), "layers": layers}

    def loss(params: Params, x: Batch) -> Array:
        far = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length))
        bucket = jnp.minimum(jnp.log2(far + 1.25) * 2, buckets - 1).astype(jnp.int32)
        bias = params["bias"][bucket].transpose(2, 0, 1)
        target = jnp.roll(x, 1, 1)
        for p in params["layers"]:
            h = rms(p["n1"], x)
            q, k, v = (
                linear(p["attention"][n], h).reshape(batch, length, heads, -1).swapaxes(1, 2)
                for n in "qkv"
            )
            y = jax.nn.softmax(q @ k.swapaxes(-1, -2) + bias, -1) @ v
            x = x + linear(p["attention"]["o"], y.swapaxes(1, 2).reshape(x.shape))
            x = x + linear(p["down"], jax.nn.gelu(linear(p["up"], rms(p["n2"], x))))
        return optax.huber_loss(x, target).mean()

    return Model("distances", init, loss, partial(jax.random.normal, shape=(batch, length, width)))


def kernels(
    batch: int = 8, length: int = 512, width: int = 64, depth: int = 4, states: int = 32
) -> Model:
    """Long convolutions by FFT, whose kernels are sums of damped waves."""

    def init(key: Array) -> Params:
        def layer(key: Array) -> Params:
            keys = jax.random.split(key, 4)
            return {
                "decay": jnp.log(jnp.linspace(0.01, 0.5, states)) * jnp.ones((width, 1)),
                "speed": jnp.pi * jnp.arange(states) * jnp.ones((width, 1)),
                "c": jax.random.normal(keys[0], (width, states, 2)) / states,
                "step": jnp.full((width,), -3.0),
                "d": jnp.ones(width),
                "mix": dense(keys[1], width, 2 * width),
            }

        return [layer(key) for key in jax.random.split(key, depth)]

    def loss(params: Params, x: Batch) -> Array:
        target = jnp.cumsum(x, 1) / jnp.sqrt(jnp.arange(1, length + 1))[:, None]
        for p in params:
            rates = (-jnp.exp(p["decay"]) + 1j * p["speed"]) * jnp.exp(p["step"])[:, None]
            waves = jnp.exp(rates[..., None] * jnp.arange(length))
            kernel = (
                2
                * jnp.einsum("hn,hnl->hl", lax.complex(p["c"][..., 0], p["c"][..., 1]), waves).real
            )
            there = jnp.fft.rfft(kernel, 2 * length).T * jnp.fft.rfft(x, 2 * length, axis=1)
            y = jnp.fft.irfft(there, 2 * length, axis=1)[:, :length] + p["d"] * x
            a, b = jnp.split(linear(p["mix"], jax.nn.gelu(y)), 2, -1)
            x = x + a * jax.nn.sigmoid(b)
        return jnp.mean((x - target) ** 2)

    return Model("kernels", init, loss, partial(jax.random.normal, shape=(batch, length, width)))


def mamba(
    batch: int = 4, length: int = 128, width: int = 64, depth: int = 2, states: int = 8
) -> Model:
    """States that choose what they keep, by an associative scan."""

    def init(key: Array) -> Params:
        def layer(key: Array) -> Params:
            keys = jax.random.split(key, 5)
            return {
                "in": dense(keys[0], width, 2 * width),
                "conv": jax.random.normal(keys[1], (4, width)) / 2,
                "abc": dense(keys[2], width, 2 * states + 1),
                "out": dense(keys[3], width, width),
                "a": jnp.log(jnp.arange(1, states + 1) * jnp.ones((width, 1))),
                "n": jnp.ones(width),
            }

        return [layer(key) for key in jax.random.split(key, depth)]

    def combine(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] * two[0], one[1] * two[0] + two[1]

    def loss(params: Params, x: Batch) -> Array:
        start = x
        for p in params:
            h, gate = jnp.split(linear(p["in"], rms(p["n"], x)), 2, -1)
            padded = jnp.pad(h, ((0, 0), (3, 0), (0, 0)))
            h = jax.nn.silu(sum(padded[:, i : i + length] * p["conv"][i] for i in range(4)))
            abc = linear(p["abc"], h)
            b, c, step = abc[..., :states], abc[..., states:-1], jax.nn.softplus(abc[..., -1:])
            decay = jnp.exp(step[..., None] * -jnp.exp(p["a"]))
            given = (step * h)[..., None] * b[..., None, :]
            _, state = lax.associative_scan(combine, (decay, given), axis=1)
            x = x + linear(p["out"], jnp.einsum("blds,bls->bld", state, c) * jax.nn.silu(gate))
        return jnp.mean((x[:, :-1] - start[:, 1:]) ** 2)

    return Model("mamba", init, loss, partial(jax.random.normal, shape=(batch, length, width)))


def linear_attention(batch: int = 8, length: int = 128, width: int = 64, depth: int = 2) -> Model:
    """A state of outer products, one token after the other: scans in a list of layers."""
    heads = 4

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 6 * depth))
        return [
            {
                **{n: dense(next(keys), width, width) for n in "rkvo"},
                "decay": jnp.zeros(width),
                "n": jnp.ones(width),
            }
            for _ in range(depth)
        ]

    def loss(params: Params, x: Batch) -> Array:
        target = jnp.roll(x, -1, 1)
        for p in params:
            h = rms(p["n"], x)
            r, k, v = (
                linear(p[n], h).reshape(batch, length, heads, -1).swapaxes(0, 1) for n in "rkv"
            )
            keep = jax.nn.sigmoid(p["decay"] + 2).reshape(heads, -1, 1)

            def step(
                state: Array, each: tuple[Array, ...], keep: Array = keep
            ) -> tuple[Array, Array]:
                r, k, v = each
                state = keep * state + jnp.einsum("bhk,bhv->bhkv", jnp.exp(jnp.minimum(k, 3)), v)
                return state, jnp.einsum("bhk,bhkv->bhv", jax.nn.sigmoid(r), state)

            start = jnp.zeros((batch, heads, width // heads, width // heads))
            _, y = lax.scan(step, start, (r, k, v))
            x = x + linear(p["o"], y.swapaxes(0, 1).reshape(x.shape) / length)
        return jnp.mean((x - target) ** 2)

    return Model(
        "linear_attention", init, loss, partial(jax.random.normal, shape=(batch, length, width))
    )


def ctc(
    batch: int = 8, length: int = 100, width: int = 128, labels: int = 20, classes: int = 40
) -> Model:
    """A recurrent network both ways over frames, and the sum over all alignments of the labels."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 5)
        cell = lambda k: {
            "x": dense(k, 40, 3 * width),
            "h": width**-0.5 * jax.random.normal(k, (width, 3 * width)),
        }
        return {
            "ahead": cell(keys[0]),
            "back": cell(keys[1]),
            "out": dense(keys[2], 2 * width, classes),
        }

    def run(p: Params, x: Array, reverse: bool) -> Array:
        def step(h: Array, gates: Array) -> tuple[Array, Array]:
            r, z, n = jnp.split(gates, 3, -1)
            hr, hz, hn = jnp.split(h @ p["h"], 3, -1)
            new = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
            h = new + jax.nn.sigmoid(z + hz) * (h - new)
            return h, h

        gates = linear(p["x"], x).swapaxes(0, 1)
        return lax.scan(step, jnp.zeros((batch, width)), gates, reverse=reverse)[1].swapaxes(0, 1)

    def loss(params: Params, data: Batch) -> Array:
        frames, frame_pads, text, text_pads = data
        h = jnp.concatenate(
            [run(params["ahead"], frames, False), run(params["back"], frames, True)], -1
        )
        return optax.ctc_loss(linear(params["out"], h), frame_pads, text, text_pads).mean()

    def draw(key: Array) -> Batch:
        ends = length - 3 * jnp.arange(batch)
        stops = labels - jnp.arange(batch) % 3
        pads = (jnp.arange(length) >= ends[:, None]).astype(jnp.float32)
        text_pads = (jnp.arange(labels) >= stops[:, None]).astype(jnp.float32)
        text = jax.random.randint(key, (batch, labels), 1, classes)
        return jax.random.normal(key, (batch, length, 40)), pads, text, text_pads

    return Model("ctc", init, loss, draw)


def wavenet(batch: int = 4, length: int = 512, width: int = 64, depth: int = 10) -> Model:
    """Causal convolutions that look twice as far back from layer to layer, with gates and skips."""

    def init(key: Array) -> Params:
        def layer(key: Array) -> Params:
            keys = jax.random.split(key, 3)
            return {
                "w": (2 * width) ** -0.5 * jax.random.normal(keys[0], (2, width, 2 * width)),
                "out": dense(keys[1], width, width),
                "skip": dense(keys[2], width, width),
            }

        one, two, three = jax.random.split(key, 3)
        return {
            "embed": jax.random.normal(one, (256, width)),
            "head": dense(three, width, 256),
            "layers": [layer(key) for key in jax.random.split(two, depth)],
        }

    def loss(params: Params, waves: Batch) -> Array:
        x, total = params["embed"][waves[:, :-1]], 0.0
        for i, p in enumerate(params["layers"]):
            far = 2 ** (i % 8)
            padded = jnp.pad(x, ((0, 0), (far, 0), (0, 0)))
            y = lax.conv_general_dilated(
                padded,
                p["w"],
                (1,),
                "VALID",
                rhs_dilation=(far,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            a, b = jnp.split(y, 2, -1)
            y = jnp.tanh(a) * jax.nn.sigmoid(b)
            total = total + linear(p["skip"], y)
            x = x + linear(p["out"], y)
        logits = linear(params["head"], jax.nn.relu(total))
        picked = jnp.take_along_axis(logits, waves[:, 1:, None], -1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - picked)

    return Model(
        "wavenet", init, loss, lambda key: jax.random.randint(key, (batch, length + 1), 0, 256)
    )
