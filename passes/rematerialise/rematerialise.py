"""The planner as a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.device import device_named
from ...ir.graph import Graph
from .planner import Planner


@dataclass(frozen=True)
class Rematerialise:
    """Rewrite a joint graph into its fastest form whose predicted peak is within `budget` bytes.

    Without a feasible form it takes the leanest. `device` names the device whose speeds count.
    `bp.compile(memory_budget=...)` closes the loop on top: it reads XLA's own peak.
    """

    name: ClassVar[str] = "rematerialise"

    budget: int = 0
    device: str = "cpu"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself when it fits as it is."""
        planner = Planner(graph, device_named(self.device))
        if planner.plain.bytes <= self.budget:
            return graph
        return (planner.fastest(self.budget) or planner.leanest).graph
