"""Collectives over named axes, of `jax.shard_map`, `jax.vmap(axis_name=...)` and `jax.pmap`.

Each is linear, and its VJP is its transpose over all places on the axes:

    pvary           <->  psum_invariant     copies become a sum, a sum becomes copies
    psum             ->  psum               a sum with its copies, where types are not checked
    all_gather      <->  reduce_scatter     (`jax.lax.psum_scatter`)
    all_gather_invariant -> own slice
    all_to_all       ->  all_to_all         split and concatenated axes change places
    ppermute         ->  ppermute           the inverse permutation

`jax.shard_map` tells in its types which axes a value varies over (`check_vma=True`); see
`varying.py`. They have no effects: equal ones may be merged, unread ones dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import lax

from .. import jax_compat
from ..op import Attrs, Op, call, no_gradient, one_flop, per_operand, primitive_op, same_type
from ..types import ArrayType

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Value


def names_of(attrs: Attrs) -> tuple[Any, ...]:
    """Return the named axes that a collective works over; positional ones are left out."""
    axes = attrs["axes"] if "axes" in attrs else attrs["axis_name"]
    listed = axes if isinstance(axes, tuple | list) else (axes,)
    return tuple(axis for axis in listed if not isinstance(axis, int))


def _positions(attrs: Attrs) -> tuple[int, ...]:
    return tuple(axis for axis in attrs["axes"] if isinstance(axis, int))


# Shapes


def _reduced(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,), gone = inputs, _positions(attrs)
    return (x.type.with_shape([n for i, n in enumerate(x.shape) if i not in gone]),)


def _gathered(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,), axis, count = inputs, attrs["all_gather_dimension"], attrs["axis_size"]
    shape = list(x.shape)
    if attrs["tiled"]:
        shape[axis] *= count
    else:
        shape.insert(axis, count)
    return (x.type.with_shape(shape),)


def _scattered(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,), axis = inputs, attrs["scatter_dimension"]
    shape = list(x.shape)
    if attrs["tiled"]:
        shape[axis] //= attrs["axis_size"]
    else:
        del shape[axis]
    return (x.type.with_shape(shape),)


def _exchanged(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    """Split one dimension, concatenate another: the number of places is in the attrs."""
    (x,), count = inputs, attrs["axis_size"]
    shape = list(x.shape)
    shape[attrs["split_axis"]] //= count
    shape[attrs["concat_axis"]] *= count
    return (ArrayType(tuple(shape), x.dtype),)


def _index(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return (ArrayType((), np.dtype(np.int32)),)


# Gradients


def _psum(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    """Sum over the named axes again; positional ones are broadcast."""
    named = names_of(attrs)
    whole = b.expand(g, x.shape, _positions(attrs))
    return b.one("psum", whole, **{**attrs, "axes": named}) if named else whole


def _psum_invariant(b: Builder, g: Value, o: Value, x: Value, *, axes: Any) -> Value:
    return b.one("pvary", g, axes=axes)


def _pvary(b: Builder, g: Value, o: Value, x: Value, *, axes: Any) -> Value:
    return b.one("psum_invariant", g, axes=axes)


def _all_gather(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    dimension = attrs.pop("all_gather_dimension")
    return b.one("reduce_scatter", g, scatter_dimension=dimension, **attrs)


def _reduce_scatter(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    dimension = attrs.pop("scatter_dimension")
    return b.one("all_gather", g, all_gather_dimension=dimension, **attrs)


def _all_gather_invariant(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    """Each place takes its own slice: g is the same everywhere, and varies from here on."""
    axis, count = attrs["all_gather_dimension"], attrs["axis_size"]
    names = names_of(attrs)
    size = g.shape[axis] // count
    index = b.one("axis_index", axis_name=names)
    zero = b.literal(0, index.dtype)
    starts = [b.mul(index, size) if i == axis else zero for i in range(g.ndim)]
    sizes = tuple(size if i == axis else n for i, n in enumerate(g.shape))
    whole = b.one("pvary", g, axes=names)
    own = b.emit("dynamic_slice", (whole, *starts), {"slice_sizes": sizes})[0]
    return b.reshape(own, x.shape)


def _all_to_all(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    swapped = {"split_axis": attrs["concat_axis"], "concat_axis": attrs["split_axis"]}
    return b.one("all_to_all", g, **{**attrs, **swapped})


def _ppermute(b: Builder, g: Value, o: Value, x: Value, *, axis_name: Any, perm: Any) -> Value:
    inverse = tuple((to, source) for source, to in perm)
    return b.one("ppermute", g, axis_name=axis_name, perm=inverse)


def _pbroadcast(b: Builder, g: Value, o: Value, x: Value, *, axis_name: Any, source: int) -> Value:
    """The source takes the sum, the others nothing."""
    names = names_of({"axis_name": axis_name})
    total = b.one("psum", g, axes=names, axis_index_groups=None)
    index = b.one("axis_index", axis_name=axis_name)
    return b.select(b.eq(index, source), total, b.zeros(g))


# Lowering


def _lower_pvary(args: Sequence[Any], attrs: Attrs, *rest: Any) -> list[Any]:
    return [jax_compat.pvary(args[0], attrs["axes"])]


def _lower_psum(args: Sequence[Any], attrs: Attrs, *rest: Any) -> list[Any]:
    """Copies of the sum at each place: where types are checked, they vary as the operand does."""
    total = lax.psum(args[0], attrs["axes"], axis_index_groups=attrs["axis_index_groups"])
    return [jax_compat.pvary(total, names_of(attrs))]


def _lower_all_to_all(args: Sequence[Any], attrs: Attrs, *rest: Any) -> list[Any]:
    params = {key: value for key, value in attrs.items() if key != "axis_size"}
    return jax_compat.bind("all_to_all", args, params)


PVARY = Op("pvary", same_type, _lower_pvary, vjp=per_operand(_pvary))

OPS: tuple[Op, ...] = (
    PVARY,
    primitive_op("psum_invariant", same_type, vjp=per_operand(_psum_invariant), flops=one_flop),
    Op("psum", _reduced, _lower_psum, vjp=per_operand(_psum), flops=one_flop),
    primitive_op("pmax", _reduced, flops=one_flop),
    primitive_op("pmin", _reduced, flops=one_flop),
    primitive_op("all_gather", _gathered, vjp=per_operand(_all_gather)),
    primitive_op("all_gather_invariant", _gathered, vjp=per_operand(_all_gather_invariant)),
    primitive_op("reduce_scatter", _scattered, vjp=per_operand(_reduce_scatter), flops=one_flop),
    Op("all_to_all", _exchanged, _lower_all_to_all, vjp=per_operand(_all_to_all)),
    primitive_op("ppermute", same_type, vjp=per_operand(_ppermute)),
    primitive_op("pbroadcast", same_type, vjp=per_operand(_pbroadcast)),
    Op("axis_index", _index, call(lax.axis_index), vjp=no_gradient),
)
