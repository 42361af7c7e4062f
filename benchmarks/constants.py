"""What an array costs that a function closes over: seconds to compile, beside an argument's.

    python benchmarks/constants.py
    python benchmarks/constants.py --mib 16 256 --repeats 5

A program looks rows up in a table. `read`: the table is a constant that is looked up as it is;
`computed`: one that is multiplied first, which XLA does ahead of time; `argument`: an argument.
Columns are seconds from trace to executable, the median of the rounds, by arms in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from script import finish_rows, parser

from backpass.bench.measure import environment, note

COLUMNS = ("MiB", "read", "computed", "argument")
WIDTH = 1024


@dataclass(frozen=True)
class Row:
    """Median seconds for a table of so many MiB, by how it is given."""

    mib: int
    seconds: dict[str, float]

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [str(self.mib), *(f"{each:.2f}" for each in self.seconds.values())]


def arms(mib: int, draw: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Functions that nothing has compiled before, and their arguments."""
    import numpy as np

    table = np.random.default_rng(draw).normal(size=(mib * 2**18 // WIDTH, WIDTH)).astype("f4")
    rows = np.arange(8)

    def look_up(rows: Any, table: Any) -> Any:
        return table[rows].sum()

    return {
        "read": (lambda rows: look_up(rows, _array(table)), (rows,)),
        "computed": (lambda rows: look_up(rows, 2 * _array(table)), (rows,)),
        "argument": (look_up, (rows, table)),
    }


def _array(table: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(table)


def measure(mib: int, repeats: int) -> Row:
    """Compile each arm so many times."""
    import backpass as bp

    seconds: dict[str, list[float]] = {}
    for i in range(repeats):
        for name, (function, args) in arms(mib, i).items():
            start = time.perf_counter()
            bp.compile(function).lower(*args).compile()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
        note(f"{mib} MiB, round {i + 1} of {repeats}")
    return Row(mib, {name: median(each) for name, each in seconds.items()})


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure each size; print and return the rows."""
    import jax

    options = parser(__doc__)
    options.add_argument("--mib", type=int, nargs="+", default=[1, 16, 64, 256])
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args(argv)
    before = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", -1)
    try:
        rows = [measure(mib, args.repeats) for mib in ([1] if args.tiny else args.mib)]
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", before)
    finish_rows(environment(), COLUMNS, rows, args.json)
    return rows


if __name__ == "__main__":
    main()
