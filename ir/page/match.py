"""What a pass changed: nodes of two graphs matched by what they compute, not by their numbers.

Three rounds: the same computation from the inputs on; the same op, attributes, types and place in
the program; the same op and place. A pair of the later rounds has changed if its operands are not
each other's, or if the pair is of the last round. The rest was removed, or added.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..fingerprint import attrs_key, fingerprint
from ..graph import Graph, Literal, Node, Value


@dataclass
class Changes:
    """Nodes that came and went, and pairs (before, after) that differ; regions included."""

    added: list[Node] = field(default_factory=list)
    removed: list[Node] = field(default_factory=list)
    changed: list[tuple[Node, Node]] = field(default_factory=list)


def changes(before: Graph, after: Graph) -> Changes:
    """Compare a program with what a pass made of it."""
    found = Changes()
    _compare(before, after, found, {})
    return found


def _compare(before: Graph, after: Graph, found: Changes, prints: dict[int, Hashable]) -> None:
    def body(node: Node) -> Hashable:
        for region in node.regions:
            if id(region) not in prints:
                prints[id(region)] = fingerprint(region)
        return tuple(prints[id(region)] for region in node.regions)

    def local(node: Node) -> Hashable:
        types = tuple(v.type for v in node.outputs)
        return node.op, attrs_key(node.attrs), types, body(node), node.origin, node.phase

    def place(node: Node) -> Hashable:
        return node.op.name, node.origin, node.phase

    numbers: dict[Hashable, int] = {}
    whole = _computations(before, numbers, body) | _computations(after, numbers, body)
    pairs: dict[Node, Node] = {}
    for key in (whole.__getitem__, local, place):
        _pair(before, after, key, pairs)
    was = {v: w for new, old in pairs.items() for v, w in zip(new.outputs, old.outputs)}  # noqa: B905
    was |= dict(zip(after.inputs, before.inputs))  # noqa: B905
    taken = set(pairs.values())
    found.removed += [node for node in before.nodes if node not in taken]
    for node in after.nodes:
        old = pairs.get(node)
        if old is None:
            found.added.append(node)
        elif old is not node and whole[old] != whole[node] and _differ(old, node, was, body):
            found.changed.append((old, node))
            if len(old.regions) == len(node.regions) and body(old) != body(node):
                for a, b in zip(old.regions, node.regions, strict=True):
                    _compare(a, b, found, prints)


def _computations(
    graph: Graph, numbers: dict[Hashable, int], body: Callable[[Node], Hashable]
) -> dict[Node, int]:
    """A number for what each node computes from the inputs of the graph."""
    have: dict[Value, Hashable] = {value: -1 - i for i, value in enumerate(graph.inputs)}
    found = {}
    for node in graph.nodes:
        operands = tuple(_literal(v) or have[v] for v in node.inputs)
        key = (node.op, attrs_key(node.attrs), operands, body(node))
        found[node] = number = numbers.setdefault(key, len(numbers))
        have.update((value, (number, k)) for k, value in enumerate(node.outputs))
    return found


def _literal(value: Value) -> Hashable:
    return (value.type, repr(value.data)) if isinstance(value, Literal) else None


def _pair(
    before: Graph, after: Graph, key: Callable[[Node], Hashable], pairs: dict[Node, Node]
) -> None:
    """Pair what is left in order, by `key`."""
    taken = set(pairs.values())
    left: dict[Hashable, deque[Node]] = defaultdict(deque)
    for node in before.nodes:
        if node not in taken:
            left[key(node)].append(node)
    for node in after.nodes:
        if node not in pairs and (found := left.get(key(node))):
            pairs[node] = found.popleft()


def _differ(
    old: Node, new: Node, was: dict[Value, Value], body: Callable[[Node], Hashable]
) -> bool:
    def same(a: Value, b: Value) -> bool:
        return a is was.get(b) or (_literal(a) is not None and _literal(a) == _literal(b))

    return (
        len(old.inputs) != len(new.inputs)
        or not all(map(same, old.inputs, new.inputs))
        or attrs_key(old.attrs) != attrs_key(new.attrs)
        or [v.type for v in old.outputs] != [v.type for v in new.outputs]
        or body(old) != body(new)
    )
