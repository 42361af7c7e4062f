"""LU, QR, symmetric eigenvalues and singular values.

Each factor's cotangent may be None. As in JAX, equal eigenvalues or singular values give
infinite gradients of the vectors: these are not functions of the matrix there.

Source: Giles, "Collected matrix derivative results", 2008; Walter and Lehmann, "Algorithmic
differentiation of linear algebra functions", 2010, for QR; Ionescu et al., "Matrix
backpropagation", 2015, for the singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax import lax

from ..errors import MissingRuleError
from ..op import Cts, Op, primitive_op
from ..types import is_complex
from .linalg import below, matmul, on_diagonal, solve, transposed

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
    if g is None:
        return [None]
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


def _real_only(name: str, x: Value) -> None:
    if is_complex(x.dtype):
        raise MissingRuleError(f"{name} of a complex matrix has no VJP yet, got {x.type}")


def _qr(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = Q R:  (g_Q + Q sym(M)) R^-T with M = R g_R^T - g_Q^T Q, its lower half mirrored."""
    (x,), (q, r) = node.inputs, node.outputs[:2]
    _real_only("qr", x)
    m, n = x.shape[-2:]
    if node.attrs["pivoting"] or m < n or q.shape[-1] != n:
        raise MissingRuleError(
            "qr has a VJP for tall or square matrices without pivoting and full_matrices, got "
            f"{x.type} with {dict(node.attrs)}"
        )
    g_q, g_r = _or_zeros(b, cts[0], q), _or_zeros(b, cts[1], r)
    core = b.sub(matmul(b, r, transposed(b, g_r)), matmul(b, transposed(b, g_q), q))
    mirrored = b.add(below(b, core), transposed(b, below(b, core, offset=-1)))
    inner = b.add(g_q, matmul(b, q, mirrored))
    return [solve(b, r, inner, left=False, lower=False, transpose=True)]


def _as_diagonal(b: Builder, x: Value, like: Value) -> Value:
    """Diagonal matrix of a vector, in the shape of `like`."""
    spread = b.broadcast_in_dim(x, like.shape, range(x.ndim))
    return b.select(on_diagonal(b, like), spread, b.zeros(like))


def _columns(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """A vector as the scale of each column of a matrix."""
    return b.broadcast_in_dim(x, shape, (*range(x.ndim - 1), len(shape) - 1))


def _gaps(b: Builder, w: Value) -> Value:
    """1 / (w_j - w_i), and 0 on the diagonal."""
    shape = (*w.shape, w.shape[-1])
    gap = b.sub(_columns(b, w, shape), b.broadcast_in_dim(w, shape, range(w.ndim)))
    diagonal = on_diagonal(b, gap)
    safe = b.select(diagonal, b.ones(gap), gap)
    return b.select(diagonal, b.zeros(gap), b.div(1, safe))


def _eigh(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = V w V^H:  conj(V) (diag(g_w) + F * (V^T g_V)) V^T with F = 1 / (w_j - w_i)."""
    (g_v, g_w), (v, w), (x,) = cts, node.outputs, node.inputs
    if v.shape != x.shape:
        raise MissingRuleError("eigh of a part of the spectrum (subset_by_index) has no VJP")
    core: list[Value] = []
    if g_v is not None:
        gaps = b.convert(_gaps(b, w), v.dtype)
        core.append(b.mul(gaps, matmul(b, transposed(b, v), g_v)))
    if g_w is not None:
        core.append(_as_diagonal(b, b.convert(g_w, v.dtype), v))
    return [matmul(b, matmul(b, b.conj(v), b.sum(core)), transposed(b, v))]


def _svd(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = U s V^T:  U (diag(g_s) + (W + W^T) s + s (Z + Z^T)) V^T and what leaves the ranges.

    W = F * (U^T g_U), Z = F * (V^T g_V), F = 1 / (s_j^2 - s_i^2).
    """
    (x,), attrs = node.inputs, node.attrs
    _real_only("svd", x)
    g_s, g_u, g_vt = (*cts, None, None)[:3]
    if attrs["compute_uv"]:
        s, u, vt = node.outputs
    else:
        full = {**attrs, "compute_uv": True, "full_matrices": False}
        s, u, vt = b.emit(node.op, (x,), full)
    k = s.shape[-1]
    if attrs["subset_by_index"] is not None or k != min(x.shape[-2:]):
        raise MissingRuleError("svd of a part of the spectrum (subset_by_index) has no VJP")
    if (g_u is not None or g_vt is not None) and (u.shape[-1], vt.shape[-2]) != (k, k):
        raise MissingRuleError("svd with full_matrices has no VJP for its vectors; use False")
    u, vt = _block(b, u, (0, x.shape[-2]), (0, k)), _block(b, vt, (0, k), (0, x.shape[-1]))
    if g_u is None and g_vt is None:
        assert g_s is not None
        return [matmul(b, b.mul(u, _columns(b, g_s, u.shape)), vt)]
    gaps = _gaps(b, b.square(s))
    v, inverse = transposed(b, vt), b.div(1, s)
    core: list[Value] = [] if g_s is None else [_as_diagonal(b, g_s, gaps)]
    outside: list[Value] = []
    if g_u is not None:
        w = b.mul(gaps, matmul(b, transposed(b, u), g_u))
        core.append(b.mul(b.add(w, transposed(b, w)), _columns(b, s, w.shape)))
        rest = b.mul(_off(b, g_u, u), _columns(b, inverse, u.shape))
        outside.append(matmul(b, rest, vt))
    if g_vt is not None:
        g_v = transposed(b, g_vt)
        z = b.mul(gaps, matmul(b, vt, g_v))
        rows = b.broadcast_in_dim(s, z.shape, range(s.ndim))
        core.append(b.mul(b.add(z, transposed(b, z)), rows))
        scaled = b.mul(u, _columns(b, inverse, u.shape))
        outside.append(matmul(b, scaled, transposed(b, _off(b, g_v, v))))
    inside = matmul(b, matmul(b, u, b.sum(core)), vt)
    return [b.sum([inside, *outside])]


def _off(b: Builder, g: Value, u: Value) -> Value:
    """(I - U U^T) g."""
    return b.sub(g, matmul(b, u, matmul(b, transposed(b, u), g)))


def _eig(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A V = V w:  conj(U) (g_w / s) V^T, U the left vectors and s_i = u_i^H v_i."""
    (g, *vectors), (x,), attrs = cts, node.inputs, node.attrs
    if any(ct is not None for ct in vectors):
        raise MissingRuleError("eig has a VJP for its eigenvalues, not for its eigenvectors")
    assert g is not None
    both = {"compute_left_eigenvectors": True, "compute_right_eigenvectors": True}
    complete = all(attrs[key] for key in both)
    outputs = node.outputs if complete else b.emit(node.op, (x,), {**attrs, **both})
    left, right = b.conj(outputs[1]), outputs[2]
    overlap = b.reduce_sum(b.mul(left, right), (x.ndim - 2,))
    scaled = b.mul(left, _columns(b, b.div(g, overlap), left.shape))
    found = matmul(b, scaled, transposed(b, right))
    return [found if is_complex(x.dtype) else b.real(found)]


def _cubic(factor: float) -> Callable[[Node], int]:
    """`factor` m n min(m, n) for each matrix."""

    def flops(node: Node) -> int:
        x = node.inputs[0]
        return int(factor * x.type.size * min(x.shape[-2:]))

    return flops


OPS: tuple[Op, ...] = (
    primitive_op("lu", vjp=_lu, flops=_cubic(2 / 3)),
    primitive_op("qr", vjp=_qr, flops=_cubic(2)),
    primitive_op("eigh", vjp=_eigh, flops=_cubic(9)),
    primitive_op("svd", vjp=_svd, flops=_cubic(14)),
    *(
        primitive_op(name, flops=_cubic(10))
        for name in ("schur", "hessenberg", "householder_product", "tridiagonal")
    ),
    primitive_op("eig", vjp=_eig, flops=_cubic(25)),
)
