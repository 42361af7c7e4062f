"""What a graph computes, as a key: two graphs with one key compute the same.

Names, lines, scopes and phases play no part. An attribute that cannot be hashed counts by identity,
and so does a custom rule that a `gradients` node of the graph may come to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

from .graph import Graph, Literal, Value
from .op import Op, hashable


def digest(graph: Graph) -> str:
    """Name of a graph's structure that is the same in every process: ops, types and wiring."""
    return hashlib.sha256(_structure(graph).encode()).hexdigest()[:16]


def _structure(graph: Graph) -> str:
    place = {value: i for i, value in enumerate(graph.inputs)}

    def operand(value: Value) -> str:
        return repr(value.data) if isinstance(value, Literal) else str(place[value])

    rows = []
    for node in graph.nodes:
        reads, makes = map(operand, node.inputs), (str(v.type) for v in node.outputs)
        regions = map(_structure, node.regions)
        rows.append(f"{node.op.name}({','.join(reads)}):{','.join(makes)}[{';'.join(regions)}]")
        for value in node.outputs:
            place[value] = len(place)
    head = ",".join(str(value.type) for value in graph.inputs)
    return "\n".join([head, *rows, ",".join(map(operand, graph.outputs))])


class _Same:
    """An object as a key by its identity; holds it, so that the identity stays its own."""

    __slots__ = ("_held",)

    def __init__(self, held: Any) -> None:
        self._held = held

    def __hash__(self) -> int:
        return id(self._held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._held is other._held


def fingerprint(graph: Graph, order: int = 0) -> Hashable:
    """Key of a graph: types of its inputs, each node's op, operands, attrs and regions.

    It stands in `order` many `gradients` nodes.
    """
    return _fingerprint(graph, order + gradient_order(graph))


def gradient_order(graph: Graph) -> int:
    """How deep `gradients` nodes stand in each other."""
    return max(
        (
            gradient_order(region) + (node.op.name == "gradients")
            for node in graph.nodes
            for region in node.regions
        ),
        default=0,
    )


def _fingerprint(graph: Graph, order: int) -> Hashable:
    place: dict[Value, int] = {value: i for i, value in enumerate(graph.inputs)}

    def operand(value: Value) -> Hashable:
        if isinstance(value, Literal):
            return value.type, hashable(value.data)
        return place[value]

    rows = []
    for node in graph.nodes:
        regions = tuple(_fingerprint(region, order) for region in node.regions)
        operands = tuple(map(operand, node.inputs))
        rows.append((_op(node.op, order), operands, attrs_key(node.attrs), regions))
        for value in node.outputs:
            place[value] = len(place)
    types = tuple(value.type for value in graph.inputs)
    return types, tuple(rows), tuple(map(operand, graph.outputs))


def attrs_key(attrs: Mapping[str, Any]) -> Hashable:
    """Key of a node's attributes; what cannot be hashed counts by identity."""
    return tuple((name, _key(attrs[name])) for name in sorted(attrs))


def _op(op: Op, order: int) -> Hashable:
    """The op; by its name alone where it holds a rule for derivatives that nobody here takes."""
    return op.name if op.rule is not None and op.rule.order > order else op


def _key(attr: Any) -> Hashable:
    try:
        key = hashable(attr)
        hash(key)
    except TypeError:
        return _Same(attr)
    return key  # type: ignore[no-any-return]
