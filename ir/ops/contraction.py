"""Matrix products and convolutions, with gradients in the form that XLA runs fast.

`o = x . y` contracted over c, batched over n, leaves the free dimensions f of x and h of y:
o[n,f,h] = sum_c x[n,f,c] y[n,h,c]. Each gradient is one more `dot_general`; its operands are
ordered so that the result comes out in the operand's own layout wherever that is possible, since
a transposed copy costs more than the product on CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from jax import lax

from ..errors import ShapeError
from ..op import Attrs, Cts, Op, primitive_op
from ..types import ArrayType

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Dims = tuple[int, ...]


def free_dims(value: Value, contract: Sequence[int], batch: Sequence[int]) -> Dims:
    """Dimensions that are neither contracted nor batched, in order."""
    return tuple(i for i in range(value.ndim) if i not in contract and i not in batch)


def _dot_shape(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
    x, y = inputs
    (xc, yc), (xn, yn) = attrs["dimension_numbers"]
    for what, left, right in (("contracted", xc, yc), ("batch", xn, yn)):
        if [x.shape[i] for i in left] != [y.shape[i] for i in right]:
            raise ShapeError(
                f"dot_general wants matching {what} dimensions, got {x.type} over {tuple(left)} "
                f"and {y.type} over {tuple(right)}"
            )
    shape = [x.shape[i] for i in (*xn, *free_dims(x, xc, xn))]
    shape += [y.shape[i] for i in free_dims(y, yc, yn)]
    dtype = attrs.get("preferred_element_type")
    if dtype is None:
        if x.dtype != y.dtype:
            raise ShapeError(f"dot_general wants one dtype, got {x.type} and {y.type}")
        dtype = x.dtype
    return (ArrayType(tuple(shape), dtype),)


def _operand_gradient(
    b: Builder,
    g: Value,
    x: Value,
    y: Value,
    roles: tuple[Dims, Dims, Dims, Dims],
    free: Dims,
    precision: Any,
) -> Value:
    """Gradient of `x`; roles are (x contract, y contract, x batch, y batch).

    `free` are the dimensions of g that belong to y. g x y leaves (batch, free of x, contracted);
    y x g leaves (batch, contracted, free of x). Of the two the one nearer to x's layout is taken.
    """
    xc, yc, xn, yn = roles
    batch = tuple(range(len(xn)))
    yh = free_dims(y, yc, yn)
    contracted = tuple(c for _, c in sorted(zip(yc, xc, strict=True)))
    x_free = free_dims(x, xc, xn)
    g_first, y_first = (*xn, *x_free, *contracted), (*xn, *contracted, *x_free)
    if sum(a != i for i, a in enumerate(y_first)) < sum(a != i for i, a in enumerate(g_first)):
        order, operands = y_first, (y, g)
        contract, batches = (yh, free), (yn, batch)
    else:
        order, operands = g_first, (g, y)
        contract, batches = (free, yh), (batch, yn)
    out = b.dot_general(*operands, contract, batches, precision, x.dtype)
    return b.transpose(out, sorted(range(x.ndim), key=lambda i: order[i]))


def _dot_vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    x, y = node.inputs
    (g,) = cts
    assert g is not None
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    precision = node.attrs.get("precision")
    swapped = tuple(reversed(precision)) if isinstance(precision, tuple) else precision
    start, middle = len(xn), len(xn) + len(free_dims(x, xc, xn))
    x_free, y_free = tuple(range(start, middle)), tuple(range(middle, g.ndim))
    return [
        _operand_gradient(b, g, x, y, (xc, yc, xn, yn), y_free, precision) if needs[0] else None,
        _operand_gradient(b, g, y, x, (yc, xc, yn, xn), x_free, swapped) if needs[1] else None,
    ]


def _dot_flops(node: Node) -> int:
    x, _ = node.inputs
    (xc, _), _ = node.attrs["dimension_numbers"]
    return 2 * node.output.type.size * int(prod(x.shape[i] for i in xc))


# Convolution. Sizes along one spatial dimension: input I, kernel K, output O, with dilations
# dI = (I-1) lhs_dilation + 1, dK = (K-1) rhs_dilation + 1, dO = (O-1) stride + 1, and
# O = (dI + low + high - dK) // stride + 1.


def _spatial(node: Node) -> tuple[list[int], list[int], list[int]]:
    """`(dI, dK, dO)` of each spatial dimension."""
    attrs, numbers = node.attrs, node.attrs["dimension_numbers"]
    x, k = node.inputs

    def dilated(value: Value, spec: Sequence[int], dilation: Sequence[int]) -> list[int]:
        sizes = zip(spec[2:], dilation, strict=True)
        return [max(0, (value.shape[i] - 1) * d + 1) for i, d in sizes]

    return (
        dilated(x, numbers.lhs_spec, attrs["lhs_dilation"]),
        dilated(k, numbers.rhs_spec, attrs["rhs_dilation"]),
        dilated(node.output, numbers.out_spec, attrs["window_strides"]),
    )


def _regroup(b: Builder, x: Value, groups: int, source: int, target: int) -> Value:
    """Move a leading factor `groups` of dimension `source` to the front of dimension `target`."""
    split = [*x.shape[:source], groups, x.shape[source] // groups, *x.shape[source + 1 :]]
    order = list(range(len(split)))
    order.remove(source)
    order.insert(order.index(target if target < source else target + 1), source)
    moved = b.transpose(b.reshape(x, split), order)
    shape = list(x.shape)
    shape[source] //= groups
    shape[target] *= groups
    return b.reshape(moved, shape)


def _swap(spec: Sequence[int]) -> Dims:
    return (spec[1], spec[0], *spec[2:])


def _conv_lhs(b: Builder, node: Node, g: Value) -> Value:
    """The cotangent, dilated by the stride, convolved with the reversed kernel."""
    attrs, numbers = node.attrs, node.attrs["dimension_numbers"]
    x, k = node.inputs
    batch_groups = attrs["batch_group_count"]
    groups = attrs["feature_group_count"] * batch_groups
    if groups > 1:
        k = _regroup(b, k, groups, numbers.rhs_spec[0], numbers.rhs_spec[1])
    padding = [
        (dk - 1 - low, di - do + low)
        for di, dk, do, (low, _) in zip(*_spatial(node), attrs["padding"], strict=True)
    ]
    out = b.emit(
        "conv_general_dilated",
        (g, b.rev(k, numbers.rhs_spec[2:])),
        {
            **attrs,
            "window_strides": attrs["lhs_dilation"],
            "lhs_dilation": attrs["window_strides"],
            "padding": tuple(padding),
            "dimension_numbers": lax.ConvDimensionNumbers(
                numbers.out_spec, _swap(numbers.rhs_spec), numbers.lhs_spec
            ),
            "feature_group_count": groups,
            "batch_group_count": 1,
            "preferred_element_type": x.dtype,
        },
    )[0]
    if batch_groups > 1:
        out = _regroup(b, out, batch_groups, numbers.lhs_spec[1], numbers.lhs_spec[0])
    return out


def _conv_rhs(b: Builder, node: Node, g: Value) -> Value:
    """The input convolved with the cotangent, batch and features changing places."""
    attrs, numbers = node.attrs, node.attrs["dimension_numbers"]
    x, k = node.inputs
    padding = [
        (low, dk - 1 + do - di - low)
        for di, dk, do, (low, _) in zip(*_spatial(node), attrs["padding"], strict=True)
    ]
    return b.emit(
        "conv_general_dilated",
        (x, g),
        {
            **attrs,
            "window_strides": attrs["rhs_dilation"],
            "rhs_dilation": attrs["window_strides"],
            "padding": tuple(padding),
            "dimension_numbers": lax.ConvDimensionNumbers(
                _swap(numbers.lhs_spec), _swap(numbers.out_spec), _swap(numbers.rhs_spec)
            ),
            "feature_group_count": attrs["batch_group_count"],
            "batch_group_count": attrs["feature_group_count"],
            "preferred_element_type": k.dtype,
        },
    )[0]


def _conv_vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,) = cts
    assert g is not None
    if not g.type.size:  # as a kernel it would have no positions, which XLA refuses
        return [None, None]
    return [
        _conv_lhs(b, node, g) if needs[0] else None,
        _conv_rhs(b, node, g) if needs[1] else None,
    ]


def _conv_flops(node: Node) -> int:
    """Two for each output element, kernel position and input feature; none for spread zeros."""
    _, k = node.inputs
    features = node.attrs["dimension_numbers"].rhs_spec[0]
    zeros: int = prod(node.attrs["lhs_dilation"])
    return 2 * node.output.type.size * (k.type.size // max(1, int(k.shape[features]))) // zeros


OPS: tuple[Op, ...] = (
    primitive_op("dot_general", _dot_shape, vjp=_dot_vjp, flops=_dot_flops),
    primitive_op("conv_general_dilated", vjp=_conv_vjp, flops=_conv_flops),
)
