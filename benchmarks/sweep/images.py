"""Networks over images, points and rays, as an outsider writes them.

Sources: Liu et al. 2021 (windows that shift), Liu et al. 2022 (ConvNeXt), Huang et al. 2017 (dense
blocks), Ho et al. 2020 (denoising), van den Oord et al. 2017 (codes), Dinh et al. 2017 (couplings),
Mildenhall et al. 2020 (rays), Chen et al. 2020 (contrasts), Gulrajani et al. 2017 (penalty).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from backpass.bench.models.layers import conv, convolve, dense, linear, norm
from backpass.bench.models.model import Batch, Model, Params


def images(key: Array, batch: int, size: int, channels: int = 3) -> Array:
    return jax.random.normal(key, (batch, size, size, channels))


def group_norm(p: Params, x: Array, groups: int) -> Array:
    n, h, w, c = x.shape
    parts = x.reshape(n, h, w, groups, c // groups)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = parts.var((1, 2, 4), keepdims=True)
    return ((parts - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]


def layer_norm(p: Params, x: Array) -> Array:
    return jax.nn.standardize(x, -1, epsilon=1e-5) * p["scale"] + p["bias"]


def swin(batch: int = 8, size: int = 32, width: int = 64, window: int = 8, depth: int = 4) -> Model:
    """Attention in windows, every second layer's moved by half of one, with a bias by position."""
    heads = 4

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 5 * depth + 2))
        block = lambda: {
            "norm": norm(width),
            "qkv": dense(next(keys), width, 3 * width),
            "out": dense(next(keys), width, width),
            "bias": 0.1 * jax.random.normal(next(keys), (heads, window**2, window**2)),
            "mlp_norm": norm(width),
            "up": dense(next(keys), width, 4 * width),
            "down": dense(next(keys), 4 * width, width),
        }
        blocks = [block() for _ in range(depth)]
        return {
            "patch": conv(next(keys), 2, 3, width),
            "blocks": blocks,
            "head": dense(next(keys), width, 10),
        }

    def attend(p: Params, x: Array) -> Array:
        n, h, w, c = x.shape
        y = x.reshape(n, h // window, window, w // window, window, c).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, window**2, c)
        q, k, v = jnp.split(linear(p["qkv"], y).reshape(*y.shape[:2], heads, -1), 3, -1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * (c // heads) ** -0.5 + p["bias"]
        y = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, -1), v).reshape(y.shape)
        y = linear(p["out"], y).reshape(n, h // window, w // window, window, window, c)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)

    def loss(params: Params, data: Batch) -> Array:
        pixels, labels = data
        x = convolve(params["patch"], pixels, 2)
        for i, p in enumerate(params["blocks"]):
            shift = window // 2 if i % 2 else 0
            y = jnp.roll(layer_norm(p["norm"], x), (-shift, -shift), (1, 2))
            x = x + jnp.roll(attend(p, y), (shift, shift), (1, 2))
            x = x + linear(p["down"], jax.nn.gelu(linear(p["up"], layer_norm(p["mlp_norm"], x))))
        logits = linear(params["head"], x.mean((1, 2)))
        return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, 10) * jax.nn.log_softmax(logits), -1))

    def draw(key: Array) -> Batch:
        return images(key, batch, size), jax.random.randint(key, (batch,), 0, 10)

    return Model("swin", init, loss, draw)


def convnext(batch: int = 8, size: int = 32, width: int = 48, depth: int = 4) -> Model:
    """Depthwise kernels of 7x7, a wide pair of products, layers scaled and at times dropped."""

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 3 * depth + 2))
        block = lambda: {
            "depthwise": 0.1 * jax.random.normal(next(keys), (7, 7, 1, width)),
            "norm": norm(width),
            "up": dense(next(keys), width, 4 * width),
            "down": dense(next(keys), 4 * width, width),
            "scale": jnp.full(width, 0.1),
        }
        blocks = [block() for _ in range(depth)]
        return {
            "stem": conv(next(keys), 2, 3, width),
            "blocks": blocks,
            "head": dense(next(keys), width, 10),
        }

    def loss(params: Params, data: Batch) -> Array:
        pixels, labels, key = data
        x = convolve(params["stem"], pixels, 2)
        for i, p in enumerate(params["blocks"]):
            y = lax.conv_general_dilated(
                x,
                p["depthwise"],
                (1, 1),
                "SAME",
                feature_group_count=width,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            y = linear(
                p["down"], jax.nn.gelu(linear(p["up"], layer_norm(p["norm"], y)), approximate=False)
            )
            stays = jax.random.bernoulli(jax.random.fold_in(key, i), 0.9, (batch, 1, 1, 1))
            x = x + jnp.where(stays, p["scale"] * y / 0.9, 0.0)
        logits = linear(params["head"], x.mean((1, 2)))
        return (jax.nn.logsumexp(logits, -1) - logits[jnp.arange(batch), labels]).mean()

    def draw(key: Array) -> Batch:
        return images(key, batch, size), jax.random.randint(key, (batch,), 0, 10), key

    return Model("convnext", init, loss, draw)


def densenet(batch: int = 16, size: int = 32, growth: int = 16, depth: int = 8) -> Model:
    """Every layer reads all before it, side by side."""
    widths = [16 + i * growth for i in range(depth)]

    def init(key: Array) -> Params:
        keys = jax.random.split(key, depth + 2)
        layers = [
            {"norm": norm(width), "w": conv(k, 3, width, growth)}
            for width, k in zip(widths, keys[2:], strict=True)
        ]
        head = dense(keys[1], widths[-1] + growth, 10)
        return {"stem": conv(keys[0], 3, 3, 16), "layers": layers, "head": head}

    def loss(params: Params, data: Batch) -> Array:
        pixels, labels = data
        x = convolve(params["stem"], pixels)
        for p in params["layers"]:
            y = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
            y = jax.nn.relu(y * p["norm"]["scale"] + p["norm"]["bias"])
            x = jnp.concatenate([x, convolve(p["w"], y)], -1)
        logits = linear(params["head"], x.mean((1, 2)))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    def draw(key: Array) -> Batch:
        return images(key, batch, size), jax.random.randint(key, (batch,), 0, 10)

    return Model("densenet", init, loss, draw)


def diffusion(batch: int = 8, size: int = 32, width: int = 32) -> Model:
    """A U-Net that is told the time, with attention at the bottom; noise drawn in the loss."""

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 32))

        def block(inside: int, out: int) -> Params:
            return {
                "norm1": norm(inside),
                "conv1": conv(next(keys), 3, inside, out),
                "time": dense(next(keys), 4 * width, out),
                "norm2": norm(out),
                "conv2": conv(next(keys), 3, out, out),
                "skip": conv(next(keys), 1, inside, out),
            }

        return {
            "time": [dense(next(keys), width, 4 * width), dense(next(keys), 4 * width, 4 * width)],
            "stem": conv(next(keys), 3, 3, width),
            "down1": block(width, width),
            "down2": block(width, 2 * width),
            "qkv": dense(next(keys), 2 * width, 6 * width),
            "out": dense(next(keys), 2 * width, 2 * width),
            "up2": block(4 * width, width),
            "up1": block(2 * width, width),
            "last": conv(next(keys), 3, width, 3),
        }

    def residual(p: Params, x: Array, time: Array) -> Array:
        y = convolve(p["conv1"], jax.nn.silu(group_norm(p["norm1"], x, 8)))
        y = y + linear(p["time"], jax.nn.silu(time))[:, None, None]
        y = convolve(p["conv2"], jax.nn.silu(group_norm(p["norm2"], y, 8)))
        return y + convolve(p["skip"], x)

    def predict(params: Params, x: Array, times: Array) -> Array:
        angles = times[:, None] * jnp.exp(-jnp.arange(width // 2) * (4 / (width // 2)))
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        time = linear(params["time"][1], jax.nn.silu(linear(params["time"][0], time)))
        first = residual(params["down1"], convolve(params["stem"], x), time)
        second = residual(params["down2"], first[:, ::2, ::2], time)
        low = second[:, ::2, ::2]
        n, h, w, c = low.shape
        q, k, v = jnp.split(linear(params["qkv"], low.reshape(n, h * w, c)), 3, -1)
        weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / c**0.5, -1)
        low = low + linear(params["out"], weights @ v).reshape(low.shape)
        x = jax.image.resize(low, (n, 2 * h, 2 * w, c), "nearest")
        x = residual(params["up2"], jnp.concatenate([x, second], -1), time)
        x = jax.image.resize(x, (n, 4 * h, 4 * w, width), "bilinear")
        return convolve(
            params["last"], residual(params["up1"], jnp.concatenate([x, first], -1), time)
        )

    def loss(params: Params, data: Batch) -> Array:
        pixels, key = data
        keys = jax.random.split(key)
        times = jax.random.uniform(keys[0], (batch,))
        noise = jax.random.normal(keys[1], pixels.shape)
        level = jnp.cos(0.5 * jnp.pi * times)[:, None, None, None]
        noisy = level * pixels + jnp.sqrt(1 - level**2) * noise
        return jnp.mean((predict(params, noisy, 1000 * times) - noise) ** 2)

    return Model("diffusion", init, loss, lambda key: (images(key, batch, size), key))


def vqvae(batch: int = 16, size: int = 32, width: int = 64, codes: int = 256) -> Model:
    """Codes by the nearest, gradients straight through them."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 6)
        return {
            "in1": conv(keys[0], 4, 3, width),
            "in2": conv(keys[1], 4, width, width),
            "codes": jax.random.normal(keys[2], (codes, width)),
            "out1": conv(keys[3], 4, width, width),
            "out2": conv(keys[4], 4, width, 3),
        }

    def loss(params: Params, pixels: Batch) -> Array:
        transpose = partial(
            lax.conv_transpose,
            strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        z = convolve(params["in2"], jax.nn.relu(convolve(params["in1"], pixels, 2)), 2)
        far = (
            jnp.sum(z**2, -1, keepdims=True)
            - 2 * z @ params["codes"].T
            + jnp.sum(params["codes"] ** 2, -1)
        )
        q = params["codes"][jnp.argmin(far, -1)]
        commitment = jnp.mean((z - lax.stop_gradient(q)) ** 2)
        codebook = jnp.mean((q - lax.stop_gradient(z)) ** 2)
        q = z + lax.stop_gradient(q - z)
        x = transpose(jax.nn.relu(transpose(q, params["out1"])), params["out2"])
        return jnp.mean(jnp.abs(x - pixels)) + codebook + 0.25 * commitment

    return Model("vqvae", init, loss, partial(images, batch=batch, size=size))


def flow(batch: int = 512, width: int = 32, hidden: int = 256, depth: int = 8) -> Model:
    """Affine couplings with a learned linear map between them, whose volume is a determinant."""
    half = width // 2

    def init(key: Array) -> Params:
        def layer(key: Array) -> Params:
            keys = jax.random.split(key, 4)
            return {
                "turn": jnp.eye(width) + 0.05 * jax.random.normal(keys[0], (width, width)),
                "one": dense(keys[1], half, hidden),
                "two": dense(keys[2], hidden, hidden),
                "last": dense(keys[3], hidden, width),
            }

        return [layer(key) for key in jax.random.split(key, depth)]

    def loss(params: Params, x: Batch) -> Array:
        volume = jnp.zeros(batch)
        for p in params:
            x = x @ p["turn"]
            volume = volume + jnp.linalg.slogdet(p["turn"])[1]
            left, right = x[:, :half], x[:, half:]
            h = jnp.tanh(linear(p["two"], jax.nn.leaky_relu(linear(p["one"], left))))
            scale, move = jnp.split(linear(p["last"], h), 2, -1)
            scale = 2 * jnp.tanh(scale / 2)
            x = jnp.concatenate([left, right * jnp.exp(scale) + move], -1)
            volume = volume + scale.sum(-1)
        return jnp.mean(0.5 * jnp.sum(x**2, -1) - volume)

    return Model("flow", init, loss, partial(jax.random.normal, shape=(batch, width)))


def rays(count: int = 128, samples: int = 32, width: int = 128, depth: int = 6) -> Model:
    """Colours along rays: waves of the position, a deep MLP, and light that is used up."""
    bands = 8

    def init(key: Array) -> Params:
        keys = jax.random.split(key, depth + 2)
        inside = 6 * bands
        sizes = [inside, *[width] * depth]
        layers = [
            dense(k, a + (inside if i == depth // 2 else 0), b)
            for i, (k, a, b) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=False))
        ]
        return {"layers": layers, "out": dense(keys[-1], width, 4)}

    def loss(params: Params, data: Batch) -> Array:
        starts, ways, colours, key = data
        depths = jnp.sort(jax.random.uniform(key, (count, samples), minval=0.1, maxval=2.0), -1)
        points = starts[:, None] + ways[:, None] * depths[..., None]
        angles = points[..., None] * 2.0 ** jnp.arange(bands)
        wave = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(count, samples, -1)
        x = wave
        for i, p in enumerate(params["layers"]):
            x = jnp.concatenate([x, wave], -1) if i == depth // 2 else x
            x = jax.nn.relu(linear(p, x))
        out = linear(params["out"], x)
        steps = jnp.diff(depths, append=jnp.full((count, 1), 2.5))
        alpha = 1 - jnp.exp(-jax.nn.softplus(out[..., 3]) * steps)
        through = jnp.cumprod(1 - alpha + 1e-6, -1)
        weights = alpha * jnp.concatenate([jnp.ones((count, 1)), through[:, :-1]], -1)
        seen = jnp.sum(weights[..., None] * jax.nn.sigmoid(out[..., :3]), 1)
        return jnp.mean((seen - colours) ** 2)

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 4)
        ways = jax.random.normal(keys[1], (count, 3))
        ways = ways / jnp.linalg.norm(ways, axis=-1, keepdims=True)
        return (
            jax.random.normal(keys[0], (count, 3)),
            ways,
            jax.random.uniform(keys[2], (count, 3)),
            keys[3],
        )

    return Model("rays", init, loss, draw)


def contrasts(batch: int = 256, wide: int = 512, depth: int = 6) -> Model:
    """Two noisy views of each example, told apart from all others; weights shared by both."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, depth)
        return [{**dense(k, wide, wide), "norm": norm(wide)} for k in keys]

    def embed(params: Params, x: Array) -> Array:
        for p in params:
            y = linear(p, x)
            y = (y - y.mean(0)) * lax.rsqrt(y.var(0) + 1e-5) * p["norm"]["scale"] + p["norm"][
                "bias"
            ]
            x = x + jax.nn.relu(y)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    def loss(params: Params, data: Batch) -> Array:
        x, key = data
        one, two = jax.random.split(key)
        views = [x + 0.1 * jax.random.normal(k, x.shape) for k in (one, two)]
        z = jnp.concatenate([embed(params, view) for view in views])
        scores = z @ z.T / 0.1
        scores = scores - 1e9 * jnp.eye(2 * batch)
        targets = jnp.roll(jnp.arange(2 * batch), batch)
        return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(2 * batch), targets])

    return Model("contrasts", init, loss, lambda key: (jax.random.normal(key, (batch, wide)), key))


def penalty(batch: int = 16, size: int = 32, width: int = 32) -> Model:
    """A critic whose slope at points between real and made images is held at one."""

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 5)
        sizes = [3, width, 2 * width, 4 * width]
        layers = [conv(k, 4, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)]
        return {"layers": layers, "out": dense(keys[-1], 4 * width * (size // 8) ** 2, 1)}

    def critic(params: Params, x: Array) -> Array:
        for w in params["layers"]:
            x = jax.nn.leaky_relu(convolve(w, x, 2), 0.2)
        return linear(params["out"], x.reshape(len(x), -1))[:, 0]

    def loss(params: Params, data: Batch) -> Array:
        real, made, share = data
        between = share * real + (1 - share) * made
        slopes = jax.grad(lambda x: critic(params, x).sum())(between)
        norms = jnp.sqrt(jnp.sum(slopes**2, (1, 2, 3)) + 1e-12)
        return (
            critic(params, made).mean()
            - critic(params, real).mean()
            + 10 * ((norms - 1) ** 2).mean()
        )

    def draw(key: Array) -> Batch:
        keys = jax.random.split(key, 3)
        return (
            images(keys[0], batch, size),
            images(keys[1], batch, size),
            jax.random.uniform(keys[2], (batch, 1, 1, 1)),
        )

    return Model("penalty", init, loss, draw)
