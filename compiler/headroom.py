"""The memory that a program is predicted to need, beside what its device has free.

    needed = arguments + outputs + temporaries - donated      by `ir.liveness`
    room   = free now + arguments that lie on the device already

A program that needs more than there is room for is warned of before XLA compiles it; it runs all
the same, as XLA may find a way. One that did run out of memory is told in the same terms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import jax

from ..ir.errors import ArgumentError, MemoryWarning, OutOfMemoryError
from ..ir.graph import Graph
from ..ir.liveness import Liveness
from ..ir.tables import bytes_text
from ..ir.types import type_of
from ..passes.rematerialise import Forms
from ..runtime.device import live_spec
from .budget import free_bytes
from .diagnose import caller_level, caller_line, defined_at

if TYPE_CHECKING:
    from .built import Built
    from .options import Options

COPIES = 2  # of every value, which XLA is taken to make at most, where nothing is looked at closely
LARGEST = 20_000  # nodes of a program that is planned for a suggestion: a few seconds
MARGIN = 0.9  # of the room: predictions are off by 4% in the median


def may_be_short(graph: Graph) -> bool:
    """False where all values of a program together are sure to fit; looks at sizes alone."""
    sizes = sum(value.type.nbytes for node in graph.walk() for value in node.outputs)
    whole = sizes + sum(value.type.nbytes for value in (*graph.inputs, *graph.outputs))
    try:
        return COPIES * whole > free_bytes()
    except ArgumentError:
        return False


def warn_of_memory(
    fun: Callable[..., Any],
    built: Built,
    leaves: Sequence[Any],
    options: Options,
) -> None:
    """Warn where the peak of a program is above the room that a call's `leaves` leave.

    Programs on several devices are passed over: what each of them gets is for XLA to decide.
    """
    device = _device(leaves)
    if device is None:
        return
    try:
        free = free_bytes(device)
    except ArgumentError:
        return
    live, held = built.live, held_bytes(leaves)
    if live.peak_bytes > free + held:
        there = f", of which {bytes_text(held)} are there as arguments" if held else ""
        warnings.warn(
            f"{defined_at(fun)} is predicted to need {bytes_text(live.peak_bytes)} at its peak"
            f"{there}; {device.device_kind} has {bytes_text(free)} free\n{live.by_line()}\n"
            f"  at {caller_line()}; {_suggestion(built, live, free + held, options)}",
            MemoryWarning,
            caller_level(),
        )


def out_of_memory(
    fun: Callable[..., Any],
    error: Exception,
    built: Built,
    leaves: Sequence[Any],
    options: Options,
) -> OutOfMemoryError:
    """Say of a program that ran out of memory what it needs, and what would fit."""
    device, live = _device(leaves), built.live
    room, has = live.peak_bytes, ""
    if device is not None:
        try:
            free = free_bytes(device)
            room = free + held_bytes(leaves)
            has = f"; {device.device_kind} has {bytes_text(free)} free"
        except ArgumentError:
            pass
    return OutOfMemoryError(
        f"{defined_at(fun)} ran out of memory: {str(error).splitlines()[0]}\n"
        f"  it is predicted to need {bytes_text(live.peak_bytes)} at its peak{has}\n"
        f"{live.by_line()}\n  at {caller_line()}; {_suggestion(built, live, room, options)}"
    )


def held_bytes(leaves: Collection[Any]) -> int:
    """Bytes of the arrays among `leaves` that are on a device, each array once."""
    return sum(type_of(x).nbytes for x in {id(x): x for x in leaves if _is_here(x)}.values())


def _is_here(x: Any) -> bool:
    concrete = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return concrete and not x.is_deleted()


def _device(leaves: Sequence[Any]) -> jax.Device | None:
    """The one device that a call runs on, or None."""
    devices = {device for x in leaves if _is_here(x) for device in x.devices()}
    if not devices:
        default = getattr(jax.config, "jax_default_device", None)
        return default if isinstance(default, jax.Device) else jax.devices(default)[0]
    return devices.pop() if len(devices) == 1 else None


def _suggestion(built: Built, live: Liveness, room: int, options: Options) -> str:
    """The budgets that would fit by prediction, or that none does."""
    if len(live.graph.nodes) > LARGEST:
        return "bp.plan(...) tells which memory budgets would fit"
    plans = _forms(built, options)
    least = plans.leanest
    aim = int(MARGIN * min(room, live.peak_bytes))
    aim = aim if least.bytes <= aim else room
    found = plans.fastest(aim)
    if found is None:
        return (
            f"no plan fits, the least needs {bytes_text(least.bytes)}: make the batch smaller, or "
            "donate arguments that are not used again"
        )
    time = found.seconds / plans.plain.seconds
    return (
        f"memory_budget={_budget(aim)} should fit, at {time:.2f} of the time; no plan needs less "
        f"than {bytes_text(least.bytes)}"
    )


def _budget(size: int) -> str:
    """A budget as it is written in a program, rounded down."""
    return f'"{size >> 20}MiB"' if size >= 1 << 30 else str(size)


def _forms(built: Built, options: Options) -> Forms:
    """The plans of a program, also where no budget was given."""
    if built.fitting is not None:
        return built.fitting.forms
    return Forms.of_graphs(built.graphs(options), live_spec(), built.donated)
