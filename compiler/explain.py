"""Why a function was traced, and what each trace cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

from ..passes import Stage
from .program import Program, Signature


@dataclass(frozen=True)
class Trace:
    """One trace: why it happened and the seconds of each phase.

    `passes` is the sum over all passes, `binding` the time to bind JAX's primitives, `compiling`
    what JAX and XLA took after that (with the first run), 0 while it has not been compiled.
    """

    reason: str
    nodes: int
    tracing: float
    passes: float
    binding: float = 0.0
    compiling: float = 0.0

    @property
    def seconds(self) -> float:
        """Sum of all phases."""
        return self.tracing + self.passes + self.binding + self.compiling


@dataclass(frozen=True)
class Explanation:
    """The traces of one compiled function so far; prints as a table."""

    name: str
    traces: tuple[Trace, ...]

    @property
    def seconds(self) -> float:
        """Seconds spent on all traces."""
        return sum(trace.seconds for trace in self.traces)

    def __str__(self) -> str:
        """Return the table: a row for each trace."""
        head = f"{self.name}: {len(self.traces)} traces, {self.seconds:.2f} s"
        columns = f"{'#':>3} {'nodes':>7} {'trace s':>8} {'passes s':>8} {'bind s':>8} {'XLA s':>8}"
        rows = [
            f"{i:>3} {t.nodes:>7} {t.tracing:>8.3f} {t.passes:>8.3f} {t.binding:>8.3f} "
            f"{t.compiling:>8.3f}  {t.reason}"
            for i, t in enumerate(self.traces, 1)
        ]
        return "\n".join([head, f"{columns}  reason", *rows])


class History:
    """Collects a function's traces as they happen."""

    def __init__(self, name: str, max_traces: int | None) -> None:
        """Start with no traces; warn past `max_traces`."""
        self._name = name
        self.limit = max_traces
        self._signatures: list[Signature] = []
        self._traces: list[Trace] = []

    def record(self, program: Program, stages: Sequence[Stage]) -> None:
        """Add a trace, and find out why it was needed."""
        reason = difference(program.signature, self._signatures)
        self._signatures.append(program.signature)
        seconds = sum(stage.seconds for stage in stages[1:])
        nodes = len(stages[-1].graph.nodes)
        self._traces.append(Trace(reason, nodes, program.trace_seconds, seconds))
        if self.limit is not None and len(self._traces) > self.limit:
            warnings.warn(
                f"{self._name} was traced {len(self._traces)} times, more than "
                f"max_traces={self.limit}: {reason}",
                stacklevel=2,
            )

    @contextmanager
    def binding(self, program: Program) -> Iterator[None]:
        """Time the binding of a program's primitives."""
        start = perf_counter()
        yield
        place = self._signatures.index(program.signature)
        self._traces[place] = replace(self._traces[place], binding=perf_counter() - start)

    def compiled(self, seconds: float) -> None:
        """Add the time that JAX and XLA took for the last trace."""
        if self._traces:
            self._traces[-1] = replace(self._traces[-1], compiling=seconds)

    def explanation(self) -> Explanation:
        """Return what happened so far."""
        return Explanation(self._name, tuple(self._traces))


def difference(new: Signature, earlier: Sequence[Signature]) -> str:
    """Say what tells `new` from the nearest of the earlier signatures."""
    if not earlier:
        return "first call"
    found = min((_differences(new, old) for old in reversed(earlier)), key=len)
    rest = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return found[0] + rest if found else "JAX's settings, or values of an outer trace"


def _differences(new: Signature, old: Signature) -> list[str]:
    statics = [
        f"static argument {name}: {was!r} -> {now!r}"
        for (name, was), (_, now) in zip(old.static, new.static, strict=False)
        if was != now
    ]
    if new.tree != old.tree:
        added = [path for path in new.paths if path not in old.paths]
        gone = [path for path in old.paths if path not in new.paths]
        changes = [f"new leaf {path}" for path in added] + [f"no leaf {path}" for path in gone]
        return statics + (changes or ["tree structure"])
    return statics + [
        f"{path}: {was} -> {now}"
        for path, was, now in zip(new.paths, old.types, new.types, strict=True)
        if was != now
    ]
