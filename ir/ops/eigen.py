"""Eigenvalues and eigenvectors, of symmetric matrices and of any.

As in JAX, equal eigenvalues give infinite gradients of the vectors: these are not functions of
the matrix there.

Source: Giles, "Collected matrix derivative results", 2008, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MissingRuleError
from ..op import Cts, Op, primitive_op
from ..types import is_complex
from .factor import as_diagonal, columns, cubic, gaps, right_solve
from .linalg import adjoint, matmul, transposed

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value


def _eigh(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A = V w V^H:  conj(V) (diag(g_w) + F * (V^T g_V)) V^T with F = 1 / (w_j - w_i)."""
    (g_v, g_w), (v, w), (x,) = cts, node.outputs, node.inputs
    if v.shape != x.shape:
        raise MissingRuleError("eigh of a part of the spectrum (subset_by_index) has no VJP")
    core: list[Value] = []
    if g_v is not None:
        core.append(b.mul(b.convert(gaps(b, w), v.dtype), matmul(b, transposed(b, v), g_v)))
    if g_w is not None:
        core.append(as_diagonal(b, b.convert(g_w, v.dtype)))
    return [matmul(b, matmul(b, b.conj(v), b.sum(core)), transposed(b, v))]


def _eig(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """A V = V w, conjugated at both ends:  V^-H (diag(g_w) + conj(F) * (V^H h)) V^H.

    F = 1 / (w_j - w_i) and h = g_V less what the normalisation takes, see `_normalised`. The left
    vectors are the right ones of A^H, whose eigenvalues are conjugated.
    """
    (g_w, *vectors), (x,), attrs = cts, node.inputs, node.attrs
    wanted = any(ct is not None for ct in vectors)
    if wanted and not attrs.get("enable_eigvec_derivs", True):
        raise MissingRuleError(
            "eig has a VJP for its eigenvectors only where the program vouches for them: their "
            "phase and order are LAPACK's choice; pass enable_eigvec_derivs=True to "
            "jax.lax.linalg.eig"
        )
    left, right = (attrs[f"compute_{side}_eigenvectors"] for side in ("left", "right"))
    w, *found = node.outputs
    if not right:
        known = {**attrs, "compute_left_eigenvectors": False, "compute_right_eigenvectors": True}
        if "enable_eigvec_derivs" in attrs:
            known["enable_eigvec_derivs"] = True
        found.append(b.emit(node.op, (x,), known)[1])
    g_left = vectors[0] if left else None
    g_right = vectors[-1] if right else None
    parts: list[Value] = []
    if g_w is not None or g_right is not None:
        parts.append(_of_right(b, w, found[-1], g_w, g_right))
    if g_left is not None:
        parts.append(adjoint(b, _of_right(b, b.conj(w), found[0], None, g_left)))
    total = b.conj(b.sum(parts))
    return [total if is_complex(x.dtype) else b.real(total)]


def _of_right(b: Builder, w: Value, v: Value, g_w: Value | None, g_v: Value | None) -> Value:
    """Cotangent of A by its eigenvalues and right eigenvectors."""
    core: list[Value] = [] if g_w is None else [as_diagonal(b, b.conj(g_w))]
    if g_v is not None:
        free = _normalised(b, v, b.conj(g_v))
        core.append(b.mul(b.conj(gaps(b, w)), matmul(b, adjoint(b, v), free)))
    y = matmul(b, b.sum(core), adjoint(b, v))
    return adjoint(b, right_solve(b, v, adjoint(b, y)))


def _normalised(b: Builder, v: Value, g: Value) -> Value:
    """g - Re(q) v - i Im(q) / v_k at k, with q = v^H g for each column.

    LAPACK's vectors have length one and a real largest component, the k-th.
    """
    q = b.reduce_sum(b.mul(b.conj(v), g), (v.ndim - 2,))
    size = b.one("abs", v)
    largest = b.one("argmax", size, axes=(v.ndim - 2,), index_dtype=np.dtype(np.int32))
    row = b.iota(np.int32, v.shape, v.ndim - 2)
    here = b.eq(row, columns(b, largest, v.shape))
    real = b.real(v)
    turn = b.div(columns(b, b.imag(q), v.shape), b.select(here, real, b.ones(real)))
    turn = b.select(here, turn, b.zeros(turn))
    length = b.mul(v, columns(b, b.convert(b.real(q), v.dtype), v.shape))
    return b.sub(b.sub(g, length), b.complex(b.zeros(turn), turn))


OPS: tuple[Op, ...] = (
    primitive_op("eigh", vjp=_eigh, flops=cubic(9)),
    primitive_op("eig", vjp=_eig, flops=cubic(25)),
)
