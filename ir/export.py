"""A graph for other tools: `networkx`, and Graphviz's DOT language.

Node ids: `i0` is the first input, `n3` the fourth node, `n3.r0.n1` the second node of its first
region, `out` what is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from .graph import Graph, Node, Value

COLOURS: Mapping[str, str] = {
    "forward": "#dbeafe",
    "backward": "#fee2e2",
    "update": "#dcfce7",
}
SCOPES_DEEP = 20


def to_networkx(graph: Graph) -> nx.MultiDiGraph[str]:
    """Inputs, nodes, regions and the return of `graph` as nodes; one edge for each read.

    Attributes of a node: `kind` (input, node, return), `op`, `types`, `phase`, `source`, `scope`,
    `name` (of an input), `attrs`, `regions` (ids of the nodes in each region), `region` (id of
    the node around it and number of the region, or None). Attributes of an edge: `operand` (its
    position), `output` (the position among the outputs of the node it comes from), `type`.
    """
    drawn: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=graph.name)
    _draw(drawn, graph, "", None)
    return drawn


def _draw(
    drawn: nx.MultiDiGraph[str], graph: Graph, prefix: str, region: tuple[str, int] | None
) -> list[str]:
    """Add `graph` under ids that start with `prefix`; give the ids of its own nodes."""
    home: dict[Value, tuple[str, int]] = {}
    ids = []

    def add(id: str, kind: str, reads: tuple[Value, ...], **attributes: Any) -> None:
        ids.append(id)
        drawn.add_node(id, kind=kind, region=region, **attributes)
        for operand, value in enumerate(reads):
            if value in home:
                source, output = home[value]
                drawn.add_edge(source, id, operand=operand, output=output, type=str(value.type))

    for i, value in enumerate(graph.inputs):
        add(f"{prefix}i{i}", "input", (), op="input", types=[str(value.type)], name=value.name)
        home[value] = (ids[-1], 0)
    for i, node in enumerate(graph.nodes):
        name = f"{prefix}n{i}"
        add(name, "node", node.inputs, **_attributes(node))
        home |= {value: (name, output) for output, value in enumerate(node.outputs)}
        drawn.nodes[name]["regions"] = [
            _draw(drawn, inner, f"{name}.r{k}.", (name, k)) for k, inner in enumerate(node.regions)
        ]
    types = [str(value.type) for value in graph.outputs]
    add(f"{prefix}out", "return", graph.outputs, op="return", types=types)
    return ids


def _attributes(node: Node) -> dict[str, Any]:
    return {
        "op": node.op.name,
        "types": [str(value.type) for value in node.outputs],
        "phase": node.phase,
        "source": node.source,
        "scope": node.scope,
        "attrs": dict(node.attrs),
    }


def to_dot(graph: Graph) -> str:
    """Graphviz text: scopes and regions are clusters, phases are colours.

    No `dot` binary is needed to write it.
    """
    body: list[str] = []
    edges: list[str] = []
    _Dot(body, edges, "").graph(graph, "  ")
    head = ["  rankdir=TB;", '  node [shape=box, style="rounded,filled", fontname="Helvetica"];']
    return "\n".join([f"digraph {quote(graph.name)} {{", *head, *body, *edges, "}", ""])


def quote(text: str) -> str:
    r"""Write a DOT string; a newline becomes `\n`, other control characters a space."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(c if c.isprintable() else " " for c in escaped) + '"'


class _Dot:
    """Writes one graph: its clusters into `body`, its edges into `edges`, ids after `prefix`."""

    def __init__(self, body: list[str], edges: list[str], prefix: str) -> None:
        self.body, self.edges, self.prefix = body, edges, prefix
        self.home: dict[Value, str] = {}

    def graph(self, graph: Graph, indent: str) -> None:
        for i, value in enumerate(graph.inputs):
            name = f"{self.prefix}i{i}"
            label = f"{value.name or f'input {i}'}\n{value.type}"
            self.body.append(f"{indent}{name} [label={quote(label)}, shape=ellipse];")
            self.home[value] = name
        names = {node: f"{self.prefix}n{i}" for i, node in enumerate(graph.nodes)}
        for node, name in names.items():
            self.arrows(node.inputs, name)
            self.home |= dict.fromkeys(node.outputs, name)
        self.scope(_by_scope(graph.nodes), names, indent, f"cluster_{self.prefix}s")
        self.body.append(f"{indent}{self.prefix}out [label=return, shape=ellipse];")
        self.arrows(graph.outputs, f"{self.prefix}out")

    def arrows(self, reads: Sequence[Value], name: str) -> None:
        for value in reads:
            if value in self.home:
                self.edges.append(
                    f"  {self.home[value]} -> {name} [label={quote(str(value.type))}];"
                )

    def scope(self, scope: _Scope, names: Mapping[Node, str], indent: str, cluster: str) -> None:
        for node in scope.nodes:
            self.node(node, names[node], indent)
        for i, (part, inner) in enumerate(scope.parts.items()):
            name = f"{cluster}{i}_"
            self.body.append(f"{indent}subgraph {name} {{ label={quote(part)};")
            self.scope(inner, names, indent + "  ", name)
            self.body.append(f"{indent}}}")

    def node(self, node: Node, name: str, indent: str) -> None:
        lines = [node.op.name, ", ".join(str(value.type) for value in node.outputs), node.source]
        label, colour = quote("\n".join(filter(None, lines))), COLOURS[node.phase]
        self.body.append(f"{indent}{name} [label={label}, fillcolor={quote(colour)}];")
        for k, region in enumerate(node.regions):
            title = quote(f"{node.op.name}: {region.name}")
            self.body.append(
                f"{indent}subgraph cluster_{name}_r{k} {{ label={title}; style=dashed;"
            )
            _Dot(self.body, self.edges, f"{name}_r{k}_").graph(region, indent + "  ")
            self.body.append(f"{indent}}}")


@dataclass(slots=True)
class _Scope:
    """Nodes of one scope, and the scopes inside it by the next part of their names."""

    nodes: list[Node] = field(default_factory=list)
    parts: dict[str, _Scope] = field(default_factory=dict)


def _by_scope(nodes: Sequence[Node]) -> _Scope:
    top = _Scope()
    for node in nodes:
        scope = top
        for part in node.scope.split("/", SCOPES_DEEP) if node.scope else ():
            scope = scope.parts.setdefault(part, _Scope())
        scope.nodes.append(node)
    return top
