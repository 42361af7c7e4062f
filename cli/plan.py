"""`backpass plan`: peak and time of a step under memory budgets."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from ..compiler.budget import parse_bytes
from ..compiler.plan import plan
from ..ir.device import DEVICES, device_named
from ..ir.errors import ArgumentError
from .graphs import add_passes, call_of, parts


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("plan", help="peak and time of a step under memory budgets")
    parser.add_argument("target", metavar="FILE_OR_MODULE:FUNCTION")
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="an argument, as f32[8,512]")
    parser.add_argument("--budget", help="4GiB,2GiB; by default a spread of budgets")
    parser.add_argument("--device", help=f"one of: {', '.join(DEVICES)}; by default what is here")
    parser.add_argument("--donate", help="positions of arguments to donate, 0,1")
    add_passes(parser)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--png", type=Path, metavar="PATH", help="draw time over peak")
    parser.set_defaults(run=run, trouble=1)


def run(options: argparse.Namespace) -> int:
    """Print the plans, and draw them where asked."""
    budgets = None if options.budget is None else _budgets(options.budget)
    donated = None if options.donate is None else [*map(_position, parts(options.donate))]
    device = None if options.device is None else device_named(options.device)
    function, args = call_of(options.target, options.specs)
    start = perf_counter()
    plans = plan(
        function,
        *args,
        budgets=budgets,
        device=device,
        passes=options.passes,
        donate_argnums=donated,
    )
    print(f"planned in {perf_counter() - start:.1f} s", file=sys.stderr)
    if options.png is not None:
        plans.save_png(options.png)
        print(options.png, file=sys.stderr)
    print(json.dumps(plans.to_json(), indent=2) if options.json else plans)
    return 0


def _budgets(text: str) -> list[int]:
    return [parse_bytes(part) for part in parts(text) or [""]]


def _position(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ArgumentError(f"--donate wants positions of arguments such as 0,1, got {text[:40]!r}")
    return int(text)
