"""`backpass bench`: training steps beside those of peers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..bench.arms import PEERS
from ..bench.compare import compare
from ..bench.measure import fix_allocator
from ..bench.models.sizes import SIZES
from ..bench.plot import plot
from ..bench.report import read
from ..bench.run import run as run_suites
from ..bench.suites.table import SUITES
from .graphs import add_passes, parts


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("bench", help="training steps beside those of peers")
    told = ", ".join(SUITES)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"by default all: {told}")
    parser.add_argument("--against", default="jax", help=f"peers, jax,torch: {', '.join(PEERS)}")
    parser.add_argument("--size", default="auto", choices=("auto", *SIZES))
    parser.add_argument("--models", default="", help="some cases of the suites, mlp,gpt")
    parser.add_argument("--repeats", type=int, help="rounds of the arms in turns")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and data")
    add_passes(parser)
    parser.add_argument(
        "--precision", choices=("bfloat16",), help="of products, ours and PyTorch's"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all numbers")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the tables")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the ratios as a PNG")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="find what became worse")
    parser.add_argument(
        "--default-allocator", action="store_true", help="leave malloc as the system has it"
    )
    parser.set_defaults(run=run, trouble=1)


def run(options: argparse.Namespace) -> int:
    """Print the tables; 1 where a row failed or has become worse."""
    old = None if options.compare is None else read(options.compare)
    if options.program:
        light = all(SUITES[name].light for name in options.suites or SUITES if name in SUITES)
        fix_allocator(options.default_allocator or light)
    report = run_suites(
        options.suites,
        against=parts(options.against),
        size=options.size,
        models=parts(options.models),
        repeats=options.repeats,
        seed=options.seed,
        passes=options.passes,
        precision=options.precision,
    )
    print(report)
    for path, write in (
        (options.json, report.save),
        (options.markdown, report.save_markdown),
        (options.plot, lambda path: plot(report, path)),
    ):
        if path is not None:
            write(path)
            print(path, file=sys.stderr)
    if old is None:
        return 1 if report.failed else 0
    found = compare(old, report)
    print(f"\n{found}")
    return 1 if report.failed or found.worse else 0
