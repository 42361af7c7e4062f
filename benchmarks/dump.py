"""What it takes to dump a program: CPU seconds of each part, and bytes of its files.

    python benchmarks/dump.py --sizes 10000

A program is a training step of `scaling.py`, of so many equations before it is differentiated;
`nodes` are those of the last stage. `text` are all stages, one file each; `all` is `Lowered.dump`
into a folder that is thrown away, StableHLO included. `diff` compares the last stage with what
its text reads back to. Seconds are CPU seconds, and MB are 10^6 bytes: of all files together, and
of the largest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from scaling import PROGRAMS
from script import finish_rows, parser

from backpass.bench.measure import environment, fix_allocator, note

COLUMNS = ("program", "nodes", "text", "json", "dot", "trace", "stablehlo", "all", "parse", "diff")


@dataclass(frozen=True)
class Result:
    """CPU seconds by part; bytes of all files and of the largest."""

    program: str
    nodes: int
    seconds: dict[str, float]
    bytes: int
    largest: int

    def cells(self) -> list[str]:
        """A row of the table."""
        seconds = [f"{self.seconds[name]:.2f}" for name in COLUMNS[2:]]
        sizes = [f"{size / 1e6:.1f}" for size in (self.bytes, self.largest)]
        return [self.program, str(self.nodes), *seconds, *sizes]


def measured(program: str, size: int) -> Result:
    """Dump a step of `size` equations."""
    import backpass as bp
    from backpass.compiler.dump import FORMATS

    fun, args = PROGRAMS[program](size)
    lowered = bp.compile(bp.value_and_grad(fun)).lower(args)
    clock: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = process_time()
        found = run()
        clock[name] = process_time() - start
        return found

    timed("text", lambda: [str(stage.graph) for stage in lowered.stages])
    for name in ("json", "dot"):
        timed(name, lambda name=name: FORMATS[name].render(lowered.graph))
    for name in ("trace", "stablehlo"):
        timed(name, lambda name=name: FORMATS[name].render(lowered))
    again = bp.compile(bp.value_and_grad(fun)).lower(args)
    with tempfile.TemporaryDirectory() as folder:
        paths = timed("all", lambda: again.dump(Path(folder)))
        sizes = [path.stat().st_size for path in paths]
    read = timed("parse", lambda: bp.ir.parse(str(lowered.graph)))
    found = timed("diff", lambda: bp.ir.diff(lowered.graph, read))
    if not found.same:
        raise AssertionError(f"the text of {program} reads back to another graph")
    return Result(program, len(lowered.graph.nodes), clock, sum(sizes), max(sizes))


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure each program; print and return the rows."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", type=int, metavar="N", help="default 1000 5000")
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    args = options.parse_args(argv)
    stamp = environment()
    results = []
    for program in args.programs:
        for size in args.sizes or ([50] if args.tiny else [1000, 5000]):
            note(f"{program} {size}")
            results.append(measured(program, size))
    columns = (*COLUMNS, "MB", "largest")
    finish_rows(stamp, columns, results, args.json)
    return results


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
