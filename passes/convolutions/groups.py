"""Grouped convolutions as dense ones, whose kernels have the groups' blocks on their diagonals."""

from __future__ import annotations

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Value
from .window import Window


def bundled(b: Builder, w: Window, size: int) -> Value:
    """Bring `size` groups at a time into one dense convolution."""
    numbers, (x, k) = w.node.attrs["dimension_numbers"], w.node.inputs
    features, filters = numbers.rhs_spec[1], numbers.rhs_spec[0]
    attrs = {**w.node.attrs, "feature_group_count": 1}
    found: list[Value] = []
    for i in range(count := w.groups[0] // size):
        kernel = _share(b, k, filters, i, count)
        shape = list(kernel.shape)
        shape[features] *= size
        blocks, same = _blocks(b, kernel, (features, 1), (filters, size), size)
        dense = b.reshape(b.select(same, blocks, b.zeros(blocks)), shape)
        part = _share(b, x, numbers.lhs_spec[1], i, count)
        found += b.emit(w.node.op, (part, dense), attrs)
    return b.concatenate(found, numbers.out_spec[1])


def bundled_filters(b: Builder, w: Window, size: int) -> Value:
    """Gradients of `size` groups' filters at a time, of which the diagonal's blocks are kept."""
    numbers, (x, g) = w.node.attrs["dimension_numbers"], w.node.inputs
    batch, filters = numbers.out_spec[:2]
    attrs = {**w.node.attrs, "batch_group_count": 1}
    found: list[Value] = []
    for i in range(count := w.groups[1] // size):
        parts = (
            _share(b, x, numbers.lhs_spec[0], i, count),
            _share(b, g, numbers.rhs_spec[0], i, count),
        )
        (dense,) = b.emit(w.node.op, parts, attrs)
        shape = list(dense.shape)
        shape[batch] //= size
        blocks, same = _blocks(b, dense, (batch, size), (filters, size), size)
        kept = b.select(same, blocks, b.zeros(blocks))
        axis = batch + (filters < batch)
        found.append(b.reshape(b.reduce_sum(kept, (axis,)), shape))
    return b.concatenate(found, filters)


def _share(b: Builder, x: Value, axis: int, i: int, count: int) -> Value:
    """Part i of `count` along one axis."""
    size = x.shape[axis] // count
    return b.slice_in_dim(x, i * size, (i + 1) * size, axis)


def _blocks(
    b: Builder, x: Value, rows: tuple[int, int], columns: tuple[int, int], size: int
) -> tuple[Value, Value]:
    """`x` with a dimension of groups in front of two of its own, and where the groups are equal.

    `rows` and `columns` are (dimension, groups that it holds); one group is repeated `size` times.
    """
    held = dict((rows, columns))
    split: list[int] = []
    place: dict[int, int] = {}
    for i, n in enumerate(x.shape):
        if i in held:
            place[i] = len(split)
            split.append(held[i])
            n //= held[i]
        split.append(n)
    axes = sorted(place.values())
    shape = [size if i in axes else n for i, n in enumerate(split)]
    blocks = b.broadcast_in_dim(b.reshape(x, split), shape, range(len(shape)))
    here, there = (b.iota(np.int32, (size, size), k) for k in (0, 1))
    return blocks, b.broadcast_in_dim(b.eq(here, there), shape, axes)
