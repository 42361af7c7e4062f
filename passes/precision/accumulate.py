"""The pass: narrow products sum in float32, and whoever wants float32 gets the sum itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops.contraction import free_dims
from ..rewriter import Producers, rewrite
from .policy import PRODUCTS, WIDE, of_product

_MOVES = frozenset("reshape transpose squeeze broadcast_in_dim slice".split())


@dataclass(frozen=True)
class Accumulate:
    """x16 . y16 -> 16   =>   cast16(x16 . y16 -> 32);  cast32(cast16(sum)) -> sum.

    Runs after autodiff. Gradients of parameters are thus sums in float32 that were never rounded,
    and a CPU's matrix units, which give float32 alone, are used: XLA has no fast product of
    bfloat16 that gives bfloat16 there.
    """

    name: ClassVar[str] = "accumulate"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself where there is no narrow product."""
        return rewrite(graph, _Rule())


@dataclass
class _Rule(Producers):
    """The rule for `rewrite`: knows the sums behind the values seen so far."""

    producer: dict[Value, Node] = field(default_factory=dict)
    sums: dict[Value, Value] = field(default_factory=dict)

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        self.remember([node])
        if node.op.name in PRODUCTS and _narrow(node):
            node = _batches_first(b, node)
            (total,) = b.emit(node.op, node.inputs, {**node.attrs, "preferred_element_type": WIDE})
            out = b.convert(total, node.output.dtype)
            self.sums[out] = total
            return [out]
        if node.op.name == "convert_element_type" and node.output.dtype == WIDE:
            found = self.sum_behind(b, node.inputs[0])
            return None if found is None else [found]
        return None

    def sum_behind(self, b: Builder, value: Value) -> Value | None:
        """The float32 sum that `value` was rounded from, moved as it was."""
        if value in self.sums:
            return self.sums[value]
        node = self.producer.get(value)
        if node is None or node.op.name not in _MOVES:
            return None
        total = self.sum_behind(b, node.inputs[0])
        return None if total is None else b.emit(node.op, (total,), node.attrs)[0]


def _narrow(node: Node) -> bool:
    """True for a product of 16-bit floats that gives such."""
    return all(v.type.is_inexact and v.dtype.itemsize == 2 for v in of_product(node))


def _batches_first(b: Builder, node: Node) -> Node:
    """Move the right operand's batch dimensions to the front.

    XLA:CPU has no product of bfloat16 with a float32 sum for some other orders, and says so when
    it runs (JAX 0.10.2: "Unsupported element type for DotThunk").
    """
    if node.op.name != "dot_general":
        return node
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    if tuple(yn) == tuple(range(len(yn))):
        return node
    order = (*yn, *yc, *free_dims(y, yc, yn))
    batch, summed = range(len(yn)), range(len(yn), len(yn) + len(yc))
    numbers = ((xc, tuple(summed)), (xn, tuple(batch)))
    attrs = {**node.attrs, "dimension_numbers": numbers}
    return replace(node, inputs=(x, b.transpose(y, order)), attrs=attrs)
