"""From numbers of rows to one number: the weight that each row has in a loss.

    loss = f(r),  f linear: sums, means, masks already applied   ->   loss = sum_n c_n r_n

The weights c are the transpose of f at 1. They do not depend on r, so they are known before the
rows are computed, and a row's gradient can be taken in the pass that computes the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from ..autodiff.reverse import Reverse, propagates
from .body import Body

_ANY = frozenset("reduce_sum reshape squeeze neg broadcast_in_dim transpose".split())
_SUM = frozenset("add add_any sub".split())


@dataclass(frozen=True, slots=True)
class Tail:
    """`nodes` make `total`, one number, of `rows`, which are values of the body."""

    nodes: tuple[Node, ...]
    rows: tuple[Value, ...]
    total: Value

    @property
    def others(self) -> list[Value]:
        """What the nodes read besides."""
        made = {v for node in self.nodes for v in node.outputs}
        read = dict.fromkeys(v for node in self.nodes for v in node.inputs)
        known = (v for v in read if v not in made and v not in self.rows)
        return [v for v in known if not isinstance(v, Literal)]

    def kept(self, read: Set[Value]) -> set[Value]:
        """Return what is read if `read` is, where that is made by the tail's nodes on the way."""
        found = set(read) - {self.total}
        for node in reversed(self.nodes):
            if not found.isdisjoint(node.outputs):
                found.update(node.inputs)
        return found

    def weights(self, b: Builder) -> list[Value]:
        """Emit each row's share in the total, in the shape of `rows`."""
        others = self.others
        region = Graph("tail", (*self.rows, *others), self.nodes, (self.total,))
        given = [*([None] * len(self.rows)), *others]
        _, pull = Reverse().linear_tape(b, region, given, phase="forward")
        found = pull(b, [b.ones(self.total)])[: len(self.rows)]
        return [b.zeros(r) if c is None else c for r, c in zip(self.rows, found, strict=True)]


def sums(body: Body, node: Node) -> Node | None:
    """Divide a sum over rows and more: what is summed in a row is left to the body.

    Returns the node that sums over rows alone, or None where `node` is no such sum.
    """
    if node.op.name != "reduce_sum":
        return None
    (x,), axes = node.inputs, node.attrs["axes"]
    rows = body.rows.get(x)
    if x not in body.own or rows is None or not any(axis in rows for axis in axes):
        return None
    inner = tuple(axis for axis in axes if axis not in rows)
    if not inner:
        return node
    kept = [n for i, n in enumerate(x.shape) if i not in inner]
    partial = Value(x.type.with_shape(kept))
    body.carry(replace(node, outputs=(partial,), attrs={**node.attrs, "axes": inner}))
    first = body.rows[partial].start - rows.start
    outer = tuple(axis + first for axis in axes if axis in rows)
    return replace(node, inputs=(partial,), attrs={**node.attrs, "axes": outer})


def find(body: Body, matters: Set[Value], returned: Sequence[Value]) -> Tail | None:
    """Find the last number through which alone the body's values come to what `matters`.

    `matters` are the values on which the outputs depend that may be differentiated, `returned`.
    The last such number has the simplest cotangent, which is 1 for the loss itself.
    """
    made: dict[Value, Node] = {}
    readers: dict[Value, list[Node]] = {}
    for i, node in enumerate(body.outside):
        divided = sums(body, node)
        if divided is not None and divided is not node:
            body.divided[node] = body.outside[i] = node = divided
        for value in dict.fromkeys(node.inputs):
            readers.setdefault(value, []).append(node)
        if _is_linear(body, node, made):
            made.update((v, node) for v in node.outputs)
    for total in reversed(made):
        if total.ndim == 0 and total in matters:
            nodes = _ancestors(made, total)
            inside = {v for node in nodes for v in node.outputs} - {total}
            rows = dict.fromkeys(v for node in nodes for v in node.inputs if v in body.own)
            leaves = [
                v
                for v in (*body.own, *inside)
                if v in matters
                and (
                    v in returned
                    or any(n not in nodes and _matters(n, matters) for n in readers.get(v, ()))
                )
            ]
            if not leaves:
                return Tail(tuple(n for n in body.outside if n in nodes), tuple(rows), total)
    return None


def _matters(node: Node, matters: Set[Value]) -> bool:
    return propagates(node) and not matters.isdisjoint(node.outputs)


def _is_linear(body: Body, node: Node, made: Mapping[Value, Node]) -> bool:
    """True where the node is linear in the operands that come from the body's rows."""
    if len(node.outputs) != 1:
        return False
    inside = [v in made or (v in body.own and v.type.size == body.count) for v in node.inputs]
    known = [v not in body.own and v not in body.after for v in node.inputs]
    out = node.outputs[0]
    if not any(inside) or not all(a or b for a, b in zip(inside, known, strict=True)):
        return False
    if any(v.dtype != out.dtype for v in node.inputs) or not out.type.is_inexact:
        return False
    name = node.op.name
    return (
        name in _ANY
        or (name in _SUM and all(inside))
        or (name in ("mul", "dot_general") and inside.count(True) == 1)
        or (name == "div" and inside == [True, False])
    )


def _ancestors(made: Mapping[Value, Node], total: Value) -> set[Node]:
    found: set[Node] = set()
    todo = [total]
    while todo:
        node = made.get(todo.pop())
        if node is not None and node not in found:
            found.add(node)
            todo += node.inputs
    return found


def differentiated(graph: Graph, outputs: Iterable[Value]) -> set[Value]:
    """Values on which the inexact ones of `outputs` depend differentiably."""
    found = {v for v in outputs if v.type.is_inexact}
    for node in reversed(graph.nodes):
        if _matters(node, found):
            found.update(v for v in node.inputs if v.type.is_inexact)
    return found
