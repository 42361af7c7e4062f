"""What waits in memory from the forward half of a step to the backward half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...ir.cost import is_view
from ...ir.fusion import free_values, inlined
from ...ir.graph import Graph, Node, Value

SMALL = 1 / 64  # of the largest value that can wait: not worth a copy


@dataclass(frozen=True, eq=False)
class Waits:
    """What a joint graph makes in its forward half and reads again in the other, long after."""

    graph: Graph

    @cached_property
    def turn(self) -> int:
        """Position of the first node that is not of the forward half."""
        nodes = self.graph.nodes
        return next((i for i, n in enumerate(nodes) if n.phase != "forward"), len(nodes))

    @cached_property
    def place(self) -> dict[Value, int]:
        """Position of the node that makes each value."""
        return {v: i for i, node in enumerate(self.graph.nodes) for v in node.outputs}

    @cached_property
    def root(self) -> dict[Value, Value]:
        """For a view, the value that it is one of; for others themselves."""
        found: dict[Value, Value] = {}
        for node in self.graph.nodes:
            for value in node.outputs:
                source = node.inputs[0] if is_view(node) else value
                found[value] = found.get(source, source)
        return found

    @cached_property
    def stacks(self) -> dict[Value, list[Node]]:
        """What forward scans stack for backward scans alone, with these."""
        returned = set(self.graph.outputs)
        found = {}
        for node in self.graph.nodes[: self.turn]:
            carried = node.attrs["num_carry"] if node.op.name == "scan" else len(node.outputs)
            for value in node.outputs[carried:]:
                readers = list(self.graph.users.get(value, ()))
                sliced = all(value in _xs(user) for user in readers)
                late = all(user.phase == "backward" for user in readers)
                if readers and sliced and late and value not in returned:
                    found[value] = readers
        return found

    @cached_property
    def gaps(self) -> dict[Value, tuple[int, int]]:
        """For other values, the positions of the last forward node and the first later one."""
        made = self.graph.nodes[: self.turn]
        nothing = free_values(self.graph.inputs, made) | inlined(self.graph)
        nothing |= {self.root.get(v, v) for v in self.graph.outputs} | self.stacks.keys()
        last: dict[Value, int] = {}
        first: dict[Value, int] = {}
        for i, node in enumerate(self.graph.nodes):
            for value in () if is_view(node) else node.inputs:
                root = self.root.get(value, value)
                if i < self.turn:
                    last[root] = i
                else:
                    first.setdefault(root, i)
        values = (v for node in made for v in node.outputs)
        able = (v for v in values if v in first and self.root[v] is v and v not in nothing)
        found = {v: (last.get(v, self.place[v]), first[v]) for v in able if v.type.nbytes}
        return {v: (start, end) for v, (start, end) in found.items() if end - start > 1}

    @cached_property
    def parcels(self) -> list[Value]:
        """The values that can wait on the host: what scans stack, then those that wait longest."""
        stacks = sorted(self.stacks, key=lambda v: -v.type.nbytes)
        others = sorted(self.gaps, key=lambda v: self.gaps[v][0] - self.gaps[v][1])
        limit = SMALL * max((v.type.nbytes for v in (*stacks, *others)), default=0)
        return [v for v in (*stacks, *others) if v.type.nbytes >= limit]


def settled(graph: Graph) -> Graph:
    """Put what XLA makes inside the loop of its one reader, and views of one reader, before it."""
    late = inlined(graph)
    returned = set(graph.outputs)

    def waits(node: Node) -> bool:
        (value, *more) = node.outputs or (None,)
        users = graph.users.get(value, ()) if value is not None else ()
        if more or node.op.effect or len(users) != 1 or value in returned:
            return False
        return value in late or is_view(node)

    held: dict[Value, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if waits(node):
            held[node.output] = node
            continue
        needed, pending = [node], [node]
        while pending:
            more = [held.pop(v) for v in pending.pop().inputs if v in held]
            needed += more
            pending += more
        nodes += reversed(needed)
    return Graph(graph.name, graph.inputs, tuple(nodes), graph.outputs)


def _xs(node: Node) -> Sequence[Value]:
    """What a scan takes slice by slice and in no other way."""
    if node.op.name != "scan":
        return ()
    held = node.attrs["num_consts"] + node.attrs["num_carry"]
    return [v for v in node.inputs[held:] if v not in node.inputs[:held]]
