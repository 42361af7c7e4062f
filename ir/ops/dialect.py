"""Our own small dialect, and ops that only mark something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax import lax

from ..errors import ArgumentError
from ..op import Attrs, Cts, LowerRule, Op, primitive_op, same_type
from ..types import ArrayType, type_of

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value


def _constant_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return (type_of(attrs["value"]),)


def _constant(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    return [attrs["value"]]


def _gradients_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    (function,) = regions
    outputs = [value.type for value in function.outputs]
    return (*outputs, *(inputs[i].type for i in attrs["wrt"]))


def _gradients(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    raise ArgumentError("the program asks for gradients, and its pipeline has no autodiff pass")


def _barrier_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return tuple(value.type for value in inputs)


def _barrier(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    return list(lax.optimization_barrier(tuple(args)))


def _barrier_vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """The cotangents pass a barrier of their own."""
    known = [ct for ct in cts if ct is not None]
    fenced = iter(b.optimization_barrier(*known))
    return [None if ct is None else next(fenced) for ct in cts]


def _offload_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return (inputs[0].type.on_host(),)


def _fetch_shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return (inputs[0].type.on_host(False),)


def _put(space: Any) -> LowerRule:
    """Lowering that copies to a memory; on a CPU, XLA leaves the array where it is."""
    return lambda args, attrs, regions, run: [jax.device_put(args[0], space)]


def _name_vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    return cts


OPS: tuple[Op, ...] = (
    Op("constant", _constant_shape, _constant),
    Op("gradients", _gradients_shape, _gradients),
    Op("optimization_barrier", _barrier_shape, _barrier, vjp=_barrier_vjp, effect="barrier"),
    Op("offload", _offload_shape, _put(jax.memory.Space.Host), vjp=_name_vjp),
    Op("fetch", _fetch_shape, _put(jax.memory.Space.Device), vjp=_name_vjp),
    primitive_op("name", same_type, vjp=_name_vjp),
)
