"""Running sums, products, extrema and log-sum-exps along one axis.

`cumsum` pulls back by the opposite `cumsum`. The others pull back through the balanced tree of
pairs in which they can be computed, so that zeros in a product are safe, ties of an extremum
share as JAX's do, and second derivatives are right.

Source: the tree is the parallel prefix of Ladner and Fischer, 1980.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..op import Attrs, Cts, Differentiator, Op, Pullback, flop_per_input, per_operand, primitive_op
from ..types import ArrayType, is_complex
from .structural import axes_of, one_operand

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value

Pull = Callable[["Value"], tuple["Value", "Value"]]
Pair = Callable[["Builder", "Value", "Value"], tuple["Value", Pull]]


def _product(b: Builder, x: Value, y: Value) -> tuple[Value, Pull]:
    return b.mul(x, y), lambda g: (b.mul(g, y), b.mul(x, g))


def _extremum(name: str) -> Pair:
    def pair(b: Builder, x: Value, y: Value) -> tuple[Value, Pull]:
        o = b.one(name, x, y)

        def share(g: Value, mine: Value, other: Value) -> Value:
            whole = b.select(b.eq(mine, o), g, b.zeros(g))
            return b.select(b.eq(mine, other), b.mul(g, 0.5), whole)

        return o, lambda g: (share(g, x, y), share(g, y, x))

    return pair


def _logaddexp(b: Builder, x: Value, y: Value) -> tuple[Value, Pull]:
    """log(e^x + e^y) as max + log1p(e^-|x-y|); the slopes are e^(x-o) and e^(y-o).

    Where both are the same infinity, the gap is not a number and the slopes are one half.
    """
    if is_complex(x.dtype):
        return _complex_logaddexp(b, x, y)
    top, gap = b.max(x, y), b.sub(x, y)
    same = b.eq(x, y)
    infinite = b.logical_and(same, b.ne(gap, gap))
    near = b.select(same, b.zeros(gap), b.neg(b.one("abs", gap)))
    o = b.add(top, b.one("log1p", b.exp(near)))

    def slope(g: Value, z: Value) -> Value:
        below = b.select(infinite, b.full(z.shape, math.log(0.5), z.dtype), b.sub(z, o))
        return b.mul(g, b.exp(below))

    return o, lambda g: (slope(g, x), slope(g, y))


def _complex_logaddexp(b: Builder, x: Value, y: Value) -> tuple[Value, Pull]:
    """The greater is that by its real part; right up to multiples of 2 pi i, as e^z ignores."""
    first = b.ge(b.real(x), b.real(y))
    top, low = b.select(first, x, y), b.select(first, y, x)
    o = b.add(top, b.one("log1p", b.exp(b.sub(low, top))))
    return o, lambda g: (b.mul(g, b.exp(b.sub(x, o))), b.mul(g, b.exp(b.sub(y, o))))


def _every_other(b: Builder, x: Value, start: int, limit: int, axis: int) -> Value:
    lo, hi, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    lo[axis], hi[axis], step[axis] = start, max(start, limit), 2
    return b.slice(x, lo, hi, tuple(step))


def _interleave(b: Builder, even: Value, odd: Value, axis: int) -> Value:
    n, m = even.shape[axis], odd.shape[axis]
    return b.add(_spread(b, even, 0, n + m, axis), _spread(b, odd, 1, n + m, axis))


def _spread(b: Builder, x: Value, start: int, size: int, axis: int) -> Value:
    """Elements at start, start + 2, ... of an axis of `size`, zeros elsewhere."""
    n = x.shape[axis]
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (start, size - start - (2 * n - 1), 1)
    return b.pad(x, 0, config)


def _running(b: Builder, x: Value, axis: int, pair: Pair) -> tuple[Value, Callable[[Value], Value]]:
    """Running combination along an axis, and its pullback.

    Pairs are combined, the half-length rest recursively; that gives the odd positions, and each
    even one is the odd before it combined with its own element.
    """
    n = x.shape[axis]
    if n < 2:
        return x, lambda g: g
    first = b.slice_in_dim(x, 0, 1, axis)
    pairs, pull_pairs = pair(b, _every_other(b, x, 0, n - 1, axis), _every_other(b, x, 1, n, axis))
    odd, pull_odd = _running(b, pairs, axis, pair)
    if n == 2:
        even, pull_rest = first, None
    else:
        before = b.slice_in_dim(odd, 0, (n - 1) // 2, axis)
        rest, pull_rest = pair(b, before, _every_other(b, x, 2, n, axis))
        even = b.concatenate([first, rest], axis)

    def pull(g: Value) -> Value:
        g_even, g_odd = b.slice_in_dim(g, 0, 1, axis), _every_other(b, g, 1, n, axis)
        if pull_rest is not None:
            g_before, g_rest = pull_rest(_every_other(b, g, 2, n, axis))
            g_odd = b.add(g_odd, _lengthened(b, g_before, n // 2, axis))
            g_even = b.concatenate([g_even, g_rest], axis)
        g_left, g_right = pull_pairs(pull_odd(g_odd))
        g_left = _lengthened(b, g_left, (n + 1) // 2, axis)
        return _interleave(b, b.add(g_even, g_left), g_right, axis)

    return _interleave(b, even, odd, axis), pull


def _lengthened(b: Builder, x: Value, size: int, axis: int) -> Value:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, size - x.shape[axis], 0)
    return b.pad(x, 0, config)


def _tree(b: Builder, node: Node, pair: Pair) -> tuple[Value, Callable[[Value], Value]]:
    """The op's output and pullback by way of the tree."""
    (x,), axis = node.inputs, node.attrs["axis"]
    flip = (axis,) if node.attrs["reverse"] else ()
    out, pull = _running(b, b.rev(x, flip), axis, pair)
    return b.rev(out, flip), lambda g: b.rev(pull(b.rev(g, flip)), flip)


def _running_op(name: str, pair: Pair) -> Op:
    def vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
        (g,) = cts
        assert g is not None
        return [_tree(b, node, pair)[1](g)]

    def linearise(
        b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
    ) -> tuple[Sequence[Value], Pullback]:
        """One tree for the output and for the pullback."""
        out, pull = _tree(b, node, pair)
        if is_complex(out.dtype):  # of logarithms, JAX's branch
            (out,) = b.emit(node.op, node.inputs, node.attrs)

        def pullback(b: Builder, cts: Cts) -> Cts:
            return [None if g is None else pull(g) for g in cts]

        return [out], pullback

    return _cumulative(name, vjp=vjp, linearise=linearise)


def _sum(b: Builder, g: Value, o: Value, x: Value, *, axis: int, reverse: bool) -> Value:
    return b.one("cumsum", g, axis=axis, reverse=not reverse)


def _cumulative(name: str, **rules: Any) -> Op:
    def dims(x: ArrayType, attrs: Attrs) -> tuple[int, ...]:
        axes_of(name, x, (attrs["axis"],))
        return x.shape

    return primitive_op(name, one_operand(dims), flops=flop_per_input, **rules)


OPS: tuple[Op, ...] = (
    _cumulative("cumsum", vjp=per_operand(_sum)),
    _running_op("cumprod", _product),
    _running_op("cummax", _extremum("max")),
    _running_op("cummin", _extremum("min")),
    _running_op("cumlogsumexp", _logaddexp),
)
