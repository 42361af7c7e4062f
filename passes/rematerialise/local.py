"""Local search over schedules by stages, for programs of a few layers.

A move holds one value between two stages in succession that touch it, or drops it there. From
the plain program memory goes down level by level: the moves that free most bytes for their seconds
come first, and those that win seconds back within the level follow. Then the levels are gone
through upwards.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .stages import Run, Stages, State, bits

MOST = 64  # values: the time grows with the square of them and with the stages
LEVELS = (12, 48)  # between the plain peak and the least
FINE = 24  # the same, for moves that start and end anywhere
FEW = 24  # values: more are not gone down with such moves, only up


def _front(states: Iterable[State]) -> list[State]:
    """Those that none other is better than in both bytes and seconds, the fastest first."""
    front: list[State] = []
    for state in sorted(states, key=lambda state: (state.peak, state.seconds)):
        if not front or state.seconds < front[-1].seconds:
            front.append(state)
    return front[::-1]


def is_small(stages: Stages) -> bool:
    """True for a program that may be searched."""
    return bool(stages.units.stages) and 0 < len(stages.sizes) <= MOST


@dataclass(frozen=True, slots=True)
class Move:
    """Value `value` held, or no longer held, when stages `start + 1` to `end` begin."""

    value: int
    start: int
    end: int
    seconds: float
    runs: tuple[Run, Run]


@dataclass(eq=False)
class Local:
    """A search over the schedules of `stages`."""

    stages: Stages
    levels: int = 12
    fine: bool = False

    def states(self) -> list[State]:
        """Return schedules, from the plain one to the leanest found: no other is better."""
        coarse = [s for levels in LEVELS for s in Local(self.stages, levels)._levels()]
        fine = Local(self.stages, FINE, fine=True)
        front = _front(coarse)
        front = _front([*front, *fine._upward(front)])
        if len(self.stages.sizes) <= FEW:
            front = _front([*front, *fine._levels()])
        return front

    def _levels(self) -> list[State]:
        plain = self.stages.plain
        found = [plain]
        for level in np.linspace(plain.peak, self._floor, self.levels + 1)[1:]:
            if found[-1].peak > level:
                lower = self._lower(found[-1], level)
                if lower.peak >= found[-1].peak:
                    break
                found.append(self._faster(lower, max(level, lower.peak)))
        return self._upward(found)

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
        return max((stage.during + size(bits(stage.reads)) for stage in parts), default=0)

    def _lower(self, state: State, budget: float) -> State:
        """Come down to a peak within `budget`, or as far as it goes, the cheapest bytes first."""
        lowest = state
        while state.peak > budget:
            over = [t for t, run in enumerate(state.runs) if run.peak > budget]
            best, least = None, np.inf
            for move in self._moves(state):
                if bisect_left(over, move.start) == bisect_right(over, move.end):
                    continue
                freed = -self._excess(state, move, budget)
                if freed > 0:
                    cost = move.seconds / freed if move.seconds > 0 else move.seconds
                    if cost < least:
                        best, least = move, cost
            if best is None:
                return lowest
            state = self._moved(state, best)
            lowest = min(lowest, state, key=lambda state: state.peak)
        return state

    def _faster(self, state: State, budget: float) -> State:
        """Take back seconds where memory is left."""
        while True:
            best, least = None, -1e-15
            for move in self._moves(state):
                if move.seconds < least and self._excess(state, move, budget) <= 0:
                    best, least = move, move.seconds
            if best is None:
                return state
            state = self._moved(state, best)

    def _moves(self, state: State) -> Iterator[Move]:
        last: dict[int, int] = {}
        for t, run in enumerate(state.runs):
            touched = run.touches
            if self.fine and t + 1 < len(state.held):
                touched |= state.held[t + 1]
            while touched:
                bit = touched & -touched
                touched ^= bit
                if bit in last:
                    move = self._move(state, bit, last[bit], t)
                    if move.seconds < np.inf:
                        yield move
                last[bit] = t

    def _move(self, state: State, bit: int, a: int, b: int) -> Move:
        held, run = state.held, self.stages.run
        first = run(a, held[a], held[a + 1] ^ bit)
        last = run(b, held[b] ^ bit, held[b + 1] if b + 1 < len(held) else 0)
        seconds = first.seconds + last.seconds - state.runs[a].seconds - state.runs[b].seconds
        return Move(bit.bit_length() - 1, a, b, seconds, (first, last))

    def _excess(self, state: State, move: Move, budget: float) -> float:
        """Change of the bytes above `budget`, summed over the stages."""
        size = self.stages.sizes[move.value]
        by = -size if state.held[move.end] >> move.value & 1 else size
        peaks = [run.peak for run in state.runs[move.start : move.end + 1]]
        new = [move.runs[0].peak, *(peak + by for peak in peaks[1:-1]), move.runs[1].peak]
        before = sum(peak - budget for peak in peaks if peak > budget)
        after = sum(peak - budget for peak in new if peak > budget)
        return float(after - before)

    def _moved(self, state: State, move: Move) -> State:
        held = list(state.held)
        for t in range(move.start + 1, move.end + 1):
            held[t] ^= 1 << move.value
        return self.stages.state(held)
