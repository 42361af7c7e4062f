"""When to keep, when to drop and when to run again, for a chain of segments: dynamic programming.

    run(s, t)   segments s to t forward and backward, the entry of s being in memory
        Last(o)         s = t: backward from what option o keeps of the forward run before
        Keep(o, then)   forward s keeping o, run(s + 1, t), backward s
        Drop(k, then, again)
                        forward s to k - 1 keeping the entry of k alone, run(k, t), run(s, k - 1)

Memory is cut into slots. What runs for the first time, on the way to the end of the chain, costs
no extra time; all else does. On a uniform chain this is Revolve's binomial schedule.

Source: Griewank and Walther 2000 (Revolve); Beaumont et al. 2019 (heterogeneous chains).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...ir.records import read

SLOTS = 512
_ALL = np.arange(SLOTS + 1)


@dataclass(frozen=True)
class Option:
    """One way to treat a segment: `bytes` are kept besides its entry.

    `seconds` are spent to make again what is missing, within `working` bytes, cotangents included.
    """

    bytes: int
    seconds: float
    working: int


@dataclass(frozen=True)
class Link:
    """A segment in numbers: bytes of its entry, seconds and working bytes of its forward run.

    The last option keeps nothing.
    """

    entry: int
    seconds: float
    working: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Last:
    """Backward of segment `at`, directly."""

    at: int
    option: int


@dataclass(frozen=True)
class Keep:
    """Forward of segment `at` keeping its option's values, then the rest, then its backward."""

    at: int
    option: int
    then: Step


@dataclass(frozen=True)
class Drop:
    """Forward from `at` up to segment `to`, keeping that one's entry alone; both parts follow."""

    at: int
    to: int
    then: Step
    again: Step


Step = Last | Keep | Drop


@dataclass(frozen=True)
class Held:
    """A schedule that is no recursion: numbers of the values held when each stage begins.

    See `units.py`; what runs again follows.
    """

    stages: tuple[tuple[int, ...], ...]


@dataclass
class Schedules:
    """The fastest schedule of a chain for every memory up to `most` bytes, all at once."""

    links: Sequence[Link]
    most: int
    _known: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _moved: dict[int, np.ndarray] = field(default_factory=dict)
    _best: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)

    @cached_property
    def unit(self) -> int:
        """Bytes of a slot."""
        return max(1, -(-self.most // SLOTS))

    @cached_property
    def _names(self) -> list[list[int]]:
        """A number for each stretch, by its start and its length less one: equal ones have one.

        The stretch that ends the chain is told from others, as its first run costs nothing.
        """
        numbers: dict[Link, int] = {}
        kinds = [numbers.setdefault(link, len(numbers)) for link in self.links]
        known: dict[tuple[int, int, bool], int] = {}
        found: list[list[int]] = []
        for s in range(len(kinds)):
            name, row = -1, []
            for t in range(s, len(kinds)):
                name = known.setdefault((name, kinds[t], False), len(known))
                row.append(name)
            found.append([*row[:-1], known.setdefault((row[-1], -1, True), len(known))])
        return found

    def seconds(self, slots: int) -> float:
        """Extra time of the best schedule within so many slots; inf where there is none."""
        return float(self._table(0, len(self.links) - 1)[0][slots])

    def step(self, slots: int) -> Step:
        """Return the best schedule within so many slots."""
        return self._step(0, len(self.links) - 1, slots)

    def _step(self, s: int, t: int, slots: int) -> Step:
        choice = int(self._table(s, t)[1][slots])
        if s == t:
            return Last(s, choice)
        if choice < 0:
            option = self.links[s].options[~choice]
            left = slots - self._slots(option.bytes) - self._slots(self.links[s + 1].entry)
            return Keep(s, ~choice, self._step(s + 1, t, left))
        k = s + choice
        left = slots - self._slots(self.links[k].entry)
        return Drop(s, k, self._step(k, t, left), self._step(s, k - 1, slots))

    def _slots(self, size: int) -> int:
        return -(-size // self.unit)

    def _table(self, s: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Extra seconds, and the choice that gives them, for every number of slots."""
        key = self._names[s][t - s]
        if key not in self._known:
            first = t == len(self.links) - 1
            self._known[key] = self._leaf(s, first) if s == t else self._inner(s, t, first)
        return self._known[key]

    def _after_entry(self, k: int, t: int) -> np.ndarray:
        """Seconds of the stretch from `k` to `t`, by the slots before its entry is kept."""
        key = self._names[k][t - k]
        if key not in self._moved:
            table, _ = self._table(k, t)
            self._moved[key] = _shifted(table, self._slots(self.links[k].entry))
        return self._moved[key]

    def _leaf(self, s: int, first: bool) -> tuple[np.ndarray, np.ndarray]:
        best, choice = _empty()
        options = list(enumerate(self.links[s].options))
        for i, option in options if first else options[-1:]:
            _offer(best, choice, i, option.seconds, self._slots(option.bytes + option.working))
        return best, choice

    def _inner(self, s: int, t: int, first: bool) -> tuple[np.ndarray, np.ndarray]:
        kept = self._kept(s, t, first)
        dropped = self._dropped(s, t, first)
        keep, drop = kept.argmin(0), dropped.argmin(0)
        seconds, others = kept[keep, _ALL], dropped[drop, _ALL]
        choice = np.where(seconds <= others, ~self._options(s)[-1][keep], drop + 1)
        return np.minimum(seconds, others), choice

    def _kept(self, s: int, t: int, first: bool) -> np.ndarray:
        """Extra seconds with each option of segment `s`, by slots."""
        held, needs, seconds, _ = self._options(s)
        rest = self._table(s + 1, t)[0]
        left = _ALL - held[:, None] - self._slots(self.links[s + 1].entry)
        found = np.where(left < 0, np.inf, rest[np.maximum(left, 0)])
        found += seconds[:, None] + (0.0 if first else self.links[s].seconds)
        found[needs[:, None] > _ALL] = np.inf
        return found

    def _options(self, s: int) -> tuple[np.ndarray, ...]:
        """Slots held and needed, seconds and numbers of the options that are best for some."""
        key = self._names[s][0]
        if key not in self._best:
            rows = [
                (option.seconds, self._slots(option.bytes), self._slots(total), i)
                for i, option in enumerate(self.links[s].options)
                for total in [option.bytes + option.working]
            ]
            best: list[tuple[float, int, int, int]] = []
            for row in sorted(rows):
                if not any(held <= row[1] and needs <= row[2] for _, held, needs, _ in best):
                    best.append(row)
            seconds, held, needs, numbers = zip(*best, strict=True)
            self._best[key] = tuple(map(np.array, (held, needs, seconds, numbers)))
        return self._best[key]

    def _dropped(self, s: int, t: int, first: bool) -> np.ndarray:
        """Extra seconds with a run from `s` to each later segment, of which the entry is kept."""
        passed, ends = self.links[s:t], range(s + 1, t + 1)
        found = np.concatenate([self._after_entry(k, t) for k in ends])
        found += np.concatenate([self._table(s, k - 1)[0] for k in ends])
        found = found.reshape(-1, SLOTS + 1)
        if not first:
            found += np.cumsum([each.seconds for each in passed])[:, None]
        needs = np.maximum.accumulate([self._slots(each.working) for each in passed])
        found[needs[:, None] > _ALL] = np.inf
        return found


def _empty() -> tuple[np.ndarray, np.ndarray]:
    return np.full(SLOTS + 1, np.inf), np.zeros(SLOTS + 1, np.int16)


def _shifted(table: np.ndarray, by: int) -> np.ndarray:
    """What is left after `by` slots are taken."""
    found = np.full_like(table, np.inf)
    if by < len(table):
        found[by:] = table[: len(table) - by]
    return found


def _offer(
    best: np.ndarray, choice: np.ndarray, mark: int, seconds: float | np.ndarray, need: int
) -> None:
    """Take `seconds` where they are less than the best so far and `need` slots are there."""
    offered = np.broadcast_to(seconds, best.shape)
    better = offered < best
    better[: min(need, len(best))] = False
    best[better] = offered[better]
    choice[better] = mark


def step_to(step: Step | Held) -> list[Any]:
    """Return a schedule as plain lists, for JSON."""
    match step:
        case Held(stages):
            return ["held", [list(values) for values in stages]]
        case Last(at, option):
            return ["last", at, option]
        case Keep(at, option, then):
            return ["keep", at, option, step_to(then)]
        case Drop(at, to, then, again):
            return ["drop", at, to, step_to(then), step_to(again)]


def schedule_from(data: Any) -> Step | Held:
    """Read what `step_to` made. Raises `ValueError` on anything else."""
    match data:
        case ["held", list(stages)]:
            return Held(read(tuple[tuple[int, ...], ...], stages, "held"))
    try:
        return step_from(data)
    except RecursionError:
        raise ValueError("a schedule nests too deep") from None


def step_from(data: Any) -> Step:
    """Read a recursive schedule. Raises `ValueError` on anything else."""
    match data:
        case ["last", at, option]:
            return Last(read(int, at), read(int, option))
        case ["keep", at, option, then]:
            return Keep(read(int, at), read(int, option), step_from(then))
        case ["drop", at, to, then, again]:
            return Drop(read(int, at), read(int, to), step_from(then), step_from(again))
    raise ValueError(f"expected a step of a schedule, got {str(data)[:60]}")
