"""What `roll` does to unrolled GPTs: seconds to compile, time of a step, temporary bytes.

    python benchmarks/fusion/rolling.py
    python benchmarks/fusion/rolling.py --layers 24 48 --arms rolled jax --repeats 3

A step is loss, gradients and SGD, as in `backpass bench models`, of a GPT whose layers are a list
(d=128). The arms are `bp.compile` with `roll{roll=true}` and with `roll{roll=false}`, and
`jax.jit`. Columns: `compile`, trace to executable in seconds of all cores; `wall`, the same on the
clock; `temp`, XLA's temporary MB; `step`, seconds of all cores relative to the first arm, median of
the rounds and its quartiles.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from script import finish_rows, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, interleave, note, ratio

COLUMNS = ("layers, arm", "compile", "wall", "temp", "step")
ARMS = ("rolled", "unrolled", "jax")


@dataclass(frozen=True)
class Result:
    """One arm at one number of layers; seconds, bytes, and time relative to the first arm."""

    layers: int
    arm: str
    cpu: float
    wall: float
    temp: int
    step: Ratio

    def cells(self) -> list[str]:
        """Return the row as text."""
        name = f"{self.layers} {self.arm}"
        plain = [f"{self.cpu:.1f}", f"{self.wall:.1f}", f"{self.temp / 1e6:.0f}"]
        return [name, *plain, str(self.step)]


def step(arm: str, loss: Any) -> Any:
    """The compiled training step of one arm, its parameters donated."""
    import jax

    import backpass as bp
    from backpass.bench.arms import step_of
    from backpass.passes import DEFAULT, Restack, Roll

    if arm == "jax":
        return jax.jit(step_of(jax.value_and_grad, loss), donate_argnums=0)
    roll = Roll(arm == "rolled")
    passes = (*(roll if each.name == "roll" else each for each in DEFAULT), Restack())
    return bp.compile(step_of(bp.value_and_grad, loss), donate_argnums=0, passes=passes)


def measure(layers: int, arms: Sequence[str], repeats: int, tiny: bool) -> list[Result]:
    """Compile the arms one after the other, and run their steps in turns."""
    import jax
    import jax.numpy as jnp

    from backpass.bench.models.sequences import gpt
    from backpass.bench.task import RATE

    model = gpt(layers, *((16, 2, 8, 2, 32) if tiny else (128, 4, 128, 4, 512)))
    params, batch = model.init(jax.random.key(0)), model.batch(jax.random.key(1))
    rate = jnp.float32(RATE)
    runs, found = {}, {}
    for arm in arms:
        wall, cpu = time.perf_counter(), time.process_time()
        program = step(arm, model.loss).lower(params, batch, rate).compile()
        took = time.process_time() - cpu, time.perf_counter() - wall
        found[arm] = (*took, program.memory_analysis().temp_size_in_bytes)
        note(f"{layers} {arm}: {took[0]:.1f} s")
        state = [jax.tree.map(jnp.copy, params)]

        def run(program: Any = program, state: list[Any] = state) -> None:
            state[0], value = program(state[0], batch, rate)
            jax.block_until_ready((state[0], value))

        run()
        runs[arm] = run
    samples = interleave(runs, repeats)
    base = samples[arms[0]].cpu
    return [Result(layers, arm, *found[arm], ratio(samples[arm].cpu, base)) for arm in arms]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the sizes and arms asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument("--layers", nargs="+", type=int, default=[6, 12, 24, 48])
    options.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    options.add_argument("--repeats", type=int, default=11, help="rounds of all arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for layers in args.layers:
        results += measure(layers, args.arms, args.repeats, args.tiny)
        gc.collect()
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
