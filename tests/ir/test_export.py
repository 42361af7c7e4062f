"""`networkx` and DOT: nothing is lost, nothing hostile breaks out of a string."""

import re

import networkx as nx
import pytest
from hypothesis import given

from backpass.ir import Graph, Literal, Origin, parse
from backpass.ir.export import quote, to_dot, to_networkx
from ir.graphs import graphs, patient
from ir.test_text import HOSTILE, TEXTS, one_node

STRING = r'"(?:[^"\\\n]|\\.)*"'
ID = r"[a-z][a-z0-9_]*"
ATTRS = rf"\[{ID}=(?:{STRING}|{ID})(?:, {ID}=(?:{STRING}|{ID}))*\]"
LINES = [
    rf"digraph {STRING} \{{",
    r"  rankdir=TB;",
    rf"\s+{ID} -> {ID} {ATTRS};",
    rf"\s+(?P<node>{ID}) {ATTRS};",
    rf"\s+subgraph (?P<cluster>cluster_{ID}) \{{ label={STRING};(?: style=dashed;)?",
    r"\s*\}",
]


def read_dot(text: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Nodes, clusters and edges; asserts that each line is of the language."""
    nodes, clusters, edges, depth = [], [], [], 0
    for line in text.removesuffix("\n").split("\n"):
        match = next(filter(None, (re.fullmatch(form, line) for form in LINES)), None)
        assert match is not None, line
        depth += line.endswith("{") or "subgraph" in line
        depth -= line.strip() == "}"
        found = match.groupdict()
        nodes += [found["node"]] if found.get("node") not in (None, "node") else []
        clusters += [found["cluster"]] if found.get("cluster") else []
        if arrow := re.match(rf"\s+({ID}) -> ({ID}) ", line):
            edges.append(arrow.groups())
    assert depth == 0
    return nodes, clusters, edges


def count(graph: Graph) -> tuple[int, int]:
    """Nodes that are drawn, and reads of what is not a literal, in all regions."""
    inner = [count(region) for node in graph.nodes for region in node.regions]
    reads = [v for node in graph.nodes for v in node.inputs] + list(graph.outputs)
    arrows = sum(not isinstance(value, Literal) for value in reads)
    own = len(graph.inputs) + len(graph.nodes) + 1
    return own + sum(n for n, _ in inner), arrows + sum(e for _, e in inner)


@patient
@given(graphs(hostile=True))
def test_everything_is_drawn(graph):
    nodes, clusters, edges = read_dot(to_dot(graph))
    assert len(set(nodes)) == len(nodes)
    assert len(set(clusters)) == len(clusters)
    assert {end for edge in edges for end in edge} <= set(nodes)
    drawn = to_networkx(graph)
    assert (len(nodes), len(edges)) == count(graph)
    assert (drawn.number_of_nodes(), drawn.number_of_edges()) == count(graph)
    assert nx.is_directed_acyclic_graph(drawn)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings(text):
    graph = one_node(name=text, origin=Origin(text, text))
    read_dot(to_dot(Graph(text, graph.inputs, graph.nodes, graph.outputs)))


def test_quote():
    assert quote('a"b\\c\nd\x00') == '"a\\"b\\\\c\\nd "'


def test_training_step():
    graph = parse(TEXTS["training_step"])
    drawn = graph.to_networkx()
    assert drawn.nodes["i0"] == {
        "kind": "input",
        "region": None,
        "op": "input",
        "types": ["f32[64,32]"],
        "name": "params['w']",
    }
    dot = drawn.nodes["n0"]
    assert (dot["op"], dot["phase"], dot["scope"]) == ("dot_general", "forward", "block/mlp")
    assert (dot["source"], dot["types"]) == ("model.py:41", ["f32[8,32]"])
    assert dot["attrs"]["precision"] is None
    assert list(drawn.in_edges("n0", data=True)) == [
        ("i1", "n0", {"operand": 0, "output": 0, "type": "f32[8,64]"}),
        ("i0", "n0", {"operand": 1, "output": 0, "type": "f32[64,32]"}),
    ]
    text = graph.to_dot()
    assert 'subgraph cluster_s0_0_ { label="mlp";' in text
    assert text.count('fillcolor="#fee2e2"') == 3


def test_regions():
    drawn = to_networkx(parse(TEXTS["loop"]))
    assert drawn.nodes["n2"]["regions"] == [["n2.r0.i0", "n2.r0.n0", "n2.r0.out"]] + [
        ["n2.r1.i0", "n2.r1.n0", "n2.r1.out"]
    ]
    assert drawn.nodes["n2.r1.n0"]["region"] == ("n2", 1)
    assert ("n0", "out", {"operand": 0, "output": 0, "type": "f32[8]"}) in drawn.edges(data=True)


def test_very_deep_scopes():
    read_dot(to_dot(one_node(origin=Origin("", "/".join("x" * 5000)))))
