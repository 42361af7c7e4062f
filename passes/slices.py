"""Slices of a product's rows move in front of it: `(x w)[:, :-1] -> x[:, :-1] w`.

The last token's logits, which a language model's loss leaves out, are not computed; and the loss
reads all rows of a product, which can then be computed some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value
from ..ir.ops.elementwise import OPS as ELEMENTWISE
from .rewriter import Producers, rewrite, uses

_SAME = frozenset(op.name for op in ELEMENTWISE) - {"bitcast_convert_type"}


def early(graph: Graph) -> Graph:
    """Return the graph with slices moved in front of products, and of what stands between."""
    if not any(node.op.name == "slice" for node in graph.walk()):
        return graph
    return rewrite(graph, _Early(graph))


class _Early(Producers):
    """The rule for `rewrite`; a value with other readers stays as it is."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.uses = uses(graph)

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return the sliced product and what is computed of it, or None."""
        start = len(b.nodes)
        found = None
        if node.op.name == "slice" and not node.attrs["strides"]:
            bounds = (node.attrs["start_indices"], node.attrs["limit_indices"])
            found = self._sliced(b, node.inputs[0], *bounds)
        self.remember(b.nodes[start:] if found else [node])
        return [found] if found else None

    def _sliced(
        self, b: Builder, value: Value, low: Sequence[int], high: Sequence[int]
    ) -> Value | None:
        """Emit `value[low:high]` where that is a smaller product; nothing where it is not."""
        node = self.producer.get(value)
        if node is None or self.uses[value] != 1:
            return None
        b.origin = node.origin
        if node.op.name in _SAME:
            return self._elementwise(b, node, low, high)
        if node.op.name == "reshape":
            return self._product(b, node, low, high)
        return None

    def _elementwise(
        self, b: Builder, node: Node, low: Sequence[int], high: Sequence[int]
    ) -> Value | None:
        operands: list[Value] = []
        moved = False
        for x in node.inputs:
            if not x.ndim:
                operands.append(x)
                continue
            full = [n == m for n, m in zip(x.shape, node.output.shape, strict=True)]
            lo = [i if f else 0 for i, f in zip(low, full, strict=True)]
            hi = [i if f else 1 for i, f in zip(high, full, strict=True)]
            deeper = self._sliced(b, x, lo, hi) if all(full) and not moved else None
            moved = moved or deeper is not None
            b.origin = node.origin
            operands.append(b.slice(x, lo, hi) if deeper is None else deeper)
        return b.emit(node.op, operands, node.attrs)[0] if moved else None

    def _product(
        self, b: Builder, node: Node, low: Sequence[int], high: Sequence[int]
    ) -> Value | None:
        """reshape(reshape(x) . w)[rows], as `canonicalise` leaves a product x . w."""
        out = node.output
        dot = self.made_by(node.inputs[0], "dot_general")
        flat = dot and self.made_by(dot.inputs[0], "reshape")
        if not dot or not flat or self.uses[dot.output] != 1 or not low:
            return None
        x, (contract, batched) = flat.inputs[0], dot.attrs["dimension_numbers"]
        rows = x.ndim - 1
        same = x.shape[:rows] == out.shape[:rows] and out.ndim == x.ndim
        whole = same and (low[rows], high[rows]) == (0, out.shape[rows])
        if not whole or contract[0] != (1,) or any(batched) or dot.output.ndim != 2:
            return None
        if flat.output.shape != (prod(x.shape[:rows]), x.shape[rows]):
            return None
        part = b.slice(x, (*low[:rows], 0), (*high[:rows], x.shape[rows]))
        thin = b.reshape(part, (prod(part.shape[:rows]), x.shape[rows]))
        product = b.emit(dot.op, (thin, dot.inputs[1]), dot.attrs)[0]
        return b.reshape(product, (*part.shape[:rows], out.shape[rows]))
