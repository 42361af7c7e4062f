"""`bp.plan`: peaks and times of a step under budgets, on any device, without compiling it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from ..ir.device import DeviceSpec, device_named
from ..ir.errors import ArgumentError
from ..ir.tables import bytes_text, table
from ..passes.rematerialise import Forms, Planned
from ..runtime.device import live_spec
from .budget import parse_bytes
from .compile import compile
from .dump import write_bytes
from .function import CompiledFunction
from .memory_plan import MemoryPlan, plan_of
from .options import place_of
from .program import collection_paused

POINTS = 8  # budgets, where none are given


@dataclass(frozen=True)
class Plans(Sequence[MemoryPlan]):
    """The plans of one step that fit their budgets, and the `infeasible` budgets.

    `plain_bytes` is the predicted peak without a plan, `minimum_bytes` the least of any plan;
    `needs` tells what is live at that one's peak.
    """

    name: str
    plans: tuple[MemoryPlan, ...]
    infeasible: tuple[int, ...]
    minimum_bytes: int
    plain_bytes: int
    plain_seconds: float
    memory_bytes: int
    needs: str

    @property
    def fits(self) -> bool:
        """True when the leanest plan is within the device's memory."""
        return self.minimum_bytes <= self.memory_bytes

    @overload
    def __getitem__(self, index: int) -> MemoryPlan: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[MemoryPlan, ...]: ...

    def __getitem__(self, index: int | slice) -> MemoryPlan | tuple[MemoryPlan, ...]:
        """Return one plan, or some."""
        return self.plans[index]

    def __len__(self) -> int:
        """Number of budgets that are feasible."""
        return len(self.plans)

    def __iter__(self) -> Iterator[MemoryPlan]:
        """The plans, in the order of their budgets."""
        return iter(self.plans)

    def __str__(self) -> str:
        """Table of the budgets; then, where one is infeasible, what takes the memory."""
        rows = [(*self._cells(plan), _hosted(plan)) for plan in self.plans]
        least = f"infeasible, the minimum is {bytes_text(self.minimum_bytes)}"
        rows += [(bytes_text(budget), "-", "-", "-", least) for budget in self.infeasible]
        plain = self._row(self.plain_bytes, self.plain_seconds)
        head = ("budget", "predicted peak", "time", "of plain", "")
        told = [table(head, rows, [("no budget", *plain, "")])]
        if not self.fits:
            memory = bytes_text(self.memory_bytes)
            minimum = bytes_text(self.minimum_bytes)
            told.append(f"{self.name} needs {minimum}, the device has {memory}: no plan fits it")
        if self.infeasible:
            told.append(self.needs)
        return "\n\n".join(told)

    def _cells(self, plan: MemoryPlan) -> tuple[str, ...]:
        row = self._row(plan.predicted_bytes, plan.predicted_seconds)
        return (bytes_text(plan.budget_bytes or 0), *row)

    def _row(self, size: int, seconds: float) -> tuple[str, ...]:
        return (bytes_text(size), f"{1e3 * seconds:.4g} ms", f"{seconds / self.plain_seconds:.3f}")

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data, without the plans' decisions."""
        keys = ("budget_bytes", "predicted_bytes", "predicted_seconds", "gap")
        return {
            "name": self.name,
            "plans": [{key: getattr(plan, key) for key in keys} for plan in self.plans],
            "infeasible": list(self.infeasible),
            "minimum_bytes": self.minimum_bytes,
            "plain_bytes": self.plain_bytes,
            "plain_seconds": self.plain_seconds,
            "memory_bytes": self.memory_bytes,
        }

    def save_png(self, path: str | Path) -> None:
        """Draw time over peak; the file is whole or not there.

        Raises:
            ArgumentError: matplotlib is not installed.
            DumpError: the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ArgumentError("save_png wants matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        gib = 1 << 30
        points = sorted(
            [(p.predicted_bytes / gib, p.predicted_seconds / self.plain_seconds) for p in self]
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label="planned")
        axes.plot(self.plain_bytes / gib, 1.0, marker="s", ls="", color="black", label="plain")
        axes.axvline(self.minimum_bytes / gib, ls=":", color="grey", label="minimum")
        axes.axvline(self.memory_bytes / gib, ls="--", color="crimson", label="device's memory")
        axes.set(title=self.name, xlabel="predicted peak, GiB", ylabel="time, of the plain step's")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        drawn = BytesIO()
        figure.savefig(drawn, dpi=150, format="png")
        write_bytes(Path(path), drawn.getvalue())


def _hosted(plan: MemoryPlan) -> str:
    """What waits on the host, in words."""
    size = sum(each.bytes for each in plan.decisions if each.action == "offload")
    return f"{bytes_text(size)} on the host" if size else ""


def plan(
    fun: Callable[..., Any],
    *args: Any,
    budgets: Sequence[int | str] | int | str | None = None,
    device: jax.Device | DeviceSpec | str | None = None,
    passes: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Sequence[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Plans:
    """Plan a step for several memory budgets on a device that need not be here; compile nothing.

    Args:
        fun: a step as for `bp.compile`, or what that returned, whose options then hold.
        args: its arguments: arrays, or `jax.ShapeDtypeStruct`s.
        budgets: bytes, or strings such as `"4GiB"`; by default a spread from the leanest plan to
            the plain step, and the device's memory.
        device: a device of JAX, a name (`"h100"`, ...), a `bp.DeviceSpec`, or the default device,
            which is measured once; see `runtime/device.py`.
        passes: as for `bp.compile`.
        static_argnums: as for `bp.compile`.
        static_argnames: as for `bp.compile`.
        donate_argnums: as for `bp.compile`.
        donate_argnames: as for `bp.compile`.
        kwargs: the step's arguments by name.

    Returns:
        A sequence of the feasible `MemoryPlan`s that prints as a table.

    Raises:
        ArgumentError: a budget or a device that can't be read.
    """
    spec = spec_of(device)
    wanted = [budgets] if isinstance(budgets, int | str) else budgets
    sizes = None if wanted is None else [parse_bytes(budget) for budget in wanted]
    given = {
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "donate_argnums": donate_argnums,
        "donate_argnames": donate_argnames,
    }
    given = {key: value for key, value in given.items() if value is not None}
    with collection_paused():
        graphs, donated = _unplanned(fun, passes, given, _place(device)).forms(args, kwargs)
        return plans_of(Forms.of_graphs(graphs, spec, donated), sizes)


def plans_of(forms: Forms, budgets: Sequence[int] | None = None) -> Plans:
    """Plan for each budget; None asks for a spread of them."""
    plain, leanest = forms.plain, forms.leanest
    able: list[tuple[int, Planned]] = []
    unable = []
    for budget in _spread(forms) if budgets is None else budgets:
        found = forms.fastest(budget)
        if found is None:
            unable.append(budget)
        else:
            able.append((budget, found))
    return Plans(
        forms.graph.name,
        tuple(plan_of(forms, candidate, budget, None, 0) for budget, candidate in able),
        tuple(unable),
        leanest.bytes,
        plain.bytes,
        plain.seconds,
        forms.spec.memory_bytes,
        str(leanest.live),
    )


def _spread(forms: Forms) -> list[int]:
    """Budgets from the plain peak to the leanest, evenly by ratio; the device's memory too."""
    least, most, memory = forms.leanest.bytes, forms.plain.bytes, forms.spec.memory_bytes
    inner = np.geomspace(most, least, POINTS).astype(int).tolist()
    inner[0], inner[-1] = most, least
    return sorted({*inner, memory}, reverse=True)


def spec_of(device: jax.Device | DeviceSpec | str | None) -> DeviceSpec:
    """What is known of a device. Raises `ArgumentError`."""
    if isinstance(device, DeviceSpec):
        return device
    if isinstance(device, str):
        return device_named(device)
    if device is None or isinstance(device, jax.Device):
        return live_spec(device)
    raise ArgumentError(
        "device wants a device of JAX, a name such as 'h100', a bp.DeviceSpec or None, "
        f"got {device!r}"
    )


def _place(device: jax.Device | DeviceSpec | str | None) -> tuple[str, str]:
    """The place that passes are for, as `Options` has it: the one that is here if not known."""
    if isinstance(device, str):
        return device, device
    return place_of(device if isinstance(device, jax.Device) else jax.local_devices()[0])


def _unplanned(
    fun: Callable[..., Any], passes: Any, given: dict[str, Any], place: tuple[str, str]
) -> CompiledFunction:
    """The function under the options given, and its own otherwise, without a budget."""
    try:
        made = fun if isinstance(fun, CompiledFunction) else compile(fun)
        return made.without_plan(passes, given, place)
    except ArgumentError:
        raise
    except ValueError as error:  # JAX's, for positions that the function has not
        raise ArgumentError(str(error).partition("\n")[0]) from None
