"""Ops that move elements and do no arithmetic: reshape, transpose, pad, slice, concatenate, ...

Each is linear with coefficients 0 and 1, so its VJP is the op that moves the elements back, and
sums where one element went to several places. The shape rules are plain Python: these are half
of the nodes of a real program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import with_layout_constraint

from .. import jax_compat
from ..errors import ShapeError
from ..op import Attrs, Cts, Op, ShapeRule, call, no_gradient, per_operand, primitive_op
from ..types import ArrayType

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Dims = tuple[int, ...]


def one_operand(dims: Callable[[ArrayType, Attrs], Sequence[int]]) -> ShapeRule:
    """Shape rule of an op with one operand and one output: `dims(type, attrs)`, dtype stays."""

    def shape(
        inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
    ) -> tuple[ArrayType, ...]:
        (x,) = inputs
        return (x.type.with_shape(dims(x.type, attrs)),)

    return shape


def axes_of(op: str, x: ArrayType, axes: Sequence[int]) -> Sequence[int]:
    """Return `axes` if they are distinct dimensions of x. Raises `ShapeError` otherwise."""
    if len(set(axes)) != len(axes) or any(not 0 <= axis < x.ndim for axis in axes):
        raise ShapeError(f"{op} wants distinct dimensions of {x}, got {tuple(axes)}")
    return axes


def without(shape: Sequence[int], axes: Sequence[int]) -> Dims:
    """Return the dimensions of a shape that are not in `axes`."""
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def replaced(shape: Sequence[int], axis: int, size: int) -> Dims:
    """Return a shape with another size along one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


# Shapes


def _broadcast_dims(x: ArrayType, attrs: Attrs) -> Dims:
    shape, dims = tuple(attrs["shape"]), tuple(attrs["broadcast_dimensions"])
    ascending = list(dims) == sorted(set(dims)) and set(dims) <= {*range(len(shape))}
    fits = ascending and len(dims) == x.ndim
    if not fits or any(n not in (1, shape[i]) for n, i in zip(x.shape, dims, strict=True)):
        raise ShapeError(
            f"broadcast_in_dim cannot broadcast {x} to {list(shape)} along dimensions {dims}"
        )
    return shape


def _reshape_dims(x: ArrayType, attrs: Attrs) -> Dims:
    shape = tuple(attrs["new_sizes"])
    if attrs.get("dimensions") is not None:
        raise ShapeError("reshape takes no dimensions here; transpose first")
    if prod(shape) != x.size or any(size < 0 for size in shape):
        raise ShapeError(f"reshape wants as many elements as {x} has, got {list(shape)}")
    return shape


def _squeeze_dims(x: ArrayType, attrs: Attrs) -> Dims:
    axes = axes_of("squeeze", x, attrs["dimensions"])
    if any(x.shape[axis] != 1 for axis in axes):
        raise ShapeError(f"squeeze wants dimensions of size 1 of {x}, got {tuple(axes)}")
    return without(x.shape, axes)


def _transpose_dims(x: ArrayType, attrs: Attrs) -> Dims:
    permutation = attrs["permutation"]
    if sorted(permutation) != list(range(x.ndim)):
        raise ShapeError(f"transpose wants a permutation of {x}'s dimensions, got {permutation}")
    return tuple(x.shape[i] for i in permutation)


def _rev_dims(x: ArrayType, attrs: Attrs) -> Dims:
    axes_of("rev", x, attrs["dimensions"])
    return x.shape


def strided(start: int, limit: int, stride: int) -> int:
    """Return the number of elements of `start:limit:stride`."""
    return max(0, -(-(limit - start) // stride))


def _slice_dims(x: ArrayType, attrs: Attrs) -> Dims:
    start, limit = attrs["start_indices"], attrs["limit_indices"]
    strides = attrs["strides"] or (1,) * x.ndim
    ranks = {len(start), len(limit), len(strides)}
    if ranks != {x.ndim} or not all(
        0 <= lo <= hi <= n and step > 0
        for lo, hi, step, n in zip(start, limit, strides, x.shape, strict=True)
    ):
        raise ShapeError(f"slice {start} to {limit} by {strides} lies outside of {x}")
    return tuple(map(strided, start, limit, strides))


def _tile_dims(x: ArrayType, attrs: Attrs) -> Dims:
    reps = attrs["reps"]
    if len(reps) != x.ndim or any(n < 0 for n in reps):
        raise ShapeError(f"tile wants one count for each dimension of {x}, got {reps}")
    return tuple(size * n for size, n in zip(x.shape, reps, strict=True))


def _concatenate_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    axis, first = attrs["dimension"], inputs[0].type
    rest = {(x.dtype, x.ndim, without(x.shape, (axis,))) for x in inputs}
    if len(rest) != 1 or not 0 <= axis < first.ndim:
        types = ", ".join(str(value.type) for value in inputs)
        raise ShapeError(f"concatenate along {axis} wants arrays alike elsewhere, got {types}")
    total = sum(x.shape[axis] for x in inputs)
    weak = all(x.type.weak for x in inputs)
    return (ArrayType(replaced(first.shape, axis, total), first.dtype, weak),)


def _pad_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    x, fill = (value.type for value in inputs)
    config = attrs["padding_config"]
    if fill.ndim or fill.dtype != x.dtype or len(config) != x.ndim:
        raise ShapeError(
            f"pad wants a scalar of the operand's dtype and {x.ndim} triples, got {x}, {fill} "
            f"and {config}"
        )
    shape = tuple(
        lo + hi + n + max(0, n - 1) * mid for n, (lo, hi, mid) in zip(x.shape, config, strict=True)
    )
    if any(size < 0 for size in shape) or any(mid < 0 for _, _, mid in config):
        raise ShapeError(f"pad by {config} leaves a negative size of {x}")
    return (ArrayType(shape, x.dtype, x.weak and fill.weak),)


def _split_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,), sizes, axis = inputs, attrs["sizes"], attrs["axis"]
    axes_of("split", x.type, (axis,))
    if sum(sizes) != x.shape[axis] or any(size < 0 for size in sizes):
        raise ShapeError(f"split of {x.type} along {axis} wants sizes that add up, got {sizes}")
    return tuple(x.type.with_shape(replaced(x.shape, axis, int(size))) for size in sizes)


def _unstack_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (x,), axis = inputs, attrs["axis"]
    axes_of("unstack", x.type, (axis,))
    return (x.type.with_shape(without(x.shape, (axis,))),) * x.shape[axis]


def _stack_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    axis, first = attrs["axis"], inputs[0].type
    if any((v.shape, v.dtype) != (first.shape, first.dtype) for v in inputs):
        types = ", ".join(str(value.type) for value in inputs)
        raise ShapeError(f"stack wants operands of one type, got {types}")
    shape = (*first.shape[:axis], len(inputs), *first.shape[axis:])
    return (ArrayType(shape, first.dtype, all(v.type.weak for v in inputs)),)


def _iota_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    iota = ArrayType(tuple(attrs["shape"]), attrs["dtype"])
    axes_of("iota", iota, (attrs["dimension"],))
    return (iota,)


def _pass_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return tuple(value.type for value in inputs)


# Gradients


def _broadcast(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    """Sum over what is new, and over what had size one."""
    dims = attrs["broadcast_dimensions"]
    same = {i for i, n in zip(dims, x.shape, strict=True) if n == g.shape[i]}
    return b.reshape(b.reduce_sum(g, [i for i in range(g.ndim) if i not in same]), x.shape)


def _transpose(b: Builder, g: Value, o: Value, x: Value, *, permutation: Dims) -> Value:
    return b.transpose(g, sorted(range(x.ndim), key=lambda i: permutation[i]))


def _slice(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    """Zeros where nothing was read."""
    config = []
    for i, (n, m) in enumerate(zip(x.shape, g.shape, strict=True)):
        start, step = attrs["start_indices"][i], (attrs["strides"] or {i: 1})[i]
        config.append((start, n - start - (m - 1) * step - 1 if m else n - start, step - 1))
    return b.pad(g, 0, config)


def unpad(b: Builder, g: Value, x: Value, config: Sequence[tuple[int, int, int]]) -> Value:
    """Cut the edges off, with zeros where the pad had cut; then drop what lies between."""
    whole = b.pad(g, 0, [(-lo, -hi, 0) for lo, hi, _ in config])
    steps = [mid + 1 for _, _, mid in config]
    if all(step == 1 for step in steps):
        return whole
    return b.slice(whole, [0] * x.ndim, whole.shape, tuple(steps))


def _pad(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), (x, _) = cts, node.inputs
    assert g is not None
    inner = unpad(b, g, x, node.attrs["padding_config"])
    outer = None
    if needs[1]:
        total = b.reduce_sum(g, range(g.ndim))
        outer = b.sub(total, b.reduce_sum(inner, range(x.ndim)))
    return [inner if needs[0] else None, outer]


def _concatenate(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), axis = cts, node.attrs["dimension"]
    assert g is not None
    found: list[Value | None] = []
    start = 0
    for x, needed in zip(node.inputs, needs, strict=True):
        limit = start + x.shape[axis]
        found.append(b.slice_in_dim(g, start, limit, axis) if needed else None)
        start = limit
    return found


def _joined(b: Builder, node: Node, cts: Cts, axis: int) -> Value:
    """Cotangents of all outputs side by side, zeros for those that are None."""
    parts = [b.zeros(o) if g is None else g for o, g in zip(node.outputs, cts, strict=True)]
    return b.concatenate(parts, axis)


def _split(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    return [_joined(b, node, cts, node.attrs["axis"])]


def _stack(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """Return each operand's slice."""
    (g,), axis = cts, node.attrs["axis"]
    assert g is not None
    return [
        b.reshape(b.slice_in_dim(g, i, i + 1, axis), value.shape) if needed else None
        for i, (value, needed) in enumerate(zip(node.inputs, needs, strict=True))
    ]


def _unstack(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    axis, shape = node.attrs["axis"], node.inputs[0].shape
    slab = replaced(shape, axis, 1)
    parts = [
        b.full(slab, 0, o.dtype) if g is None else b.expand(g, slab, (axis,))
        for o, g in zip(node.outputs, cts, strict=True)
    ]
    return [b.concatenate(parts, axis)]


def _tile(b: Builder, g: Value, o: Value, x: Value, *, reps: Dims) -> Value:
    """Sum the copies: (r n) -> (r, n), where there is more than one."""
    pairs = [size for n, r in zip(x.shape, reps, strict=True) for size in (r, n)]
    copies = [2 * i for i, r in enumerate(reps) if r != 1]
    return b.reshape(b.reduce_sum(b.reshape(g, pairs), copies), x.shape) if copies else g


def _pass(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    return list(cts)


def _same_op(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """The cotangent goes where the value went."""
    (g,) = cts
    assert g is not None
    return list(b.emit(node.op, (g,), node.attrs))


def _constrain_layout(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    (x,) = args
    return [with_layout_constraint(jnp.asarray(x), attrs["layout"])]


def _reshard(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """The cotangent goes back to where the value came from."""
    (g,), attrs = cts, node.attrs
    assert g is not None
    turned = {"dst_sharding": attrs["src_sharding"], "src_sharding": attrs["dst_sharding"]}
    return list(b.emit("reshard", (g,), {**attrs, **turned}))


def _lower_reshard(args: Sequence[Any], attrs: Attrs, *rest: Any) -> list[Any]:
    """A constraint, where explicit axes are left to XLA: see `runtime/lower.py`."""
    mesh, wanted = jax.sharding.get_abstract_mesh(), attrs["dst_sharding"]
    if mesh.empty or jax_compat.is_explicit(mesh):
        kept = {key: value for key, value in attrs.items() if key != "src_sharding"}
        return jax_compat.bind("reshard", args, kept)
    if not jax_compat.is_explicit(wanted.mesh):  # a cast to such axes
        return list(args)
    spec = jax.sharding.NamedSharding(mesh, wanted.spec)
    return [jax.lax.with_sharding_constraint(args[0], spec)]


OPS: tuple[Op, ...] = (
    primitive_op("broadcast_in_dim", one_operand(_broadcast_dims), vjp=per_operand(_broadcast)),
    primitive_op(
        "reshape",
        one_operand(_reshape_dims),
        vjp=per_operand(lambda b, g, o, x, **attrs: b.reshape(g, x.shape)),
    ),
    primitive_op(
        "squeeze",
        one_operand(_squeeze_dims),
        vjp=per_operand(lambda b, g, o, x, **attrs: b.reshape(g, x.shape)),
    ),
    primitive_op("transpose", one_operand(_transpose_dims), vjp=per_operand(_transpose)),
    primitive_op(
        "rev",
        one_operand(_rev_dims),
        vjp=per_operand(lambda b, g, o, x, *, dimensions: b.rev(g, dimensions)),
    ),
    primitive_op("slice", one_operand(_slice_dims), vjp=per_operand(_slice)),
    primitive_op("pad", _pad_shape, vjp=_pad),
    primitive_op("concatenate", _concatenate_shape, vjp=_concatenate),
    Op("split", _split_shape, call(lax.split), vjp=_split),
    Op("stack", _stack_shape, lambda args, attrs, *_: [lax.stack(args, **attrs)], vjp=_stack),
    Op("unstack", _unstack_shape, call(lax.unstack), vjp=_unstack),
    Op("tile", one_operand(_tile_dims), call(lax.tile), vjp=per_operand(_tile)),
    primitive_op("iota", _iota_shape, vjp=no_gradient),
    primitive_op("device_put", _pass_shape, vjp=_pass),
    primitive_op("stage", _pass_shape, vjp=_pass),
    primitive_op("sharding_constraint", _pass_shape, vjp=_same_op),
    Op("layout_constraint", _pass_shape, _constrain_layout, vjp=_same_op),
    Op("reshard", _pass_shape, _lower_reshard, vjp=_reshard),
)
