"""The scan that takes the place of repeated blocks."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from ..rewriter import substituted
from .blocks import Match, Place, shared
from .scopes import Scopes
from .sequence import SEEDS
from .stacked import stacked


def rolled(graph: Graph, found: Match, fixed: Set[Node]) -> Graph:
    """Return the graph with one scan in place of the blocks.

    `fixed` are the nodes that hang on constants alone: those are made in each step again.
    """
    return _Writing(graph, found, fixed).graph()


@dataclass
class _Writing:
    """Writes each node behind those that it hangs on; None stands for the scan."""

    before: Graph
    found: Match
    fixed: Set[Node]
    b: Builder = field(default_factory=lambda: Builder(OPS))
    env: dict[Value, Value] = field(default_factory=dict)
    written: set[Node | None] = field(default_factory=set)
    ys: dict[tuple[Value, ...], Value] = field(default_factory=dict)

    def graph(self) -> Graph:
        before = self.before
        for node in before.nodes:
            if node not in self.found.members:
                self._write(node)
        self._write(None)
        outputs = [self.env.get(v, v) for v in before.outputs]
        return self.b.graph(before.name, before.inputs, outputs)

    def _write(self, last: Node | None) -> None:
        pending = [last]
        while pending:
            node = pending[-1]
            missing = [n for n in self._needed(node) if n not in self.written]
            if missing and node not in self.written:
                pending.extend(missing)
                continue
            pending.pop()
            if node in self.written:
                continue
            self.written.add(node)
            if node is None:
                self._scan()
            else:
                self._copy(substituted(node, self.env))

    def _copy(self, node: Node) -> None:
        """Write a node; what stacks all of what the scan has stacked is that, turned."""
        y = self.ys.get(node.inputs) if node.op.name == "stack" else None
        if y is None:
            self.b.nodes.append(node)
            return
        self.b.origin, self.b.phase = node.origin, node.phase
        axes = list(range(1, y.ndim))
        axes.insert(node.attrs["axis"], 0)
        self.env[node.output] = self.b.transpose(y, axes)

    def _needed(self, node: Node | None) -> list[Node | None]:
        values = self.found.inputs if node is None else node.inputs
        made = [self.before.producer[v] for v in values if v in self.before.producer]
        return [None if n in self.found.members else n for n in made]

    def _scan(self) -> None:
        found, b, scopes = self.found, self.b, Scopes.of(self.found.rows)
        b.origin, b.phase = scopes.origin, found.rows[0][0].phase
        body = _Body(self.before, found, self.fixed, scopes)
        consts = [self.env.get(v, v) for v in body.consts]
        starts = [self.env.get(v, v) for _, v in found.carries]
        producer = {v: n for n in b.nodes for v in n.outputs}
        xs = [stacked(b, [self.env.get(v, v) for v in each], producer) for each in body.each]
        outputs = b.scan(consts, starts, xs, body.graph, found.length)
        self._name(outputs[: len(starts)], outputs[len(starts) :])

    def _name(self, last: Sequence[Value], ys: Sequence[Value]) -> None:
        """Take note of where the blocks' values are now."""
        found, b = self.found, self.b
        for ((j, which), _), value in zip(found.carries, last, strict=True):
            self.env[found.rows[-1][j].outputs[which]] = value
        for (j, which), y in zip(found.escapes, ys, strict=True):
            parts = b.emit("unstack", [y], {"axis": 0})
            self.ys[parts] = y
            self.env.update(
                (row[j].outputs[which], v) for row, v in zip(found.rows, parts, strict=True)
            )


class _Body:
    """The body: the second block's wires, the first block's lines.

    `consts` are what all blocks read, `each` what is another value for each.
    """

    def __init__(self, before: Graph, found: Match, fixed: Set[Node], scopes: Scopes) -> None:
        self.before, self.found, self.fixed, self.scopes = before, found, fixed, scopes
        self.b = Builder(OPS)
        self.consts: dict[Value, Value] = {}
        self.each: dict[tuple[Value, ...], Value] = {}
        self.env: dict[Value, Value] = {}
        self.made: dict[Place, Value] = {}
        self.carried = [Value(value.type) for _, value in found.carries]
        self.graph = self._graph()

    def _graph(self) -> Graph:
        found, b = self.found, self.b
        for j, wires in enumerate(found.wires):
            if j in found.views:
                self.made[j, 0] = self._given(tuple(row[j].output for row in found.rows))
                continue
            first = found.rows[0][j]
            values = [self._operand(j, slot) for slot in range(len(wires))]
            copy = b.clone(first, values, self.scopes.inner(first.origin))
            self.made.update(((j, i), v) for i, v in enumerate(copy.outputs))
        inputs = [*self.consts.values(), *self.carried, *self.each.values()]
        places = [*(at for at, _ in found.carries), *found.escapes]
        return b.graph("block", inputs, [self.made[at] for at in places])

    def _operand(self, j: int, slot: int) -> Value:
        found = self.found
        kind, at, which = found.wires[j][slot]
        if kind == "made":
            return self.made[at, which]
        if kind == "before":
            first = found.rows[0][j].inputs[slot]
            return self.carried[found.carries.index(((at, which), first))]
        return self._given(tuple(row[j].inputs[slot] for row in found.rows))

    def _given(self, values: tuple[Value, ...]) -> Value:
        if shared(values):
            return self._shared(values[0])
        if values not in self.each:
            self.each[values] = Value(values[0].type.strong())
        return self.each[values]

    def _shared(self, value: Value) -> Value:
        """A number as it is, what hangs on constants made here, the rest handed in."""
        node = self.before.producer.get(value)
        if isinstance(value, Literal):
            return value
        if node in self.fixed and node is not None and node.op.name not in SEEDS:
            if value not in self.env:
                origin = self.scopes.inner(node.origin)
                copy = self.b.clone(node, [self._shared(v) for v in node.inputs], origin)
                self.env.update(zip(node.outputs, copy.outputs, strict=True))
            return self.env[value]
        if value not in self.consts:
            self.consts[value] = Value(value.type)
        return self.consts[value]
