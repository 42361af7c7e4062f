"""Primitives in NumPy: `function(attrs, *arrays)` -> an array, a list of them, or None to pass.

Those that most equations of a program are made of. Integers are left to JAX where the two differ.
"""

from typing import Any

import numpy as np
from scipy import special

from backpass.ir.ops import OPS
from fuzz import primitives_indexing

Attrs = Any
WIDE = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _simple(function: Any) -> Any:
    return lambda attrs, *xs: function(*xs)


def _inexact(function: Any) -> Any:
    """For floating and complex arrays alone."""

    def checked(attrs: Attrs, *xs: np.ndarray) -> Any:
        return function(*xs) if xs[0].dtype.kind in "fc" else None

    return checked


def _real(function: Any) -> Any:
    """For floating arrays alone."""

    def checked(attrs: Attrs, *xs: np.ndarray) -> Any:
        return function(*xs) if xs[0].dtype.kind == "f" else None

    return checked


def _integer_pow(attrs: Attrs, x: np.ndarray) -> Any:
    return np.power(x, x.dtype.type(attrs["y"])) if x.dtype.kind == "f" else None


def _broadcast(attrs: Attrs, x: np.ndarray, *sizes: Any) -> Any:
    shape, dims = attrs["shape"], attrs["broadcast_dimensions"]
    if sizes:
        return None
    wide = [1] * len(shape)
    for i, n in zip(dims, x.shape, strict=True):
        wide[i] = n
    return np.broadcast_to(x.reshape(wide), shape)


def _reshape(attrs: Attrs, x: np.ndarray) -> Any:
    order = attrs.get("dimensions")
    return (x if order is None else x.transpose(order)).reshape(attrs["new_sizes"])


def _select_n(attrs: Attrs, which: np.ndarray, *cases: np.ndarray) -> Any:
    return np.choose(which.astype(int), cases) if len(cases) <= 30 else None


def _slice(attrs: Attrs, x: np.ndarray) -> Any:
    steps = attrs["strides"] or (1,) * x.ndim
    bounds = zip(attrs["start_indices"], attrs["limit_indices"], steps, strict=True)
    return x[tuple(slice(lo, hi, step) for lo, hi, step in bounds)]


def _pad(attrs: Attrs, x: np.ndarray, fill: np.ndarray) -> Any:
    """Spread with the interior, put into the middle of enough room, then cut."""
    config = attrs["padding_config"]
    sizes = [n + max(0, n - 1) * mid for n, (_, _, mid) in zip(x.shape, config, strict=True)]
    edges = [(max(lo, 0), max(hi, 0)) for lo, hi, _ in config]
    room = np.full([n + lo + hi for n, (lo, hi) in zip(sizes, edges, strict=True)], fill, x.dtype)
    places = zip(sizes, edges, config, strict=True)
    room[tuple(slice(lo, lo + n, mid + 1) for n, (lo, _), (_, _, mid) in places)] = x
    ends = zip(room.shape, config, strict=True)
    return room[tuple(slice(max(-lo, 0), n + min(hi, 0)) for n, (lo, hi, _) in ends)]


def _dot_general(attrs: Attrs, x: np.ndarray, y: np.ndarray) -> Any:
    if x.dtype != y.dtype or x.dtype.kind not in "fc":
        return None
    (xc, yc), (xb, yb) = attrs["dimension_numbers"]
    left, right = LETTERS[: x.ndim], list(LETTERS[x.ndim : x.ndim + y.ndim])
    for i, j in zip([*xc, *xb], [*yc, *yb], strict=True):
        right[j] = left[i]
    batch = [left[i] for i in xb]
    free = [c for i, c in enumerate(left) if i not in (*xc, *xb)]
    free += [c for j, c in enumerate(right) if j not in (*yc, *yb)]
    out = np.einsum(f"{left},{''.join(right)}->{''.join(batch + free)}", x, y)
    return out.astype(attrs.get("preferred_element_type") or x.dtype)


def _iota(attrs: Attrs, *sizes: Any) -> Any:
    shape, dim = attrs["shape"], attrs["dimension"]
    line = np.arange(shape[dim], dtype=attrs["dtype"])
    return np.broadcast_to(line.reshape([-1 if i == dim else 1 for i in range(len(shape))]), shape)


def _convert(attrs: Attrs, x: np.ndarray) -> Any:
    new = np.dtype(attrs["new_dtype"])
    narrows = x.dtype.kind == "c" and new.kind != "c" or x.dtype.kind == "f" and new.kind in "iu"
    return x.astype(new) if new.kind in "iufcb" and not narrows else None


def _clamp(attrs: Attrs, low: np.ndarray, x: np.ndarray, high: np.ndarray) -> Any:
    return np.minimum(np.maximum(x, low), high).astype(x.dtype)


def _polygamma(order: np.ndarray, x: np.ndarray) -> Any:
    """(-1)^(m+1) m! zeta(m + 1, x); digamma at m = 0."""
    sign = np.where(order % 2 == 0, -1.0, 1.0)
    rest = sign * special.gamma(order + 1) * special.zeta(np.maximum(order, 0.5) + 1, x)
    return np.where(order == 0, special.digamma(x), rest).astype(x.dtype)


def padded(name: str) -> Any:
    """An element-wise primitive of JAX, always on as many elements: one executable serves all."""

    def run(attrs: Attrs, *xs: np.ndarray) -> Any:
        wide = np.broadcast_arrays(*xs)
        shape, size = wide[0].shape, wide[0].size
        if size > WIDE:
            return None
        flat = [np.concatenate([x.ravel(), np.ones(WIDE - size, x.dtype)]) for x in wide]
        (out,) = OPS[name].lower(flat, attrs, (), None)
        return np.asarray(out)[:size].reshape(shape)

    return run


def _starts(at: Any, shape: Any, sizes: Any) -> Any:
    places = zip(at, shape, sizes, strict=True)
    return tuple(slice(lo := min(max(int(i), 0), n - m), lo + m) for i, n, m in places)


def _dynamic_slice(attrs: Attrs, x: np.ndarray, *at: np.ndarray) -> Any:
    return x[_starts(at, x.shape, attrs["slice_sizes"])]


def _dynamic_update_slice(attrs: Attrs, x: np.ndarray, part: np.ndarray, *at: np.ndarray) -> Any:
    out = x.copy()
    out[_starts(at, x.shape, part.shape)] = part
    return out


def _sort(attrs: Attrs, *xs: np.ndarray) -> Any:
    """By one key, which has no NaN."""
    axis = attrs["dimension"]
    if attrs["num_keys"] != 1 or xs[0].dtype.kind == "c":
        return None
    order = np.argsort(xs[0] + 0, axis=axis, kind="stable")
    return [np.take_along_axis(x, order, axis) for x in xs]


def _accumulate(function: Any) -> Any:
    def run(attrs: Attrs, x: np.ndarray) -> Any:
        axis, step = attrs["axis"], -1 if attrs["reverse"] else 1
        flip = tuple(slice(None, None, step if i == axis else 1) for i in range(x.ndim))
        return function(x[flip], axis=axis, dtype=x.dtype)[flip]

    return run


def _position(function: Any) -> Any:
    return lambda attrs, x: function(x, attrs["axes"][0]).astype(attrs["index_dtype"])


def _convolution(attrs: Attrs, x: np.ndarray, k: np.ndarray) -> Any:
    """As products of each kernel position with a strided slice."""
    if x.dtype != k.dtype or not k.size:
        return None
    numbers = attrs["dimension_numbers"]
    x, k = x.transpose(numbers.lhs_spec), k.transpose(numbers.rhs_spec)
    x = _pad(
        {"padding_config": [(0, 0, 0)] * 2 + [(0, 0, d - 1) for d in attrs["lhs_dilation"]]},
        x,
        x.dtype.type(0),
    )
    x = _pad(
        {"padding_config": [(0, 0, 0)] * 2 + [(lo, hi, 0) for lo, hi in attrs["padding"]]},
        x,
        x.dtype.type(0),
    )
    steps, gaps = attrs["window_strides"], attrs["rhs_dilation"]
    sizes = [
        max(0, (n - (m - 1) * gap - 1) // step + 1)
        for n, m, step, gap in zip(x.shape[2:], k.shape[2:], steps, gaps, strict=True)
    ]
    batches, features = attrs["batch_group_count"], attrs["feature_group_count"]
    groups = batches * features
    out = []
    for xs, ks in zip(
        np.split(x, batches, 0) if batches > 1 else np.split(x, features, 1),
        np.split(k, groups, 0),
        strict=True,
    ):
        total = np.zeros((xs.shape[0], ks.shape[0], *sizes), x.dtype)
        for place in np.ndindex(*k.shape[2:]):
            cut = tuple(
                slice(i * gap, i * gap + (n - 1) * step + 1 if n else 0, step)
                for i, gap, n, step in zip(place, gaps, sizes, steps, strict=True)
            )
            total += np.einsum("nc...,oc->no...", xs[(..., *cut)], ks[(..., *place)])
        out.append(total)
    return np.concatenate(out, 1).transpose(np.argsort(numbers.out_spec))


def _reduce(function: Any) -> Any:
    """Of something: NumPy has no maximum of nothing."""

    def run(attrs: Attrs, x: np.ndarray) -> Any:
        return function(x, axis=tuple(attrs["axes"])).astype(x.dtype) if x.size else None

    return run


def _split(attrs: Attrs, x: np.ndarray) -> Any:
    return list(np.split(x, np.cumsum(attrs["sizes"])[:-1], attrs["axis"]))


def _logistic(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


NUMPY: dict[str, Any] = {
    **primitives_indexing.NUMPY,
    **{name: _simple(getattr(np, name)) for name in "real imag".split()},
    "conj": _simple(lambda x: np.conj(x) + np.complex64(0)),
    **{name: _inexact(getattr(np, name)) for name in "exp sin cos tanh square sqrt".split()},
    **{name: _real(getattr(np, name)) for name in "log log1p expm1 sinh cosh floor ceil".split()},
    **{name: _real(getattr(np, name)) for name in "tan cbrt exp2 sign abs".split()},
    **{
        name: _real(getattr(np, f"arc{name[1:]}"))
        for name in "asin acos atan asinh acosh atanh".split()
    },
    "atan2": _real(np.arctan2),
    "logistic": _real(_logistic),
    "rsqrt": _real(lambda x: 1 / np.sqrt(x)),
    "neg": _inexact(np.negative),
    **dict.fromkeys(("add", "add_any"), _simple(np.add)),
    "sub": _inexact(np.subtract),
    "mul": _inexact(np.multiply),
    "div": _inexact(np.divide),
    "max": _real(np.maximum),
    "min": _real(np.minimum),
    "integer_pow": _integer_pow,
    "complex": _simple(lambda x, y: x + np.complex64(1j) * y),
    **{
        short: _simple(function)
        for short, function in {
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
        }.items()
    },
    "not": _simple(np.invert),
    "select_n": _select_n,
    **dict.fromkeys("copy copy_p stop_gradient name".split(), _simple(lambda x: x)),
    "optimization_barrier": lambda attrs, *xs: list(xs),
    "offload": lambda attrs, x: x,
    "fetch": lambda attrs, x: x,
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": lambda attrs, x: x.transpose(attrs["permutation"]),
    "squeeze": lambda attrs, x: np.squeeze(x, tuple(attrs["dimensions"])),
    "expand_dims": lambda attrs, x: np.expand_dims(x, tuple(attrs["dimensions"])),
    "rev": lambda attrs, x: np.flip(x, tuple(attrs["dimensions"])),
    "slice": _slice,
    "pad": _pad,
    "concatenate": lambda attrs, *xs: np.concatenate(xs, attrs["dimension"]),
    "split": _split,
    "iota": _iota,
    "reduce_sum": _reduce(np.sum),
    "reduce_prod": _reduce(np.prod),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "cumsum": _accumulate(np.cumsum),
    "cumprod": _accumulate(np.cumprod),
    "cummax": _accumulate(np.maximum.accumulate),
    "cummin": _accumulate(np.minimum.accumulate),
    "cumlogsumexp": _accumulate(np.logaddexp.accumulate),
    "argmax": _position(np.argmax),
    "argmin": _position(np.argmin),
    "sort": _sort,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "stack": lambda attrs, *xs: np.stack(xs, attrs["axis"]),
    "unstack": lambda attrs, x: list(np.moveaxis(x, attrs["axis"], 0)),
    "tile": lambda attrs, x: np.tile(x, attrs["reps"]),
    "conv_general_dilated": _convolution,
    "clamp": _clamp,
    "rem": _real(np.fmod),
    "pow": _real(lambda x, y: np.power(x, y.astype(x.dtype))),
    "lgamma": _real(special.gammaln),
    "digamma": _real(special.digamma),
    "polygamma": _real(_polygamma),
    "zeta": _real(special.zeta),
    "igamma": _real(special.gammainc),
    "igammac": _real(special.gammaincc),
    "regularized_incomplete_beta": _real(special.betainc),
    "bessel_i0e": _real(special.i0e),
    "bessel_i1e": _real(special.i1e),
    "erf": _real(special.erf),
    "erfc": _real(special.erfc),
    "erf_inv": _real(special.erfinv),
    **{name: padded(name) for name in ("igamma_grad_a", "random_gamma_grad", "reduce_precision")},
    "is_finite": _simple(np.isfinite),
    "dot_general": _dot_general,
}
