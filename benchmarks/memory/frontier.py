"""Peak memory and time of a training step under budgets, against plain JAX and its policies.

    python benchmarks/memory/frontier.py
    python benchmarks/memory/frontier.py --models gpt12 mlp32 --budgets 10 --json out.json

For each model, budgets are spread between the smallest that is feasible and the peak of plain
`jax.jit`. Peaks are those that XLA reports: arguments + outputs + temporaries - donated. The rivals
are `jax.checkpoint` by hand around blocks, groups of blocks and both, with each of JAX's policies,
in the form in which it works on CPU (the pass that would undo it is off for all arms). At each
budget ours runs beside the fastest rival that fits it. Columns: `budget` of plain JAX's peak,
`peak` of the budget, `predicted` of the peak, `time` of plain JAX's, `rival` the same of the best
rival that fits, `ours/rival`; `rounds` compiled.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from arms import XLA, Case
from script import finish, parser

from backpass.bench.measure import environment, fix_allocator, note

COLUMNS = "model budget peak predicted time rival ours/rival policy rounds".split()


def models() -> dict[str, Callable[..., Any]]:
    """Return builders that take `remat`; sizes that compile in seconds."""
    from backpass.bench.models import images, sequences

    return {
        "mlp32": partial(images.mlp, 1024, (256, *[512] * 32, 10)),
        "gpt12": partial(sequences.gpt, 12, 128, 4, 128, 4, 1024),
        "gpt12_scan": partial(sequences.gpt, 12, 128, 4, 128, 4, 1024, scanned=True),
        "resnet": partial(images.resnet, 32, 32, (32, 64, 128)),
        "unet": partial(images.unet, 8, 64, (16, 32, 64)),
        "lstm": partial(sequences.lstm, 16, 512, 128, 64),
        "moe": partial(sequences.moe, 512, 64, 8, 2, 64),
        "vit": partial(images.vit, 16, 32, 4, 4, 96, 3),
        "vae": partial(images.vae, 256, 784, 512, 32),
    }


TINY = ("mlp",)


@dataclass(frozen=True)
class Row:
    """One budget of one model: bytes, and medians of ratios of seconds."""

    model: str
    budget: int
    peak: int
    predicted: int
    plain: int
    time: float
    rival: float | None
    policy: str
    rounds: int

    def cells(self) -> list[str]:
        """Return the row as text."""
        rival = "-" if self.rival is None else f"{self.rival:.2f}"
        ours = "-" if self.rival is None else f"{self.time / self.rival:.2f}"
        sizes = [
            f"{self.budget / self.plain:.2f}",
            f"{self.peak / self.budget:.2f}",
            f"{self.predicted / self.peak:.2f}",
        ]
        times = [f"{self.time:.2f}", rival, ours, self.policy, str(self.rounds)]
        return [self.model, *sizes, *times]


def rivals(build: Callable[..., Any]) -> dict[str, Any]:
    """Models under JAX's policies, by name."""
    import jax

    from backpass.bench.models.model import Remat

    policies = jax.checkpoint_policies
    chosen = {
        "nothing": None,
        "dots": policies.dots_saveable,
        "dots_no_batch": policies.dots_with_no_batch_dims_saveable,
    }
    found = {"plain": build()}
    for name, policy in chosen.items():
        found[name] = build(remat=Remat(partial(jax.checkpoint, policy=policy)))
    for group in (2, 4, 6):
        found[f"groups of {group}"] = build(remat=Remat(jax.checkpoint, group))
        found[f"nested {group}"] = build(remat=Remat(jax.checkpoint, group, nested=True))
    return found


def measure(name: str, build: Callable[..., Any], budgets: int, repeats: int) -> list[Row]:
    """Compile every arm, then time ours beside the rivals."""
    import numpy as np

    case = Case.of(build())
    arms = [case.stock("plain", case.model.loss)]
    for policy, each in rivals(build).items():
        try:
            arms.append(case.stock(policy, each.loss, XLA))
        except TypeError:
            continue
        note(f"  {policy}: peak {arms[-1].peak / 2**20:.1f} MiB")
    spread = np.linspace(arms[0].peak, case.least(), budgets).astype(int).tolist()
    planned = {budget: case.ours(budget) for budget in spread}
    for budget, arm in planned.items():
        note(f"  budget {budget / 2**20:.1f} MiB: peak {arm.peak / 2**20:.1f} MiB")
    times = case.timed([*arms, *planned.values()], repeats)
    rows = []
    for budget, arm in planned.items():
        able = [a for a in arms if a.peak <= budget]
        best = min(able, key=lambda a: times[id(a)], default=None)
        rival = None if best is None else times[id(best)]
        policy = "none fits" if best is None else best.name
        own = (budget, arm.peak, arm.predicted, arms[0].peak, times[id(arm)])
        rows.append(Row(name, *own, rival, policy, arm.rounds))
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the models asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=list(models()), metavar="NAME")
    options.add_argument("--budgets", type=int, default=10, help="budgets of each model")
    options.add_argument("--repeats", type=int, default=7, help="rounds of all arms in turns")
    args = options.parse_args(argv)
    stamp = environment()
    builders = models()
    if args.tiny:
        from backpass.bench.models.sizes import SIZES

        builders = {name: partial(SIZES["tiny"][name]) for name in TINY}
    rows: list[Row] = []
    for name in args.models or builders:
        note(name)
        rows += measure(name, builders[name], args.budgets, args.repeats)
    against = [row.time / row.rival for row in rows if row.rival is not None]
    errors = [abs(row.predicted / row.peak - 1) for row in rows]
    summary = [
        ["budgets", str(len(rows))],
        ["peak within the budget", str(sum(row.peak <= row.budget for row in rows))],
        ["prediction off, median", f"{statistics.median(errors):.3f}"],
        ["prediction off, at worst", f"{max(errors):.3f}"],
        ["ours / best rival, median", f"{statistics.median(against):.2f}" if against else "-"],
        ["no slower than it (1.02)", str(sum(ratio <= 1.02 for ratio in against))],
        ["no rival fits", str(sum(row.rival is None for row in rows))],
    ]
    tables = [(COLUMNS, [row.cells() for row in rows]), (("all models", ""), summary)]
    finish(stamp, tables, [asdict(row) for row in rows], args.json)
    return rows


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
