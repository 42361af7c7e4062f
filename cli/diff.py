"""`backpass diff`: what differs between two dumps or two stages; 0 for the same, 1 for others."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..compiler.dump import read_stages
from ..ir.diff import diff
from ..ir.errors import ArgumentError
from ..ir.graph import Graph
from ..ir.parser import parse
from .graphs import add_passes, lowered, no_stage, parts


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("diff", help="what differs between two dumps or two stages")
    parser.add_argument("a", metavar="A", help="a dump's folder or file, or FILE:FUNCTION")
    parser.add_argument("b", nargs="*", metavar="B", help="another; with two stages, SPECs of A")
    parser.add_argument("--stages", metavar="NAMES", help="BEFORE,AFTER of A; or one, of A and B")
    add_passes(parser)
    parser.add_argument("--json", action="store_true", help="the differences as JSON on stdout")
    parser.set_defaults(run=run, trouble=2)


def run(options: argparse.Namespace) -> int:
    """Print the differences."""
    names = [] if options.stages is None else parts(options.stages)
    if len(names) > 2:
        raise ArgumentError(f"--stages wants one stage or two, got {options.stages!r}")
    if len(names) == 2:
        stages = _graphs(options.a, options.b, options.passes)
        before, after = (_stage(stages, name) for name in names)
    else:
        if len(options.b) != 1:
            raise ArgumentError("diff wants two dumps, or one program and --stages BEFORE,AFTER")
        name = names[0] if names else None
        sides = [_graphs(each, (), options.passes) for each in (options.a, options.b[0])]
        # As texts, which name large constants: a program and its own dump are the same.
        graphs = (_stage(stages, name) for stages in sides)
        before, after = (parse(str(graph), opaque=True) for graph in graphs)
    found = diff(before, after)
    print(json.dumps(found.to_json(), indent=2) if options.json else _coloured(str(found)))
    return 0 if found.same else 1


def _graphs(
    text: str, specs: Sequence[str], passes: str | None
) -> list[tuple[str, Callable[[], Graph]]]:
    """Stages by name: of a dump's folder or file, or of FILE_OR_MODULE:FUNCTION."""
    path = Path(text)
    if path.exists() or ":" not in text:
        if specs:
            raise ArgumentError(f"{text} is a dump, which takes no argument types")
        return read_stages(path)
    stages = lowered(text, specs, passes).stages
    return [(stage.name, partial(getattr, stage, "graph")) for stage in stages]


def _stage(stages: Sequence[tuple[str, Callable[[], Graph]]], name: str | None) -> Graph:
    """The last stage of that name, or the last of all."""
    if name is None:
        return stages[-1][1]()
    found = [graph for known, graph in stages if known == name]
    if not found:
        raise no_stage(name, [known for known, _ in stages])
    return found[-1]()


_COLOURS = {"-": "31", "+": "32", "~": "33"}


def _coloured(text: str) -> str:
    """Colour changed lines, on a terminal and unless `NO_COLOR` is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    colours = ((line, _COLOURS.get(line.lstrip()[:1])) for line in text.split("\n"))
    return "\n".join(f"\x1b[{c}m{line}\x1b[0m" if c else line for line, c in colours)
