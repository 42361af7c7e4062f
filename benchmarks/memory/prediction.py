"""How far predicted peaks are from those that XLA reports, before and after a calibration.

    python benchmarks/memory/prediction.py
    python benchmarks/memory/prediction.py --models gpt12 lstm --budgets 8

For each budget the plan that should fit is compiled, and `first` is how far its predicted peak is
off. Its peak calibrates the prediction for plans that are alike, with fences or without; the plan
that should fit by that, where it is another one, is compiled too, and `second` is how far its
expected peak is off. Peaks have no noise, so that
other processes may run meanwhile. Parts of XLA's peaks: medians, and the worst in brackets.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from script import finish, parser

from backpass.bench.arms import step_of
from backpass.bench.measure import environment, note
from backpass.bench.suites.memory import cases
from backpass.bench.task import RATE, Task

COLUMNS = ("model", "plans", "first", "calibrated", "second")


@dataclass(frozen=True)
class Result:
    """One model: predicted or expected peaks over reported ones, less 1."""

    model: str
    first: list[float]
    second: list[float]

    def cells(self) -> list[str]:
        """Return the row as text."""
        counts = (str(len(self.first)), str(len(self.second)))
        return [self.model, counts[0], _spread(self.first), counts[1], _spread(self.second)]


def _spread(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"{statistics.median(sizes):.3f} ({max(sizes):.3f})" if sizes else "-"


def measure(name: str, build: Callable[..., Any], budgets: int) -> Result:
    """Plan, compile, calibrate, plan again and compile again, at each budget."""
    import numpy as np

    import backpass as bp
    from backpass.compiler.calibration import Calibration
    from backpass.compiler.memory_plan import plan_of
    from backpass.passes.rematerialise import Forms, Planned
    from backpass.runtime.device import live_spec

    task = Task.of(build)
    args = (task.params, task.batch, np.float32(RATE))
    step = step_of(bp.value_and_grad, task.model.loss)
    graphs, donated = bp.compile(step, donate_argnums=0).forms(args, {})
    forms = Forms.of_graphs(graphs, live_spec(), donated)
    peaks: dict[Planned, int] = {}

    def peak(planned: Planned) -> int:
        if planned not in peaks:
            plan = plan_of(forms, planned, None, None, 0)
            found = bp.compile(step, plan=plan, donate_argnums=0).lower(*args).compile().plan
            peaks[planned] = found.measured_bytes
        return peaks[planned]

    first: dict[Planned, float] = {}
    second: dict[tuple[Planned, Planned], float] = {}
    for budget in np.linspace(forms.leanest.bytes, forms.plain.bytes, budgets):
        planned = forms.fastest(budget)
        first[planned] = planned.bytes / peak(planned) - 1
        calibration = Calibration([(planned, peak(planned))])
        other = forms.fastest(calibration.predicted(budget))
        if other is not None and other is not planned and other.fenced == planned.fenced:
            second[planned, other] = calibration.expected(other) / peak(other) - 1
        note(f"  {budget / 2**20:.1f} MiB: {first[planned]:+.3f}")
    return Result(name, list(first.values()), list(second.values()))


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the models asked for; print and return their rows."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=list(cases("small")), metavar="NAME")
    options.add_argument("--budgets", type=int, default=6, help="budgets of each model")
    args = options.parse_args(argv)
    stamp = environment()
    builders = cases("tiny" if args.tiny else "small")
    results = []
    for name in args.models or builders:
        note(name)
        results.append(measure(name, builders[name], args.budgets))
    first = [error for result in results for error in result.first]
    second = [error for result in results for error in result.second]
    rows = [*(r.cells() for r in results), Result("all", first, second).cells()]
    finish(stamp, [(COLUMNS, rows)], [asdict(r) for r in results], args.json)
    return results


if __name__ == "__main__":
    main()
