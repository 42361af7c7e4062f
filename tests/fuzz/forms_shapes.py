"""Forms that move elements, reduce, accumulate, and multiply matrices."""

from functools import partial

import numpy as np

from fuzz.draft import Draft, Rejected

# Ties at every point, and smooth all the same: each element ties with itself.
TWICE = "jnp.repeat($0, 2, axis="


def _any(d: Draft, ndim: int = 0) -> int:
    """A value to move about: mostly real, sometimes complex or of integers."""
    kinds = "f" if d.chance(0.8) else "fcib"
    return d.pick(lambda x: x.dtype.kind in kinds and x.ndim >= ndim and x.size > 0)


def _axes(d: Draft, ndim: int, least: int = 0) -> tuple[int, ...]:
    count = d.integer(min(least, ndim), ndim)
    return tuple(sorted(int(i) for i in d.rng.permutation(ndim)[:count]))


def reshape(d: Draft) -> None:
    i = _any(d)
    size = d.values[i].size
    shapes = [(size,), (1, size), (size, 1)]
    shapes += [(a, size // a) for a in range(2, size) if size % a == 0]
    shapes += [(2, size // 4, 2)] if size % 4 == 0 else []
    order = tuple(int(k) for k in d.rng.permutation(d.values[i].ndim))
    turned = f", {order}" if d.chance(0.3) else ""
    d.emit(f"lax.reshape($0, {d.one_of(*shapes)}{turned})", i)


def transpose(d: Draft) -> None:
    i = _any(d, 2)
    order = tuple(int(k) for k in d.rng.permutation(d.values[i].ndim))
    d.emit(f"lax.transpose($0, {order})", i)


def rev(d: Draft) -> None:
    i = _any(d, 1)
    d.emit(f"lax.rev($0, {_axes(d, d.values[i].ndim, 1)})", i)


def squeeze(d: Draft) -> None:
    i = d.pick(lambda x: 1 in x.shape)
    ones = tuple(k for k, n in enumerate(d.values[i].shape) if n == 1)
    d.emit(f"lax.squeeze($0, {ones[: d.integer(1, len(ones))]})", i)


def expand(d: Draft) -> None:
    i = _any(d)
    d.emit(f"lax.expand_dims($0, ({d.integer(0, d.values[i].ndim)},))", i)


def broadcast(d: Draft) -> None:
    i = _any(d)
    x = d.values[i]
    shape, dims = [], []
    for n in x.shape:
        if d.chance(0.4):
            shape.append(d.one_of(1, 2))
        dims.append(len(shape))
        shape.append(d.one_of(2, 3) if n == 1 else n)
    if d.chance(0.3):
        shape.append(2)
    d.emit(f"lax.broadcast_in_dim($0, {tuple(shape)}, {tuple(dims)})", i)


def cut(d: Draft) -> None:
    i = _any(d, 1)
    starts, limits, steps = [], [], []
    for n in d.values[i].shape:
        a, b = sorted((d.integer(0, n), d.integer(0, n)))
        whole = d.chance(0.5) or a == b
        starts.append(0 if whole else a)
        limits.append(n if whole else b)
        steps.append(d.one_of(1, 1, 2, 3))
    d.emit(f"lax.slice($0, {tuple(starts)}, {tuple(limits)}, {tuple(steps)})", i)


def pad(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0)
    x = d.values[i]
    config = tuple((d.integer(-1, 2), d.integer(-1, 2), d.one_of(0, 0, 1, 2)) for _ in x.shape)
    j = d.pick(lambda y: y.shape == () and y.dtype == x.dtype)
    if d.chance(0.5):
        d.emit(f"lax.pad($0, $1, {config})", i, j)
    else:
        d.emit(f"lax.pad($0, np.{x.dtype.name}({d.number()}), {config})", i)


def concatenate(d: Draft) -> None:
    i = _any(d, 1)
    x = d.values[i]
    axis = d.integer(0, x.ndim - 1)

    def fits(y: np.ndarray) -> bool:
        same = y.ndim == x.ndim and y.dtype == x.dtype
        return same and all(y.shape[k] == n for k, n in enumerate(x.shape) if k != axis)

    parts = [i, *(d.pick(fits) for _ in range(d.integer(1, 2)))]
    listed = ", ".join(f"${k}" for k in range(len(parts)))
    d.emit(f"lax.concatenate([{listed}], {axis})", *parts)


def stack(d: Draft) -> None:
    i = _any(d)
    parts = [i, *(d.like(i) for _ in range(d.integer(1, 2)))]
    listed = ", ".join(f"${k}" for k in range(len(parts)))
    name = d.one_of("jnp.stack", "lax.stack")
    d.emit(f"{name}([{listed}], axis={d.integer(0, d.values[i].ndim)})", *parts)


def split(d: Draft) -> None:
    i = d.pick(lambda x: x.dtype.kind in "fc" and x.ndim > 0 and max(x.shape) > 1)
    shape = d.values[i].shape
    axis = int(np.argmax(shape))
    at = d.integer(1, shape[axis] - 1)
    d.emit(f"lax.split($0, ({at}, {shape[axis] - at}), axis={axis})", i, outs=2)


def unstack(d: Draft) -> None:
    i = d.pick(lambda x: x.dtype.kind in "fc" and x.ndim > 0 and 1 < min(x.shape))
    shape = d.values[i].shape
    axis = d.integer(0, len(shape) - 1)
    d.emit(f"lax.unstack($0, axis={axis})", i, outs=shape[axis])


def tile(d: Draft) -> None:
    i = _any(d, 1)
    reps = tuple(d.one_of(1, 2) for _ in d.values[i].shape)
    d.emit(f"{d.one_of('lax', 'jnp')}.tile($0, {reps})", i)


def repeat(d: Draft) -> None:
    d.emit("jnp.repeat($0, 2, axis=0)", _any(d, 1))


def roll(d: Draft) -> None:
    d.emit(f"jnp.roll($0, {d.integer(-2, 2)}, axis=-1)", _any(d, 1))


def reduce(name: str, d: Draft) -> None:
    i = d.real(lambda x: x.size > 0)
    x = d.values[i]
    axes, operand = _axes(d, x.ndim), "$0"
    if name in ("max", "min"):
        d.distinct(i)
        if 0 in axes and d.chance(0.3):
            operand = f"{TWICE}0)"
    d.emit(
        f"bind('reduce_{name}', [$0], {{'axes': {axes}, 'out_sharding': None}})[0]"
        if name == "sum"
        else f"jnp.{name}({operand}, axis={axes})",
        i,
    )


def statistics(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0)
    axis = d.integer(0, d.values[i].ndim - 1)
    name = d.one_of("mean", "var", "ptp", "cumsum")
    if name == "ptp":
        d.distinct(i)
    d.emit(f"jnp.{name}($0, axis={axis})", i)


def positions(d: Draft) -> None:
    i = d.distinct(d.real(lambda x: x.ndim > 0 and x.size > 0))
    axis = d.integer(0, d.values[i].ndim - 1)
    d.emit(f"lax.{d.one_of('argmax', 'argmin')}($0, {axis}, np.int32)", i)


def logical(d: Draft) -> None:
    i = d.pick(lambda x: x.dtype == bool)
    d.emit(d.one_of("jnp.any($0)", "jnp.all($0)", "~$0", "$0 | True", "$0.sum(dtype=np.int32)"), i)


def running(name: str, d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0)
    axis = d.integer(0, d.values[i].ndim - 1)
    operand = "$0"
    if name in ("cummax", "cummin"):
        d.distinct(i)
        if d.chance(0.3):
            operand = f"{TWICE}{axis})"
    d.emit(f"lax.{name}({operand}, axis={axis}, reverse={d.chance(0.5)})", i)


def dot(d: Draft) -> None:
    """`dot_general` over dimensions that happen to match."""
    kind = "f" if d.chance(0.85) else "c"
    i = d.pick(lambda x: x.dtype.kind == kind and x.ndim > 0)
    x = d.values[i]
    j = d.pick(lambda y: y.dtype == x.dtype and y.ndim > 0 and bool(set(x.shape) & set(y.shape)))
    left, right = list(range(x.ndim)), list(range(d.values[j].ndim))
    contract: list[tuple[int, int]] = []
    batch: list[tuple[int, int]] = []
    for _ in range(d.integer(1, 3)):
        pairs = [(a, b) for a in left for b in right if x.shape[a] == d.values[j].shape[b]]
        if pairs:
            a, b = pairs[d.integer(0, len(pairs) - 1)]
            (contract if d.chance(0.65) else batch).append((a, b))
            left.remove(a)
            right.remove(b)
    (xc, yc), (xb, yb) = _sides(contract), _sides(batch)
    d.emit(f"lax.dot_general($0, $1, (({xc}, {yc}), ({xb}, {yb})))", i, j)


def _sides(pairs: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def matmul(d: Draft) -> None:
    i = d.real(lambda x: x.ndim > 0)
    n, kind = d.values[i].shape[-1], d.values[i].dtype
    j = d.real(lambda y: y.dtype == kind and y.ndim in (1, 2) and y.shape[0] == n)
    d.emit("$0 @ $1", i, j)


def convolution(d: Draft) -> None:
    """One or two spatial dimensions, drawn layouts, strides, dilations and groups."""
    i = d.real(lambda x: x.size > 2)
    x = d.values[i]
    j = d.real(lambda y: y.size > 1 and y.dtype == x.dtype)
    groups = d.one_of("", "", "feature_group_count=2", "batch_group_count=2")
    n, c, spatial = (2 if "batch" in groups else 1), (2 if "feature" in groups else 1), 1
    rest = x.size // (n * c)
    if rest * n * c != x.size or rest < 2:
        raise Rejected
    kernel = min(d.values[j].size, 4) // 2
    if kernel < 1:
        raise Rejected
    k = d.emit(f"lax.slice($0.reshape(-1), (0,), ({2 * kernel},))", j)
    numbers = d.one_of("('NCH', 'OIH', 'NCH')", "('NHC', 'HIO', 'NHC')", "('HNC', 'OHI', 'CNH')")
    layout = numbers.split("'")
    sizes = dict(zip("NCH", (n, c, rest), strict=True))
    outs = dict(zip("OIH", (2, 1, kernel), strict=True))
    left = tuple(sizes[a] for a in layout[1])
    right = tuple(outs[a] for a in layout[3])
    padding = tuple((d.integer(0, 2), d.integer(0, 2)) for _ in range(spatial))
    options = (
        f"window_strides=({d.integer(1, 2)},), padding={padding}, "
        f"lhs_dilation=({d.one_of(1, 1, 2)},), rhs_dilation=({d.one_of(1, 1, 2)},), "
        f"dimension_numbers={numbers}" + (f", {groups}" if groups else "")
    )
    d.emit(f"lax.conv_general_dilated($0.reshape{left}, $1.reshape{right}, {options})", i, k)


def ragged(d: Draft) -> None:
    i = d.real(lambda x: x.ndim == 2 and x.shape[0] > 1)
    m, k = d.values[i].shape
    j = d.real(lambda y: y.size >= 2 * k and y.size % (2 * k) == 0 and y.dtype == np.float64)
    n = d.values[j].size // (2 * k)
    first = d.integer(0, m)
    sizes = f"np.array([{first}, {m - first}], np.int32)"
    d.emit(f"lax.ragged_dot($0.astype(float), $1.reshape(2, {k}, {n}), {sizes})", i, j)


def window(name: str, d: Draft) -> None:
    i = d.real(lambda x: 0 < x.ndim < 3 and x.size > 1)
    x = d.values[i]
    if name != "add":
        d.distinct(i)
    sizes = tuple(min(n, d.integer(1, 3)) for n in x.shape)
    steps = tuple(d.integer(1, 3) for _ in x.shape)
    edges = tuple((d.integer(0, n - 1), d.integer(0, n - 1)) for n in sizes)
    dilated = name == "add" and d.chance(0.4)
    more = f", {tuple(d.integer(1, 2) for _ in x.shape)}" * 2 if dilated else ""
    start = {"add": "0.0", "max": "-np.inf", "min": "np.inf"}[name]
    start = f"np.{x.dtype.name}({start})"
    d.emit(f"lax.reduce_window($0, {start}, lax.{name}, {sizes}, {steps}, {edges}{more})", i)


def polynomial(d: Draft) -> None:
    i = d.real()
    d.emit(f"jnp.polyval(jnp.array([{d.number()}, {d.number()}, {d.number()}]), $0)", i)


def marks(d: Draft) -> None:
    i = d.real()
    expr = d.one_of(
        "lax.optimization_barrier($0)",
        "checkpoint_name($0, 'kept')",
        "jax.device_put($0)",
    )
    d.emit(expr, i)


def barrier(d: Draft) -> None:
    i = d.real()
    d.emit("lax.optimization_barrier(($0, $1))", i, _any(d), outs=2)


FORMS = (
    (1.5, reshape), (1.5, transpose), (1, rev), (0.7, squeeze), (0.7, expand), (2, broadcast),
    (1.5, cut), (1.5, pad), (1.5, concatenate), (0.7, stack), (1, split), (0.7, unstack),
    (0.7, tile), (0.3, repeat), (0.3, roll),
    (2, partial(reduce, "sum")),
    *((0.7, partial(reduce, name)) for name in ("prod", "max", "min")),
    (1, statistics), (0.7, positions), (0.5, logical),
    *((0.5, partial(running, name)) for name in "cumsum cumprod cummax cummin cumlogsumexp".split()),
    (3, dot), (2, matmul), (1.5, convolution), (0.5, ragged),
    *((0.5, partial(window, name)) for name in ("add", "max", "min")),
    (0.3, polynomial), (0.7, marks), (0.3, barrier),
)  # fmt: skip
