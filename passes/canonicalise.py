"""One form for each thing: calls inlined, products two-dimensional, also those of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from ..ir.builder import Builder
from ..ir.graph import Graph, Literal, Node, Value
from ..ir.ops.contraction import free_dims
from .convolutions import product_of_patches
from .products import Products
from .rewriter import CALLS, rewrite

SCALED = frozenset("add sub mul div max min".split())


@dataclass(frozen=True)
class Canonicalise:
    """Inline calls; give each unbatched product the form x2[M,K] . y2[K,N].

    Runs before autodiff, so that both gradients of a product are two-dimensional as well: XLA's
    CPU backend runs x[B,T,D] . w[D,F] and its gradients far slower than the collapsed form, and a
    convolution of patches that do not overlap far slower than the product that it is. `products`
    says what else is done to products that are scaled or transposed.
    """

    name: ClassVar[str] = "canonicalise"

    def __call__(self, graph: Graph) -> Graph:
        """Return the canonical graph, or `graph` itself when it is canonical."""
        graph = rewrite(graph, _Rule())
        return rewrite(graph, Products(graph))


@dataclass(frozen=True)
class _Rule:
    """The rule for `rewrite`; knows the producers seen so far."""

    made: dict[Value, Node] = field(default_factory=dict)

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        start = len(b.nodes)
        found = _canonical(b, node, self.made)
        self.made.update((v, n) for n in (node, *b.nodes[start:]) for v in n.outputs)
        return found


def _canonical(b: Builder, node: Node, made: Mapping[Value, Node]) -> Sequence[Value] | None:
    if node.op.name in CALLS:
        outputs, _ = b.inline(node.regions[0], node.inputs, node.origin)
        return outputs
    if node.op.name == "dot_general":
        return collapse_dot(b, node)
    if node.op.name == "conv_general_dilated":
        return product_of_patches(b, node)
    if node.op.name == "unstack":
        return slices_of(b, node)
    if node.op.name in SCALED:
        return late_broadcast(b, node, made)
    return None


def slices_of(b: Builder, node: Node) -> Sequence[Value]:
    """unstack(x)  ->  x[0], x[1], ..

    As of a loop over an array, which JAX 0.10 traces as slices and later ones as one operation:
    each slice may be made where it is read.
    """
    (x,), axis = node.inputs, node.attrs["axis"]
    starts, ends = [0] * x.ndim, list(x.shape)
    found = []
    for i, output in enumerate(node.outputs):
        starts[axis], ends[axis] = i, i + 1
        found.append(b.reshape(b.slice(x, starts, ends), output.shape))
    return found


def late_broadcast(b: Builder, node: Node, made: Mapping[Value, Node]) -> Sequence[Value] | None:
    """f(broadcast(x), 2.0)  ->  broadcast(f(x, 2.0)).

    So that `mean(x)` and `mean(x, keepdims=True)` share their division.
    """
    arrays = [v for v in node.inputs if not isinstance(v, Literal)]
    source = made.get(arrays[0]) if len(arrays) == 1 else None
    if source is None or source.op.name != "broadcast_in_dim" or node.attrs:
        return None
    small = source.inputs[0]
    if isinstance(small, Literal) or small.type.weak or node.output.shape != arrays[0].shape:
        return None
    operands = [small if v is arrays[0] else v for v in node.inputs]
    found = b.emit(node.op, operands)
    return b.emit(source.op, found, source.attrs)


def collapse_dot(b: Builder, node: Node) -> Sequence[Value] | None:
    """x[f.., c..] . y[c.., h..]  ->  reshape(x[F,C] . y[C,H]); the reshapes move no data.

    Needs no batch dimensions, and in each operand the free and the contracted dimensions side by
    side, the contracted ones in the same order. Dimensions that lie on a mesh by another than the
    first of them stay as they are: to merge them would gather the array.
    """
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    if xn or yn or max(x.ndim, y.ndim) <= 2 or not xc:
        return None
    pairs = sorted(zip(xc, yc, strict=True))
    xc, yc = tuple(i for i, _ in pairs), tuple(j for _, j in pairs)
    x_free, y_free = free_dims(x, xc, ()), free_dims(y, yc, ())
    if not (_side_by_side(xc, x_free) and _side_by_side(yc, y_free)):
        return None
    if not (_merge(x, xc) and _merge(y, yc)):
        return None
    left, x_axis = _matrix(b, x, xc, x_free)
    right, y_axis = _matrix(b, y, yc, y_free)
    if left is x and right is y:
        return None
    attrs = {**node.attrs, "dimension_numbers": (((x_axis,), (y_axis,)), ((), ()))}
    out = b.emit("dot_general", (left, right), attrs)[0]
    return [b.reshape(out, node.output.shape)]


def _merge(x: Value, dims: Sequence[int]) -> bool:
    """True for dimensions that merge in place: on a mesh, only the first of them is divided."""
    return not x.type.spec or not any(x.type.spec[i] for i in dims[1:])


def _side_by_side(contract: Sequence[int], free: Sequence[int]) -> bool:
    """True when one group follows the other, each in order."""
    both = list(range(len(contract) + len(free)))
    return [*contract, *free] == both or [*free, *contract] == both


def _matrix(
    b: Builder, x: Value, contract: Sequence[int], free: Sequence[int]
) -> tuple[Value, int]:
    """Return the operand with each of its two groups merged, and the contracted dimension."""
    k, rows = prod(x.shape[i] for i in contract), [x.shape[i] for i in free]
    if free and _merge(x, free):
        rows = [prod(rows)]
    first = contract[0] == 0
    return b.reshape(x, (k, *rows) if first else (*rows, k)), 0 if first else len(rows)
