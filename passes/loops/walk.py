"""What the passes over loops share: every scan of a program is offered to a rule, inner ones first.

A scan in a region of `shard_map`, or in a custom rule, stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Origin, Value
from ..dce import has_effects
from ..fuse.report import Fusion
from ..rewriter import ENTERED, rewrite
from ..scan import Scan


@dataclass(frozen=True)
class Loop(Scan):
    """A scan that is offered; `differentiated` inside of a function whose gradient is asked for.

    What the rule has to tell goes into `notes`.
    """

    differentiated: bool
    notes: list[Fusion] = field(default_factory=list)

    @property
    def is_innermost(self) -> bool:
        """True where no loop stands in its body."""
        return not any(node.op.name in ("scan", "while") for node in self.body.nodes)

    def tell(self, what: str, node: Node, nbytes: int, reason: str = "", gain: str = "") -> None:
        """Take note of a match, or of a near miss."""
        self.notes.append(Fusion(what, node.source, node.scope, nbytes, reason, gain))

    def origin(self, node: Node) -> Origin:
        """The origin that a node of the body has outside of it."""
        outer = self.node.origin
        return node.origin.under(outer) if outer.scope or not node.origin.known else node.origin


Rule = Callable[[Builder, Loop], Sequence[Value] | None]


def over_scans(graph: Graph, rule: Rule, notes: list[Fusion], *, within: bool = False) -> Graph:
    """Offer each scan to `rule(b, loop)`, which emits what takes its place, or returns None.

    Without effects, and of two steps or more. The same graph when nothing is changed.
    """

    def regions_of(node: Node) -> Sequence[Graph]:
        if node.op.name not in ENTERED:
            return node.regions
        inside = within or node.op.name == "gradients"
        return [over_scans(region, rule, notes, within=inside) for region in node.regions]

    def offered(b: Builder, node: Node) -> Sequence[Value] | None:
        if node.op.name != "scan" or node.attrs["length"] < 2 or has_effects(node):
            return None
        return rule(b, Loop(node, within, notes))

    return rewrite(graph, offered, regions_of)


class OverScans(ABC):
    """A pass that offers each scan to `offered`, which rewrites it and tells so."""

    @abstractmethod
    def offered(self, b: Builder, loop: Loop) -> Sequence[Value] | None:
        """Emit what takes the place of a loop, or return None."""

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself when nothing changes."""
        return over_scans(graph, self.offered, [])

    def report(self, graph: Graph) -> tuple[Fusion, ...]:
        """Tell what the pass does to `graph`, near misses with their reasons."""
        notes: list[Fusion] = []
        over_scans(graph, self.offered, notes)
        return tuple(notes)
