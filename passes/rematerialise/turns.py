"""Kernels in turn: one that does not wait for the kernel before it is made to, by a fence.

XLA starts as early as it can on what depends on nothing: the bits of all of a network's dropouts
are drawn as the program starts, the blocks of an attention run side by side, and keys and values
are cut out for all of them before. Where memory is short each has to come when the one before is
done, as the plan has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp

from ...ir.builder import Builder
from ...ir.fusion import is_fusible
from ...ir.graph import Literal, Node, Value
from ...ir.ops import OPS

SHARE = 1 / 4  # of what a kernel makes on average: a smaller one may run when it likes


def in_turn(
    nodes: Sequence[Node], constant: Collection[Value]
) -> tuple[list[Node], dict[Value, Value]]:
    """The same nodes, where every large kernel comes after the one before it.

    They define the same values; some read copies of them, behind fences, which hold nothing that is
    `constant`. Returned are also the copies of what was waited for: a fence holds while somebody
    reads them.
    """
    sizes = [_bytes(node) for node in nodes if not is_fusible(node)]
    large = SHARE * sum(sizes) / max(1, len(sizes))
    before: Value | None = None  # what the last kernel made
    depends: set[Value] = set()  # on that
    copies: dict[Value, Value] = {}
    loose: list[Node] = []  # element-wise nodes since the last kernel
    b = Builder(OPS)
    for node in nodes:
        if is_fusible(node):
            loose.append(node)
            if not depends.isdisjoint(node.inputs):
                depends.update(node.outputs)
            continue
        own: Mapping[Value, Value] = copies
        early = _early(node, loose, depends, large)
        inside, roots = _loop(early, loose, constant)
        if roots and before is not None:
            start = [copies.get(v, v) for v in (*roots, before)]
            *held, copies[before] = b.emit("optimization_barrier", start)
            own = {**copies, **dict(zip(roots, held, strict=True))}
        b.nodes.extend(_reading(each, own if each in inside else copies) for each in loose)
        b.nodes.append(_reading(node, own))
        loose = []
        if any(jnp.issubdtype(v.dtype, jnp.inexact) for v in node.outputs):
            before = max(node.outputs, key=lambda v: v.type.nbytes)
            depends = set(node.outputs)
    b.nodes.extend(_reading(each, copies) for each in loose)
    return b.nodes, copies


def _early(
    node: Node, loose: Sequence[Node], depends: Collection[Value], large: float
) -> list[Value]:
    """The operands of a kernel that would be there too soon, if nothing held them back."""
    if node.op.effect:
        return []
    apart = [v for v in node.inputs if v not in depends]
    if len(apart) == len(node.inputs) and _bytes(node) >= large:
        return apart
    made = {v for each in loose for v in each.outputs}
    return [v for v in apart if v in made and v.type.nbytes >= large]


def _loop(
    values: Sequence[Value], loose: Sequence[Node], constant: Collection[Value]
) -> tuple[set[Node], list[Value]]:
    """The element-wise nodes that make some values, and what these start from."""
    maker = {v: each for each in loose for v in each.outputs}
    found: set[Node] = set()
    roots: dict[Value, None] = {}
    pending = list(values)
    while pending:
        value = pending.pop()
        each = maker.get(value)
        if each is None and not isinstance(value, Literal) and value not in constant:
            roots[value] = None
        elif each is not None and each not in found:
            found.add(each)
            pending += each.inputs
    return found, list(roots)


def _bytes(node: Node) -> int:
    return sum(v.type.nbytes for v in node.outputs)


def _reading(node: Node, copies: Mapping[Value, Value]) -> Node:
    """The node, reading copies of what has one."""
    if copies.keys().isdisjoint(node.inputs):
        return node
    return replace(node, inputs=tuple(copies.get(v, v) for v in node.inputs))
