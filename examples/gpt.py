"""A byte-level GPT that learns Python from the standard library of the interpreter that runs it.

    python examples/gpt.py                  two minutes on two CPU cores
    python examples/gpt.py --minutes 20 --layers 6 --width 256 --context 256 --rate 2e-3

The model is plain `jax.numpy` over a nested dict of arrays. `train_step`, which is forward
pass, backward pass and AdamW, is one function that `bp.compile` turns into one program. The loss
is told in bits per byte, beside the entropy of single bytes.

Source: Radford et al. 2019 (pre-norm GPT); Zhang and Sennrich 2019 (RMSNorm, eq. 4);
Su et al. 2021 (rotary positions, eq. 34); Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import backpass as bp
from corpus import entropy, even_windows, random_windows, read_library
from report import Curve, print_results, save_dumps

VOCABULARY = 256  # every byte is a token
HEAD = 32  # width of one attention head
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, b2=0.98, weight_decay=0.1))
# The learning rate, relative to its peak, over the percentage of the training budget that is spent.
SCHEDULE = optax.warmup_cosine_decay_schedule(0.01, 1.0, warmup_steps=5, decay_steps=100)


# The model


def init(key: jax.Array, layers: int, width: int) -> dict:
    """Parameters: matrices are normal with variance `1 / rows`, less into the residual stream."""
    keys = iter(jax.random.split(key, 2 + 4 * layers))

    def matrix(rows: int, columns: int, gain: float = 1.0) -> jax.Array:
        return gain * rows**-0.5 * jax.random.normal(next(keys), (rows, columns))

    def block() -> dict:
        return {
            "norm1": jnp.ones(width),
            "qkv": matrix(width, 3 * width),
            "out": matrix(width, width, gain=(2 * layers) ** -0.5),
            "norm2": jnp.ones(width),
            "up": matrix(width, 4 * width),
            "down": matrix(4 * width, width, gain=(2 * layers) ** -0.5),
        }

    return {
        "embedding": matrix(VOCABULARY, width, gain=VOCABULARY**0.5),
        "blocks": [block() for _ in range(layers)],
        "norm": jnp.ones(width),
        "head": matrix(width, VOCABULARY, gain=0.1),
    }


def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`scale * x / rms(x)` over the last axis."""
    return scale * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rotate(x: jax.Array) -> jax.Array:
    """Turn each pair of `f32[batch, time, heads, HEAD]` by an angle that grows with time."""
    half = HEAD // 2
    angle = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


@jax.named_scope("attention")
def attention(block: dict, x: jax.Array) -> jax.Array:
    """Causal self-attention over `f32[batch, time, width]`: no position sees the future."""
    batch, length, width = x.shape
    q, k, v = jnp.split((x @ block["qkv"]).reshape(batch, length, -1, HEAD), 3, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) * HEAD**-0.5
    past = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e9), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return mixed.reshape(batch, length, width) @ block["out"]


@jax.named_scope("mlp")
def mlp(block: dict, x: jax.Array) -> jax.Array:
    """`gelu(x @ up) @ down`."""
    return jax.nn.gelu(x @ block["up"]) @ block["down"]


def logits(params: dict, tokens: jax.Array) -> jax.Array:
    """`f32[batch, time, VOCABULARY]`, for the byte after each of `tokens[batch, time]`."""
    x = params["embedding"][tokens]
    for i, block in enumerate(params["blocks"]):
        with jax.named_scope(f"block{i}"):
            x = x + attention(block, normalise(x, block["norm1"]))
            x = x + mlp(block, normalise(x, block["norm2"]))
    return normalise(x, params["norm"]) @ params["head"]


def bits_per_byte(params: dict, batch: jax.Array) -> jax.Array:
    """Mean of `-log2 p(next byte)` over windows `int32[batch, time + 1]`."""
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch[:, :-1]), batch[:, 1:]
    )
    return nats.mean() / jnp.log(2.0)


# What is compiled


@bp.compile(donate_argnums=(0, 1))
def train_step(params, opt_state, batch, rate):
    """One step of AdamW with the learning rate `rate`."""
    loss, grads = bp.value_and_grad(bits_per_byte)(params, batch)
    updates, opt_state = OPTIMISER.update(grads, opt_state, params)
    updates = jax.tree.map(lambda update: rate * update, updates)
    return optax.apply_updates(params, updates), opt_state, loss


evaluate = bp.compile(bits_per_byte)


@bp.compile
def next_byte(params, window, length, key, temperature):
    """Draw the byte after `window[:length]`; what lies beyond is hidden by causality."""
    scores = logits(params, window[None])[0, length - 1]
    return jax.random.categorical(key, scores / temperature)


# Training


def train(params: dict, training: np.ndarray, held_out: np.ndarray, options: argparse.Namespace):
    """Train until `options.minutes` or `options.steps` are spent, whichever comes first.

    Returns:
      Parameters, and the points `(step, bits per byte)` of training and of validation.
    """
    rng = np.random.default_rng(options.seed)
    opt_state = OPTIMISER.init(params)
    learnt, checked = [], [(0, float(evaluate(params, held_out)))]
    began, step, spent = None, 0, 0.0
    layout = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, desc="training", bar_format=layout) as bar:
        while spent < 1.0:
            batch = random_windows(training, rng, options.batch, options.context)
            rate = options.rate * float(SCHEDULE(100 * spent))
            params, opt_state, loss = train_step(params, opt_state, batch, rate)
            step += 1
            learnt.append((step, float(loss)))
            began = began or time.perf_counter()  # after the first step: compiling is not training
            seconds = time.perf_counter() - began
            spent = min(1.0, max(step / options.steps, seconds / (60 * options.minutes)))
            if spent >= len(checked) / options.checks:
                checked.append((step, float(evaluate(params, held_out))))
            speed = options.batch * options.context * (step - 1) / max(seconds, 1e-9)
            bar.set_postfix_str(
                f"loss {learnt[-1][1]:.2f} validation {checked[-1][1]:.2f} bits/byte, "
                f"{speed:,.0f} tokens/s",
                refresh=False,
            )
            bar.update(spent - bar.n)
    return params, learnt, checked


def sample(params: dict, options: argparse.Namespace, length: int) -> str:
    """Continue `options.prompt` by `length` bytes, each drawn from what the model expects."""
    text = bytearray(options.prompt.encode())
    for key in tqdm(jax.random.split(jax.random.key(options.seed), length), desc="sampling"):
        tail = text[-options.context :]
        window = np.zeros(options.context, np.int32)
        window[: len(tail)] = tail
        text.append(int(next_byte(params, window, len(tail), key, options.temperature)))
    return text.decode(errors="replace")


# The command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--tiny` is a preset that runs in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="time to train for")
    parser.add_argument("--steps", type=int, default=10**9, help="most steps to train for")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help=f"a multiple of {HEAD}")
    parser.add_argument("--context", type=int, default=128, help="bytes that the model sees")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--checks", type=int, default=12, help="validations along the way")
    parser.add_argument("--limit", type=int, default=8_000_000, help="bytes of text to read")
    parser.add_argument("--prompt", default="def ", help="what the sample begins with")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "gpt")
    parser.add_argument("--tiny", action="store_true", help="a small model and 120 steps")
    tiny = {"steps": 120, "layers": 1, "width": 64, "context": 64, "checks": 4, "limit": 10**6}
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(**tiny)
    options = parser.parse_args(argv)
    if options.width % HEAD:
        parser.error(f"--width must be a multiple of {HEAD}, got {options.width}")
    return options


def main(argv: Sequence[str] | None = None) -> dict[str, list[tuple[int, float]]]:
    """Train, draw the curve, write the dumps, print a sample; returns the curve's points."""
    options = parse(argv)
    training, validation = read_library(options.limit)
    baseline = entropy(validation)
    params = init(jax.random.key(options.seed), options.layers, options.width)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"text         {training.size:,} bytes to train on, {validation.size:,} to validate on")
    print(f"model        {size:,} parameters, {options.layers} layers of {options.width}")

    held_out = even_windows(validation, 128, options.context)
    batch = held_out[: options.batch]
    lowered = train_step.lower(params, OPTIMISER.init(params), batch, options.rate)
    dumps = save_dumps(lowered, options.out / "graphs")
    params, learnt, checked = train(params, training, held_out, options)

    text = sample(params, options, length=64 if options.tiny else 512)
    print(f"\n{text}\n")
    print(f"unigram      {baseline:.3f} bits per byte, the entropy of single bytes")
    print(f"validation   {checked[-1][1]:.3f} bits per byte after {len(learnt):,} steps")
    series = {"training": learnt, "validation": checked}
    curve = Curve(
        title="A byte-level GPT on the Python standard library",
        xlabel="step",
        ylabel="bits per byte",
        series=series,
        levels={f"entropy of single bytes, {baseline:.2f}": baseline},
    )
    print_results(curve.save(options.out / "loss.png"), dumps)
    return series


if __name__ == "__main__":
    main()
