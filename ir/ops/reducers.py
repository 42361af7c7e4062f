"""`reduce(x, init) {dimensions} f`, `reduce_window(x, init) {...} f`: reductions by any function.

The function f of two scalars (or of two tuples of scalars) is associative, and `init` is its
identity. The derivative is that of the balanced tree in which f is applied to neighbours; for a
window, its elements are first laid side by side by strided slices. To apply f to arrays, its body
is lifted: element-wise ops are the same at every shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from jax import lax

from ..errors import MissingRuleError
from ..op import Attrs, Differentiator, Op, Pullback
from ..types import ArrayType
from . import elementwise, special
from .structural import without

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Run = Callable[..., list[Any]]
Values = Sequence["Value"]

ELEMENTWISE = frozenset(op.name for op in (*elementwise.OPS, *special.OPS))
CALLS = frozenset("jit closed_call eval_jaxpr custom_jvp_call".split())
SAME_SCALAR = frozenset("broadcast_in_dim reshape squeeze".split())


def lifted(b: Builder, region: Graph, shape: Sequence[int]) -> Graph:
    """`region`, a function of scalars, as a function of arrays of `shape`.

    Raises `MissingRuleError` for an op that is not element-wise.
    """
    sub = b.nested()
    inputs = [sub.value(value.type.with_shape(shape).strong()) for value in region.inputs]
    env = dict(zip(region.inputs, inputs, strict=True))
    for node in region.nodes:
        operands = [sub.broadcast(env.get(v, v), shape) for v in node.inputs]
        name = node.op.name
        if name in CALLS:
            bodies = [lifted(b, body, shape) for body in node.regions]
            outputs = sub.emit(node.op, operands, node.attrs, bodies)
        elif name in ELEMENTWISE:
            outputs = sub.emit(node.op, operands, node.attrs)
        elif name == "constant":
            outputs = sub.emit(node.op, (), node.attrs)
        elif name in SAME_SCALAR and not node.output.shape:
            outputs = (operands[0],)
        else:
            raise MissingRuleError(
                f"a reduction by a function with {name!r} in it has no derivative"
                f"\n  at {b.origin.source or 'unknown line'}; write it element-wise"
            )
        env.update(zip(node.outputs, outputs, strict=True))
    outputs = tuple(sub.broadcast(env.get(v, v), shape) for v in region.outputs)
    return sub.graph(region.name, inputs, outputs)


def _combined(b: Builder, region: Graph, left: Values, right: Values) -> Values:
    body = lifted(b, region, left[0].shape)
    return b.emit("jit", (*left, *right), {"name": region.name}, (body,))


def _by_pairs(b: Builder, region: Graph, xs: Values, inits: Values) -> Values:
    """Reduce the leading dimension, neighbours first, so that f need not commute.

    `inits` come in once, at the root.
    """
    shape = xs[0].shape[1:]
    outer = [b.broadcast(init, shape) for init in inits]
    if not xs[0].shape[0]:
        return outer
    while (n := xs[0].shape[0]) > 1:
        left, right = ([_every_other(b, x, start) for x in xs] for start in (0, 1))
        odd = [b.slice_in_dim(x, n - 1, n, 0) for x in xs]
        xs = _combined(b, region, left, right)
        if n % 2:
            xs = [b.concatenate(pair, 0) for pair in zip(xs, odd, strict=True)]
    return _combined(b, region, outer, [b.reshape(x, shape) for x in xs])


def _every_other(b: Builder, x: Value, start: int) -> Value:
    """Rows 0, 2, ... or 1, 3, ...; without the last where it has no partner."""
    n, rest = x.shape[0], x.ndim - 1
    limit = n // 2 * 2 - 1 + start
    return b.slice(x, [start] + [0] * rest, (limit, *x.shape[1:]), (2, *[1] * rest))


# reduce


def _halves_of(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Operands and initial values."""
    half = len(values) // 2
    return values[:half], values[half:]


def _shape(inputs: Values, attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType, ...]:
    xs, inits = _halves_of(inputs)
    return tuple(
        ArrayType(without(x.shape, attrs["dimensions"]), x.dtype, x.type.weak and init.type.weak)
        for x, init in zip(xs, inits, strict=True)
    )


def _computation(region: Graph, run: Run) -> Callable[..., tuple[Any, ...]]:
    return lambda xs, ys: tuple(run(region, *xs, *ys))


def _lower(args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run) -> list[Any]:
    xs, inits = map(tuple, _halves_of(args))
    return list(lax.reduce(xs, inits, _computation(regions[0], run), attrs["dimensions"]))


def _tree(b: Builder, node: Node) -> Graph:
    """The reduction as a tree of pairs."""
    sub = b.nested()
    inputs = sub.fresh(node.inputs)
    xs, inits = _halves_of(inputs)
    axes = node.attrs["dimensions"]
    kept = [i for i in range(xs[0].ndim) if i not in axes]
    flat = (prod(xs[0].shape[i] for i in axes), *(xs[0].shape[i] for i in kept))
    rows = [sub.reshape(sub.transpose(x, (*axes, *kept)), flat) for x in xs]
    return sub.graph("reduce", inputs, _by_pairs(sub, node.regions[0], rows, inits))


# reduce_window

_KEYS = "window_dimensions window_strides padding base_dilation window_dilation".split()


def _window_sizes(x: ArrayType, attrs: Attrs) -> tuple[int, ...]:
    """Number of windows along each dimension."""
    per_axis = zip(x.shape, *(attrs[key] for key in _KEYS), strict=True)
    return tuple(
        max(0, (max(0, (n - 1) * base + 1) + lo + hi - ((size - 1) * gap + 1)) // stride + 1)
        for n, size, stride, (lo, hi), base, gap in per_axis
    )


def _window_shape(inputs: Values, attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType, ...]:
    xs, _ = _halves_of(inputs)
    return tuple(ArrayType(_window_sizes(x.type, attrs), x.dtype) for x in xs)


def _window_lower(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run
) -> list[Any]:
    xs, inits = map(tuple, _halves_of(args))
    windows = [attrs[key] for key in _KEYS]
    return list(lax.reduce_window(xs, inits, _computation(regions[0], run), *windows))


def _window_tree(b: Builder, node: Node) -> Graph:
    """Windows side by side, one axis after the other, then a reduction as above."""
    sub = b.nested()
    inputs = sub.fresh(node.inputs)
    xs, inits = _halves_of(inputs)
    shape = node.outputs[0].shape
    if 0 in shape:
        return sub.graph("reduce_window", inputs, [sub.empty(out.type) for out in node.outputs])
    rows = []
    for x, init in zip(xs, inits, strict=True):
        edges = zip(node.attrs["padding"], node.attrs["base_dilation"], strict=True)
        config = tuple((lo, hi, base - 1) for (lo, hi), base in edges)
        padded = sub.emit("pad", (x, init), {"padding_config": config})[0]
        rows.append(_side_by_side(sub, padded, shape, node.attrs))
    return sub.graph("reduce_window", inputs, _by_pairs(sub, node.regions[0], rows, inits))


def _side_by_side(b: Builder, x: Value, shape: Sequence[int], attrs: Attrs) -> Value:
    """`[places in a window, *windows]`: the elements of each window along a leading dimension."""
    x = b.reshape(x, (1, *x.shape))
    for axis, count in enumerate(shape, 1):
        size, stride, gap = (attrs[_KEYS[i]][axis - 1] for i in (0, 1, 4))
        places = []
        for k in range(size):
            start, limit = [0] * x.ndim, list(x.shape)
            start[axis] = k * gap
            limit[axis] = k * gap + (count - 1) * stride + 1
            steps = [stride if i == axis else 1 for i in range(x.ndim)]
            places.append(b.slice(x, start, limit, tuple(steps)))
        x = b.concatenate(places, 0)
    return x


def _by_tree(tree: Callable[[Builder, Node], Graph]) -> Any:
    def linearise(
        b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
    ) -> tuple[Sequence[Value], Pullback]:
        """The tree gives the outputs too, so that both agree on the order."""
        return ad.inline(b, tree(b, node), node.inputs, needs)

    return linearise


def _flops(node: Node) -> int:
    """One call of the function for each element that a result is made of."""
    calls = node.inputs[0].type.size
    if "window_dimensions" in node.attrs:
        calls = node.outputs[0].type.size * prod(node.attrs["window_dimensions"])
    return calls * sum(inner.op.flops(inner) for inner in node.regions[0].nodes)


OPS: tuple[Op, ...] = (
    Op("reduce", _shape, _lower, linearise=_by_tree(_tree), flops=_flops),
    Op(
        "reduce_window",
        _window_shape,
        _window_lower,
        linearise=_by_tree(_window_tree),
        flops=_flops,
    ),
)
