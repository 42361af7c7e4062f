"""One node for all trips of a loop: each rule puts the trips in front of the other dimensions.

    o_t = f(x_t, w) for each t  ->  o[t] = F(x, w)[t]

A rule is given the operands as they are outside of the loop, and tells which are stacks. It is
written for what lies on the way to a product: movement of data, element-wise work, sums, lookups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...ir.builder import Builder
from ...ir.graph import Literal, Node, Value
from ...ir.ops import OPS
from ...ir.ops.contraction import free_dims
from ...ir.ops.elementwise import OPS as ELEMENTWISE
from ...ir.types import ArrayType
from ..canonicalise import collapse_dot

# Attributes by which a user places an array on devices.
_PLACED = frozenset(("sharding", "out_sharding"))

Rule = Callable[[Builder, Node, Sequence[Value], Sequence[bool]], Sequence[Value] | None]


def stacked(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    """Emit a node's outputs for all trips, or return None where there is no rule for it."""
    rule = RULES.get(node.op.name)
    if rule is None or not _PLACED.isdisjoint(node.attrs):
        return None
    return rule(b, node, operands, stacks)


def has_rule(node: Node, stacks: Sequence[bool], length: int) -> bool:
    """True when `stacked` would emit the node."""
    if node.op.name not in RULES:
        return False
    given = [
        v if isinstance(v, Literal) else Value(over(v.type, length) if is_stack else v.type)
        for v, is_stack in zip(node.inputs, stacks, strict=True)
    ]
    return stacked(Builder(OPS), node, given, stacks) is not None


def over(type: ArrayType, length: int) -> ArrayType:
    """The type of a stack of so many."""
    return type.with_shape((length, *type.shape)).strong()


def product(b: Builder, like: Node, x: Value, y: Value, dims: Any, **attrs: Any) -> Value:
    """A product with other dimension numbers than `like`, two-dimensional where that is free."""
    attrs = {**like.attrs, "dimension_numbers": dims, **attrs}
    types = like.op.shape((x, y), attrs, ())
    node = replace(like, inputs=(x, y), outputs=tuple(map(Value, types)), attrs=attrs)
    found = collapse_dot(b, node) or b.emit(like.op, (x, y), attrs)
    return found[0]


def up(dims: Sequence[int]) -> tuple[int, ...]:
    """The same dimensions, one further on."""
    return tuple(int(i) + 1 for i in dims)


def _dot(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    """x[t,n,f,c] . y[n,c,h] -> (n,t,f,h), and the trips moved to the front; one operand a stack."""
    if all(stacks):
        return None
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    precision = node.attrs["precision"]
    x, y = operands
    inner, other = node.inputs
    if stacks[1]:
        x, y, inner, other, xc, yc, xn, yn = y, x, other, inner, yc, xc, yn, xn
        precision = precision[::-1] if isinstance(precision, tuple) else precision
    dims = ((up(xc), tuple(yc)), (up(xn), tuple(yn)))
    out = product(b, node, x, y, dims, precision=precision)
    n, f = len(xn), len(free_dims(inner, xc, xn))
    h = len(free_dims(other, yc, yn))
    batch, first, second = range(n), range(n + 1, n + 1 + f), range(n + 1 + f, n + 1 + f + h)
    order = (*second, *first) if stacks[1] else (*first, *second)
    return [b.transpose(out, (n, *batch, *order))]


def _elementwise(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    """What is no stack gets a trip of one; select and clamp want one shape, or scalars."""
    rank = node.output.ndim

    def aligned(x: Value, inner: Value, is_stack: bool) -> Value:
        if is_stack:
            return b.reshape(x, (*x.shape[:1], *[1] * (rank - inner.ndim), *inner.shape))
        return b.reshape(x, (1, *x.shape)) if x.ndim else x

    given = [aligned(*each) for each in zip(operands, node.inputs, stacks, strict=True)]
    if node.op.name in ("select_n", "clamp"):
        length = next(x.shape[0] for x, on in zip(operands, stacks, strict=True) if on)
        shape = (length, *node.output.shape)
        given = [b.broadcast(x, shape) if x.ndim else x for x in given]
    return b.emit(node.op, given, node.attrs)


def _moved(change: Callable[[Node, int], Mapping[str, Any]]) -> Rule:
    """Rule of an op of one operand whose attributes name dimensions."""

    def rule(
        b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
    ) -> Sequence[Value] | None:
        if not stacks[0] or any(stacks[1:]):
            return None
        changed = change(node, operands[0].shape[0])
        return b.emit(node.op, operands, {**node.attrs, **changed})

    return rule


def _reshape(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    (x,) = operands
    return [b.reshape(x, (x.shape[0], *node.output.shape))]


def _broadcast(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    (x,) = operands
    dims = (0, *up(node.attrs["broadcast_dimensions"]))
    return [b.broadcast_in_dim(x, (x.shape[0], *node.output.shape), dims)]


def _concatenate(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    length = next(x.shape[0] for x, on in zip(operands, stacks, strict=True) if on)
    whole = [
        x if on else b.broadcast_in_dim(x, (length, *x.shape), up(range(x.ndim)))
        for x, on in zip(operands, stacks, strict=True)
    ]
    return [b.concatenate(whole, node.attrs["dimension"] + 1)]


def _lookup(
    b: Builder, node: Node, operands: Sequence[Value], stacks: Sequence[bool]
) -> Sequence[Value] | None:
    """table[i_t] for all t: the trips are one more dimension of the indices."""
    if tuple(stacks) != (False, True):
        return None
    numbers = node.attrs["dimension_numbers"]
    numbers = numbers._replace(
        offset_dims=up(numbers.offset_dims),
        start_indices_batching_dims=up(numbers.start_indices_batching_dims),
    )
    return b.emit(node.op, operands, {**node.attrs, "dimension_numbers": numbers})


def _slice(node: Node, length: int) -> Mapping[str, Any]:
    strides = node.attrs["strides"]
    return {
        "start_indices": (0, *node.attrs["start_indices"]),
        "limit_indices": (length, *node.attrs["limit_indices"]),
        "strides": strides and (1, *strides),
    }


def _axes(node: Node, length: int) -> Mapping[str, Any]:
    return {"axes": up(node.attrs["axes"])}


_REDUCED = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or".split()
_SAME = {op.name for op in ELEMENTWISE} - {"bitcast_convert_type"} | {"stop_gradient", "copy"}

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_SAME, _elementwise),
        **dict.fromkeys(_REDUCED, _moved(_axes)),
        "broadcast_in_dim": _broadcast,
        "concatenate": _concatenate,
        "dot_general": _dot,
        "gather": _lookup,
        "pad": _moved(
            lambda node, _: {"padding_config": ((0, 0, 0), *node.attrs["padding_config"])}
        ),
        "reshape": _reshape,
        "rev": _moved(lambda node, _: {"dimensions": up(node.attrs["dimensions"])}),
        "slice": _moved(_slice),
        "split": _moved(lambda node, _: {"axis": node.attrs["axis"] + 1}),
        "squeeze": _reshape,
        "transpose": _moved(lambda node, _: {"permutation": (0, *up(node.attrs["permutation"]))}),
    }
)
