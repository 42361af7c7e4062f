"""How much arithmetic each op is said to do, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import backpass as bp
from ops.draws import positive


def convolution(x, k, **options):
    return lax.conv_general_dilated(x, k, (1,), [(0, 0)], **options)


def mapped(x):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    return jax.shard_map(lambda x: jnp.sin(x) * 2, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x)


def transform(x):
    return lax.fft(x, "FFT", x.shape[-1:])


ROWS = np.array([[0], [2], [2]])

# The op, operands' shapes, and operations: a multiply-add counts as two.
CASES = {
    "products of a batch": (jnp.matmul, [(5, 2, 3), (5, 3, 7)], 2 * 5 * 2 * 3 * 7),
    "a convolution": (convolution, [(2, 6, 8), (4, 6, 3)], 2 * (2 * 4 * 6) * 6 * 3),
    "one in two groups": (
        lambda x, k: convolution(x, k, feature_group_count=2),
        [(2, 6, 8), (4, 3, 3)],
        2 * (2 * 4 * 6) * 3 * 3,
    ),
    "one of spread rows": (
        lambda x, k: convolution(x, k, lhs_dilation=(2,)),
        [(1, 3, 5), (4, 3, 3)],
        2 * (4 * 7) * 3 * 3 // 2,
    ),
    "one of one feature": (convolution, [(2, 6, 8), (1, 6, 3)], 2 * (2 * 1 * 6) * 6 * 3),
    "one without features": (convolution, [(2, 6, 8), (0, 6, 3)], 0),
    "groups of rows": (
        lambda x, y: lax.ragged_dot(x, y, np.array([3, 4])),
        [(7, 5), (2, 5, 3)],
        2 * 7 * 5 * 3,
    ),
    "pairs in order": (lambda x: lax.sort(x, dimension=0), [(2, 5)], 10),
    "a row in order": (lambda x: lax.sort(x), [(3, 9)], 27 * 4),
    "one number in order": (lambda x: lax.sort(x), [(1,)], 1),
    "the largest": (lambda x: lax.top_k(x, 2), [(3, 9)], 27),
    "sums so far": (lambda x: lax.cumsum(x), [(3, 4)], 12),
    "a maximum": (lambda x: lax.reduce_max(x, (0,)), [(3, 4)], 12),
    "where it is": (lambda x: lax.argmax(x, 0, np.int32), [(3, 4)], 12),
    "sums of windows": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (2, 1), "VALID"),
        [(6, 5)],
        (3 * 3) * (2 * 3),
    ),
    "added rows": (lambda x, y: x.at[ROWS[:, 0]].add(y), [(5, 4), (3, 4)], 12),
    "put rows": (lambda x, y: x.at[ROWS[:, 0]].set(y), [(5, 4), (3, 4)], 12),
    "LU": (lambda x: lax.linalg.lu(x), [(2, 6, 3)], 2 * 6 * 3 * 3 * 2 // 3),
    "QR": (lambda x: lax.linalg.qr(x), [(4, 3)], 2 * 4 * 3 * 3),
    "singular values": (lambda x: lax.linalg.svd(x), [(2, 5)], 14 * 2 * 5 * 2),
    "eigenvalues": (lambda x: lax.linalg.eigh(x), [(3, 3)], 9 * 3**3),
    "eigenvalues of any matrix": (lambda x: lax.linalg.eig(x), [(3, 3)], 25 * 3**3),
    "Schur": (lambda x: lax.linalg.schur(x), [(3, 3)], 10 * 3**3),
    "Cholesky": (lambda x: lax.linalg.cholesky(x), [(2, 6, 6)], 2 * 6**3 // 3),
    "a triangular system": (lax.linalg.triangular_solve, [(3, 3), (5, 3)], 3 * (5 * 3)),
    "a tridiagonal system": (
        lax.linalg.tridiagonal_solve, [(4,), (4,), (4,), (4, 2)], 9 * (4 * 2)
    ),
    "a transform": (transform, [(3, 8)], 5 * (3 * 8) * 3),
    "one of two numbers": (transform, [(3, 2)], 5 * (3 * 2)),
    "one of one number": (transform, [(3, 1)], 3),
    "a transform of reals": (lambda x: jnp.fft.rfft(x), [(3, 8)], 5 * (3 * 8) * 3),
    "one back to reals": (lambda x: jnp.fft.irfft(x), [(3, 5)], 5 * (3 * 8) * 3),
    "a share of a device": (mapped, [(6, 2)], 2 * (3 * 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_arithmetic(name: str) -> None:
    f, shapes, want = CASES[name]
    graph = bp.compile(f).trace(*(positive(*shape).astype(np.float32) for shape in shapes)).graph
    counts = [node.op.flops(node) for node in graph.walk()]
    assert max(counts) == want
