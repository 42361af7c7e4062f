"""A training step beside its peers: time, memory and time to compile, once results agree.

`time` is the seconds of a step that was waited for, `cpu` those of all cores, which a busy machine
disturbs less, `temp` XLA's temporary bytes, `compile` the seconds from trace to executable (those
of a first step in `torch-compile`), once. `loss` and `grads` are the largest relative differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from ...ir.cost import cost
from ...runtime.device import live_spec
from ..arms import PEERS, differences, in_turns, ours
from ..measure import Samples, ratio
from ..models.model import Model
from ..rows import Row, Setup, agree, exact, message
from ..task import CHECK_RATE, Arm, Task

RATIOS = ("time", "cpu", "temp", "compile")
FIGURES = ("loss", "grads", "ms", "utilisation", "traffic")

# Relative differences of loss and gradients that are rounding: of float32, of an accelerator's
# shorter one, and of products in bfloat16, where gradients of biases are sums that nearly cancel.
ROUNDING = (1e-4, 1e-3)
COARSE = (1e-2, 1e-1)
NARROW = (1e-2, 5e-1)


def measure(suite: str, case: str, build: Callable[..., Model], setup: Setup) -> list[Row]:
    """Compile a model's step in all arms, compare one step, and time them in turns."""
    task = Task.of(build, setup.seed, setup.precision)
    mine = ours(task, setup.passes)
    setup.tell(f"{case}, backpass: compiled in {mine.compile_seconds:.1f} s")
    first = mine.first(CHECK_RATE)
    arms: list[Arm] = []
    apart: list[tuple[float, float]] = []
    failed: list[Row] = []
    for name, make in _makers(setup.peers):
        try:
            arm = make(task)
            found = differences(task.params, first, arm.first(CHECK_RATE))
            limits = _rounding(setup)
            for what, value, limit in zip(("loss", "gradients"), found, limits, strict=True):
                agree(what, value, limit)
        except Exception as error:  # one peer that fails must not hide the others
            setup.tell(f"{case}, {name}: {message(error)}")
            failed.append(Row(suite, case, name, error=message(error)))
            continue
        setup.tell(f"{case}, {name}: ready")
        arms.append(arm)
        apart.append(found)
    base, *rest = in_turns([mine, *arms], setup.repeats)
    own = _limits(mine, base)
    return failed + [
        Row(suite, case, arm.name, _ratios(mine, base, arm, samples), own | _apart(found, samples))
        for arm, samples, found in zip(arms, rest, apart, strict=True)
    ]


def _rounding(setup: Setup) -> tuple[float, float]:
    """How far apart results may be for rounding."""
    if setup.precision is not None:
        return NARROW
    return ROUNDING if jax.default_backend() == "cpu" else COARSE


def _makers(peers: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Task], Arm]]]:
    for peer in peers:
        yield from PEERS[peer].items()


def _ratios(mine: Arm, base: Samples, arm: Arm, samples: Samples) -> dict[str, Any]:
    found = {"time": ratio(base.wall, samples.wall), "cpu": ratio(base.cpu, samples.cpu)}
    if arm.temp_bytes is not None and mine.temp_bytes is not None:
        found["temp"] = exact(max(mine.temp_bytes, 1), max(arm.temp_bytes, 1))
    if arm.compile_seconds is not None and mine.compile_seconds is not None:
        found["compile"] = exact(mine.compile_seconds, arm.compile_seconds)
    return found


def _apart(found: tuple[float, float], samples: Samples) -> dict[str, Any]:
    return {"loss": found[0], "grads": found[1], "peer_seconds": list(samples.wall)}


def _limits(arm: Arm, samples: Samples) -> dict[str, Any]:
    """What our step makes of the device, as fractions of what it can do.

    `utilisation` counts the FLOPs of forward and backward pass before anything is recomputed.
    `traffic` counts the bytes of the final graph as if nothing were fused, so that it may be
    above 1.
    """
    median = sorted(samples.wall)[len(samples.wall) // 2]
    spec = live_spec()
    stages = {stage.name: stage.graph for stage in arm.program.stages}
    last = arm.program.stages[-1].graph
    phases = cost(stages.get("autodiff", last)).by_phase
    flops = sum(phases[name].flops for name in ("forward", "backward") if name in phases)
    moved = cost(last).bytes
    return {
        "seconds": list(samples.wall),
        "ms": 1e3 * median,
        "flops": flops,
        "utilisation": flops / median / spec.flops,
        "bytes": moved,
        "traffic": moved / median / spec.bytes_per_s,
        "temp_bytes": arm.temp_bytes,
        "compile_seconds": arm.compile_seconds,
    }
