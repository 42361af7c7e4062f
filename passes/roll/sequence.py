"""The nodes of a graph as a sequence of numbers, in which repeated blocks are periods.

What hangs on constants alone (a causal mask, a number cast) stands in the first block that reads
it and in no other: it is left out of the sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ...ir.fingerprint import attrs_key, fingerprint
from ...ir.graph import Graph, Literal, Node, Value
from ..dce import has_effects
from ..fold import FOLDABLE, LARGEST

SHAPED = frozenset("iota broadcast_in_dim constant slice concatenate".split())
SEEDS = frozenset("random_seed random_wrap".split())


def acts(node: Node) -> bool:
    """True for nodes whose place among others of the kind counts."""
    return node.op.effect not in ("", "barrier") or has_effects(node)


def fixed(graph: Graph) -> frozenset[Node]:
    """Nodes that hang on constants alone and are quickly made, or small."""
    found: set[Node] = set()
    known: set[Value] = set()
    for node in graph.nodes:
        small = all(v.type.size <= LARGEST for v in node.outputs) and not _random(node)
        cheap = small or node.op.name in SHAPED or node.op.name in SEEDS or node.op.name in FOLDABLE
        given = all(isinstance(v, Literal) or v in known for v in node.inputs)
        if given and cheap and not node.regions and not node.op.effect and not node.op.foreign:
            found.add(node)
            known.update(node.outputs)
    return frozenset(found)


def is_key(value: Value) -> bool:
    """True for random keys."""
    return bool(jnp.issubdtype(value.dtype, jax.dtypes.extended))


def _random(node: Node) -> bool:
    return any(map(is_key, (*node.inputs, *node.outputs)))


def depth_first(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """Nodes in the order in which the outputs ask for them: the same however they were written."""
    members = set(nodes)
    producer = graph.producer
    placed: set[Node] = set()
    found: list[Node] = []
    roots = [producer[v] for v in graph.outputs if v in producer]
    for root in (*roots, *graph.nodes):
        pending = [root]
        while pending:
            node = pending[-1]
            before = (producer[v] for v in reversed(node.inputs) if v in producer)
            missing = [n for n in before if n not in placed]
            if node in placed or not missing:
                pending.pop()
                if node not in placed:
                    placed.add(node)
                    found.append(node)
            else:
                pending.extend(missing)
    return [node for node in found if node in members]


@dataclass
class Labels:
    """Numbers for nodes, equal for those that do the same to operands of the same types.

    The nodes stand in `order` many `gradients`. A slice's place in its operand does not count.
    """

    order: int
    numbers: dict[Hashable, int] = field(default_factory=dict)
    regions: dict[int, Hashable] = field(default_factory=dict)

    def of(self, nodes: Sequence[Node]) -> list[int]:
        """Return a number for each node."""
        shallow = [self._shallow(node) for node in nodes]
        often: dict[Hashable, int] = {}
        for key in shallow:
            often[key] = often.get(key, 0) + 1
        return [
            self._number((key, self._regions(node)) if often[key] > 1 else node)
            for key, node in zip(shallow, nodes, strict=True)
        ]

    def _number(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def _shallow(self, node: Node) -> Hashable:
        if acts(node):
            return node
        ruled = node.op.rule is not None and node.op.rule.order > self.order
        attrs = attrs_key({} if sliced(node) else node.attrs)
        types = tuple((v.shape, v.dtype, v.type.host) for v in (*node.inputs, *node.outputs))
        op = node.op.name if ruled else node.op
        return op, node.phase, attrs, len(node.inputs), types

    def _regions(self, node: Node) -> Hashable:
        for region in node.regions:
            if id(region) not in self.regions:
                self.regions[id(region)] = fingerprint(region, self.order)
        return tuple(self.regions[id(region)] for region in node.regions)


def sliced(node: Node) -> bool:
    """True for slices without strides."""
    return node.op.name == "slice" and set(node.attrs.get("strides") or (1,)) == {1}


def weight(node: Node) -> int:
    """The number of nodes in it, itself included."""
    return 1 + sum(map(weight, (inner for region in node.regions for inner in region.nodes)))
