"""Each kind of damage is found, and the error shows where it is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from backpass import GraphError
from backpass.ir import Graph, Literal, Value, parse, verify
from backpass.ir.types import ArrayType
from ir.graphs import graphs, patient
from ir.test_text import TEXTS

F32 = np.dtype("float32")


def body(text: str, inputs: str = "%0: f32[2], %1: i32[]") -> Graph:
    return parse(f"backpass.ir 1\ngraph f({inputs}) {{\n{text}\nreturn\n}}\n")


@patient
@given(graphs())
def test_drawn_graphs_are_sound(graph):
    verify(graph)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_sound(name):
    if name != "loop":  # which is there for its form
        verify(parse(TEXTS[name]))


SCAN = """\
%2: f32[2], %3: f32[5,2] = scan(%0, %9) {length=5, num_carry=1, num_consts=0}
graph body(%0: f32[2], %1: f32[3]) {
  %2: f32[2] = neg(%0)
  return %2, %0
}
"""
WHILE = """\
%2: i32[], %3: f32[2] = while(%1, %0) {body_nconsts=0, cond_nconsts=0}
graph cond(%0: i32[], %1: f32[2]) {
  %2: bool[] = lt(%0, 5:i32)
  return %2
}
graph body(%0: i32[], %1: f32[2]) {
  %2: i32[] = add(%0, 1:i32)
  return %2, %1
}
"""
ROWS = """\
%2: f32[2] = while(%0) {body_nconsts=0, cond_nconsts=0}
graph cond(%0: f32[2]) {
  %2: bool[2] = lt(%0, %0)
  return %2
}
graph body(%0: f32[2]) {
  return %0
}
"""
COND = """\
%2: f32[2] = cond(%1, %0)
graph zero(%0: f32[2]) {
  return %0
}
graph one(%0: f32[2]) {
  return %0
}
"""
CALL = "%2: f32[2] = jit(%0)\ngraph g(%0: f32[2]) {\n  return %0\n}\n"
INPUTS = "%0: f32[2], %1: i32[], %9: f32[5,3]"


@pytest.mark.parametrize("text", [SCAN, WHILE, ROWS, COND, CALL])
def test_regions_that_fit(text):
    verify(body(text, INPUTS))


TYPES = [
    ("%2: f32[3] = neg(%0)", "neg gives (f32[3]), expected (f32[2])"),
    ("%2: f16[2] = neg(%0)", "neg gives (f16[2]), expected (f32[2])"),
    ("neg(%0)", "neg gives (), expected (f32[2])"),
    ("%2: f32[2] = add(%0, %1)", "add does not accept its operands: add wants operands of one"),
    ("%2: f32[2] = neg()", "neg does not accept its operands"),
    ("%2: f32[2] = reduce_sum(%0)", "reduce_sum does not accept its operands"),
    (SCAN.replace("length=5", "length=4"), "scan of length 4 takes slices of f32[5,3]"),
    (SCAN.replace("num_carry=1", "num_carry=0"), "scan of length 5 takes slices of f32[2]"),
    (SCAN.replace("%1: f32[3])", "%1: f32[4])"), "region body of scan takes (f32[2], f32[4])"),
    (
        SCAN.replace("return %2, %0", "return %1, %0"),
        "region body of scan returns (f32[3], f32[2])",
    ),
    (SCAN.replace("f32[5,2]", "f32[5,3]"), "scan gives (f32[2], f32[5,3]), expected"),
    (SCAN.replace(", num_consts=0", ""), "scan has malformed attributes or regions: KeyError"),
    (SCAN.split("graph")[0], "scan has malformed attributes or regions: ValueError"),
    (WHILE.replace("lt(%0, 5:i32)\n  return %2", "lt(%0, 5:i32)\n  return %1"), "one bool"),
    (WHILE.replace("return %2, %1", "return %1, %2"), "region body of while returns"),
    (WHILE.replace("graph cond(%0: i32[], ", "graph cond(%0: i8[], "), "lt does not accept"),
    (
        WHILE.replace("bool[] = lt(%0, 5:i32)", "bool[2] = lt(%1, %1)"),
        "the condition of a while is batched over [2], its carry is not",
    ),
    (COND.replace("one(%0: f32[2])", "one(%0: f32[3])"), "region one of cond takes (f32[3])"),
    (COND.replace("cond(%1, %0)", "cond(%0, %0)"), "cond wants a scalar index"),
    (COND.split("graph")[0], "cond wants a scalar index and branches"),
    (CALL.replace("%2: f32[2]", "%2: f32[2], %3: f32[2]"), "region g of jit returns (f32[2])"),
    (CALL.replace("g(%0: f32[2])", "g(%0: f32[1])"), "region g of jit takes (f32[1])"),
    (CALL.replace("  return", "  %1: f32[1] = neg(%0)\n  return"), "neg gives (f32[1])"),
    ("%2: f32[2] = gradients(%0) {wrt=(0,)}\n" + CALL.split("\n", 1)[1], "gradients gives"),
]


@pytest.mark.parametrize(("text", "message"), TYPES)
def test_types_and_regions(text, message):
    with pytest.raises(GraphError) as caught:
        verify(body(text, INPUTS))
    assert message in str(caught.value)
    assert "this is a bug in backpass" in str(caught.value)


def test_weak_types_do_not_count():
    verify(body("%2: f32[2]* = neg(%0)"))


def sound() -> Graph:
    return parse(TEXTS["training_step"])


def damaged(graph: Graph, position: int, **parts) -> Graph:
    nodes = list(graph.nodes)
    nodes[position] = replace(nodes[position], **parts)
    return replace(graph, nodes=tuple(nodes))


def stray() -> Value:
    return Value(ArrayType((8, 32), F32))


def swapped(graph: Graph) -> Graph:
    first, second, *rest = graph.nodes
    return replace(graph, nodes=(second, first, *rest))


def borrowing(graph: Graph) -> Graph:
    """A region that reads a value of the graph around it."""
    inner = Graph("inner", (), (), (graph.nodes[0].output,))
    outer = parse("backpass.ir 1\ngraph f() {\njit()\ngraph g() {\nreturn\n}\nreturn\n}\n").nodes[0]
    return replace(graph, nodes=(*graph.nodes, replace(outer, regions=(inner,))))


def literal(data, *shape: int) -> Literal:
    return Literal(data, ArrayType(shape, F32))


DAMAGE = {
    "mul reads a value that is not defined before": swapped,
    "reduce_sum reads a value that is not defined": lambda g: damaged(g, 2, inputs=(stray(),)),
    "a value is defined twice": lambda g: replace(g, nodes=(*g.nodes, g.nodes[-1])),
    "a value is defined twice: <Value batch": lambda g: replace(g, inputs=g.inputs + g.inputs),
    "the graph returns a value that is not defined": lambda g: replace(g, outputs=(stray(),)),
    "the graph returns a value that is not defined before": borrowing,
    "a literal stands where": lambda g: replace(g, inputs=(literal(np.float32(1)),)),
    "a literal that is not a scalar": lambda g: damaged(
        g, 1, inputs=(g.nodes[0].output, literal(np.float32(1), 2))
    ),
    "a literal that is not a scalar of its dtype": lambda g: damaged(
        g, 1, inputs=(g.nodes[0].output, literal(1.0))
    ),
    "mul is of an unknown phase 'sideways'": lambda g: damaged(g, 1, phase="sideways"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage(message):
    graph = DAMAGE[message](sound())
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert message.split(": <")[0] in str(caught.value)


def test_the_error_shows_the_place():
    with pytest.raises(GraphError) as caught:
        verify(damaged(sound(), 2, inputs=(stray(),)))
    assert "at model.py:43 in loss" in str(caught.value)
    (note,) = caught.value.__notes__
    lines = note.split("\n")
    assert [line for line in lines if line.startswith("> ")] == [
        line for line in lines if "reduce_sum(undefined<f32[8,32]>)" in line
    ]
    assert len(lines) == 6


def test_an_argument_that_stands_twice_is_told_of_the_graph():
    graph = sound()
    with pytest.raises(GraphError, match=f"at graph {graph.name}; this is a bug"):
        verify(replace(graph, inputs=graph.inputs + graph.inputs))


def test_many_nodes_may_share_a_region():
    node = parse(TEXTS["loop"]).nodes[2]
    again = replace(node, outputs=(Value(node.output.type),))
    verify(Graph("f", (), (node, again), ()))
