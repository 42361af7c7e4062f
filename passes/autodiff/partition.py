"""Cut a joint forward and backward body in two, and choose what the forward part stores.

The backward part may read the region's inputs again (unless they are gone by then) and what the
forward part stores. Data movement (a broadcast, a cast, a constant) is done again rather than
stored, as storing it would cost more than making it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from ...ir.graph import Graph, Literal, Node, Value
from ...ir.op import Split

CHEAP = frozenset(
    "broadcast_in_dim convert_element_type iota constant reshape squeeze expand_dims "
    "eq ne lt le gt ge not and or".split()
)


def partition(
    name: str,
    inputs: Sequence[Value],
    forward: Sequence[Node],
    backward: Sequence[Node],
    outputs: Sequence[Value],
    cts: Mapping[int, Value],
    wanted: Sequence[Value],
    store: Set[int],
) -> Split:
    """Split into `Split.forward` and `Split.backward`; see there for their signatures."""
    producer = {value: node for node in forward for value in node.outputs}
    place = {value: i for i, value in enumerate(inputs)}
    needed = _live(backward, wanted)
    again = _recomputed(needed, wanted, producer, place)
    body = (*again, *needed)
    defined = {value for node in body for value in node.outputs} | set(cts.values())
    residuals = [value for value in _reads(body, wanted) if value not in defined]

    stored: list[Value] = []
    kinds: list[tuple[str, int]] = []
    for value in residuals:
        at = place.get(value)
        if at is not None and at not in store:
            kinds.append(("input", at))
        else:
            kinds.append(("stored", len(stored)))
            stored.append(value)
    first = Graph(name, tuple(inputs), tuple(forward), (*outputs, *stored))
    second = Graph(f"{name}_pullback", (*residuals, *cts.values()), body, tuple(wanted))
    return Split(first, second, tuple(kinds), tuple(cts))


def _reads(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Value]:
    values = dict.fromkeys(v for node in nodes for v in node.inputs)
    values.update(dict.fromkeys(outputs))
    return [value for value in values if not isinstance(value, Literal)]


def _live(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Node]:
    """The nodes that the outputs depend on, in order; those with effects stay."""
    live = set(outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op.effect or not live.isdisjoint(node.outputs):
            live.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _recomputed(
    backward: Sequence[Node],
    wanted: Sequence[Value],
    producer: Mapping[Value, Node],
    place: Mapping[Value, int],
) -> list[Node]:
    """Cheap forward nodes that the backward part repeats rather than reads."""
    found: dict[Node, None] = {}
    pending = [v for v in _reads(backward, wanted) if v in producer]
    while pending:
        node = producer[pending.pop()]
        if node in found or node.op.name not in CHEAP or not _shrinks(node):
            continue
        found[node] = None
        pending += [v for v in node.inputs if v in producer]
    order = {node: i for i, node in enumerate(dict.fromkeys(producer.values()))}
    return sorted(found, key=order.__getitem__)


def _shrinks(node: Node) -> bool:
    """True when what a node reads is no more than what it makes."""
    return sum(v.type.nbytes for v in node.inputs) <= sum(v.type.nbytes for v in node.outputs)
