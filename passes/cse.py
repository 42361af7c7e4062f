"""Common subexpression elimination: one node for equal work."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..ir.graph import Graph, Literal, Node, Value
from ..ir.op import hashable
from .rewriter import substituted


@dataclass(frozen=True)
class Cse:
    """y = f(x); z = f(x)  ->  y = f(x), z read as y.

    Nodes with effects are never merged, nor are barriers: what a recompute boundary separates
    stays apart, as the values on its other side are others.
    """

    name: ClassVar[str] = "cse"

    def __call__(self, graph: Graph) -> Graph:
        """Return the graph with repeats removed, or `graph` itself when there are none."""
        env: dict[Value, Value] = {}
        seen: dict[Hashable, Node] = {}
        nodes: list[Node] = []
        changed = False
        for node in graph.nodes:
            node = substituted(node, env)
            regions = tuple(map(self, node.regions))
            if any(new is not old for new, old in zip(regions, node.regions, strict=True)):
                node, changed = replace(node, regions=regions), True
            key = None if node.op.effect else _key(node)
            first = seen.setdefault(key, node) if key is not None else node
            if first is node:
                nodes.append(node)
            else:
                changed = True
                env.update(zip(node.outputs, first.outputs, strict=True))
        if not changed:
            return graph
        outputs = tuple(env.get(value, value) for value in graph.outputs)
        return Graph(graph.name, graph.inputs, tuple(nodes), outputs)


def stacked_once(graph: Graph) -> Graph:
    """The graph in which nobody reads a scan's second stack of a value, or one of its own xs."""
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op.name == "scan":
            env.update(_repeats(node))
    if not env:
        return graph
    nodes = tuple(substituted(node, env) for node in graph.nodes)
    return replace(graph, nodes=nodes, outputs=tuple(env.get(v, v) for v in graph.outputs))


def _repeats(node: Node) -> dict[Value, Value]:
    """What has the same slices, by the stacks of a scan that are not needed for that."""
    (body,) = node.regions
    start, carried = node.attrs["num_consts"] + node.attrs["num_carry"], node.attrs["num_carry"]
    first = dict(zip(body.inputs[start:], node.inputs[start:], strict=True))
    found = {}
    for inner, outer in zip(body.outputs[carried:], node.outputs[carried:], strict=True):
        same = first.setdefault(inner, outer)
        if same is not outer and same.type == outer.type:
            found[outer] = same
    return found


def _key(node: Node) -> Hashable | None:
    """Equal for nodes that compute the same; None where an attribute cannot be compared."""
    try:
        attrs = tuple(sorted((name, hashable(value)) for name, value in node.attrs.items()))
        key = (node.op, tuple(map(_operand, node.inputs)), attrs, tuple(map(id, node.regions)))
        hash(key)
    except TypeError:
        return None
    return key


def _operand(value: Value) -> Any:
    return (hashable(value.data), value.type) if isinstance(value, Literal) else value
