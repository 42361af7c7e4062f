"""`debug="nan"`: what it costs while all is well, and how long it takes to find a fault.

    python benchmarks/nonfinite.py --models gpt mlp

A step is loss, gradients and SGD. Columns: `time` and `cpu`, with `debug="nan"` / without, in turns
in one process (median of the ratios of the rounds, and their quartiles); `found`, seconds from the
call to the error for a step whose loss is the logarithm of a negative number, its programs'
compilation included; `again`, the same at the next such call; `debug_nans`, seconds that the same
step takes under `jax.jit` with `jax_debug_nans`, which runs it again op by op.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

COLUMNS = ("model", "time", "cpu", "found", "again", "debug_nans")


@dataclass(frozen=True)
class Result:
    """A row: ratios with / without, seconds until a fault was found."""

    model: str
    time: Ratio
    cpu: Ratio
    found: float
    again: float
    debug_nans: float

    def cells(self) -> list[str]:
        """The row of the table."""
        seconds = (self.found, self.again, self.debug_nans)
        return [self.model, str(self.time), str(self.cpu), *(f"{s:.1f} s" for s in seconds)]


def step_of(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """SGD on the logarithm of the loss times `sign`."""
    import jax
    import jax.numpy as jnp

    def step(params: Any, batch: Any, sign: Any) -> Any:
        def logarithm(params: Any, batch: Any) -> Any:
            return jnp.log(sign * loss(params, batch))

        value, grads = value_and_grad(logarithm)(params, batch)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads), value

    return step


def until_error(call: Callable[[], Any]) -> float:
    """Seconds until the call raises FloatingPointError."""
    start = time.perf_counter()
    try:
        call()
    except FloatingPointError:
        return time.perf_counter() - start
    raise AssertionError("the fault was not found")


def measure(model: Any, repeats: int) -> Result:
    """Time one model's step."""
    import jax

    import backpass as bp

    params, batch = model.init(jax.random.key(0)), model.batch(jax.random.key(1))
    step = step_of(bp.value_and_grad, model.loss)
    steps = {"nan": bp.compile(step, debug="nan"), "plain": bp.compile(step)}
    runs = {
        name: (lambda each=each: jax.block_until_ready(each(params, batch, 1.0)))
        for name, each in steps.items()
    }
    for run in runs.values():
        run()
    samples = interleave(runs, repeats, max(map(calls_for, runs.values())))
    a, b = samples["nan"], samples["plain"]
    found, again = (until_error(lambda: steps["nan"](params, batch, -1.0)) for _ in range(2))
    theirs = jax.jit(step_of(jax.value_and_grad, model.loss))
    with jax.debug_nans(True):
        debug_nans = until_error(lambda: jax.block_until_ready(theirs(params, batch, -1.0)))
    wall, cpu = ratio(a.wall, b.wall), ratio(a.cpu, b.cpu)
    return Result(model.name, wall, cpu, found, again, debug_nans)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the models asked for; print and return their rows."""
    from backpass.bench.models.sizes import SIZES, models

    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=list(SIZES["small"]), metavar="NAME")
    options.add_argument("--repeats", type=int, default=11, help="rounds of both arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for model in models(args.models, "tiny" if args.tiny else "small"):
        note(model.name)
        results.append(measure(model, args.repeats))
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
