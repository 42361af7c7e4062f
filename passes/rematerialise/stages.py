"""Schedules by stages: what is held when each stage begins; what runs again follows from it.

Source: Jain et al. 2020 (Checkmate), whose second phase finds what runs by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...ir.graph import Graph, Node, Value
from ..dce import Dce
from .replay import Replay
from .schedule import Held
from .segments import Chain, Segment
from .units import Units


@dataclass(frozen=True, slots=True)
class Run:
    """What one stage does: units that run, values they make and touch, seconds, peak in bytes.

    Units and values are bits of a number.
    """

    units: int
    makes: int
    touches: int
    seconds: float
    peak: float


CHUNK = 12  # values, of which the bytes of every set are known
_CHUNK = (1 << CHUNK) - 1
_UNABLE = Run(0, 0, 0, np.inf, np.inf)


@dataclass(frozen=True, eq=False)
class State:
    """A schedule: the values held when each stage begins, as bits, and what the stages do.

    `seconds` are those of the forward half's nodes alone.
    """

    held: tuple[int, ...]
    runs: tuple[Run, ...]

    @cached_property
    def seconds(self) -> float:
        """Time of all that the forward half's units run, the first time and again."""
        return sum(run.seconds for run in self.runs)

    @cached_property
    def peak(self) -> float:
        """Bytes at the peak."""
        return max(run.peak for run in self.runs)

    def after(self, t: int) -> int:
        """What is held when stage `t` ends."""
        return self.held[t + 1] if t + 1 < len(self.held) else 0


@dataclass(eq=False)
class Stages:
    """Measures the schedules of a condensed program, and writes them out; remembers stages."""

    units: Units
    _known: dict[tuple[int, int, int], Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Turn numbers to bits."""
        units = self.units.units
        self.makes = [bits(unit.makes) for unit in units]
        self.inputs = [bits(unit.reads) for unit in units]
        self.reads = [0, *(bits(stage.reads) for stage in self.units.stages)]
        parts = [[], *(stage.phases for stage in self.units.stages)]
        self._phases = [[(size, bits(reads)) for size, reads in phases] for phases in parts]
        self.sizes = self.units.sizes.tolist()
        self._fixed = bits(u for u, unit in enumerate(units) if unit.fixed)
        # The unit that makes a value, by the value's number and one; they rise together.
        self._maker = [-1, *(u for u, unit in enumerate(units) for _ in unit.makes)]
        chunks = (self.sizes[i : i + CHUNK] for i in range(0, len(self.sizes), CHUNK))
        self._sums = [_sums(chunk) for chunk in chunks]

    @property
    def plain(self) -> State:
        """All that is read later is held."""
        held, later = list[int](), 0
        for reads in reversed(self.reads[1:]):
            later |= reads
            held.append(later)
        return self.state([0, *reversed(held)])

    def state(self, held: Sequence[int], like: State | None = None) -> State:
        """Return the schedule that holds `held`, or what of it is of any use.

        What it has in common with `like` is not looked at again.
        """
        tidy, runs, after = list[int](), list[Run](), 0
        for t in reversed(range(len(held))):
            before = held[t]
            if like and before == like.held[t] and after == like.after(t):
                run = like.runs[t]
            else:
                run = self.run(t, before, after)
                before &= (after | run.touches) & ~run.makes
            tidy.append(before)
            runs.append(run)
            after = before
        return State(tuple(reversed(tidy)), tuple(reversed(runs)))

    def run(self, t: int, before: int, after: int) -> Run:
        """Return what stage `t` does between what is held when it begins and when it ends."""
        key = t, before, after
        if key not in self._known:
            self._known[key] = self._run(t, before, after)
        return self._known[key]

    def _run(self, t: int, before: int, after: int) -> Run:
        units, size = self.units.units, self.size
        needed, touches = after | self.reads[t], self.reads[t]
        wanted, ran, made, seconds, peak = needed & ~before, 0, 0, 0.0, 0
        fixed = 0 if t else self._fixed
        if t:
            stage = self.units.stages[t - 1]
            for least, reads in self._phases[t]:
                peak = max(peak, least + size(after | reads))
        while wanted or fixed:  # the last unit first
            u = max(self._maker[wanted.bit_length()], fixed.bit_length() - 1)
            unit, makes, inputs = units[u], self.makes[u], self.inputs[u]
            if t and unit.fixed:
                return _UNABLE
            base = stage.before + unit.inside if t else unit.first
            peak = max(peak, base + size(needed | makes | inputs))
            needed = (needed & ~makes) | inputs
            wanted = (wanted | inputs & ~before) & ~makes
            fixed &= ~(1 << u)
            touches |= makes | inputs
            made |= makes
            ran |= 1 << u
            seconds += unit.seconds
        return Run(ran, made, touches, seconds, peak)

    def size(self, values: int) -> int:
        """Bytes of some values."""
        total = 0
        for sums in self._sums:
            if not values:
                break
            total += sums[values & _CHUNK]
            values >>= CHUNK
        return total

    def schedule(self, state: State) -> Held:
        """Return what tells this schedule from others."""
        return Held(tuple(tuple(numbers(values)) for values in state.held))

    def graph(self, name: str, schedule: Held) -> Graph:
        """Write a schedule out. Raises `ValueError` where it is not one of this program."""
        units = self.units
        if len(schedule.stages) != len(self.reads):
            raise ValueError(f"expected {len(self.reads)} stages, got {len(schedule.stages)}")
        if any(not 0 <= v < len(units.values) for values in schedule.stages for v in values):
            raise ValueError(f"expected numbers of values below {len(units.values)}")
        state = self.state([bits(values) for values in schedule.stages])
        parts: list[list[Node]] = []
        again: list[list[Node]] = []
        held: list[list[Value]] = []
        for stage, values, run in zip(units.stages, state.held[1:], state.runs[1:], strict=True):
            if run.units or not parts:
                parts.append([])
                again.append([n for u in numbers(run.units) for n in units.units[u].nodes])
                held.append([units.values[v] for v in numbers(values)])
            parts[-1] += stage.nodes
        chain = Chain(tuple(Segment((), (), tuple(part)) for part in parts[::-1]), frozenset())
        return Dce()(Replay(units.joint, chain, ()).staged(name, again[::-1], held[::-1]))


def _sums(sizes: Sequence[int]) -> list[int]:
    """Bytes of every set of some values, by its bits."""
    found = [0]
    for size in sizes:
        found += [total + size for total in found]
    return found


def bits(values: Iterable[int]) -> int:
    """Return the number with these bits."""
    found = 0
    for value in values:
        found |= 1 << value
    return found


def numbers(values: int) -> list[int]:
    """Return the places of the bits of a number, rising."""
    found = []
    while values:
        low = values & -values
        found.append(low.bit_length() - 1)
        values ^= low
    return found
