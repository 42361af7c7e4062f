"""Which arguments are weights and their optimiser's state, and what is made of them alone."""

from __future__ import annotations

from collections.abc import Set

from ...ir.graph import Graph, Value


def weights_of(graph: Graph) -> frozenset[Value]:
    """Inputs that an update reads, or that a gradient is returned of.

    The gradient of an input has its type. Where several inputs are of one type, the first are
    taken: a step has its parameters in front of its samples.
    """
    found: set[Value] = set()
    late: set[Value] = set()  # gradients, and what is made of them
    for node in graph.nodes:
        if node.phase == "update":
            found.update(node.inputs)
        if node.phase != "forward" or not late.isdisjoint(node.inputs):
            late.update(node.outputs)
    found &= set(graph.inputs)
    left = [v for v in graph.inputs if v.shape]
    for output in graph.outputs:
        same = [v for v in left if (v.shape, v.dtype) == (output.type.shape, output.type.dtype)]
        if output in late and same:
            found.add(same[0])
            left.remove(same[0])
    return frozenset(found)


def made_of(graph: Graph, inputs: Set[Value]) -> Set[Value]:
    """The arrays that are made of these inputs, and of no others but scalars."""
    others = {v for v in graph.inputs if v not in inputs and v.shape}
    made = {v for v in inputs if v.shape}
    for node in graph.nodes:
        if not others.isdisjoint(node.inputs):
            others.update(node.outputs)
        elif not made.isdisjoint(node.inputs):
            made.update(node.outputs)
    return made
