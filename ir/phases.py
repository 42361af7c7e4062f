"""Phases where gradients are taken of gradients: the outermost one decides.

The loss of a physics-informed network, or one with a gradient penalty, has a derivative of its own
within. All of that is forward for whoever differentiates the loss, and may be made again like it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from .graph import Graph, Node, Value


def as_forward(graph: Graph) -> Graph:
    """The graph with all its nodes, those of regions too, in the forward phase; itself if so."""
    nodes = tuple(map(_forward, graph.nodes))
    same = all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if same else replace(graph, nodes=nodes)


def outermost(nodes: Sequence[Node], last: Collection[Node]) -> tuple[Node, ...]:
    """The nodes; what `last`, the backward pass of the outermost gradient, reads is forward."""
    found = list(nodes)
    needed: set[Value] = set()
    for i, node in reversed(list(enumerate(nodes)) if last else []):
        if node in last:
            needed.update(node.inputs)
        elif not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
            found[i] = _forward(node)
    return tuple(found)


def _forward(node: Node) -> Node:
    regions = tuple(map(as_forward, node.regions))
    same = all(new is old for new, old in zip(regions, node.regions, strict=True))
    if same and node.phase == "forward":
        return node
    return replace(node, phase="forward", regions=regions)
