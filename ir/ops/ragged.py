"""`ragged_dot_general`: one product for each group of rows, the mixture-of-experts workhorse.

    rows:    o[b,m,n]   = sum_k x[b,m,k] y[g(m),b,k,n]      groups partition rows m of x
    sums:    o[g,b,m,n] = sum_{k in g} x[b,m,k] y[b,k,n]    groups partition what is summed over
    batches: o[b,m,n]   = sum_k x[b,m,k] y[b,k,n]           groups partition the batch

The first two are each other's gradients. Each of b, m, k and n may be several dimensions, x and y
may be laid out in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

from jax import lax

from ..op import Cts, Op, call, shape_by_jax

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value

Dims = tuple[int, ...]


def _emit(
    b: Builder,
    node: Node,
    operands: tuple[Value, Value],
    contract: tuple[Dims, Dims],
    batch: tuple[Dims, Dims],
    ragged: int,
    group: Dims,
    order: Sequence[int],
    dtype: Any,
) -> Value:
    """Emit a product with the groups of `node`; dimension i of it goes to the place `order[i]`."""
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(contract, batch),
        lhs_ragged_dimensions=(ragged,),
        rhs_group_dimensions=group,
    )
    attrs = {
        **node.attrs,
        "ragged_dot_dimension_numbers": numbers,
        "preferred_element_type": dtype,
    }
    (out,) = b.emit("ragged_dot_general", (*operands, node.inputs[2]), attrs)
    return b.transpose(out, sorted(range(out.ndim), key=lambda i: order[i]))


def _runs(*parts: Sequence[int]) -> list[Dims]:
    """Consecutive numbers, as many for each part as it has elements."""
    ends = list(accumulate(map(len, parts)))
    return [tuple(range(end - len(part), end)) for end, part in zip(ends, parts, strict=True)]


def _sorted_with(keys: Dims, values: Dims) -> Dims:
    return tuple(value for _, value in sorted(zip(keys, values, strict=True)))


def _vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """dx = g y and dy = x g over the other's free dimensions; sums turn the first round: y g."""
    x, y, _ = node.inputs
    (g,) = cts
    assert g is not None
    numbers = node.attrs["ragged_dot_dimension_numbers"]
    (xc, yc), (xb, yb) = (tuple(map(tuple, pair)) for pair in numbers.dot_dimension_numbers)
    (ragged,), group = numbers.lhs_ragged_dimensions, tuple(numbers.rhs_group_dimensions)
    xk = tuple(i for i in range(x.ndim) if i not in (*xc, *xb))
    yk = tuple(i for i in range(y.ndim) if i not in (*yc, *yb, *group))
    sums = ragged in xc
    gg, gb, gm, gn = _runs((0,) if sums else (), xb, xk, yk)
    if sums:
        partner = yc[xc.index(ragged)]
        order = (*xb, *_sorted_with(yc, xc), *xk)
        dx = ((y, g), (yk, gn), (yb, gb), partner, gg, order)
    else:
        place = (*xb, *xk).index(ragged)
        dx = ((g, y), (gn, yk), (gb, yb), place, group, (*xb, *xk, *_sorted_with(yc, xc)))
    rows = ragged in xk
    into = (*(group if rows else ()), *yb, *_sorted_with(xc, yc), *yk)
    dy = ((x, g), (xk, gm), (xb, gb), ragged, gg, into)
    return [
        _emit(b, node, *dx, x.dtype) if needs[0] else None,
        _emit(b, node, *dy, y.dtype) if needs[1] else None,
        None,
    ]


def _flops(node: Node) -> int:
    """Two for each element of x and outer dimension of y: every row meets one group."""
    x, y, _ = node.inputs
    numbers = node.attrs["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    used = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * x.type.size * prod(size for i, size in enumerate(y.shape) if i not in used)


_LOWER = call(lax.ragged_dot_general)

OPS: tuple[Op, ...] = (
    Op("ragged_dot_general", shape_by_jax(_LOWER), _LOWER, vjp=_vjp, flops=_flops),
)
