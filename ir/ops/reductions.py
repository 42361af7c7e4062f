"""Reductions over axes. Gradients are broadcasts, compares and products, which XLA fuses."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..op import Attrs, Op, ShapeRule, flop_per_input, no_gradient, per_operand, primitive_op
from ..types import ArrayType
from .structural import axes_of, one_operand, without

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Value

Axes = Sequence[int]


def _reduced(name: str) -> ShapeRule:
    return one_operand(lambda x, attrs: without(x.shape, axes_of(name, x, attrs["axes"])))


def _bits(name: str) -> ShapeRule:
    """Shape rule of the reductions of integers and booleans."""
    shape = _reduced(name)

    def checked(
        inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
    ) -> tuple[ArrayType, ...]:
        if inputs[0].type.is_inexact:
            raise ShapeError(f"{name} wants integers or booleans, got {inputs[0].type}")
        return shape(inputs, attrs, regions)

    return checked


def _position_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,) = inputs
    axes = axes_of("argmax", x.type, attrs["axes"])
    if len(axes) != 1 or not x.shape[axes[0]]:
        raise ShapeError(f"argmax wants one axis that is not empty, got {axes} of {x.type}")
    return (ArrayType(without(x.shape, axes), np.dtype(attrs["index_dtype"])),)


def _sum(b: Builder, g: Value, o: Value, x: Value, *, axes: Axes, **attrs: Any) -> Value:
    return b.expand(g, x.shape, axes)


def _extremum(b: Builder, g: Value, o: Value, x: Value, *, axes: Axes, **attrs: Any) -> Value:
    """g [x = o] / n: equal shares to the n elements that attain the extremum."""
    attained = b.convert(b.eq(x, b.expand(o, x.shape, axes)), g.dtype)
    share = b.div(g, b.reduce_sum(attained, axes))
    return b.mul(attained, b.expand(share, x.shape, axes))


def _prod(b: Builder, g: Value, o: Value, x: Value, *, axes: Axes, **attrs: Any) -> Value:
    """g times the product of all others, as product before times product after: 0 is safe."""
    kept = [i for i in range(x.ndim) if i not in axes]
    order, n = (*kept, *axes), prod(x.shape[i] for i in axes)
    if not x.type.size:
        return b.zeros(x)
    moved = b.transpose(x, order)
    rows = b.reshape(moved, (*o.shape, n))
    last = rows.ndim - 1
    before = _shifted_cumprod(b, rows, last, reverse=False)
    after = _shifted_cumprod(b, rows, last, reverse=True)
    slope = b.mul(b.mul(before, after), b.expand(g, rows.shape, (last,)))
    return b.transpose(b.reshape(slope, moved.shape), sorted(range(x.ndim), key=lambda i: order[i]))


def _shifted_cumprod(b: Builder, x: Value, axis: int, *, reverse: bool) -> Value:
    """Product of what comes strictly before (after, in reverse) each element."""
    n = x.shape[axis]
    edge = [(0, 0, 0)] * x.ndim
    edge[axis] = (0, 1, 0) if reverse else (1, 0, 0)
    rest = b.slice_in_dim(x, 1, n, axis) if reverse else b.slice_in_dim(x, 0, n - 1, axis)
    return b.pad(b.one("cumprod", rest, axis=axis, reverse=reverse), 1, edge)


def _reduction(name: str, rule: Any) -> Op:
    return primitive_op(name, _reduced(name), vjp=per_operand(rule), flops=flop_per_input)


OPS: tuple[Op, ...] = (
    _reduction("reduce_sum", _sum),
    _reduction("reduce_max", _extremum),
    _reduction("reduce_min", _extremum),
    _reduction("reduce_prod", _prod),
    *(
        primitive_op(name, _bits(name), vjp=no_gradient, flops=flop_per_input)
        for name in ("reduce_and", "reduce_or", "reduce_xor")
    ),
    *(
        primitive_op(name, _position_shape, vjp=no_gradient, flops=flop_per_input)
        for name in ("argmax", "argmin")
    ),
)
