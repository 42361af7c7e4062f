"""Which gradients a program takes, and what of those in its loops and branches is carried out.

    scan(c) { .. c + g .. }            the gradient is the scan's sum: nothing is added to the loop
    scan(c) { .. f(g) .. }        ->   scan(c, s) { .. f(g) ..; s + sums(g) }
    cond(i) { .. f(g) .. } { .. } ->   cond(i) { .. f(g) ..; sums(g) } { ..; 0 }

Gradients inside a function that is differentiated itself are part of its loss, and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir.builder import Builder
from ...ir.cost import VIEWS
from ...ir.graph import Graph, Literal, Node, Origin, Value
from ...ir.ops import OPS
from ...ir.types import ArrayType
from ..scan import Scan
from .statistics import Sums, sums_of

MOST_LAYERS = 128  # rows for the slices of one parameter; a longer axis is no axis of layers
_SAME = VIEWS | set("convert_element_type copy transpose pvary sharding_constraint".split())
_SCALED = frozenset("mul div neg convert_element_type copy".split())
HERE = Origin("", "health")


@dataclass(frozen=True, eq=False)
class Taken:
    """A gradient: its value, or sums where it is in a region, and the parameter, where known.

    `rows`: the length of the leading axis if the function scans over it, else 0.
    """

    gradient: Value | Sums | None
    parameter: Value | None
    type: ArrayType
    rows: int
    origin: Origin


Found = tuple[Sequence[Node], list[Taken]]


@dataclass(frozen=True, eq=False)
class Piece:
    """Nodes to be put in a graph `behind` some of its values, and those that they read."""

    nodes: Sequence[Node]
    behind: Sequence[Value] = ()


def gradients_of(graph: Graph) -> tuple[Graph, list[Taken]]:
    """Return a graph that carries gradients out of its regions, and them; it holds no calls."""
    read = {v for node in graph.nodes for v in node.inputs}.union(graph.outputs)
    nodes: list[Node] = []
    found: list[Taken] = []
    for node in graph.nodes:
        if node.op.name in _REGIONS:
            made, more = _REGIONS[node.op.name](node)
        else:
            made, more = [node], _asked(node, read) if node.op.name == "gradients" else []
        nodes += made
        found += more
    if nodes == list(graph.nodes):
        return graph, found
    return replace(graph, nodes=tuple(nodes)), found


def root(value: Value, producer: Mapping[Value, Node]) -> Value:
    """What a value is another form of: before casts, reshapes and the like."""
    while (node := producer.get(value)) is not None and node.op.name in _SAME:
        value = node.inputs[node.outputs.index(value)]
    return value


def placed(nodes: Sequence[Node], pieces: Sequence[Piece]) -> tuple[Node, ...]:
    """Put each piece right behind the last node that it waits for."""
    at = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    behind: dict[int, list[Node]] = {}
    for piece in pieces:
        reads = (*(v for node in piece.nodes for v in node.inputs), *piece.behind)
        last = max((at[v] for v in reads if v in at), default=len(nodes) - 1)
        behind.setdefault(last, []).extend(piece.nodes)
    found: list[Node] = []
    for i, node in enumerate(nodes):
        found += (node, *behind.get(i, ()))
    return tuple(found)


def builder() -> Builder:
    """An empty one, whose nodes are of the update and of this pass."""
    b = Builder(OPS, HERE)
    b.phase = "update"
    return b


def _asked(node: Node, read: set[Value]) -> list[Taken]:
    (function,) = node.regions
    wrt = node.attrs["wrt"]
    grads = node.outputs[len(function.outputs) :]
    return [
        Taken(g, node.inputs[i], node.inputs[i].type, _layers(function, i), node.origin)
        for i, g in zip(wrt, grads, strict=True)
        if g in read
    ]


def _layers(function: Graph, i: int) -> int:
    """The length of an input's leading axis, if the function scans over it."""
    value = function.inputs[i]
    for node in function.nodes:
        if node.op.name == "scan":
            given = {root(v, function.producer) for v in node.inputs[Scan(node).parts[2]]}
            if value in given and 1 < Scan(node).length <= MOST_LAYERS:
                return Scan(node).length
    return 0


# Regions


def _summed(body: Graph, found: Sequence[Taken]) -> tuple[Graph, list[Sums]]:
    """The sums of gradients of a region, made in it."""
    pieces: list[Piece] = []
    sums: list[Sums] = []
    for each in found:
        if isinstance(each.gradient, Value):
            b = builder()
            made, _, _ = sums_of(b, each.gradient, None, None, each.rows)
            pieces.append(Piece(b.nodes))
        else:
            made = each.gradient
        assert made is not None
        sums.append(made)
    return replace(body, nodes=placed(body.nodes, pieces)), sums


def _outer(
    body: Graph, found: Sequence[Taken], given: Callable[[int], Value | None]
) -> list[Taken]:
    """The parameters as they are outside: `given(i)` is what the body's input `i` is there."""
    place = {value: i for i, value in enumerate(body.inputs)}
    outer = []
    for each in found:
        at = place.get(root(each.parameter, body.producer)) if each.parameter is not None else None
        outer.append(replace(each, parameter=None if at is None else given(at)))
    return outer


def _fresh(sums: Sequence[Sums]) -> list[Sums]:
    return [Sums(*(Value(v.type) for v in each.all)) for each in sums]


def _flat(sums: Sequence[Sums]) -> list[Value]:
    return [v for each in sums for v in each.all]


def _with_totals(body: Graph, sums: Sequence[Sums]) -> tuple[Graph, list[Sums], list[Value]]:
    """A loop's body that adds to totals: it, its inputs for them, and its outputs."""
    before, b = _fresh(sums), builder()
    after = [b.add(x, y) for x, y in zip(_flat(before), _flat(sums), strict=True)]
    return replace(body, nodes=(*body.nodes, *b.nodes)), before, after


def _scan(node: Node) -> Found:
    scan = Scan(node)
    body, found = gradients_of(scan.body)
    if not found:
        return [node], []
    n, k = scan.parts[0].stop, scan.carried
    outer = _outer(body, found, lambda i: node.inputs[i] if i < n + k else None)
    totals = [_total(body, each.gradient, n, k) for each in found]
    summed = [
        replace(each, gradient=node.outputs[at])
        for each, at in zip(outer, totals, strict=True)
        if at is not None
    ]
    inner = [i for i, at in enumerate(totals) if at is None]
    if not inner:
        return [node if body is scan.body else replace(node, regions=(body,))], summed
    body, sums = _summed(body, [found[i] for i in inner])
    body, before, after = _with_totals(body, sums)
    body = replace(
        body,
        inputs=(*body.inputs[: n + k], *_flat(before), *body.inputs[n + k :]),
        outputs=(*body.outputs[:k], *after, *body.outputs[k:]),
    )
    return _looped(node, body, sums, n + k, k, [outer[i] for i in inner], summed)


def _while(node: Node) -> Found:
    test, body = node.regions
    body, found = gradients_of(body)
    if not found or test.outputs[0].ndim:
        return [node], []
    nc = node.attrs["cond_nconsts"]
    outer = _outer(body, found, lambda i: node.inputs[nc + i])
    body, sums = _summed(body, found)
    body, before, after = _with_totals(body, sums)
    body = replace(body, inputs=(*body.inputs, *_flat(before)), outputs=(*body.outputs, *after))
    test = replace(test, inputs=(*test.inputs, *_flat(_fresh(sums))))
    node = replace(node, regions=(test, body))
    return _looped(node, body, sums, len(node.inputs), len(node.outputs), outer, [])


def _looped(
    node: Node,
    body: Graph,
    sums: Sequence[Sums],
    into: int,
    out: int,
    outer: Sequence[Taken],
    summed: Sequence[Taken],
) -> Found:
    """The loop with totals in its carry, which begin with zeros."""
    results, b = _fresh(sums), builder()
    b.phase = node.phase
    starts = [b.zeros(v) for v in _flat(sums)]
    attrs = node.attrs
    if node.op.name == "scan":
        attrs = {**attrs, "num_carry": attrs["num_carry"] + len(starts)}
    node = replace(
        node,
        inputs=(*node.inputs[:into], *starts, *node.inputs[into:]),
        outputs=(*node.outputs[:out], *_flat(results), *node.outputs[out:]),
        attrs=attrs,
        regions=(*node.regions[:-1], body),
    )
    taken = [replace(each, gradient=s) for each, s in zip(outer, results, strict=True)]
    return (*b.nodes, node), [*summed, *taken]


def _total(body: Graph, gradient: Value | Sums | None, n: int, k: int) -> int | None:
    """The carry to which a gradient is added, scaled perhaps, and which nothing else reads."""
    if not isinstance(gradient, Value):
        return None
    for j, out in enumerate(body.outputs[:k]):
        node, carried = body.producer.get(out), body.inputs[n + j]
        if node is None or node.op.name not in ("add", "add_any"):
            continue
        if body.users.get(carried) == (node,) and out.shape == gradient.shape:
            others = [v for v in node.inputs if v is not carried]
            if len(others) == 1 and _scaled(body, others[0], gradient):
                return j
    return None


def _scaled(body: Graph, value: Value, gradient: Value) -> bool:
    """True for the gradient times numbers."""
    node = body.producer.get(value)
    if value is gradient or node is None or node.op.name not in _SCALED:
        return value is gradient
    arrays = [v for v in node.inputs if not _is_number(body, v, gradient)]
    if len(arrays) != 1 or (node.op.name == "div" and arrays[0] is not node.inputs[0]):
        return False
    return _scaled(body, arrays[0], gradient)


def _is_number(body: Graph, value: Value, gradient: Value) -> bool:
    """True for one number beside a gradient of more, broadcast or not."""
    if isinstance(value, Literal) or not gradient.ndim:
        return isinstance(value, Literal)
    node = body.producer.get(value)
    spread = node is not None and node.op.name == "broadcast_in_dim" and not node.inputs[0].ndim
    return spread or not value.ndim


def _cond(node: Node) -> Found:
    entered = [gradients_of(branch) for branch in node.regions]
    if not any(found for _, found in entered):
        return [node], []
    made = [_summed(body, found) for body, found in entered]
    outer = [
        taken
        for body, found in entered
        for taken in _outer(body, found, lambda i: node.inputs[1 + i])
    ]
    branches = []
    for i, (body, own) in enumerate(made):
        b = builder()
        outs: list[Value] = []
        for j, (_, sums) in enumerate(made):
            outs += _flat(own) if i == j else [b.zeros(v) for v in _flat(sums)]
        nodes = (*body.nodes, *b.nodes)
        branches.append(replace(body, nodes=nodes, outputs=(*body.outputs, *outs)))
    results = _fresh([s for _, sums in made for s in sums])
    node = replace(node, outputs=(*node.outputs, *_flat(results)), regions=tuple(branches))
    return [node], [replace(each, gradient=s) for each, s in zip(outer, results, strict=True)]


_REGIONS: Mapping[str, Callable[[Node], Found]] = {"scan": _scan, "while": _while, "cond": _cond}
