"""The pass: `gradients(x) {wrt} f  ->  f's nodes, then f's chain rule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ...ir.phases import as_forward
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
        return _expand(graph, outermost=self.outermost, within=False)


def _expand(graph: Graph, *, outermost: bool, within: bool) -> Graph:
    """Expand what is in `graph`, which is `within` a function that is differentiated, or not."""
    if not any(node.op.name == "gradients" for node in graph.walk()):
        return graph
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    late: set[Value] = set()  # what depends on a gradient
    for node in graph.nodes:
        asks = node.op.name == "gradients"
        inner = outermost and not asks
        regions = tuple(_expand(g, outermost=inner, within=within or asks) for g in node.regions)
        inputs = [env.get(value, value) for value in node.inputs]
        start = len(b.nodes)
        if asks:
            outputs = _gradients(b, node, regions[0], inputs, Reverse(outermost))
            env.update(zip(node.outputs, outputs, strict=True))
        else:
            same = all(new is old for new, old in zip(regions, node.regions, strict=True))
            node = substituted(node if same else replace(node, regions=regions), env)
            update = not within and not late.isdisjoint(node.inputs)
            b.nodes.append(replace(node, phase="update") if update else node)
        for new in b.nodes[start:]:
            if new.phase == "backward" or not late.isdisjoint(new.inputs):
                late.update(new.outputs)
    return b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])


def _gradients(
    b: Builder, node: Node, function: Graph, inputs: Sequence[Value], reverse: Reverse
) -> list[Value]:
    wrt = set(node.attrs["wrt"])
    active = [i in wrt for i in range(len(inputs))]
    b.origin, b.phase = node.origin, "forward"
    outputs, pullback = reverse.inline(b, as_forward(function), inputs, active)
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
