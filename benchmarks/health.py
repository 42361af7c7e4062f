"""What `health=True` costs: a training step with it / the same step without it.

    python benchmarks/health.py
    python benchmarks/health.py --models gpt mlp --optimisers sgd adam --repeats 21

A step is loss, gradients by `bp.value_and_grad` and the optimiser's update, with parameters and
moments donated. Both are compiled ahead of time and run in turns in one process; the step with
health gives its arrays, which nothing reads. Columns, with / without: `time` and `cpu` (median of
the ratios of the rounds, and their quartiles; `cpu` is the seconds of all cores), `temp` (XLA's
temporary bytes, by how many MiB more), `compile` (trace to executable, once).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from script import finish_rows, parser

from backpass.bench.measure import (
    Ratio,
    calls_for,
    environment,
    fix_allocator,
    interleave,
    note,
    ratio,
)

COLUMNS = ("step", "ms", "time", "cpu", "temp MiB", "compile")


@dataclass(frozen=True)
class Result:
    """A row: ratios with / without, and what they are made of; temp in bytes."""

    step: str
    time: Ratio
    cpu: Ratio
    compile: float
    seconds: dict[str, tuple[float, ...]]
    temp_bytes: dict[str, int]

    def cells(self) -> list[str]:
        """Return the row as text."""
        plain = sorted(self.seconds["plain"])
        more = (self.temp_bytes["health"] - self.temp_bytes["plain"]) / 2**20
        middle = f"{1e3 * plain[len(plain) // 2]:.1f}"
        return [self.step, middle, *self._ratios(), f"{more:+.1f}", f"{self.compile:.2f}"]

    def _ratios(self) -> list[str]:
        return [f"{r.median:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in (self.time, self.cpu)]


def step_of(loss: Callable[..., Any], optimiser: Any) -> Callable[..., Any]:
    """Return the training step; its first argument is parameters and moments."""
    import optax

    import backpass as bp

    def step(state, batch):
        params, moments = state
        value, grads = bp.value_and_grad(loss)(params, batch)
        updates, moments = optimiser.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    return step


def measure(model: Any, name: str, repeats: int) -> Result:
    """Compile a model's step in both arms and time them in turns."""
    import jax
    import jax.numpy as jnp
    import optax

    import backpass as bp

    optimiser = getattr(optax, name)(1e-4)
    params = model.init(jax.random.key(0))
    batch = model.batch(jax.random.key(1))
    state = params, optimiser.init(params)
    arms, seconds = {}, {}
    for arm in ("plain", "health"):
        step = bp.compile(step_of(model.loss, optimiser), donate_argnums=0, health=arm == "health")
        start = time.perf_counter()
        arms[arm] = step.lower(state, batch).compile()
        seconds[arm] = time.perf_counter() - start
    states = {arm: jax.tree.map(jnp.copy, state) for arm in arms}

    def run(arm: str) -> Callable[[], None]:
        def once() -> None:
            found = arms[arm](states[arm], batch)
            jax.block_until_ready(found)
            (states[arm], _), *_ = found if arm == "health" else (found,)

        return once

    runs = {arm: run(arm) for arm in arms}
    samples = interleave(runs, repeats, max(map(calls_for, runs.values())))
    ours, theirs = samples["health"], samples["plain"]
    return Result(
        f"{model.name} {name}",
        ratio(ours.wall, theirs.wall),
        ratio(ours.cpu, theirs.cpu),
        seconds["health"] / seconds["plain"],
        {arm: sample.wall for arm, sample in samples.items()},
        {arm: program.memory_analysis().temp_size_in_bytes for arm, program in arms.items()},
    )


def chosen(name: str, tiny: bool) -> Any:
    """One of the models; `mlp_1024` has four times the batch of `mlp`."""
    from backpass.bench.models.images import mlp
    from backpass.bench.models.sizes import models

    if name != "mlp_1024":
        return models([name], "tiny" if tiny else "small")[0]
    model = mlp(32, (12, 16, 16, 4)) if tiny else mlp(1024, (784, 1024, 1024, 10))
    return replace(model, name=name)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the steps asked for; print and return their rows."""
    options = parser(__doc__)
    names = ["gpt", "gpt_scan", "mlp", "mlp_1024"]
    options.add_argument("--models", nargs="+", default=names, metavar="NAME")
    options.add_argument("--optimisers", nargs="+", default=["sgd", "adam"], metavar="NAME")
    options.add_argument("--repeats", type=int, default=15, help="rounds of both arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for name in args.models:
        for optimiser in args.optimisers:
            results.append(measure(chosen(name, args.tiny), optimiser, args.repeats))
            note("  ".join(results[-1].cells()))
            gc.collect()
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
