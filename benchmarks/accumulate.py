"""Gradient accumulation: a training step in `--steps` parts / the same step in one.

    python benchmarks/accumulate.py
    python benchmarks/accumulate.py --models gpt vit --steps 4 8 --repeats 7

A step is loss, gradients by `bp.value_and_grad` and SGD's update, with parameters donated; batches
are such that activations weigh more than parameters. Arms run in turns in one process: the step as
a whole; in parts; and a peer, `jax.jit` with the parts written by hand, as a `lax.scan` over
micro-batches. Columns: `time` (median of the ratios of the rounds, quartiles), `temp` (XLA's
temporary bytes, how many times less), `acts` (the same without one set of gradients, which the
sums take), `by hand` (time of the peer, and its `temp`), `error` (greatest difference of an
updated parameter, relative to the greatest in it).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from script import finish_rows, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, interleave, note, ratio

COLUMNS = ("step", "time", "temp MiB", "temp", "acts", "by hand", "by hand MiB", "error")


@dataclass(frozen=True)
class Result:
    """A row: ratios in parts / whole, bytes of temporaries and of the gradients."""

    step: str
    time: Ratio
    by_hand: Ratio
    temp_bytes: dict[str, int]
    gradient_bytes: int
    error: float

    def cells(self) -> list[str]:
        """Return the row as text."""
        whole, parts = self.temp_bytes["whole"], self.temp_bytes["parts"]
        acts = whole / max(parts - self.gradient_bytes, 1)
        ratios = [f"{r.median:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in (self.time, self.by_hand)]
        return [
            *(self.step, ratios[0], f"{whole / 2**20:.0f} -> {parts / 2**20:.0f}"),
            *(f"{whole / parts:.1f}", f"{acts:.1f}", ratios[1]),
            *(f"{self.temp_bytes['by hand'] / 2**20:.0f}", f"{self.error:.0e}"),
        ]


def step_of(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """Return the training step."""
    import jax

    def step(params, batch):
        value, grads = value_and_grad(params, batch)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), value

    return step


def by_hand(loss: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """`value_and_grad` over micro-batches of the leading dimension, for a mean over the batch."""
    import jax
    import jax.numpy as jnp

    def value_and_grad(params, batch):
        def part(total, micro):
            found = jax.value_and_grad(loss)(params, micro)
            return jax.tree.map(lambda t, x: t + x / steps, total, found), None

        parts = jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        return jax.lax.scan(part, zeros, parts)[0]

    return value_and_grad


def measure(model: Any, micro: Any, steps: int, repeats: int) -> Result:
    """Compile a model's step in the three arms and time them in turns.

    `micro` is the model for one part, as some know their batch.
    """
    import jax
    import jax.numpy as jnp

    import backpass as bp

    params, batch = model.init(jax.random.key(0)), model.batch(jax.random.key(1))
    ours = step_of(bp.value_and_grad(model.loss))
    arms = {
        "whole": bp.compile(ours, donate_argnums=0),
        "parts": bp.compile(ours, donate_argnums=0, accumulate_steps=steps),
        "by hand": jax.jit(step_of(by_hand(micro.loss, steps)), donate_argnums=0),
    }
    programs = {name: arm.lower(params, batch).compile() for name, arm in arms.items()}
    fresh = partial(jax.tree.map, jnp.copy)
    results = {name: programs[name](fresh(params), batch)[0] for name in ("whole", "parts")}
    error = jax.tree.map(
        lambda x, y: float(jnp.abs(x - y).max() / jnp.abs(y).max().clip(1e-9)),
        results["parts"],
        results["whole"],
    )
    states = {name: fresh(params) for name in arms}

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            states[name], _ = programs[name](states[name], batch)
            jax.block_until_ready(states[name])

        return once

    samples = interleave({name: run(name) for name in arms}, repeats, 1)
    walls = {name: sample.wall for name, sample in samples.items()}
    return Result(
        f"{model.name} in {steps}",
        ratio(walls["parts"], walls["whole"]),
        ratio(walls["by hand"], walls["whole"]),
        {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()},
        sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        max(jax.tree.leaves(error)),
    )


def chosen(name: str, tiny: bool, parts: int = 1) -> Any:
    """One of the models for one of so many parts of a batch that is worth dividing."""
    from backpass.bench.models import images, sequences

    if tiny:
        return {
            "gpt": partial(sequences.gpt, 2, 16, 2, 8, 8 // parts, 32),
            "gpt_scan": partial(sequences.gpt, 2, 16, 2, 8, 8 // parts, 32, scanned=True),
            "vit": partial(images.vit, 8 // parts, 8, 4, 1, 8, 2),
            "lstm": partial(sequences.lstm, 8 // parts, 6, 8, 16),
        }[name]()
    return {
        "gpt": partial(sequences.gpt, 6, 256, 4, 256, 32 // parts, 8192),
        "gpt_scan": partial(sequences.gpt, 6, 256, 4, 256, 32 // parts, 8192, scanned=True),
        "vit": partial(images.vit, 128 // parts, 32, 4, 4, 192, 3),
        "lstm": partial(sequences.lstm, 256 // parts, 128, 256, 256),
    }[name]()


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the steps asked for; print and return their rows."""
    options = parser(__doc__)
    names = ["gpt", "gpt_scan", "vit", "lstm"]
    options.add_argument("--models", nargs="+", default=names, metavar="NAME")
    options.add_argument("--steps", nargs="+", type=int, default=[8], metavar="K")
    options.add_argument("--repeats", type=int, default=7, help="rounds of all arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for name in args.models:
        for steps in args.steps:
            whole, micro = (chosen(name, args.tiny, parts) for parts in (1, steps))
            results.append(measure(whole, micro, steps, args.repeats))
            note("  ".join(results[-1].cells()))
            gc.collect()
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
