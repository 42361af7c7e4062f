"""What the passes over loops share: every scan of a program is offered to a rule, inner ones first.

A scan in a region of `shard_map`, or in a custom rule, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Origin, Value
from ...ir.ops import OPS
from ..dce import has_effects
from ..fuse.report import Fusion
from ..rewriter import substituted
from ..scan import Scan

ENTERED = frozenset("gradients scan while cond remat2".split())


@dataclass(frozen=True)
class Loop(Scan):
    """A scan that is offered; `differentiated` inside of a function whose gradient is asked for.

    What the rule has to tell goes into `notes`.
    """

    differentiated: bool
    notes: list[Fusion] = field(default_factory=list)

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
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    changed = False
    for node in graph.nodes:
        node = substituted(node, env)
        if node.op.name in ENTERED:
            inside = within or node.op.name == "gradients"
            regions = tuple(over_scans(g, rule, notes, within=inside) for g in node.regions)
            if any(new is not old for new, old in zip(regions, node.regions, strict=True)):
                node, changed = replace(node, regions=regions), True
        found = None
        if node.op.name == "scan" and node.attrs["length"] > 1 and not has_effects(node):
            b.origin, b.phase = node.origin, node.phase
            start = len(b.nodes)
            found = rule(b, Loop(node, within, notes))
            if found is None:
                del b.nodes[start:]
        if found is None:
            b.nodes.append(node)
        else:
            changed = True
            env.update(zip(node.outputs, found, strict=True))
    if not changed:
        return graph
    return b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])
