"""Attention in blocks of queries, under a mask that is known each with the keys that it can see.

    o = softmax(where(mask, q k^T, low)) v
    ->  o_i = softmax(where(mask_i, q_i k[lo:hi]^T, low)) v[lo:hi] for each block of queries q_i

Whatever is computed between the two products, it has to work row by row, and what the mask hides
has to be zero where columns are summed (`columns.py`): causal masks, windows, static biases, any
order of dimensions, grouped queries. Half of a causal attention's products are never computed.
Without a mask nothing is left out, but where memory is short one block after the other may be made
again (`rematerialise/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Origin, Value
from ...ir.ops import OPS
from ...ir.ops.contraction import free_dims
from ..rewriter import substituted
from .body import Body, Cut, needed
from .columns import NotCut, cut
from .report import divided, told
from .rows import Rows
from .statics import Statics


@dataclass(frozen=True, slots=True)
class Match:
    """A row-wise part with wide values inside and narrow ones at its ends."""

    seed: Node
    row: int
    column: int
    cut: Cut
    outputs: tuple[Value, ...]
    gone: frozenset[Node]


def candidates(node: Node, block: int, least: int) -> Iterator[tuple[int, int]]:
    """Dimensions of queries and keys in a product of scores, either way round."""
    if node.op.name != "dot_general" or node.output.type.nbytes < least:
        return
    if not node.output.type.is_inexact:
        return
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    left, right = free_dims(x, xc, xn), free_dims(y, yc, yn)
    first = range(len(xn), len(xn) + len(left))
    second = range(first.stop, first.stop + len(right))
    shape = node.output.shape
    pairs = [(i, j) for i in first for j in second if min(shape[i], shape[j]) >= 2 * block]
    yield from pairs
    yield from ((j, i) for i, j in pairs)


def match(graph: Graph, seed: Node, row: int, column: int) -> Match | str:
    """Find what is computed of the scores until it is narrow again, or tell why that can't be.

    What is no softmax of any kind, in blocks of known masks, is no near miss: its reason is empty.
    """
    if axes := divided(seed.output, (row, column)):
        return f"its scores are divided over mesh axis {axes}: a block would gather them"
    body = Body(graph, seed.output.shape[row])
    operand, dim = _operand(seed, row)
    body.entries[operand] = Rows(dim, dim + 1)
    if body.carry(seed) is None or body.rows[seed.output].start != row:
        return "its operands have no rows in one piece"
    body.grow(seed)
    if not any(node.op.name in ("exp", "select_n") for node, _ in body.steps):
        return ""
    wide = {v for v in body.own if 2 * v.type.size >= seed.output.type.size}
    for node in body.outside:
        for value in node.inputs:
            if value in wide:
                return f"{value.type} as a whole is read by {told(node)}"
    if not wide.isdisjoint(graph.outputs):
        return "the scores are returned"
    kept = _between(body, wide)
    made = [v for node, _ in body.steps if node in kept for v in node.outputs if v not in wide]
    returned = set(graph.outputs)
    outputs = tuple(
        v for v in made if v in returned or any(n not in kept for n in graph.users.get(v, ()))
    )
    if not outputs:
        return "nothing reads it"
    found = needed(body, outputs)
    if any(len(found.rows[v].bare(v.shape).dims) > 1 for v in (*found.entries, *outputs)):
        return ""
    return Match(seed, row, column, found, outputs, frozenset(kept))


def _operand(seed: Node, dim: int) -> tuple[Value, int]:
    """The operand that has a dimension of the product, and where."""
    (xc, yc), (xn, yn) = seed.attrs["dimension_numbers"]
    x, y = seed.inputs
    left = free_dims(x, xc, xn)
    place = dim - len(xn)
    if place < len(left):
        return x, left[place]
    return y, free_dims(y, yc, yn)[place - len(left)]


def _between(body: Body, wide: set[Value]) -> set[Node]:
    """Nodes that make wide values, or read them, or stand between such."""
    kept: set[Node] = set()
    needed_for = set(wide)
    for node, _ in reversed(body.steps):
        if body.own.isdisjoint(node.outputs):
            continue
        if not needed_for.isdisjoint(node.outputs) or not wide.isdisjoint(node.inputs):
            kept.add(node)
            needed_for.update(v for v in node.inputs if v in body.own)
    return kept


@dataclass(frozen=True, slots=True)
class Blocks:
    """At most `most` blocks of `size` queries or more; masks must leave out `gain` of the scores.

    Where that is nothing, a block may as well see all keys.
    """

    size: int
    most: int
    gain: float

    def edges(self, queries: int) -> list[int]:
        """Where blocks begin, and where the last one ends."""
        count = min(queries // self.size, max(4, queries // (2 * self.size)), self.most)
        return [queries * i // count for i in range(count + 1)]


def blocked(graph: Graph, found: Match, into: Blocks, statics: Statics) -> Graph | str:
    """Return the graph with the match in blocks, or why not."""
    size = found.seed.output.shape[found.row]
    keys = found.seed.output.shape[found.column]
    edges = into.edges(size)
    b = Builder(OPS, found.seed.origin)
    parts: list[Sequence[Value]] = []
    area = 0
    for start, stop in zip(edges, edges[1:], strict=False):
        # Backward nodes name forward nodes by origin: each block has its own.
        within = Origin("", f"rows {start} to {stop}")
        b.origin = found.seed.origin.under(within)
        try:
            part, (lo, hi) = _block(b, found, within, start, stop, statics, whole=not into.gain)
        except NotCut as reason:
            return str(reason)
        area += (stop - start) * (hi - lo)
        parts.append(part)
    if area == size * keys and into.gain:
        return "no mask that is known leaves out any of the scores"
    if area > (1 - into.gain) * size * keys:
        return f"its mask leaves out only {1 - area / (size * keys):.0%} of the scores"
    b.origin = found.seed.origin.under(Origin("", "rows"))
    outs = [
        b.reshape(b.concatenate(each, found.cut.rows[v].start), v.shape)
        for each, v in zip(zip(*parts, strict=True), found.outputs, strict=True)
    ]
    env = dict(zip(found.outputs, outs, strict=True))
    place = {v: i for i, node in enumerate(graph.nodes) for v in node.outputs}
    reads = (*found.cut.entries, *found.cut.shared)
    at = max((place[v] for v in reads if v in place), default=-1) + 1
    rest = [substituted(node, env) for node in graph.nodes[at:] if node not in found.gone]
    early = [node for node in graph.nodes[:at] if node not in found.gone]
    if any(v in env for node in early for v in node.inputs):
        return "what it gives is read before all that it reads is there"
    outputs = tuple(env.get(v, v) for v in graph.outputs)
    return Graph(graph.name, graph.inputs, (*early, *b.nodes, *rest), outputs)


def _block(
    b: Builder, found: Match, within: Origin, start: int, stop: int, statics: Statics, whole: bool
) -> tuple[list[Value], tuple[int, int]]:
    """Emit one block; returns its outputs, and the columns that it reads.

    Where what a mask hides can't be told these are all of them, if a `whole` block will do. Raises
    `NotCut`.
    """
    cut_rows, count = found.cut, stop - start
    sub = b.nested()
    common = [sub.value(v.type.strong()) for v in cut_rows.shared]
    entries = [
        sub.value(v.type.strong().with_shape(cut_rows.rows[v].cut(v.shape, count)))
        for v in cut_rows.entries
    ]
    given = dict(zip(cut_rows.entries, entries, strict=True))
    every = dict(zip(cut_rows.shared, common, strict=True))
    env = cut_rows.emit(sub, given, every, count)
    region = sub.graph("block", (*common, *entries), [env[v] for v in found.outputs])
    known = {inner: x for v, inner in every.items() if (x := statics(v)) is not None}
    for value, inner in given.items():
        if (x := statics(value)) is not None:
            known[inner] = _some(x, value.shape, cut_rows.rows[value], start, stop)
    seed = next(n for n in region.nodes if n.outputs[0] is env[found.seed.output])
    operand, dim = _operand(found.seed, found.column)
    try:
        thin, span = cut(region, seed, Rows(dim, dim + 1), found.column, known)
    except NotCut:
        if not whole:
            raise
        thin, span = region, (0, found.seed.output.shape[found.column])
    slices = [_slice(b, v, cut_rows.rows[v], start, stop) for v in cut_rows.entries]
    outputs, _ = b.inline(thin, [*cut_rows.shared, *slices], within)
    return list(outputs), span


def _slice(b: Builder, x: Value, rows: Rows, start: int, stop: int) -> Value:
    """Some rows, which are one dimension and perhaps others of one element."""
    part = b.slice_in_dim(x, start, stop, rows.bare(x.shape).start)
    return b.reshape(part, rows.cut(x.shape, stop - start))


def _some(known: Any, shape: Sequence[int], rows: Rows, start: int, stop: int) -> Any:
    """What is known of some of the rows, in the shape that they have then."""
    (dim,) = rows.bare(shape).dims
    index = [slice(None)] * known.ndim
    if known.shape[dim] > 1:
        index[dim] = slice(start, stop)
    part = known[tuple(index)]
    return part.reshape(rows.cut(part.shape, rows.count(part.shape)))
