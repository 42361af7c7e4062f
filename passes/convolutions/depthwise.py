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
    if prod(w.places) <= UNROLLED:
        strides, dilation = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
        starts = [i * strides[0] for i in range(w.places[0])]
        rows = [shifted(b, x, (at,), w.taps[:1], dilation[:1]) for at in starts]
        found = b.concatenate([_row_sums(b, row, g, w) for row in rows], 0)
    else:
        found = _scanned(b, x, g, w)
    return b.reshape(found, (1, *w.places, w.filters))


def _scanned(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """Row by row of the taps: XLA compiles one row's sums, not those of all."""
    (stride, *_), (dilation, *_) = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
    rows = b.iota(np.int32, (w.places[0],), 0)
    body = b.nested()
    images, cotangents = b.fresh((x, g))
    row = body.value(rows.type.with_shape(()))
    zero = body.literal(0, row.dtype)
    at = (zero, body.mul(row, body.literal(stride, row.dtype)), *[zero] * (x.ndim - 2))
    sizes = (x.shape[0], (w.taps[0] - 1) * dilation + 1, *x.shape[2:])
    part = body.one("dynamic_slice", images, *at, slice_sizes=sizes)
    part = shifted(body, part, (0,), w.taps[:1], (dilation,))
    found = _row_sums(body, part, cotangents, w)
    graph = body.graph("row", (images, cotangents, row), (found,))
    return b.scan((x, g), (), (rows,), graph, w.places[0])[0]


def _row_sums(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """Sums of one row of the taps, [taps, filters], of the rows of the images that it reads."""
    strides, dilation = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
    found = []
    for place in positions(w.places[1:]):
        starts = [i * s for i, s in zip(place, strides[1:], strict=True)]
        part = b.mul(shifted(b, x, (0, *starts), w.taps, (1, *dilation[1:])), g)
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
