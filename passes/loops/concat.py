"""Products of a concatenation, divided: `[x, h] . w  ->  x . w[:d] + h . w[d:]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ..rewriter import rewrite
from .kinds import Kinds


def divided(kinds: Kinds) -> Graph:
    """Divide what concatenates operands that the carry is in with others; or return the body."""
    return rewrite(kinds.body, _Divide(kinds))


@dataclass(frozen=True)
class _Divide:
    """The rule for `rewrite`."""

    kinds: Kinds

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return the sum of the parts' products, or None.

        A product that adds up in fewer than 32 bits stays whole, as its parts would be rounded.
        """
        if node.op.name != "dot_general" or node.output.dtype.itemsize < 4:
            return None
        constant = [value in self.kinds.invariant for value in node.inputs]
        if sum(constant) != 1:
            return None
        at = constant.index(False)
        axes = node.attrs["dimension_numbers"][0]
        joined, order = self._joined(node.inputs[at])
        if joined is None or (axis := order.index(joined.attrs["dimension"])) not in axes[at]:
            return None
        groups = [list(g) for _, g in groupby(joined.inputs, self._early)]
        if len(groups) == 1:
            return None
        other = axes[1 - at][axes[at].index(axis)]
        products, low = [], 0
        for group in groups:
            part = b.transpose(b.concatenate(group, joined.attrs["dimension"]), order)
            high = low + part.shape[axis]
            thin = b.slice_in_dim(node.inputs[1 - at], low, high, other)
            operands = (thin, part) if at else (part, thin)
            products.append(b.emit(node.op, operands, node.attrs)[0])
            low = high
        return [b.sum(products)]

    def _joined(self, value: Value) -> tuple[Node | None, Sequence[int]]:
        """The concatenation that makes a value, and the order in which its dimensions then are."""
        producer = self.kinds.body.producer
        node, order = producer.get(value), tuple(range(value.ndim))
        if node is not None and node.op.name == "transpose":
            node, order = producer.get(node.inputs[0]), tuple(node.attrs["permutation"])
        return (node if node is not None and node.op.name == "concatenate" else None), order

    def _early(self, value: Value) -> bool:
        return value in self.kinds.invariant or value in self.kinds.parallel
