"""Nodes and values of all stages as columns; each object, line and text stands there once.

nodes     op, attrs (texts), origin, phase, flops, seconds (of one run), counts and numbers of
          inputs and outputs; `regions` by node, each with its name, inputs, nodes,
              outputs and number of runs
values    type, name (of an argument, or the text of a literal)
origins   line, scope
lines     `file:line`, and the text of that line as it is now

Numbers of things are their places in these columns.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterable
from typing import Any, get_args

from ..attrs import AttrPrinter
from ..cost import node_cost
from ..device import DeviceSpec, clock
from ..graph import UNKNOWN, Graph, Literal, Node, Origin, Phase, Value
from ..numbers import format_number
from ..resources import Writer

PHASES = get_args(Phase)
_LONGEST = 400  # of an attribute or line


class Tables:
    """Collects; `data` gives what JSON can hold. Holds what it numbers, as that is by identity."""

    def __init__(self, device: DeviceSpec) -> None:
        """Times are those on `device`."""
        self.device = clock(device)
        self.printer = AttrPrinter(Writer(0), lambda graph: f"graph {graph.name}")
        self.texts: dict[str, int] = {}
        self.types: dict[tuple[str, int], int] = {}
        self.lines: dict[str, int] = {}
        self.origins: dict[Origin, int] = {}
        self.values: dict[Value, int] = {}
        self.numbered: dict[Node, int] = {}
        self.bodies: dict[int, list[list[Any]]] = {}
        self.value_rows: list[tuple[int, int, int]] = []
        self.origin_rows: list[tuple[int, int]] = []
        self.node_rows: list[tuple[Any, ...]] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def nodes(self, graph: Graph) -> list[int]:
        """Runs of the numbers of a graph's nodes, whose regions come after them all."""
        new = [node for node in graph.nodes if node not in self.numbered]
        numbers = [self.node(node) for node in graph.nodes]
        for node in new:
            if node.regions and self.numbered[node] not in self.bodies:
                bodies = self.bodies[self.numbered[node]] = []
                for region in node.regions:
                    bodies.append(
                        [
                            self.text(region.name),
                            [self.value(v) for v in region.inputs],
                            self.nodes(region),
                            [self.value(v) for v in region.outputs],
                            int(node.attrs["length"]) if node.op.name == "scan" else 1,
                        ]
                    )
        return runs(numbers)

    def node(self, node: Node) -> int:
        """Number of a node."""
        found = self.numbered.get(node)
        if found is None:
            found = self.numbered[node] = len(self.numbered)
            self.inputs += map(self.value, node.inputs)
            self.outputs += map(self.value, node.outputs)
            self.node_rows.append(
                (
                    self.text(node.op.name),
                    self.text(", ".join(map(_short, self.printer.attrs(node)))),
                    self.origin(node.origin),
                    PHASES.index(node.phase),
                    node_cost(node).flops,
                    float(f"{self.device.seconds(node):.3g}"),
                    len(node.inputs),
                    len(node.outputs),
                )
            )
        return found

    def value(self, value: Value) -> int:
        """Number of a value; a literal is one whose name is its text."""
        found = self.values.get(value)
        if found is None:
            found = self.values[value] = len(self.values)
            literal = isinstance(value, Literal)
            name = _literal(value) if isinstance(value, Literal) else value.name
            kind = self.types.setdefault((str(value.type), value.type.nbytes), len(self.types))
            self.value_rows.append((kind, -1 if name is None else self.text(name), int(literal)))
        return found

    def origin(self, origin: Origin) -> int:
        """Number of an origin, which links a node to its derivatives."""
        found = self.origins.get(origin)
        if found is None:
            found = self.origins[origin] = len(self.origins)
            line = self.lines.setdefault(origin.source, len(self.lines))
            self.origin_rows.append((line, self.text(origin.scope)))
        return found

    def text(self, text: str) -> int:
        """Number of a text."""
        return self.texts.setdefault(text, len(self.texts))

    def data(self) -> dict[str, Any]:
        """Everything, as columns."""
        lines = [[self.text(source), self.text(_line(source))] for source in self.lines]
        names = "op attrs origin phase flops seconds reads makes".split()
        nodes = dict(zip(names, _columns(self.node_rows, len(names)), strict=True))
        types = [[self.text(name), size] for name, size in self.types]
        return {
            "nodes": {**nodes, "inputs": self.inputs, "outputs": self.outputs},
            "regions": self.bodies,
            "values": dict(
                zip(("type", "name", "literal"), _columns(self.value_rows, 3), strict=True)
            ),
            "origins": dict(zip(("line", "scope"), _columns(self.origin_rows, 2), strict=True)),
            "unknown": self.origins.get(UNKNOWN, -1),
            "lines": lines,
            "types": types,
            "texts": list(self.texts),
        }


def runs(numbers: Iterable[int]) -> list[int]:
    """Numbers as runs: start, length, start, length, ..."""
    found: list[int] = []
    for number in numbers:
        if found and number == found[-2] + found[-1]:
            found[-1] += 1
        else:
            found += (number, 1)
    return found


def _columns(rows: list[Any], width: int) -> list[list[Any]]:
    return [[row[k] for row in rows] for k in range(width)]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _literal(value: Literal) -> str:
    try:
        return format_number(value.data)
    except (TypeError, ValueError):
        return _short(repr(value.data))


def _line(source: str) -> str:
    """Text of `file:line`, or the empty string."""
    file, _, line = source.rpartition(":")
    return _short(linecache.getline(file, int(line)).strip()) if line.isdecimal() else ""
