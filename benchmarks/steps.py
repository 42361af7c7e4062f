"""Time and temporary memory of a training step, `bp.compile` / `jax.jit`.

    python benchmarks/steps.py
    python benchmarks/steps.py --models gpt mlp --repeats 21

A step is loss, gradients and SGD, the same source in both arms, with the parameters donated. Both
are compiled ahead of time and run in turns in one process. Columns, ours / theirs, below 1 is
better: `time` (median of the ratios of the rounds, and their quartiles), `cpu` (the same of the
seconds of all cores, which a busy machine disturbs less), `temp` (XLA's temporary bytes),
`compile` (trace to executable, once). `loss` and `grads` are the largest relative differences:
that of a gradient leaf is to its largest element, or to a thousandth of the largest of all leaves
where that is more.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from script import finish, parser

from backpass.bench.measure import (
    Ratio,
    calls_for,
    environment,
    fix_allocator,
    interleave,
    note,
    ratio,
)

COLUMNS = ("model", "time", "cpu", "temp", "compile", "loss", "grads")
RATE = 1e-4
# The update at this rate is the gradient, but for rounding: it is how gradients are compared
# without another program.
CHECK_RATE = 2.0**20


@dataclass(frozen=True)
class Arm:
    """One compiled step and what it took to get there; temp in bytes."""

    step: Callable[..., Any]
    seconds: float
    temp: int


@dataclass(frozen=True)
class Result:
    """A row: ratios ours / theirs, relative differences, and what they are made of."""

    model: str
    time: Ratio
    cpu: Ratio
    temp: float
    compile: float
    loss: float
    grads: float
    seconds: dict[str, tuple[float, ...]]
    temp_bytes: dict[str, int]
    compile_seconds: dict[str, float]

    def cells(self) -> list[str]:
        """Return the row as text."""
        plain = [f"{self.temp:.2f}", f"{self.compile:.2f}", f"{self.loss:.0e}", f"{self.grads:.0e}"]
        return [self.model, str(self.time), str(self.cpu), *plain]


def step_of(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the training step, with gradients by either one."""
    import jax

    def step(params, batch, rate):
        value, grads = value_and_grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), value

    return step


def compiled(step: Any, *args: Any) -> Arm:
    """Compile ahead of time and read XLA's report."""
    start = time.perf_counter()
    program = step.lower(*args).compile()
    seconds = time.perf_counter() - start
    return Arm(program, seconds, program.memory_analysis().temp_size_in_bytes)


def differences(params: Any, ours: Any, theirs: Any) -> tuple[float, float]:
    """Return relative differences of the loss and of the gradients, from steps at `CHECK_RATE`."""
    import jax
    import numpy as np

    leaves = [list(map(np.asarray, jax.tree.leaves(tree))) for tree in (params, ours[0], theirs[0])]
    triples = [(p.astype(np.float64), a, b) for p, a, b in zip(*leaves, strict=True)]
    size = [np.abs(b - p).max() for p, _, b in triples]
    least = max(max(size) * 1e-3, 1e-30)
    apart = [np.abs(a - b).max() for _, a, b in triples]
    loss = abs(float(ours[1]) - float(theirs[1])) / abs(float(theirs[1]))
    return loss, max(float(a / max(s, least)) for a, s in zip(apart, size, strict=True))


def measure(model: Any, repeats: int, options: dict[str, Any]) -> Result:
    """Compile a model's step in both arms, compare one step, and time them in turns."""
    import jax
    import jax.numpy as jnp

    import backpass as bp

    params = model.init(jax.random.key(0))
    batch = model.batch(jax.random.key(1))
    rate = jnp.float32(RATE)
    steps = {
        "backpass": bp.compile(step_of(bp.value_and_grad, model.loss), donate_argnums=0, **options),
        "jax": jax.jit(step_of(jax.value_and_grad, model.loss), donate_argnums=0),
    }
    arms = {}
    for name, step in steps.items():
        arms[name] = compiled(step, params, batch, rate)
        note(f"  {name}: compiled in {arms[name].seconds:.1f} s")

    def copy() -> Any:
        return jax.tree.map(jnp.copy, params)

    check = [arm.step(copy(), batch, jnp.float32(CHECK_RATE)) for arm in arms.values()]
    loss, grads = differences(params, *check)
    del check
    state = {name: copy() for name in arms}

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            state[name], value = arms[name].step(state[name], batch, rate)
            jax.block_until_ready((state[name], value))

        return once

    runs = {name: run(name) for name in arms}
    samples = interleave(runs, repeats, max(map(calls_for, runs.values())))
    a, b = samples["backpass"], samples["jax"]
    return Result(
        model.name,
        ratio(a.wall, b.wall),
        ratio(a.cpu, b.cpu),
        arms["backpass"].temp / max(arms["jax"].temp, 1),
        arms["backpass"].seconds / arms["jax"].seconds,
        loss,
        grads,
        {name: s.wall for name, s in samples.items()},
        {name: arm.temp for name, arm in arms.items()},
        {name: arm.seconds for name, arm in arms.items()},
    )


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the models asked for; print and return their rows."""
    from backpass.bench.models.sizes import SIZES, models

    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=list(SIZES["small"]), metavar="NAME")
    options.add_argument("--repeats", type=int, default=11, help="rounds of both arms in turns")
    options.add_argument("--passes", help="pipeline in place of the default one")
    args = options.parse_args(argv)
    stamp = environment()
    results, rows = [], []
    for model in models(args.models, "tiny" if args.tiny else "small"):
        note(model.name)
        try:
            result = measure(model, args.repeats, {"passes": args.passes} if args.passes else {})
        except Exception as error:  # one model that fails must not hide the others
            note(f"  failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            rows.append([model.name, "failed", *[""] * (len(COLUMNS) - 2)])
            continue
        for name, seconds in result.seconds.items():
            best = sorted(seconds)[len(seconds) // 2]
            note(f"  {name}: {best * 1e3:.1f} ms, temp {result.temp_bytes[name] / 2**20:.1f} MiB")
        results.append(result)
        rows.append(result.cells())
        gc.collect()
    finish(stamp, [(COLUMNS, rows)], [asdict(r) for r in results], args.json)
    return results


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
