"""Reductions over axes. Gradients are broadcasts, compares and products, which XLA fuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..op import (
    Attrs,
    Cts,
    Differentiator,
    Op,
    Pullback,
    ShapeRule,
    flop_per_input,
    no_gradient,
    per_operand,
    primitive_op,
)
from ..types import ArrayType
from .structural import axes_of, one_operand, without

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

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


def _product_tree(b: Builder, x: Value, axes: Axes) -> tuple[Value, Callable[[Value], Value]]:
    """Product over the axes by halves, axis after axis, and its pullback: 0 is safe.

    Each half gets the cotangent times the other half.
    """
    if not axes:
        return x, lambda g: g
    axis, n = axes[0], x.shape[axes[0]]
    if n == 0:
        return b.full(without(x.shape, axes), 1, x.dtype), lambda g: b.zeros(x)
    if n == 1:
        out, pull = _product_tree(
            b, b.reshape(x, without(x.shape, (axis,))), [i - (i > axis) for i in axes[1:]]
        )
        return out, lambda g: b.reshape(pull(g), x.shape)
    half = n // 2
    left, right = (b.slice_in_dim(x, lo, lo + half, axis) for lo in (0, half))
    rest = [b.slice_in_dim(x, 2 * half, n, axis)] if n % 2 else []
    out, pull = _product_tree(b, b.concatenate([b.mul(left, right), *rest], axis), axes)

    def halves(g: Value) -> Value:
        g = pull(g)
        pairs, odd = b.slice_in_dim(g, 0, half, axis), b.slice_in_dim(g, half, half + n % 2, axis)
        sides = [b.mul(pairs, right), b.mul(left, pairs)]
        return b.concatenate([*sides, odd] if rest else sides, axis)

    return out, halves


def _prod(b: Builder, g: Value, o: Value, x: Value, *, axes: Axes, **attrs: Any) -> Value:
    return _product_tree(b, x, axes)[1](g)


def _prod_once(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """One tree for the output and for the pullback."""
    out, pull = _product_tree(b, node.inputs[0], node.attrs["axes"])

    def pullback(b: Builder, cts: Cts) -> Cts:
        return [None if g is None else pull(g) for g in cts]

    return [out], pullback


def _reduction(name: str, rule: Any, **rules: Any) -> Op:
    vjp = per_operand(rule)
    return primitive_op(name, _reduced(name), vjp=vjp, flops=flop_per_input, **rules)


OPS: tuple[Op, ...] = (
    _reduction("reduce_sum", _sum),
    _reduction("reduce_max", _extremum),
    _reduction("reduce_min", _extremum),
    _reduction("reduce_prod", _prod, linearise=_prod_once),
    *(
        primitive_op(name, _bits(name), vjp=no_gradient, flops=flop_per_input)
        for name in ("reduce_and", "reduce_or", "reduce_xor")
    ),
    *(
        primitive_op(name, _position_shape, vjp=no_gradient, flops=flop_per_input)
        for name in ("argmax", "argmin")
    ),
)
