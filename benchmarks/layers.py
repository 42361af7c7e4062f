"""Layers of the benchmark models, in plain JAX: parameters are dicts, layers are functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dense(key, rows, columns):
    """`w[rows, columns]` of variance `1 / rows`, and a bias of zeros."""
    w = rows**-0.5 * jax.random.normal(key, (rows, columns))
    return {"w": w, "b": jnp.zeros(columns)}


def conv(key, size, channels, filters):
    """`w[size, size, channels, filters]` of variance `2 / fan_in`."""
    scale = (2 / (size * size * channels)) ** 0.5
    return scale * jax.random.normal(key, (size, size, channels, filters))


def norm(width):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def linear(p, x):
    return x @ p["w"] + p["b"]


def convolve(w, x, stride=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=layout)


def layer_norm(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def batch_norm(p, x):
    """Normalise by the statistics of this batch, as in training."""
    mean = x.mean((0, 1, 2))
    variance = x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def cross_entropy(logits, labels):
    logp = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, labels[..., None], axis=-1).mean()


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def transformer_block(key, width):
    keys = jax.random.split(key, 4)
    return {
        "norm1": norm(width),
        "qkv": dense(keys[0], width, 3 * width),
        "out": dense(keys[1], width, width),
        "norm2": norm(width),
        "up": dense(keys[2], width, 4 * width),
        "down": dense(keys[3], 4 * width, width),
    }


def attention(p, x, heads, causal):
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


def transform(p, x, heads, causal):
    x = x + attention(p, layer_norm(p["norm1"], x), heads, causal)
    return x + linear(p["down"], jax.nn.gelu(linear(p["up"], layer_norm(p["norm2"], x))))


@dataclass(frozen=True)
class Remat:
    """How a JAX user saves memory by hand: `wrap`, such as `jax.checkpoint`, around `group` blocks.

    `nested` wraps each block of a group as well.
    """

    wrap: Callable[[Any], Any] = lambda f: f
    group: int = 1
    nested: bool = False

    def chain(
        self, blocks: Sequence[Callable[[Any, Any], Any]], params: Sequence[Any], x: Any
    ) -> Any:
        """Run `x = block(p, x)` for all blocks."""
        pairs = list(zip(blocks, params, strict=True))
        for i in range(0, len(pairs), self.group):
            part = pairs[i : i + self.group]
            inner = [self.wrap(block) if self.nested else block for block, _ in part]

            def run(params: Any, x: Any, inner: Any = inner) -> Any:
                for block, p in zip(inner, params, strict=True):
                    x = block(p, x)
                return x

            x = self.wrap(run)([p for _, p in part], x)
        return x


PLAIN = Remat()
