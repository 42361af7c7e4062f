"""A step seen as two halves: the forward nodes, and the nodes that read what they made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ...ir.cost import VIEWS
from ...ir.fusion import free_values
from ...ir.graph import Graph, Literal, Node, Value, forward_of
from ..dce import has_effects


@dataclass(frozen=True)
class Joint:
    """The halves of a program; the nodes of `forward` may run again, those of `rest` may not.

    A value is known by its root, the value whose buffer it shares (a reshape's operand). `free`
    values cost nothing to have: `inputs`, and what fusible ops make of them.
    """

    inputs: tuple[Value, ...]
    forward: tuple[Node, ...]
    rest: tuple[Node, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def place(self) -> dict[Value, int]:
        """Position of the forward node that defines a value."""
        return {v: i for i, node in enumerate(self.forward) for v in node.outputs}

    @cached_property
    def order(self) -> dict[Value, int]:
        """The forward values in the order of their definition, by which sets of them are sorted."""
        return {value: i for i, value in enumerate(self.place)}

    @cached_property
    def source(self) -> dict[Node, int]:
        """Position of the forward node that a node of the rest differentiates, where known."""
        where = {node: i for i, node in enumerate(self.forward)}
        found = forward_of((*self.forward, *self.rest))
        return {node: where[first] for node, first in found.items() if first in where}

    @cached_property
    def free(self) -> set[Value]:
        """Values that need not be kept, as they cost nothing to make again."""
        return free_values(self.inputs, self.forward)

    @cached_property
    def root(self) -> dict[Value, Value]:
        """The value whose buffer a forward value shares; itself where it has its own."""
        found: dict[Value, Value] = {}
        for node in self.forward:
            view = node.op.name in VIEWS and not isinstance(node.inputs[0], Literal)
            for i, value in enumerate(node.outputs):
                source = node.inputs[i] if view else value
                found[value] = found.get(source, source)
        return found

    @cached_property
    def buffers(self) -> dict[Node, tuple[tuple[Value, int], ...]]:
        """For each node the values it makes that have a buffer of their own, with their bytes."""
        return {
            node: tuple(
                (v, size)
                for v in node.outputs
                if self.root.get(v, v) is v and (size := self.bytes(v))
            )
            for node in (*self.forward, *self.rest)
        }

    @cached_property
    def roots(self) -> dict[Node, tuple[Value, ...]]:
        """For each node the values whose buffers it reads, each once."""
        return {
            node: tuple(dict.fromkeys(self.root.get(v, v) for v in node.inputs))
            for node in (*self.forward, *self.rest)
        }

    @cached_property
    def once(self) -> frozenset[Value]:
        """Values of nodes that must not run twice, such as a stateful draw: always kept."""
        return frozenset(v for node in self.forward if runs_once(node) for v in node.outputs)

    @cached_property
    def made(self) -> set[Value]:
        """Every value that a node makes."""
        return {v for node in (*self.forward, *self.rest) for v in node.outputs}

    @cached_property
    def required(self) -> list[Value]:
        """The forward values that the rest reads."""
        return self.reads(self.rest)

    def bytes(self, value: Value) -> int:
        """Bytes that keeping a value takes."""
        return 0 if value in self.free else value.type.nbytes

    def reads(self, nodes: Iterable[Node]) -> list[Value]:
        """The forward values that some nodes read, each once, in order."""
        values = dict.fromkeys(v for node in nodes for v in node.inputs)
        return [v for v in values if v in self.place]


def runs_once(node: Node) -> bool:
    """True when a node, or one in its regions, has an effect that must happen exactly once."""
    return node.op.effect not in ("", "barrier") or has_effects(node)


def joint_of(graph: Graph) -> Joint:
    """The halves of a graph; the forward one ends before the first node of another phase."""
    nodes = graph.nodes
    turn = next((i for i, node in enumerate(nodes) if node.phase != "forward"), len(nodes))
    return Joint(graph.inputs, nodes[:turn], nodes[turn:], graph.outputs)
