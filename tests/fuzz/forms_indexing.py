"""Forms that read and write at indices, sort, and transform."""

import numpy as np

from fuzz.draft import Draft, Rejected


def _rows(d: Draft, ndim: int = 1) -> int:
    return d.real(lambda x: x.ndim >= ndim and 0 < x.size)


def _places(d: Draft, n: int, count: int, unique: bool = False) -> list[int]:
    if unique:
        return [int(i) for i in d.rng.permutation(n)[:count]]
    return [d.integer(-1 if d.chance(0.1) else 0, n - 1) for _ in range(count)]


def take(d: Draft) -> None:
    i = _rows(d)
    x = d.values[i]
    axis = d.integer(0, x.ndim - 1)
    where = d.one_of(
        str(d.integer(0, x.shape[axis] - 1)), f"np.array({_places(d, x.shape[axis], 3)})"
    )
    mode = d.one_of("None", "'clip'", "'wrap'", "'fill'")
    if mode == "'fill'":
        where = where.replace("-1", "0")
    d.emit(f"jnp.take($0, {where}, axis={axis}, mode={mode})", i)


def brackets(d: Draft) -> None:
    """Rows by numbers, by an array of numbers that was computed, by a mask's first entry."""
    i = _rows(d)
    n = d.values[i].shape[0]
    if d.chance(0.5):
        j = d.pick(lambda y: y.dtype == np.int32 and y.size < 5)
        d.emit(f"$0[$1 % {n}]", i, j)
    else:
        expr = d.one_of("$0[0]", "$0[-1]", "$0[..., 0]", "$0[None]", "$0[::-1]", "$0[..., ::2]")
        d.emit(expr, i)


def along(d: Draft) -> None:
    i = _rows(d)
    x = d.values[i]
    axis = d.integer(0, x.ndim - 1)
    count = d.one_of(1, 2, 3)
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    places = d.rng.integers(0, x.shape[axis], shape).tolist()
    d.emit(f"jnp.take_along_axis($0, np.array({places}), axis={axis})", i)


def gather_points(d: Draft) -> None:
    i = _rows(d, 2)
    n, m = d.values[i].shape[:2]
    a, b = _places(d, n, 3), _places(d, m, 3)
    d.emit(f"$0[np.array({a}), np.array({b})]", i)


def windows(d: Draft) -> None:
    """A gather of whole windows, some of which reach outside."""
    i = d.real(lambda x: x.ndim == 2 and x.shape[0] > 1)
    n, m = d.values[i].shape
    size = d.integer(1, n)
    starts = [[d.integer(-1, n)] for _ in range(d.integer(1, 2))]
    mode = d.one_of("'clip'", "'fill'")
    numbers = "lax.GatherDimensionNumbers((1, 2), (), (0,))"
    fill = f", fill_value={d.number()}" if mode == "'fill'" else ""
    d.emit(f"lax.gather($0, np.array({starts}), {numbers}, ({size}, {m}), mode={mode}{fill})", i)


def dynamic(d: Draft) -> None:
    i = _rows(d)
    shape = d.values[i].shape
    starts = ", ".join(str(d.integer(-1, n)) for n in shape)
    sizes = tuple(d.integer(1, n) for n in shape)
    d.emit(f"lax.dynamic_slice($0, ({starts},), {sizes})", i)


def dynamic_computed(d: Draft) -> None:
    i = _rows(d)
    j = d.pick(lambda y: y.dtype == np.int32 and y.shape == ())
    d.emit("lax.dynamic_index_in_dim($0, $1, 0, keepdims=False)", i, j)


def update(d: Draft) -> None:
    i = _rows(d)
    x = d.values[i]
    j = d.real(
        lambda y: (
            y.dtype == x.dtype
            and y.ndim == x.ndim
            and all(a <= b for a, b in zip(y.shape, x.shape, strict=True))
        )
    )
    starts = ", ".join(str(d.integer(-1, n)) for n in x.shape)
    d.emit(f"lax.dynamic_update_slice($0, $1, ({starts},))", i, j)


def scatter(d: Draft) -> None:
    """`x.at[rows].op(updates)`; repeated rows where the op allows it."""
    i = _rows(d)
    x = d.values[i]
    op = d.one_of("set", "add", "subtract", "multiply", "min", "max")
    j = d.real(lambda y: y.dtype == x.dtype and y.shape[1:] == x.shape[1:] and y.ndim == x.ndim)
    y = d.values[j]
    if y.shape[0] == 0:
        raise Rejected
    unique = op == "multiply" or d.chance(0.3)
    rows = _places(d, x.shape[0], y.shape[0], unique)
    if len(rows) < y.shape[0]:
        raise Rejected
    if op in ("min", "max"):
        parts = np.concatenate([x.ravel(), y.ravel()])
        if i == j or (d.exact and np.any(np.diff(np.sort(parts)) < 0.02)):
            raise Rejected
    options = ", unique_indices=True" if unique and min(rows) >= 0 else ""
    mode = d.one_of("", ", mode='drop'", ", mode='clip'") if min(rows) >= 0 else ""
    d.emit(f"$0.at[np.array({rows})].{op}($1{options}{mode})", i, j)


def scatter_point(d: Draft) -> None:
    i = _rows(d)
    x = d.values[i]
    at = ", ".join(str(d.integer(0, n - 1)) for n in x.shape)
    op = d.one_of("set", "add", "multiply")
    j = d.real(lambda y: y.dtype == x.dtype and y.shape == ())
    d.emit(f"$0.at[{at}].{op}($1)", i, j)


def sort(d: Draft) -> None:
    i = d.distinct(_rows(d))
    x = d.values[i]
    axis = d.integer(0, x.ndim - 1)
    if d.chance(0.4):
        d.emit(f"lax.sort($0, dimension={axis})", i)
        return
    if d.exact:
        line = np.sort(x, axis=axis)
        if np.any(np.diff(line, axis=axis) < 0.02):
            raise Rejected
    j = d.pick(lambda y: y.shape == x.shape and y.dtype.kind in "fi")
    d.emit(f"lax.sort(($0, $1), dimension={axis}, num_keys=1)", i, j, outs=2)


def argsort(d: Draft) -> None:
    i = d.distinct(_rows(d))
    d.emit("jnp.argsort($0, axis=-1).astype(np.int32)", i)


def top_k(d: Draft) -> None:
    i = d.distinct(_rows(d))
    n = d.values[i].shape[-1]
    if d.chance(0.8):
        d.emit(f"lax.top_k($0, {d.integer(1, n)})", i, outs=2)
    else:
        d.emit(f"lax.approx_max_k($0, {d.integer(1, n)})", i, outs=2)


def fourier(d: Draft) -> None:
    real = d.chance(0.4)
    axes = d.one_of(1, 1, 2)
    kind = "f" if real else "c"
    i = d.pick(
        lambda x: (
            x.dtype.kind == kind
            and x.ndim >= axes
            and x.size
            and x.dtype.itemsize == (8 if real else 16)
        )
    )
    shape = d.values[i].shape[-axes:]
    if real:
        d.emit(f"lax.fft($0, 'rfft', {shape})", i)
        return
    last = shape[-1]
    size = d.one_of(2 * last - 2, 2 * last - 1)
    lengths = (*shape[:-1], size)
    if d.chance(0.35) and size > 0:
        d.emit(f"lax.fft($0, 'irfft', {lengths})", i)
    else:
        d.emit(f"lax.fft($0, '{d.one_of('fft', 'ifft')}', {shape})", i)


FORMS = (
    (1, take), (1.2, brackets), (1, along), (0.5, gather_points), (0.7, windows),
    (0.8, dynamic), (0.7, dynamic_computed), (1, update), (2, scatter), (0.7, scatter_point),
    (1, sort), (0.5, argsort), (0.8, top_k), (1, fourier),
)  # fmt: skip
