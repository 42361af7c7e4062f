"""Depthwise convolutions and the gradients of their filters, as element-wise work."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Value
from .window import BATCH, FEATURES, Window, in_parts, positions, shifted

# Sums of filters' gradients that are emitted one by one; more are scanned over.
UNROLLED = 9


def taps(b: Builder, w: Window) -> Value:
    """Depthwise: the sum of shifted inputs times numbers, one element-wise loop."""
    strides, dilation = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
    spatial = range(2, 2 + len(w.taps))
    wide = _accumulated(w)
    x = _each(b, b.convert(w.input(b, BATCH, FEATURES), wide), w.filters)
    k = b.convert(b.reshape(w.kernel(b, *spatial, 1, 0), (*w.taps, w.filters)), wide)
    terms = []
    for t in positions(w.taps):
        starts = [i * d for i, d in zip(t, dilation, strict=True)]
        part = shifted(b, x, starts, w.places, strides)
        number = b.slice(k, (*t, 0), (*(i + 1 for i in t), w.filters))
        number = b.reshape(number, (w.filters,))
        terms.append(b.mul(part, b.broadcast_in_dim(number, part.shape, (part.ndim - 1,))))
    total = b.convert(b.sum(terms), w.node.output.dtype)
    return w.output(b, total, 0, total.ndim - 1)


def filter_sums(b: Builder, w: Window, size: int) -> Value:
    """Gradient of a depthwise convolution's filters: for each tap, a sum of shifted products.

    Sums are over parts of the batch for which the products take about `size` bytes, since XLA
    makes them all before it adds them up.
    """
    wide = _accumulated(w)
    x = _each(b, b.convert(w.images(b, FEATURES, BATCH), wide), w.filters)
    g = b.convert(w.kernel(b, 1, *range(2, 2 + len(w.taps)), 0), wide)
    nbytes = prod(w.places) * g.type.nbytes
    total = in_parts(b, partial(_filter_sums, w=w), x, g, nbytes / size)
    return w.output(b, b.convert(total, w.node.output.dtype), 0, total.ndim - 1)


def _filter_sums(b: Builder, x: Value, g: Value, w: Window) -> Value:
    x = w.padded(b, x)
    high, *rest = w.places
    if prod(w.places) <= UNROLLED:
        rows = [_row_sums(b, _rows(b, x, i, w), g, w) for i in range(high)]
        found = b.concatenate(rows, 0)
    else:
        found = _scanned(b, x, g, w)
    return b.reshape(found, (1, high, *rest, w.filters))


def _scanned(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """Row by row of the taps: XLA compiles one row's sums, not those of all."""
    starts = b.iota(np.int32, (w.places[0],), 0)
    body = b.nested()
    images, cotangents = b.fresh((x, g))
    start = body.value(starts.type.with_shape(()))
    found = _row_sums(body, _rows(body, images, start, w), cotangents, w)
    graph = body.graph("row", (images, cotangents, start), (found,))
    attrs = {"num_consts": 2, "num_carry": 0, "reverse": False, "unroll": 1}
    return b.emit("scan", (x, g, starts), {**attrs, "length": w.places[0]}, (graph,))[0]


def _rows(b: Builder, x: Value, i: int | Value, w: Window) -> Value:
    """Return the rows of the images that row `i` of the taps reads."""
    stride, dilation = w.node.attrs["window_strides"][0], w.node.attrs["rhs_dilation"][0]
    size = (w.taps[0] - 1) * dilation + 1
    if isinstance(i, int):
        return shifted(b, x, (i * stride,), w.taps[:1], (dilation,))
    zero = b.literal(0, i.dtype)
    at = (zero, b.mul(i, b.literal(stride, i.dtype)), *[zero] * (x.ndim - 2))
    sizes = (x.shape[0], size, *x.shape[2:])
    return shifted(
        b, b.one("dynamic_slice", x, *at, slice_sizes=sizes), (0,), w.taps[:1], (dilation,)
    )


def _row_sums(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """Sums of one row of the taps, [taps, filters]."""
    strides, dilation = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
    sizes, steps = (w.taps[0], *w.taps[1:]), (1, *dilation[1:])
    found = []
    for place in positions(w.places[1:]):
        starts = [i * s for i, s in zip(place, strides[1:], strict=True)]
        part = b.mul(shifted(b, x, (0, *starts), sizes, steps), g)
        found.append(b.reshape(b.reduce_sum(part, range(g.ndim - 1)), (1, w.filters)))
    return b.concatenate(found, 0)


def _accumulated(w: Window) -> np.dtype[Any]:
    """The dtype to add up in: float32 at least."""
    return np.dtype(jnp.promote_types(w.node.output.dtype, np.float32))


def _each(b: Builder, x: Value, filters: int) -> Value:
    """Repeat each channel for the filters that read it."""
    times = filters // x.shape[-1]
    if times == 1:
        return x
    spread = b.broadcast_in_dim(x, (*x.shape, times), range(x.ndim))
    return b.reshape(spread, (*x.shape[:-1], filters))
