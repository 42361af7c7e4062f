"""What the device at hand can do: measured once, and then read from the user's cache folder.

    $BACKPASS_DEVICE              a name of `DEVICES` to plan for, in place of what is here
    the cache                     what was measured on such a device under this JAX
    a known accelerator           its vendor's figures
    else                          it is measured now, and written to the cache

Processes that run a program together plan by the table alone, as all of them have to
come to the same program.

The cache is `$XDG_CACHE_HOME/backpass`, or `~/.cache/backpass`. What was measured on a busy machine
holds until it is not; what was measured in a slow hour, until `renew` sees a faster one.
"""

from __future__ import annotations

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import jax

from ..ir.device import DEVICES, DeviceSpec, device_named
from ..ir.records import parsed, read
from .probes import has_link, measure, rates
from .progress import Watch

VARIABLE = "BACKPASS_DEVICE"
PATIENCE = 1.0  # seconds of silence
FORMAT = 3  # of the file, and of what its figures mean
FASTER = 1.25  # times what is kept: more than one measurement differs from the next


def live_spec(device: jax.Device | None = None) -> DeviceSpec:
    """What a device, or the default one, can do. Raises `ArgumentError` for a wrong variable."""
    name = os.environ.get(VARIABLE)
    if name:
        return device_named(name)
    device = device or jax.local_devices()[0]
    if jax.process_count() > 1:  # each has to come to the same plan, so none goes by its own clock
        return DEVICES[row_of(device)]
    return cached(device) or _vendor(device) or measured(device)


def measured(device: jax.Device) -> DeviceSpec:
    """What is known of a device by measurement, made now if it has not been made before."""
    return cached(device) or _measured_now(device)


def renew(device: jax.Device | None = None) -> bool:
    """Measure a device anew where it is faster than it was when it was measured; True if it was.

    For tools that tell what part of its speed a step reaches: on a shared machine it changes from
    hour to hour. A device that has become slower keeps its figures, and so programs their plans.
    """
    device = device or jax.local_devices()[0]
    found = cached(device)
    if found is None or VARIABLE in os.environ:
        return False
    flops, bytes_per_s = rates(device)
    if max(flops / found.flops, bytes_per_s / found.bytes_per_s) < FASTER:
        return False
    _measured_now(device)
    return True


def _measured_now(device: jax.Device) -> DeviceSpec:
    """Measure a device, with a word on stderr if that takes long, and keep the figures."""
    was_busy = busy()
    watch = Watch(f"what this {device.device_kind} can do", "measuring", "measured", PATIENCE)
    try:
        with ThreadPoolExecutor(1) as thread:  # free of what is being traced in this one
            found = thread.submit(measure, device).result()
    finally:
        watch.stop()
    _write(cache_path(device), found, was_busy)
    return found


def cached(device: jax.Device) -> DeviceSpec | None:
    """Return what was measured on such a device before, or None."""
    found = _read(cache_path(device))
    if found is None or (found[1] and not busy()):
        return None
    return found[0]


def busy() -> bool:
    """True when others keep the cores busy, by the load of the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > _cores() + 1


def cache_path(device: jax.Device) -> Path:
    """The file of a device's figures: by its kind, JAX's version and the format."""
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    key = [device.platform, device.device_kind, jax.__version__, FORMAT]
    if device.platform == "cpu":  # of which there are many kinds
        key += [_processor(), _cores()]
    digest = sha256(json.dumps(key).encode()).hexdigest()[:16]
    return Path(folder) / "backpass" / f"device-{device.platform}-{digest}.json"


@cache
def _processor() -> str:
    """Model of the processor."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that we may use."""
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1


def row_of(device: jax.Device) -> str:
    """Name of the row of `DEVICES` that is nearest to a device: the same on every machine."""
    return _name(device) or "cpu"


def _name(device: jax.Device) -> str | None:
    """Name of an accelerator that is known."""
    kind = device.device_kind.lower()
    if device.platform == "cpu":
        return None
    names = (name for name in DEVICES if name in kind or name.replace("-", " ") in kind)
    return next(names, None)


def _vendor(device: jax.Device) -> DeviceSpec | None:
    """The row of an accelerator that is known by name."""
    name = _name(device)
    if name is None or has_link(device):
        return DEVICES.get(name or "")
    return replace(DEVICES[name], host_bytes_per_s=0.0)


def _read(path: Path) -> tuple[DeviceSpec, bool] | None:
    """Read figures, and if the machine was busy; None for none, or none that make sense."""
    try:
        found = read(dict[str, Any], parsed(path.read_bytes()))
        was_busy = read(bool, found.pop("busy", None))
        spec = read(DeviceSpec, found)
    except (OSError, ValueError):
        return None
    sound = all(x > 0 for x in (spec.memory_bytes, spec.flops, spec.bytes_per_s))
    sound &= min(spec.host_bytes_per_s, spec.link_bytes_per_s, spec.launch_s) >= 0
    sound &= all(x > 0 for x in spec.costs.values())
    return (spec, was_busy) if sound else None


def _write(path: Path, spec: DeviceSpec, was_busy: bool) -> None:
    """Put the file in its place in one move; where that is not allowed, do without."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump({"busy": was_busy, **asdict(spec)}, file, indent=1)
        os.replace(file.name, path)
