"""A program that tells of every value that it makes whether it is finite.

    graph: inputs -> outputs    =>    inputs -> records

The record of a value is the greatest magnitude among its elements, read as an integer: the bits of
floating-point numbers are ordered as the numbers are, infinity above them and NaN above that. A
maximum of the floats themselves would not do: XLA's CPU backend loses NaNs in it. Nor would their
`abs`, which XLA leaves out where it holds a number to be positive, though it be a NaN.

A loop's body hands out the records of each step. Of a `while`, where there is no room for those of
every step, two are kept: the first with an infinity or a NaN in it, and the first with a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ...ir.types import ArrayType, is_complex
from ..rewriter import CALLS, inlined

_CALLS = CALLS | {"custom_jvp_call", "custom_vjp_call", "remat2"}
# Ops whose outputs hold the very elements of their operands.
SAME = frozenset(
    "reshape transpose broadcast_in_dim squeeze rev copy name optimization_barrier "
    "stop_gradient".split()
)
# The bits of infinity, by the dtype that they are read as.
INFINITE: Mapping[np.dtype, int] = MappingProxyType(
    {
        np.dtype(np.int32): 0x7F80_0000,
        np.dtype(np.int64): 0x7FF0_0000_0000_0000,
    }
)
STEP = ArrayType((), np.dtype(np.int32))


@dataclass(frozen=True, eq=False)
class Record:
    """Where the records of a graph's values stand among the arrays that it hands out.

    `place` is (array, element) of each value that is recorded; `same` names the value with the
    same elements as one that is not. `within` has the records of a node's regions, with the
    position of the first array of each: of a scan's body, of all branches, or of a `while`'s body
    twice, where the step stands before the first array.
    """

    graph: Graph
    types: tuple[ArrayType, ...]
    place: Mapping[Value, tuple[int, int]]
    same: Mapping[Value, Value]
    within: Mapping[Node, tuple[tuple[Record, int], ...]]


def recorded(graph: Graph) -> tuple[Graph, Record]:
    """Return the program that hands out the records alone, and where they are.

    The record's `graph` is the program with its calls inlined, whose nodes the record speaks of.
    """
    graph = inlined(graph, _CALLS)
    whole, record = _recorded(graph)
    return replace(whole, outputs=whole.outputs[len(graph.outputs) :]), record


def _recorded(graph: Graph) -> tuple[Graph, Record]:
    """The graph with its records behind its outputs."""
    b = Builder(OPS)
    groups: dict[np.dtype, list[Value]] = {}
    place: dict[Value, tuple[np.dtype, int]] = {}
    same: dict[Value, Value] = {}
    within: dict[Node, list[tuple[Record, int]]] = {}
    handed: list[Value] = []

    def note(value: Value) -> None:
        if value.type.is_inexact and value.type.size:
            bits = _bits(b, value)
            group = groups.setdefault(bits.dtype, [])
            place[value] = bits.dtype, len(group)
            group.append(b.reshape(bits, (1,)))

    for value in graph.inputs:
        note(value)
    for node in graph.nodes:
        b.origin, b.phase = node.origin, node.phase
        enter = _ENTER.get(node.op.name)
        if enter is None or not (found := enter(b, node)):
            b.nodes.append(node)
        else:
            within[node] = [(record, len(handed) + at) for record, at in found]
            handed += b.nodes[-1].outputs[len(node.outputs) :]
        if node.op.name in SAME:
            same.update(zip(node.outputs, node.inputs, strict=False))
        else:
            for value in node.outputs:
                note(value)
    vectors = [b.concatenate(group, 0) for group in groups.values()]
    order = {dtype: i for i, dtype in enumerate(groups)}
    record = Record(
        graph,
        tuple(v.type for v in (*vectors, *handed)),
        {value: (order[dtype], i) for value, (dtype, i) in place.items()},
        same,
        {node: tuple((r, at + len(vectors)) for r, at in found) for node, found in within.items()},
    )
    return b.graph(graph.name, graph.inputs, (*graph.outputs, *vectors, *handed)), record


def _bits(b: Builder, x: Value) -> Value:
    """The greatest magnitude of an array's elements, as an integer."""
    if is_complex(x.dtype):
        return b.max(_bits(b, b.real(x)), _bits(b, b.imag(x)))
    x = b.convert(x, np.dtype(np.float32)) if x.dtype.itemsize < 4 else x
    read_as = np.dtype(f"int{8 * x.dtype.itemsize}")
    bits = b.one("bitcast_convert_type", x, new_dtype=read_as)
    bits = b.one("and", bits, b.literal(np.iinfo(read_as).max, read_as))  # without the sign
    return b.one("reduce_max", bits, axes=tuple(range(x.ndim))) if x.ndim else bits


# Ops that are entered: each appends the node with its records behind its outputs, and tells whose
# they are; nothing where there are none to tell of.

Found = Sequence[tuple[Record, int]]


def _scan(b: Builder, node: Node) -> Found:
    body, record = _recorded(node.regions[0])
    stacked = [Value(t.with_shape((node.attrs["length"], *t.shape))) for t in record.types]
    b.nodes.append(replace(node, outputs=(*node.outputs, *stacked), regions=(body,)))
    return [(record, 0)] if stacked else []


def _cond(b: Builder, node: Node) -> Found:
    """The branches that are not taken leave zeros, which are finite."""
    inner = [_recorded(region) for region in node.regions]
    types = [t for _, record in inner for t in record.types]
    starts = np.cumsum([0, *(len(record.types) for _, record in inner)]).tolist()
    branches = []
    for (branch, record), at in zip(inner, starts, strict=False):
        sub = b.nested()
        sub.nodes += branch.nodes
        room = [*map(sub.empty, types)]
        room[at : at + len(record.types)] = branch.outputs[len(node.outputs) :]
        outputs = (*branch.outputs[: len(node.outputs)], *room)
        branches.append(sub.graph(branch.name, branch.inputs, outputs))
    more = map(Value, types)
    b.nodes.append(replace(node, outputs=(*node.outputs, *more), regions=tuple(branches)))
    return [(record, at) for (_, record), at in zip(inner, starts, strict=False)] if types else []


def _while(b: Builder, node: Node) -> Found:
    """Carry the records of two steps, and the number of the step, which comes first."""
    test, region = node.regions
    body, record = _recorded(region)
    if not record.types or test.outputs[0].ndim:
        return []
    kept = (STEP, *record.types)
    carried = (STEP, *kept, *kept)
    none = [b.literal(-1, np.int32), *map(b.empty, record.types)]
    start = (b.literal(0, np.int32), *none, *none)

    sub = b.nested()
    sub.nodes += body.nodes
    step, *old = map(Value, carried)
    new = body.outputs[len(region.outputs) :]
    halves = old[: len(kept)], old[len(kept) :]
    outputs = [sub.add(step, 1)]
    for (at, *records), least in zip(halves, (0, 1), strict=True):
        first = sub.logical_and(sub.lt(at, 0), _reaches(sub, new, least))
        outputs.append(sub.select(first, step, at))
        outputs += [sub.select(first, x, y) for x, y in zip(new, records, strict=True)]
    stepped = sub.graph(
        body.name,
        (*body.inputs, step, *old),
        (*body.outputs[: len(region.outputs)], *outputs),
    )
    tested = replace(test, inputs=(*test.inputs, *map(Value, carried)))
    b.nodes.append(
        replace(
            node,
            inputs=(*node.inputs, *start),
            outputs=(*node.outputs, *map(Value, carried)),
            regions=(tested, stepped),
        )
    )
    return [(record, 2), (record, 2 + len(kept))]


def _reaches(b: Builder, records: Sequence[Value], least: int) -> Value:
    """Whether any of the records is that of an infinity, with `least` 1 that of a NaN."""
    found: Value = b.literal(False, np.bool_)
    for x in records:
        bits = b.one("reduce_max", x, axes=tuple(range(x.ndim))) if x.ndim else x
        here = b.ge(bits, INFINITE[x.dtype] + least)
        found = b.one("or", found, here)
    return found


_ENTER: Mapping[str, Callable[[Builder, Node], Found]] = MappingProxyType(
    {"scan": _scan, "cond": _cond, "while": _while}
)
