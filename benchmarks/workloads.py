"""Training losses in plain JAX that all benchmarks share, written as a JAX user writes them.

Each is a `Model`: a name, parameters from a key, a batch from a key, and a scalar loss. `full` is
the size that results are told for, `tiny` compiles and runs in a moment. Nothing here is laid out
for one compiler or another. `remat` is what a JAX user would write to save memory.

Source: He et al. 2016 (residual networks); Radford et al. 2019 (pre-norm GPT); Hochreiter and
Schmidhuber 1997 (LSTM); Dosovitskiy et al. 2021 (ViT); Ronneberger et al. 2015 (U-Net); Shazeer et
al. 2017 and Lepikhin et al. 2021 (mixture of experts); Kingma and Welling 2014 (VAE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from layers import (
    PLAIN,
    batch_norm,
    conv,
    convolve,
    cross_entropy,
    dense,
    layer_norm,
    linear,
    max_pool,
    norm,
    transform,
    transformer_block,
)

Params = Any
Batch = Any


@dataclass(frozen=True)
class Model:
    """A training loss: `loss(init(key), batch(key))` is a scalar in nats or squared units."""

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch], jax.Array]
    batch: Callable[[jax.Array], Batch]


def images_and_labels(key, batch, size, classes):
    image_key, label_key = jax.random.split(key)
    images = jax.random.normal(image_key, (batch, size, size, 3))
    return images, jax.random.randint(label_key, (batch,), 0, classes)


def tokens(key, batch, length, vocabulary):
    """`int32[batch, length + 1]`: inputs, and targets one place on."""
    return jax.random.randint(key, (batch, length + 1), 0, vocabulary)


# MLP


def mlp(batch, widths, remat=PLAIN):
    def init(key):
        keys = jax.random.split(key, len(widths) - 1)
        sizes = zip(keys, widths, widths[1:], strict=False)
        return [dense(k, rows, columns) for k, rows, columns in sizes]

    def loss(params, data):
        x, labels = data
        x = remat.chain(
            [lambda p, x: jax.nn.relu(linear(p, x))] * (len(params) - 1), params[:-1], x
        )
        return cross_entropy(linear(params[-1], x), labels)

    def make(key):
        x_key, label_key = jax.random.split(key)
        x = jax.random.normal(x_key, (batch, widths[0]))
        return x, jax.random.randint(label_key, (batch,), 0, widths[-1])

    return Model("mlp", init, loss, make)


# Residual network: a stem, and a block of two convolutions in each stage


def resnet_block(p, x, stride):
    y = jax.nn.relu(batch_norm(p["norm1"], convolve(p["conv1"], x, stride)))
    y = batch_norm(p["norm2"], convolve(p["conv2"], y))
    if "shortcut" in p:
        x = convolve(p["shortcut"], x, stride)
    return jax.nn.relu(x + y)


def resnet(batch, size, widths, remat=PLAIN):
    def block(key, channels, filters):
        keys = jax.random.split(key, 3)
        p = {
            "conv1": conv(keys[0], 3, channels, filters),
            "norm1": norm(filters),
            "conv2": conv(keys[1], 3, filters, filters),
            "norm2": norm(filters),
        }
        if channels != filters:
            p["shortcut"] = conv(keys[2], 1, channels, filters)
        return p

    def init(key):
        keys = jax.random.split(key, len(widths) + 2)
        channels = (widths[0], *widths)
        return {
            "stem": conv(keys[0], 3, 3, widths[0]),
            "norm": norm(widths[0]),
            "blocks": [block(*sizes) for sizes in zip(keys[2:], channels, widths, strict=False)],
            "head": dense(keys[1], widths[-1], 10),
        }

    def loss(params, data):
        images, labels = data
        x = jax.nn.relu(batch_norm(params["norm"], convolve(params["stem"], images)))
        strides = [1] + [2] * (len(params["blocks"]) - 1)
        x = remat.chain([partial(resnet_block, stride=n) for n in strides], params["blocks"], x)
        return cross_entropy(linear(params["head"], x.mean((1, 2))), labels)

    make = partial(images_and_labels, batch=batch, size=size, classes=10)
    return Model("resnet", init, loss, make)


# Transformers


def gpt(layers, width, heads, length, batch, vocabulary, scanned=False, remat=PLAIN):
    """A pre-norm GPT; its layers are a list, or stacked and scanned over."""

    def init(key):
        keys = jax.random.split(key, layers + 3)
        blocks = [transformer_block(k, width) for k in keys[3:]]
        return {
            "embedding": 0.02 * jax.random.normal(keys[0], (vocabulary, width)),
            "position": 0.02 * jax.random.normal(keys[1], (length, width)),
            "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks) if scanned else blocks,
            "norm": norm(width),
            "head": dense(keys[2], width, vocabulary),
        }

    def loss(params, data):
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
    return Model("gpt_scan" if scanned else "gpt", init, loss, make)


def vit(batch, size, patch, layers, width, heads, remat=PLAIN):
    """A vision transformer: patches by a strided convolution, mean over positions at the end."""

    def init(key):
        keys = jax.random.split(key, layers + 3)
        return {
            "patch": conv(keys[0], patch, 3, width),
            "position": 0.02 * jax.random.normal(keys[1], ((size // patch) ** 2, width)),
            "blocks": [transformer_block(k, width) for k in keys[3:]],
            "norm": norm(width),
            "head": dense(keys[2], width, 10),
        }

    def loss(params, data):
        images, labels = data
        x = convolve(params["patch"], images, patch)
        x = x.reshape(batch, -1, width) + params["position"]
        block = partial(transform, heads=heads, causal=False)
        x = remat.chain([block] * layers, params["blocks"], x)
        x = layer_norm(params["norm"], x).mean(1)
        return cross_entropy(linear(params["head"], x), labels)

    make = partial(images_and_labels, batch=batch, size=size, classes=10)
    return Model("vit", init, loss, make)


# LSTM language model


def lstm(batch, length, width, vocabulary, remat=PLAIN):
    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "embedding": jax.random.normal(keys[0], (vocabulary, width)),
            "input": dense(keys[1], width, 4 * width),
            "hidden": width**-0.5 * jax.random.normal(keys[2], (width, 4 * width)),
            "head": dense(keys[3], width, vocabulary),
        }

    def loss(params, data):
        inputs, targets = data[:, :-1], data[:, 1:]

        def cell(state, x):
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


# U-Net


def unet(batch, size, widths, remat=PLAIN):
    """Two convolutions a level, max-pooling down, transposed convolutions up, and skips."""

    def pair(key, channels, filters):
        first, second = jax.random.split(key)
        return {
            "conv1": conv(first, 3, channels, filters),
            "bias1": jnp.zeros(filters),
            "conv2": conv(second, 3, filters, filters),
            "bias2": jnp.zeros(filters),
        }

    def apply(p, x):
        x = jax.nn.relu(convolve(p["conv1"], x) + p["bias1"])
        return jax.nn.relu(convolve(p["conv2"], x) + p["bias2"])

    def init(key):
        depth = len(widths)
        keys = jax.random.split(key, 3 * depth)
        steps = list(zip((3, *widths), widths, strict=False))
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        return {
            "down": [pair(k, *step) for k, step in zip(keys, steps, strict=False)],
            "widen": [conv(k, 2, *step) for k, step in zip(keys[depth:], ups, strict=False)],
            "up": [pair(k, 2 * o, o) for k, (_, o) in zip(keys[2 * depth :], ups, strict=False)],
            "head": conv(keys[-1], 1, widths[0], 1),
        }

    def loss(params, data):
        x, target = data
        pair = remat.wrap(apply)
        skips = []
        for p in params["down"][:-1]:
            x = pair(p, x)
            skips.append(x)
            x = max_pool(x)
        x = pair(params["down"][-1], x)
        for widen, p in zip(params["widen"], params["up"], strict=True):
            wide = lax.conv_transpose(x, widen, (2, 2), "SAME")
            x = pair(p, jnp.concatenate([wide, skips.pop()], axis=-1))
        logits = convolve(params["head"], x)
        return (jax.nn.softplus(logits) - target * logits).mean()

    def make(key):
        image_key, mask_key = jax.random.split(key)
        images = jax.random.normal(image_key, (batch, size, size, 3))
        mask = jax.random.bernoulli(mask_key, 0.5, (batch, size, size, 1))
        return images, mask.astype(jnp.float32)

    return Model("unet", init, loss, make)


# Mixture of experts


def moe(batch, width, experts, chosen, classes):
    """Token-choice routing: each token goes to its `chosen` best experts, up to their capacity."""
    capacity = int(1.25 * chosen * batch / experts)

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "router": width**-0.5 * jax.random.normal(keys[0], (width, experts)),
            "up": width**-0.5 * jax.random.normal(keys[1], (experts, width, 4 * width)),
            "down": (4 * width) ** -0.5 * jax.random.normal(keys[2], (experts, 4 * width, width)),
            "norm": norm(width),
            "head": dense(keys[3], width, classes),
        }

    def route(gates):
        """Return `combine[tokens, experts, capacity]`: a token's weight at an expert's place."""
        weights, index = lax.top_k(gates, chosen)
        weights = weights / weights.sum(-1, keepdims=True)
        onto = jax.nn.one_hot(index, experts)
        flat = onto.swapaxes(0, 1).reshape(-1, experts)  # first choices take their places first
        place = jnp.cumsum(flat, axis=0) * flat - 1
        slots = jax.nn.one_hot(place.astype(jnp.int32), capacity)
        slots = slots.reshape(chosen, batch, experts, capacity)
        return jnp.einsum("tk,ktec->tec", weights, slots), onto

    def loss(params, data):
        x, labels = data
        gates = jax.nn.softmax(x @ params["router"])
        combine, onto = route(gates)
        dispatch = (combine > 0).astype(x.dtype)
        inputs = jnp.einsum("tec,td->ecd", dispatch, x)
        hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", inputs, params["up"]))
        outputs = jnp.einsum("ecf,efd->ecd", hidden, params["down"])
        x = layer_norm(params["norm"], x + jnp.einsum("tec,ecd->td", combine, outputs))
        balance = experts * (gates.mean(0) * onto[:, 0].mean(0)).sum()
        return cross_entropy(linear(params["head"], x), labels) + 0.01 * balance

    def make(key):
        x_key, label_key = jax.random.split(key)
        x = jax.random.normal(x_key, (batch, width))
        return x, jax.random.randint(label_key, (batch,), 0, classes)

    return Model("moe", init, loss, make)


# Variational autoencoder


def vae(batch, width, hidden, latent):
    """Negative evidence bound with the reparametrisation `z = mean + exp(logvar / 2) * noise`."""

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "encode": dense(keys[0], width, hidden),
            "posterior": dense(keys[1], hidden, 2 * latent),
            "decode": dense(keys[2], latent, hidden),
            "pixels": dense(keys[3], hidden, width),
        }

    def loss(params, data):
        x, key = data
        h = jax.nn.silu(linear(params["encode"], x))
        mean, logvar = jnp.split(linear(params["posterior"], h), 2, axis=-1)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        logits = linear(params["pixels"], jax.nn.silu(linear(params["decode"], z)))
        nll = -(x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)).sum(-1)
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1)
        return (nll + kl).mean()

    def make(key):
        x_key, noise_key = jax.random.split(key)
        return jax.random.uniform(x_key, (batch, width)), noise_key

    return Model("vae", init, loss, make)


FULL: dict[str, Callable[[], Model]] = {
    "mlp": partial(mlp, 256, (784, 1024, 1024, 10)),
    "resnet": partial(resnet, 32, 32, (32, 64, 128)),
    "gpt": partial(gpt, 6, 256, 4, 256, 8, 8192),
    "gpt_scan": partial(gpt, 6, 256, 4, 256, 8, 8192, scanned=True),
    "lstm": partial(lstm, 32, 128, 256, 256),
    "vit": partial(vit, 32, 32, 4, 4, 192, 3),
    "unet": partial(unet, 8, 64, (16, 32, 64)),
    "moe": partial(moe, 1024, 128, 8, 2, 64),
    "vae": partial(vae, 256, 784, 512, 32),
}
TINY: dict[str, Callable[[], Model]] = {
    "mlp": partial(mlp, 8, (12, 16, 16, 4)),
    "resnet": partial(resnet, 2, 8, (4, 8)),
    "gpt": partial(gpt, 2, 16, 2, 8, 2, 32),
    "gpt_scan": partial(gpt, 2, 16, 2, 8, 2, 32, scanned=True),
    "lstm": partial(lstm, 2, 6, 8, 16),
    "vit": partial(vit, 2, 8, 4, 1, 8, 2),
    "unet": partial(unet, 2, 8, (4, 8)),
    "moe": partial(moe, 16, 8, 4, 2, 4),
    "vae": partial(vae, 4, 12, 8, 3),
}


def models(names: list[str] | None = None, tiny: bool = False) -> list[Model]:
    """Return the models of these names, or all of them."""
    table = TINY if tiny else FULL
    return [table[name]() for name in names or table]
