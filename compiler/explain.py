"""Why a function was traced, and what each trace, and each cause of traces, has cost."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

from ..ir.errors import RetraceWarning
from ..ir.tables import table
from ..passes import Stage
from .arguments import Signature
from .causes import Cause, causes
from .diagnose import caller_level, caller_line, defined_at
from .program import Program

PATIENCE = 8  # traces of a function that is traced at nearly every call, before it is warned of
_OFTEN = 2  # calls for each trace, at most, that are "nearly every call"

Phase = Literal["planning", "binding", "compiling"]


@dataclass(frozen=True)
class Trace:
    """One trace: why it happened and the seconds of each phase.

    `passes` is the sum over all passes, `planning` the search for a plan under a memory budget,
    `binding` the time to bind JAX's primitives, `compiling` what JAX and XLA took after that (with
    the first run), 0 while it has not been compiled. A budget may take several `compiles`, but not
    where the plan was `recalled`: known to this process, or from the cache.
    """

    causes: tuple[Cause, ...]
    nodes: int
    tracing: float
    passes: float
    planning: float = 0.0
    binding: float = 0.0
    compiling: float = 0.0
    compiles: int = 0
    recalled: bool = False

    @property
    def reason(self) -> str:
        """The first cause, and how many more there are."""
        rest = f", and {len(self.causes) - 1} more" if len(self.causes) > 1 else ""
        return str(self.causes[0]) + rest

    @property
    def seconds(self) -> float:
        """Sum of all phases."""
        return self.tracing + self.passes + self.planning + self.binding + self.compiling


@dataclass(frozen=True)
class Tally:
    """What all traces of one cause have cost: `what` was another each time."""

    what: str
    traces: int
    seconds: float


@dataclass(frozen=True)
class Explanation:
    """The traces of one compiled function so far; prints as a table."""

    name: str
    traces: tuple[Trace, ...]

    @property
    def seconds(self) -> float:
        """Seconds spent on all traces."""
        return sum(trace.seconds for trace in self.traces)

    @property
    def by_cause(self) -> tuple[Tally, ...]:
        """Traces and seconds of each cause, the dearest first; a trace counts for its first one."""
        groups: dict[str, list[Trace]] = {}
        for trace in self.traces:
            groups.setdefault(trace.causes[0].what, []).append(trace)
        found = (Tally(w, len(ts), sum(t.seconds for t in ts)) for w, ts in groups.items())
        return tuple(sorted(found, key=lambda tally: -tally.seconds))

    def __str__(self) -> str:
        """Return two tables: a row for each cause, and one for each trace."""
        head = f"{self.name}: {len(self.traces)} traces, {self.seconds:.2f} s"
        if not self.traces:
            return head
        by_cause = [(t.what, str(t.traces), f"{t.seconds:.3f}") for t in self.by_cause]
        columns = "nodes tracing passes planning binding compiling compiles".split()
        rows = [(f"{i} {t.reason}{_aside(t)}", *_cells(t)) for i, t in enumerate(self.traces, 1)]
        causes = table(("cause", "traces", "seconds"), by_cause)
        return "\n\n".join([head, causes, table(("trace", *columns), rows)])


def _aside(trace: Trace) -> str:
    return " (known plan)" if trace.recalled else ""


def _cells(trace: Trace) -> tuple[str, ...]:
    seconds = (trace.tracing, trace.passes, trace.planning, trace.binding, trace.compiling)
    return (str(trace.nodes), *(f"{each:.3f}" for each in seconds), str(trace.compiles))


class History:
    """Collects a function's traces as they happen, in whichever threads they do."""

    def __init__(self, fun: Callable[..., Any], name: str, max_traces: int | None) -> None:
        """Start with no traces; warn past `max_traces`, or else of a trace at nearly every call."""
        self._fun = fun
        self._name = name
        self.limit = max_traces
        self.calls = 0  # of the function so far
        self._signatures: list[Signature] = []
        self._traces: dict[object, Trace] = {}
        self._warned = False
        self._lock = threading.Lock()

    def record(self, key: object, program: Program, forms: Sequence[Sequence[Stage]]) -> None:
        """Add a trace, with a key to add its later phases by, and find out why it was needed.

        `forms` are what passes made of it.

        One thread at a time may call.
        """
        found = causes(program.signature, self._signatures)
        seconds = sum(stage.seconds for stages in forms for stage in stages[1:])
        nodes = len(forms[0][-1].graph.nodes)
        self._signatures.append(program.signature)
        trace = Trace(found, nodes, program.trace_seconds, seconds)
        self._traces[key] = trace
        if self._too_many:
            self._warned = True
            warnings.warn(self._complaint(trace), RetraceWarning, caller_level())

    def add(self, key: object, phase: Phase, seconds: float, compiles: int = 0) -> None:
        """Add to the time of a phase of one trace."""
        with self._lock:
            trace = self._traces[key]
            compiles += trace.compiles
            time: Any = {phase: getattr(trace, phase) + seconds}
            self._traces[key] = replace(trace, compiles=compiles, **time)

    def recall(self, key: object) -> None:
        """Note that the plan of a trace was known."""
        with self._lock:
            self._traces[key] = replace(self._traces[key], recalled=True)

    @contextmanager
    def timed(self, key: object, phase: Phase) -> Iterator[None]:
        """Add the time of a block."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(key, phase, perf_counter() - start)

    def explanation(self) -> Explanation:
        """Return what happened so far."""
        return Explanation(self._name, tuple(self._traces.values()))

    @property
    def _too_many(self) -> bool:
        traces = len(self._traces)
        if self.limit is not None:
            return traces > self.limit
        return not self._warned and traces > PATIENCE and traces <= self.calls <= _OFTEN * traces

    def _complaint(self, last: Trace) -> str:
        """What happened, what it has cost so far, and what to do about the dearest cause."""
        beyond = f"more than max_traces={self.limit}"
        said = f" in {self.calls} calls" if self.limit is None else f", {beyond}"
        cause, explanation = last.causes[0], self.explanation()
        tally = next(each for each in explanation.by_cause if each.what == cause.what)
        times = f"{tally.traces} traces" if tally.traces > 1 else "a trace"
        share = f"{tally.seconds:.1f} s so far, of {explanation.seconds:.1f} s"
        return (
            f"{defined_at(self._fun)} was traced {len(self._traces)} times{said}: {last.reason}"
            f"\n  at {caller_line()}; {cause.what} has made for {times} and {share}: "
            f"{cause.advice or 'raise max_traces'}; {self._name}.explain() lists all traces"
        )
