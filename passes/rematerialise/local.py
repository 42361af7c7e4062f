"""Local search over schedules by stages, for programs of a few layers.

A move holds one value between two stages in succession that touch it, or drops it there. From
the plain program memory goes down level by level: the moves that free most bytes for their seconds
come first, and those that win seconds back within the level follow. Then the levels are gone
through upwards. Where no move helps any more, one for which there is no room is made all the same,
and room for it by others. From the leanest schedule memory goes on down by as little as it takes,
where no move frees any by one that takes more at another stage first. For one budget the levels
end somewhat below it, since what is found there is used on the way up: most of the time goes into
the lowest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, takewhile
from math import isfinite
from typing import NamedTuple

import numpy as np

from .stages import Stages, State, bits
from .units import Units

MOST = 64  # values: the time grows with the square of them and with the stages
LEVELS = (12, 96)  # between the plain peak and the least
FEW = 40  # values: more are not gone down with moves that start and end anywhere, only up
DETOURS = 256  # schedules that are looked at for less memory by them, of which most are dead ends
KICKS = 6  # moves without room that are tried
LEAN = 3  # schedules of the lowest peaks, for which room is made by moves that end anywhere
MARGIN = 1 / 4  # of the way from the plain peak to the least, below what is aimed at
LOOSE = 0.8  # of a schedule's peak: one at which that is above the aim gets no moves without room


def _front(states: Iterable[State]) -> list[State]:
    """Those that none other is better than in both bytes and seconds, the fastest first."""
    front: list[State] = []
    for state in sorted(states, key=lambda state: (state.peak, state.seconds)):
        if not front or state.seconds < front[-1].seconds:
            front.append(state)
    return front[::-1]


def is_small(units: Units) -> bool:
    """True for a program that may be searched."""
    return 0 < len(units.values) <= MOST and bool(units.stages)


class Span(NamedTuple):
    """A value between two stages that touch it, or `wide`, across others that do.

    A move holds it, or no longer holds it, when stages `start + 1` to `end` begin.
    """

    value: int
    start: int
    end: int


@dataclass(eq=False)
class Local:
    """A search over the schedules of `stages`; with `fine`, moves start and end anywhere."""

    stages: Stages
    fine: bool = False
    _known: dict[tuple[tuple[int, ...], float], State | None] = field(default_factory=dict)

    def states(self, aim: float = 0) -> list[State]:
        """Return schedules, from the plain one on to less memory: no other is better.

        They go to somewhat below `aim` bytes, or where the levels end above that, to the leanest
        that is found.
        """
        least = aim - MARGIN * (self.stages.plain.peak - self._floor)
        few = len(self.stages.sizes) <= FEW
        front = _front(chain.from_iterable(self._levels(each, least) for each in LEVELS))
        front = _front([*front, *self._fine._upward(front)])
        if few:
            fine = chain.from_iterable(self._fine._levels(each, least) for each in LEVELS)
            front = _front([*front, *fine])
        lean = 0
        if front[-1].peak > least:
            way = self._fine if few else self
            front = _front([*front, *way._upward([front[-1], *way._downward(front[-1])])])
            lean = LEAN
        far = [state for state in front if aim and LOOSE * state.peak > aim]
        front = _front([*far, *map(self._kicked, front[len(far) :])])
        return _front([*front, *map(self._fine._kicked, front[len(front) - lean :])])

    def bare(self) -> list[State]:
        """Return schedules from the one that holds nothing, on the way to faster ones.

        XLA makes what runs again inside the loop of its reader where it can, so that these may
        take less memory than is counted here.
        """
        least = self.stages.state([0] * len(self.stages.reads))
        if not np.isfinite(least.peak):
            return []
        way = self._way(least, least.peak)
        return way + self._fine._way(way[-1], least.peak)[1:]

    @cached_property
    def _fine(self) -> Local:
        return Local(self.stages, fine=True)

    def _levels(self, levels: int, least: float) -> list[State]:
        """Go down level by level until a peak is within `least`, then use what each leaves."""
        plain = self.stages.plain
        found = [plain]
        for level in np.linspace(plain.peak, self._floor, levels + 1)[1:]:
            if found[-1].peak <= least:
                break
            if found[-1].peak > level:
                lower = self._lower(found[-1], level)
                if lower.peak >= found[-1].peak:
                    break
                found.append(self._faster(lower, max(level, lower.peak)))
        return self._upward(found)

    def _downward(self, state: State) -> Iterator[State]:
        """Go on to less memory, as little at a time as it takes."""
        while (lower := self._further(state)) is not None:
            state = self._faster(lower, lower.peak)
            yield state

    def _further(self, state: State) -> State | None:
        """A schedule of less memory, if need be by a move that takes more somewhere else first."""
        budget = state.peak - 1
        most = len(self._known) + DETOURS
        spans = takewhile(lambda _: len(self._known) < most, self._detours(state, budget))
        starts = chain([state], (self._moved(state, span) for span in spans))
        ends = (self._down(start, budget) for start in starts)
        return next((end for end in ends if end.peak <= budget), None)

    def _detours(self, state: State, budget: float) -> list[Span]:
        """The moves that take less at a stage above `budget`, the least in sum over all first."""
        over = [t for t, run in enumerate(state.runs) if run.peak > budget]
        found = []
        for span in chain(self._spans(state), self._wide(state)):
            inside = over[bisect_left(over, span.start) : bisect_right(over, span.end)]
            if any(self._effect(state, span, budget, [t])[1] < 0 for t in inside):
                seconds, excess = self._effect(state, span, budget)
                if isfinite(excess):
                    found.append((excess, seconds, span))
        return [span for *_, span in sorted(found)]

    def _upward(self, states: Sequence[State]) -> list[State]:
        """Use each level's memory from the schedule of the level below, the leanest one first."""
        found = list(states)
        for at in reversed(range(len(found))):
            others = [self._faster(state, found[at].peak) for state in found[at : at + 2]]
            found[at] = min(others, key=lambda state: state.seconds)
        return found

    @property
    def _floor(self) -> int:
        """Bytes that every schedule needs: those of the rest's kernels."""
        size, parts = self.stages.size, self.stages.units.stages
        return max(least + size(bits(reads)) for stage in parts for least, reads in stage.phases)

    def _lower(self, state: State, budget: float) -> State:
        """Come down to a peak within `budget`, or as far as two ways go."""
        ends = []
        for goal in (budget, 0):
            lower = self._down(state, goal)
            while lower.peak > budget:
                further = self._down(lower, lower.peak - 1)
                if further.peak >= lower.peak:
                    break
                lower = further
            if lower.peak <= budget:
                return lower
            ends.append(lower)
        return min(ends, key=lambda state: state.peak)

    def _down(self, state: State, budget: float) -> State:
        """Come down in one go, the cheapest bytes first."""
        lowest = state
        while state.peak > budget:
            key = state.held, budget
            if key not in self._known:
                self._known[key] = self._freed(state, budget)
            lower = self._known[key]
            if lower is None:
                return lowest
            state = lower
            lowest = min(lowest, state, key=lambda state: state.peak)
        return state

    def _freed(self, state: State, budget: float) -> State | None:
        """The schedule after the move that frees the cheapest bytes above `budget`."""
        over = [t for t, run in enumerate(state.runs) if run.peak > budget]
        for spans in (self._spans(state), self._wide(state)):
            if span := self._cheapest(state, budget, spans, over):
                return self._moved(state, span)
        return None

    def _cheapest(
        self, state: State, budget: float, spans: Iterable[Span], over: list[int]
    ) -> Span | None:
        """The move that frees the cheapest of the bytes above `budget`, at stages `over`."""
        best, least = None, np.inf
        for span in spans:
            if bisect_left(over, span.start) == bisect_right(over, span.end):
                continue
            seconds, excess = self._effect(state, span, budget)
            if excess < 0:
                cost = seconds / -excess if seconds > 0 else seconds
                if cost < least:
                    best, least = span, cost
        return best

    def _faster(self, state: State, budget: float) -> State:
        """Take back seconds where memory is left."""
        return self._way(state, budget)[-1]

    def _way(self, state: State, budget: float) -> list[State]:
        """The schedules on the way to that."""
        found = [state]
        while True:
            state = found[-1]
            best, least = None, -1e-15
            for span in self._gains(state):
                inner = state.runs[span.start + 1 : span.end]
                room = budget - self.stages.sizes[span.value]
                if any(run.peak > room for run in inner):
                    continue
                seconds, excess = self._effect(state, span, budget)
                if seconds < least and excess <= 0:
                    best, least = span, seconds
            if best is None:
                return found
            found.append(self._moved(state, best))

    def _kicked(self, state: State) -> State:
        """Win seconds by moves for which there is no room within the peak, and make room."""
        budget = state.peak
        tight = []
        for span in self._gains(state):
            seconds, over = self._effect(state, span, budget)
            if seconds < 0 < over:
                tight.append((seconds / over, span))
        for _, span in sorted(tight)[:KICKS]:
            lower = self._lower(self._moved(state, span), budget)
            if lower.peak <= budget:
                found = self._faster(lower, budget)
                if found.seconds < state.seconds - 1e-15:
                    return self._kicked(found)
        return state

    def _spans(self, state: State) -> Iterator[Span]:
        last: dict[int, int] = {}
        for t, run in enumerate(state.runs):
            touched = run.touches
            if self.fine and t + 1 < len(state.held):
                touched |= state.held[t + 1]
            while touched:
                value = (touched & -touched).bit_length() - 1
                touched &= touched - 1
                if value in last:
                    yield Span(value, last[value], t)
                last[value] = t

    def _wide(self, state: State) -> Iterator[Span]:
        """Where a value is held from one stage to a later one, across some that touch it."""
        starts: dict[int, list[int]] = {}
        for value, start, end in self._spans(state):
            if state.held[end] >> value & 1:
                before = starts.setdefault(value, [])
                yield from (Span(value, at, end) for at in before)
                before.append(start)
            else:
                starts[value] = []

    def _gains(self, state: State) -> Iterator[Span]:
        """Where a value is not held."""
        return (s for s in self._spans(state) if not state.held[s.end] >> s.value & 1)

    def _effect(
        self, state: State, span: Span, budget: float, stages: Iterable[int] | None = None
    ) -> tuple[float, float]:
        """Change of the seconds, and of the bytes above `budget`, summed over the stages."""
        value, start, end = span
        bit, size = 1 << value, self.stages.sizes[value]
        held, runs, run = (*state.held, 0), state.runs, self.stages.run
        seconds = excess = 0.0
        for t in stages or range(start, end + 1):
            now = runs[t]
            if t == start or t == end or now.touches & bit:
                before = held[t] ^ (bit if t > start else 0)
                after = held[t + 1] ^ (bit if t < end else 0)
                then = run(t, before, after)
                seconds += then.seconds - now.seconds
                peak = then.peak
            else:
                peak = now.peak - size if held[t] & bit else now.peak + size
            if peak > budget:
                excess += peak - budget
            if now.peak > budget:
                excess -= now.peak - budget
        return seconds, excess

    def _moved(self, state: State, span: Span) -> State:
        held = list(state.held)
        for t in range(span.start + 1, span.end + 1):
            held[t] ^= 1 << span.value
        return self.stages.state(held, state)
