"""Models of tokens, written as a JAX user writes them; nothing is laid out for one compiler.

Source: Radford et al. 2019 (pre-norm GPT); Hochreiter and Schmidhuber 1997 (LSTM); Shazeer et al.
2017 and Lepikhin et al. 2021 (mixture of experts).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .layers import (
    cross_entropy,
    dense,
    layer_norm,
    linear,
    norm,
    transform,
    transformer_block,
)
from .model import PLAIN, Batch, Model, Params, Remat


def tokens(key: Array, batch: int, length: int, vocabulary: int) -> Array:
    """`int32[batch, length + 1]`: inputs, and targets one place on."""
    return jax.random.randint(key, (batch, length + 1), 0, vocabulary)


def gpt(
    layers: int,
    width: int,
    heads: int,
    length: int,
    batch: int,
    vocabulary: int,
    scanned: bool = False,
    remat: Remat = PLAIN,
) -> Model:
    """A pre-norm GPT; its layers are a list, or stacked and scanned over."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, layers + 3)
        blocks = [transformer_block(k, width) for k in keys[3:]]
        return {
            "embedding": 0.02 * jax.random.normal(keys[0], (vocabulary, width)),
            "position": 0.02 * jax.random.normal(keys[1], (length, width)),
            "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks) if scanned else blocks,
            "norm": norm(width),
            "head": dense(keys[2], width, vocabulary),
        }

    def loss(params: Params, data: Batch) -> Array:
        inputs, targets = data[:, :-1], data[:, 1:]
        x = params["embedding"][inputs] + params["position"]
        block = partial(transform, heads=heads, causal=True)
        if scanned:
            body = remat.wrap(block)
            x, _ = lax.scan(lambda x, p: (body(p, x), None), x, params["blocks"])
        else:
            x = remat.chain([block] * layers, params["blocks"], x)
        return cross_entropy(linear(params["head"], layer_norm(params["norm"], x)), targets)

    make = partial(tokens, batch=batch, length=length, vocabulary=vocabulary)
    name = "gpt_scan" if scanned else "gpt"
    return Model(name, init, loss, make, {"heads": heads, "scanned": scanned})


def lstm(batch: int, length: int, width: int, vocabulary: int, remat: Remat = PLAIN) -> Model:
    """One layer under `lax.scan`, between an embedding and a head."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "embedding": jax.random.normal(keys[0], (vocabulary, width)),
            "input": dense(keys[1], width, 4 * width),
            "hidden": width**-0.5 * jax.random.normal(keys[2], (width, 4 * width)),
            "head": dense(keys[3], width, vocabulary),
        }

    def loss(params: Params, data: Batch) -> Array:
        inputs, targets = data[:, :-1], data[:, 1:]

        def cell(state: Any, x: Array) -> Any:
            h, c = state
            gates = linear(params["input"], x) + h @ params["hidden"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((batch, width))
        xs = params["embedding"][inputs].swapaxes(0, 1)
        _, hs = lax.scan(remat.wrap(cell), (zeros, zeros), xs)
        return cross_entropy(linear(params["head"], hs), targets.T)

    make = partial(tokens, batch=batch, length=length, vocabulary=vocabulary)
    return Model("lstm", init, loss, make)


def moe(
    batch: int, width: int, experts: int, chosen: int, classes: int, remat: Remat = PLAIN
) -> Model:
    """Token-choice routing: each token goes to its `chosen` best experts, up to their capacity."""
    capacity = int(1.25 * chosen * batch / experts)

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "router": width**-0.5 * jax.random.normal(keys[0], (width, experts)),
            "up": width**-0.5 * jax.random.normal(keys[1], (experts, width, 4 * width)),
            "down": (4 * width) ** -0.5 * jax.random.normal(keys[2], (experts, 4 * width, width)),
            "norm": norm(width),
            "head": dense(keys[3], width, classes),
        }

    def route(gates: Array) -> tuple[Array, Array]:
        """Return `combine[tokens, experts, capacity]`: a token's weight at an expert's place."""
        weights, index = lax.top_k(gates, chosen)
        weights = weights / weights.sum(-1, keepdims=True)
        onto = jax.nn.one_hot(index, experts)
        flat = onto.swapaxes(0, 1).reshape(-1, experts)  # first choices take their places first
        place = jnp.cumsum(flat, axis=0) * flat - 1
        slots = jax.nn.one_hot(place.astype(jnp.int32), capacity)
        slots = slots.reshape(chosen, batch, experts, capacity)
        return jnp.einsum("tk,ktec->tec", weights, slots), onto

    def expert(params: Params, inputs: Array) -> Array:
        hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", inputs, params["up"]))
        return jnp.einsum("ecf,efd->ecd", hidden, params["down"])

    def loss(params: Params, data: Batch) -> Array:
        x, labels = data
        gates = jax.nn.softmax(x @ params["router"])
        combine, onto = route(gates)
        dispatch = (combine > 0).astype(x.dtype)
        inputs = jnp.einsum("tec,td->ecd", dispatch, x)
        outputs = remat.wrap(expert)(params, inputs)
        x = layer_norm(params["norm"], x + jnp.einsum("tec,ecd->td", combine, outputs))
        balance = experts * (gates.mean(0) * onto[:, 0].mean(0)).sum()
        return cross_entropy(linear(params["head"], x), labels) + 0.01 * balance

    def make(key: Array) -> Batch:
        x_key, label_key = jax.random.split(key)
        x = jax.random.normal(x_key, (batch, width))
        return x, jax.random.randint(label_key, (batch,), 0, classes)

    settings = {"experts": experts, "chosen": chosen, "capacity": capacity}
    return Model("moe", init, loss, make, settings)
