"""Models of images, written as a JAX user writes them; nothing is laid out for one compiler.

Source: He et al. 2016 (residual networks); Dosovitskiy et al. 2021 (ViT); Ronneberger et al. 2015
(U-Net); Kingma and Welling 2014 (VAE).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from .layers import (
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
from .model import PLAIN, Batch, Model, Params, Remat


def images_and_labels(key: Array, batch: int, size: int, classes: int) -> Batch:
    """`f32[batch, size, size, 3]` and `int32[batch]`."""
    image_key, label_key = jax.random.split(key)
    images = jax.random.normal(image_key, (batch, size, size, 3))
    return images, jax.random.randint(label_key, (batch,), 0, classes)


def mlp(batch: int, widths: Sequence[int], remat: Remat = PLAIN) -> Model:
    """Dense layers with relu between them."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(widths) - 1)
        sizes = zip(keys, widths, widths[1:], strict=False)
        return [dense(k, rows, columns) for k, rows, columns in sizes]

    def loss(params: Params, data: Batch) -> Array:
        x, labels = data
        x = remat.chain(
            [lambda p, x: jax.nn.relu(linear(p, x))] * (len(params) - 1), params[:-1], x
        )
        return cross_entropy(linear(params[-1], x), labels)

    def make(key: Array) -> Batch:
        x_key, label_key = jax.random.split(key)
        x = jax.random.normal(x_key, (batch, widths[0]))
        return x, jax.random.randint(label_key, (batch,), 0, widths[-1])

    return Model("mlp", init, loss, make)


def resnet_block(p: Params, x: Array, stride: int) -> Array:
    """Two convolutions, and a shortcut around them."""
    y = jax.nn.relu(batch_norm(p["norm1"], convolve(p["conv1"], x, stride)))
    y = batch_norm(p["norm2"], convolve(p["conv2"], y))
    if "shortcut" in p:
        x = convolve(p["shortcut"], x, stride)
    return jax.nn.relu(x + y)


def resnet(batch: int, size: int, widths: Sequence[int], remat: Remat = PLAIN) -> Model:
    """A stem, and a block of two convolutions in each stage."""

    def block(key: Array, channels: int, filters: int) -> Params:
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

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(widths) + 2)
        channels = (widths[0], *widths)
        return {
            "stem": conv(keys[0], 3, 3, widths[0]),
            "norm": norm(widths[0]),
            "blocks": [block(*sizes) for sizes in zip(keys[2:], channels, widths, strict=False)],
            "head": dense(keys[1], widths[-1], 10),
        }

    def loss(params: Params, data: Batch) -> Array:
        images, labels = data
        x = jax.nn.relu(batch_norm(params["norm"], convolve(params["stem"], images)))
        strides = [1] + [2] * (len(params["blocks"]) - 1)
        x = remat.chain([partial(resnet_block, stride=n) for n in strides], params["blocks"], x)
        return cross_entropy(linear(params["head"], x.mean((1, 2))), labels)

    make = partial(images_and_labels, batch=batch, size=size, classes=10)
    return Model("resnet", init, loss, make)


def vit(
    batch: int,
    size: int,
    patch: int,
    layers: int,
    width: int,
    heads: int,
    remat: Remat = PLAIN,
) -> Model:
    """A vision transformer: patches by a strided convolution, mean over positions at the end."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, layers + 3)
        return {
            "patch": conv(keys[0], patch, 3, width),
            "position": 0.02 * jax.random.normal(keys[1], ((size // patch) ** 2, width)),
            "blocks": [transformer_block(k, width) for k in keys[3:]],
            "norm": norm(width),
            "head": dense(keys[2], width, 10),
        }

    def loss(params: Params, data: Batch) -> Array:
        images, labels = data
        x = convolve(params["patch"], images, patch)
        x = x.reshape(batch, -1, width) + params["position"]
        block = partial(transform, heads=heads, causal=False)
        x = remat.chain([block] * layers, params["blocks"], x)
        x = layer_norm(params["norm"], x).mean(1)
        return cross_entropy(linear(params["head"], x), labels)

    make = partial(images_and_labels, batch=batch, size=size, classes=10)
    return Model("vit", init, loss, make, {"heads": heads, "patch": patch})


def unet(batch: int, size: int, widths: Sequence[int], remat: Remat = PLAIN) -> Model:
    """Two convolutions a level, max-pooling down, transposed convolutions up, and skips."""

    def pair(key: Array, channels: int, filters: int) -> Params:
        first, second = jax.random.split(key)
        return {
            "conv1": conv(first, 3, channels, filters),
            "bias1": jnp.zeros(filters),
            "conv2": conv(second, 3, filters, filters),
            "bias2": jnp.zeros(filters),
        }

    def apply(p: Params, x: Array) -> Array:
        x = jax.nn.relu(convolve(p["conv1"], x) + p["bias1"])
        return jax.nn.relu(convolve(p["conv2"], x) + p["bias2"])

    def init(key: Array) -> Params:
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

    def loss(params: Params, data: Batch) -> Array:
        x, target = data
        level = remat.wrap(apply)
        skips = []
        for p in params["down"][:-1]:
            x = level(p, x)
            skips.append(x)
            x = max_pool(x)
        x = level(params["down"][-1], x)
        for widen, p in zip(params["widen"], params["up"], strict=True):
            wide = lax.conv_transpose(x, widen, (2, 2), "SAME")
            x = level(p, jnp.concatenate([wide, skips.pop()], axis=-1))
        logits = convolve(params["head"], x)
        return (jax.nn.softplus(logits) - target * logits).mean()

    def make(key: Array) -> Batch:
        image_key, mask_key = jax.random.split(key)
        images = jax.random.normal(image_key, (batch, size, size, 3))
        mask = jax.random.bernoulli(mask_key, 0.5, (batch, size, size, 1))
        return images, mask.astype(jnp.float32)

    return Model("unet", init, loss, make)


def vae(batch: int, width: int, hidden: int, latent: int, remat: Remat = PLAIN) -> Model:
    """Negative evidence bound with the reparametrisation `z = mean + exp(logvar / 2) * noise`."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "encode": dense(keys[0], width, hidden),
            "posterior": dense(keys[1], hidden, 2 * latent),
            "decode": dense(keys[2], latent, hidden),
            "pixels": dense(keys[3], hidden, width),
        }

    def layers(first: str, second: str, params: Params, x: Array) -> Array:
        return linear(params[second], jax.nn.silu(linear(params[first], x)))

    def loss(params: Params, data: Batch) -> Array:
        x, key = data
        posterior = remat.wrap(partial(layers, "encode", "posterior"))(params, x)
        mean, logvar = jnp.split(posterior, 2, axis=-1)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        logits = remat.wrap(partial(layers, "decode", "pixels"))(params, z)
        nll = -(x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)).sum(-1)
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1)
        return (nll + kl).mean()

    def make(key: Array) -> Batch:
        x_key, noise_key = jax.random.split(key)
        return jax.random.uniform(x_key, (batch, width)), noise_key

    def portable(data: Batch) -> Batch:
        x, key = data
        return x, jax.random.normal(key, (batch, latent))

    return Model("vae", init, loss, make, {}, portable)
