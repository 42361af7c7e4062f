"""Products in the form in which they can be made for all steps.

[x, h] . w  ->  x . w[:d] + h . w[d:]
w . x       ->  transpose(x . w), so that what is stacked is not transposed as a whole
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ..rewriter import rewrite
from .kinds import Kinds


def prepared(kinds: Kinds) -> Graph:
    """The body with such products as they should be; or the body itself.

    `x` depends on the step alone, `w` on the loop's constants.
    """
    return rewrite(kinds.body, _Form(kinds))


@dataclass(frozen=True)
class _Form:
    """The rule for `rewrite`."""

    kinds: Kinds

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return what takes the place of a product with a constant, or None."""
        constant = [value in self.kinds.invariant for value in node.inputs]
        if node.op.name != "dot_general" or sum(constant) != 1:
            return None
        if node.output in self.kinds.parallel:
            return _turned(b, node) if constant[0] else None
        return self._divided(b, node, constant)

    def _divided(self, b: Builder, node: Node, constant: Sequence[bool]) -> Sequence[Value] | None:
        """A product that adds up in fewer than 32 bits stays whole: its parts would be rounded."""
        if node.output.dtype.itemsize < 4:
            return None
        at = constant.index(False)
        axes = node.attrs["dimension_numbers"][0]
        joined, order = self._joined(node.inputs[at])
        if joined is None:
            return None
        axis = order.index(joined.attrs["dimension"])
        if axis not in axes[at]:
            return None
        groups = [list(g) for _, g in groupby(joined.inputs, self._early)]
        if len(groups) == 1:
            return None
        other = axes[1 - at][axes[at].index(axis)]
        products, low = [], 0
        for group in groups:
            part = b.transpose(b.concatenate(group, order[axis]), order)
            high = low + part.shape[axis]
            thin = b.slice_in_dim(node.inputs[1 - at], low, high, other)
            operands = (thin, part) if at else (part, thin)
            products.append(b.emit(node.op, operands, node.attrs)[0])
            low = high
        return [b.sum(products)]

    def _joined(self, value: Value) -> tuple[Node | None, Sequence[int]]:
        """The concatenation that makes a value, and the order in which its dimensions then are."""
        producer = self.kinds.body.producer
        order = tuple(range(value.ndim))
        turned = producer.get(value)
        if turned is not None and turned.op.name == "transpose":
            value, order = turned.inputs[0], tuple(turned.attrs["permutation"])
        node = producer.get(value)
        return (node if node is not None and node.op.name == "concatenate" else None), order

    def _early(self, value: Value) -> bool:
        return value in self.kinds.invariant or value in self.kinds.parallel


def _turned(b: Builder, node: Node) -> Sequence[Value] | None:
    """w[c,h] . x[f,c]  ->  transpose(x . w), without batch dimensions."""
    (wc, xc), (wn, _) = node.attrs["dimension_numbers"]
    w, x = node.inputs
    rows, columns = x.ndim - len(xc), w.ndim - len(wc)
    if wn or not rows:
        return None
    precision = node.attrs["precision"]
    attrs = {
        **node.attrs,
        "dimension_numbers": ((xc, wc), ((), ())),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    found = b.emit(node.op, (x, w), attrs)[0]
    return [b.transpose(found, (*range(rows, rows + columns), *range(rows)))]
