"""Networks in plain `jax.numpy`, small: each row is a loss and its arguments, the first differentiated.

Parameters are drawn by `Init`, so that a network is written once, as the function that reads them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

from models.comparison import draw

Tree = Any


class Init:
    """Collects parameters: `p = Init(seed); p(3, 4)` is a matrix of that shape, scaled down."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Any:
        return jnp.asarray(0.5 * self.rng.normal(size=shape))


def labels(seed: int, count: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).integers(0, count, shape))


def cross_entropy(logits: Any, label: Any) -> Any:
    """Mean negative log-likelihood of integer labels."""
    logp = nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, label[..., None], -1).mean()


def layer_norm(p: Tree, x: Any) -> Any:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"]


def rms_norm(scale: Any, x: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def norm(p: Init, d: int) -> Tree:
    return {"scale": 1 + p(d), "bias": p(d)}


def attention(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    """softmax(q k^T / sqrt(d)) v for `[batch, time, heads, d]`."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)


def heads(x: Any, n: int) -> Any:
    return x.reshape(*x.shape[:-1], n, -1)


# Multilayer perceptrons


def mlp_params(p: Init, *sizes: int) -> list[Tree]:
    return [{"w": p(m, n), "b": p(n)} for m, n in zip(sizes, sizes[1:], strict=False)]


def mlp(params: list[Tree], x: Any, act: Callable[[Any], Any] = jnp.tanh) -> Any:
    *hidden, last = params
    for layer in hidden:
        x = act(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def mlp_loss(params: list[Tree], x: Any, y: Any, act: Callable[[Any], Any] = jnp.tanh) -> Any:
    return cross_entropy(mlp(params, x, act), y)


def mlp_scanned(stack: Tree, x: Any) -> Any:
    def layer(h: Any, p: Tree) -> tuple[Any, None]:
        return jnp.tanh(h @ p["w"] + p["b"]) + h, None

    return jnp.mean(lax.scan(layer, x, stack)[0] ** 2)


def dropout_mlp(params: list[Tree], x: Any, key: Any) -> Any:
    first, second = params
    h = nn.relu(x @ first["w"] + first["b"])
    keep = jax.random.bernoulli(key, 0.7, h.shape)
    return jnp.sum((jnp.where(keep, h / 0.7, 0) @ second["w"]) ** 2)


# Convolutions


def conv(x: Any, w: Any, stride: int = 1, groups: int = 1, **options: Any) -> Any:
    return lax.conv_general_dilated(
        x,
        w,
        (stride,) * (x.ndim - 2),
        options.pop("padding", "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        **options,
    )


def batch_norm(p: Tree, state: Tree, x: Any) -> tuple[Any, Tree]:
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    new = jax.tree.map(lambda s, v: 0.9 * s + 0.1 * v, state, {"mean": mean, "var": var})
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"], new


def group_norm(p: Tree, x: Any, groups: int) -> Any:
    g = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), g.ndim - 1)
    g = (g - g.mean(axes, keepdims=True)) / jnp.sqrt(g.var(axes, keepdims=True) + 1e-5)
    return g.reshape(x.shape) * p["scale"] + p["bias"]


def resnet_params(p: Init) -> Tree:
    block = {"a": p(3, 3, 4, 8), "b": p(3, 3, 8, 8), "na": norm(p, 8), "nb": norm(p, 8)}
    return {"stem": p(3, 3, 3, 4), "block": block, "skip": p(1, 1, 4, 8), "head": p(8, 5)}


def resnet_batch_norm(params: Tree, state: Tree, x: Any, y: Any) -> tuple[Any, Tree]:
    h, block = nn.relu(conv(x, params["stem"])), params["block"]
    z, first = batch_norm(block["na"], state["na"], conv(h, block["a"], stride=2))
    z, second = batch_norm(block["nb"], state["nb"], conv(nn.relu(z), block["b"]))
    h = nn.relu(z + conv(h, params["skip"], stride=2))
    loss = cross_entropy(h.mean((1, 2)) @ params["head"], y)
    return loss, {"na": first, "nb": second}


def resnet_group_norm(params: Tree, x: Any, y: Any) -> Any:
    h, block = nn.relu(conv(x, params["stem"])), params["block"]
    z = nn.relu(group_norm(block["na"], conv(h, block["a"], stride=2), 4))
    z = group_norm(block["nb"], conv(z, block["b"]), 2)
    h = nn.relu(z + conv(h, params["skip"], stride=2))
    return cross_entropy(h.mean((1, 2)) @ params["head"], y)


def lenet(params: Tree, x: Any, y: Any) -> Any:
    for w in params["convs"]:
        x = nn.relu(conv(x, w))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return mlp_loss(params["head"], x.reshape(x.shape[0], -1), y)


def mobile(params: Tree, x: Any) -> Any:
    """Depthwise, pointwise, average pool, squeeze and excite."""
    x = nn.hard_swish(conv(x, params["deep"], groups=x.shape[-1]))
    x = conv(x, params["point"])
    x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME") / 4
    gate = nn.sigmoid(nn.relu(x.mean((1, 2)) @ params["down"]) @ params["up"])
    return jnp.sum((x * gate[:, None, None]) ** 2)


def unet(params: Tree, x: Any, y: Any) -> Any:
    skips = []
    for w in params["down"]:
        x = nn.silu(conv(x, w))
        skips.append(x)
        x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    x = nn.silu(conv(x, params["middle"]))
    for w, kernel, skip in zip(params["up"], params["out"], skips[::-1], strict=True):
        x = lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = nn.silu(conv(jnp.concatenate([x, skip], -1), kernel))
    return jnp.mean((x - y) ** 2)


def wavenet(params: list[Tree], x: Any) -> Any:
    """Causal dilated convolutions with gates and skips."""
    skips = 0.0
    for i, p in enumerate(params):
        pad = [(2**i, 0)]
        z = lax.conv_general_dilated(
            x, p["w"], (1,), pad, rhs_dilation=(2**i,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        a, b = jnp.split(z, 2, axis=-1)
        z = jnp.tanh(a) * nn.sigmoid(b)
        x, skips = x + z, skips + z @ p["skip"]
    return jnp.mean(nn.relu(skips) ** 2)


# Recurrent


def lstm(p: Tree, x: Any, y: Any) -> Any:
    def cell(carry: Any, x: Any) -> tuple[Any, Any]:
        h, c = carry
        i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4, -1)
        c = nn.sigmoid(f + 1) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[0], p["wh"].shape[0]))
    _, hs = lax.scan(cell, (zero, zero), x.swapaxes(0, 1))
    return cross_entropy(hs.swapaxes(0, 1) @ p["out"], y)


def gru_both_ways(p: Tree, x: Any) -> Any:
    def run(q: Tree, reverse: bool) -> Any:
        def cell(h: Any, x: Any) -> tuple[Any, Any]:
            r, z = jnp.split(nn.sigmoid(x @ q["x"] + h @ q["h"]), 2, -1)
            h = (1 - z) * h + z * jnp.tanh(x @ q["nx"] + (r * h) @ q["nh"])
            return h, h

        init = jnp.zeros((x.shape[1], q["nh"].shape[0]))
        return lax.scan(cell, init, x, reverse=reverse, unroll=2)[1]

    return jnp.mean(jnp.concatenate([run(p["f"], False), run(p["b"], True)], -1) ** 2)


def rnn_masked(p: Tree, x: Any, lengths: Any) -> Any:
    """Sequences of different lengths: an integer counter is carried along."""

    def cell(carry: Any, x: Any) -> tuple[Any, Any]:
        t, h = carry
        new = jnp.tanh(x @ p["x"] + h @ p["h"])
        h = jnp.where((t < lengths)[:, None], new, h)
        return (t + 1, h), h.sum(-1)

    (_, h), ys = lax.scan(cell, (0, jnp.zeros((x.shape[1], p["h"].shape[0]))), x)
    return jnp.sum(h**2) + ys.mean()


def linear_recurrence(p: Tree, x: Any) -> Any:
    """A state-space layer by `associative_scan`."""
    a = nn.sigmoid(p["a"]) * jnp.ones_like(x)

    def combine(s: Any, t: Any) -> Any:
        return s[0] * t[0], t[0] * s[1] + t[1]

    _, h = lax.associative_scan(combine, (a, p["b"] * x), axis=1)
    return jnp.mean((h @ p["c"]) ** 2)


def state_space_fft(p: Tree, u: Any) -> Any:
    """S4-like: a diagonal complex state space as a long convolution by FFT."""
    length = u.shape[-1]
    lam = -jnp.exp(p["real"]) + 1j * p["imag"]
    kernel = (p["c"] * jnp.exp(lam * jnp.arange(length)[:, None])).real.sum(-1)
    spectrum = jnp.fft.rfft(kernel, 2 * length) * jnp.fft.rfft(u, 2 * length)
    return jnp.mean(jnp.fft.irfft(spectrum, 2 * length)[..., :length] ** 2)


# Transformers


def block_params(p: Init, d: int, ff: int) -> Tree:
    return {
        "ln1": norm(p, d),
        "qkv": p(d, 3 * d),
        "out": p(d, d),
        "ln2": norm(p, d),
        "up": p(d, ff),
        "down": p(ff, d),
    }


def block(p: Tree, x: Any, mask: Any, n: int = 2) -> Any:
    q, k, v = (heads(t, n) for t in jnp.split(layer_norm(p["ln1"], x) @ p["qkv"], 3, -1))
    x = x + attention(q, k, v, mask).reshape(x.shape) @ p["out"]
    return x + nn.gelu(layer_norm(p["ln2"], x) @ p["up"]) @ p["down"]


def gpt_params(p: Init, depth: int = 2, d: int = 8, vocab: int = 11, time: int = 6) -> Tree:
    blocks = [block_params(p, d, 2 * d) for _ in range(depth)]
    return {"embed": p(vocab, d), "position": p(time, d), "blocks": blocks, "ln": norm(p, d)}


def gpt(params: Tree, tokens: Any, run: Callable[[list[Tree], Any, Any], Any]) -> Any:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = params["embed"][inputs] + params["position"][: inputs.shape[1]]
    mask = jnp.tril(jnp.ones((inputs.shape[1],) * 2, bool))
    x = run(params["blocks"], x, mask)
    return cross_entropy(layer_norm(params["ln"], x) @ params["embed"].T, targets)


def unrolled(blocks: list[Tree], x: Any, mask: Any) -> Any:
    for p in blocks:
        x = block(p, x, mask)
    return x


def checkpointed(blocks: list[Tree], x: Any, mask: Any, **options: Any) -> Any:
    for p in blocks:
        x = jax.checkpoint(block, static_argnums=3, **options)(p, x, mask, 2)
    return x


def scanned(blocks: list[Tree], x: Any, mask: Any, wrap: Any = lambda f: f) -> Any:
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    body = wrap(lambda h, p: (block(p, h, mask), None))
    return lax.scan(body, x, stacked)[0]


def llama(params: Tree, tokens: Any) -> Any:
    """RMSNorm, rotary positions, grouped queries, SwiGLU, untied head, z-loss."""
    x = params["embed"][tokens[:, :-1]]
    time, d = x.shape[1], 4
    angle = jnp.arange(time)[:, None] / 10000 ** (jnp.arange(0, d, 2) / d)
    sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]

    def rotate(t: Any) -> Any:
        a, b = t[..., ::2], t[..., 1::2]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(t.shape)

    for p in params["blocks"]:
        h = rms_norm(p["n1"], x)
        q, k, v = heads(h @ p["q"], 4), heads(h @ p["k"], 2), heads(h @ p["v"], 2)
        k, v = (jnp.repeat(t, 2, axis=2) for t in (rotate(k), v))
        mask = jnp.tril(jnp.ones((time, time), bool))
        x = x + attention(rotate(q), k, v, mask).reshape(*x.shape[:2], -1) @ p["o"]
        h = rms_norm(p["n2"], x)
        x = x + (nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
    logits = x @ params["head"]
    z = jnp.mean(nn.logsumexp(logits, axis=-1) ** 2)
    return cross_entropy(logits, tokens[:, 1:]) + 1e-2 * z


def llama_params(p: Init, d: int = 16, ff: int = 12, vocab: int = 7) -> Tree:
    block = {
        "n1": 1 + p(d),
        "n2": 1 + p(d),
        "q": p(d, 16),
        "k": p(d, 8),
        "v": p(d, 8),
        "o": p(16, d),
        "gate": p(d, ff),
        "up": p(d, ff),
        "down": p(ff, d),
    }
    return {"embed": p(vocab, d), "blocks": [block], "head": p(d, vocab)}


def vit(params: Tree, image: Any, y: Any) -> Any:
    b, side, _, c = image.shape
    patches = image.reshape(b, side // 2, 2, side // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = patches.reshape(b, -1, 4 * c) @ params["patch"]
    x = jnp.concatenate([jnp.broadcast_to(params["class"], (b, 1, x.shape[-1])), x], 1)
    x = unrolled(params["blocks"], x + params["position"], None)
    return cross_entropy(x[:, 0] @ params["head"], y)


def encoder_decoder(p: Tree, source: Any, target: Any) -> Any:
    memory = block(p["encoder"], source, None)
    mask = jnp.tril(jnp.ones((target.shape[1],) * 2, bool))
    x = block(p["decoder"], target, mask)
    q, k, v = heads(x @ p["q"], 2), heads(memory @ p["k"], 2), heads(memory @ p["v"], 2)
    return jnp.mean((x + attention(q, k, v).reshape(x.shape)) ** 2)


def library_attention(p: Tree, x: Any, causal: bool) -> Any:
    q, k, v = (heads(x @ p[name], 2) for name in "qkv")
    bias = p["bias"][:, None, None] * jnp.arange(x.shape[1])
    out = nn.dot_product_attention(q, k, v, bias=bias[None], is_causal=causal)
    return jnp.sum(out**2)


def linear_attention(p: Tree, x: Any) -> Any:
    q, k, v = nn.elu(x @ p["q"]) + 1, nn.elu(x @ p["k"]) + 1, x @ p["v"]

    def step(state: Any, qkv: Any) -> tuple[Any, Any]:
        s, z = state
        q, k, v = qkv
        s, z = s + k[:, :, None] * v[:, None], z + k
        return (s, z), jnp.einsum("bd,bde->be", q, s) / jnp.sum(q * z, -1, keepdims=True)

    b, _, d = q.shape
    init = jnp.zeros((b, d, d)), jnp.zeros((b, d))
    _, out = lax.scan(step, init, jax.tree.map(lambda t: t.swapaxes(0, 1), (q, k, v)))
    return jnp.sum(out**2)


def decode_with_cache(p: Tree, x: Any) -> Any:
    """Keys and values are written into a cache that the loop carries."""
    b, time, d = x.shape

    def step(cache: Any, t: Any) -> tuple[Any, Any]:
        now = lax.dynamic_slice_in_dim(x, t, 1, 1)
        k = lax.dynamic_update_slice_in_dim(cache[0], now @ p["k"], t, 1)
        v = lax.dynamic_update_slice_in_dim(cache[1], now @ p["v"], t, 1)
        mask = (jnp.arange(time) <= t)[None, None, None]
        out = attention(*(heads(y, 2) for y in (now @ p["q"], k, v)), mask)
        return (k, v), out

    empty = jnp.zeros((b, time, d))
    return jnp.sum(lax.scan(step, (empty, empty), jnp.arange(time))[1] ** 2)


# Mixtures


def moe_dense(p: Tree, x: Any) -> Any:
    """The two best experts of each token by `top_k`, all experts run; a balance loss."""
    gates = nn.softmax(x @ p["router"])
    best, index = lax.top_k(gates, 2)
    best = best / best.sum(-1, keepdims=True)
    mix = jnp.sum(nn.one_hot(index, gates.shape[-1], dtype=x.dtype) * best[..., None], 1)
    hidden = nn.relu(jnp.einsum("td,edf->tef", x, p["up"]))
    out = jnp.einsum("tef,efd,te->td", hidden, p["down"], mix)
    return jnp.mean(out**2) + 0.1 * jnp.sum(gates.mean(0) * (mix > 0).mean(0))


def moe_with_capacity(p: Tree, x: Any) -> Any:
    """Tokens are dispatched to slots of each expert, and dropped where it is full."""
    gates = nn.softmax(x @ p["router"])
    gate, expert = gates.max(-1), gates.argmax(-1)
    hot = nn.one_hot(expert, gates.shape[-1], dtype=jnp.int32)
    slot = ((jnp.cumsum(hot, 0) - 1) * hot).sum(-1)
    keep = slot < 3
    buffer = jnp.zeros((gates.shape[-1], 3, x.shape[-1]))
    buffer = buffer.at[expert, slot].add(jnp.where(keep[:, None], x, 0), mode="drop")
    out = jnp.einsum(
        "ecf,efd->ecd", nn.relu(jnp.einsum("ecd,edf->ecf", buffer, p["up"])), p["down"]
    )
    back = out.at[expert, slot].get(mode="fill", fill_value=0) * gate[:, None]
    return jnp.mean(jnp.where(keep[:, None], back, x) ** 2)


def moe_ragged(p: Tree, x: Any) -> Any:
    """Tokens sorted by expert and multiplied by `ragged_dot`."""
    gates = nn.softmax(x @ p["router"])
    expert = gates.argmax(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=gates.shape[-1]).astype(jnp.int32)
    out = lax.ragged_dot(x[order], p["up"], sizes)
    gate = jnp.take_along_axis(gates, expert[:, None], 1)
    return jnp.sum((out[jnp.argsort(order)] * gate) ** 2)


# Generative


def vae(p: Tree, x: Any, key: Any) -> Any:
    mean, logvar = jnp.split(mlp(p["encoder"], x), 2, -1)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    logits = mlp(p["decoder"], z)
    target = nn.sigmoid(x)
    likelihood = jnp.sum(target * nn.log_sigmoid(logits) + (1 - target) * nn.log_sigmoid(-logits))
    return -likelihood - 0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar))


def vq_vae(p: Tree, x: Any) -> Any:
    z = mlp(p["encoder"], x)
    distance = jnp.sum((z[:, None] - p["codes"]) ** 2, -1)
    code = p["codes"][distance.argmin(-1)]
    commit = jnp.mean((lax.stop_gradient(code) - z) ** 2)
    book = jnp.mean((code - lax.stop_gradient(z)) ** 2)
    out = mlp(p["decoder"], z + lax.stop_gradient(code - z))
    return jnp.mean((out - x) ** 2) + book + 0.25 * commit


def diffusion(p: list[Tree], x: Any, key: Any) -> Any:
    first, second = jax.random.split(key)
    t = jax.random.randint(first, (x.shape[0],), 0, 10)
    alpha = jnp.cumprod(1 - jnp.linspace(1e-4, 0.2, 10))[t][:, None]
    noise = jax.random.normal(second, x.shape)
    noisy = jnp.sqrt(alpha) * x + jnp.sqrt(1 - alpha) * noise
    time = t[:, None] * jnp.exp(-jnp.arange(4.0))
    inputs = jnp.concatenate([noisy, jnp.sin(time), jnp.cos(time)], -1)
    return jnp.mean((mlp(p, inputs, nn.silu) - noise) ** 2)


def real_nvp(params: list[Tree], x: Any) -> Any:
    logdet = 0.0
    for p in params:
        a, b = jnp.split(x, 2, -1)
        s, t = jnp.split(mlp(p, a), 2, -1)
        x = jnp.concatenate([b * jnp.exp(jnp.tanh(s)) + t, a], -1)
        logdet += jnp.tanh(s).sum(-1)
    return -jnp.mean(jax.scipy.stats.norm.logpdf(x).sum(-1) + logdet)


def gan_with_penalty(p: list[Tree], real: Any, fake: Any) -> Any:
    """WGAN-GP: the loss contains the norm of a gradient, by the user's own `jax.grad`."""
    between = 0.3 * real + 0.7 * fake
    slopes = jax.vmap(jax.grad(lambda x: mlp(p, x)[0]))(between)
    penalty = jnp.mean((jnp.linalg.norm(slopes, axis=-1) - 1) ** 2)
    return mlp(p, fake).mean() - mlp(p, real).mean() + 10 * penalty


def gumbel(p: Tree, x: Any, key: Any) -> Any:
    logits = x @ p["w"]
    soft = nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / 0.5)
    hard = nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=x.dtype)
    return jnp.sum(((hard + soft - lax.stop_gradient(soft)) @ p["v"]) ** 2)


# Everything else that has parameters


def graph_network(p: Tree, x: Any, sender: Any, receiver: Any) -> Any:
    for w in p["layers"]:
        message = nn.relu(jnp.concatenate([x[sender], x[receiver]], -1) @ w)
        x = x + jax.ops.segment_sum(message, receiver, x.shape[0])
    return jnp.sum(jax.ops.segment_max(x, jnp.arange(x.shape[0]) // 3, 2) ** 2)


def graph_attention(p: Tree, x: Any, adjacency: Any) -> Any:
    h = x @ p["w"]
    score = nn.leaky_relu((h @ p["a"])[:, None] + (h @ p["b"])[None], 0.2)
    return jnp.sum((nn.softmax(score, where=adjacency, axis=-1) @ h) ** 2)


def nerf(p: list[Tree], points: Any, delta: Any) -> Any:
    """Positional encoding, then volume rendering."""
    waves = points[..., None] * 2.0 ** jnp.arange(2)
    features = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(*points.shape[:-1], -1)
    out = mlp(p, features, nn.relu)
    density, colour = nn.softplus(out[..., 0]), nn.sigmoid(out[..., 1:])
    alpha = 1 - jnp.exp(-density * delta)
    through = jnp.cumprod(jnp.concatenate([jnp.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], 1), 1)
    return jnp.mean(jnp.sum((alpha * through[:, :-1])[..., None] * colour, 1) ** 2)


def spatial_transformer(p: Tree, image: Any) -> Any:
    grid = jnp.stack(jnp.meshgrid(jnp.arange(4.0), jnp.arange(4.0), indexing="ij"))
    warped = jnp.einsum("ij,jhw->ihw", jnp.eye(2) + 0.1 * p["a"], grid) + p["t"][:, None, None]
    return jnp.sum(jax.scipy.ndimage.map_coordinates(image, warped, 1, mode="nearest") ** 2)


def lora(p: Tree, frozen: Tree, x: Any) -> Any:
    for low, high, w in zip(p["a"], p["b"], frozen, strict=True):
        x = jnp.tanh(x @ w + (x @ low) @ high)
    return jnp.mean(x**2)


def weight_norm(p: Tree, x: Any) -> Any:
    w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def spectral_norm(p: Tree, x: Any, u: Any) -> Any:
    v = lax.stop_gradient(p["w"].T @ u)
    v = v / jnp.linalg.norm(v)
    sigma = u @ p["w"] @ v
    return jnp.sum((x @ (p["w"] / sigma)) ** 2)


def hypernetwork(p: list[Tree], task: Any, x: Any) -> Any:
    w = mlp(p, task).reshape(-1, 3, 2)
    return jnp.sum(jnp.tanh(jnp.einsum("bi,bij->bj", x, w)) ** 2)


def matrix_factors(p: Tree, user: Any, item: Any, rating: Any) -> Any:
    found = jnp.sum(p["users"][user] * p["items"][item], -1) + p["bias"][user]
    return jnp.mean((found - rating) ** 2) + 1e-2 * sum(jnp.sum(x**2) for x in p.values())


def word2vec(p: Tree, centre: Any, context: Any, negative: Any) -> Any:
    v = p["in"][centre]
    good = nn.log_sigmoid(jnp.sum(v * p["out"][context], -1))
    bad = nn.log_sigmoid(-jnp.einsum("bd,bkd->bk", v, p["out"][negative])).sum(-1)
    return -jnp.mean(good + bad)


def kolmogorov_arnold(p: Tree, x: Any) -> Any:
    """Splines on each edge: radial bases with learned coefficients."""
    basis = jnp.exp(-((x[..., None] - jnp.linspace(-1, 1, 5)) ** 2))
    return jnp.sum(jnp.einsum("bik,iko->bo", basis, p["c"]) ** 2) + jnp.sum(nn.silu(x) @ p["w"])


def neural_ode(p: list[Tree], x: Any) -> Any:
    """Runge-Kutta in a `fori_loop` with static bounds."""

    def field(x: Any) -> Any:
        return mlp(p, x)

    def step(_: Any, x: Any) -> Any:
        a = field(x)
        b = field(x + 0.05 * a)
        c = field(x + 0.05 * b)
        return x + 0.1 / 6 * (a + 2 * b + 2 * c + field(x + 0.1 * c))

    return jnp.sum(lax.fori_loop(0, 4, step, x) ** 2)


def mixture_density(p: list[Tree], x: Any, y: Any) -> Any:
    weight, mean, scale = jnp.split(mlp(p, x), 3, -1)
    logp = jax.scipy.stats.norm.logpdf(y, mean, nn.softplus(scale) + 1e-3)
    return -jnp.mean(nn.logsumexp(nn.log_softmax(weight) + logp, axis=-1))


def early_exit(p: list[Tree], x: Any) -> Any:
    """`cond` on data, inside a `vmap` and outside of one."""

    def one(x: Any) -> Any:
        h = jnp.tanh(x @ p[0]["w"])
        return lax.cond(h.sum() > 0, lambda h: h @ p[1]["w"], lambda h: 2 * h[:2], h)

    whole = lax.cond(x.sum() > 0, lambda: jnp.sum(x @ p[0]["w"]), lambda: 0.0)
    return jnp.sum(jax.vmap(one)(x) ** 2) + whole + jnp.sum(one(x[0]))


def switched(p: list[Tree], x: Any, which: Any) -> Any:
    branches = [lambda x, q=q, act=act: act(x @ q["w"]) for q, act in zip(p, (nn.relu, jnp.sin))]
    return sum(jnp.sum(lax.switch(i, branches, x) ** 2) for i in which)


def mixed_precision(p: list[Tree], x: Any, y: Any) -> Any:
    half = jax.tree.map(lambda t: t.astype(jnp.float32), p)
    logits = mlp(half, x.astype(jnp.float32), nn.relu).astype(jnp.float64)
    return cross_entropy(logits, y)


def complex_valued(p: Tree, x: Any) -> Any:
    w = lax.complex(p["real"], p["imag"])
    z = (x + 1j * x[:, ::-1]) @ w
    z = z * nn.sigmoid(jnp.abs(z))
    return jnp.sum(jnp.abs(z) ** 2) + jnp.sum(jnp.angle(z) * z.real)


def deep_sets(p: Tree, x: Any) -> Any:
    h = jax.vmap(jax.vmap(partial(mlp, p["phi"])))(x)
    return jnp.sum(mlp(p["rho"], jnp.concatenate([h.sum(1), h.max(1)], -1)) ** 2)


def fourier_operator(p: Tree, x: Any) -> Any:
    modes = jnp.fft.rfft(x, axis=1)[:, :3]
    mixed = jnp.einsum("bmi,mio->bmo", modes, lax.complex(p["re"], p["im"]))
    full = jnp.zeros((x.shape[0], x.shape[1] // 2 + 1, x.shape[2]), mixed.dtype)
    out = jnp.fft.irfft(full.at[:, :3].set(mixed), x.shape[1], axis=1)
    return jnp.mean(nn.gelu(out + x @ p["w"]) ** 2)


def table() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Losses with their arguments; a function, since the arguments are made in float64."""
    p, key = Init(0), jax.random.key(1)
    x, image = draw(1, 4, 3), draw(2, 2, 8, 8, 3)
    y, tokens, sequence = labels(3, 5, 4), labels(4, 11, 2, 7), draw(5, 2, 6, 8)
    nets = [{"w": p(3, 6), "b": p(6)}, {"w": p(6, 5), "b": p(5)}]
    state = {k: {"mean": jnp.zeros(8), "var": jnp.ones(8)} for k in ("na", "nb")}
    qkv = {"q": p(8, 8), "k": p(8, 8), "v": p(8, 8), "bias": p(2)}
    experts = {"router": p(3, 4), "up": p(4, 3, 5), "down": p(4, 5, 3)}
    policies = jax.checkpoint_policies
    dots = policies.dots_with_no_batch_dims_saveable
    gru = [{"x": p(3, 8), "h": p(4, 8), "nx": p(3, 4), "nh": p(4, 4)} for _ in range(2)]
    unet_params = {
        "down": [p(3, 3, 3, 4), p(3, 3, 4, 6)],
        "middle": p(3, 3, 6, 6),
        "up": [p(2, 2, 6, 6), p(2, 2, 6, 4)],
        "out": [p(3, 3, 12, 6), p(3, 3, 8, 3)],
    }
    autoencoder = {"encoder": mlp_params(p, 3, 5, 4), "decoder": mlp_params(p, 2, 5, 3)}
    return {
        **{
            f"mlp {act.__name__}": (partial(mlp_loss, act=act), (nets, x, y))
            for act in (jnp.tanh, nn.relu, nn.gelu, nn.silu, nn.softplus)
        },
        "mlp scanned": (mlp_scanned, ({"w": p(5, 3, 3), "b": p(5, 3)}, x)),
        "mlp dropout": (dropout_mlp, (nets, x, key)),
        "mlp mixed precision": (mixed_precision, (nets, x, y)),
        "resnet group norm": (resnet_group_norm, (resnet_params(p), image, y[:2])),
        "lenet": (
            lenet,
            (
                {"convs": [p(3, 3, 3, 4), p(3, 3, 4, 6)], "head": mlp_params(p, 24, 8, 5)},
                image,
                y[:2],
            ),
        ),
        "mobile": (
            mobile,
            (
                {"deep": p(3, 3, 1, 3), "point": p(1, 1, 3, 4), "down": p(4, 2), "up": p(2, 4)},
                image,
            ),
        ),
        "unet": (unet, (unet_params, image, draw(6, 2, 8, 8, 3))),
        "wavenet": (
            wavenet,
            ([{"w": p(2, 4, 8), "skip": p(4, 3)} for _ in range(3)], draw(7, 2, 9, 4)),
        ),
        "lstm": (
            lstm,
            (
                {"wx": p(8, 16), "wh": p(4, 16), "b": p(16), "out": p(4, 5)},
                sequence,
                labels(8, 5, 2, 6),
            ),
        ),
        "gru both ways": (gru_both_ways, ({"f": gru[0], "b": gru[1]}, draw(9, 5, 2, 3))),
        "rnn masked": (
            rnn_masked,
            ({"x": p(3, 4), "h": p(4, 4)}, draw(10, 5, 2, 3), jnp.array([2, 5])),
        ),
        "linear recurrence": (linear_recurrence, ({"a": p(8), "b": p(8), "c": p(8, 3)}, sequence)),
        "state space by fft": (
            state_space_fft,
            ({"real": p(4), "imag": p(4), "c": p(4)}, draw(11, 2, 8)),
        ),
        "gpt unrolled": (partial(gpt, run=unrolled), (gpt_params(p), tokens)),
        "gpt scanned": (partial(gpt, run=scanned), (gpt_params(p), tokens)),
        "gpt checkpointed": (partial(gpt, run=checkpointed), (gpt_params(p), tokens)),
        "gpt checkpointed with policy": (
            partial(gpt, run=partial(checkpointed, policy=dots)),
            (gpt_params(p), tokens),
        ),
        "gpt scanned and checkpointed": (
            partial(gpt, run=partial(scanned, wrap=jax.checkpoint)),
            (gpt_params(p), tokens),
        ),
        "llama": (llama, (llama_params(p), labels(12, 7, 2, 6))),
        "vit": (
            vit,
            (
                {
                    "patch": p(12, 8),
                    "class": p(8),
                    "position": p(17, 8),
                    "head": p(8, 5),
                    "blocks": [block_params(p, 8, 12)],
                },
                image,
                y[:2],
            ),
        ),
        "encoder decoder": (
            encoder_decoder,
            (
                {**qkv, "encoder": block_params(p, 8, 12), "decoder": block_params(p, 8, 12)},
                sequence,
                draw(13, 2, 4, 8),
            ),
        ),
        "library attention": (partial(library_attention, causal=False), (qkv, sequence)),
        "library attention causal": (partial(library_attention, causal=True), (qkv, sequence)),
        "linear attention": (linear_attention, (qkv, sequence)),
        "decode with cache": (decode_with_cache, (qkv, sequence)),
        "mixture of experts": (moe_dense, (experts, draw(14, 7, 3))),
        "mixture with capacity": (moe_with_capacity, (experts, draw(14, 7, 3))),
        "mixture by ragged_dot": (moe_ragged, (experts, draw(14, 7, 3))),
        "vae": (vae, (autoencoder, x, key)),
        "vq-vae": (
            vq_vae,
            (
                {
                    "encoder": mlp_params(p, 3, 2),
                    "decoder": mlp_params(p, 2, 3),
                    "codes": p(6, 2),
                },
                x,
            ),
        ),
        "diffusion": (diffusion, (mlp_params(p, 11, 8, 3), x, key)),
        "real nvp": (real_nvp, ([mlp_params(p, 2, 5, 4) for _ in range(2)], draw(15, 3, 4))),
        "gan with gradient penalty": (
            gan_with_penalty,
            (mlp_params(p, 3, 5, 1), x, draw(16, 4, 3)),
        ),
        "gumbel straight through": (gumbel, ({"w": p(3, 5), "v": p(5, 2)}, x, key)),
        "graph network": (
            graph_network,
            ({"layers": [p(6, 3), p(6, 3)]}, draw(17, 6, 3), labels(18, 6, 9), labels(19, 6, 9)),
        ),
        "graph attention": (
            graph_attention,
            (
                {"w": p(3, 4), "a": p(4), "b": p(4)},
                draw(17, 6, 3),
                jnp.eye(6, dtype=bool) | (labels(20, 2, 6, 6) > 0),
            ),
        ),
        "nerf": (nerf, (mlp_params(p, 12, 8, 4), draw(21, 2, 5, 3), draw(22, 2, 5, low=0.1))),
        "spatial transformer": (spatial_transformer, ({"a": p(2, 2), "t": p(2)}, draw(23, 4, 4))),
        "lora": (
            lora,
            ({"a": [p(3, 1), p(3, 1)], "b": [p(1, 3), p(1, 3)]}, [p(3, 3), p(3, 3)], x),
        ),
        "weight norm": (weight_norm, ({"g": p(4), "v": p(3, 4)}, x)),
        "spectral norm": (spectral_norm, ({"w": p(3, 4)}, x, draw(24, 3))),
        "hypernetwork": (hypernetwork, (mlp_params(p, 3, 5, 6), x, draw(25, 4, 3))),
        "matrix factors": (
            matrix_factors,
            (
                {"users": p(5, 3), "items": p(7, 3), "bias": p(5)},
                labels(26, 5, 9),
                labels(27, 7, 9),
                draw(28, 9),
            ),
        ),
        "word2vec": (
            word2vec,
            (
                {"in": p(9, 4), "out": p(9, 4)},
                labels(29, 9, 5),
                labels(30, 9, 5),
                labels(31, 9, 5, 3),
            ),
        ),
        "kolmogorov-arnold": (kolmogorov_arnold, ({"c": p(3, 5, 2), "w": p(3, 2)}, x)),
        "neural ode": (neural_ode, (mlp_params(p, 3, 5, 3), x)),
        "mixture density": (mixture_density, (mlp_params(p, 3, 6, 9), x, draw(32, 4, 1))),
        "early exit": (early_exit, ([{"w": p(3, 4)}, {"w": p(4, 2)}], x)),
        "switched": (switched, ([{"w": p(3, 4)}, {"w": p(3, 4)}], x, jnp.array([0, 1, 1]))),
        "complex-valued": (complex_valued, ({"real": p(3, 4), "imag": p(3, 4)}, x)),
        "deep sets": (
            deep_sets,
            ({"phi": mlp_params(p, 3, 4), "rho": mlp_params(p, 8, 2)}, draw(33, 2, 5, 3)),
        ),
        "fourier operator": (
            fourier_operator,
            ({"re": p(3, 2, 2), "im": p(3, 2, 2), "w": p(2, 2)}, draw(34, 2, 8, 2)),
        ),
        "resnet batch norm": (
            lambda params, *rest: resnet_batch_norm(params, *rest)[0],
            (resnet_params(p), state, image, y[:2]),
        ),
    }


with jax.enable_x64(True):
    TABLE = table()

# `jax.nn.dot_product_attention` computes in float32, whatever it is given.
RELATIVE = {"library attention": 1e-6, "library attention causal": 1e-6}
