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
from typing import Any, NamedTuple

import numpy as np

from ...ir.records import read

SLOTS = 512


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


class _Options(NamedTuple):
    """The options of a segment that are best for some memory: in seconds and slots."""

    seconds: tuple[float, ...]
    held: tuple[int, ...]
    needs: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass
class Schedules:
    """The fastest schedule of a chain for every memory up to `most` bytes, all at once.

    Stretches of equal links, by what `_names` calls them, are solved once: `_seconds` has a row
    for each with its extra time for every number of slots, `_after` the same by the slots there
    were before its entry was kept.
    """

    links: Sequence[Link]
    most: int
    _seconds: np.ndarray = field(init=False, repr=False)
    _after: np.ndarray = field(init=False, repr=False)
    _known_options: dict[tuple[int, bool], _Options] = field(default_factory=dict, repr=False)
    _known_choices: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._seconds, self._after = np.full((2, self._names.max() + 1, SLOTS + 1), np.inf)
        solved = set()
        for s in reversed(range(len(self.links))):
            entry = self._slots(self.links[s].entry)
            for t in range(s, len(self.links)):
                name = self._names[s, t]
                if name not in solved:
                    solved.add(name)
                    best = self._seconds[name]
                    for offered in self._offers(s, t):
                        np.minimum(best, offered.min(0), out=best)
                    self._after[name, entry:] = best[: max(0, SLOTS + 1 - entry)]

    @cached_property
    def unit(self) -> int:
        """Bytes of a slot."""
        return max(1, -(-self.most // SLOTS))

    @cached_property
    def _names(self) -> np.ndarray:
        """A number for each stretch, by its first and last link: equal ones have one.

        The stretch that ends the chain is told from others, as its first run costs nothing.
        """
        numbers: dict[Link, int] = {}
        kinds = [numbers.setdefault(link, len(numbers)) for link in self.links]
        known: dict[tuple[int, int, bool], int] = {}
        end = len(kinds) - 1
        found = np.zeros((end + 1, end + 1), int)
        for s in range(end + 1):
            name = -1
            for t in range(s, end):
                name = found[s, t] = known.setdefault((name, kinds[t], False), len(known))
            found[s, end] = known.setdefault((name, kinds[end], True), len(known))
        return found

    def seconds(self, slots: int) -> float:
        """Extra time of the best schedule within so many slots; inf where there is none."""
        return float(self._seconds[self._names[0, -1], slots])

    def step(self, slots: int) -> Step:
        """Return the best schedule within so many slots."""
        return self._step(0, len(self.links) - 1, slots)

    def _step(self, s: int, t: int, slots: int) -> Step:
        choice = int(self._choices(s, t)[slots])
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

    def _choices(self, s: int, t: int) -> np.ndarray:
        """What gives the best seconds, for every number of slots.

        The option to keep, as its complement where more segments follow, or how many to pass.
        """
        name = self._names[s, t]
        if name not in self._known_choices:
            kept, *dropped = self._offers(s, t)
            numbers = np.array(self._options(s, t).numbers)
            found = numbers[kept.argmin(0)]
            for rows in dropped:
                found = np.where(kept.min(0) <= rows.min(0), ~found, rows.argmin(0) + 1)
            self._known_choices[name] = found
        return self._known_choices[name]

    def _offers(self, s: int, t: int) -> list[np.ndarray]:
        """Extra seconds of a stretch by slots: rows for what to keep, rows for where to drop."""
        return [self._kept(s, t)] if s == t else [self._kept(s, t), self._dropped(s, t)]

    def _first(self, t: int) -> bool:
        """True where the stretch is on the way to the end of the chain for the first time."""
        return t == len(self.links) - 1

    def _kept(self, s: int, t: int) -> np.ndarray:
        """Extra seconds with each option of segment `s`."""
        options, more = self._options(s, t), 0.0
        rest = np.zeros(SLOTS + 1)
        if s < t:
            rest = self._after[self._names[s + 1, t]]
            more = 0.0 if self._first(t) else self.links[s].seconds
        found = np.full((len(options.numbers), SLOTS + 1), np.inf)
        rows = zip(found, options.held, options.needs, options.seconds, strict=True)
        for row, held, needs, seconds in rows:
            if (start := max(held, needs)) <= SLOTS:
                row[start:] = rest[start - held : SLOTS + 1 - held] + (seconds + more)
        return found

    def _dropped(self, s: int, t: int) -> np.ndarray:
        """Extra seconds with a run from `s` to each later segment, of which the entry is kept."""
        found: np.ndarray = self._after[self._names[s + 1 : t + 1, t]]
        found += self._seconds[self._names[s, s:t]]
        seconds, working = self._runs
        if not self._first(t):
            found += np.cumsum(seconds[s:t])[:, None]
        needs = np.maximum.accumulate(working[s:t])
        few = np.arange(min(needs[-1], SLOTS + 1))
        found[:, : len(few)][few < needs[:, None]] = np.inf
        return found

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and working slots of each segment's forward run."""
        working = [self._slots(each.working) for each in self.links]
        return np.array([each.seconds for each in self.links]), np.array(working)

    def _options(self, s: int, t: int) -> _Options:
        """What segment `s` may keep; by itself, where it has run before, nothing."""
        alone = s == t and not self._first(t)
        key = self._names[s, s], alone
        if key not in self._known_options:
            offered = list(enumerate(self.links[s].options))
            sizes = [
                (o.seconds, self._slots(o.bytes), self._slots(o.bytes + o.working), i)
                for i, o in (offered[-1:] if alone else offered)
            ]
            best: list[tuple[float, int, int, int]] = []
            for row in sorted(sizes):
                if not any(held <= row[1] and needs <= row[2] for _, held, needs, _ in best):
                    best.append(row)
            self._known_options[key] = _Options(*zip(*best, strict=True))
        return self._known_options[key]


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
