"""What XLA makes inside the loops of its kernels, and what it puts in memory.

An op that is fusible is made element by element inside the loop of whoever reads it, so that to
do it again costs little and its result need not exist. Everything else is a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .cost import VIEWS, is_view
from .graph import Graph, Literal, Node, Value
from .ops import elementwise, special

MOVES = frozenset(
    "broadcast_in_dim iota constant reshape squeeze copy stop_gradient name slice pad"
    " transpose concatenate rev split".split()
)
FUSIBLE = MOVES | {op.name for op in (*elementwise.OPS, *special.OPS)}

REDUCTIONS = frozenset(
    "reduce reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split()
)
ROW = 128  # elements of a last axis from which XLA joins arrays along it in memory, in no loop
CHEAP = frozenset(
    "add sub mul neg max min abs sign floor ceil square clamp select_n convert_element_type"
    " eq ne lt le gt ge and or not xor is_finite real imag"
    " slice transpose rev broadcast_in_dim iota".split()
)  # to make again for another reader, to XLA
SPREAD = frozenset("broadcast_in_dim iota constant".split())
FARTHEST = 64  # ops for an element that are worth their place in the loops of all readers
CALLS = frozenset("jit closed_call custom_jvp_call custom_vjp_call".split())


def is_fusible(node: Node) -> bool:
    """True for an element-wise op, one that only moves data, and a call of a function of such."""
    if node.op.name in CALLS:
        return all(map(is_fusible, node.regions[0].nodes))
    return node.op.name in FUSIBLE


def landmarks(nodes: Sequence[Node]) -> set[Node]:
    """Fusible nodes that are so far from anything in memory that their results had better be there.

    Counted are the ops for an element, again for each reader on the way, as XLA writes them into
    each loop. What a kernel reads or makes is in memory.
    """
    there = {v for node in nodes if not is_fusible(node) for v in node.inputs}
    for node in reversed(nodes):
        if node.op.name in VIEWS and not there.isdisjoint(node.outputs):
            there.update(node.inputs)
    ops: dict[Value, int] = {}
    found = set()
    for node in nodes:
        if is_fusible(node) and there.isdisjoint(node.outputs):
            count = _ops(node) + sum(ops.get(v, 0) for v in node.inputs)
            if count > FARTHEST:
                found.add(node)
                count = 0
            ops.update(dict.fromkeys(node.outputs, count))
    return found


def _ops(node: Node) -> int:
    """How many ops a fusible node is for an element; one that moves data is none."""
    if node.op.name in CALLS:
        return sum(map(_ops, node.regions[0].nodes))
    return int(node.op.name not in MOVES)


def free_values(inputs: Iterable[Value], nodes: Sequence[Node]) -> set[Value]:
    """The inputs, and what fusible ops make of them and of constants: never worth keeping."""
    found = set(inputs)
    far = landmarks(nodes)
    for node in nodes:
        known = all(isinstance(v, Literal) or v in found for v in node.inputs)
        if known and is_fusible(node) and node not in far:
            found.update(node.outputs)
    return found


def inlined(graph: Graph) -> set[Value]:
    """Values that exist inside the loop of their one reader alone: they take no memory."""
    returned = set(graph.outputs)
    readers: dict[Value, Node | None] = {}
    for node in graph.nodes:
        for value in node.inputs:
            known = readers.setdefault(value, node)
            if known is not node:
                readers[value] = None

    def inside(value: Value) -> bool:
        user = readers.get(value)
        if user is None or value in returned:
            return False
        if user.op.name in VIEWS:
            return is_view(user) and inside(user.outputs[0])
        return (is_fusible(user) and not _joins_rows(user)) or user.op.name in REDUCTIONS

    return {
        value
        for node in graph.nodes
        if is_fusible(node) and node.op.name not in VIEWS and not _joins_rows(node)
        for value in node.outputs
        if inside(value)
    }


def repeated(graph: Graph) -> set[Node]:
    """The nodes whose results XLA makes again in the loop of each reader that has one.

    They make something cheap of one array of its rank, and no fence holds it. Other readers find it
    in memory, so that both it and what it is made of may lie there. What the backward half makes of
    the forward half's values is not counted: it is as large, and waits for its readers instead.
    """
    fences = (node for node in graph.nodes if node.op.name == "optimization_barrier")
    held = {value for node in fences for value in node.inputs}
    spread = {v for n in graph.nodes if n.op.name in SPREAD for v in n.outputs}
    early = {v for node in graph.nodes if node.phase == "forward" for v in node.outputs}
    found = set()
    for node in graph.nodes:
        if node.op.name in CHEAP:
            own = _rank(node.output)
            arrays = {v for v in node.inputs if own and _rank(v) >= own and v not in spread}
            if node.phase != "forward" and arrays and early.issuperset(arrays):
                early.add(node.output)
            elif len(arrays) < 2 and node.output not in held:
                found.add(node)
    return found


@dataclass(frozen=True, eq=False)
class Fusion:
    """What XLA makes inside the loops of a graph's kernels, and what these read from memory."""

    graph: Graph

    @cached_property
    def inlined(self) -> set[Value]:
        """Values that exist inside the loop of their one reader alone."""
        return inlined(self.graph)

    @cached_property
    def repeated(self) -> set[Node]:
        """Nodes whose results are made again in the loop of each reader that has one."""
        return repeated(self.graph)

    @cached_property
    def repeating(self) -> set[Node]:
        """The nodes in whose loops that happens: not sums, nor what is inside the loops of sums."""
        summed = set[Value]()
        found = set()
        for node in reversed(self.graph.nodes):
            view = node.op.name in VIEWS
            own = node.outputs if view else self.inlined.intersection(node.outputs)
            if node.op.name in REDUCTIONS or not summed.isdisjoint(own):
                summed.update(node.inputs)
            elif is_fusible(node) and not _joins_rows(node):
                found.add(node)
        return found

    def read(self, nodes: Iterable[Node]) -> set[Value]:
        """What nodes read from memory; of what their loops make again, what it is made of."""
        found = set[Value]()
        pending = [(node in self.repeating, v) for node in nodes for v in node.inputs]
        while pending:
            inside, value = pending.pop()
            node = self.graph.producer.get(value)
            if inside and node in self.repeated:
                pending += [(node in self.repeating, v) for v in node.inputs]
            else:
                found.add(value)
        return found


def _rank(value: Value) -> int:
    return sum(size > 1 for size in value.shape)


def _joins_rows(node: Node) -> bool:
    """True when XLA:CPU puts what a node joins, and the result, in memory: rows are copied."""
    if node.op.name != "concatenate" or node.attrs["dimension"] != node.output.ndim - 1:
        return False
    return node.output.ndim > 1 and node.output.shape[-1] >= ROW


def transposed_bytes(node: Node) -> int:
    """Bytes of the transposed copies that a convolution works on, XLA's kernels being NHWC, HWIO.

    The gradient by the filters, for instance, is a convolution over the batch.
    """
    numbers = node.attrs["dimension_numbers"]
    last = node.output.ndim - 1
    image, filters = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    arrays = (*node.inputs, node.output)
    layouts = ((numbers.lhs_spec, image), (numbers.rhs_spec, filters), (numbers.out_spec, image))
    return sum(
        value.type.nbytes
        for value, (own, wanted) in zip(arrays, layouts, strict=True)
        if tuple(own) != wanted
    )
