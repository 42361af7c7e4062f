"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Dce:
    """Remove nodes whose outputs nobody reads; those with effects stay. Inputs stay too.

    In regions of a call the same is done inside; a scan's unread stacked outputs are dropped.
    """

    name: ClassVar[str] = "dce"

    def __call__(self, graph: Graph) -> Graph:
        """Return the graph without dead nodes, or `graph` itself when all are live."""
        live: set[Value] = set(graph.outputs)
        kept: list[Node] = []
        changed = False
        for node in reversed(graph.nodes):
            if node.op.effect in ("", "barrier") and live.isdisjoint(node.outputs):
                if not has_effects(node):
                    changed = True
                    continue
            lean = self._trimmed(node, live)
            changed |= lean is not node
            live.update(lean.inputs)
            kept.append(lean)
        if not changed:
            return graph
        return replace(graph, nodes=tuple(reversed(kept)))

    def _trimmed(self, node: Node, live: set[Value]) -> Node:
        if node.op.name == "optimization_barrier":
            return _trim_barrier(node, live)
        if node.op.name == "scan":
            node = _trim_scan(node, live)
        regions = tuple(map(self, node.regions))
        if all(new is old for new, old in zip(regions, node.regions, strict=True)):
            return node
        node = replace(node, regions=regions)
        return self._trimmed(node, live) if node.op.name == "scan" else node  # reads less now


def has_effects(node: Node) -> bool:
    """True when a node of any region has an effect that must happen."""
    return any(
        inner.op.effect not in ("", "barrier") for region in node.regions for inner in region.walk()
    )


def _trim_barrier(node: Node, live: set[Value]) -> Node:
    """Drop the operands of a barrier whose fenced copies nobody reads."""
    used = [i for i, value in enumerate(node.outputs) if value in live]
    if len(used) == len(node.outputs):
        return node
    return replace(
        node,
        inputs=tuple(node.inputs[i] for i in used),
        outputs=tuple(node.outputs[i] for i in used),
    )


def _trim_scan(node: Node, live: set[Value]) -> Node:
    """Drop what a scan makes, carries or is given for nothing.

    A carry is needed if its result is read or if it feeds, through the body, what is needed: the
    least fixed point of that.
    """
    (body,) = node.regions
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    if has_effects(node):
        return node
    producer = body.producer
    needed = {i for i, value in enumerate(node.outputs) if value in live}
    reached: set[Value] = set()
    pending = [body.outputs[i] for i in needed]
    place = {value: i for i, value in enumerate(body.inputs)}
    while pending:
        value = pending.pop()
        if value in reached:
            continue
        reached.add(value)
        at = place.get(value)
        if at is not None and n <= at < n + k and at - n not in needed:
            needed.add(at - n)
            pending.append(body.outputs[at - n])
        elif value in producer:
            pending.extend(producer[value].inputs)
    ins = [
        i
        for i, value in enumerate(body.inputs)
        if (value in reached if not n <= i < n + k else i - n in needed)
    ]
    if len(ins) == len(body.inputs) and len(needed) == len(node.outputs):
        return node
    outs = sorted(needed)
    lean = Graph(
        body.name,
        tuple(body.inputs[i] for i in ins),
        body.nodes,
        tuple(body.outputs[i] for i in outs),
    )
    return replace(
        node,
        inputs=tuple(node.inputs[i] for i in ins),
        outputs=tuple(node.outputs[i] for i in outs),
        regions=(lean,),
        attrs={
            **node.attrs,
            "num_consts": sum(i < n for i in ins),
            "num_carry": sum(i < k for i in outs),
        },
    )
