"""The command line: results on stdout, progress and errors on stderr, exit 2 for bad use."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax

from ..ir.device import DEVICES, DeviceSpec, device_named
from ..ir.diff import diff
from ..ir.errors import ArgumentError, BackpassError, DumpError
from ..ir.graph import Graph
from ..ir.parser import parse
from ..ir.tables import bytes_text
from ..passes import PASSES, Stage
from ..runtime.device import cache_path, measured
from .budget import parse_bytes
from .cache import current as cache_of_programs
from .compile import compile
from .dump import FORMATS, installed, read_stages, stage_file, write_text
from .function import CompiledFunction
from .plan import plan
from .stages import Lowered
from .target import check_call, load_target, parse_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        status = int(options.run(options))
        print(end="", flush=True)
        return status
    except BackpassError as error:
        print(f"backpass: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError | DumpError) else int(options.trouble)
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(options.trouble)
    except KeyboardInterrupt:
        print("backpass: interrupted", file=sys.stderr)
        return 130  # as shells have it
    except (Exception, SystemExit):
        traceback.print_exc()
        print(
            "backpass: stopped by what the program raised, above\n  where no line of the program "
            "stands there, it is a bug in backpass: please report it",
            file=sys.stderr,
        )
        return int(options.trouble)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("backpass", description="A static-graph autodiff compiler.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    dump = commands.add_parser("dump", help="write a function's graph after each pass")
    dump.add_argument("target", metavar="FILE_OR_MODULE:FUNCTION")
    dump.add_argument("specs", nargs="*", metavar="SPEC", help="an argument, as f32[8,512]")
    stages = ", ".join(["traced", *PASSES])
    dump.add_argument("--stage", default="all", help=f"all, or one of: {stages}")
    dump.add_argument("--format", choices=FORMATS, default="text")
    dump.add_argument("--passes", help="a pipeline in place of the default one")
    dump.add_argument("-o", "--output", type=Path, help="a file; for all stages a folder")
    dump.add_argument("--json", action="store_true", help="list the stages as JSON on stdout")
    dump.set_defaults(run=_dump, trouble=1)

    compare = commands.add_parser("diff", help="what differs between two dumps or two stages")
    compare.add_argument("a", metavar="A", help="a dump's folder or file, or FILE:FUNCTION")
    compare.add_argument("b", nargs="*", metavar="B", help="another; with two stages, SPECs of A")
    compare.add_argument("--stages", metavar="NAMES", help="BEFORE,AFTER of A; or one, of A and B")
    compare.add_argument("--passes", help="a pipeline in place of the default one")
    compare.add_argument("--json", action="store_true", help="the differences as JSON on stdout")
    compare.set_defaults(run=_diff, trouble=2)

    planning = commands.add_parser("plan", help="peak and time of a step under memory budgets")
    planning.add_argument("target", metavar="FILE_OR_MODULE:FUNCTION")
    planning.add_argument("specs", nargs="*", metavar="SPEC", help="an argument, as f32[8,512]")
    planning.add_argument("--budget", help="4GiB,2GiB; by default a spread of budgets")
    planning.add_argument("--device", help=f"one of: {', '.join(DEVICES)}; by default what is here")
    planning.add_argument("--donate", help="positions of arguments to donate, 0,1")
    planning.add_argument("--passes", help="a pipeline in place of the default one")
    planning.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    planning.add_argument("--png", type=Path, metavar="PATH", help="draw time over peak")
    planning.set_defaults(run=_plan, trouble=1)

    doctor = commands.add_parser("doctor", help="versions and devices")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor, trouble=1)
    return parser


def _dump(options: argparse.Namespace) -> int:
    lowered = _lowered(options.target, options.specs, options.passes)
    chosen = FORMATS[options.format]
    if chosen.whole:
        if options.stage != "all":
            raise ArgumentError(f"--format {options.format} is of the whole program, not a stage")
        name = f"program{chosen.suffix}"
        texts = [(name, lambda: chosen.render(lowered), {"format": options.format})]
    else:
        texts = [
            (stage_file(i, s.name, chosen.suffix), partial(chosen.render, s.graph), _row(s))
            for i, s in _chosen(lowered.stages, options.stage)
        ]
    one = chosen.whole or options.stage != "all"
    written = []
    if options.output is not None and not one and options.format == "text":
        paths = lowered.dump(options.output)
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


def _lowered(target: str, specs: Sequence[str], passes: str | None) -> Lowered:
    function, example = load_target(target)
    args = [parse_spec(text) for text in specs] or example()
    check_call(target, function, args)
    if not isinstance(function, CompiledFunction) or passes is not None:
        function = compile(getattr(function, "__wrapped__", function), passes=passes)
    return function.lower(*args)


def _diff(options: argparse.Namespace) -> int:
    names = [] if options.stages is None else _parts(options.stages)
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
    stages = _lowered(text, specs, passes).stages
    return [(stage.name, partial(getattr, stage, "graph")) for stage in stages]


def _stage(stages: Sequence[tuple[str, Callable[[], Graph]]], name: str | None) -> Graph:
    """The last stage of that name, or the last of all."""
    if name is None:
        return stages[-1][1]()
    found = [graph for known, graph in stages if known == name]
    if not found:
        raise _no_stage(name, [known for known, _ in stages])
    return found[-1]()


_COLOURS = {"-": "31", "+": "32", "~": "33"}


def _coloured(text: str) -> str:
    """Colour changed lines, on a terminal and unless `NO_COLOR` is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    colours = ((line, _COLOURS.get(line.lstrip()[:1])) for line in text.split("\n"))
    return "\n".join(f"\x1b[{c}m{line}\x1b[0m" if c else line for line, c in colours)


def _plan(options: argparse.Namespace) -> int:
    function, example = load_target(options.target)
    budgets = (
        None if options.budget is None else [*map(parse_bytes, _parts(options.budget) or [""])]
    )
    donated = None if options.donate is None else [*map(_position, _parts(options.donate))]
    device = None if options.device is None else device_named(options.device)
    args = [parse_spec(text) for text in options.specs] or example()
    check_call(options.target, function, args)
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


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _position(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ArgumentError(f"--donate wants positions of arguments such as 0,1, got {text[:40]!r}")
    return int(text)


def _chosen(stages: Sequence[Stage], name: str) -> list[tuple[int, Stage]]:
    found = [(i, stage) for i, stage in enumerate(stages) if name in ("all", stage.name)]
    if not found:
        raise _no_stage(name, [stage.name for stage in stages])
    return found


def _no_stage(name: str, known: Sequence[str]) -> ArgumentError:
    return ArgumentError(f"there is no stage {name!r}; the stages are {', '.join(known)}")


def _row(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "nodes": len(stage.graph.nodes), "seconds": stage.seconds}


def _doctor(options: argparse.Namespace) -> int:
    report = {
        "python": platform.python_version(),
        **{name: installed(name) for name in ("backpass", "jax", "jaxlib", "numpy", "networkx")},
        "devices": [
            f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()
        ],
        "measured": _figures(measured(jax.local_devices()[0])),
        "kept in": str(cache_path(jax.local_devices()[0])),
        "cache": str(cache_of_programs() or "off; bp.cache() turns it on"),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for name, value in report.items():
        if isinstance(value, dict):
            value = [f"{each} {figure}" for each, figure in value.items()]
        print(f"{name:<10} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _figures(spec: DeviceSpec) -> dict[str, Any]:
    """What a device can do; the ops that take longest beside the roofline."""
    dear = sorted(spec.costs.items(), key=lambda item: -item[1])
    return {
        "memory": bytes_text(spec.memory_bytes),
        "FLOP/s": f"{spec.flops:.2g}",
        "bytes/s": f"{spec.bytes_per_s:.2g}",
        "to the host": f"{spec.host_bytes_per_s:.2g}" if spec.host_bytes_per_s else "no link",
        **{f"roofline of {name.replace(', ', ' ')}": f"x {cost:.3g}" for name, cost in dear[:6]},
    }
