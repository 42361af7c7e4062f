"""Sums and extrema over sliding windows: pooling.

XLA's select-and-scatter, the usual gradient of max pooling, is slow and needs much scratch
memory on CPU. Here each window's winner is found by comparing strided slices with the maximum,
and the winners' cotangents are laid back on s interleaved grids, s the stride: compares, selects
and shifts, which fuse. Measured at f32[32,64,64,32] on two cores, forward included, as a part of
select-and-scatter's time and (megabytes): 2x2 by 2 0.1-0.14 (92 -> 4), 3x3 by 2 0.15-0.3
(125 -> 22), 3x3 by 1 0.5 (191 -> 35). The gradient of a sum goes one axis at a time: 0.25.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import inf, prod
from typing import TYPE_CHECKING, Any

from .. import jax_compat
from ..op import Attrs, Cts, Op, per_operand, primitive_op, shape_by_jax
from .structural import replaced, unpad

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..builder import Builder
    from ..graph import Graph, Node, Value

# With more elements than this in a window, the comparisons cost more than select-and-scatter.
MANY = 32


def _sum(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
    """Each element gets the sum of the cotangents of the windows that hold it, axis by axis."""
    if not o.type.size or not x.type.size:
        return b.zeros(x)
    for axis in range(x.ndim):
        g = _sum_along(b, g, x.shape[axis], axis, *(attrs[key][axis] for key in _KEYS))
    return g


_KEYS = "window_dimensions window_strides padding base_dilation window_dilation".split()


def _sum_along(
    b: Builder,
    g: Value,
    n: int,
    axis: int,
    size: int,
    stride: int,
    padding: tuple[int, int],
    base: int,
    dilation: int,
) -> Value:
    """One axis of a window sum's gradient; windows that tile the axis need only a broadcast."""
    windows = g.shape[axis]
    if size == stride and base == dilation == 1 and padding[0] == 0 and windows * size <= n:
        tiled = b.expand(g, (*g.shape[: axis + 1], size, *g.shape[axis + 1 :]), (axis + 1,))
        flat = b.reshape(tiled, replaced(g.shape, axis, windows * size))
        return b.pad(flat, 0, _along(g.ndim, axis, (0, n - windows * size, 0), (0, 0, 0)))
    reach = (size - 1) * dilation
    low = reach - padding[0]
    high = (n - 1) * base + reach - low - (windows - 1) * stride
    spread = b.pad(g, 0, _along(g.ndim, axis, (low, high, stride - 1), (0, 0, 0)))
    return b.one(
        "reduce_window_sum",
        spread,
        window_dimensions=_along(g.ndim, axis, size, 1),
        window_strides=_along(g.ndim, axis, base, 1),
        padding=((0, 0),) * g.ndim,
        base_dilation=(1,) * g.ndim,
        window_dilation=_along(g.ndim, axis, dilation, 1),
    )


def _along(ndim: int, axis: int, here: Any, elsewhere: Any) -> tuple[Any, ...]:
    return tuple(here if i == axis else elsewhere for i in range(ndim))


def _extremum(fill: float, select: str) -> Callable[..., Value]:
    """All to the first element of the window, in row-major order, that attains the extremum."""

    def rule(b: Builder, g: Value, o: Value, x: Value, **attrs: Any) -> Value:
        if not o.type.size or not x.type.size:
            return b.zeros(x)
        undilated = {*attrs["base_dilation"], *attrs["window_dilation"]} == {1}
        if prod(attrs["window_dimensions"]) > MANY and undilated:
            kept = {key: attrs[key] for key in _KEYS[:3]}
            return b.one("select_and_scatter_add", g, x, **kept, select_prim=select)
        return _to_winners(b, g, o, x, fill, attrs)

    return rule


def _to_winners(b: Builder, g: Value, o: Value, x: Value, fill: float, attrs: Attrs) -> Value:
    """Each window's cotangent to the first element that attains the window's extremum o."""
    places = list(product(*map(range, attrs["window_dimensions"])))
    winner = _winner(b, o, x, places, fill, attrs)
    return _laid_back(b, g, winner, x, places, attrs)


def _winner(
    b: Builder, o: Value, x: Value, places: Sequence[Sequence[int]], fill: float, attrs: Attrs
) -> Value:
    """Number of the first place in each window where x attains o."""
    dilation, strides = attrs["window_dilation"], attrs["window_strides"]
    edges = zip(attrs["padding"], attrs["base_dilation"], strict=True)
    padded = b.pad(x, fill, [(lo, hi, d - 1) for (lo, hi), d in edges])
    winner = b.full(o.shape, 0, "int32")
    for number in reversed(range(len(places))):
        start = [i * d for i, d in zip(places[number], dilation, strict=True)]
        limit = [i + (n - 1) * step + 1 for i, n, step in zip(start, o.shape, strides, strict=True)]
        here = b.eq(b.slice(padded, start, limit, tuple(strides)), o)
        winner = b.select(here, b.full(o.shape, number, "int32"), winner)
    return winner


def _laid_back(
    b: Builder,
    g: Value,
    winner: Value,
    x: Value,
    places: Sequence[Sequence[int]],
    attrs: Attrs,
) -> Value:
    """Add up the cotangents where their winners lie.

    Place i of window k lies at s k + d i = s (k + q) + r: a shift by q on the r-th of s grids,
    which are interleaved at the end.
    """
    strides, dilation = attrs["window_strides"], attrs["window_dilation"]
    reach = [
        (n - 1) * d // s
        for n, d, s in zip(attrs["window_dimensions"], dilation, strides, strict=True)
    ]
    grids: dict[tuple[int, ...], list[Value]] = {r: [] for r in product(*map(range, strides))}
    nothing = b.zeros(g)
    for number, place in enumerate(places):
        steps = [divmod(i * d, s) for i, d, s in zip(place, dilation, strides, strict=True)]
        part = b.select(b.eq(winner, number), g, nothing)
        shift = [(q, most - q, 0) for (q, _), most in zip(steps, reach, strict=True)]
        grids[tuple(r for _, r in steps)].append(b.pad(part, 0, shift))
    shape = tuple(n + most for n, most in zip(g.shape, reach, strict=True))
    empty = b.full(shape, 0, g.dtype)
    full = _interleaved(b, [b.sum(parts) if parts else empty for parts in grids.values()], strides)
    config = []
    for n, m, (lo, _), d in zip(
        x.shape, full.shape, attrs["padding"], attrs["base_dilation"], strict=True
    ):
        config.append((lo, m - lo - (n - 1) * d - 1, d - 1))
    return unpad(b, full, x, config)


def _interleaved(b: Builder, grids: Sequence[Value], strides: Sequence[int]) -> Value:
    """Join grids, in row-major order of their offsets, into one array `strides` times as wide."""
    if len(grids) == 1:
        return grids[0]
    ndim, shape = grids[0].ndim, grids[0].shape
    rows = [b.reshape(grid, (1, *shape)) for grid in grids]
    stacked = b.reshape(b.concatenate(rows, 0), (*strides, *shape))
    order = [i for axis in range(ndim) for i in (ndim + axis, axis)]
    wide = [n * s for n, s in zip(shape, strides, strict=True)]
    return b.reshape(b.transpose(stacked, order), wide)


def _select_lower(name: str) -> Callable[..., list[Any]]:
    """Lowering of the two ops whose `select_prim` is the name of a comparison, ge or le."""

    def lower(
        args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
    ) -> list[Any]:
        select = attrs["select_prim"]
        select = jax_compat.primitive(select) if isinstance(select, str) else select
        return jax_compat.bind(name, args, {**attrs, "select_prim": select})

    return lower


def _scatter(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """source, operand: the cotangent at each window's winner goes to the window."""
    (g,), (_, operand), attrs = cts, node.inputs, node.attrs
    assert g is not None
    one = (1,) * operand.ndim
    dilations = {"base_dilation": one, "window_dilation": one}
    back = b.one("select_and_gather_add", g, operand, **attrs, **dilations) if needs[0] else None
    return [back, None]


def _gather(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """tangents, operand: the window's cotangent goes to its winner."""
    (g,), (_, operand), attrs = cts, node.inputs, node.attrs
    assert g is not None
    if not needs[0]:
        return [None, None]
    if {*attrs["base_dilation"], *attrs["window_dilation"]} != {1}:
        largest = attrs["select_prim"] == "ge"
        windows = {key: attrs[key] for key in _KEYS}
        best = b.one(f"reduce_window_{'max' if largest else 'min'}", operand, **windows)
        fill = -inf if largest else inf
        return [_to_winners(b, g, best, operand, fill, attrs), None]
    kept = {key: attrs[key] for key in (*_KEYS[:3], "select_prim")}
    return [b.one("select_and_scatter_add", g, operand, **kept), None]


def _flops(node: Node) -> int:
    return node.outputs[0].type.size * int(prod(node.attrs["window_dimensions"]))


def _selecting(name: str, rule: Any) -> Op:
    lower = _select_lower(name)
    return Op(name, shape_by_jax(lower), lower, vjp=rule, flops=_flops)


OPS: tuple[Op, ...] = (
    primitive_op("reduce_window_sum", vjp=per_operand(_sum), flops=_flops),
    primitive_op("reduce_window_max", vjp=per_operand(_extremum(-inf, "ge")), flops=_flops),
    primitive_op("reduce_window_min", vjp=per_operand(_extremum(inf, "le")), flops=_flops),
    _selecting("select_and_scatter_add", _scatter),
    _selecting("select_and_gather_add", _gather),
)
