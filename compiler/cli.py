"""The command line: results on stdout, progress and errors on stderr, exit 2 for bad use."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import jax

from ..ir.device import DEVICES, DeviceSpec, device_named
from ..ir.errors import ArgumentError, BackpassError
from ..ir.tables import bytes_text
from ..passes import PASSES, Stage
from ..runtime.device import cache_path, measured
from .budget import parse_bytes
from .compile import CompiledFunction, compile
from .dump import FORMATS
from .plan import plan
from .target import load_target, parse_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except BackpassError as error:
        print(f"backpass: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1


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
    dump.add_argument("-o", "--output", type=Path, help="folder (all stages) or file (one)")
    dump.add_argument("--json", action="store_true", help="list the stages as JSON on stdout")
    dump.set_defaults(run=_dump)

    planning = commands.add_parser("plan", help="peak and time of a step under memory budgets")
    planning.add_argument("target", metavar="FILE_OR_MODULE:FUNCTION")
    planning.add_argument("specs", nargs="*", metavar="SPEC", help="an argument, as f32[8,512]")
    planning.add_argument("--budget", help="4GiB,2GiB; by default a spread of budgets")
    planning.add_argument("--device", help=f"one of: {', '.join(DEVICES)}; by default what is here")
    planning.add_argument("--donate", help="positions of arguments to donate, 0,1")
    planning.add_argument("--passes", help="a pipeline in place of the default one")
    planning.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    planning.add_argument("--png", type=Path, metavar="PATH", help="draw time over peak")
    planning.set_defaults(run=_plan)

    doctor = commands.add_parser("doctor", help="versions and devices")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    return parser


def _dump(options: argparse.Namespace) -> int:
    function, example = load_target(options.target)
    args = [parse_spec(text) for text in options.specs] or example()
    if not isinstance(function, CompiledFunction) or options.passes is not None:
        function = compile(getattr(function, "__wrapped__", function), passes=options.passes)
    stages = _chosen(function.lower(*args).stages, options.stage)
    suffix, render = FORMATS[options.format]
    written = []
    for i, stage in stages:
        text = render(stage.graph)
        if options.output is None:
            path = None
            if not options.json:
                print(text)
        else:
            path = options.output
            if options.stage == "all":
                path = path / f"{i:03d}_{stage.name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path, file=sys.stderr)
        written.append(_row(stage, path))
    if options.json:
        print(json.dumps(written, indent=2))
    return 0


def _plan(options: argparse.Namespace) -> int:
    function, example = load_target(options.target)
    budgets = None if options.budget is None else [*map(parse_bytes, _parts(options.budget))]
    donated = None if options.donate is None else [*map(_position, _parts(options.donate))]
    device = None if options.device is None else device_named(options.device)
    args = [parse_spec(text) for text in options.specs] or example()
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
    print(json.dumps(plans.to_json(), indent=2) if options.json else plans)
    if options.png is not None:
        plans.save_png(options.png)
        print(options.png, file=sys.stderr)
    return 0


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _position(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentError(f"--donate wants positions of arguments such as 0,1, got {text!r}")
    return int(text)


def _chosen(stages: Sequence[Stage], name: str) -> list[tuple[int, Stage]]:
    found = [(i, stage) for i, stage in enumerate(stages) if name in ("all", stage.name)]
    if not found:
        names = ", ".join(stage.name for stage in stages)
        raise ArgumentError(f"there is no stage {name!r}; the stages are {names}")
    return found


def _row(stage: Stage, path: Path | None) -> dict[str, Any]:
    row = {"stage": stage.name, "nodes": len(stage.graph.nodes), "seconds": stage.seconds}
    return row | ({"path": str(path)} if path else {})


def _doctor(options: argparse.Namespace) -> int:
    report = {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("backpass", "jax", "jaxlib", "numpy", "networkx")},
        "devices": [
            f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()
        ],
        "measured": _figures(measured(jax.devices()[0])),
        "kept in": str(cache_path(jax.devices()[0])),
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
