"""The loop over the parts: samples are sliced before it, sums are put together in its carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Origin, Value
from ...ir.ops import OPS
from ...ir.types import ArrayType, is_complex
from ..rewriter import substituted
from ..scan import Scan
from .divide import Division
from .loops import adds
from .split import SUM, Partial, Split


def looped(found: Division) -> Graph:
    """Return the graph with the nodes that `found` divides in a scan over the parts."""
    graph, given = found.graph, found.given
    late = set(found.late)
    inside = set(found.inside)
    early = _early(found, inside, late)
    b = Builder(OPS, _origin(found))
    env = _emit(b, found, given)
    rest = [n for n in graph.nodes if n not in early and n not in inside]
    nodes = (*(n for n in graph.nodes if n in early), *b.nodes)
    after = tuple(substituted(node, env) for node in rest)
    outputs = tuple(env.get(v, v) for v in graph.outputs)
    return Graph(graph.name, graph.inputs, (*nodes, *after), outputs)


def _origin(found: Division) -> Origin:
    """The line of the first node in the loop, in no layer's scope."""
    first = found.inside[0].origin
    return Origin(first._source, "", first.traceback)


def _early(found: Division, inside: set[Node], late: set[Node]) -> set[Node]:
    """Nodes that the loop reads from, directly or not."""
    needed = {*found.around.consts, *(value for value, _ in found.around.xs)}
    early: set[Node] = set()
    for node in reversed(found.graph.nodes):
        apart = node not in inside and node not in late
        if apart and (node.op.effect or not needed.isdisjoint(node.outputs)):
            early.add(node)
            needed.update(node.inputs)
    return early


def _emit(b: Builder, found: Division, given: Sequence[Value]) -> dict[Value, Value]:
    """Emit the slices, the scan and what makes the batch's values of its results."""
    part, k = found.part, found.k
    sums = [v for v in given if not isinstance(found.kind(v), Split)]
    stacked = [v for v in given if isinstance(found.kind(v), Split)]
    consts, xs = found.around.consts, found.around.xs
    carry = [b.value(_wide(v.type)) for v in sums]
    part.b.origin = b.origin
    totals = _put_together(found, carry, sums)
    inputs = [*consts.values(), *carry, *xs.values()]
    body = part.b.graph("part", inputs, [*totals, *(part.env[v] for v in stacked)])
    init = [_neutral(b, found, v) for v in sums]
    slices = [_parts_in_front(b, value, split, k) for value, split in xs]
    outs = b.scan(list(consts), init, slices, body, k)
    env = {v: b.convert(out, v.dtype) for v, out in zip(sums, outs, strict=False)}
    for value, out in zip(stacked, outs[len(sums) :], strict=True):
        split = found.kind(value)
        assert isinstance(split, Split)
        env[value] = _parts_back(b, out, split, value.shape, k)
    return env


def _wide(type: ArrayType) -> ArrayType:
    """Sums of narrow floating numbers are kept in float32 from part to part."""
    narrow = type.is_inexact and not is_complex(type.dtype) and type.dtype.itemsize < 4
    return type.with_dtype(np.dtype("float32")) if narrow else type.strong()


def _put_together(found: Division, totals: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
    """Add a part's sums to those before it; what is the same for all parts is handed on."""
    b, kinds = found.part.b, [found.kind(value) for value in sums]
    mine = [found.part.env[value] for value in sums]
    places = {v: i for i, node in enumerate(b.nodes) for v in node.outputs}
    uses = Counter(mine) + Counter(v for node in b.nodes for v in node.inputs)
    out = []
    for kind, total, value in zip(kinds, totals, mine, strict=True):
        lone = kind == SUM and value.dtype == total.dtype and uses[value] == 1
        if lone and _adds_to(b, places, total, value):
            out.append(value)
            continue
        value = b.convert(value, total.dtype)
        out.append(b.emit(kind.op, (total, value))[0] if isinstance(kind, Partial) else value)
    return out


def _adds_to(b: Builder, places: Mapping[Value, int], total: Value, mine: Value) -> bool:
    """Have what adds to zeros add to the total: a scatter of gradients, or a loop over rows.

    total + scatter_add(0, i, g) -> scatter_add(total, i, g)

    `mine` is read by nothing else; `places` are those of nodes by what they define.
    """
    place = places[mine]
    node = b.nodes[place]
    if node.op.name == "scatter-add":
        at = 0
    elif node.op.name == "scan" and (carry := node.outputs.index(mine)) < Scan(node).carried:
        scan = Scan(node)
        at = scan.parts[1].start + carry
        if not adds(scan.body.inputs[at], scan.body.outputs[carry], scan.body):
            return False
    else:
        return False
    filled = places.get(node.inputs[at])
    fill = None if filled is None else b.nodes[filled]
    number = fill.inputs[0] if fill and fill.op.name == "broadcast_in_dim" else None
    if not isinstance(number, Literal) or number.data != 0:
        return False
    inputs = (*node.inputs[:at], total, *node.inputs[at + 1 :])
    b.nodes[place] = replace(node, inputs=inputs)
    return True


def _neutral(b: Builder, found: Division, value: Value) -> Value:
    """What a part's value is put together with at first."""
    kind, type = found.kind(value), _wide(value.type)
    number = _NEUTRAL[kind.op](type.dtype) if isinstance(kind, Partial) else 0
    return b.full(type.shape, number, type.dtype)


def _bound(dtype: Any, *, upper: bool) -> Any:
    """Return the greatest or the least of a dtype."""
    if jnp.issubdtype(dtype, np.inexact):
        return np.inf if upper else -np.inf
    if dtype == np.dtype(bool):
        return upper
    range = np.iinfo(dtype)
    return range.max if upper else range.min


def _all_bits(dtype: Any) -> Any:
    return -1 if jnp.issubdtype(dtype, np.signedinteger) else _bound(dtype, upper=True)


_NEUTRAL: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("add", "or", "xor"), lambda dtype: 0),
    "mul": lambda dtype: 1,
    "max": partial(_bound, upper=False),
    "min": partial(_bound, upper=True),
    "and": _all_bits,
}


def _parts_in_front(b: Builder, x: Value, split: Split, k: int) -> Value:
    """`[.., outer k stride, ..]` -> `[k, .., outer stride, ..]`."""
    before, outer, stride, after = split.divided(x.shape, k)
    if prod((*before, *outer)) == 1:
        return b.reshape(x, (k, *split.cut(x.shape, k)))
    n = len(before) + 1
    apart = b.reshape(x, (*before, *outer, k, *stride, *after))
    order = [n, *(i for i in range(apart.ndim) if i != n)]
    return b.reshape(b.transpose(apart, order), (k, *split.cut(x.shape, k)))


def _parts_back(b: Builder, x: Value, split: Split, shape: Sequence[int], k: int) -> Value:
    """Undo `_parts_in_front`."""
    before, outer, stride, after = split.divided(shape, k)
    if prod((*before, *outer)) == 1:
        return b.reshape(x, shape)
    n = len(before) + 1
    apart = b.reshape(x, (k, *before, *outer, *stride, *after))
    order = [*range(1, n + 1), 0, *range(n + 1, apart.ndim)]
    return b.reshape(b.transpose(apart, order), shape)
