"""The best schedule by stages, by integer programming: the oracle for small programs.

    R[t, u]      unit u runs in stage t; stage 0 is the forward half
    S[t, v]      value v is held when stage t begins
    L[t, v, u]   value v is in memory when unit u has run in stage t

    minimise     sum of seconds[u] R[t, u], or the peak
    such that    R[t, u]     <= S[t, v] + R[t, maker of v]     for every v that u reads
                 1           <= S[t, v] + R[t, maker of v]     for every v that stage t reads
                 S[t + 1, v] <= S[t, v] + R[t, maker of v]
                 R[t, u], L[t, v, w], S[t + 1, v] <= L[t, v, u]    for u that read v, the next w
                 bytes at each unit of each stage, and at the stage's own kernel <= peak <= budget

R and S are integer. For `units`, `values` and `stages` see `units.py`. The forward half runs once
before all stages, and the order of the rest is the planner's: what is best is best among those.

Source: Jain et al. 2020 (Checkmate), section 4. It frees values by products of R and S; L bounds
the same lives from below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from .stages import Stages, State, bits
from .units import Unit

_GAP = 1e-6

Row = dict[int, float]


@dataclass(frozen=True)
class Optimum:
    """The best schedule found; nothing is below `bound`, in what was minimised.

    That is the seconds of the forward half's units, or bytes.
    """

    state: State
    bound: float


@dataclass(eq=False)
class Exact:
    """Integer programs over the schedules of `stages`; `limit` seconds for each.

    Column 0 is the peak; then come R, S and L. Bytes are in parts of the plain schedule's peak, as
    the solver's tolerances are absolute.
    """

    stages: Stages
    limit: float = 60.0
    _rows: list[tuple[Row, float]] = field(default_factory=list)
    _columns: int = 0

    def __post_init__(self) -> None:
        """Write the program down."""
        self._columns = self._integers
        for t in range(self._count):
            self._order(t)
            self._memory(t)

    def fastest(self, budget: float) -> Optimum | None:
        """Return the fastest schedule whose peak is within `budget` bytes, or None."""
        cost = np.zeros(self._columns)
        for t in range(self._count):
            for u, unit in enumerate(self._units):
                cost[self._run(t, u)] = unit.seconds
        return self._solved(cost, budget)

    @cached_property
    def leanest(self) -> Optimum:
        """The schedule of the lowest peak."""
        cost = np.zeros(self._columns)
        cost[0] = self._scale
        found = self._solved(cost, self._scale)
        assert found is not None, "the plain schedule is one"
        return found

    def _solved(self, cost: np.ndarray, budget: float) -> Optimum | None:
        lower, upper = self._bounds
        upper[0] = budget / self._scale
        if budget < 0:
            return None
        unit = cost.sum()
        kinds = np.zeros(self._columns, np.int8)
        kinds[1 : self._integers] = 1
        found = milp(
            cost / unit,
            integrality=kinds,
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(*self._matrix, np.inf),
            options={"time_limit": self.limit, "mip_rel_gap": _GAP},
        )
        if found.x is None:
            return None
        held = np.rint(found.x[self._hold(0, 0) : self._integers]).reshape(self._count, -1)
        state = self.stages.state([bits(np.flatnonzero(row).tolist()) for row in held])
        return Optimum(state, float(found.mip_dual_bound * unit))

    @cached_property
    def _units(self) -> Sequence[Unit]:
        return self.stages.units.units

    @cached_property
    def _sizes(self) -> list[float]:
        return [size / self._scale for size in self.stages.sizes]

    @cached_property
    def _scale(self) -> float:
        return float(self.stages.plain.peak)

    @property
    def _count(self) -> int:
        """Number of stages, the forward half included."""
        return len(self.stages.reads)

    @property
    def _integers(self) -> int:
        return self._hold(self._count, 0)

    def _run(self, t: int, u: int) -> int:
        return 1 + t * len(self._units) + u

    def _hold(self, t: int, v: int) -> int:
        return 1 + self._count * len(self._units) + t * len(self.stages.sizes) + v

    @cached_property
    def _maker(self) -> dict[int, int]:
        return {v: u for u, unit in enumerate(self._units) for v in unit.makes}

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        """The units that read each value, the last one first."""
        found: dict[int, list[int]] = {v: [] for v in self._maker}
        for u, unit in enumerate(self._units):
            for v in unit.reads:
                found[v].insert(0, u)
        return found

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Nothing runs or is held that no later stage is in need of; fixed units run once."""
        lower, upper = np.zeros(self._columns), np.ones(self._columns)
        upper[: self._integers] = 0
        for u, unit in enumerate(self._units):
            lower[self._run(0, u)], upper[self._run(0, u)] = unit.fixed, 1
        for t in range(1, self._count):
            for v in self._needed[t]:
                upper[self._hold(t, v)] = 1
                upper[self._run(t, self._maker[v])] = not self._units[self._maker[v]].fixed
        return lower, upper

    @cached_property
    def _needed(self) -> list[set[int]]:
        """The values from which each stage and those after it can be made."""
        found: set[int] = set()
        every = []
        for stage in reversed(self.stages.units.stages):
            pending = list(stage.reads)
            while pending:
                v = pending.pop()
                if v not in found:
                    found.add(v)
                    pending += self._units[self._maker[v]].reads
            every.append(set(found))
        return [set(self._maker), *reversed(every)]

    @cached_property
    def _matrix(self) -> tuple[csr_array, np.ndarray]:
        at = np.repeat(np.arange(len(self._rows)), [len(row) for row, _ in self._rows])
        columns = np.array([j for row, _ in self._rows for j in row])
        weights = np.array([x for row, _ in self._rows for x in row.values()])
        shape = (len(self._rows), self._columns)
        return csr_array((weights, (at, columns)), shape=shape), np.array(
            [y for _, y in self._rows]
        )

    def _least(self, least: float, *terms: tuple[int, float]) -> None:
        """Add a constraint: the sum of the terms is at least `least`."""
        row: Row = {}
        for column, weight in terms:
            row[column] = row.get(column, 0.0) + weight
        self._rows.append((row, least))

    def _reads(self, t: int) -> Sequence[int]:
        return self.stages.units.stages[t - 1].reads if t else ()

    def _order(self, t: int) -> None:
        """What is read or held on is there."""

        def there(v: int) -> tuple[tuple[int, float], tuple[int, float]]:
            return (self._hold(t, v), 1.0), (self._run(t, self._maker[v]), 1.0)

        for u, unit in enumerate(self._units):
            for v in unit.reads:
                self._least(0.0, *there(v), (self._run(t, u), -1.0))
        for v in self._reads(t):
            self._least(1.0, *there(v))
        for v in self._maker if t + 1 < self._count else ():
            self._least(0.0, *there(v), (self._hold(t + 1, v), -1.0))

    def _memory(self, t: int) -> None:
        """What is in memory at each unit, at the kernel of the stage and after it fits."""
        lives = {v: self._life(t, v) for v in self._maker}
        held = [(self._hold(t + 1, v), v) for v in self._maker if t + 1 < self._count]
        for u, unit in enumerate(self._units):
            if t and unit.makes and self._needed[t].isdisjoint(unit.makes):
                continue
            base = float(unit.first)
            terms = [
                (self._hold(t, v) if self._maker[v] > u else life[u], v)
                for v, life in lives.items()
                if self._maker[v] > u or u in life
            ]
            if t:
                base = self.stages.units.stages[t - 1].before
                self._fits(base, terms, (self._run(t, u), -unit.inside / self._scale))
            else:
                self._fits(base, terms)
        if t:
            stage = self.stages.units.stages[t - 1]
            for least, reads in stage.phases:
                others = [(s, v) for s, v in held if v not in reads]
                self._fits(least + self.stages.size(bits(reads)), others)

    def _fits(
        self, base: float, held: Iterable[tuple[int | None, int]], *more: tuple[int, float]
    ) -> None:
        """Add a constraint on bytes: `base` and the values held; column None is always 1."""
        always = sum(self._sizes[v] for column, v in held if column is None)
        terms = [(column, -self._sizes[v]) for column, v in held if column is not None]
        self._least(base / self._scale + always, (0, 1.0), *terms, *more)

    def _life(self, t: int, v: int) -> dict[int, int | None]:
        """The column that tells whether `v` is in memory at each unit from its maker on.

        A unit is left out after the last that is in need of v; None is for a column of ones.
        """
        column: int | None = self._hold(t + 1, v) if t + 1 < self._count else -1
        column = None if v in self._reads(t) else column
        found: dict[int, int | None] = {}
        readers = self._readers[v]
        last = len(self._units)
        for reader in (*readers, self._maker[v] - 1):
            if column != -1:
                found.update(dict.fromkeys(range(reader + 1, last), column))
            if reader < self._maker[v]:
                break
            last = reader + 1
            if column is not None:
                column = self._longer(column, self._run(t, reader))
        return found

    def _longer(self, column: int, reader: int) -> int:
        """A column that is at least both."""
        if column < 0:
            return reader
        new, self._columns = self._columns, self._columns + 1
        self._least(0.0, (new, 1.0), (column, -1.0))
        self._least(0.0, (new, 1.0), (reader, -1.0))
        return new
