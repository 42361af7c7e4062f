"""A graph for Model Explorer: JSON in the structure of its `GraphCollection`.

    collection   label, graphs; the first is the program, the others are regions
    graph        id, nodes, groupNodeAttributes (nodes, FLOPs and bytes of each layer)
    node         id, label, namespace, attrs, incomingEdges, outputsMetadata, subgraphIds, style

Node ids are those of `ir.export`: `i0` an input, `n3` a node, `out` the return. The namespace of a
forward node is its scope; those of other phases stand under `backward` and `update`, so that the
two directions lie side by side. A region that many nodes share is written once.

Source: github.com/google-ai-edge/model-explorer, `graph_builder.py` and `input_graph.ts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .attrs import AttrPrinter
from .cost import Work, node_costs
from .export import COLOURS, SCOPES_DEEP
from .graph import Graph, Literal, Node, Value
from .printer import literal_text
from .resources import Digests

_LONGEST = 300  # characters of an attribute


def to_json(graph: Graph) -> str:
    """JSON text of `collection(graph)`."""
    return json.dumps(collection(graph), separators=(",", ":"))


def collection(graph: Graph) -> dict[str, Any]:
    """Graph and regions as Model Explorer's `GraphCollection`, made of JSON's own types."""
    made = _Collection(node_costs(graph))
    made.add(graph, graph.name or "graph")
    return {"label": graph.name or "graph", "graphs": made.graphs}


class _Collection:
    """Graphs as they are found, each once, by identity."""

    def __init__(self, costs: Mapping[Node, Work]) -> None:
        self.costs = costs
        self.graphs: list[dict[str, Any]] = []
        self.known: dict[int, str] = {}
        self.printer = AttrPrinter(Digests(), lambda graph: f"graph {graph.name}")

    def add(self, graph: Graph, name: str) -> str:
        """Write `graph` and its regions; gives its id."""
        if id(graph) in self.known:
            return self.known[id(graph)]
        self.known[id(graph)] = name
        written: dict[str, Any] = {"id": name}
        self.graphs.append(written)
        home: dict[Value, tuple[str, int]] = {}
        nodes = []
        for i, value in enumerate(graph.inputs):
            home[value] = (f"i{i}", 0)
            nodes.append(_input(f"i{i}", value))
        names = {node: f"n{i}" for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            home |= {value: (names[node], k) for k, value in enumerate(node.outputs)}
            nodes.append(self._node(graph, node, names, home, name))
        nodes.append(
            {"id": "out", "label": "return", "namespace": ""} | _reads(graph.outputs, home)
        )
        written |= {"nodes": nodes, "groupNodeAttributes": self._layers(graph)}
        return name

    def _node(
        self,
        graph: Graph,
        node: Node,
        names: Mapping[Node, str],
        home: Mapping[Value, tuple[str, int]],
        outer: str,
    ) -> dict[str, Any]:
        name = names[node]
        attrs: list[dict[str, Any]] = [*_pairs(self._attrs(node))]
        if (forward := graph.forward_of.get(node)) is not None:
            link = {"type": "node_ids", "nodeIds": [names[forward]]}
            attrs.append({"key": "differentiates", "value": link})
        inner = [self.add(region, f"{outer}/{name}.r{k}") for k, region in enumerate(node.regions)]
        return {
            "id": name,
            "label": node.op.name,
            "namespace": namespace(node),
            "attrs": attrs,
            **_reads(node.inputs, home),
            "outputsMetadata": [_output(k, value) for k, value in enumerate(node.outputs)],
            "style": {"backgroundColor": COLOURS[node.phase]},
            **({"subgraphIds": inner} if inner else {}),
        }

    def _attrs(self, node: Node) -> Iterator[tuple[str, str]]:
        """What the side panel shows: place, cost, literals, then the op's own attributes."""
        work = self.costs[node]
        yield "phase", node.phase
        yield "line", node.source
        yield "scope", node.scope
        yield "flops", str(work.flops)
        yield "bytes", str(sum(value.type.nbytes for value in node.outputs))
        yield "bytes_moved", str(work.bytes)
        for i, value in enumerate(node.inputs):
            if isinstance(value, Literal):
                yield f"operand {i}", literal_text(value)
        for each in self.printer.attrs(node):
            key, equals, text = each.partition("=")
            if equals:
                yield key, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

    def _layers(self, graph: Graph) -> dict[str, dict[str, str]]:
        """Nodes, FLOPs and bytes moved of each namespace, those below it included."""
        sums: dict[str, Work] = {}
        for node in graph.nodes:
            parts = namespace(node).split("/")
            for layer in {"", *("/".join(parts[: i + 1]) for i in range(len(parts)))}:
                sums[layer] = sums.get(layer, Work()).plus(self.costs[node])
        return {
            layer: {"nodes": str(w.nodes), "flops": str(w.flops), "bytes_moved": str(w.bytes)}
            for layer, w in sorted(sums.items())
        }


def namespace(node: Node) -> str:
    """Layers around a node, by slashes: its scope, that of a later phase under the phase."""
    parts = [part for part in node.scope.split("/") if part][:SCOPES_DEEP]
    return "/".join(parts if node.phase == "forward" else [node.phase, *parts])


def _input(id: str, value: Value) -> dict[str, Any]:
    return {
        "id": id,
        "label": value.name or f"input {id[1:]}",
        "namespace": "",
        "attrs": [*_pairs([("bytes", str(value.type.nbytes))])],
        "outputsMetadata": [_output(0, value)],
    }


def _reads(values: tuple[Value, ...], home: Mapping[Value, tuple[str, int]]) -> dict[str, Any]:
    """Edges into a node; literals have none."""
    edges = [
        {
            "sourceNodeId": home[value][0],
            "sourceNodeOutputId": str(home[value][1]),
            "targetNodeInputId": str(i),
        }
        for i, value in enumerate(values)
        if value in home
    ]
    return {"incomingEdges": edges}


def _output(position: int, value: Value) -> dict[str, Any]:
    pairs = [("tensor_shape", str(value.type)), ("bytes", str(value.type.nbytes))]
    return {"id": str(position), "attrs": [*_pairs(pairs)]}


def _pairs(items: Any) -> Iterator[dict[str, str]]:
    return ({"key": key, "value": value} for key, value in items if value)
