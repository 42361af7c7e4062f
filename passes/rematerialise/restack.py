"""What scans stack, chosen for time alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.device import clock, device_named
from ...ir.graph import Graph
from .scans import Scans
from .sites import bodies, with_bodies


@dataclass(frozen=True)
class Restack:
    """Let a scan stack for its backward scan what is quicker to read back than to make again.

    The rest is made again in the backward scan's steps: less memory, and less time. In loops'
    bodies that hold whole gradients, too. `device` names the device whose speeds count.
    """

    name: ClassVar[str] = "restack"

    device: str = "cpu"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself without such scans."""
        inside = {(i, k): self(graph.nodes[i].regions[k]) for i, k in bodies(graph)}
        graph = with_bodies(graph, inside)
        scans = Scans(graph, clock(device_named(self.device)), fleeting=True)
        return scans.quickest() if scans.pairs else graph
