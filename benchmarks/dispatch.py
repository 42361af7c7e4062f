"""Steady-state cost of calling a compiled step, `bp.compile` / `jax.jit`.

    python benchmarks/dispatch.py
    python benchmarks/dispatch.py --repeats 500 --leaves 1000

The arrays are tiny, so that a call is nearly all dispatch: flatten the pytree, find the program,
hand over the buffers, wrap the outputs. A sample is a block of calls that waits once, at its end;
blocks of the arms take turns. `time` is the median of the ratios of the rounds and their quartiles,
`cpu` the same of the seconds of all cores, and `control` is `time` of JAX's step by itself: a
second turn of it in each round, so that its distance from 1 is noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from script import finish, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, interleave, note, ratio

COLUMNS = ("case", "time", "cpu", "control")


@dataclass(frozen=True)
class Case:
    """A step of a dict of `leaves` arrays that gives back as many, or the loss alone."""

    leaves: int
    updates: bool
    donates: bool = False

    def __str__(self) -> str:
        """`150 to 150, donated`."""
        out = self.leaves if self.updates else 1
        return f"{self.leaves} to {out}" + (", donated" if self.donates else "")

    def step(self, value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to compile."""
        import jax
        import jax.numpy as jnp

        def loss(params):
            return sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))

        def step(params):
            value, grads = value_and_grad(loss)(params)
            if not self.updates:
                return value
            return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads)

        return step

    def params(self) -> dict[str, Any]:
        """Return leaves of four numbers each."""
        import jax.numpy as jnp

        return {f"layer{i}": jnp.full(4, 1.0) for i in range(self.leaves)}


@dataclass(frozen=True)
class Result:
    """Ratios ours / JAX's, and the seconds of a call in each block."""

    case: str
    time: Ratio
    cpu: Ratio
    control: Ratio
    seconds: dict[str, tuple[float, ...]]


def block_of(step: Callable[..., Any], case: Case, calls: int) -> Callable[[], None]:
    """Return `calls` calls in a row; what a step gives back as parameters goes into the next."""
    import jax

    state = [case.params()]

    def updates() -> None:
        params = state[0]
        for _ in range(calls):
            params = step(params)
        state[0] = jax.block_until_ready(params)

    def reads() -> None:
        params = state[0]
        for _ in range(calls):
            value = step(params)
        jax.block_until_ready(value)

    return updates if case.updates else reads


def measure(case: Case, repeats: int, calls: int) -> Result:
    """Compile, warm up, and time blocks in turns."""
    import jax

    import backpass as bp

    donate = 0 if case.donates else None
    theirs = jax.jit(case.step(jax.value_and_grad), donate_argnums=donate)
    ours = bp.compile(case.step(bp.value_and_grad), donate_argnums=donate)
    steps = {"jax": theirs, "backpass": ours, "control": theirs}
    blocks = {name: block_of(step, case, calls) for name, step in steps.items()}
    interleave(blocks, 2)
    samples = interleave(blocks, repeats)
    a, b, c = samples["backpass"], samples["jax"], samples["control"]
    seconds = {name: tuple(s / calls for s in sample.wall) for name, sample in samples.items()}
    ratios = ratio(a.wall, b.wall), ratio(a.cpu, b.cpu), ratio(c.wall, b.wall)
    return Result(str(case), *ratios, seconds)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure every case; print and return the rows."""
    options = parser(__doc__)
    options.add_argument("--leaves", type=int, default=150, help="leaves of the large pytree")
    options.add_argument("--repeats", type=int, default=100, help="rounds of the arms in turns")
    options.add_argument("--calls", type=int, default=100, help="calls in a block")
    args = options.parse_args(argv)
    stamp = environment()
    n = 3 if args.tiny else args.leaves
    cases = [Case(n, True), Case(n, True, donates=True), Case(n, False), Case(1, True)]
    results = []
    for case in cases:
        note(str(case))
        result = measure(case, args.repeats, args.calls)
        for name, seconds in result.seconds.items():
            note(f"  {name}: {statistics.median(seconds) * 1e6:.1f} us")
        results.append(result)
    rows = [(r.case, str(r.time), str(r.cpu), str(r.control)) for r in results]
    finish(stamp, [(COLUMNS, rows)], [asdict(r) for r in results], args.json)
    return results


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
