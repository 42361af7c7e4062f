"""Element-wise ops: one op, one line of derivative.

Binary ops broadcast a scalar, or dimensions of size one, implicitly, as JAX's primitives do; the
VJPs sum the cotangent back to the operand's shape. In the rules `g` is the cotangent of the
output, `o` the output, `x` and `y` the operands, `b` the builder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..op import (
    Attrs,
    Cts,
    Op,
    ShapeRule,
    no_gradient,
    one_flop,
    per_operand,
    primitive_op,
    same_type,
)
from ..types import ArrayType, is_complex, is_inexact

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Rule = Callable[..., "Value"]


def broadcast_shapes(op: str, inputs: Sequence[Value]) -> tuple[int, ...]:
    """Shape of operands of one rank (or scalars) together. Raises `ShapeError`."""
    shape = inputs[0].shape
    for value in inputs[1:]:
        other = value.shape
        if other == shape or not other:
            continue
        if not shape:
            shape = other
            continue
        pairs = list(zip(shape, other, strict=False))
        if len(shape) != len(other) or any(a != b and 1 not in (a, b) for a, b in pairs):
            types = " and ".join(str(v.type) for v in inputs)
            raise ShapeError(f"{op} wants operands of one shape, got {types}")
        shape = tuple(b if a == 1 else a for a, b in pairs)
    return shape


def broadcasting(op: str, dtype: Any = None) -> Callable[..., tuple[ArrayType]]:
    """Shape rule of ops whose operands broadcast; `dtype` is the result's where it differs."""

    def shape(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
        first, *rest = (value.type for value in inputs)
        if any(other.dtype != first.dtype for other in rest):
            types = " and ".join(str(value.type) for value in inputs)
            raise ShapeError(f"{op} wants operands of one dtype, got {types}")
        weak = dtype is None and all(value.type.weak for value in inputs)
        return (ArrayType(broadcast_shapes(op, inputs), dtype or first.dtype, weak),)

    return shape


def _real(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
    (x,) = inputs
    dtype = np.zeros((), x.dtype).real.dtype if is_complex(x.dtype) else x.dtype
    return (ArrayType(x.shape, dtype, x.type.weak),)


def _bool(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
    return (ArrayType(inputs[0].shape, np.dtype(bool)),)


def unary(name: str, rule: Rule) -> Op:
    """Unary op with the derivative `rule(b, g, o, x)`, whatever `accuracy` its value has."""

    def vjp(
        b: Builder, g: Value, o: Value, x: Value, *, accuracy: Any = None, **attrs: Any
    ) -> Value:
        return rule(b, g, o, x, **attrs)

    return primitive_op(name, same_type, vjp=per_operand(vjp), flops=one_flop)


def _pow_shape(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
    """As of other binary ops, but the exponent may be an integer."""
    x, y = (value.type for value in inputs)
    if x.dtype != y.dtype and not (x.is_inexact and np.issubdtype(y.dtype, np.integer)):
        raise ShapeError(f"pow wants operands of one dtype or an integer exponent, got {x} and {y}")
    return (ArrayType(broadcast_shapes("pow", inputs), x.dtype, x.weak and y.weak),)


def binary(name: str, left: Rule | None, right: Rule | None, shape: ShapeRule | None = None) -> Op:
    """Binary op with one derivative for each operand, `rule(b, g, o, x, y)`."""

    def summed(position: int, rule: Rule | None) -> Rule | None:
        if rule is None:
            return None
        return lambda b, g, o, x, y: b.unbroadcast(rule(b, g, o, x, y), (x, y)[position])

    vjp = per_operand(summed(0, left), summed(1, right))
    return primitive_op(name, shape or broadcasting(name), vjp=vjp, flops=one_flop)


def flat(name: str, shape: Any = same_type) -> Op:
    """Unary op whose derivative is zero almost everywhere."""
    return primitive_op(name, shape, vjp=no_gradient, flops=one_flop)


def comparison(name: str) -> Op:
    """Binary op that gives booleans."""
    shape = broadcasting(name, np.dtype(bool))
    return primitive_op(name, shape, vjp=no_gradient, flops=one_flop)


def bitwise(name: str) -> Op:
    """Binary op on integers or booleans."""
    return primitive_op(name, broadcasting(name), vjp=no_gradient, flops=one_flop)


def _select_of_ties(b: Builder, g: Value, o: Value, x: Value, y: Value) -> Value:
    """Max and min: all to the operand that wins, one half to each where they tie."""
    wins, ties = b.eq(x, o), b.eq(y, o)
    whole, half = b.select(wins, g, b.zeros(g)), b.mul(g, 0.5)
    return b.select(b.logical_and(*_same_shape(b, wins, ties)), half, whole)


def _same_shape(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    shape = x.shape if x.type.size >= y.type.size else y.shape
    return b.broadcast(x, shape), b.broadcast(y, shape)


def _pow_base(b: Builder, g: Value, o: Value, x: Value, y: Value) -> Value:
    """y x^(y-1), and 0 where the integer y is 0; as in JAX, NaN where x and a floating y are 0."""
    power = b.convert(y, x.dtype)
    if is_inexact(y.dtype):
        return b.mul(g, b.mul(power, b.pow(x, b.sub(power, 1))))
    x, power = b.broadcast(x, o.shape), b.broadcast(power, o.shape)
    zero = b.eq(power, 0)
    safe = b.select(zero, b.ones(power), power)
    slope = b.mul(safe, b.pow(x, b.sub(safe, 1)))
    return b.mul(g, b.select(zero, b.zeros(slope), slope))


def _pow_exponent(b: Builder, g: Value, o: Value, x: Value, y: Value) -> Value:
    """x^y log(x), and 0 where x is 0 and y is not negative."""
    zero = b.eq(x, 0)
    safe = b.select(zero, b.ones(x), x)
    return b.mul(g, b.mul(b.log(safe), o))


def _integer_pow(b: Builder, g: Value, o: Value, x: Value, *, y: int) -> Value:
    if y == 0:
        return b.zeros(x)
    if y == 1:
        return g
    slope = x if y == 2 else b.integer_pow(x, y - 1)
    return b.mul(g, b.mul(slope, y))


def _abs(b: Builder, g: Value, o: Value, x: Value) -> Value:
    """Real: g where x >= 0, -g elsewhere, as in JAX. Complex: g conj(x) / |x|, 0 at 0."""
    if not is_complex(x.dtype):
        return b.select(b.ge(x, 0), g, b.neg(g))
    zero = b.eq(o, 0)
    safe = b.select(zero, b.ones(o), o)
    scale = b.select(zero, b.zeros(o), b.div(g, safe))
    return b.mul(b.complex(scale, b.zeros(scale)), b.conj(x))


def _convert(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value | None:
    if not is_inexact(o.dtype):
        return None
    if is_complex(g.dtype) and not is_complex(x.dtype):
        g = b.real(g)
    return b.convert(g, x.dtype)


def _convert_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType]:
    dtype = attrs["new_dtype"]
    return (ArrayType(inputs[0].shape, dtype, bool(attrs.get("weak_type", False))),)


def _select_n_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType]:
    which, *cases = inputs
    first = cases[0].type
    if any((c.shape, c.dtype) != (first.shape, first.dtype) for c in cases) or (
        which.shape not in ((), first.shape)
    ):
        types = ", ".join(str(value.type) for value in inputs)
        raise ShapeError(f"select_n wants cases of one type and a matching selector, got {types}")
    return (ArrayType(first.shape, first.dtype, all(c.type.weak for c in cases)),)


def _select_n(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    which, *cases = node.inputs
    (g,) = cts
    assert g is not None
    zeros = b.zeros(g) if any(needs) else g
    found: list[Value | None] = [None]
    for i, needed in enumerate(needs[1:]):
        picked = [g if j == i else zeros for j in range(len(cases))]
        found.append(b.emit("select_n", (which, *picked))[0] if needed else None)
    return found


def _clamp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """To x where it lies strictly inside, to a bound where it binds; as JAX has it.

    To neither x nor the lower bound where that is not below the upper one, which is then the value.
    """
    low, x, high = node.inputs
    (g,) = cts
    assert g is not None
    zeros = b.zeros(g)

    def where(condition: Value) -> Value:
        return b.select(b.broadcast(condition, g.shape), g, zeros)

    return [
        b.unbroadcast(where(b.logical_and(b.gt(low, x), b.lt(low, high))), low)
        if needs[0]
        else None,
        where(b.logical_and(b.gt(x, low), b.lt(x, high))) if needs[1] else None,
        b.unbroadcast(where(b.lt(high, x)), high) if needs[2] else None,
    ]


def _clamp_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType]:
    return (inputs[1].type,)


TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


def _gauss(b: Builder, x: Value) -> Value:
    return b.mul(b.exp(b.neg(b.square(x))), TWO_OVER_ROOT_PI)


SMOOTH: tuple[Op, ...] = (
    unary("neg", lambda b, g, o, x: b.neg(g)),
    unary("exp", lambda b, g, o, x: b.mul(g, o)),
    unary("exp2", lambda b, g, o, x: b.mul(g, b.mul(o, math.log(2)))),
    unary("log", lambda b, g, o, x: b.div(g, x)),
    unary("log1p", lambda b, g, o, x: b.div(g, b.add(x, 1))),
    unary("expm1", lambda b, g, o, x: b.mul(g, b.add(o, 1))),
    unary("sin", lambda b, g, o, x: b.mul(g, b.cos(x))),
    unary("cos", lambda b, g, o, x: b.neg(b.mul(g, b.sin(x)))),
    unary("tan", lambda b, g, o, x: b.mul(g, b.add(b.square(o), 1))),
    unary("asin", lambda b, g, o, x: b.mul(g, b.rsqrt(b.sub(1, b.square(x))))),
    unary("acos", lambda b, g, o, x: b.neg(b.mul(g, b.rsqrt(b.sub(1, b.square(x)))))),
    unary("atan", lambda b, g, o, x: b.div(g, b.add(b.square(x), 1))),
    unary("sinh", lambda b, g, o, x: b.mul(g, b.one("cosh", x))),
    unary("cosh", lambda b, g, o, x: b.mul(g, b.one("sinh", x))),
    unary("tanh", lambda b, g, o, x: b.mul(g, b.sub(1, b.square(o)))),
    unary("asinh", lambda b, g, o, x: b.mul(g, b.rsqrt(b.add(b.square(x), 1)))),
    unary(
        "acosh",
        lambda b, g, o, x: b.mul(g, b.mul(b.rsqrt(b.sub(x, 1)), b.rsqrt(b.add(x, 1)))),
    ),
    unary("atanh", lambda b, g, o, x: b.div(g, b.mul(b.add(x, 1), b.sub(1, x)))),
    unary("sqrt", lambda b, g, o, x: b.div(g, b.mul(o, 2))),
    unary("rsqrt", lambda b, g, o, x: b.mul(g, b.mul(b.div(o, x), -0.5))),
    unary("cbrt", lambda b, g, o, x: b.div(g, b.mul(b.square(o), 3))),
    unary("square", lambda b, g, o, x: b.mul(g, b.mul(x, 2))),
    unary("logistic", lambda b, g, o, x: b.mul(g, b.mul(o, b.sub(1, o)))),
    unary("erf", lambda b, g, o, x: b.mul(g, _gauss(b, x))),
    unary("erfc", lambda b, g, o, x: b.neg(b.mul(g, _gauss(b, x)))),
    unary(
        "erf_inv",
        lambda b, g, o, x: b.mul(g, b.mul(b.exp(b.square(o)), math.sqrt(math.pi) / 2)),
    ),
    unary("lgamma", lambda b, g, o, x: b.mul(g, b.one("digamma", x))),
    unary("digamma", lambda b, g, o, x: b.mul(g, b.one("polygamma", b.ones(x), x))),
    unary("integer_pow", _integer_pow),
    unary("copy", lambda b, g, o, x: g),
    unary("reduce_precision", lambda b, g, o, x, **attrs: b.one("reduce_precision", g, **attrs)),
    binary("add", lambda b, g, o, x, y: g, lambda b, g, o, x, y: g),
    binary("add_any", lambda b, g, o, x, y: g, lambda b, g, o, x, y: g),
    binary("sub", lambda b, g, o, x, y: g, lambda b, g, o, x, y: b.neg(g)),
    binary("mul", lambda b, g, o, x, y: b.mul(g, y), lambda b, g, o, x, y: b.mul(x, g)),
    binary(
        "div",
        lambda b, g, o, x, y: b.div(g, y),
        lambda b, g, o, x, y: b.neg(b.mul(b.div(g, y), b.div(x, y))),
    ),
    binary(
        "rem",
        lambda b, g, o, x, y: g,
        lambda b, g, o, x, y: b.mul(b.neg(g), _truncated(b, b.div(x, y))),
    ),
    binary("pow", _pow_base, _pow_exponent, _pow_shape),
    binary("max", _select_of_ties, lambda b, g, o, x, y: _select_of_ties(b, g, o, y, x)),
    binary("min", _select_of_ties, lambda b, g, o, x, y: _select_of_ties(b, g, o, y, x)),
    binary(
        "atan2",
        lambda b, g, o, x, y: b.mul(g, b.div(y, b.add(b.square(x), b.square(y)))),
        lambda b, g, o, x, y: b.mul(g, b.div(b.neg(x), b.add(b.square(x), b.square(y)))),
    ),
)


def _truncated(b: Builder, x: Value) -> Value:
    return b.mul(b.sign(x), b.one("floor", b.one("abs", x)))


COMPLEX: tuple[Op, ...] = (
    primitive_op("abs", _real, vjp=per_operand(_abs), flops=one_flop),
    primitive_op("real", _real, vjp=per_operand(lambda b, g, o, x: b.complex(g, b.zeros(g)))),
    primitive_op(
        "imag", _real, vjp=per_operand(lambda b, g, o, x: b.complex(b.zeros(g), b.neg(g)))
    ),
    primitive_op(
        "complex",
        vjp=per_operand(
            lambda b, g, o, x, y: b.unbroadcast(b.real(g), x),
            lambda b, g, o, x, y: b.unbroadcast(b.neg(b.imag(g)), y),
        ),
    ),
    primitive_op("conj", vjp=per_operand(lambda b, g, o, x, *, input_dtype: _conj(b, g, x))),
)


def _conj(b: Builder, g: Value, x: Value) -> Value:
    return b.conj(g) if is_complex(x.dtype) else b.real(b.conj(g))


SELECTION: tuple[Op, ...] = (
    primitive_op("select_n", _select_n_shape, vjp=_select_n, flops=one_flop),
    primitive_op("clamp", _clamp_shape, vjp=_clamp, flops=one_flop),
    primitive_op("convert_element_type", _convert_shape, vjp=per_operand(_convert)),
)

FLAT: tuple[Op, ...] = (
    *map(flat, "sign floor ceil round not population_count clz stop_gradient".split()),
    flat("is_finite", _bool),
    primitive_op("bitcast_convert_type", vjp=no_gradient),
    primitive_op("nextafter", broadcasting("nextafter"), vjp=no_gradient, flops=one_flop),
    *map(comparison, "eq ne lt le gt ge eq_to lt_to le_to".split()),
    *map(bitwise, "and or xor shift_left shift_right_logical shift_right_arithmetic mulhi".split()),
)

OPS = SMOOTH + COMPLEX + SELECTION + FLAT
