"""`linear_call(residuals, x) {residuals} f, f^T`: a linear function that brings its transpose.

f:   residuals ++ x -> y,  linear in x          f^T: residuals ++ y -> x
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jax.custom_derivatives import linear_call

from ..op import Attrs, Cts, Op
from .calls import region_types

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node


def _lower(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    """Rebind, so that a caller's own `jax.grad` still meets the transpose."""
    count = attrs["residuals"]
    there, back = ((lambda r, x, body=body: run(body, *r, *x)) for body in regions)
    return list(linear_call(there, back, list(args[:count]), list(args[count:])))


def _vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """The other function, called with this one as its transpose."""
    count = node.attrs["residuals"]
    given = [b.zeros(y) if g is None else g for y, g in zip(node.outputs, cts, strict=True)]
    operands = (*node.inputs[:count], *given)
    found = b.emit(node.op, operands, node.attrs, node.regions[::-1])
    linear = [g if needed else None for g, needed in zip(found, needs[count:], strict=True)]
    return [*[None] * count, *linear]


OPS: tuple[Op, ...] = (Op("linear_call", region_types, _lower, vjp=_vjp),)
