"""Random bits are drawn where they stand: in a program that fits a budget, by fences.

XLA may draw them as soon as the program starts, as they depend on a key alone: those of all of a
network's dropouts then lie in memory at once, four bytes an element, long before their layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp

from ...ir.builder import Builder
from ...ir.fusion import is_fusible
from ...ir.graph import Literal, Node, Value
from ...ir.ops import OPS

GROWS = 16  # times the bytes of what it is drawn from, at least


def in_turn(nodes: Sequence[Node]) -> tuple[list[Node], dict[Value, Value]]:
    """The same nodes, with draws that wait for the kernel before them.

    A draw is a kernel that makes much of little and reads no real number, nor what was made of
    one. Nodes define the same values; some read copies of them, behind fences. These are returned
    as well: a fence holds while somebody reads them.
    """
    real: set[Value] = set()
    copies: dict[Value, Value] = {}
    before: Value | None = None
    after: list[Node] = []  # the kernel that made it, element by element: they wait as well
    b = Builder(OPS)
    for node in nodes:
        if not real.isdisjoint(node.inputs) or any(map(_is_real, node.inputs)):
            real.update(node.outputs)
            if is_fusible(node):
                after.append(node)
                continue
            b.nodes.extend(_reading(each, copies) for each in (*after, node))
            before = max(node.outputs, key=lambda v: v.type.nbytes, default=before)
            after = []
        elif before is not None and _is_draw(node):
            seeds = [v for v in node.inputs if not isinstance(v, Literal)]
            *own, copies[before] = b.emit(
                "optimization_barrier", [*seeds, copies.get(before, before)]
            )
            b.nodes.append(_reading(node, dict(zip(seeds, own, strict=True))))
        else:
            b.nodes.append(node)
    b.nodes.extend(_reading(each, copies) for each in after)
    return b.nodes, copies


def _is_real(value: Value) -> bool:
    return not isinstance(value, Literal) and jnp.issubdtype(value.dtype, jnp.inexact)


def _is_draw(node: Node) -> bool:
    if is_fusible(node) or node.op.effect:
        return False
    read = sum(v.type.nbytes for v in node.inputs)
    return 0 < GROWS * read <= sum(v.type.nbytes for v in node.outputs)


def _reading(node: Node, copies: Mapping[Value, Value]) -> Node:
    """The node, reading copies of what has one."""
    if copies.keys().isdisjoint(node.inputs):
        return node
    return replace(node, inputs=tuple(copies.get(v, v) for v in node.inputs))
