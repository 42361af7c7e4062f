"""A program by its layers: parameters, arithmetic, what the backward pass keeps and makes again.

A layer is the first parts of a node's scope; a node without a scope belongs to its Python line.
Inside a loop the scope goes on from that of the loop, and all of its steps count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..ir.cost import cost, node_cost
from ..ir.graph import Graph, Node, Value
from ..ir.tables import bytes_text, count_text, table
from ..passes import Stage
from ..passes.rematerialise import decisions

_PLANS = ("restack", "rematerialise")
T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """One row: elements of the parameters, FLOPs of each phase, bytes kept and made again.

    `saved_bytes` wait for the backward pass, `recomputed_bytes` are made again in it.
    """

    name: str
    parameters: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    recomputed_bytes: int = 0

    def plus(self, other: Layer) -> Layer:
        """Add another row's figures."""
        return Layer(
            self.name,
            self.parameters + other.parameters,
            self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops,
            self.saved_bytes + other.saved_bytes,
            self.recomputed_bytes + other.recomputed_bytes,
        )

    def cells(self) -> tuple[str, ...]:
        """Return the figures as text."""
        counts = (self.parameters, self.forward_flops, self.backward_flops)
        sizes = (self.saved_bytes, self.recomputed_bytes)
        return (self.name, *map(count_text, counts), *map(bytes_text, sizes))


@dataclass(frozen=True)
class Summary:
    """The layers of a program in order of execution; prints as a table."""

    rows: tuple[Layer, ...]

    @property
    def total(self) -> Layer:
        """Sum of the rows; FLOPs of the update belong to no layer."""
        total = Layer("total")
        for row in self.rows:
            total = total.plus(row)
        return total

    def __str__(self) -> str:
        """Return the table."""
        head = ("layer", "parameters", "forward FLOPs", "backward FLOPs", "saved", "made again")
        return table(head, [row.cells() for row in self.rows], [self.total.cells()])


def summarise(stages: Sequence[Stage], depth: int) -> Summary:
    """Add up the last stage by layers; what is differentiated is read from the traced one."""
    last = stages[-1].graph
    numbers = set(_differentiated(stages[0].graph, {v: i for i, v in enumerate(last.inputs)}))
    found = _Layers(depth)
    found.graph(last, {last.inputs[i]: last.inputs[i] for i in numbers})
    for each in decisions(_unplanned(stages), last, lambda node: 0.0):
        key = each.scope, each.source
        name = found.places.get(key) or _layer(*key, depth)
        if each.action == "save":
            found.add(Layer(name, saved_bytes=each.bytes))
        elif each.action == "recompute":
            found.add(Layer(name, recomputed_bytes=each.bytes))
    return Summary(tuple(found.rows.values()))


def _differentiated(graph: Graph, numbers: Mapping[Value, int]) -> Iterator[int]:
    """Numbers of the values that gradients are taken with respect to, in regions too."""
    for node in graph.nodes:
        if node.op.name == "gradients":
            asked = (node.inputs[i] for i in node.attrs["wrt"])
            yield from (numbers[value] for value in asked if value in numbers)
        for region in node.regions:
            yield from _differentiated(region, _inside(node, region, numbers))


def _inside(node: Node, region: Graph, known: Mapping[Value, T]) -> dict[Value, T]:
    """What is known of the inputs of a region that takes the operands of its node."""
    if len(region.inputs) != len(node.inputs):
        return {}
    pairs = zip(region.inputs, node.inputs, strict=True)
    return {inner: known[outer] for inner, outer in pairs if outer in known}


def _unplanned(stages: Sequence[Stage]) -> Graph:
    """The program before what makes values again."""
    names = [stage.name for stage in stages]
    first = min((names.index(name) for name in _PLANS if name in names), default=len(names))
    return stages[max(first, 1) - 1].graph


class _Layers:
    """Rows by name, and the layer of each place, as its scope inside loops is but a part."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.rows: dict[str, Layer] = {}
        self.places: dict[tuple[str, str], str] = {}
        self.counted: set[Value] = set()

    def add(self, row: Layer) -> None:
        self.rows[row.name] = self.rows.get(row.name, Layer(row.name)).plus(row)

    def graph(
        self,
        graph: Graph,
        parameters: Mapping[Value, Value],
        scope: str = "",
        phase: str = "",
        times: int = 1,
    ) -> None:
        """Add the nodes of a graph that runs so many `times` inside `scope`."""
        for node in graph.nodes:
            here = "/".join(part for part in (scope, node.scope) if part)
            name = _layer(here, node.source, self.depth)
            self.places.setdefault((node.scope, node.source), name)
            kind = phase or node.phase
            runs = times * int(node.attrs["length"]) if node.op.name == "scan" else times
            entered: set[Value] = set()
            for region in _run(node):
                inner = _inside(node, region, parameters)
                entered.update(inner.values())
                self.graph(region, inner, here, kind, runs)
            flops = 0 if node.regions else times * node_cost(node).flops
            if kind == "forward":
                self.add(Layer(name, forward_flops=flops))
            elif kind == "backward":
                self.add(Layer(name, backward_flops=flops))
            for value in {parameters[v] for v in node.inputs if v in parameters}:
                if value not in self.counted and value not in entered:
                    self.add(Layer(name, parameters=value.type.size))
                    self.counted.add(value)


def _run(node: Node) -> Sequence[Graph]:
    """The regions of a node that run: of a cond the dearest, of a custom rule the function."""
    if node.op.name == "cond":
        return [max(node.regions, key=lambda region: cost(region).flops)]
    return node.regions if node.op.name == "while" else node.regions[:1]


def _layer(scope: str, source: str, depth: int) -> str:
    return "/".join(scope.split("/")[:depth]) if scope else source or "(unknown)"
