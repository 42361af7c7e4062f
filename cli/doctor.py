"""`backpass doctor`: versions, devices, and what they can do."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import jax

from ..compiler.cache import current as cache_of_programs
from ..compiler.dump import installed
from ..ir.device import DeviceSpec
from ..ir.tables import bytes_text
from ..runtime.device import cache_path, measured, renew


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("doctor", help="versions and devices")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run, trouble=1)


def run(options: argparse.Namespace) -> int:
    """Print what is here."""
    renew()
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
