"""The pass: `gradients(x) {wrt} f  ->  f's nodes, then f's chain rule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ..rewriter import substituted
from .reverse import Reverse


@dataclass(frozen=True)
class Autodiff:
    """Expand every `gradients` node, innermost first.

        outs ++ grads = gradients(x) {wrt} f
        ->  outs = f(x);  grads = pullback of f at x, applied to 1 for the first output

    Nodes that come to depend on a gradient and are not part of one have the phase `update`.

    `outermost`: nobody will differentiate the joint graph again, so that custom rules that no
    gradient here has a use for are dropped. A compiled step may stand inside a gradient.
    """

    outermost: bool = False

    name: ClassVar[str] = "autodiff"

    def __call__(self, graph: Graph) -> Graph:
        """Return the joint graph, or `graph` itself when nothing asks for gradients."""
        if not any(node.op.name == "gradients" for node in graph.walk()):
            return graph
        return mark_updates(_expand(graph, outermost=self.outermost))


def _expand(graph: Graph, *, outermost: bool) -> Graph:
    if not any(node.op.name == "gradients" for node in graph.walk()):
        return graph
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        asks = node.op.name == "gradients"
        inner = outermost and not asks
        regions = tuple(_expand(region, outermost=inner) for region in node.regions)
        inputs = [env.get(value, value) for value in node.inputs]
        if asks:
            outputs = _gradients(b, node, regions[0], inputs, Reverse(outermost))
            env.update(zip(node.outputs, outputs, strict=True))
        else:
            same = all(new is old for new, old in zip(regions, node.regions, strict=True))
            node = node if same else replace(node, regions=regions)
            b.nodes.append(substituted(node, env))
    return b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])


def _gradients(
    b: Builder, node: Node, function: Graph, inputs: Sequence[Value], reverse: Reverse
) -> list[Value]:
    wrt = set(node.attrs["wrt"])
    active = [i in wrt for i in range(len(inputs))]
    b.origin, b.phase = node.origin, "forward"
    outputs, pullback = reverse.inline(b, function, inputs, active)
    b.phase = "backward"
    seed = b.ones(outputs[0])
    cts = pullback(b, [seed, *([None] * (len(outputs) - 1))])
    grads = [cts[i] for i in node.attrs["wrt"]]
    found = [
        b.zeros(inputs[i]) if ct is None else ct
        for i, ct in zip(node.attrs["wrt"], grads, strict=True)
    ]
    b.phase = "forward"
    return [*outputs, *found]


def mark_updates(graph: Graph) -> Graph:
    """Give the phase `update` to forward nodes that read what the backward pass made."""
    late: set[Value] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.phase == "backward":
            late.update(node.outputs)
        elif not late.isdisjoint(node.inputs):
            late.update(node.outputs)
            node = node if node.phase == "update" else replace(node, phase="update")
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))
