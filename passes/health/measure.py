"""The pass: a step's outputs, then `norms: f[rows, 3]` and `counts: i32[rows, 4]`.

It runs before autodiff, where a gradient is one node and its parameters are its operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.builder import Builder
from ...ir.graph import Graph, Value
from ..dce import Dce
from ..rewriter import inlined
from .gradients import Piece, Taken, builder, gradients_of, placed, root
from .statistics import COUNT, FLOAT, Sums, sums_of
from .updates import flow, update_of, updates


@dataclass(frozen=True)
class Row:
    """What a row is of: a parameter, or one layer of it; its elements; where its gradient is taken.

    `gradient`, `parameter` and `update` tell what is known.
    """

    name: str
    layer: int | None
    size: int
    source: str
    gradient: bool
    parameter: bool
    update: bool


@dataclass(frozen=True)
class Measured:
    """A graph with two further outputs, and what their rows are of."""

    graph: Graph
    rows: tuple[Row, ...]


def measured(graph: Graph, paths: Sequence[str]) -> Measured:
    """Add statistics to a graph whose outputs have these paths, such as `[0]['w']`.

    norms: of the gradient (root mean square of its runs), of the parameter, of its update
    counts: zeros, NaNs and infinities of the gradient, and its runs
    """
    graph, found = gradients_of(Dce()(inlined(graph)))
    flows = flow(graph)
    new = updates(graph, paths, flows)
    if not found and not any(node.op.name == "gradients" for node in graph.walk()):
        behind = [v for i, v in enumerate(graph.inputs) if flows.behind >> i & 1 and v in new]
        found = [Taken(None, v, v.type, 0, graph.nodes[0].origin) for v in behind]
    return _Table(graph, new).measured(found)


class _Table:
    """Collects the nodes of the rows, and what is known of parameters."""

    def __init__(self, graph: Graph, new: dict[Value, Value]) -> None:
        self.graph = graph
        self.new = new
        self.pieces: list[Piece] = []
        self.known: dict[tuple[Value | None, int], tuple[Value | None, Value | None]] = {}
        self.names: dict[str, int] = {}

    def measured(self, found: Sequence[Taken]) -> Measured:
        """The graph and its rows."""
        rows = tuple(row for each in found for row in self._rows(each))
        lines = [self._line(each) for each in found]
        b = builder()
        columns = [_joined(b, column) for column in zip(*lines, strict=True)]
        dtype = columns[0].dtype if columns else FLOAT
        norms, counts = b.full((0, 3), 0, dtype), b.full((0, 4), 0, COUNT)
        if columns:
            gradient, parameter, change, *numbers = columns
            runs = b.max(numbers[-1], b.full((len(rows),), 1, COUNT))
            squares = [b.div(gradient, b.convert(runs, dtype)), parameter, change]
            norms = b.sqrt(_beside(b, squares))
            counts = _beside(b, numbers)
        nodes = (*placed(self.graph.nodes, self.pieces), *b.nodes)
        outputs = (*self.graph.outputs, norms, counts)
        return Measured(replace(self.graph, nodes=nodes, outputs=outputs), rows)

    def _rows(self, each: Taken) -> list[Row]:
        parameter, new = self._of(each)
        name = self._name(each, parameter)
        size = each.type.size // max(each.rows, 1)
        known = each.gradient is not None, parameter is not None, new is not None
        source = each.origin.source if known[0] else ""
        layers = range(each.rows) if each.rows else [None]
        return [Row(name, layer, size, source, *known) for layer in layers]

    def _of(self, each: Taken) -> tuple[Value | None, Value | None]:
        """The parameter, as the input of the program that it is another form of; its new value."""
        if each.parameter is None:
            return None, None
        value = root(each.parameter, self.graph.producer)
        if value.type.size != each.type.size or (each.rows and value.shape[:1] != (each.rows,)):
            value = each.parameter
        return value, self.new.get(value)

    def _name(self, each: Taken, parameter: Value | None) -> str:
        name = None if parameter is None else parameter.name
        if name is None:
            name = f"{each.type.strong()} at {each.origin.source or 'an unknown line'}"
        self.names[name] = count = self.names.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"

    def _line(self, each: Taken) -> tuple[Value, ...]:
        """Squares of gradient, parameter and update, and the gradient's counts, `[rows]` each.

        Emitted where they are not there yet; zeros where they are not known.
        """
        parameter, new = self._of(each)
        gradient = each.gradient if isinstance(each.gradient, Value) else None
        b = builder()
        squares = self.known.get((parameter, each.rows))
        missing = parameter if squares is None else None
        sums = each.gradient if isinstance(each.gradient, Sums) else None
        if gradient is not None or missing is not None:
            update = None
            if missing is not None and new is not None:
                update = update_of(b, self.graph, missing, new)
            made, *fresh = sums_of(b, gradient, missing, update, each.rows)
            sums = made or sums
            squares = self.known.setdefault((parameter, each.rows), (fresh[0], fresh[1]))
        n = max(each.rows, 1)
        none, nought = b.full((n,), 0, FLOAT), b.full((n,), 0, COUNT)
        old, change = (none if v is None else v for v in squares or (None, None))
        self.pieces.append(Piece(b.nodes, () if sums is None else sums.all))
        if sums is None:
            return none, old, change, *[nought] * 4
        return sums.squares, old, change, *sums.all[1:]


def _joined(b: Builder, column: Sequence[Value]) -> Value:
    """Parts of a column as one, `[rows]`, of the widest dtype."""
    dtype = max((v.dtype for v in column), key=lambda t: t.itemsize)
    return b.concatenate([b.convert(v, dtype) for v in column], 0)


def _beside(b: Builder, columns: Sequence[Value]) -> Value:
    """`x[n]`, `y[n]`, ... as `[n, columns]`."""
    dtype = max((v.dtype for v in columns), key=lambda t: t.itemsize)
    rows = [b.reshape(b.convert(v, dtype), (*v.shape, 1)) for v in columns]
    return b.concatenate(rows, 1)
