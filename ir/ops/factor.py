"""LU, QR and singular values; `eigen.py` holds the eigenvalues.

Each factor's cotangent may be None. As in JAX, equal singular values give infinite gradients of
the vectors: these are not functions of the matrix there.

Source: Giles, "Collected matrix derivative results", 2008; Walter and Lehmann, "Algorithmic
differentiation of linear algebra functions", 2010, for QR; Ionescu et al., "Matrix
backpropagation", 2015, for the singular values; Wan and Zhang, "Automatic differentiation for
complex valued SVD", 2019, for their phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jax import lax

from ..errors import MissingRuleError
from ..op import Cts, Op, primitive_op
from ..types import is_complex
from .linalg import adjoint, below, lower_half, matmul, on_diagonal, solve, transposed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..builder import Builder
    from ..graph import Node, Value


def _or_zeros(b: Builder, ct: Value | None, like: Value) -> Value:
    return b.zeros(like) if ct is None else ct


def _block(b: Builder, x: Value, rows: tuple[int, int], columns: tuple[int, int]) -> Value:
    rows_cut = b.slice_in_dim(x, *rows, x.ndim - 2)
    return b.slice_in_dim(rows_cut, *columns, x.ndim - 1)


def _unit_lower(b: Builder, x: Value) -> Value:
    """The strict lower triangle, with ones on the diagonal."""
    return b.select(on_diagonal(b, x), b.ones(x), below(b, x))


def _lu(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A[p] = L U, packed:  L^-T (strict lower(L^T g_L) + upper(g_U U^T)) U^-T, rows moved back.

    A wide matrix's right block is U2 = L^-1 A2, a tall one's lower block L2 = A2 U^-1.
    """
    (g, *_), (packed, _, permutation) = cts, node.outputs
    assert g is not None
    m, n = packed.shape[-2:]
    k = min(m, n)
    square, g_square = (_block(b, v, (0, k), (0, k)) for v in (packed, g))
    low, up = _unit_lower(b, square), below(b, square, upper=True)
    g_low, g_up = below(b, g_square, offset=-1), below(b, g_square, upper=True)
    rest: Value | None = None
    if n > m:
        rest = solve(b, low, _block(b, g, (0, k), (k, n)), transpose=True, unit=True)
        right = _block(b, packed, (0, k), (k, n))
        g_low = b.sub(g_low, below(b, matmul(b, rest, transposed(b, right)), offset=-1))
    elif m > n:
        lower_g = _block(b, g, (k, m), (0, k))
        rest = solve(b, up, lower_g, left=False, lower=False, transpose=True)
        bottom = _block(b, packed, (k, m), (0, k))
        g_up = b.sub(g_up, below(b, matmul(b, transposed(b, bottom), rest), upper=True))
    inner = b.add(
        below(b, matmul(b, transposed(b, low), g_low), offset=-1),
        below(b, matmul(b, g_up, transposed(b, up)), upper=True),
    )
    left = solve(b, low, inner, transpose=True, unit=True)
    found = solve(b, up, left, left=False, lower=False, transpose=True)
    if rest is not None:
        found = b.concatenate([found, rest], found.ndim - (1 if n > m else 2))
    return [_rows(b, found, _inverse(b, permutation))]


def _inverse(b: Builder, permutation: Value) -> Value:
    last = permutation.ndim - 1
    iota = b.iota(permutation.dtype, permutation.shape, last)
    attrs = {"dimension": last, "is_stable": True, "num_keys": 1}
    return b.emit("sort", (permutation, iota), attrs)[1]


def _rows(b: Builder, x: Value, order: Value) -> Value:
    """`x[..., order, :]`, batched."""
    batch = tuple(range(x.ndim - 2))
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(x.ndim - 1,),
        collapsed_slice_dims=(x.ndim - 2,),
        start_index_map=(x.ndim - 2,),
        operand_batching_dims=batch,
        start_indices_batching_dims=batch,
    )
    return b.one(
        "gather",
        x,
        b.reshape(order, (*order.shape, 1)),
        dimension_numbers=numbers,
        slice_sizes=(*(1 for _ in batch), 1, x.shape[-1]),
        unique_indices=True,
        indices_are_sorted=False,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        fill_value=None,
    )


def _qr(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = Q R, in all of its forms; conjugated at both ends, so that <g, d> = Re tr(g^H d).

    Pivoting: A's columns are permuted first. Wide: A = [A1 A2], R2 = Q^H A2. Full: see `_full_q`.
    """
    (x,), (q, r, *order) = node.inputs, node.outputs
    m, n = x.shape[-2:]
    k = min(m, n)
    if not x.type.size:
        return [b.zeros(x)]
    g_q, g_r = (b.conj(_or_zeros(b, g, o)) for g, o in zip(cts, (q, r), strict=False))
    rest: Value | None = None
    if m < n:
        right, rest = (_block(b, v, (0, m), (m, n)) for v in (r, g_r))
        g_q = b.add(g_q, matmul(b, matmul(b, q, right), adjoint(b, rest)))
        rest = matmul(b, q, rest)
    elif q.shape[-1] > n:
        g_q = _full_q(b, q, g_q, n)
    thin = _block(b, q, (0, m), (0, k))
    r1, g_r1 = (_block(b, v, (0, k), (0, k)) for v in (r, g_r))
    found = _thin_qr(b, thin, r1, g_q, g_r1)
    if rest is not None:
        found = b.concatenate([found, rest], found.ndim - 1)
    if order:
        found = transposed(b, _rows(b, transposed(b, found), _inverse(b, order[0])))
    return [b.conj(found)]


def _thin_qr(b: Builder, q: Value, r: Value, g_q: Value, g_r: Value) -> Value:
    """(g_Q + Q K) R^-H with M = R g_R^H - g_Q^H Q; K is M's lower half mirrored, its diagonal real.

    Source: Walter and Lehmann, section 2; the diagonal of R stays real.
    """
    core = b.sub(matmul(b, r, adjoint(b, g_r)), matmul(b, adjoint(b, g_q), q))
    half = lower_half(b, core)
    inner = b.add(g_q, matmul(b, q, b.add(half, adjoint(b, half))))
    return solve(b, r, inner, left=False, lower=False, transpose=True, conjugate=True)


def _full_q(b: Builder, q: Value, g: Value, n: int) -> Value:
    """The cotangent of Q1 in Q = [Q1 Q2]; Q2 follows from Q1 by way of the Householder vectors.

    dQ2 = dQ1 Z^H - (Q1 + Q2 Z) (dQ1[n:] - Z dQ1[:n])^H with Z = Q1[n:] (Q1[:n] - I)^-1.

    Source: Roberts and Roberts, "QR and LQ decomposition matrix backpropagation algorithms",
    2020, for thin factors; arXiv 2409.13374, equations 32 and 33, for the rest of Q.
    """
    m = q.shape[-2]
    q1, q2 = _block(b, q, (0, m), (0, n)), _block(b, q, (0, m), (n, m))
    g1, g2 = _block(b, g, (0, m), (0, n)), _block(b, g, (0, m), (n, m))
    top, bottom = _block(b, q, (0, n), (0, n)), _block(b, q, (n, m), (0, n))
    shifted = b.select(on_diagonal(b, top), b.sub(top, 1), top)
    z = right_solve(b, shifted, bottom)
    s = matmul(b, adjoint(b, g2), b.add(q1, matmul(b, q2, z)))
    moved = b.concatenate([matmul(b, adjoint(b, z), s), b.neg(s)], s.ndim - 2)
    return b.sum([g1, matmul(b, g2, z), moved])


def right_solve(b: Builder, a: Value, y: Value) -> Value:
    """y a^-1 for a square matrix: with a[p] = L U it is y U^-1 L^-1, its columns moved."""
    packed, _, permutation = b.emit("lu", (a,))
    up = solve(b, packed, y, left=False, lower=False)
    both = solve(b, packed, up, left=False, unit=True)
    return transposed(b, _rows(b, transposed(b, both), _inverse(b, permutation)))


def as_diagonal(b: Builder, x: Value) -> Value:
    """Diagonal matrix of a vector."""
    spread = b.broadcast_in_dim(x, (*x.shape, x.shape[-1]), range(x.ndim))
    return b.select(on_diagonal(b, spread), spread, b.zeros(spread))


def columns(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """A vector as the scale of each column of a matrix."""
    return b.broadcast_in_dim(x, shape, (*range(x.ndim - 1), len(shape) - 1))


def gaps(b: Builder, w: Value) -> Value:
    """1 / (w_j - w_i), and 0 on the diagonal."""
    shape = (*w.shape, w.shape[-1])
    gap = b.sub(columns(b, w, shape), b.broadcast_in_dim(w, shape, range(w.ndim)))
    diagonal = on_diagonal(b, gap)
    safe = b.select(diagonal, b.ones(gap), gap)
    return b.select(diagonal, b.zeros(gap), b.div(1, safe))


def _svd(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = U s V^H, conjugated at both ends:  U K V^H and what leaves the ranges of U and V.

    K = diag(g_s) + (W + W^H) s + s (Z + Z^H) + i Im diag(U^H g_U) / s,
    W = F * (U^H g_U), Z = F * (V^H g_V), F = 1 / (s_j^2 - s_i^2).
    """
    (x,), attrs = node.inputs, node.attrs
    g_s, g_u, g_vh = (*cts, None, None)[:3]
    if attrs["compute_uv"]:
        s, u, vh = node.outputs
    else:
        full = {**attrs, "compute_uv": True, "full_matrices": False}
        s, u, vh = b.emit(node.op, (x,), full)
    (m, n), k = x.shape[-2:], s.shape[-1]
    if attrs["subset_by_index"] is not None or k != min(m, n):
        raise MissingRuleError("svd of a part of the spectrum (subset_by_index) has no VJP")
    if (g_u is not None or g_vh is not None) and (u.shape[-1], vh.shape[-2]) != (k, k):
        raise MissingRuleError("svd with full_matrices has no VJP for its vectors; use False")
    u, vh = _block(b, u, (0, m), (0, k)), _block(b, vh, (0, k), (0, n))
    scale = None if g_s is None else b.convert(g_s, x.dtype)
    if g_u is None and g_vh is None:
        assert scale is not None
        return [b.conj(matmul(b, b.mul(u, columns(b, scale, u.shape)), vh))]
    core: list[Value] = [] if scale is None else [as_diagonal(b, scale)]
    outside: list[Value] = []
    width, fraction = b.convert(s, x.dtype), _square_gaps(b, s, x.dtype)
    if g_u is not None:
        g_u = b.conj(g_u)
        p = matmul(b, adjoint(b, u), g_u)
        w = b.mul(fraction, p)
        core.append(b.mul(b.add(w, adjoint(b, w)), columns(b, width, w.shape)))
        core += _phases(b, p, s)
        if m > n:
            rest = b.div(_off(b, g_u, u), columns(b, width, u.shape))
            outside.append(matmul(b, rest, vh))
    if g_vh is not None:
        g_v, v = transposed(b, g_vh), adjoint(b, vh)
        z = b.mul(fraction, matmul(b, vh, g_v))
        core.append(b.mul(b.add(z, adjoint(b, z)), _each_row(b, width, z.shape)))
        if n > m:
            rest = adjoint(b, _off(b, g_v, v))
            outside.append(matmul(b, u, b.div(rest, _each_row(b, width, rest.shape))))
    inside = matmul(b, matmul(b, u, b.sum(core)), vh)
    return [b.conj(b.sum([inside, *outside]))]


def _phases(b: Builder, p: Value, s: Value) -> list[Value]:
    """i Im(p_ii) / s_i on a diagonal, and 0 where s_i is; nothing for real matrices."""
    if not is_complex(p.dtype):
        return []
    zero = b.eq(s, 0)
    imag = b.select(on_diagonal(b, p), b.imag(p), b.zeros(b.imag(p)))
    inverse = b.select(zero, b.zeros(s), b.div(1, b.select(zero, b.ones(s), s)))
    found = b.mul(imag, columns(b, inverse, p.shape))
    return [b.complex(b.zeros(found), found)]


def _each_row(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """A vector as the scale of each row of a matrix."""
    return b.broadcast_in_dim(x, shape, range(x.ndim))


def _square_gaps(b: Builder, s: Value, dtype: Any) -> Value:
    """1 / (s_j^2 - s_i^2), and 0 on the diagonal."""
    shape = (*s.shape, s.shape[-1])
    total = b.add(columns(b, s, shape), _each_row(b, s, shape))
    diagonal = on_diagonal(b, total)
    safe = b.select(diagonal, b.ones(total), total)
    return b.convert(b.div(gaps(b, s), safe), dtype)


def _off(b: Builder, g: Value, u: Value) -> Value:
    """(I - U U^H) g."""
    return b.sub(g, matmul(b, u, matmul(b, adjoint(b, u), g)))


def cubic(factor: float) -> Callable[[Node], int]:
    """`factor` m n min(m, n) for each matrix."""

    def flops(node: Node) -> int:
        x = node.inputs[0]
        return int(factor * x.type.size * min(x.shape[-2:]))

    return flops


OPS: tuple[Op, ...] = (
    primitive_op("lu", vjp=_lu, flops=cubic(2 / 3)),
    primitive_op("qr", vjp=_qr, flops=cubic(2)),
    primitive_op("svd", vjp=_svd, flops=cubic(14)),
    *(
        primitive_op(name, flops=cubic(10))
        for name in ("schur", "hessenberg", "householder_product", "tridiagonal")
    ),
)
