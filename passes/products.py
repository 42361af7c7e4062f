"""Products given the form that costs least: scales on small operands, wide results."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value
from ..ir.ops.contraction import free_dims
from .rewriter import uses

# A scale moves when it then touches at most this share of the elements.
SHARE = 0.5


class Products:
    """The rule for `rewrite`; knows the products seen so far, and which of them have one user.

    Runs before autodiff, so that the gradients have these forms as well.
    """

    def __init__(self, graph: Graph) -> None:
        """Count the uses of each value of the graph and of its regions."""
        self.uses = uses(graph)
        self.products: dict[Value, Node] = {}
        self.scalars: dict[Value, Value] = {}

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return the product that takes the place of a node that uses one, or None."""
        name = node.op.name
        if name == "dot_general" and self.uses[node.output] == 1:
            self.products[node.output] = node
        elif name == "broadcast_in_dim" and node.inputs[0].ndim == 0:
            self.scalars[node.output] = node.inputs[0]
        elif name == "transpose" and (product := self.products.get(node.inputs[0])):
            return turned(b, node, product)
        elif name in ("mul", "div"):
            return self._scaled(b, node)
        return None

    def _scaled(self, b: Builder, node: Node) -> Sequence[Value] | None:
        x, y = node.inputs
        if x not in self.products and node.op.name == "mul":
            x, y = y, x
        scale = y if y.ndim == 0 else self.scalars.get(y)
        if scale is None or not (product := self.products.get(x)):
            return None
        return scaled(b, node, product, scale)


def scaled(b: Builder, node: Node, product: Node, scale: Value) -> Sequence[Value] | None:
    """s (x . y)  ->  (s x) . y, or x . (s y): the smaller operand, if it is much smaller.

    The scores of attention, `q . k / sqrt(d)`, have T elements a row where q has d. Floating
    numbers only, all of one dtype: a product that accumulates in another keeps its scale.
    """
    small = min(product.inputs, key=lambda v: v.type.size)
    dtypes = {v.dtype for v in (*product.inputs, scale, node.output)}
    if (
        len(dtypes) != 1
        or not node.output.type.is_inexact
        or product.output.ndim == 0
        or small.type.size > SHARE * node.output.type.size
    ):
        return None
    b.origin = node.origin
    moved = b.emit(node.op, (small, b.broadcast(scale, small.shape)))[0]
    b.origin = product.origin
    first = product.inputs[0] is small
    operands = (moved, product.inputs[1]) if first else (product.inputs[0], moved)
    return b.emit(product.op, operands, product.attrs)


def turned(b: Builder, node: Node, product: Node) -> Sequence[Value] | None:
    """transpose(x . y)  ->  transpose(y . x) where batched rows of y . x are the longer ones.

    `einsum` puts operands in an order of its own, and then transposes. XLA's CPU backend runs a
    batch of [T,T] . [T,d] in two thirds of the time of [d,T] . [T,T].
    """
    (xc, yc), (xn, yn) = product.attrs["dimension_numbers"]
    x, y = product.inputs
    x_free, y_free = free_dims(x, xc, xn), free_dims(y, yc, yn)
    if not xn or prod(x.shape[i] for i in x_free) >= prod(y.shape[i] for i in y_free):
        return None
    b.origin = product.origin
    precision = product.attrs["precision"]
    attrs = {
        **product.attrs,
        "dimension_numbers": ((yc, xc), (yn, xn)),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    other = b.emit(product.op, (y, x), attrs)[0]
    n, m, k = len(xn), len(x_free), len(y_free)
    # Where each dimension of x . y lies in y . x.
    place = [*range(n), *range(n + k, n + k + m), *range(n, n + k)]
    b.origin = node.origin
    return [b.transpose(other, [place[i] for i in node.attrs["permutation"]])]
