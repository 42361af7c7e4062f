"""Plan the training step of a Llama-like decoder for a large device, from a small one.

    python examples/llama.py                              7B at 4k tokens for an H100
    python examples/llama.py --model 7B --context 32768 --device h200 --png llama.png
    backpass plan examples/llama.py:step --device h100    the same as the first

Nothing is computed and no parameter exists: arguments are `jax.ShapeDtypeStruct`s. The step is
traced, differentiated and planned, but not compiled.

Source: Touvron et al. 2023 (Llama 2); Shazeer 2020 (SwiGLU); Ainslie et al. 2023 (grouped-query
attention); Rabe and Staats 2021 (attention in blocks of queries).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import backpass as bp

HEAD = 128  # width of one attention head
QUERIES = 1024  # attended at a time


class Config(NamedTuple):
    """Sizes of a decoder. `heads` ask, `groups` are asked; `hidden` is SwiGLU's width."""

    layers: int
    width: int
    heads: int
    groups: int
    hidden: int
    vocabulary: int = 32_000
    scanned: bool = True


MODELS = {
    "tiny": Config(4, 256, 2, 1, 512, 512),
    "7B": Config(32, 4096, 32, 32, 11_008),
    "70B": Config(80, 8192, 64, 8, 28_672),
}


# The model


def init(config: Config) -> dict:
    """Parameters in bf16; only ever asked for its shapes."""

    def matrix(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.bfloat16)

    def block() -> dict:
        keys = config.groups * HEAD
        return {
            "norm1": matrix(config.width),
            "q": matrix(config.width, config.heads * HEAD),
            "k": matrix(config.width, keys),
            "v": matrix(config.width, keys),
            "out": matrix(config.heads * HEAD, config.width),
            "norm2": matrix(config.width),
            "gate": matrix(config.width, config.hidden),
            "up": matrix(config.width, config.hidden),
            "down": matrix(config.hidden, config.width),
        }

    blocks = [block() for _ in range(config.layers)]
    return {
        "embedding": matrix(config.vocabulary, config.width),
        "blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks)
        if config.scanned
        else blocks,
        "norm": matrix(config.width),
        "head": matrix(config.width, config.vocabulary),
    }


def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`scale * x / rms(x)` over the last axis, in float32."""
    y = x.astype(jnp.float32)
    return scale * (y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)


def rotate(x: jax.Array) -> jax.Array:
    """Turn each pair of `[batch, time, heads, HEAD]` by an angle that grows with time."""
    half = HEAD // 2
    angle = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array) -> jax.Array:
    """Causal attention of `q[batch, queries, groups, share, HEAD]`, the first one at `start`."""
    scores = jnp.einsum("bqgsh,bkgh->bgsqk", q, k, preferred_element_type=jnp.float32)
    asked = start + jnp.arange(q.shape[1])
    past = asked[:, None] >= jnp.arange(k.shape[1])
    weights = jax.nn.softmax(jnp.where(past, scores * HEAD**-0.5, -1e9), axis=-1)
    return jnp.einsum("bgsqk,bkgh->bqgsh", weights.astype(v.dtype), v)


@jax.named_scope("attention")
def attention(config: Config, block: dict, x: jax.Array) -> jax.Array:
    """Grouped-query attention, a block of queries at a time; weights are not kept."""
    batch, length, _ = x.shape
    size = min(QUERIES, length)
    q = rotate((x @ block["q"]).reshape(batch, length, config.heads, HEAD))
    k = rotate((x @ block["k"]).reshape(batch, length, config.groups, HEAD))
    v = (x @ block["v"]).reshape(batch, length, config.groups, HEAD)
    shape = (batch, length // size, size, config.groups, config.heads // config.groups, HEAD)
    some = jax.checkpoint(lambda one: attend(one[0], k, v, one[1]))
    mixed = lax.map(some, (jnp.moveaxis(q.reshape(shape), 1, 0), size * jnp.arange(length // size)))
    return jnp.moveaxis(mixed, 0, 1).reshape(batch, length, -1) @ block["out"]


@jax.named_scope("mlp")
def mlp(block: dict, x: jax.Array) -> jax.Array:
    """SwiGLU: `(silu(x @ gate) * (x @ up)) @ down`."""
    return (jax.nn.silu(x @ block["gate"]) * (x @ block["up"])) @ block["down"]


def layer(config: Config, x: jax.Array, block: dict) -> jax.Array:
    """One block of the decoder."""
    x = x + attention(config, block, normalise(x, block["norm1"]))
    return x + mlp(block, normalise(x, block["norm2"]))


def loss(config: Config, params: dict, tokens: jax.Array) -> jax.Array:
    """Mean cross entropy of the next token over `int32[batch, time + 1]`."""
    x = params["embedding"][tokens[:, :-1]]
    if config.scanned:
        x, _ = lax.scan(lambda x, block: (layer(config, x, block), None), x, params["blocks"])
    else:
        for block in params["blocks"]:
            x = layer(config, x, block)
    logits = (normalise(x, params["norm"]) @ params["head"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


# What is planned

OPTIMISERS = {"adamw": optax.adamw(3e-4), "sgd": optax.sgd(3e-4)}


def made(config: Config, optimiser: str, batch: int, context: int) -> tuple[Callable, list]:
    """Return a training step, and the shapes of its arguments: parameters, state, tokens."""
    rule = OPTIMISERS[optimiser]

    @bp.compile(donate_argnums=(0, 1))
    def step(params, state, tokens):
        value, grads = bp.value_and_grad(partial(loss, config))(params, tokens)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.eval_shape(partial(init, config))
    state = jax.eval_shape(rule.init, params)
    return step, [params, state, jax.ShapeDtypeStruct((batch, context + 1), jnp.int32)]


step, _arguments = made(MODELS["7B"], "adamw", 1, 4096)


def example_args() -> list:
    """Arguments of `step`, for `backpass plan`."""
    return _arguments


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--tiny` is a preset that runs in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="7B")
    parser.add_argument("--context", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adamw")
    parser.add_argument("--unrolled", action="store_true", help="layers one by one, not scanned")
    parser.add_argument("--device", default="h100")
    parser.add_argument("--budget", nargs="*", help="as 60GiB; default is the device's memory")
    parser.add_argument("--png", type=Path, help="draw the frontier")
    parser.add_argument("--tiny", action="store_true", help="a small model")
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(model="tiny", context=256)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> bp.Plans:
    """Plan, print the frontier and draw it; returns the plans."""
    options = parse(argv)
    config = MODELS[options.model]._replace(scanned=not options.unrolled)
    start = time.perf_counter()
    train, args = made(config, options.optimiser, options.batch, options.context)
    size = sum(leaf.size for leaf in jax.tree.leaves(args[0]))
    plans = bp.plan(train, *args, budgets=options.budget, device=options.device)
    how = "scanned" if config.scanned else "unrolled"
    print(f"model     {options.model}: {size:,} parameters in bf16, {config.layers} layers {how}")
    print(f"step      {options.batch} x {options.context:,} tokens, {options.optimiser}")
    print(f"planned   in {time.perf_counter() - start:.1f} s for {options.device}\n")
    print(plans)
    if options.png:
        plans.save_png(options.png)
        print(f"\nfrontier  {options.png}")
    return plans


if __name__ == "__main__":
    main()
