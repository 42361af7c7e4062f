"""How far the memory of activations falls, and at what price, on deep transformers.

    python benchmarks/memory/headline.py
    python benchmarks/memory/headline.py --models scanned --factors 10 20 --json out.json

`activations` are XLA's temporaries of the plain step, less what gradients take: a scan over layers
stacks the gradients of all of them, whatever is recomputed. Each row asks for a budget in which a
factor fewer activations have room. The peer is `jax.jit` of the same source, and its
`jax.checkpoint` around each block; columns: `activations` and `temp` of the plain step's, `time`
of its.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from script import finish_rows, parser

from backpass.bench.arms import checkpointed, in_turns, ours, stock
from backpass.bench.measure import environment, fix_allocator, note, ratio
from backpass.bench.task import Task

COLUMNS = "model arm activations temp time fewer".split()


def models() -> dict[str, Callable[..., Any]]:
    """Return builders that take `remat`."""
    from backpass.bench.models import sequences

    return {
        "unrolled": partial(sequences.gpt, 16, 128, 4, 128, 4, 64),
        "scanned": partial(sequences.gpt, 64, 128, 4, 128, 4, 64, scanned=True),
    }


@dataclass(frozen=True)
class Row:
    """One arm: bytes, and the median of ratios of seconds."""

    model: str
    arm: str
    activations: float
    temp: float
    time: float

    def cells(self) -> list[str]:
        """Return the row as text."""
        parts = (self.activations, self.temp, self.time)
        fewer = f"{1 / self.activations:.1f}x"
        return [self.model, self.arm, *(f"{part:.3f}" for part in parts), fewer]


def measure(
    name: str, build: Callable[..., Any], factors: Sequence[float], repeats: int
) -> list[Row]:
    """Compile every arm, then time them in turns."""
    import jax

    import backpass as bp

    task = Task.of(build)
    gradients = sum(x.nbytes for x in jax.tree.leaves(task.params)) if name == "scanned" else 0
    plain = stock(task, "plain")
    arms = [plain, checkpointed(task, "nothing")]
    activations = plain.temp_bytes - gradients
    fixed = plain.peak_bytes - activations
    for factor in factors:
        try:
            arm = ours(task, budget=int(fixed + activations / factor))
        except bp.BudgetError as error:
            note(f"  {factor}x: {error}")
            continue
        arms.append(replace(arm, name=f"ours, {factor:g}x"))
        sizes = " of ".join(f"{each.temp_bytes / 2**20:.1f}" for each in (arm, plain))
        note(f"  {factor}x: temp {sizes} MiB")
    base, *rest = in_turns(arms, repeats)
    return [
        Row(
            name,
            arm.name.removeprefix("jax-").removesuffix(" nothing"),
            (arm.temp_bytes - gradients) / activations,
            arm.temp_bytes / plain.temp_bytes,
            ratio(samples.wall, base.wall).median,
        )
        for arm, samples in zip(arms, [base, *rest], strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the models asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=list(models()), metavar="NAME")
    options.add_argument("--factors", nargs="+", type=float, default=[4, 10, 20])
    options.add_argument("--repeats", type=int, default=7, help="rounds of all arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    builders = models()
    if args.tiny:
        from backpass.bench.models import sequences

        builders = {"unrolled": partial(sequences.gpt, 3, 32, 2, 32, 2, 16)}
    rows: list[Row] = []
    for name in args.models or builders:
        note(name)
        rows += measure(name, builders[name], args.factors, args.repeats)
    finish_rows(stamp, COLUMNS, rows, args.json)
    return rows


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
