"""Convolutions whose windows do not overlap: products of patches, whichever the device.

They run before autodiff, so that both gradients are products as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

from ...ir.builder import Builder
from ...ir.graph import Node, Value
from .window import BATCH, FEATURES, Window, shifted

T = TypeVar("T")


def product_of_patches(b: Builder, node: Node) -> Sequence[Value] | None:
    """Return the product that a convolution is where each input is read by one window at most.

    conv(x[N,..,C], k[1,..,C,O])  ->  x[N, ::stride, .., C] . k[C,O], and
    conv(x[N,H,W,C], k[p,q,C,O]) with strides p, q  ->  patches of x[N h w, p q C] . k[p q C, O].
    Where an output is made by one tap alone, as in an upsampling by the kernel's own size,
    x[N h w, C] . k[C, p q O] gives the patches of the output.
    """
    w = Window(node)
    attrs = node.attrs
    if (
        w.groups != (1, 1)
        or any(d != 1 for d in attrs["rhs_dilation"])
        or not all(v.type.size for v in (*node.inputs, node.output))
    ):
        return None
    strides, gaps = attrs["window_strides"], attrs["lhs_dilation"]
    if all(t <= s for t, s in zip(w.taps, strides, strict=True)) and set(gaps) == {1}:
        return _gathered(b, w)
    if all(t <= g for t, g in zip(w.taps, gaps, strict=True)) and set(strides) == {1}:
        return _scattered(b, w)
    return None


def _gathered(b: Builder, w: Window) -> list[Value]:
    x, k = w.input(b, BATCH, FEATURES), w.kernel(b, *range(2, 2 + len(w.taps)), 1, 0)
    strides = w.node.attrs["window_strides"]
    if prod(w.taps) == 1:
        x = shifted(b, x, [0] * len(w.taps), w.places, strides)
    else:
        rest = [n * s - size for n, s, size in zip(w.places, strides, x.shape[1:-1], strict=True)]
        x = b.pad(x, 0, [(0, 0, 0), *((0, n, 0) for n in rest), (0, 0, 0)])
        x = b.reshape(x, (w.batch, *_pairs(w.places, strides), w.channels))
        ends = (w.batch, *_pairs(w.places, w.taps), w.channels)
        x = b.transpose(b.slice(x, [0] * x.ndim, ends), _apart(len(w.taps)))
    found = _product(b, w, x, k, prod(w.taps) * w.channels)
    found = b.reshape(found, (w.batch, *w.places, w.filters))
    return [w.output(b, found, 0, found.ndim - 1)]


def _scattered(b: Builder, w: Window) -> list[Value]:
    count, gaps = len(w.taps), w.node.attrs["lhs_dilation"]
    x = w.images(b, BATCH, FEATURES)
    k = b.rev(w.kernel(b, 1, *range(2, 2 + count), 0), range(1, 1 + count))
    sizes = x.shape[1:-1]
    found = _product(b, w, x, k, w.channels)
    found = b.reshape(found, (w.batch, *sizes, *w.taps, w.filters))
    apart = _apart(count)
    found = b.transpose(found, [apart.index(i) for i in range(len(apart))])
    around = _pairs([(0, 0, 0)] * count, [(0, g - t, 0) for g, t in zip(gaps, w.taps, strict=True)])
    found = b.pad(found, 0, [(0, 0, 0), *around, (0, 0, 0)])
    whole = [n * g for n, g in zip(sizes, gaps, strict=True)]
    found = b.reshape(found, (w.batch, *whole, w.filters))
    starts = [low - (t - 1) for (low, _), t in zip(w.node.attrs["padding"], w.taps, strict=True)]
    ends = [n - (size + low) for n, size, low in zip(w.places, whole, starts, strict=True)]
    around = [(low, high, 0) for low, high in zip(starts, ends, strict=True)]
    found = b.pad(found, 0, [(0, 0, 0), *around, (0, 0, 0)])
    return [w.output(b, found, 0, found.ndim - 1)]


def _product(b: Builder, w: Window, x: Value, k: Value, size: int) -> Value:
    """Rows of `size` numbers times a matrix of as many rows."""
    x = b.reshape(x, (x.type.size // size, size))
    return w.product(b, x, b.reshape(k, (size, k.type.size // size)), 1)


def _pairs(xs: Sequence[T], ys: Sequence[T]) -> list[T]:
    """x0, y0, x1, y1, ..."""
    return [each for pair in zip(xs, ys, strict=True) for each in pair]


def _apart(count: int) -> list[int]:
    """The order that brings (n, o0, t0, o1, t1, .., c) to (n, o0, o1, .., t0, t1, .., c)."""
    return [0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1]
