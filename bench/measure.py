"""How benchmarks measure: a fixed allocator, arms in turns, ratios round by round, a stamp."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

# glibc gives large blocks back to the system and takes them afresh at each call, so that a step's
# time is that of page faults. These keep them, in both arms.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
PACKAGES = ("backpass", "jax", "jaxlib", "numpy")


def fix_allocator(keep_default: bool) -> None:
    """Start this program again with `ALLOCATOR` in its environment, unless it is there or refused.

    malloc reads these before Python starts, so that they can't be set from within.
    """
    if keep_default or all(os.environ.get(name) == text for name, text in ALLOCATOR.items()):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def environment(more: Sequence[str] = ()) -> dict[str, Any]:
    """Return versions, those of `more` packages too, cores, processor, devices and allocator."""
    device = jax.devices()[0]
    fixed = all(os.environ.get(name) == text for name, text in ALLOCATOR.items())
    return {
        **{name: version(name) for name in (*PACKAGES, *more)},
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        "allocator": "fixed" if fixed else "default",
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def cores() -> int:
    """Cores that this process may use."""
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def note(text: str) -> None:
    """Tell progress, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Samples:
    """Seconds of a call of one arm, for each round: on the clock, and of all cores together."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def pooled(samples: Sequence[Samples]) -> Samples:
    """The samples of arms that run the same program, as of one: medians of each round."""
    walls = zip(*(each.wall for each in samples), strict=True)
    cpus = zip(*(each.cpu for each in samples), strict=True)
    return Samples(tuple(map(statistics.median, walls)), tuple(map(statistics.median, cpus)))


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of ours / theirs, and the quartiles of these ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """`0.52 [0.50, 0.55]`."""
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare round by round, so that what slows a whole round cancels."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = (
        statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    )
    return Ratio(statistics.median(each), low, high)


def interleave(
    arms: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int | Mapping[str, int] = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, Samples]:
    """Time every arm once a round, the first to run changing; each arm waits for its result.

    Args:
        arms: what to run, by name.
        rounds: samples of each arm.
        calls: runs that one sample is the mean of, for all arms or by name.
        before: runs before each sample, off the clock.
    """
    walls: dict[str, list[float]] = {name: [] for name in arms}
    cpus: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    runs = dict.fromkeys(names, calls) if isinstance(calls, int) else calls
    gc.collect()
    for i in range(rounds):
        for name in names if i % 2 == 0 else names[::-1]:
            if before is not None:
                before()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(runs[name]):
                arms[name]()
            walls[name].append((time.perf_counter() - wall) / runs[name])
            cpus[name].append((time.process_time() - cpu) / runs[name])
    return {name: Samples(tuple(walls[name]), tuple(cpus[name])) for name in names}


def calls_for(run: Callable[[], Any], least: float = 0.05) -> int:
    """Return how many calls of `run` take `least` seconds, after one to warm up."""
    run()
    start = time.perf_counter()
    run()
    return max(1, round(least / (time.perf_counter() - start)))
