"""One element of each row, however it is spelled: `x[arange(n), i]` is `take_along_axis(x, i)`.

    gather(x[n,V], concatenate(iota, i))  ->  gather(x, i), n a batching dimension

The first form can read any row for any index. The second tells that it reads its own, which is
what moves picks in front of other work, gives them their cheap gradient, and lets rows be
computed apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax import lax

from ..ir.builder import Builder
from ..ir.graph import Graph, Literal, Node, Value
from .rewriter import Producers, known_array, rewrite


def own_rows(graph: Graph) -> Graph:
    """Return the graph with picks of each row's own element in their batched form."""
    return rewrite(graph, _Rule())


class _Rule(Producers):
    """The rule for `rewrite`."""

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return the batched pick, or None."""
        self.remember([node])
        if node.op.name != "gather":
            return None
        x, indices = node.inputs
        n, rows = node.attrs["dimension_numbers"], tuple(range(x.ndim - 1))
        joined = self.made_by(indices, "concatenate")
        if (
            joined is None
            or not rows
            or n.offset_dims
            or n.operand_batching_dims
            or tuple(n.start_index_map) != (*rows, x.ndim - 1)
            or len(joined.inputs) != x.ndim
            or joined.attrs["dimension"] != indices.ndim - 1
            or indices.shape[:-1] != x.shape[:-1]
            or not all(self._counts(v, i) for i, v in enumerate(joined.inputs[:-1]))
        ):
            return None
        index = joined.inputs[-1]
        numbers = lax.GatherDimensionNumbers((), (x.ndim - 1,), (x.ndim - 1,), rows, rows)
        attrs = {**node.attrs, "dimension_numbers": numbers}
        picked = b.emit("gather", (x, b.reshape(index, (*index.shape, 1))), attrs)[0]
        return [b.reshape(picked, node.output.shape)]

    def _counts(self, value: Value, dim: int) -> bool:
        """True when the value is known to be 0, 1, 2, ... along `dim`, the same along others."""
        node = self.producer.get(value)
        if node is None or isinstance(value, Literal):
            return False
        name = node.op.name
        if name == "iota":
            return bool(node.attrs["dimension"] == dim)
        if name == "constant":
            here = known_array(node.attrs["value"])
            if here is None:
                return False
            along = [n if i == dim else 1 for i, n in enumerate(here.shape)]
            return bool((here == np.arange(here.shape[dim]).reshape(along)).all())
        if name == "convert_element_type":
            fits = value.shape[dim] - 1 <= _most(value)
            return fits and self._counts(node.inputs[0], dim)
        if name == "broadcast_in_dim":
            (x,), dims = node.inputs, node.attrs["broadcast_dimensions"]
            if dim not in dims or x.shape[dims.index(dim)] != value.shape[dim]:
                return False
            return self._counts(x, dims.index(dim))
        if name == "reshape":
            return self._reshaped(node, dim)
        return name == "select_n" and self._wrapped(node, dim)

    def _reshaped(self, node: Node, dim: int) -> bool:
        """A reshape that adds ones or drops them."""
        (x,), out = node.inputs, node.output
        kept = [[i for i, n in enumerate(v.shape) if n != 1] for v in (x, out)]
        if [x.shape[i] for i in kept[0]] != [out.shape[i] for i in kept[1]]:
            return False
        return dim in kept[1] and self._counts(x, kept[0][kept[1].index(dim)])

    def _wrapped(self, node: Node, dim: int) -> bool:
        """`where(i < 0, i + n, i)`, as jax.numpy writes an index that may count from the end."""
        test, index, _ = node.inputs if len(node.inputs) == 3 else (None, None, None)
        below = test is not None and self.made_by(test, "lt")
        if not below or below.inputs[0] is not index or index is None:
            return False
        bound = below.inputs[1]
        zero = isinstance(bound, Literal) and not bound.data
        return zero and self._counts(index, dim)


def _most(value: Value) -> int:
    return int(np.iinfo(value.dtype).max) if np.issubdtype(value.dtype, np.integer) else 2**24
