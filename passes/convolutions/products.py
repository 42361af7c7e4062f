"""Gradients of filters as products, a few images at a time."""

from __future__ import annotations

from functools import partial
from math import prod

from ...ir.builder import Builder
from ...ir.graph import Value
from .window import BATCH, FEATURES, Window, in_parts, positions, shifted


def summed(b: Builder, w: Window, size: int) -> Value:
    """Sum the products of parts of the batch whose operands take about `size` bytes.

    So that they stay in the cache, and are never all there. Copies are made in a loop of two parts
    at least: outside of one XLA may make them as soon as the images are there, in the forward pass,
    and keep them until the cotangents are. What this convolution contracts, its features, is the
    images' batch; its own batch is the images' channels.
    """
    plain = set(w.node.attrs["rhs_dilation"]) == {1}
    both = plain and len(w.taps) == 2 and 1 not in w.places
    product, copies = (rows_and_columns, max(w.places)) if both else (patches, prod(w.places))
    x, g = w.images(b, FEATURES, BATCH), w.kernel(b, 1, *range(2, 2 + len(w.taps)), 0)
    nbytes = copies * (x.type.nbytes + (g.type.nbytes if both else 0))
    parts = max(2 if copies > 1 else 1, nbytes / size)
    total = in_parts(b, partial(product, w=w), x, g, parts)
    return w.output(b, total, total.ndim - 2, total.ndim - 1)


def patches(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """All the slices that the outputs read, side by side (im2col), times the cotangents."""
    strides, dilation = w.node.attrs["window_strides"], w.node.attrs["rhs_dilation"]
    x = w.padded(b, x)
    starts = ([i * s for i, s in zip(at, strides, strict=True)] for at in positions(w.places))
    read = b.concatenate([shifted(b, x, at, w.taps, dilation) for at in starts], x.ndim - 1)
    return b.reshape(_matrix(b, w, read, g), (*w.places, w.batch, w.filters))


def rows_and_columns(b: Builder, x: Value, g: Value, w: Window) -> Value:
    """The images shifted by columns times the cotangents shifted by rows.

    A gradient of 3x3 filters copies three times each where `patches` copies nine times. Two
    spatial dimensions, no dilation.
    """
    (down, across), (high, wide) = w.node.attrs["window_strides"], w.places
    x = w.padded(b, x)
    rows, columns = x.shape[1], w.taps[1]
    sides = [shifted(b, x, (0, j * across), (rows, columns), (1, 1)) for j in range(wide)]
    before, after = (high - 1) * down, rows - w.taps[0]
    tall = b.pad(g, 0, [(0, 0, 0), (before, after, 0), (0, 0, 0), (0, 0, 0)])
    above = [shifted(b, tall, (before - i * down,), (rows,), (1,)) for i in range(high)]
    found = _matrix(b, w, b.concatenate(sides, 3), b.concatenate(above, 3))
    found = b.reshape(found, (wide, w.batch, high, w.filters))
    return b.transpose(found, (2, 0, 1, 3))


def _matrix(b: Builder, w: Window, x: Value, y: Value) -> Value:
    """Contract all but the last dimensions, as a product of two matrices."""
    x, y = (b.reshape(v, (prod(v.shape[:-1]), v.shape[-1])) for v in (x, y))
    return w.product(b, x, y, 0)
