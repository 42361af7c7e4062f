"""Forms of linear algebra, on matrices made well-conditioned, and of random numbers."""

import numpy as np

from fuzz.draft import Draft, Rejected


def _matrix(d: Draft, square: bool = True, kind: str = "f") -> int:
    def fits(x: np.ndarray) -> bool:
        shape = x.shape[-2:]
        fit = len(shape) == 2 and min(shape) > 1 and (shape[0] == shape[1] or not square)
        return fit and x.dtype.kind == kind and x.dtype.itemsize in (8, 16)

    return d.pick(fits)


def make_square(d: Draft) -> None:
    i = d.real(lambda x: x.ndim == 2 and x.shape[0] > 1 and x.dtype == np.float64)
    d.emit(d.one_of("$0 @ $0.T", "$0.T @ $0"), i)


def make_complex_square(d: Draft) -> None:
    i = d.real(lambda x: x.shape in ((2, 2), (3, 3)) and x.dtype == np.float64)
    d.emit("lax.complex($0, $0.T)", i)


def _regular(d: Draft, x: np.ndarray, gap: float = 0.2) -> None:
    """Reject what is near a singular matrix, and functions whose examples tell nothing of that."""
    if d.depth or np.min(np.linalg.svd(x, compute_uv=False)) < gap:
        raise Rejected


def _definite(d: Draft, i: int) -> int:
    n = d.values[i].shape[-1]
    return d.emit(f"$0 @ jnp.swapaxes($0, -1, -2).conj() + {n} * np.eye({n})", i)


def _dominant(d: Draft, i: int) -> int:
    n = d.values[i].shape[-1]
    return d.emit(f"0.5 * $0 + {2 * n} * np.eye({n})", i)


def cholesky(d: Draft) -> None:
    i = _matrix(d, kind=d.one_of("f", "f", "c"))
    d.emit("lax.linalg.cholesky($0)", _definite(d, i))


def triangular(d: Draft) -> None:
    i = _matrix(d, kind=d.one_of("f", "f", "c"))
    x = d.values[i]
    i = _dominant(d, i)
    left = d.chance(0.5)
    n = x.shape[-1]
    j = d.pick(
        lambda y: (
            y.dtype == x.dtype
            and y.ndim == x.ndim
            and y.shape[:-2] == x.shape[:-2]
            and y.shape[-2 if left else -1] == n
        )
    )
    flags = "lower transpose_a conjugate_a unit_diagonal".split()
    options = ", ".join(f"{name}={d.chance(0.5)}" for name in flags)
    if "conjugate_a=True" in options and x.dtype.kind != "c":
        options = options.replace("conjugate_a=True", "conjugate_a=False")
    d.emit(f"lax.linalg.triangular_solve($0, $1, left_side={left}, {options})", i, j)


def tridiagonal(d: Draft) -> None:
    i = d.real(lambda x: x.ndim == 1 and x.size > 2 and x.dtype == np.float64)
    n = d.values[i].size
    j, k = d.like(i), d.real(lambda y: y.ndim == 2 and y.shape[0] == n and y.dtype == np.float64)
    d.emit(
        "lax.linalg.tridiagonal_solve($0.at[0].set(0.0), jnp.sin($1) + 5.0, "
        "$1.at[-1].set(0.0), $2)",
        i,
        j,
        k,
    )


def solve(d: Draft) -> None:
    i = _matrix(d)
    x = d.values[i]
    n = x.shape[-1]
    i = _dominant(d, i)
    j = d.real(lambda y: y.dtype == x.dtype and y.shape[0:1] == (n,) and y.ndim < 3)
    if x.ndim > 2:
        raise Rejected
    d.emit("jnp.linalg.solve($0, $1)", i, j)


def numbers(d: Draft) -> None:
    i = _dominant(d, _matrix(d))
    d.emit(d.one_of("jnp.linalg.inv($0)", "jnp.linalg.det($0)", "jnp.linalg.slogdet($0)[1]"), i)


def lu(d: Draft) -> None:
    i = _matrix(d, square=d.chance(0.5))
    x = d.values[i]
    _regular(d, x)
    d.emit("lax.linalg.lu($0)", i, outs=3)


def qr(d: Draft) -> None:
    i = _matrix(d, square=False)
    x = d.values[i]
    if x.shape[-2] < x.shape[-1]:
        i = d.emit("jnp.swapaxes($0, -1, -2)", i)
    _regular(d, x)
    d.emit("jnp.linalg.qr($0)", i, outs=2)


def eigh(d: Draft) -> None:
    i = _matrix(d)
    x = d.values[i]
    if d.depth:
        raise Rejected
    w = np.linalg.eigvalsh((x + x.swapaxes(-1, -2)) / 2)
    if np.any(np.diff(w, axis=-1) < 0.2):
        raise Rejected
    if d.chance(0.5):
        d.emit("lax.linalg.eigh($0 + jnp.swapaxes($0, -1, -2))[1]", i)
    else:
        d.emit("lax.linalg.eigh($0 + jnp.swapaxes($0, -1, -2))", i, outs=2)


def svd(d: Draft) -> None:
    i = _matrix(d, square=False)
    _regular(d, d.values[i])
    s = np.linalg.svd(d.values[i], compute_uv=False)
    if np.any(-np.diff(s, axis=-1) < 0.2):
        raise Rejected
    if d.chance(0.4):
        d.emit("jnp.linalg.svd($0, compute_uv=False)", i)
    else:
        d.emit("jnp.linalg.svd($0, full_matrices=False)", i, outs=3)


def eigenvalues(d: Draft) -> None:
    """Far from each other; their order is LAPACK's, so a symmetric function of them."""
    i = _matrix(d)
    x = d.values[i]
    if d.depth or x.ndim > 2:
        raise Rejected
    w = np.linalg.eigvals(x)
    if np.min(np.abs(w[:, None] - w) + 9 * np.eye(len(w))) < 0.3:
        raise Rejected
    d.emit("jnp.sum(jnp.exp(jnp.linalg.eigvals($0)))", i)


def norms(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0 and np.linalg.norm(x) > 0.3)
    d.emit("jnp.linalg.norm($0)", i)


def noise(d: Draft) -> None:
    """Constants that a generator makes."""
    seed = d.integer(0, 99)
    shape = d.one_of((2,), (3,), (2, 3))
    name = d.one_of("normal", "uniform")
    key = d.one_of(
        f"jax.random.key({seed})",
        f"jax.random.fold_in(jax.random.key({seed}), 1)",
        f"jax.random.split(jax.random.key({seed}))[0]",
    )
    d.emit(
        f"jax.random.{name}({key}, {shape})",
    )


def gamma(d: Draft) -> None:
    """A sample by its concentration."""
    if d.exact:  # the sampler rejects, and its derivative is by the distribution
        raise Rejected
    i = d.within(d.real(lambda x: 0 < x.size < 5 and x.dtype == np.float64), 0.7, 3.0)
    name = d.one_of("gamma", "loggamma")
    d.emit(f"jax.random.{name}(jax.random.key({d.integer(0, 3)}), $0)", i)


FORMS = (
    (1, make_square), (0.5, make_complex_square), (0.6, cholesky), (1, triangular),
    (0.6, tridiagonal), (0.5, solve), (0.4, numbers), (0.5, lu), (0.5, qr), (0.5, eigh),
    (0.5, svd), (0.3, eigenvalues), (0.5, norms), (0.15, noise), (0.05, gamma),
)  # fmt: skip
