"""Which segments of a chain are alike: what is found for one then holds for the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from ...ir.fusion import is_fusible
from ...ir.graph import Literal, Node, Value
from .joint import Joint
from .keep import closure
from .segments import Chain, Segment

FAR = 200  # nodes outside of a segment that it may make again and still be compared


def kinds(joint: Joint, chain: Chain, seconds: Callable[[Node], float]) -> list[Hashable]:
    """Return a key for each segment: equal keys have equal ladders and equal links.

    It tells what the planner looks at: wiring, bytes and seconds of the nodes, where values come
    from, which of them share a buffer, cost nothing or are required.
    """
    required = frozenset(joint.required)
    return [_Naming(joint, chain, segment, seconds, required).key() for segment in chain.segments]


@dataclass
class _Naming:
    """Names the values of one segment by the order in which they appear."""

    joint: Joint
    chain: Chain
    segment: Segment
    seconds: Callable[[Node], float]
    required: frozenset[Value]
    names: dict[Value, Hashable] = field(default_factory=dict)

    def key(self) -> Hashable:
        joint, segment = self.joint, self.segment
        own = {v for node in segment.forward for v in node.outputs}
        wanted = joint.reads((*segment.forward, *segment.rest))
        far, _ = closure(joint, wanted, {*own, *segment.entry, *self.chain.long})
        if len(far) > FAR:
            return segment
        self.names.update((v, ("entry", i, v.type.nbytes)) for i, v in enumerate(segment.entry))
        parts = (far, segment.forward, segment.rest)
        return (len(segment.entry), *(self._rows(nodes) for nodes in parts))

    def _rows(self, nodes: Sequence[Node]) -> tuple[Hashable, ...]:
        return tuple(map(self._row, nodes))

    def _row(self, node: Node) -> Hashable:
        reads = tuple(self._name(v) for v in node.inputs)
        makes = []
        for value in node.outputs:
            self.names[value] = len(self.names)
            root = self.joint.root.get(value, value)
            shared = None if root is value else self._name(root)
            size = value.type.nbytes, self.joint.bytes(value)
            makes.append((*size, value in self.required, shared))
        return node.op.name, is_fusible(node), self.seconds(node), reads, tuple(makes)

    def _name(self, value: Value) -> Hashable:
        if isinstance(value, Literal):
            return None
        if value not in self.names:
            long = value in self.chain.long
            where = "long" if long else "made" if value in self.joint.made else "given"
            self.names[value] = (where, len(self.names), value.type.nbytes)
        return self.names[value]
