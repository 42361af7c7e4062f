"""Scans that belong together: a forward scan, and the backward scan that reads what it stacks."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property

from ...ir.cost import VIEWS
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ..scan import Scan
from .joint import Joint


@dataclass(frozen=True)
class Pair:
    """A forward scan and the backward scan that reads what it stacks.

    Inside, `known` maps inputs of the backward body to the forward body's own values. `fleeting`
    are slices of xs that nobody else reads: to read them again, they would have to be kept.
    """

    forward: Scan
    backward: Scan
    fleeting: tuple[Value, ...] = ()

    @cached_property
    def known(self) -> dict[Value, Value]:
        """Backward body's inputs that are values of the forward body."""
        f, b = self.forward, self.backward
        stacked = dict(zip(f.node.outputs[f.carried :], f.body.outputs[f.carried :], strict=True))
        consts, _, xs = f.parts
        sliced = dict(zip(f.node.inputs[xs], f.body.inputs[xs], strict=True))
        whole = dict(zip(f.node.inputs[consts], f.body.inputs[consts], strict=True))
        b_consts, _, b_xs = b.parts
        found = {}
        for outer, inner in zip(b.node.inputs[b_xs], b.body.inputs[b_xs], strict=True):
            value = stacked.get(outer, sliced.get(outer))
            if value is not None and value.type == inner.type:
                found[inner] = value
        for outer, inner in zip(b.node.inputs[b_consts], b.body.inputs[b_consts], strict=True):
            if outer in whole:
                found[inner] = whole[outer]
        return found

    @property
    def stacked(self) -> list[Value]:
        """Values of a forward step that the backward scan reads from stacks."""
        return [v for v in self.known.values() if v in self.joint.place]

    @cached_property
    def joint(self) -> Joint:
        """One step forward and backward. What `_ENTRY` makes exists only where it was stacked."""
        f, b = self.forward, self.backward
        consts, carry, xs = f.parts
        entry = Node(_ENTRY, (), (*f.body.inputs[carry], *self.fleeting))
        rest = [
            replace(node, inputs=tuple(self.known.get(v, v) for v in node.inputs))
            for node in b.body.nodes
        ]
        own = [v for v in b.body.inputs if v not in self.known]
        slices = (v for v in f.body.inputs[xs] if v not in self.fleeting)
        inputs = (*f.body.inputs[consts], *slices, *own)
        outputs = tuple(self.known.get(v, v) for v in b.body.outputs)
        return Joint(inputs, (entry, *f.body.nodes), tuple(rest), outputs)


def _no_shape(inputs: object, attrs: object, regions: object) -> tuple[()]:
    return ()


# Stands for what is there at a step's start: an effect, as it can't be made again.
_ENTRY = Op("entry", _no_shape, lambda *_: [], effect="entry")


def pairs(graph: Graph, *, fleeting: bool = False) -> list[Pair]:
    """The scans of a joint graph whose stacks one backward scan reads.

    With `fleeting`, products that these two alone read are taken to be gone after the first.
    """
    found = []
    for node in graph.nodes:
        if node.op.name != "scan" or node.phase != "forward":
            continue
        stacks = set(node.outputs[node.attrs["num_carry"] :])
        readers = {
            user
            for value in stacks
            for user in graph.users.get(value, ())
            if user.op.name == "scan"
            and user.phase == "backward"
            and user.attrs["length"] == node.attrs["length"]
            and user.attrs["reverse"] != node.attrs["reverse"]
        }
        if len(readers) == 1:
            first, second = Scan(node), Scan(readers.pop())
            gone = _fleeting(graph, first, second) if fleeting else ()
            pair = Pair(first, second, gone)
            if pair.stacked:
                found.append(pair)
    return found


def _fleeting(graph: Graph, first: Scan, second: Scan) -> tuple[Value, ...]:
    """The slices of xs of the first scan that are products which the two alone read."""
    _, _, xs = first.parts
    pairs = zip(first.node.inputs[xs], first.body.inputs[xs], strict=True)
    both = {first.node, second.node}
    return tuple(inner for outer, inner in pairs if _is_fleeting(graph, outer, both))


def _is_fleeting(graph: Graph, value: Value, readers: Set[Node]) -> bool:
    node = graph.producer.get(value)
    if node is None or value in graph.outputs or not readers >= {*graph.users[value]}:
        return False
    if node.op.name in VIEWS:
        return _is_fleeting(graph, node.inputs[0], {node})
    return node.op.name == "dot_general"
