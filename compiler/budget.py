"""A memory budget, and the closed loop: plan, compile, read the peak that XLA reports."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Any

import jax

from ..ir.errors import ArgumentError, BudgetError, GraphError
from ..ir.fingerprint import digest
from ..ir.graph import Graph
from ..ir.tables import bytes_text
from ..ir.verifier import verify
from ..passes.rematerialise import Choices, Forms, Planned
from ..runtime.device import live_spec
from .calibration import Calibration
from .memory_plan import MemoryPlan, choice_of, plan_of
from .settled import Settled, settled

ROUNDS = 6
HOPE = 1.1  # over the prediction, while nothing has turned out too large
WORTH = 0.01  # of the time, that another round must be expected to gain

_UNITS = {"": 1, **{f"{p}B": 1000**i for i, p in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate(("", "K", "M", "G", "T"))}


def parse_bytes(budget: Any) -> int:
    """Read a budget: bytes, or a string such as `"512MiB"`, `"6GB"`; `"auto"` is what is free.

    Raises `ArgumentError`.
    """
    if isinstance(budget, str):
        if budget == "auto" and jax.process_count() == 1:
            return free_bytes()
        if budget == "auto":
            raise ArgumentError(
                "memory_budget='auto' is what one process finds free, and another may find less\n"
                f"  with {jax.process_count()} processes, give a budget in bytes"
            )
        match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", budget)
        if match and match[2] in _UNITS and (size := int(float(match[1]) * _UNITS[match[2]])):
            return size
    elif isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    raise ArgumentError(
        f"memory_budget wants bytes, or a string such as '512MiB', '6GB' or 'auto', "
        f"got {repr(budget)[:60]}"
    )


def free_bytes(device: jax.Device | None = None) -> int:
    """Bytes of memory that a device has free, or the default one; on a CPU, what the system tells.

    Raises `ArgumentError` where nothing tells.
    """
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform == "cpu":
        with suppress(OSError), open("/proc/meminfo") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                if name == "MemAvailable":
                    return int(rest.split()[0]) * 1024
    raise ArgumentError(
        f"nothing tells how much memory {device.device_kind} has free\n  give a budget in bytes"
    )


def peak_bytes(stats: Any) -> int:
    """Arguments + outputs + temporaries - aliased, as XLA reports them for an executable."""
    return int(
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


@dataclass
class Fitting:
    """The search for the fastest candidate whose peak, as XLA reports it, is within the budget.

    `candidate` is the one to compile next, or the settled one; `seconds` went into planning.
    When `given`, there is no search: a plan is pinned, or known; when `recalled`, it is known, from
    a budget or a process before.
    """

    forms: Forms
    budget: int | None
    candidate: Planned
    seconds: float = 0.0
    given: bool = False
    recalled: bool = False
    known: Settled = field(default_factory=Settled)
    settled: bool = False
    measured: list[tuple[Planned, int]] = field(default_factory=list)

    def measure(self, peak: int) -> bool:
        """Take in the peak of the executable for `candidate`; settle, or choose the next.

        Returns whether it is settled. Raises `BudgetError` when the leanest candidate does not fit.
        """
        self.measured.append((self.candidate, peak))
        start = perf_counter()
        if self.recalled and self.budget is not None and peak > self.budget:
            self._begin_anew(self.budget, peak)
            self.seconds += perf_counter() - start
            return False
        following = None if self.given or self.budget is None else self._next(self.budget)
        self.seconds += perf_counter() - start
        if following is not None:
            self.candidate = following
            return False
        tried = self.measured[-1:] if self.given else self.measured
        able = [(c, p) for c, p in tried if self.budget is None or p <= self.budget]
        best = min(able, key=lambda pair: self._rank(pair[0]), default=None)
        if self.budget is not None and not self.given:
            higher = self.known.above(best[1] if best else 0, self.budget)
            if higher is not None:
                self.candidate, self.given = self.forms.of(higher), True
                return False
        if best is None:
            raise self._error(self.budget or 0)
        self.candidate, peak = best
        if self.budget is not None:
            self.known.keep(self.budget, self.candidate.choice, peak)
        self.settled = True
        return True

    def _begin_anew(self, budget: int, peak: int) -> None:
        """Search after all: XLA makes something else of the known plan than it did before."""
        self.known.drop(self.candidate.choice, f"its peak is now {bytes_text(peak)}")
        self.given = self.recalled = False
        self.candidate = self.forms.fastest(budget) or self.forms.leanest

    @property
    def plan(self) -> MemoryPlan:
        """The plan as it stands."""
        peak = next((p for c, p in self.measured if c is self.candidate), None)
        return plan_of(self.forms, self.candidate, self.budget, peak, len(self.measured))

    def _next(self, budget: int) -> Planned | None:
        """The fastest candidate that should fit by what is known of XLA's peaks so far.

        None when that is no faster than one that fits, or when there have been enough.
        """
        tried = {id(c) for c, _ in self.measured}
        fits = min((self._rank(c) for c, p in self.measured if p <= budget), default=None)
        if len(self.measured) < ROUNDS:
            for found in self._promising(budget):
                gains = fits is None or self._rank(found, WORTH) < fits
                if gains and id(found) not in tried:
                    return found
        if fits is not None:
            return None
        return next((each for each in self._last if id(each) not in tried), None)

    @property
    def _last(self) -> list[Planned]:
        """What is tried before an error, whatever the budget, so that its minimum holds for all.

        The leanest plans, then programs as they are, where XLA heeds no fence.
        """
        lean = self.forms.leanest_of_each
        ours = {id(each) for each in lean}
        least = min((peak for c, peak in self.measured if id(c) in ours), default=inf)
        return [*lean, *(each for each in self.forms.plains if each.bytes < least)]

    def _rank(self, planned: Planned, margin: float = 0.0) -> tuple[bool, float, int]:
        """Order of what fits: the program as it is without a plan, then the fastest first."""
        return planned is not self.forms.plain, planned.seconds * (1 + margin), planned.bytes

    def _promising(self, budget: int) -> Iterator[Planned]:
        """The program as it is in each form and the fastest other plan, where they should fit."""
        for plain in self.forms.plains:
            if plain.bytes <= self._limit(budget, fenced=False):
                yield plain
        failed = {id(c) for c, p in self.measured if p > budget}
        found = self.forms.fastest(self._limit(budget, fenced=True))
        while found is not None and id(found) in failed:
            found = self.forms.fastest(found.bytes - 1)
        if found is not None:
            yield found

    def _limit(self, budget: int, *, fenced: bool) -> float:
        """The predicted peak up to which plans with fences, or without, should fit."""
        alike = [(c, p) for c, p in self.measured if c.fenced == fenced]
        high = min((c.bytes for c, p in alike if p > budget), default=inf)
        target = Calibration(alike).predicted(budget)
        return min(target * (HOPE if high == inf else 1.0), high - 1)

    def _error(self, budget: int) -> BudgetError:
        last = {id(each) for each in self._last}
        sure = [(c, p) for c, p in self.measured if id(c) in last]
        candidate, minimum = min(sure or self.measured, key=lambda pair: pair[1])
        return BudgetError(
            f"no schedule of {self.forms.graph.name} fits the memory budget of "
            f"{bytes_text(budget)}: the smallest peak found is {bytes_text(minimum)}\n"
            f"{candidate.live}\n"
            f"  give memory_budget={minimum} or more, donate arguments that are not used again, "
            "or make the batch smaller",
            minimum,
        )


@dataclass(frozen=True)
class Planning:
    """What a user asked for: a budget in bytes, a plan to follow, or neither.

    `options` are those of the compiler, under which peaks hold.
    """

    budget: int | None = None
    pinned: MemoryPlan | None = None
    options: Hashable = None

    @property
    def active(self) -> bool:
        """True when programs are planned."""
        return self.budget is not None or self.pinned is not None

    def fitting(self, graphs: Sequence[Graph], donated: Collection[int]) -> Fitting | None:
        """Begin the search for the plan of a program, of which `graphs` are the forms.

        Raises `ArgumentError` for a foreign plan.
        """
        if not self.active:
            return None
        start = perf_counter()
        forms = Forms.of_graphs(graphs, live_spec(), donated)
        graph = forms.graph
        if self.pinned is None:
            aim = self.budget or 0
            known = settled(graph, donated, self.options)
            found = _recalled(forms, known, aim)
            first = found or forms.fastest(aim) or forms.leanest
            took, is_known = perf_counter() - start, found is not None
            return Fitting(forms, aim, first, took, is_known, is_known, known)
        if self.pinned.program != digest(graph):
            raise ArgumentError(
                f"the plan was made for another program than this {graph.name}; plan it again"
            )
        try:
            candidate = _under(forms, choice_of(self.pinned))
        except ValueError as error:
            raise ArgumentError(
                f"the plan is none of {graph.name}: {error}\n  load it anew, or plan it again"
            ) from None
        budget = self.pinned.budget_bytes if self.budget is None else self.budget
        return Fitting(forms, budget, candidate, perf_counter() - start, given=True)


def _recalled(forms: Forms, known: Settled, budget: int) -> Planned | None:
    """The plan that is known to fit, where there is one."""
    choice = known.that_fits(budget)
    if choice is None:
        return None
    try:
        return _under(forms, choice)
    except ValueError as error:
        known.drop(choice, f"it is no plan of {forms.graph.name}: {error}")
        return None


def _under(forms: Forms, choice: Choices) -> Planned:
    """The program under choices that were read. Raises `ValueError` where they are none of it."""
    try:
        planned = forms.of(choice)
        verify(planned.graph)
    except (ArithmeticError, GraphError, LookupError, RecursionError, ValueError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return planned
