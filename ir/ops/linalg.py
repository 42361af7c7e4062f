"""Triangular solves and Cholesky; `factor.py` holds the other factorisations.

Matrices are the last two dimensions, those before them a batch. Cotangents follow JAX: transposed
where a formula for real matrices has a transpose, nothing conjugated that the op does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax import lax

from ..op import Cts, Op, primitive_op
from ..types import is_complex

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value


def matmul(b: Builder, x: Value, y: Value) -> Value:
    """Batched x @ y, at full precision."""
    batch = tuple(range(x.ndim - 2))
    dims = ((x.ndim - 1,), (y.ndim - 2,))
    return b.dot_general(x, y, dims, (batch, batch), lax.Precision.HIGHEST)


def transposed(b: Builder, x: Value) -> Value:
    """Swap the last two dimensions."""
    return b.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def adjoint(b: Builder, x: Value) -> Value:
    """Conjugate and transpose."""
    return b.conj(transposed(b, x))


def solve(
    b: Builder,
    a: Value,
    y: Value,
    *,
    left: bool = True,
    lower: bool = True,
    transpose: bool = False,
    conjugate: bool = False,
    unit: bool = False,
) -> Value:
    """Return `a^-1 y` (`y a^-1` when not `left`) for a triangular a."""
    return b.one(
        "triangular_solve",
        a,
        y,
        left_side=left,
        lower=lower,
        transpose_a=transpose,
        conjugate_a=conjugate and is_complex(a.dtype),
        unit_diagonal=unit,
    )


def below(b: Builder, x: Value, *, offset: int = 0, upper: bool = False) -> Value:
    """Keep what lies on or below the diagonal (above it when `upper`), moved by `offset`."""
    row, column = (b.iota(np.int32, x.shape, x.ndim - k) for k in (2, 1))
    column = b.sub(column, offset) if offset else column
    return b.select(b.le(row, column) if upper else b.ge(row, column), x, b.zeros(x))


def on_diagonal(b: Builder, x: Value) -> Value:
    """True on the diagonal, in the shape of x."""
    return b.eq(*(b.iota(np.int32, x.shape, x.ndim - k) for k in (2, 1)))


def lower_half(b: Builder, x: Value) -> Value:
    """Lower triangle, the diagonal halved: Murray's Phi."""
    return below(b, b.select(on_diagonal(b, x), b.mul(x, 0.5), x))


def _cholesky(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = L L^T:  L^-T Phi(L^T g) L^-1. What the primitive leaves above L is undefined.

    Source: Murray, "Differentiation of the Cholesky decomposition", 2016, equation 8.
    """
    (g,), (out,) = cts, node.outputs
    assert g is not None
    low = below(b, out)
    half = lower_half(b, matmul(b, transposed(b, low), g))
    left = solve(b, low, half, transpose=True)
    return [solve(b, low, left, left=False, conjugate=True)]


def _triangular_solve(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """op(a) x = y:  y gets z = op(a)^-T g, op(a) gets -z x^T, of which a's triangle counts."""
    (g,), (a, _), (x,), attrs = cts, node.inputs, node.outputs, node.attrs
    assert g is not None
    z = b.one("triangular_solve", a, g, **{**attrs, "transpose_a": not attrs["transpose_a"]})
    if not needs[0]:
        return [None, z if needs[1] else None]
    first, second = (z, transposed(b, x)) if attrs["left_side"] else (transposed(b, x), z)
    if attrs["transpose_a"]:
        first, second = transposed(b, second), transposed(b, first)
    slope = b.neg(matmul(b, first, second))
    slope = b.conj(slope) if attrs["conjugate_a"] else slope
    offset = int(attrs["unit_diagonal"])
    kept = (
        below(b, slope, offset=-offset)
        if attrs["lower"]
        else below(b, slope, offset=offset, upper=True)
    )
    return [kept, z if needs[1] else None]


def _shifted(b: Builder, x: Value, by: int, axis: int) -> Value:
    """Element i of the result is element i - by of x; zeros come in."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (by, -by, 0)
    return b.pad(x, 0, config)


def _tridiagonal_solve(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """T x = y, T given by its diagonals: T^T z = g, y gets z, T gets -z x^T."""
    (g,), (x,), (below_t, diagonal, above_t, _) = cts, node.outputs, node.inputs
    assert g is not None
    row, last = x.ndim - 2, diagonal.ndim - 1
    low, high = _shifted(b, above_t, 1, last), _shifted(b, below_t, -1, last)
    z = b.one("tridiagonal_solve", low, diagonal, high, g, **node.attrs)

    def slope(by: int) -> Value:
        return b.neg(b.reduce_sum(b.mul(z, _shifted(b, x, by, row)), (x.ndim - 1,)))

    slopes = (slope(by) if needed else None for by, needed in zip((1, 0, -1), needs, strict=False))
    return [*slopes, z if needs[3] else None]


def _solve_flops(node: Node) -> int:
    """One multiply-add for each element of the triangle and each right-hand side."""
    a, y = node.inputs
    return a.shape[-1] * y.type.size


def _cholesky_flops(node: Node) -> int:
    (a,) = node.inputs
    return a.shape[-1] * a.type.size // 3


OPS: tuple[Op, ...] = (
    primitive_op("cholesky", vjp=_cholesky, flops=_cholesky_flops),
    primitive_op("triangular_solve", vjp=_triangular_solve, flops=_solve_flops),
    primitive_op(
        "tridiagonal_solve", vjp=_tridiagonal_solve, flops=lambda n: 9 * n.output.type.size
    ),
)
