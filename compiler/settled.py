"""What this process has settled on, so that a lower budget never leads to a higher peak."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from ..ir.fingerprint import digest
from ..ir.graph import Graph
from ..passes.rematerialise import Choices


@dataclass
class Settled:
    """The plans of one program by budget, each with its peak as XLA reports it, in bytes."""

    plans: dict[int, tuple[Choices, int]] = field(default_factory=dict)

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
        below = [self.plans[known] for known in self.plans if known < budget]
        choice, most = max(below, key=lambda known: known[1], default=(None, 0))
        return choice if most > peak else None


_SETTLED: dict[Hashable, Settled] = {}


def settled(graph: Graph, donated: Collection[int], options: Hashable) -> Settled:
    """Return what is known of a program under options of the compiler; it may be added to."""
    key = (digest(graph), tuple(sorted(donated)), options)
    return _SETTLED.setdefault(key, Settled())


def forget() -> None:
    """Forget all that was settled."""
    _SETTLED.clear()
