"""Lines for the nodes that have none: where a library's function is differentiated by itself."""

from __future__ import annotations

from dataclasses import replace

from ...ir.graph import Graph, Node, Origin


def lined(graph: Graph) -> Graph:
    """Return the graph with the line of the node around them on nodes of no line of their own.

    Nodes that share an origin share one after it.
    """
    return _lined(graph, "", {})


def _lined(graph: Graph, line: str, moved: dict[Origin, Origin]) -> Graph:
    nodes = tuple(_with_line(node, line, moved) for node in graph.nodes)
    same = all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if same else replace(graph, nodes=nodes)


def _with_line(node: Node, line: str, moved: dict[Origin, Origin]) -> Node:
    old = node.origin
    if line and old.known and not old.source:  # one that is not known gets its call's anyway
        origin = moved.setdefault(old, Origin(line, old.scope))
        node = replace(node, origin=origin)
    regions = tuple(_lined(region, node.source or line, moved) for region in node.regions)
    if all(new is old for new, old in zip(regions, node.regions, strict=True)):
        return node
    return replace(node, regions=regions)
