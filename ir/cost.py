"""Arithmetic and memory traffic of a graph, counted op by op as if nothing were fused.

    flops          floating-point operations, a fused multiply-add counts as two
    bytes_read     of distinct operands, of what a slice or gather picks; literals and views
                   (reshape, ...) move nothing
    bytes_written  of outputs
    bytes_linked   of arrays that devices reduce together or hand each other: see `links.py`

On a mesh of devices all figures are those of one of them. A scan costs its length times its body, a
cond its dearest branch. The trips of a while are not known: it counts once, and `unbounded` tells
that the truth is more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .graph import Graph, Literal, Node
from .links import traffic
from .tables import count_text, table

# Ops that read no more of their first operand than they return.
_PICKS = frozenset(("dynamic_slice", "gather", "slice"))

# Ops whose output XLA gives the buffer of the operand.
VIEWS = frozenset(
    "bitcast_convert_type name optimization_barrier reshape squeeze stop_gradient".split()
)


def is_view(node: Node) -> bool:
    """True when the output is the operand's buffer, and nothing else: no fence."""
    return node.op.name in VIEWS and node.op.name != "optimization_barrier"


@dataclass(frozen=True)
class Work:
    """What some nodes cost: how many they are, FLOPs, bytes."""

    nodes: int = 0
    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_linked: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    def plus(self, other: Work, count: int = 1) -> Work:
        """Sum with `count` runs of `other`."""
        return Work(
            self.nodes + count * other.nodes,
            self.flops + count * other.flops,
            self.bytes_read + count * other.bytes_read,
            self.bytes_written + count * other.bytes_written,
            self.bytes_linked + count * other.bytes_linked,
        )


@dataclass(frozen=True)
class Cost(Work):
    """Work of a whole graph and its parts; `unbounded` when it holds a `while`.

    `by_op` counts the nodes inside regions under their own ops, `by_phase` under the phase of
    the node that holds the region.
    """

    by_op: Mapping[str, Work] = field(default_factory=dict)
    by_phase: Mapping[str, Work] = field(default_factory=dict)
    unbounded: bool = False

    def __str__(self) -> str:
        """Table of the ops, the dearest first, and of the phases."""
        by_op = sorted(self.by_op.items(), key=lambda item: (-item[1].flops, -item[1].bytes))
        width = 5 if self.bytes_linked else 4
        rows = [_row(name, work)[: 1 + width] for name, work in by_op]
        phases = [_row(name, work)[: 1 + width] for name, work in self.by_phase.items()]
        name = "at least, a while counts once" if self.unbounded else "total"
        head = ("op", "nodes", "FLOPs", "bytes read", "bytes written", "between devices")
        return table(head[: 1 + width], rows, phases, [_row(name, self)[: 1 + width]])


def _row(name: str, work: Work) -> tuple[str, ...]:
    counts = (work.nodes, work.flops, work.bytes_read, work.bytes_written, work.bytes_linked)
    return (name, *map(count_text, counts))


def node_cost(node: Node) -> Work:
    """Work of one node, its regions included."""
    return _sum(_Tally().node(node).values())


def node_costs(graph: Graph) -> dict[Node, Work]:
    """Work of every node of `graph` and of its regions, those inside regions for one run."""
    tally = _Tally()
    return {node: _sum(tally.node(node).values()) for node in graph.walk()}


def cost(graph: Graph) -> Cost:
    """Return the work of `graph`, by op and by phase: FLOPs, and bytes read and written.

    Each node counts as if it ran alone, from memory to memory; a scan's body once for each step,
    a while once. On a mesh, figures are those of one device.
    """
    tally = _Tally()
    by_op: dict[str, Work] = {}
    by_phase: dict[str, Work] = {}
    for node in graph.nodes:
        parts = tally.node(node)
        _add(by_op, parts)
        by_phase[node.phase] = by_phase.get(node.phase, Work()).plus(_sum(parts.values()))
    total = _sum(by_op.values())
    counts = (total.nodes, total.flops, total.bytes_read, total.bytes_written, total.bytes_linked)
    return Cost(*counts, by_op, by_phase, tally.unbounded)


def _sum(parts: Iterable[Work]) -> Work:
    total = Work()
    for part in parts:
        total = total.plus(part)
    return total


def _add(parts: dict[str, Work], more: Mapping[str, Work], count: int = 1) -> None:
    for name, work in more.items():
        parts[name] = parts.get(name, Work()).plus(work, count)


class _Tally:
    """Work by op; regions that many nodes share are counted once and remembered."""

    def __init__(self) -> None:
        self.known: dict[int, Mapping[str, Work]] = {}
        self.unbounded = False

    def graph(self, graph: Graph) -> Mapping[str, Work]:
        if id(graph) not in self.known:
            parts: dict[str, Work] = {}
            for node in graph.nodes:
                _add(parts, self.node(node))
            self.known[id(graph)] = parts
        return self.known[id(graph)]

    def node(self, node: Node) -> Mapping[str, Work]:
        """Work of a node: its own, or that of what it runs."""
        name = node.op.name
        if not node.regions:
            return {name: _own(node)}
        if name == "cond":
            branches = [self.graph(region) for region in node.regions]
            return max(branches, key=lambda parts: _dearness(_sum(parts.values())))
        parts: dict[str, Work] = {}
        count = int(node.attrs["length"]) if name == "scan" else 1
        self.unbounded |= name == "while"
        # A custom rule holds the function, then its derivatives, which do not run.
        for region in node.regions if name == "while" else node.regions[:1]:
            _add(parts, self.graph(region), count)
        return parts


def _dearness(work: Work) -> tuple[int, int]:
    return work.flops, work.bytes


def _own(node: Node) -> Work:
    if node.op.name in VIEWS:
        return Work(1)
    written = sum(value.type.nbytes for value in node.outputs)
    read = sum(v.type.nbytes for v in set(node.inputs) if not isinstance(v, Literal))
    if node.op.name in _PICKS:
        read -= max(0, node.inputs[0].type.nbytes - written)
    parts = max(v.type.parts for v in (*node.inputs, *node.outputs)) if node.outputs else 1
    return Work(1, node.op.flops(node) // parts, read, written, traffic(node).bytes)
