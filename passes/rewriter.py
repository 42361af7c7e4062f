"""What rewriting passes share: one walk over a graph that replaces nodes as it goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value
from ..ir.ops import OPS

Rule = Callable[[Builder, Node], Sequence[Value] | None]
# Ops whose regions are programs like the one around them; not custom rules, nor what runs on parts.
ENTERED = frozenset("gradients scan while cond remat2".split())

CALLS = frozenset("jit closed_call eval_jaxpr".split())  # ops that are the region they hold


def rewrite(
    graph: Graph, rule: Rule, regions_of: Callable[[Node], Sequence[Graph]] | None = None
) -> Graph:
    """Offer each node, inputs already rewritten, to `rule`; the same graph when none is changed.

    `rule(b, node)` returns the values that take the place of the node's outputs, having emitted
    on `b` what it needs, or None to keep the node. Regions are rewritten first, by the same rule
    or as `regions_of(node)` has them.
    """
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    changed = False
    for node in graph.nodes:
        node = substituted(node, env)
        if regions_of is None:
            regions = tuple(rewrite(region, rule) for region in node.regions)
        else:
            regions = tuple(regions_of(node))
        if any(new is not old for new, old in zip(regions, node.regions, strict=True)):
            node, changed = replace(node, regions=regions), True
        b.origin, b.phase = node.origin, node.phase
        start = len(b.nodes)
        values = rule(b, node)
        if values is None:
            del b.nodes[start:]
            b.nodes.append(node)
        else:
            changed = True
            env.update(zip(node.outputs, values, strict=True))
    if not changed:
        return graph
    return b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])


def inlined(graph: Graph, calls: Collection[str] = CALLS) -> Graph:
    """Put the regions of calls in their place; the same graph when there is none."""

    def rule(b: Builder, node: Node) -> Sequence[Value] | None:
        if node.op.name not in calls:
            return None
        return b.inline(node.regions[0], node.inputs, node.origin)[0]

    return rewrite(graph, rule)


def substituted(node: Node, env: dict[Value, Value]) -> Node:
    """Return the node with its inputs replaced as `env` says; the same node when none is."""
    if not env or env.keys().isdisjoint(node.inputs):
        return node
    return replace(node, inputs=tuple(env.get(value, value) for value in node.inputs))


def uses(graph: Graph) -> Counter[Value]:
    """How often each value of a graph and of its regions is read or returned."""
    found = Counter(v for node in graph.walk() for v in node.inputs)
    found.update(graph.outputs)
    found.update(v for node in graph.walk() for region in node.regions for v in region.outputs)
    return found


class Producers:
    """The producers of the values that a rewrite has come by."""

    def __init__(self) -> None:
        """Start with none."""
        self.producer: dict[Value, Node] = {}

    def remember(self, nodes: Sequence[Node]) -> None:
        """Take note of what makes the outputs of `nodes`."""
        self.producer.update((value, node) for node in nodes for value in node.outputs)

    def made_by(self, value: Value, op: str) -> Node | None:
        """Return the producer of `value` if it is an `op`."""
        node = self.producer.get(value)
        return node if node is not None and node.op.name == op else None


def known_array(x: Any) -> Any:
    """Return a constant, or None where it is a tracer, keys, or partly on other machines."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return None if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)
