"""What XLA makes inside the loops of its kernels, and what it puts in memory.

An op that is fusible is made element by element inside the loop of whoever reads it, so that to
do it again costs little and its result need not exist. Everything else is a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .cost import VIEWS
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
            return user.op.name != "optimization_barrier" and inside(user.outputs[0])
        return is_fusible(user) or user.op.name in REDUCTIONS

    return {
        value
        for node in graph.nodes
        if is_fusible(node) and node.op.name not in VIEWS
        for value in node.outputs
        if inside(value)
    }


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
