"""Cases of contractions, linear algebra, Fourier transforms and random numbers."""

from collections.abc import Iterator

import jax
import jax.extend.random
import numpy as np
from jax import lax

from ops.draws import complexes, positive, real
from ops.harness import Case


def contractions() -> Iterator[Case]:
    plain = {"precision": None, "preferred_element_type": None}
    for x, y, contract, batch in (
        ((2, 3), (3, 4), ((1,), (0,)), ((), ())),
        ((3, 2), (4, 3), ((0,), (1,)), ((), ())),
        ((2, 5, 3), (3, 4), ((2,), (0,)), ((), ())),
        ((2, 3, 4), (2, 4, 5), ((2,), (1,)), ((0,), (0,))),
        ((3, 2, 4), (5, 4, 2), ((2,), (1,)), ((1,), (2,))),
        ((2, 3, 4), (4, 3, 5), ((1, 2), (1, 0)), ((), ())),
        ((3,), (3,), ((0,), (0,)), ((), ())),
        ((2,), (3,), ((), ()), ((), ())),
        ((3, 3), (3, 3), ((0,), (1,)), ((), ())),
        ((3, 3), (3, 3), ((0,), (0,)), ((), ())),
        ((3, 3, 3), (3, 3, 3), ((0,), (2,)), ((2,), (1,))),
    ):
        attrs = plain | {"dimension_numbers": (contract, batch)}
        yield Case("dot_general", (real(*x), real(*y, seed=1)), attrs)
    matrices = complexes(2, 3), complexes(3, 2, seed=3)
    yield Case("dot_general", matrices, plain | {"dimension_numbers": (((1,), (0,)), ((), ()))})
    yield from convolutions()
    yield from ragged()


def ragged() -> Iterator[Case]:
    """Rows of x in groups, each with its own matrix; the last matrix is skipped, a row left."""
    numbers = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
    attrs = {"ragged_dot_dimension_numbers": numbers, "precision": None}
    attrs |= {"preferred_element_type": None, "group_offset": None}
    x, w, sizes = real(6, 3), real(3, 3, 2, seed=1), np.array([2, 3, 1], np.int32)
    yield Case("ragged_dot_general", (x, w, sizes), attrs, orders=1)
    for label, (x_shape, y_shape, contract, batch, row, group) in RAGGED.items():
        numbers = lax.RaggedDotDimensionNumbers((contract, batch), (row,), group)
        named = attrs | {"ragged_dot_dimension_numbers": numbers}
        operands = real(*x_shape), real(*y_shape, seed=1), sizes
        # JAX has a gradient by rows alone, and none of that.
        by_rows = label in ("batch", "several")
        yield Case("ragged_dot_general", operands, named, label, orders=1, peer=by_rows)


# label: shapes of x and y, contracted and batch dimensions, ragged and group dimension
RAGGED = {
    "batch": ((2, 6, 3), (2, 3, 3, 4), ((2,), (2,)), ((0,), (0,)), 1, (1,)),
    "several": ((2, 6, 3), (3, 3, 2, 4), ((2, 0), (1, 2)), ((), ()), 1, (0,)),
    "sums": ((6, 3), (6, 4), ((0,), (0,)), ((), ()), 0, ()),
    "sums, turned": ((3, 6), (4, 6), ((1,), (1,)), ((), ()), 1, ()),
    "sums in a batch": ((2, 6, 3), (2, 6, 4), ((1,), (1,)), ((0,), (0,)), 1, ()),
}


def convolutions() -> Iterator[Case]:
    numbers = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    plain = {
        "dimension_numbers": numbers,
        "window_strides": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "batch_group_count": 1,
        "precision": None,
        "preferred_element_type": None,
    }
    x, k = real(2, 5, 6, 4), real(3, 3, 4, 2, seed=1)
    yield Case("conv_general_dilated", (x, k), plain, "same")
    strided = plain | {"window_strides": (2, 3), "padding": ((0, 1), (1, 0))}
    yield Case("conv_general_dilated", (x, k), strided, "strided")
    dilated = plain | {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2), "padding": ((2, 1), (0, 3))}
    yield Case("conv_general_dilated", (x, k), dilated, "dilated")
    grouped = x, real(3, 3, 2, 6, seed=1)
    yield Case("conv_general_dilated", grouped, plain | {"feature_group_count": 2}, "grouped")
    batched = x, real(3, 3, 4, 2, seed=1)
    yield Case("conv_general_dilated", batched, plain | {"batch_group_count": 2}, "batch groups")
    yield Case("conv_general_dilated", (x, k), plain | {"rhs_dilation": (9, 9)}, "none fits")


def symmetric(d: np.ndarray) -> np.ndarray:
    return (d + d.swapaxes(-1, -2).conj()) / 2


def definite(*batch: int, n: int = 3) -> np.ndarray:
    x = real(*batch, n, n)
    return x @ x.swapaxes(-1, -2) + n * np.eye(n)


def triangles() -> Iterator[Case]:
    yield Case("cholesky", (definite(),), within=symmetric, seen=np.tril)
    yield Case("cholesky", (definite(2, n=4),), within=symmetric, seen=np.tril)
    x = complexes(3, 3)
    hermitian = x @ x.conj().T + 3 * np.eye(3)
    yield Case("cholesky", (hermitian,), within=symmetric, seen=np.tril, kinks=True)
    a, y = real(3, 3) + 3 * np.eye(3), real(3, 3, seed=1)
    for left in (True, False):
        for lower in (True, False):
            for transpose in (True, False):
                for unit in (True, False):
                    attrs = solve(left, lower, transpose, unit)
                    label = f"{left:d} {lower:d} {transpose:d} {unit:d}"
                    yield Case("triangular_solve", (a, y), attrs, label)
    stack = real(2, 3, 3) + 3 * np.eye(3), real(2, 3, 5)
    yield Case("triangular_solve", stack, solve(True, True, False, False), "batch")
    pair = complexes(3, 3) + 3 * np.eye(3), complexes(3, 2)
    for conjugate in (True, False):
        attrs = solve(True, True, True, False) | {"conjugate_a": conjugate}
        yield Case("triangular_solve", pair, attrs, f"complex {conjugate:d}")


def tridiagonal() -> Iterator[Case]:
    attrs = dict(jax.make_jaxpr(lax.linalg.tridiagonal_solve)(*_bands()).eqns[0].params)
    yield Case("tridiagonal_solve", _bands(), attrs)
    yield Case("tridiagonal_solve", _bands(2), attrs, "batch")


def _bands(*batch: int) -> tuple[np.ndarray, ...]:
    low, high = real(*batch, 5), real(*batch, 5, seed=1)
    low[..., 0] = high[..., -1] = 0
    return low, real(*batch, 5) + 5, high, real(*batch, 5, 2)


def solve(left: bool, lower: bool, transpose: bool, unit: bool) -> dict:
    return {
        "left_side": left,
        "lower": lower,
        "transpose_a": transpose,
        "conjugate_a": False,
        "unit_diagonal": unit,
    }


def factorisations() -> Iterator[Case]:
    for shape in ((3, 3), (4, 3), (3, 5), (2, 3, 3)):
        yield Case("lu", (real(*shape),))
    yield Case("lu", (complexes(3, 3),))
    thin = {"pivoting": False, "full_matrices": False, "use_magma": None}
    for shape in ((3, 3), (4, 3), (2, 4, 3), (3, 5), (2, 3, 4), (0, 3), (3, 0)):
        yield Case("qr", (real(*shape),), thin)
    for shape in ((3, 3), (5, 3), (2, 4, 2), (3, 5)):
        yield Case("qr", (real(*shape),), thin | {"full_matrices": True}, f"full {shape}")
        yield Case("qr", (complexes(*shape),), thin, f"complex {shape}")
        # JAX permutes the columns of a batch by all permutations at once.
        pivoted, single = thin | {"pivoting": True}, len(shape) == 2
        yield Case("qr", (real(*shape),), pivoted, f"pivoted {shape}", peer=single)
    full = thin | {"full_matrices": True}
    yield Case("qr", (complexes(5, 3),), full | {"pivoting": True}, "complex, full, pivoted")
    attrs = {"lower": True, "sort_eigenvalues": True, "subset_by_index": None, "algorithm": None}
    yield Case("eigh", (symmetric(real(3, 3)),), attrs, within=symmetric)
    yield Case("eigh", (symmetric(real(2, 4, 4)),), attrs, within=symmetric)
    yield Case("eigh", (symmetric(complexes(3, 3)),), attrs, "phase", within=symmetric, kinks=True)
    attrs = {"full_matrices": False, "subset_by_index": None, "algorithm": None}
    for shape in ((3, 3), (4, 3), (3, 4), (2, 3, 3)):
        yield Case("svd", (real(*shape),), attrs | {"compute_uv": True})
        yield Case("svd", (real(*shape),), attrs | {"compute_uv": False}, f"values {shape}")
        # Complex vectors have a phase that LAPACK chooses and no derivative sees.
        both, label = attrs | {"compute_uv": True}, f"complex {shape}"
        yield Case("svd", (complexes(*shape),), both, label, kinks=True)
    values = attrs | {"compute_uv": False}
    yield Case("svd", (complexes(4, 3),), values, "complex values")
    square = attrs | {"compute_uv": True, "full_matrices": True}
    yield Case("svd", (real(3, 3),), square, "full, square")
    vectors = {"compute_schur_vectors": True, "sort_eig_vals": False, "select_callable": None}
    yield Case("schur", (real(3, 3),), vectors)
    yield Case("hessenberg", (real(3, 3),))
    yield Case("householder_product", (real(3, 3), real(3)))
    yield Case("tridiagonal", (definite(),), {"lower": True})
    yield from eigenvectors()


def eigenvectors() -> Iterator[Case]:
    """JAX has second derivatives of the values where those of the vectors are allowed."""
    for n in (3, 4):
        yield Case("eig", (real(n, n),), _eig(False, False), orders=1)
    yield Case("eig", (real(2, 3, 3),), _eig(False, False, True))
    for x, label in ((real(3, 3), "real"), (real(4, 4), "pairs"), (complexes(3, 3), "complex")):
        for left, right in ((False, True), (True, False), (True, True)):
            attrs = _eig(left, right, True)
            yield Case("eig", (x,), attrs, f"{label}, vectors {left:d} {right:d}")


def _eig(left: bool, right: bool, vectors: bool = False) -> dict:
    def eig(x):
        sides = {"compute_left_eigenvectors": left, "compute_right_eigenvectors": right}
        return lax.linalg.eig(x, **sides, enable_eigvec_derivs=vectors)

    return dict(jax.make_jaxpr(eig)(np.zeros((3, 3))).eqns[0].params)


def fourier() -> Iterator[Case]:
    for n in (4, 5):
        for kind in (lax.FftType.FFT, lax.FftType.IFFT):
            attrs = {"fft_type": kind, "fft_lengths": (n,)}
            yield Case("fft", (complexes(2, n),), attrs, f"{kind.name} {n}")
        attrs = {"fft_type": lax.FftType.RFFT, "fft_lengths": (3, n)}
        yield Case("fft", (real(2, 3, n),), attrs, f"RFFT {n}")
        attrs = {"fft_type": lax.FftType.IRFFT, "fft_lengths": (3, n)}
        yield Case("fft", (complexes(2, 3, n // 2 + 1),), attrs, f"IRFFT {n}")


def random() -> Iterator[Case]:
    key, impl = jax.random.key(0), jax.extend.random.threefry_prng_impl
    words = np.array([1, 2], np.uint32)
    yield Case("random_seed", (np.int32(7),), {"impl": impl})
    yield Case("random_bits", (key,), {"bit_width": 32, "shape": (3,)})
    yield Case("random_fold_in", (key, np.uint32(3)))
    yield Case("random_split", (key,), {"shape": (2,)})
    yield Case("random_wrap", (words,), {"impl": impl})
    yield Case("random_unwrap", (key,))
    yield Case("random_clone", (key,))
    yield Case("threefry2x32", (words[0], words[1], words, words))
    default = {"dtype": np.dtype(np.uint32), "algorithm": lax.RandomAlgorithm.RNG_DEFAULT}
    yield Case("rng_bit_generator", (np.arange(4, dtype=np.uint32),), {"shape": (3,), **default})
    yield Case("rng_uniform", (np.float32(0), np.float32(1)), {"shape": (2,)})
    keys = jax.random.split(key, 3)
    for log_space in (True, False):
        attrs = {"log_space": log_space}
        yield Case("random_gamma", (keys, positive(3)), attrs, wrt=(1,), kinks=True, orders=1)
    yield Case("random_gamma_grad", (positive(3), positive(3, seed=1)))


CASES = (*contractions(), *triangles(), *tridiagonal(), *factorisations(), *fourier(), *random())
