"""Cut a joint forward and backward body in two, and choose what the forward part stores.

The backward part may read the region's inputs again (unless they are gone by then) and what the
forward part stores. Data movement (a broadcast, a cast, a constant) is done again rather than
stored, as storing it would cost more than making it. What the forward part makes of `fixed`
inputs alone is the same each time that a loop runs it: it is made once, before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from ...ir.graph import Graph, Node, Value
from ...ir.op import Split
from .invariant import hoist, invariants, reads, repeated


def partition(
    name: str,
    inputs: Sequence[Value],
    forward: Sequence[Node],
    backward: Sequence[Node],
    outputs: Sequence[Value],
    cts: Mapping[int, Value],
    wanted: Sequence[Value],
    store: Set[int],
    fixed: Sequence[int] = (),
) -> Split:
    """Split into the parts of a `Split`; see there for their signatures."""
    producer = {value: node for node in forward for value in node.outputs}
    place = {value: i for i, value in enumerate(inputs)}
    needed = _live(backward, wanted)
    again = repeated(needed, wanted, producer)
    body = (*again, *needed)
    defined = {value for node in body for value in node.outputs} | set(cts.values())
    residuals = [value for value in reads(body, wanted) if value not in defined]

    constant = [inputs[i] for i in fixed]
    once = invariants(forward, set(constant)) if fixed else set()
    parts = hoist(name, constant, forward, outputs, [v for v in residuals if v in once])
    shared = {value: i for i, value in enumerate(parts.once.outputs)}
    stored: list[Value] = []
    kinds: list[tuple[str, int]] = []
    for value in residuals:
        at = place.get(value)
        if at is not None and at not in store:
            kinds.append(("input", at))
        elif value in shared:
            kinds.append(("once", shared[value]))
        else:
            kinds.append(("stored", len(stored)))
            stored.append(value)
    first = Graph(name, (*inputs, *parts.shared), parts.nodes, (*outputs, *stored))
    second = Graph(f"{name}_pullback", (*residuals, *cts.values()), body, tuple(wanted))
    return Split(parts.once, first, second, tuple(kinds), tuple(cts))


def _live(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Node]:
    """The nodes that the outputs depend on, in order; those with effects stay."""
    live = set(outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op.effect or not live.isdisjoint(node.outputs):
            live.update(node.inputs)
            kept.append(node)
    return kept[::-1]
