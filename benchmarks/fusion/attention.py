"""An attention under memory budgets beside `jax.jit`: temporary bytes, peak and time.

    python benchmarks/fusion/attention.py
    python benchmarks/fusion/attention.py --kinds window --budgets 1 2

A step is loss, gradients and SGD of one part of `backpass bench fusion`. The first arm is
`jax.jit`, then ours without a budget, then under budgets that are `--budgets` times the least that
is feasible. `temp` are XLA's temporary bytes, `peak` what the budget bounds, `time` the median of
the rounds and its quartiles, all relative to `jax.jit`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from script import finish_rows, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, note, ratio

COLUMNS = ("part", "arm", "temp", "peak", "time")
KINDS = ("attention", "window", "library", "full")  # of 2,048 queries


@dataclass(frozen=True)
class Result:
    """One arm of a part, relative to `jax.jit`."""

    part: str
    arm: str
    temp: float
    peak: float
    time: Ratio

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [self.part, self.arm, f"{self.temp:.3f}", f"{self.peak:.3f}", str(self.time)]


def measure(part: str, budgets: Sequence[float], repeats: int, tiny: bool) -> list[Result]:
    """Compile the arms of a part, and run their steps in turns."""
    from backpass.bench.arms import in_turns, ours, stock
    from backpass.bench.models.parts import parts
    from backpass.bench.suites.memory import least
    from backpass.bench.task import Task

    task = Task.of(parts("tiny" if tiny else "small")[part])
    smallest = least(task)
    arms = {"jax": stock(task), "no budget": ours(task)}
    for times in budgets:
        arms[f"{times:g} x the least"] = ours(task, budget=int(smallest * times))
        note(f"{part}, {times:g} x {smallest >> 20} MiB: compiled")
    base, samples = arms["jax"], in_turns(list(arms.values()), repeats)
    return [
        Result(
            part,
            name,
            (arm.temp_bytes or 0) / (base.temp_bytes or 1),
            (arm.peak_bytes or 0) / (base.peak_bytes or 1),
            ratio(sample.wall, samples[0].wall),
        )
        for (name, arm), sample in zip(arms.items(), samples, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the parts asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options.add_argument("--budgets", nargs="+", type=float, default=[1, 1.5, 2])
    options.add_argument("--repeats", type=int, default=11, help="rounds of all arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for kind in args.kinds:
        part = f"{kind}_{16 if args.tiny else 2048}"
        results += measure(part, args.budgets, args.repeats, args.tiny)
    finish_rows(stamp, COLUMNS, results, args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
