"""Parts of models where rewrites apply: losses over a vocabulary, attention, convolutions, loops.

Each is a `Model` whose inputs are learned, so that gradients of all operands are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from .model import Batch, Model, Params


def loss(kind: str, tokens: int, width: int, vocabulary: int) -> Model:
    """The last layer of a language model and its loss, of several kinds."""

    def init(key: Array) -> Params:
        one, other = jax.random.split(key)
        w = width**-0.5 * jax.random.normal(other, (width, vocabulary))
        return {"x": jax.random.normal(one, (tokens, width)), "w": w}

    def of(params: Params, labels: Batch) -> Array:
        logits = params["x"] @ params["w"]
        z = jax.nn.logsumexp(logits, -1)
        picked = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        if kind == "plain":
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()
        if kind == "z_loss":
            return (z - picked + 1e-4 * z**2).mean()
        mask = labels % 4 > 0  # "masked_smoothed"
        rows = z - 0.9 * picked - 0.1 * logits.mean(-1)
        return (rows * mask).sum() / mask.sum()

    def batch(key: Array) -> Batch:
        return jax.random.randint(key, (tokens,), 0, vocabulary)

    return Model(f"loss_{kind}", init, of, batch)


def attention(kind: str, batch: int, length: int, heads: int, width: int) -> Model:
    """Attention of queries, keys and values that are learned.

    Causal, or in a window; `full` is without a mask.
    """
    shape = (batch, length, heads, width)

    def init(key: Array) -> Params:
        q, k, v = jax.random.normal(key, (3, *shape))
        return {"q": q, "k": k, "v": v}

    def of(params: Params, weights: Batch) -> Array:
        q, k, v = params["q"], params["k"], params["v"]
        if kind == "library":
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width)
            i, j = jnp.arange(length)[:, None], jnp.arange(length)[None]
            mask = (i >= j) & (i - j < length // 4) if kind == "window" else i >= j
            scores = scores if kind == "full" else jnp.where(mask, scores, -1e9)
            p = jax.nn.softmax(scores, -1)
            out = jnp.einsum("bhqk,bkhd->bqhd", p, v)
        return (out * weights).mean()

    name = f"{kind}_{length}" if kind != "naive" else f"attention_{length}"
    return Model(name, init, of, partial(jax.random.normal, shape=shape))


def recurrent(kind: str, batch: int, length: int, width: int) -> Model:
    """A layer of a recurrent network over sequences, with `jax.lax.scan`."""
    count = {"elman": 1, "gru": 3}.get(kind, 4)

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 3)
        w, u = width**-0.5 * jax.random.normal(keys[0], (2, width, count * width))
        return {"w": w, "u": u, "b": jnp.zeros(count * width)}

    def elman(p: Params, h: Array, x: Array) -> Array:
        return jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"])

    def gru(p: Params, h: Array, x: Array) -> Array:
        given, state = jnp.split(x @ p["w"] + p["b"], 3, -1), jnp.split(h @ p["u"], 3, -1)
        r, z = (jax.nn.sigmoid(a + b) for a, b in zip(given[:2], state[:2], strict=True))
        return (1 - z) * jnp.tanh(given[2] + r * state[2]) + z * h

    def lstm(p: Params, both: Array, x: Array) -> Array:
        h, c = jnp.split(both, 2, -1)
        if kind == "lstm_joined":
            gates = jnp.concatenate([x, h], -1) @ jnp.concatenate([p["w"], p["u"]]) + p["b"]
        else:
            gates = x @ p["w"] + h @ p["u"] + p["b"]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], -1)

    cell = {"elman": elman, "gru": gru}.get(kind, lstm)
    start = jnp.zeros((batch, width if count < 4 else 2 * width))

    def of(params: Params, xs: Batch) -> Array:
        def step(state: Array, x: Array) -> tuple[Array, Array]:
            state = cell(params, state, x)
            return state, state[:, :width]

        return (jax.lax.scan(step, start, xs)[1] ** 2).mean()

    make = partial(jax.random.normal, shape=(length, batch, width))
    return Model(f"{kind}_{length}", init, of, make)


# Batch, image's size, channels, filters, kernel's size; stride, groups, and the factor by which
# an upsampling makes the image larger. Features last.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int, int], dict[str, int]]] = {
    "conv": ((32, 32, 32, 32, 3), {}),
    "conv_wide": ((32, 16, 64, 64, 3), {}),
    "conv_stride": ((32, 32, 32, 64, 3), {"stride": 2}),
    "conv_1x1": ((32, 28, 64, 128, 1), {}),
    "conv_patches": ((16, 224, 3, 192, 16), {"stride": 16}),
    "conv_upsampled": ((8, 32, 32, 32, 2), {"factor": 2}),
    "conv_depthwise": ((16, 32, 64, 64, 3), {"groups": 64}),
    "conv_depthwise_7x7": ((8, 28, 64, 64, 7), {"groups": 64}),
    "conv_grouped": ((8, 28, 128, 128, 3), {"groups": 32}),
}


def convolution(
    name: str, sizes: Sequence[int], stride: int = 1, groups: int = 1, factor: int = 1
) -> Model:
    """One layer, whose inputs are learned."""
    batch, size, channels, filters, kernel = sizes
    numbers = ("NHWC", "HWIO", "NHWC")

    def init(key: Array) -> Params:
        one, other = jax.random.split(key)
        w = jax.random.normal(other, (kernel, kernel, channels // groups, filters))
        return {"x": jax.random.normal(one, (batch, size, size, channels)), "w": w}

    def apply(params: Params) -> Array:
        x, w = params["x"], params["w"]
        if factor > 1:
            strides = (factor, factor)
            return lax.conv_transpose(x, w, strides, "SAME", dimension_numbers=numbers)
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", None, None, numbers, feature_group_count=groups
        )

    def weights(key: Array) -> Batch:
        return jax.random.normal(key, jax.eval_shape(lambda: apply(init(key))).shape)

    def loss(params: Params, weights: Batch) -> Array:
        return (jnp.square(apply(params)) * weights).mean()  # smooth: rounding flips nothing

    return Model(name, init, loss, weights)


def parts(size: str) -> Mapping[str, Callable[[], Model]]:
    """Return builders by name; all but `tiny` are of the size that results are told for."""
    tiny = size == "tiny"
    tokens, vocabulary = (64, 128) if tiny else (4096, 32768)
    length = 16 if tiny else 2048
    found: dict[str, Callable[[], Model]] = {
        f"loss_{kind}": partial(loss, kind, tokens, 8 if tiny else 256, vocabulary)
        for kind in ("plain", "z_loss", "masked_smoothed")
    }
    for part, batch in ((length // 8, 8), (length // 4, 8), (length // 2, 2), (length, 2)):
        found[f"attention_{part}"] = partial(attention, "naive", batch, part, 4, 64)
    for kind in ("window", "library", "full"):
        found[f"{kind}_{length}"] = partial(attention, kind, 2, length, 4, 64)
    for name, (sizes, options) in CONVOLUTIONS.items():
        few = 2 * options.get("groups", 1)
        small = (2, 2 * sizes[-1], few, few, sizes[-1])
        found[name] = partial(convolution, name, small if tiny else sizes, **options)
    batch, steps, width = (2, 6, 8) if tiny else (32, 128, 256)
    for kind in ("elman", "gru", "lstm", "lstm_joined"):
        found[f"{kind}_{steps}"] = partial(recurrent, kind, batch, steps, width)
    return found
