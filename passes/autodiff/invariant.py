"""What a loop's body computes from the loop's constants alone, told apart from the rest.

A residual among it is the same in each step: it is made once, before the loop, where a stack
would hold one copy for each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from ...ir.graph import Graph, Literal, Node, Value
from ..dce import has_effects

CHEAP = frozenset(
    "broadcast_in_dim convert_element_type iota constant reshape squeeze "
    "eq ne lt le gt ge not and or".split()
)


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A body in two: `once` gives `shared`, values that each run of `nodes` reads, and more.

    once: fixed inputs -> shared ++ further values asked for
    """

    once: Graph
    shared: tuple[Value, ...]
    nodes: tuple[Node, ...]


def invariants(nodes: Sequence[Node], fixed: Set[Value]) -> set[Value]:
    """Values that nodes without effects make of `fixed` values alone."""
    found: set[Value] = set()
    for node in nodes:
        if node.op.effect or has_effects(node):
            continue
        if all(isinstance(v, Literal) or v in fixed or v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def hoist(
    name: str,
    fixed: Sequence[Value],
    nodes: Sequence[Node],
    outputs: Sequence[Value],
    wanted: Sequence[Value],
) -> Hoisted:
    """Take the invariant values `wanted`, and what they need, out of a body's `nodes`.

    Data movement that the rest of the body reads as well is done there again (see `repeated`).
    """
    first = needed(nodes, wanted)
    moved = set(first)
    rest = [node for node in nodes if node not in moved]
    producer = {value: node for node in first for value in node.outputs}
    again = set(repeated(rest, outputs, producer))
    rest = [node for node in nodes if node not in moved or node in again]
    made = {value for node in rest for value in node.outputs}
    shared = [v for v in reads(rest, outputs) if v in producer and v not in made]
    results = dict.fromkeys((*shared, *wanted))
    once = Graph(f"{name}_once", tuple(fixed), tuple(first), tuple(results))
    return Hoisted(once, tuple(shared), tuple(rest))


def needed(nodes: Sequence[Node], wanted: Iterable[Value]) -> list[Node]:
    """The nodes that `wanted` values depend on, in order."""
    live = set(wanted)
    found: list[Node] = []
    for node in reversed(nodes):
        if not live.isdisjoint(node.outputs):
            live.update(node.inputs)
            found.append(node)
    return found[::-1]


def reads(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Value]:
    """The values that nodes and outputs read, each once, in order."""
    values = dict.fromkeys(v for node in nodes for v in node.inputs)
    values.update(dict.fromkeys(outputs))
    return [value for value in values if not isinstance(value, Literal)]


def repeated(
    readers: Sequence[Node], outputs: Sequence[Value], producer: Mapping[Value, Node]
) -> list[Node]:
    """Nodes of `producer` that are cheaper to run again than to hand what they make to readers.

    Data movement (a broadcast, a cast, a constant) that reads no more than it makes.
    """
    found: dict[Node, None] = {}
    pending = [v for v in reads(readers, outputs) if v in producer]
    while pending:
        node = producer[pending.pop()]
        if node in found or node.op.name not in CHEAP or not _grows(node):
            continue
        found[node] = None
        pending += [v for v in node.inputs if v in producer]
    order = {node: i for i, node in enumerate(dict.fromkeys(producer.values()))}
    return sorted(found, key=order.__getitem__)


def _grows(node: Node) -> bool:
    """True when what a node reads is no more than what it makes."""
    return sum(v.type.nbytes for v in node.inputs) <= sum(v.type.nbytes for v in node.outputs)
