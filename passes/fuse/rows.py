"""Which dimensions of an array are the rows, and what ops make of a part of the rows.

The rows are dimensions side by side, in order: `[B,T]` of the logits `[B,T,V]`. An op is
*row-wise* when each row of its result is made of that row of its operands and of what all rows
share. A row-wise program runs on some of the rows as well as on all: its dimensions of rows become
one, of any length.

A rule tells where the rows of an op's operands are to be, where those of its outputs are, and how
to emit the op for some rows. There are two tables: `CARRIED` goes from operands to outputs,
`PULLED` from an output to operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jax import lax

from ...ir.builder import Builder
from ...ir.graph import Node, Value
from ...ir.ops import elementwise, special
from ...ir.ops.contraction import free_dims

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Dimensions `start` to `stop`, the latter excluded, are the rows."""

    start: int
    stop: int

    def count(self, shape: Sequence[int]) -> int:
        """Number of rows in an array of `shape`."""
        return prod(shape[self.start : self.stop])

    def cut(self, shape: Sequence[int], rows: int) -> Shape:
        """Shape of so many rows of an array of `shape`."""
        return (*shape[: self.start], rows, *shape[self.stop :])

    def place(self, dim: int) -> int:
        """Where a dimension goes when those of the rows become one."""
        if dim < self.start:
            return dim
        return self.start if dim < self.stop else dim - (self.stop - self.start) + 1

    def places(self, dims: Sequence[int]) -> Shape:
        """Return the places of `dims`, the rows once."""
        return tuple(dict.fromkeys(map(self.place, dims)))

    def __contains__(self, dim: int) -> bool:
        """True for a dimension of the rows."""
        return self.start <= dim < self.stop

    @property
    def dims(self) -> range:
        """The dimensions."""
        return range(self.start, self.stop)

    def bare(self, shape: Sequence[int]) -> Rows:
        """Leave out dimensions of one element at either end."""
        wide = [i for i in self.dims if shape[i] != 1] or [self.start]
        return Rows(wide[0], wide[-1] + 1)

    def moved(self, start: int) -> Rows:
        """Return as many dimensions from `start` on."""
        return Rows(start, start + self.stop - self.start)


Where = Sequence[Rows | None]  # None: shared by all rows
Emit = Callable[[Builder, Sequence[Value], int], Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Carry:
    """Where the rows of operands have to be, where those of the outputs are, and how to emit.

    `emit(b, operands, rows)` emits the node for so many rows.
    """

    operands: Where
    outputs: tuple[Rows | None, ...]
    emit: Emit


Rule = Callable[[Node, Where], Carry | None]
PullRule = Callable[[Node, Rows], Carry | None]


def _first(known: Where) -> Rows:
    return next(rows for rows in known if rows is not None)


def _same(node: Node, **attrs: Any) -> Emit:
    """Emit the op as it is, with some attributes changed."""
    changed = {**node.attrs, **attrs}
    return lambda b, xs, rows: b.emit(node.op, xs, changed, node.regions)


def _elementwise(node: Node, known: Where) -> Carry | None:
    return _at_each_element(node, _first(known))


def _at_each_element(node: Node, out: Rows) -> Carry | None:
    """Operands have the shape of the output, or ones, or none."""
    shape = node.output.shape
    wanted: list[Rows | None] = []
    for x in node.inputs:
        same = [x.ndim > 0 and x.shape[i] == shape[i] for i in out.dims]
        if not all(same) and x.ndim > 0 and any(x.shape[i] != 1 for i in out.dims):
            return None
        wanted.append(out if all(same) else None)

    def emit(b: Builder, xs: Sequence[Value], rows: int) -> Sequence[Value]:
        xs = [
            x if w is not None or not x.ndim else b.reshape(x, out.cut(x.shape, 1))
            for x, w in zip(xs, wanted, strict=True)
        ]
        return b.emit(node.op, xs, node.attrs)

    return Carry(wanted, (out,) * len(node.outputs), emit)


def _broadcast(node: Node, known: Where) -> Carry | None:
    rows, dims, shape = _first(known), node.attrs["broadcast_dimensions"], node.output.shape
    to = [dims[i] for i in rows.dims]
    out = rows.moved(to[0])
    grown = any(shape[dims[i]] != node.inputs[0].shape[i] for i in rows.dims)
    if to != list(out.dims) or grown:
        return None
    return _broadcast_to(node, rows, out)


def _broadcast_to(node: Node, rows: Rows, out: Rows) -> Carry:
    dims = node.attrs["broadcast_dimensions"]
    places = tuple(out.place(dims[i]) for i in range(len(dims)) if i not in rows or i == rows.start)

    def emit(b: Builder, xs: Sequence[Value], count: int) -> Sequence[Value]:
        return [b.broadcast_in_dim(xs[0], out.cut(node.output.shape, count), places)]

    return Carry([rows], (out,), emit)


def _pull_broadcast(node: Node, out: Rows) -> Carry | None:
    (x,), dims, shape = node.inputs, node.attrs["broadcast_dimensions"], node.output.shape
    inside = [i for i, d in enumerate(dims) if d in out]
    if all(x.shape[i] == 1 for i in inside):  # the same for all rows
        kept = [i for i in range(x.ndim) if i not in inside]

        def emit(b: Builder, xs: Sequence[Value], rows: int) -> Sequence[Value]:
            small = b.reshape(xs[0], [x.shape[i] for i in kept])
            places = [out.place(dims[i]) for i in kept]
            return [b.broadcast_in_dim(small, out.cut(shape, rows), places)]

        return Carry([None], (out,), emit)
    whole = [dims[i] for i in inside] == list(out.dims)
    if not whole or any(x.shape[i] != shape[dims[i]] for i in inside):
        return None
    return _broadcast_to(node, out.moved(inside[0]), out)


def reshaped(rows: Rows, old: Sequence[int], new: Sequence[int]) -> Rows | None:
    """Where the rows of an array are once it has another shape; leading ones count as rows."""
    before, count = prod(old[: rows.start]), rows.count(old)
    start = 0
    while prod(new[:start]) < before and start < len(new):
        start += 1
    stop = start
    while prod(new[start:stop]) < count and stop < len(new):
        stop += 1
    found = Rows(start, stop)
    fits = prod(new[:start]) == before and found.count(new) == count and stop > start
    return found if fits else None


def _reshape(node: Node, known: Where) -> Carry | None:
    rows = _first(known)
    out = reshaped(rows, node.inputs[0].shape, node.output.shape)
    return None if out is None else _reshape_to(node, rows, out)


def _pull_reshape(node: Node, out: Rows) -> Carry | None:
    rows = reshaped(out, node.output.shape, node.inputs[0].shape)
    return None if rows is None else _reshape_to(node, rows, out)


def _reshape_to(node: Node, rows: Rows, out: Rows) -> Carry:
    def emit(b: Builder, xs: Sequence[Value], count: int) -> Sequence[Value]:
        return [b.reshape(xs[0], out.cut(node.output.shape, count))]

    return Carry([rows], (out,), emit)


def _transpose(node: Node, known: Where) -> Carry | None:
    rows, order = _first(known), list(node.attrs["permutation"])
    out = rows.moved(order.index(rows.start))
    if order[out.start : out.stop] != list(rows.dims):
        return None
    return Carry([rows], (out,), _same(node, permutation=rows.places(order)))


def _reduction(node: Node, known: Where) -> Carry | None:
    rows, axes = _first(known), node.attrs["axes"]
    if any(axis in rows for axis in axes):
        return None
    out = rows.moved(rows.start - sum(axis < rows.start for axis in axes))
    return Carry([rows], (out,), _same(node, axes=rows.places(axes)))


def _along(attr: str) -> Rule:
    """Ops that work along one axis, or several, each row by itself; shapes stay as they are."""

    def rule(node: Node, known: Where) -> Carry | None:
        rows, axes = _first(known), node.attrs[attr]
        each = (axes,) if isinstance(axes, int) else axes
        if any(axis in rows for axis in each):
            return None
        new = rows.place(axes) if isinstance(axes, int) else rows.places(axes)
        wanted = [rows] * len(node.inputs)
        return Carry(wanted, (rows,) * len(node.outputs), _same(node, **{attr: new}))

    return rule


def _slice(node: Node, known: Where) -> Carry | None:
    rows, shape = _first(known), node.inputs[0].shape
    low, high = node.attrs["start_indices"], node.attrs["limit_indices"]
    strides = node.attrs["strides"] or (1,) * len(shape)
    if any((low[i], high[i], strides[i]) != (0, shape[i], 1) for i in rows.dims):
        return None

    def emit(b: Builder, xs: Sequence[Value], count: int) -> Sequence[Value]:
        stops = rows.cut(high, count)
        return [b.slice(xs[0], rows.cut(low, 0), stops, rows.cut(strides, 1))]

    return Carry([rows], (rows,), emit)


def _pad(node: Node, known: Where) -> Carry | None:
    rows, config = known[0], node.attrs["padding_config"]
    if rows is None or any(any(config[i]) for i in rows.dims):
        return None
    new = (*config[: rows.start], (0, 0, 0), *config[rows.stop :])
    return Carry([rows, None], (rows,), _same(node, padding_config=new))


def _dot(node: Node, known: Where) -> Carry | None:
    """Rows are free in one operand, or batch dimensions of both."""
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    batch, free = len(xn), len(free_dims(x, xc, xn))
    side = 0 if known[0] is not None else 1
    rows = known[side]
    assert rows is not None
    wanted: list[Rows | None] = [None, None]
    wanted[side] = rows
    mine, other = ((xn, yn), (yn, xn))[side]
    if all(i in mine for i in rows.dims):
        at = [mine.index(i) for i in rows.dims]
        there = rows.moved(other[at[0]])
        if at != list(range(at[0], at[-1] + 1)) or [other[i] for i in at] != list(there.dims):
            return None
        wanted[1 - side], out = there, rows.moved(at[0])
    else:
        contract = (xc, yc)[side]
        if any(i in mine or i in contract for i in rows.dims):
            return None
        free_here = free_dims(node.inputs[side], contract, mine)
        out = rows.moved(batch + side * free + free_here.index(rows.start))
    at_x, at_y = (rows.places if rows else tuple for rows in wanted)
    numbers = ((at_x(xc), at_y(yc)), (at_x(xn), at_y(yn)))
    return Carry(wanted, (out,), _same(node, dimension_numbers=numbers))


def _gather(node: Node, known: Where) -> Carry | None:
    """Rows are batch dimensions of both, whole in each slice, or dimensions of the indices."""
    x, indices = node.inputs
    n = node.attrs["dimension_numbers"]
    sizes, offsets = node.attrs["slice_sizes"], list(n.offset_dims)
    batch = [i for i in range(node.output.ndim) if i not in offsets]  # of the indices, in order
    in_x, in_i = known
    if (
        in_x is None
        and in_i is not None
        and not any(i in n.start_indices_batching_dims for i in in_i.dims)
    ):
        if indices.ndim - 1 in in_i:
            return None
        out = in_i.moved(batch[in_i.start])
        if [batch[i] for i in in_i.dims] != list(out.dims):
            return None
        return Carry([None, in_i], (out,), _gathered(node, None, in_i, out))
    if in_x is None:
        assert in_i is not None
        at = [n.start_indices_batching_dims.index(i) for i in in_i.dims]
        in_x = in_i.moved(n.operand_batching_dims[at[0]])
    if all(i in n.operand_batching_dims for i in in_x.dims):
        at = [n.operand_batching_dims.index(i) for i in in_x.dims]
        there = in_x.moved(n.start_indices_batching_dims[at[0]])
        out = in_x.moved(batch[there.start])
        same = [n.start_indices_batching_dims[i] for i in at] == list(there.dims)
        if not same or [batch[i] for i in there.dims] != list(out.dims):
            return None
        return Carry([in_x, there], (out,), _gathered(node, in_x, there, out))
    kept = [
        i
        for i in range(x.ndim)
        if i not in n.collapsed_slice_dims and i not in n.operand_batching_dims
    ]
    if any(i not in kept or sizes[i] != x.shape[i] or i in n.start_index_map for i in in_x.dims):
        return None
    out = in_x.moved(offsets[kept.index(in_x.start)])
    if [offsets[kept.index(i)] for i in in_x.dims] != list(out.dims):
        return None
    return Carry([in_x, None], (out,), _gathered(node, in_x, None, out))


def _gathered(node: Node, x: Rows | None, indices: Rows | None, out: Rows) -> Emit:
    n, sizes = node.attrs["dimension_numbers"], node.attrs["slice_sizes"]
    at_x = x.places if x else tuple
    numbers = lax.GatherDimensionNumbers(
        offset_dims=out.places(n.offset_dims),
        collapsed_slice_dims=at_x(n.collapsed_slice_dims),
        start_index_map=at_x(n.start_index_map),
        operand_batching_dims=at_x(n.operand_batching_dims),
        start_indices_batching_dims=(indices.places if indices else tuple)(
            n.start_indices_batching_dims
        ),
    )

    def emit(b: Builder, xs: Sequence[Value], rows: int) -> Sequence[Value]:
        batched = x is not None and x.start in n.operand_batching_dims
        cut = x.cut(sizes, 1 if batched else rows) if x else sizes
        attrs = {**node.attrs, "dimension_numbers": numbers, "slice_sizes": cut}
        return b.emit(node.op, xs, attrs)

    return emit


def _pull_iota(node: Node, out: Rows) -> Carry | None:
    """What counts along another dimension is the same for all rows."""
    dim = node.attrs["dimension"]
    if dim in out:
        return None

    def emit(b: Builder, xs: Sequence[Value], rows: int) -> Sequence[Value]:
        return [b.iota(node.output.dtype, out.cut(node.output.shape, rows), out.place(dim))]

    return Carry([], (out,), emit)


ELEMENTWISE = frozenset(op.name for op in (*elementwise.OPS, *special.OPS)) | {"stop_gradient"}
REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"

CARRIED: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("copy", "name"), _elementwise),
    **dict.fromkeys(REDUCTIONS.split(), _reduction),
    **dict.fromkeys("cumsum cumlogsumexp cummax cummin cumprod".split(), _along("axis")),
    **dict.fromkeys(("concatenate", "sort"), _along("dimension")),
    "rev": _along("dimensions"),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "dot_general": _dot,
    "gather": _gather,
}
PULLED: Mapping[str, PullRule] = {
    **dict.fromkeys(ELEMENTWISE, _at_each_element),
    "broadcast_in_dim": _pull_broadcast,
    "reshape": _pull_reshape,
    "squeeze": _pull_reshape,
    "iota": _pull_iota,
}
