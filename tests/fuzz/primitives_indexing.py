"""Gather, scatter, windows, triangular solves and Fourier transforms in NumPy."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from jax.lax import FftType, GatherScatterMode

Attrs = Any
DROP = GatherScatterMode.FILL_OR_DROP


def _mode(attrs: Attrs) -> Any:
    mode = attrs["mode"]
    return GatherScatterMode.from_any(mode) if mode is None or isinstance(mode, str) else mode


def _places(
    shape: Any, sizes: Any, indices: np.ndarray, dims: Any, operand: Any, starts: Any, drop: bool
) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Each index position, and its window of an array of `shape`; None where it is outside."""
    for at in np.ndindex(*indices.shape[:-1]):
        start = [0] * len(shape)
        for dim, index in zip(dims, indices[at], strict=True):
            start[dim] = int(index)
        for dim, source in zip(operand, starts, strict=True):
            start[dim] = at[source]
        inside = all(0 <= i <= n - m for i, n, m in zip(start, shape, sizes, strict=True))
        near = [min(max(i, 0), n - m) for i, n, m in zip(start, shape, sizes, strict=True)]
        window = tuple(slice(i, i + m) for i, m in zip(near, sizes, strict=True))
        yield at, window if inside or not drop else None


def gather(attrs: Attrs, x: np.ndarray, indices: np.ndarray) -> Any:
    numbers, sizes, mode = attrs["dimension_numbers"], attrs["slice_sizes"], _mode(attrs)
    fill = attrs.get("fill_value")
    if mode == DROP and fill is None:
        if x.dtype.kind not in "fc":
            return None
        fill = np.nan
    points = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [n for i, n in enumerate(sizes) if i not in points]
    out = np.full((*indices.shape[:-1], *kept), 0 if fill is None else fill, x.dtype)
    for at, window in _places(
        x.shape, sizes, indices, numbers.start_index_map, numbers.operand_batching_dims,
        numbers.start_indices_batching_dims, mode == DROP,
    ):  # fmt: skip
        if window is not None:
            out[at] = x[window].reshape(kept)
    count = indices.ndim - 1
    return np.moveaxis(out, range(count, count + len(kept)), numbers.offset_dims)


def scatter(combine: Any) -> Any:
    """`combine(old, update)` at each index position, in their order."""

    def run(attrs: Attrs, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Any:
        if combine is _last and attrs.get("update_jaxpr") is not None or x.dtype.kind == "b":
            return None
        numbers, out = attrs["dimension_numbers"], x.copy()
        points = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        window_sizes = iter([updates.shape[i] for i in numbers.update_window_dims])
        sizes = [1 if i in points else next(window_sizes) for i in range(x.ndim)]
        count = len(numbers.update_window_dims)
        last = range(updates.ndim - count, updates.ndim)
        parts = np.moveaxis(updates, numbers.update_window_dims, last)
        for at, window in _places(
            x.shape, sizes, indices, numbers.scatter_dims_to_operand_dims,
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims,
            _mode(attrs) == DROP,
        ):  # fmt: skip
            if window is not None:
                out[window] = combine(out[window], parts[at].reshape(sizes))
        return out

    return run


def _last(old: np.ndarray, update: np.ndarray) -> np.ndarray:
    return update


def windows(combine: Any, start: float) -> Any:
    """A reduction over sliding windows: one strided slice for each place in the window."""

    def run(attrs: Attrs, x: np.ndarray) -> Any:
        if x.dtype.kind != "f":
            return None
        base, gaps = attrs["base_dilation"], attrs["window_dilation"]
        steps, sizes = attrs["window_strides"], attrs["window_dimensions"]
        lengths = [max(0, (n - 1) * d + 1) for n, d in zip(x.shape, base, strict=True)]
        total = [n + lo + hi for n, (lo, hi) in zip(lengths, attrs["padding"], strict=True)]
        if any(lo < 0 or hi < 0 for lo, hi in attrs["padding"]):
            return None
        room = np.full(total, start, x.dtype)
        places = zip(attrs["padding"], lengths, base, strict=True)
        room[tuple(slice(lo, lo + n, d) for (lo, _), n, d in places)] = x
        shape = [
            max(0, (n - (m - 1) * gap - 1) // step + 1)
            for n, m, gap, step in zip(total, sizes, gaps, steps, strict=True)
        ]
        out = np.full(shape, start, x.dtype)
        for place in np.ndindex(*sizes) if prod(shape) else ():
            cut = zip(place, gaps, shape, steps, strict=True)
            cuts = tuple(slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in cut)
            out = combine(out, room[cuts])
        return out

    return run


def triangular_solve(attrs: Attrs, a: np.ndarray, y: np.ndarray) -> Any:
    a = np.tril(a) if attrs["lower"] else np.triu(a)
    if attrs["unit_diagonal"]:
        n = a.shape[-1]
        a = a * (1 - np.eye(n)) + np.eye(n)
    a = a.conj() if attrs["conjugate_a"] else a
    a = a.swapaxes(-1, -2) if attrs["transpose_a"] else a
    try:
        if attrs["left_side"]:
            return np.linalg.solve(a, y).astype(y.dtype)
        turned = np.linalg.solve(a.swapaxes(-1, -2), y.swapaxes(-1, -2))
        return turned.swapaxes(-1, -2).astype(y.dtype)
    except np.linalg.LinAlgError:
        return None


FOURIER = {
    FftType.FFT: np.fft.fftn,
    FftType.IFFT: np.fft.ifftn,
    FftType.RFFT: np.fft.rfftn,
    FftType.IRFFT: np.fft.irfftn,
}


def fft(attrs: Attrs, x: np.ndarray) -> Any:
    if x.dtype not in (np.float64, np.complex128):
        return None
    lengths = tuple(attrs["fft_lengths"])
    return FOURIER[attrs["fft_type"]](x, lengths, range(-len(lengths), 0))


NUMPY: dict[str, Any] = {
    "gather": gather,
    "scatter": scatter(_last),
    "scatter-add": scatter(np.add),
    "scatter-sub": scatter(np.subtract),
    "scatter-mul": scatter(np.multiply),
    "scatter-min": scatter(np.minimum),
    "scatter-max": scatter(np.maximum),
    "reduce_window_sum": windows(np.add, 0.0),
    "reduce_window_max": windows(np.maximum, -np.inf),
    "reduce_window_min": windows(np.minimum, np.inf),
    "triangular_solve": triangular_solve,
    "fft": fft,
}
