"""Layers of the models, in plain JAX: parameters are dicts, layers are functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from .model import Params


def dense(key: Array, rows: int, columns: int) -> Params:
    """`w[rows, columns]` of variance `1 / rows`, and a bias of zeros."""
    w = rows**-0.5 * jax.random.normal(key, (rows, columns))
    return {"w": w, "b": jnp.zeros(columns)}


def conv(key: Array, size: int, channels: int, filters: int) -> Array:
    """`w[size, size, channels, filters]` of variance `2 / fan_in`."""
    scale = (2 / (size * size * channels)) ** 0.5
    return scale * jax.random.normal(key, (size, size, channels, filters))


def norm(width: int) -> Params:
    """A scale of ones and a bias of zeros, `f32[width]` each."""
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def linear(p: Params, x: Array) -> Array:
    """`x @ w + b`."""
    return x @ p["w"] + p["b"]


def convolve(w: Array, x: Array, stride: int = 1) -> Array:
    """Convolve `x[batch, height, width, channels]`; `SAME` padding."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=layout)


def layer_norm(p: Params, x: Array) -> Array:
    """Normalise the last dimension."""
    mean = x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def batch_norm(p: Params, x: Array) -> Array:
    """Normalise by the statistics of this batch, as in training."""
    mean = x.mean((0, 1, 2))
    variance = x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over all labels, in nats."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, labels[..., None], axis=-1).mean()


def max_pool(x: Array) -> Array:
    """The largest of each 2 x 2 pixels of `x[batch, height, width, channels]`."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def transformer_block(key: Array, width: int) -> Params:
    """Parameters of `transform`."""
    keys = jax.random.split(key, 4)
    return {
        "norm1": norm(width),
        "qkv": dense(keys[0], width, 3 * width),
        "out": dense(keys[1], width, width),
        "norm2": norm(width),
        "up": dense(keys[2], width, 4 * width),
        "down": dense(keys[3], 4 * width, width),
    }


def attention(p: Params, x: Array, heads: int, causal: bool) -> Array:
    """Attention of `x[batch, length, width]` to itself."""
    batch, length, width = x.shape
    q, k, v = jnp.split(linear(p["qkv"], x), 3, axis=-1)
    q, k, v = (t.reshape(batch, length, heads, width // heads) for t in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width // heads)
    if causal:
        mask = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(mask, scores, -1e9)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return linear(p["out"], mixed.reshape(batch, length, width))


def transform(p: Params, x: Array, heads: int, causal: bool) -> Array:
    """A pre-norm block: attention, then two dense layers."""
    x = x + attention(p, layer_norm(p["norm1"], x), heads, causal)
    return x + linear(p["down"], jax.nn.gelu(linear(p["up"], layer_norm(p["norm2"], x))))
