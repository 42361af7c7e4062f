"""What has been settled on, so that a lower budget never leads to a higher peak.

This process remembers it; where a cache is turned on, other processes do too.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..ir.fingerprint import digest
from ..ir.graph import Graph
from ..ir.records import read
from ..passes.rematerialise import Choices
from ..runtime.cache import Store
from .cache import key_of, store
from .memory_plan import choices_from, choices_to


@dataclass(frozen=True)
class _Entry:
    """A plan as an entry of a cache has it."""

    choice: Any
    peak: int


@dataclass(frozen=True)
class Shelf:
    """Where the plans of one program are kept: an entry for each budget, beside its peak."""

    store: Store
    key: str

    def plans(self) -> Iterator[tuple[int, tuple[Choices, int]]]:
        """What is kept, by budget."""
        for name in self.store.names(self._name("")):
            budget = name.rpartition("-")[2]
            found = self.store.read(name, f"{self.key}-{budget}")
            if found is not None:
                try:
                    plan = read(_Entry, found)
                    yield int(budget), (choices_from(plan.choice), plan.peak)
                except ValueError:
                    self.store.drop(name, "it holds no plan")

    def keep(self, budget: int, choice: Choices, peak: int) -> None:
        """Keep a plan."""
        body = {"choice": choices_to(choice), "peak": peak}
        self.store.write(self._name(budget), f"{self.key}-{budget}", body)

    def drop(self, budget: int, why: str) -> None:
        """Forget a plan."""
        self.store.drop(self._name(budget), why)

    def _name(self, budget: object) -> str:
        return f"plan-{self.key[:32]}-{budget}"


@dataclass
class Settled:
    """The plans of one program by budget, each with its peak as XLA reports it, in bytes."""

    plans: dict[int, tuple[Choices, int]] = field(default_factory=dict)
    shelf: Shelf | None = None

    def keep(self, budget: int, choice: Choices, peak: int) -> None:
        """Remember the plan of a budget."""
        new = self.plans.get(budget) != (choice, peak)
        self.plans[budget] = choice, peak
        if new and self.shelf is not None:
            self.shelf.keep(budget, choice, peak)

    def drop(self, choice: Choices, why: str) -> None:
        """Forget a plan that is not what it was taken for."""
        for budget, (known, _) in list(self.plans.items()):
            if known == choice:
                del self.plans[budget]
                if self.shelf is not None:
                    self.shelf.drop(budget, why)

    def that_fits(self, budget: int) -> Choices | None:
        """The plan of the nearest budget that is no lower, if it is within this one too."""
        above = [known for known in sorted(self.plans) if known >= budget]
        if above:
            choice, peak = self.plans[above[0]]
            if peak <= budget:
                return choice
        return None

    def above(self, peak: int, budget: int) -> Choices | None:
        """The plan of a lower budget whose peak is higher than `peak`, if there is one."""
        below = [found for known, found in list(self.plans.items()) if known < budget]
        choice, most = max(below, key=lambda known: known[1], default=(None, 0))
        return choice if most > peak else None


_SETTLED: dict[Hashable, Settled] = {}


def settled(graph: Graph, donated: Collection[int], options: Hashable) -> Settled:
    """Return what is known of a program under options of the compiler; it may be added to."""
    key = (digest(graph), tuple(sorted(donated)), options)
    found = _SETTLED.setdefault(key, Settled())
    there = store()
    if there is not None and (found.shelf is None or found.shelf.store != there):
        found.shelf = Shelf(there, key_of(*key))
        for budget, plan in found.shelf.plans():
            found.plans.setdefault(budget, plan)
    return found


def forget() -> None:
    """Forget all that was settled."""
    _SETTLED.clear()
