"""Candidates whose values wait on the host, besides those that make them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...ir.device import DeviceSpec
from ...ir.graph import Graph
from .offload import offloaded
from .waits import Waits, settled

if TYPE_CHECKING:
    from .frontier import Candidate, Choice


@dataclass
class Hosted:
    """What candidates become when the first so many of their `parcels` are sent to the host.

    `make` measures a graph that a choice gives: `make(choice, before, graph)`.
    """

    spec: DeviceSpec
    make: Callable[[Choice, Graph, Graph], Candidate]
    _waits: dict[Candidate, Waits] = field(default_factory=dict)
    _known: dict[tuple[Candidate, int], Candidate] = field(default_factory=dict)

    def sent(self, base: Candidate, count: int) -> Candidate:
        """Return a candidate with so many values sent, all for a count that is too high."""
        count = min(count, len(self._parcels(base).parcels))
        key = (base, count)
        if key not in self._known:
            waits = self._parcels(base)
            graph = offloaded(waits, waits.parcels[:count], self.spec)
            choice = replace(base.choice, offload=count)
            self._known[key] = self.make(choice, base.before, graph) if count else base
        return self._known[key]

    def lightest(self, bases: Iterable[Candidate]) -> Iterator[Candidate]:
        """Each candidate with all sent that can be."""
        return (self.sent(base, len(self._parcels(base).parcels)) for base in bases)

    def fastest(
        self, bases: Iterable[Candidate], budget: float, best: Candidate | None
    ) -> Candidate | None:
        """Return the fastest of `best` and of these, by their seconds, with fewest values sent."""
        for base in bases:
            if best is not None and base.seconds >= best.seconds:
                break
            found = self._within(base, budget)
            if found is not None and (best is None or found.seconds < best.seconds):
                best = found
        return best

    def _within(self, base: Candidate, budget: float) -> Candidate | None:
        """The candidate with the fewest values sent that is within `budget`."""
        low, high = 0, len(self._parcels(base).parcels)
        if self.sent(base, high).bytes > budget:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.sent(base, middle).bytes <= budget:
                high = middle
            else:
                low = middle + 1
        return self.sent(base, high)

    def _parcels(self, base: Candidate) -> Waits:
        if base not in self._waits:
            self._waits[base] = Waits(settled(base.graph))
        return self._waits[base]
