"""Sort and top-k: each cotangent goes where its element came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax import lax

from ..op import Cts, Differentiator, Op, Pullback, flop_per_input, primitive_op
from .structural import replaced

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value


def put_along_axis(b: Builder, g: Value, indices: Value, axis: int, size: int) -> Value:
    """Zeros with `g` added at `indices` along one axis, that axis getting `size` elements.

    The transpose of `take_along_axis`: g and indices have one shape. One pick from each row is a
    compare and a select, several are a scatter-add. All indices are in bounds.
    """
    shape = replaced(g.shape, axis, size)
    if g.shape[axis] == 1:
        here = b.eq(b.iota(indices.dtype, shape, axis), b.broadcast(indices, shape))
        return b.select(here, b.broadcast(g, shape), b.full(shape, 0, g.dtype))
    rows = tuple(i for i in range(g.ndim) if i != axis)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=rows,
        scatter_indices_batching_dims=rows,
    )
    attrs = {"dimension_numbers": numbers, "mode": lax.GatherScatterMode.PROMISE_IN_BOUNDS}
    attrs |= {"indices_are_sorted": False, "unique_indices": True}
    places = b.reshape(indices, (*indices.shape, 1))
    return b.one("scatter-add", b.full(shape, 0, g.dtype), places, g, **attrs)


def _top_k(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g, _), (_, indices), (x,) = cts, node.outputs, node.inputs
    assert g is not None
    axis = node.attrs.get("axis", node.attrs.get("reduction_dimension")) % x.ndim
    return [put_along_axis(b, g, indices, axis, x.shape[axis])]


def _sorted_places(b: Builder, node: Node) -> tuple[Value, ...]:
    """Sort together with an iota, which then tells where each element came from."""
    iota = b.iota(np.int32, node.inputs[0].shape, node.attrs["dimension"])
    return b.emit("sort", (*node.inputs, iota), node.attrs)


def _unsort(b: Builder, node: Node, places: Value, cts: Cts, needs: Sequence[bool]) -> Cts:
    """Put each cotangent where its element came from."""
    axis, size = node.attrs["dimension"], node.inputs[0].shape[node.attrs["dimension"]]
    return [
        put_along_axis(b, g, places, axis, size) if needed and g is not None else None
        for g, needed in zip(cts, needs, strict=True)
    ]


def _sort(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    return _unsort(b, node, _sorted_places(b, node)[-1], cts, needs)


def _sort_once(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Sort with the iota in the forward pass, so that there is no second sort."""
    *outputs, places = _sorted_places(b, node)
    return outputs, lambda b, cts: _unsort(b, node, places, cts, needs)


def _comparisons(node: Node) -> int:
    """n log n for each row."""
    size, n = node.inputs[0].type.size, node.inputs[0].shape[node.attrs["dimension"]]
    return size * int(max(1, n - 1)).bit_length()


OPS: tuple[Op, ...] = (
    primitive_op("sort", vjp=_sort, linearise=_sort_once, flops=_comparisons),
    primitive_op("top_k", vjp=_top_k, flops=flop_per_input),
    primitive_op("approx_top_k", vjp=_top_k, flops=flop_per_input),
)
