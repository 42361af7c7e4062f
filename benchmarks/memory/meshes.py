"""Do budgets hold for each device of a mesh? A small GPT with Adam, laid out in four ways.

    python benchmarks/memory/meshes.py
    python benchmarks/memory/meshes.py --strategies fsdp --budgets 3

Eight pretended CPU devices in one process. For each way that `examples/strategies.py` has, budgets
are spread between the smallest that is feasible and the peak without one. Columns: bytes of one
device as XLA reports them, `budget` relative to the peak without one, `peak` relative to the
budget, `predicted` to the peak, `rounds` compiled, and `error`, the greatest difference of three
losses from those without a budget. No times: devices that share cores tell nothing of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]
from script import finish, parser

from backpass.bench.measure import environment, note

COLUMNS = "strategy budget peak predicted rounds error".split()
STEPS = 3


@dataclass(frozen=True)
class Row:
    """One budget of one strategy, in bytes of one device."""

    strategy: str
    plain: int
    budget: int
    peak: int
    predicted: int
    rounds: int
    error: float

    def cells(self) -> list[str]:
        """Return the row as text."""
        ratios = self.budget / self.plain, self.peak / self.budget, self.predicted / self.peak
        told = [f"{each:.3f}" for each in ratios]
        return [self.strategy, *told, str(self.rounds), f"{self.error:.0e}"]


def measure(strategy: str, tiny: bool, budgets: int) -> list[Row]:
    """Run a strategy without a budget, then with each of so many."""
    import numpy as np

    import backpass as bp
    from backpass.compiler.budget import peak_bytes
    from strategies import Sizes, prepared

    sizes = Sizes(8, 16, 8, 16, 32, 8) if tiny else Sizes()

    def tried(**options) -> tuple[bp.Compiled, np.ndarray]:
        step, state, tokens = prepared(strategy, sizes, **options)
        program = step.lower(state, tokens(0)).compile()
        losses = []
        for i in range(STEPS):
            state, loss = program(state, tokens(i))
            losses.append(float(loss))
        return program, np.array(losses)

    program, whole = tried()
    plain = peak_bytes(program.memory_analysis())
    try:
        tried(memory_budget=1)
        raise SystemExit(f"{strategy} fits into one byte")
    except bp.BudgetError as error:
        least = error.minimum_bytes
    rows = []
    for budget in np.linspace(plain, least, budgets).astype(int).tolist():
        note(f"{strategy}: {budget} bytes of {plain}")
        program, losses = tried(memory_budget=budget)
        error = float(np.abs(losses - whole).max())
        peak, plan = peak_bytes(program.memory_analysis()), program.plan
        rows.append(Row(strategy, plain, budget, peak, plan.predicted_bytes, plan.rounds, error))
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the strategies asked for; print and return their rows."""
    options = parser(__doc__)
    names = ("data", "tensor", "fsdp", "pipeline")
    options.add_argument("--strategies", nargs="+", choices=names, default=names)
    options.add_argument("--budgets", type=int, default=5, help="budgets of each strategy")
    args = options.parse_args(argv)
    rows = [row for name in args.strategies for row in measure(name, args.tiny, args.budgets)]
    summary = [
        ["budgets", str(len(rows))],
        ["peak within the budget", str(sum(row.peak <= row.budget for row in rows))],
        ["greatest difference of a loss", f"{max(row.error for row in rows):.0e}"],
    ]
    tables = [(COLUMNS, [row.cells() for row in rows]), (("all strategies", ""), summary)]
    finish(environment(), tables, [asdict(row) for row in rows], args.json)
    return rows


if __name__ == "__main__":
    flag = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    main()
