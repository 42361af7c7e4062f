"""One array of what blocks read one by one, without a copy where they are slices of one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Literal, Node, Value
from .sequence import sliced

_VIEWS = frozenset("squeeze reshape".split())


def stacked(b: Builder, values: Sequence[Value], producer: Mapping[Value, Node]) -> Value:
    """Emit `stack(values)`; `producer` tells what made them."""
    whole = _whole(b, values, producer)
    if whole is not None:
        return whole
    if all(isinstance(v, Literal) for v in values):
        return b.constant(np.stack([np.asarray(v.data) for v in values]))  # type: ignore[attr-defined]
    return b.emit("stack", values, {"axis": 0})[0]


def _whole(b: Builder, values: Sequence[Value], producer: Mapping[Value, Node]) -> Value | None:
    """`x[:, i], x[:, i + 1], ...  ->  moveaxis(x[:, i:], 1, 0)`, and so with wider slices."""
    pieces = [_piece(value, producer) for value in values]
    known = [piece for piece in pieces if piece is not None]
    x, axis, start, size = known[0] if known else (None, 0, 0, 0)
    if x is None or known != [(x, axis, start + i * size, size) for i in range(len(values))]:
        return None
    count = len(values)
    part = b.slice_in_dim(x, start, start + count * size, axis)
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    front = (axis, *(i for i in range(len(shape)) if i != axis))
    moved = b.transpose(b.reshape(part, shape), front)
    return b.reshape(moved, (count, *values[0].shape))


def _piece(value: Value, producer: Mapping[Value, Node]) -> tuple[Value, int, int, int] | None:
    """`(x, axis, start, size)` of a slice along one axis, however it is shaped."""
    node = producer.get(value)
    while node is not None and node.op.name in _VIEWS:
        node = producer.get(node.inputs[0])
    if node is None or not node.inputs:
        return None
    x = node.inputs[0]
    if node.op.name in ("split", "unstack"):
        sizes = node.attrs.get("sizes") or (1,) * x.shape[node.attrs["axis"]]
        at, axis = _output(node, value, producer), node.attrs["axis"]
        return (x, axis, sum(sizes[:at]), sizes[at])
    if not sliced(node):
        return None
    low, high = node.attrs["start_indices"], node.attrs["limit_indices"]
    cut = [i for i, n in enumerate(x.shape) if high[i] - low[i] != n]
    if not cut and prod(x.shape) == 0:
        return None
    axis = cut[0] if cut else 0
    return (x, axis, low[axis], high[axis] - low[axis]) if len(cut) <= 1 else None


def _output(node: Node, value: Value, producer: Mapping[Value, Node]) -> int:
    """Which output of `node` the views of `value` are of."""
    while value not in node.outputs:
        value = producer[value].inputs[0]
    return node.outputs.index(value)
