"""A training run that can be killed at any moment: started again, it goes on where it was.

    python examples/resume.py               then press Ctrl+C, or kill -9 it, and start it again
    python examples/resume.py --fresh       from the beginning

A small network learns a function under noise, with dropout, momentum in AdamW and float16 products
under a loss scale: state enough to lose. All of it is one pytree that `bp.Saver` saves. The number
of the step decides the batch and the key of its dropout, so that there is no other state: losses
are those of a run that nobody interrupted, bit for bit.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import backpass as bp

WIDTH = 256
BATCH = 64
OPTIMISER = optax.adamw(3e-3)


def init(seed: int) -> dict:
    """The whole state of the run."""
    k1, k2, key = jax.random.split(jax.random.key(seed), 3)
    params = {
        "w1": jax.random.normal(k1, (16, WIDTH)) / 4,
        "b1": jnp.zeros(WIDTH),
        "w2": jax.random.normal(k2, (WIDTH, 1)) / 16,
    }
    return {
        "params": params,
        "optimiser": OPTIMISER.init(params),
        "scale": bp.LossScale(period=50),
        "key": key,
    }


def batch_of(step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step: drawn by a generator that begins with the step's number."""
    rng = np.random.default_rng((seed, step))
    x = rng.normal(size=(BATCH, 16)).astype(np.float32)
    return x, np.sin(x.sum(axis=1)) + 0.1 * rng.normal(size=BATCH).astype(np.float32)


def loss_fn(params: dict, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of `f32[batch]`."""
    hidden = jax.nn.gelu(x @ params["w1"] + params["b1"])
    hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden / 0.9, 0.0)
    return jnp.mean(((hidden @ params["w2"])[:, 0] - y) ** 2)


@bp.compile(precision="float16", donate_argnums=0)
def train_step(state, step, x, y):
    """One step of AdamW; a step whose float16 gradients overflow is skipped."""
    params, scale = state["params"], state["scale"]
    key = jax.random.fold_in(state["key"], step)
    scaled, grads = bp.value_and_grad(lambda p: scale.scale(loss_fn(p, x, y, key)))(params)
    grads, finite = scale.unscale(grads)
    updates, optimiser = OPTIMISER.update(grads, state["optimiser"], params)
    new = {
        "params": scale.keep(finite, optax.apply_updates(params, updates), params),
        "optimiser": scale.keep(finite, optimiser, state["optimiser"]),
        "scale": scale.adjust(finite),
        "key": state["key"],
    }
    return new, scaled / scale.value


def train(options: argparse.Namespace) -> None:
    """Go on from the last save, or begin; every loss is a line of `losses.txt`, in full."""
    state = init(options.seed)
    log = options.out / "losses.txt"
    with bp.Saver(options.out / "states", every=options.every, keep=2) as saver:
        start, state = saver.restore(state) or (0, state)
        print(f"begins at step {start} of {options.steps}", flush=True)
        with log.open("a") as lines:
            for step in range(start, options.steps):
                state, loss = train_step(state, step, *batch_of(step, options.seed))
                lines.write(f"{step + 1} {float(loss).hex()}\n")
                lines.flush()  # before the save, from which a run that is killed now goes on
                saver.save(step + 1, state)
    print(f"loss         {float(loss) if start < options.steps else 'as before'}")
    print(f"losses       {log}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--tiny` is a preset that runs in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=10, help="steps between saves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "resume")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run")
    parser.add_argument("--tiny", action="store_true", help="40 steps")
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(steps=40)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, from where the last run ended."""
    options = parse(argv)
    if options.fresh:
        shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
