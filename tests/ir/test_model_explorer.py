"""Model Explorer's JSON: it validates against the published structure, and nothing is lost."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given

from backpass.ir import Graph, Literal, Value, parse
from ir.graphs import graphs, patient
from ir.test_text import TEXTS

SCHEMA = json.loads((Path(__file__).parent / "model_explorer.schema.json").read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def written(graph: Graph) -> dict:
    """The collection, after its structure and its references have been checked."""
    collection = json.loads(graph.to_json())
    CHECK.validate(collection)
    names = [each["id"] for each in collection["graphs"]]
    assert len(set(names)) == len(names)
    for each in collection["graphs"]:
        ids = [node["id"] for node in each["nodes"]]
        assert len(set(ids)) == len(ids)
        for node in each["nodes"]:
            assert set(node.get("subgraphIds", ())) <= set(names)
            assert {edge["sourceNodeId"] for edge in node.get("incomingEdges", ())} <= set(ids)
    return collection


def distinct(graph: Graph, found: dict) -> dict:
    """The graph and its regions, each object once."""
    if id(graph) not in found:
        found[id(graph)] = graph
        for node in graph.nodes:
            for region in node.regions:
                distinct(region, found)
    return found


@patient
@given(graphs(hostile=True))
def test_everything_is_written(graph):
    collection = written(graph)
    regions = distinct(graph, {}).values()
    assert len(collection["graphs"]) == len(regions)
    nodes = sum(len(g.inputs) + len(g.nodes) + 1 for g in regions)
    assert sum(len(each["nodes"]) for each in collection["graphs"]) == nodes
    reads = [v for g in regions for read in (*(n.inputs for n in g.nodes), g.outputs) for v in read]
    edges = [
        e for g in collection["graphs"] for n in g["nodes"] for e in n.get("incomingEdges", ())
    ]
    assert len(edges) == sum(not isinstance(value, Literal) for value in reads)


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name):
    written(parse(TEXTS[name]))


def test_training_step():
    (graph,) = written(parse(TEXTS["training_step"]))["graphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    product = nodes["n0"]
    assert (product["label"], product["namespace"]) == ("dot_general", "block/mlp")
    attrs = {each["key"]: each["value"] for each in product["attrs"]}
    assert attrs["line"] == "model.py:41" and attrs["phase"] == "forward"
    assert attrs["flops"] == str(2 * 8 * 64 * 32) and attrs["bytes"] == str(4 * 8 * 32)
    assert product["incomingEdges"][1] == {
        "sourceNodeId": "i0",
        "sourceNodeOutputId": "0",
        "targetNodeInputId": "1",
    }
    (output,) = product["outputsMetadata"]
    assert {"key": "tensor_shape", "value": "f32[8,32]"} in output["attrs"]
    backward = [node for node in graph["nodes"] if node["namespace"].startswith("backward")]
    links = [each for node in backward for each in node["attrs"] if each["key"] == "differentiates"]
    assert len(links) == 3
    assert all(link["value"]["nodeIds"][0] in nodes for link in links)
    sums = graph["groupNodeAttributes"]
    assert int(sums["block"]["flops"]) >= int(sums["block/mlp"]["flops"]) >= 2 * 8 * 64 * 32


def test_regions_are_subgraphs():
    collection = written(parse(TEXTS["loop"]))
    first = collection["graphs"][0]
    inner = {node["id"]: node["subgraphIds"] for node in first["nodes"] if "subgraphIds" in node}
    assert inner == {"n0": ["f/n0.r0"], "n2": ["f/n2.r0", "f/n2.r1"]}


def test_a_region_of_two_nodes_is_written_once():
    text = "%1: f32[] = jit(%0)\ngraph g(%0: f32[]) {\n%1: f32[] = neg(%0)\nreturn %1\n}\n"
    graph = parse(f"backpass.ir 1\ngraph f(%0: f32[]) {{\n{text}return %1\n}}\n")
    (node,) = graph.nodes
    again = replace(node, outputs=(Value(node.output.type),))
    first, *rest = written(replace(graph, nodes=(node, again)))["graphs"]
    assert [node.get("subgraphIds") for node in first["nodes"][1:3]] == [["f/n0.r0"]] * 2
    assert len(rest) == 1


def test_what_is_wrong_does_not_validate():
    collection = written(parse(TEXTS["training_step"]))
    collection["graphs"][0]["nodes"][0]["attrs"] = [{"key": "bytes", "value": 3}]
    assert not CHECK.is_valid(collection)
