"""Wide products that only their rows' numbers are wanted of: computed chunk by chunk.

    logits[N,V] = x[N,D] . w[D,V];  loss = f(logits), row by row, then a weighted sum
    ->  chunked(x, w, labels, weights) { loss of some rows }

The logits of a large vocabulary are never there as a whole, and neither is their gradient, which
is taken in the same pass. Whatever the loss looks like, it only has to work row by row: masks,
label smoothing, z-loss and one-hot forms do; a softmax over the tokens does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ...ir.ops.chunked import evenly
from ...ir.ops.contraction import free_dims
from ..rewriter import substituted
from .body import Body, Cut, needed
from .report import divided, told
from .rows import Rows
from .tails import Tail, differentiated, find

# A product is wide when it has at least so many times the elements of its operands together.
WIDE = 1.0


@dataclass(frozen=True, slots=True)
class Match:
    """A chunked form: the nodes it takes the place of, its outputs, and the tail, if any."""

    seed: Node
    body: Body
    tail: Tail | None
    escapes: tuple[Value, ...]
    cut: Cut

    @property
    def outputs(self) -> list[Value]:
        """Values of the graph that the chunked form gives."""
        return [*([self.tail.total] if self.tail else []), *self.escapes]

    @property
    def inputs(self) -> list[Value]:
        """Values that the chunked form reads, directly or in its weights."""
        others = self.tail.others if self.tail else ()
        return [*self.cut.shared, *self.cut.entries, *others]


def candidates(node: Node, chunk: int, least: int, parts: int = 1) -> Iterator[tuple[Rows, int]]:
    """The rows, by either operand, of a wide product of two chunks or more; and a chunk's rows.

    A chunk has at least so many rows, and `least` bytes of the product; where the rows come in
    `parts`, it lies in one of them.
    """
    if node.op.name != "dot_general" or not node.output.type.nbytes:
        return
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    wide = node.output.type.size >= WIDE * (x.type.size + y.type.size)
    if xn or yn or not wide or not node.output.type.is_inexact:
        return
    left, right = len(free_dims(x, xc, xn)), len(free_dims(y, yc, yn))
    for rows in (Rows(0, left), Rows(left, left + right)):
        count = rows.count(node.output.shape)
        size = max(chunk, -(-least * count // node.output.type.nbytes))
        if count >= 2 * size:
            yield rows, evenly(count, size) if parts == 1 else _within(count // parts, size)


def _within(count: int, size: int) -> int:
    """Return the greatest divisor of `count` up to `size`, or the whole where that is small."""
    found = max(n for n in range(1, min(count, size) + 1) if count % n == 0)
    return found if 4 * found >= size else count


def match(graph: Graph, seed: Node, rows: Rows, returned: Sequence[Value]) -> Match | str:
    """Grow the row-wise part from a product, or tell why it can't be chunked.

    `returned` are the outputs that may be differentiated.
    """
    if axes := divided(seed.output, rows.dims):
        return f"its rows are divided over mesh axis {axes}: each chunk would sum over devices"
    body = Body(graph, rows.count(seed.output.shape))
    left = rows.start == 0
    x = seed.inputs[0 if left else 1]
    contract = seed.attrs["dimension_numbers"][0][0 if left else 1]
    free = free_dims(x, contract, ())
    body.entries[x] = Rows(free[0], free[-1] + 1)
    if body.carry(seed) is None:
        return "its operands have no rows in one piece"
    body.grow(seed)
    matters = differentiated(graph, returned)
    tail = find(body, matters, returned)
    nodes = set(tail.nodes) if tail else set()
    if tail is None and not matters.isdisjoint(body.own):
        return _reason(body, matters)
    read = {v for node in body.outside if node not in nodes for v in node.inputs}
    read.update(graph.outputs)
    read = tail.kept(read) if tail else read
    escapes = tuple(v for v in body.rows if v in body.own and v in read)
    wide = [v for v in escapes if 2 * v.type.size >= seed.output.type.size]
    if wide:
        return f"{wide[0].type} as a whole is read by {_reader(body, wide[0])}"
    if tail is None and not escapes:
        return "nothing reads it"
    wanted = [*(tail.rows if tail else ()), *escapes]
    return Match(seed, body, tail, escapes, needed(body, wanted))


def _reason(body: Body, matters: Set[Value]) -> str:
    for node in body.outside:
        for value in node.inputs:
            if value in body.own and value.type.size > body.count:
                return f"{value.type} as a whole is read by {told(node)}"
    for node in body.outside:
        if not matters.isdisjoint(node.outputs) and not body.own.isdisjoint(node.inputs):
            return f"its rows do not come to one number, linearly: {told(node)}"
    return "its rows are returned one by one, and may be differentiated"


def _reader(body: Body, value: Value) -> str:
    readers = [node for node in body.outside if value in node.inputs]
    return told(readers[0]) if readers else "the caller"


def chunked(graph: Graph, found: Match, chunk: int) -> Graph | str:
    """Return the graph with the match's nodes replaced, or why that can't be done."""
    gone = {node for node, _ in found.body.steps} | set(found.tail.nodes if found.tail else ())
    nodes = [found.body.divided.get(node, node) for node in graph.nodes]
    place = {v: i for i, node in enumerate(nodes) for v in node.outputs}
    start = 1 + max((place[v] for v in found.inputs if v in place), default=-1)
    late = set(found.outputs)
    before: list[Node] = []
    moved: list[Node] = []
    for node in nodes[:start]:
        if late.isdisjoint(node.inputs):
            before.append(node)
            continue
        if node.op.effect and node not in gone:
            return f"{told(node)} reads its rows in between and has an effect"
        late.update(node.outputs)
        moved.append(node)
    b = Builder(OPS, found.seed.origin)
    env = dict(zip(found.outputs, _emit(b, found, chunk), strict=True))
    rest = [substituted(node, env) for node in (*moved, *nodes[start:])]
    gone.update(new for new, old in zip(rest, (*moved, *nodes[start:]), strict=True) if old in gone)
    outputs = tuple(env.get(v, v) for v in graph.outputs)
    changed = Graph(graph.name, graph.inputs, (*before, *b.nodes, *rest), outputs)
    return _alive(changed, gone)


def _alive(graph: Graph, suspects: Set[Node]) -> Graph:
    """Drop those of `suspects` that nobody reads any more."""
    read = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node not in suspects or not read.isdisjoint(node.outputs):
            read.update(node.inputs)
            kept.append(node)
    return Graph(graph.name, graph.inputs, tuple(reversed(kept)), graph.outputs)


def _emit(b: Builder, found: Match, chunk: int) -> list[Value]:
    """Emit the chunked node, its rows in front, and give each output its own shape."""
    cut, tail, count = found.cut, found.tail, found.body.count
    weights = tail.weights(b) if tail else []
    b.origin = found.seed.origin
    entries = [_in_front(b, v, cut.rows[v], count) for v in cut.entries]
    flat = [b.reshape(c, (count,)) for c in weights]
    inputs = [*cut.shared, *entries, *flat]
    sizes = [chunk] + ([count % chunk] if count % chunk else [])
    regions = [_region(b, found, inputs, size) for size in sizes]
    attrs = {"num_shared": len(cut.shared), "num_sums": 1 if tail else 0, "chunk": chunk}
    outs = list(b.emit("chunked", inputs, attrs, regions))
    total = [outs.pop(0)] if tail else []
    back = [
        _behind(b, out, v, cut.rows[v], count) for out, v in zip(outs, found.escapes, strict=True)
    ]
    return [*total, *back]


def _region(b: Builder, found: Match, inputs: Sequence[Value], size: int) -> Graph:
    """The body for `size` rows: shared ++ entries ++ weights -> total ++ escapes."""
    cut, tail = found.cut, found.tail
    n, m = len(cut.shared), len(cut.shared) + len(cut.entries)
    sub = b.nested()
    ins = [
        sub.value((v.type if i < n else v.type.with_shape((size, *v.shape[1:]))).strong())
        for i, v in enumerate(inputs)
    ]
    entries = zip(cut.entries, ins[n:m], strict=True)
    given = {value: _to_place(sub, x, cut.rows[value]) for value, x in entries}
    rows = tail.rows if tail else ()
    env = cut.emit(sub, given, dict(zip(cut.shared, ins[:n], strict=True)), size)
    made = [env[v] for v in (*rows, *found.escapes)]
    outs = []
    sub.origin = found.seed.origin
    if tail is not None:
        shares = [
            sub.mul(sub.reshape(r, (size,)), c)
            for r, c in zip(made[: len(rows)], ins[m:], strict=True)
        ]
        outs.append(sub.reduce_sum(sub.sum(shares), (0,)))
    for value, x in zip(found.escapes, made[len(rows) :], strict=True):
        outs.append(_to_front(sub, x, cut.rows[value]))
    return sub.graph("rows", ins, outs)


def _order(rows: Rows, ndim: int) -> list[int]:
    """Permutation that puts the dimensions of the rows in front."""
    return [*rows.dims, *(i for i in range(ndim) if i not in rows)]


def _in_front(b: Builder, x: Value, rows: Rows, count: int) -> Value:
    """All rows as one dimension in front."""
    order = _order(rows, x.ndim)
    rest = [x.shape[i] for i in order[len(rows.dims) :]]
    return b.reshape(b.transpose(x, order), (count, *rest))


def _behind(b: Builder, x: Value, value: Value, rows: Rows, count: int) -> Value:
    """Undo `_in_front`: the shape of `value`."""
    order = _order(rows, value.ndim)
    shaped = b.reshape(x, [value.shape[i] for i in order])
    return b.transpose(shaped, [order.index(i) for i in range(value.ndim)])


def _to_place(b: Builder, x: Value, rows: Rows) -> Value:
    """Rows in front -> rows at their place; they are one dimension."""
    return b.transpose(x, [*range(1, rows.start + 1), 0, *range(rows.start + 1, x.ndim)])


def _to_front(b: Builder, x: Value, rows: Rows) -> Value:
    return b.transpose(x, [rows.start, *(i for i in range(x.ndim) if i != rows.start)])
