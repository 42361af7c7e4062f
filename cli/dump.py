"""`backpass dump`: a function's graph after each pass."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..compiler.dump import FORMATS, stage_file, write_text
from ..ir.errors import ArgumentError
from ..passes import PASSES, Stage
from .graphs import add_passes, lowered, no_stage


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("dump", help="write a function's graph after each pass")
    parser.add_argument("target", metavar="FILE_OR_MODULE:FUNCTION")
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="an argument, as f32[8,512]")
    stages = ", ".join(["traced", *PASSES])
    parser.add_argument("--stage", default="all", help=f"all, or one of: {stages}")
    parser.add_argument("--format", choices=FORMATS, default="text")
    add_passes(parser)
    parser.add_argument("-o", "--output", type=Path, help="a file; for all stages a folder")
    parser.add_argument("--json", action="store_true", help="list the stages as JSON on stdout")
    parser.set_defaults(run=run, trouble=1)


def run(options: argparse.Namespace) -> int:
    """Write or print the stages asked for."""
    program = lowered(options.target, options.specs, options.passes)
    chosen = FORMATS[options.format]
    if chosen.whole:
        if options.stage != "all":
            raise ArgumentError(f"--format {options.format} is of the whole program, not a stage")
        name = f"program{chosen.suffix}"
        texts = [(name, lambda: chosen.render(program), {"format": options.format})]
    else:
        texts = [
            (stage_file(i, s.name, chosen.suffix), partial(chosen.render, s.graph), _row(s))
            for i, s in _chosen(program.stages, options.stage)
        ]
    one = chosen.whole or options.stage != "all"
    written = []
    if options.output is not None and not one and options.format == "text":
        paths = program.dump(options.output)
        print(f"{options.output}: {len(paths)} files", file=sys.stderr)
        written = [row | {"path": str(path)} for path, (*_, row) in zip(paths, texts, strict=False)]
    else:
        written = [row | _put(text, name, one, options) for name, text, row in texts]
    if options.json:
        print(json.dumps(written, indent=2))
    return 0


def _put(
    text: Callable[[], str], name: str, one: bool, options: argparse.Namespace
) -> dict[str, str]:
    """Write a text where `-o` says, or print it."""
    if options.output is None:
        if not options.json:
            print(text())
        return {}
    path = options.output if one and not options.output.is_dir() else options.output / name
    write_text(path, text())
    print(path, file=sys.stderr)
    return {"path": str(path)}


def _chosen(stages: Sequence[Stage], name: str) -> list[tuple[int, Stage]]:
    found = [(i, stage) for i, stage in enumerate(stages) if name in ("all", stage.name)]
    if not found:
        raise no_stage(name, [stage.name for stage in stages])
    return found


def _row(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "nodes": len(stage.graph.nodes), "seconds": stage.seconds}
