"""`shard_map(x) {mesh, in_specs, out_specs, manual_axes, check_vma} body`: one program a device.

    body: the shard of each input at one place of the mesh  ->  the shard of each output

Reverse mode is a second `shard_map`: the cotangent of an output comes in as the output went out,
that of an input goes out as the input came in. What the backward body reads of the forward one is
stored shard by shard, side by side along the first dimension.

Where the types are checked (`check_vma`), casts in the body say where a sum over devices belongs.
Where they are not, a cotangent of an output that is the same along some axes is shared out
between the places along them, and cotangents of such inputs are summed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .. import jax_compat
from ..errors import ShapeError
from ..op import Attrs, Cts, Differentiator, Op, Pullback, Split
from ..types import ArrayType
from .varying import Axes, aligned, spec_axes, varying

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value


def _types(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    sizes, (body,) = dict(attrs["mesh"].shape), regions
    for value, shard, spec in zip(inputs, body.inputs, attrs["in_specs"], strict=True):
        whole = _whole(shard.type, spec, sizes)
        if (whole.shape, whole.dtype) != (value.shape, value.dtype):
            raise ShapeError(f"shard_map wants {whole}, shards of {shard.type}, got {value.type}")
    return tuple(
        _whole(value.type, spec, sizes)
        for value, spec in zip(body.outputs, attrs["out_specs"], strict=True)
    )


def _whole(shard: ArrayType, spec: Any, sizes: dict[Any, int]) -> ArrayType:
    """Type of the array that a shard is a part of."""
    shape = list(shard.shape)
    for i, part in enumerate(spec):
        names = part if isinstance(part, tuple) else (part,)
        shape[i] *= prod(sizes[name] for name in names if name is not None)
    return shard.with_shape(shape)


def _lower(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    layout = Layout.of(attrs)
    (body,) = regions

    def shards(*xs: Any) -> tuple[Any, ...]:
        own = [jax_compat.varying_axes(x) for x in xs]
        return tuple(run(layout.cast(body, own) if layout.checked else body, *xs))

    mapped = jax.shard_map(
        shards,
        mesh=layout.here,
        in_specs=layout.in_specs,
        out_specs=layout.out_specs,
        axis_names=set(layout.axes),
        check_vma=layout.checked,
    )
    return list(mapped(*map(layout.placed, args, layout.in_specs)))


@dataclass(frozen=True, slots=True)
class Layout:
    """The attributes of a `shard_map`."""

    mesh: Any
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    axes: Axes
    checked: bool

    @classmethod
    def of(cls, attrs: Attrs) -> Layout:
        """Read a node's attributes."""
        names = ("mesh", "in_specs", "out_specs", "manual_axes", "check_vma")
        return cls(*(attrs[name] for name in names))

    @property
    def manual(self) -> Axes:
        """All axes that are manual inside: a surrounding `shard_map`'s besides its own."""
        return self.axes | frozenset(getattr(self.mesh, "manual_axes", ()))

    def inside(self, spec: Any) -> Axes:
        """Axes that a shard of `spec` varies over; along a surrounding map's, all may."""
        return spec_axes(spec) | (self.manual - self.axes)

    def attrs(self, in_specs: Sequence[Any], out_specs: Sequence[Any]) -> dict[str, Any]:
        """Attributes of a map on the same mesh."""
        return {
            "mesh": self.mesh,
            "in_specs": tuple(in_specs),
            "out_specs": tuple(out_specs),
            "manual_axes": self.axes,
            "check_vma": self.checked,
        }

    def cast(self, body: Graph, own: Sequence[Axes]) -> Graph:
        """Return the body with the casts that JAX's types want; inputs vary over `own`."""
        return aligned(body, own, self.manual, list(map(spec_axes, self.out_specs)))

    def ordered(self, axes: Axes) -> tuple[Any, ...]:
        """Axes in the order of the mesh."""
        return tuple(name for name in self.mesh.axis_names if name in axes)

    def unnamed(self, spec: Any) -> tuple[Any, ...]:
        """The map's own axes that `spec` does not name, along which an array is the same."""
        return self.ordered(self.axes - spec_axes(spec))

    def count(self, axes: Sequence[Any]) -> int:
        """Number of places along `axes`."""
        return prod(self.mesh.shape[name] for name in axes)

    @property
    def here(self) -> Any:
        """The mesh; that of the context, None, where this leaves its explicit axes to XLA."""
        around = jax.sharding.get_abstract_mesh()
        same = not around.empty and set(around.axis_names) == set(self.mesh.axis_names)
        left = same and jax_compat.is_explicit(self.mesh) and not jax_compat.is_explicit(around)
        return None if left else self.mesh

    def placed(self, x: Any, spec: Any) -> Any:
        """Bring an array to where its spec wants it, on meshes whose shardings are explicit."""
        if self.here is None:
            return x
        types = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        if any(types[name] != AxisType.Explicit for name in self.axes):
            return x
        return jax.sharding.reshard(x, NamedSharding(self.mesh, spec))


def _linearise(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    layout = Layout.of(node.attrs)
    (body,) = node.regions
    if layout.checked:
        body = layout.cast(body, list(map(layout.inside, layout.in_specs)))
    active_outs = ad.activity(body, needs)
    split = ad.split(body, needs, seeds=active_outs)
    count = len(body.outputs)
    specs = _stored_specs(layout, split.forward, count)
    forward = _boxed_forward(b, split.forward, count)
    attrs = layout.attrs(layout.in_specs, (*layout.out_specs, *specs))
    found = b.emit("shard_map", node.inputs, attrs, (forward,))
    outputs, stored = found[:count], found[count:]

    def pullback(b: Builder, cts: Cts) -> Cts:
        residuals = [
            (node.inputs[i], layout.in_specs[i]) if kind == "input" else (stored[i], specs[i])
            for kind, i in split.residuals
        ]
        return _backward(b, layout, node, split, residuals, needs, cts)

    return outputs, pullback


def _stored_specs(layout: Layout, forward: Graph, count: int) -> list[Any]:
    """Return the spec of each stored residual: the axes that it varies over, as one dimension."""
    if not layout.checked:
        return [PartitionSpec(layout.ordered(layout.axes))] * (len(forward.outputs) - count)
    inside = list(map(layout.inside, layout.in_specs))
    found = varying(forward, inside, layout.manual)[count:]
    return [
        PartitionSpec(layout.ordered(axes & layout.axes)) if axes & layout.axes else PartitionSpec()
        for axes in found
    ]


def _boxed_forward(b: Builder, forward: Graph, count: int) -> Graph:
    """Give stored scalars a dimension, along which those of all places can lie side by side."""
    stored = forward.outputs[count:]
    if all(value.ndim for value in stored):
        return forward
    inputs, sub = b.fresh(forward.inputs), b.nested()
    outs, _ = sub.inline(forward, inputs)
    boxed = [sub.reshape(value, value.shape or (1,)) for value in outs[count:]]
    return sub.graph(forward.name, inputs, (*outs[:count], *boxed))


def _backward(
    b: Builder,
    layout: Layout,
    node: Node,
    split: Split,
    residuals: Sequence[tuple[Value, Any]],
    needs: Sequence[bool],
    cts: Cts,
) -> Cts:
    """Emit the map of the backward body; outputs without a cotangent get zeros made inside."""
    sub = b.nested()
    operands: list[tuple[Value, Value, Any]] = []  # inside, outside, spec

    def take(type: ArrayType, outer: Value, spec: Any) -> Value:
        operands.append((sub.value(type), outer, spec))
        return operands[-1][0]

    def residual(inner: Value, kind: str, outer: Value, spec: Any) -> Value:
        boxed = kind == "stored" and not inner.shape
        given = take(inner.type.with_shape((1,)) if boxed else inner.type, outer, spec)
        return sub.reshape(given, inner.shape)

    def seed(i: int) -> Value:
        type, spec, ct = split.forward.outputs[i].type.strong(), layout.out_specs[i], cts[i]
        if ct is None:
            return sub.empty(type)
        given, places = take(type, ct, spec), layout.count(layout.unnamed(spec))
        return given if layout.checked or places == 1 else sub.div(given, places)

    chosen = [
        residual(inner, kind, outer, spec)
        for inner, (kind, _), (outer, spec) in zip(
            split.backward.inputs, split.residuals, residuals, strict=False
        )
    ]
    found, _ = sub.inline(split.backward, (*chosen, *map(seed, split.seeds)))
    specs = [spec for spec, needed in zip(layout.in_specs, needs, strict=True) if needed]
    if not layout.checked:
        summed = zip(found, map(layout.unnamed, specs), strict=True)
        found = tuple(_summed(sub, ct, axes) for ct, axes in summed)
    graph = sub.graph(split.backward.name, [inner for inner, _, _ in operands], found)
    attrs = layout.attrs([spec for _, _, spec in operands], specs)
    grads = iter(b.emit("shard_map", [outer for _, outer, _ in operands], attrs, (graph,)))
    return [next(grads) if needed else None for needed in needs]


def _summed(b: Builder, ct: Value, axes: Sequence[Any]) -> Value:
    return b.one("psum", ct, axes=tuple(axes), axis_index_groups=None) if axes else ct


def meshes_of(graph: Graph) -> list[Any]:
    """Return the meshes of devices that a graph's nodes name."""
    found: dict[Any, None] = {}
    for node in graph.walk():
        sharding = node.attrs.get("sharding")
        mesh = node.attrs.get("mesh", getattr(sharding, "mesh", None))
        if isinstance(mesh, Mesh):
            found[mesh] = None
    return list(found)


def _flops(node: Node) -> int:
    """Those of one device."""
    return sum(inner.op.flops(inner) for inner in node.regions[0].nodes)


OPS: tuple[Op, ...] = (Op("shard_map", _types, _lower, linearise=_linearise, flops=_flops),)
