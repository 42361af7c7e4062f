"""How arrays lie by what reads them, where what they are made of does not tell.

    mask: f32[16,64]  where(mask, x: f32[16/data:2,64], y)      ->  mask: f32[16/data:2,64]

XLA's partitioner carries layouts from readers to operands as well: a mask is made in parts, and
so is the gradient of a parameter that is divided. Where the readers do not agree, an array is taken
to be whole on every device, the larger size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .graph import Graph, Node, Value
from .spec import sliced, stacked
from .spread_rules import Specs, is_call, operands_of
from .types import Spec


def wanted(graph: Graph) -> dict[Value, Spec]:
    """Return how values that are whole lie by their readers, values of regions too."""
    found = _Readers()
    found.graph(graph, [()] * len(graph.outputs))
    return found.wanted


class _Readers:
    """Walks graphs from their outputs on."""

    def __init__(self) -> None:
        self.wanted: dict[Value, Spec] = {}

    def graph(self, graph: Graph, outputs: Specs) -> Specs:
        """Return how the inputs lie, from how the outputs do for their readers outside."""
        votes: dict[Value, list[Spec]] = defaultdict(list)
        for value, spec in zip(graph.outputs, outputs, strict=True):
            votes[value].append(spec)
        for node in reversed(graph.nodes):
            specs = [self._lies(value, votes[value]) for value in node.outputs]
            for value, spec in zip(node.inputs, self._inputs(node, specs), strict=True):
                votes[value].append(spec)
        return [self._lies(value, votes[value]) for value in graph.inputs]

    def _lies(self, value: Value, votes: Sequence[Spec]) -> Spec:
        """As it is known to, or as all of its readers have it, wherever its region is used."""
        if value.type.spec:
            return value.type.spec
        spec = votes[0] if len(set(votes)) == 1 else ()
        if self.wanted.setdefault(value, spec) != spec:
            self.wanted[value] = ()
        return spec

    def _inputs(self, node: Node, specs: Specs) -> Specs:
        """How the operands lie by one reader."""
        if node.op.name == "scan":
            return self._scan(node, specs)
        if is_call(node):
            return self.graph(node.regions[0], specs)
        if node.regions or not any(specs):
            return [()] * len(node.inputs)
        outs = [v.type.spread(spec) for v, spec in zip(node.outputs, specs, strict=True)]
        return operands_of(node.op.name, node.inputs, node.attrs, outs)

    def _scan(self, node: Node, specs: Specs) -> Specs:
        """A carry lies in one way all along: as it starts, and as the body gives it back."""
        n, k = node.attrs["num_consts"], node.attrs["num_carry"]
        found = self.graph(node.regions[0], [*specs[:k], *map(sliced, specs[k:])])
        carry = [a if a == b else () for a, b in zip(found[n : n + k], specs[:k], strict=True)]
        return [*found[:n], *carry, *map(stacked, found[n + k :])]
