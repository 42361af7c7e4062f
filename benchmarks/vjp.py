"""Cost of an eager `vjp` of one op, ours / JAX's: how fast a loop of small derivatives is.

    python benchmarks/vjp.py
    python benchmarks/vjp.py --ops sin dot_general scatter-add --repeats 20

Nothing is compiled by the caller: `y, pull = vjp(f, *xs)` and `pull(ct)` run as they are, on the
first case of each op in the table of `tests/ops` that JAX can differentiate too. `vjp` is the first
call alone, `whole` is both. A sample is a block of calls; blocks of the arms take turns, and the
ratios are medians over the rounds with their quartiles. The slowest op comes first; the last row is
the median over the table.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from script import finish, parser

from backpass.bench.measure import Ratio, environment, fix_allocator, interleave, note, ratio

TESTS = Path(__file__).parents[1] / "tests"
COLUMNS = ("op", "vjp", "whole")


@dataclass(frozen=True)
class Result:
    """Ratios of one op, and the medians of the seconds of a whole call."""

    op: str
    vjp: Ratio
    whole: Ratio
    seconds: dict[str, float]


def table() -> Iterator[Any]:
    """Yield the first case of each op that JAX differentiates."""
    sys.path.insert(0, str(TESTS))
    from ops.cases import CASES

    seen = set()
    for case in CASES:
        if case.op not in seen and case.peer and case.active:
            seen.add(case.op)
            yield case


def measured(case: Any, repeats: int, calls: int) -> Result | None:
    """Time both arms of one case; None where an arm has no derivative."""
    import jax

    import backpass as bp
    from ops.harness import operands, primal

    f, xs = primal(case), [jax.numpy.asarray(x) for x in operands(case)]

    def whole(vjp: Callable[..., Any]) -> Any:
        y, pull = vjp(f, *xs)
        return pull(y)

    arms = {"backpass": bp.vjp, "jax": jax.vjp}
    try:
        for vjp in arms.values():
            if not jax.tree.leaves(whole(vjp)) or not jax.tree.leaves(f(*xs)):
                return None
    except (NotImplementedError, TypeError):
        return None
    runs = {f"{name} whole": lambda vjp=vjp: whole(vjp) for name, vjp in arms.items()}
    runs |= {f"{name} vjp": lambda vjp=vjp: vjp(f, *xs) for name, vjp in arms.items()}
    found = {name: s.wall for name, s in interleave(runs, repeats, calls).items()}
    return Result(
        case.op,
        ratio(found["backpass vjp"], found["jax vjp"]),
        ratio(found["backpass whole"], found["jax whole"]),
        {name: statistics.median(found[f"{name} whole"]) for name in arms},
    )


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure every op of the table; print ratios and return the results."""
    options = parser(__doc__)
    options.add_argument("--ops", nargs="+", metavar="NAME", help="default: all of the table")
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--calls", type=int, default=3, help="of one sample")
    args = options.parse_args(argv)
    stamp = environment()
    import jax

    wanted = args.ops or (["sin", "mul"] if args.tiny else None)
    results = []
    with jax.enable_x64(True):
        for case in table():
            if wanted is None or case.op in wanted:
                result = measured(case, args.repeats, args.calls)
                if result is None:
                    note(f"{case.op}: no derivative")
                else:
                    results.append(result)
                    note(f"{case.op}: {result.seconds['backpass'] * 1e3:.2f} ms")
    results.sort(key=lambda r: -r.whole.median)
    rows = [[r.op, str(r.vjp), str(r.whole)] for r in results]
    kinds = ("vjp", "whole")
    middle = [statistics.median(getattr(r, kind).median for r in results) for kind in kinds]
    rows.append(["median", *(f"{m:.2f}" for m in middle)])
    finish(stamp, [(COLUMNS, rows)], [asdict(r) for r in results], args.json)
    return results


if __name__ == "__main__":
    fix_allocator("--default-allocator" in sys.argv)
    main()
