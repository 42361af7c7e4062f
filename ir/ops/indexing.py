"""Gather, scatter and dynamic slices.

A gather's gradient is a scatter-add, right for embedding tables. Where one element is picked
from each row (a label's logit, `take_along_axis`), it is a compare and a select instead, which
XLA fuses with what stands around it: (iota = index) ? g : 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import lax

from ..errors import MissingRuleError
from ..op import Cts, Op, VjpRule, call, primitive_op, shape_by_jax
from .structural import without

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value

Dims = tuple[int, ...]
Mode = lax.GatherScatterMode


def _gather(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), (x, indices) = cts, node.inputs
    assert g is not None
    axis = _picked_axis(node)
    if axis is None:
        attrs = _scatter_attrs(node.attrs)
        return [b.one("scatter-add", b.zeros(x), indices, g, **attrs), None]
    return [_one_hot(b, g, x, indices, axis, node.attrs), None]


def _picked_axis(node: Node) -> int | None:
    """The axis along which one element is picked from each row, the rest being in order.

    With several picks a scatter-add is as fast: a sum of selects is one reduction or many
    slices, and slicing what `top_k` gives makes XLA run a whole sort in its place.
    """
    x, indices = node.inputs
    numbers, sizes = node.attrs["dimension_numbers"], node.attrs["slice_sizes"]
    batching = numbers.operand_batching_dims
    if len(numbers.start_index_map) != 1 or _picks(node) != 1:
        return None
    (axis,) = numbers.start_index_map
    others = (i for i in range(x.ndim) if i != axis and i not in batching)
    whole = all(sizes[i] == x.shape[i] and i not in numbers.collapsed_slice_dims for i in others)
    return int(axis) if whole and sizes[axis] == 1 and x.shape[axis] else None


def _picks(node: Node) -> int:
    """Number of index positions for each element of the batching dimensions."""
    batching = node.attrs["dimension_numbers"].start_indices_batching_dims
    return prod(without(node.inputs[1].shape[:-1], batching))


def _one_hot(b: Builder, g: Value, x: Value, indices: Value, axis: int, attrs: Any) -> Value:
    """(iota = index) ? g : 0, in the operand's layout.

    An index out of bounds meets no element of the iota; with mode CLIP it is clamped first.
    """
    numbers = attrs["dimension_numbers"]
    batching: dict[int, int] = dict(
        zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    offsets = [int(i) for i in numbers.offset_dims]
    collapsed = {*numbers.collapsed_slice_dims, *batching.values()}
    windows = dict(zip(offsets, (i for i in range(x.ndim) if i not in collapsed), strict=True))
    index_dims = {i: n for n, i in enumerate(i for i in range(g.ndim) if i not in offsets)}
    home = {i: windows.get(i, batching.get(index_dims.get(i, -1), -1)) for i in range(g.ndim)}
    index = _spread(b, b.reshape(indices, indices.shape[:-1]), batching, x.shape)
    index = _bounded(b, index, x.shape[axis], attrs["mode"])
    row = _spread(b, g, {i: d for i, d in home.items() if d not in (axis, -1)}, x.shape)
    here = b.eq(b.iota(index.dtype, x.shape, axis), index)
    return b.select(here, row, b.full(x.shape, 0, g.dtype))


def _spread(b: Builder, v: Value, home: dict[int, int], shape: Dims) -> Value:
    """Broadcast `v` to `shape`, its dimension i going to `home[i]`; those without have size 1."""
    kept = sorted(home, key=lambda i: home[i])
    rest = [i for i in range(v.ndim) if i not in home]
    moved = b.reshape(b.transpose(v, (*rest, *kept)), [v.shape[i] for i in kept])
    return b.broadcast_in_dim(moved, shape, [home[i] for i in kept])


def _bounded(b: Builder, indices: Value, size: int, mode: Any) -> Value:
    """Indices as an iota of `size` can meet them: wide enough, and clamped in mode CLIP."""
    if np.dtype(indices.dtype).itemsize < 4:
        indices = b.convert(indices, np.dtype(np.int32))
    if mode != Mode.CLIP:
        return indices
    low, high = b.literal(0, indices.dtype), b.literal(size - 1, indices.dtype)
    return b.one("clamp", low, indices, high)


def _scatter_attrs(attrs: Any) -> dict[str, Any]:
    """Attributes of the scatter that puts back what a gather read."""
    numbers = attrs["dimension_numbers"]
    back = lax.ScatterDimensionNumbers(
        update_window_dims=numbers.offset_dims,
        inserted_window_dims=numbers.collapsed_slice_dims,
        scatter_dims_to_operand_dims=numbers.start_index_map,
        operand_batching_dims=numbers.operand_batching_dims,
        scatter_indices_batching_dims=numbers.start_indices_batching_dims,
    )
    return _common(attrs) | {"dimension_numbers": back}


def _common(attrs: Any) -> dict[str, Any]:
    return {key: attrs[key] for key in ("indices_are_sorted", "unique_indices", "mode")}


def _read(b: Builder, v: Value, node: Node) -> Value:
    """Read from `v`, shaped as a scatter's operand, at the places of the scatter's updates."""
    _, indices, updates = node.inputs
    numbers = node.attrs["dimension_numbers"]
    window = (updates.shape[i] for i in numbers.update_window_dims)
    points = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    sizes = tuple(1 if i in points else int(next(window)) for i in range(v.ndim))
    forth = lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )
    attrs = _common(node.attrs) | {"dimension_numbers": forth, "slice_sizes": sizes}
    return b.one("gather", v, indices, **attrs, fill_value=0)


def _write(b: Builder, op: str, v: Value, updates: Value, node: Node) -> Value:
    """Scatter `updates` into `v` as `node` does."""
    return b.one(op, v, node.inputs[1], updates, **node.attrs)


def _scatter_add(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,) = cts
    assert g is not None
    return [g if needs[0] else None, None, _read(b, g, node) if needs[2] else None]


def _scatter_sub(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,) = cts
    assert g is not None
    return [g if needs[0] else None, None, b.neg(_read(b, g, node)) if needs[2] else None]


def _is_unique(node: Node) -> bool:
    return bool(node.attrs["unique_indices"]) or prod(node.inputs[1].shape[:-1]) == 1


def _scatter(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """To the update that was written, to the operand where nothing was.

    Where several updates may have met, each one's number is scattered in the same way: that
    tells which was the last.
    """
    (g,), (x, _, updates) = cts, node.inputs
    assert g is not None
    kept = _write(b, "scatter", g, b.zeros(updates), node) if needs[0] else None
    if not needs[2] or _is_unique(node):
        return [kept, None, _read(b, g, node) if needs[2] else None]
    number = _numbers(b, node)
    winner = _write(b, "scatter", b.full(x.shape, 0, number.dtype), number, node)
    won = b.eq(_read(b, winner, node), number)
    return [kept, None, b.select(won, _read(b, g, node), b.zeros(updates))]


def _numbers(b: Builder, node: Node) -> Value:
    """1, 2, 3, ... for each index position, in the shape of the updates."""
    updates = node.inputs[2]
    window = node.attrs["dimension_numbers"].update_window_dims
    places = [i for i in range(updates.ndim) if i not in window]
    shape = [updates.shape[i] for i in places]
    flat = b.add(b.iota(np.int32, (prod(shape),), 0), 1)
    return b.broadcast_in_dim(b.reshape(flat, shape), updates.shape, places)


def _scatter_mul(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """g times the product of all others; for the updates only where their places are unique."""
    (g,), (x, _, updates) = cts, node.inputs
    assert g is not None
    if needs[2] and not _is_unique(node):
        raise MissingRuleError(
            "scatter-mul is differentiable by its updates only with unique indices, got "
            f"{updates.type} at indices that may repeat; pass unique_indices=True if they do not"
        )
    kept = _write(b, "scatter-mul", g, updates, node) if needs[0] else None
    return [kept, None, _read(b, b.mul(g, x), node) if needs[2] else None]


def _scatter_extremum(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """Equal shares to the operand and to all updates that attain the extremum."""
    (g,), (x, _, updates), (o,) = cts, node.inputs, node.outputs
    assert g is not None
    kept = b.convert(b.eq(x, o), g.dtype)
    attained = b.convert(b.eq(updates, _read(b, o, node)), g.dtype)
    share = b.div(g, _write(b, "scatter-add", kept, attained, node))
    return [
        b.mul(kept, share) if needs[0] else None,
        None,
        b.mul(attained, _read(b, share, node)) if needs[2] else None,
    ]


def _dynamic_slice(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), (x, *starts) = cts, node.inputs
    assert g is not None
    back = b.one("dynamic_update_slice", b.zeros(x), g, *starts) if needs[0] else None
    return [back, *[None] * len(starts)]


def _dynamic_update_slice(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), (_, update, *starts) = cts, node.inputs
    assert g is not None
    hidden = b.one("dynamic_update_slice", g, b.zeros(update), *starts) if needs[0] else None
    part = b.one("dynamic_slice", g, *starts, slice_sizes=update.shape) if needs[1] else None
    return [hidden, part, *[None] * len(starts)]


def _scatter_op(name: str, function: Callable[..., Any], rule: VjpRule) -> Op:
    """Lowered by `jax.lax`, which makes the update function that the primitive carries."""
    lower = call(function)
    return Op(name, shape_by_jax(lower), lower, vjp=rule, flops=_updates)


def _updates(node: Node) -> int:
    return node.inputs[2].type.size


OPS: tuple[Op, ...] = (
    primitive_op("gather", vjp=_gather),
    _scatter_op("scatter", lax.scatter, _scatter),
    _scatter_op("scatter-add", lax.scatter_add, _scatter_add),
    _scatter_op("scatter-sub", lax.scatter_sub, _scatter_sub),
    _scatter_op("scatter-mul", lax.scatter_mul, _scatter_mul),
    _scatter_op("scatter-min", lax.scatter_min, _scatter_extremum),
    _scatter_op("scatter-max", lax.scatter_max, _scatter_extremum),
    primitive_op("dynamic_slice", vjp=_dynamic_slice),
    primitive_op("dynamic_update_slice", vjp=_dynamic_update_slice),
)
