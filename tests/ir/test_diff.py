"""Differences: none by numbers, lines and names; all that changes what is computed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpass.ir import Graph, diff, parse
from backpass.ir.diff import described
from backpass.ir.graph import Origin
from ir.graphs import graphs, patient
from ir.test_text import TEXTS

HEAD = "backpass.ir 1\n"
PLAIN = """graph f(%0: f32[4] x, %1: f32[4] y) {
  %2: f32[4] = mul(%0, %1)   @ m.py:1  a/b
  %3: f32[4] = tanh(%2)      @ m.py:2  a/b
  %4: f32[4] = add(%3, %0)   @ m.py:3  a
  %5: f32[4] = neg(%4)       @ m.py:4
  return %5, %3
}
"""


def compared(*changes, text=PLAIN):
    """Compare the plain graph with one that has pieces of its text replaced."""
    new = text
    for old, by in changes:
        assert old in new
        new = new.replace(old, by)
    return diff(parse(HEAD + text), parse(HEAD + new))


def told(found):
    return [(each.kind, each.node.op.name, *each.what) for each in found.changes]


@patient
@given(graphs())
def test_a_graph_is_the_same_as_its_text(graph):
    found = diff(graph, parse(str(graph)))
    assert found.same, str(found)
    assert str(found) == "no difference"


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name):
    assert diff(parse(TEXTS[name]), parse(TEXTS[name])).same


@patient
@given(graphs(), st.data())
def test_a_node_more_is_told(graph, data):
    """A copy of any node, which nobody reads, is the one addition; backwards, the one removal."""
    if not graph.nodes:
        return
    i = data.draw(st.integers(0, len(graph.nodes) - 1))
    node = graph.nodes[i]
    copy = replace(node, outputs=tuple(type(v)(v.type) for v in node.outputs))
    nodes = (*graph.nodes[: i + 1], copy, *graph.nodes[i + 1 :])
    more = Graph(graph.name, graph.inputs, nodes, graph.outputs)
    added, removed = diff(graph, more), diff(more, graph)
    assert [each.kind for each in added.changes] == ["added"]
    assert [each.kind for each in removed.changes] == ["removed"]
    assert added.changes[0].node.op is node.op
    json.dumps(added.to_json())


def test_numbers_lines_and_scopes_are_no_difference():
    assert compared(("%2", "%7"), ("%3", "%6"), ("m.py", "n.py"), ("a/b", "c")).same


def test_an_op_in_place_of_another():
    """What reads it is not told: only a part of the graph has changed."""
    found = compared(("tanh", "sin"))
    assert told(found) == [("removed", "tanh"), ("added", "sin")]
    lines = str(found).splitlines()
    assert lines[:3] == [
        "a/b, forward:",
        f"  {'- f32[4] = tanh(f32[4])':<88}  @ m.py:2",
        f"  {'+ f32[4] = sin(f32[4])':<88}  @ m.py:2",
    ]
    assert found.ops == {"sin": (0, 1), "tanh": (1, 0)}


def test_wiring():
    assert told(compared(("add(%3, %0)", "add(%3, %1)"))) == [
        ("changed", "add", "operand 1: x -> y")
    ]
    found = compared(("return %5, %3", "return %3, %5"))
    assert not found.changes
    assert found.ends == ("output 0: neg m.py:4 -> tanh m.py:2",
                          "output 1: tanh m.py:2 -> neg m.py:4")  # fmt: skip
    assert compared(("return %5, %3", "return %5")).ends[0] == "2 outputs -> 1"


def test_a_node_that_is_skipped():
    found = compared(
        ("  %3: f32[4] = tanh(%2)      @ m.py:2  a/b\n", ""), ("add(%3", "add(%2"), (", %3", "")
    )
    assert told(found) == [("removed", "tanh")]
    assert found.ends == ("2 outputs -> 1",)


def test_literals_attributes_and_types():
    text = PLAIN.replace("neg(%4) ", "mul(%4, 0.5:f32)")
    assert told(compared(("0.5", "0.25"), text=text)) == [
        ("changed", "mul", "operand 1: 0.5:f32 -> 0.25:f32")
    ]
    text = PLAIN.replace("neg(%4) ", "rev(%4) {dimensions=(0,)}")
    assert told(compared(("(0,)", "()"), text=text)) == [
        ("changed", "rev", "dimensions: (0,) -> ()")
    ]
    wider = compared(("f32[4]", "f32[8]"))
    assert {each.kind for each in wider.changes} == {"changed"}
    assert wider.ends == ("x: f32[4] -> f32[8]", "y: f32[4] -> f32[8]")


def test_phases():
    found = compared(("  %5:", "backward:\n  %5:"))
    assert told(found) == [("changed", "neg", "forward -> backward")]


def test_order():
    """The same values in another order of execution take other memory."""
    text = PLAIN.replace("tanh(%2)  ", "tanh(%0)  ").replace("add(%3, %0)", "add(%2, %0)")
    first, second = text.splitlines(keepends=True)[1:3]
    found = compared((first + second, second + first), text=text)
    assert found.moved == 1 and not found.changes and not found.same
    assert "order: 1 of the nodes" in str(found)


def test_changes_stand_where_their_nodes_do():
    """What is gone stands behind what was above it; of four, one that comes first has moved."""
    ops = "sin cos tan exp log".split()
    lines = [f"  %{i}: f32[4] = {op}(%0)\n" for i, op in enumerate(ops, 1)]
    text = f"graph f(%0: f32[4] x) {{\n{''.join(lines)}  return\n}}\n"
    first, last = f"  %8: f32[4] = neg(%0)\n{lines[1]}", f"  %9: f32[4] = tanh(%0)\n{lines[4]}"
    found = compared(("".join(lines), first + last), text=text)
    assert told(found) == [
        ("removed", "sin"), ("added", "neg"), ("removed", "tan"), ("removed", "exp"), ("added", "tanh"),
    ]  # fmt: skip
    turned = compared(("".join(lines[:4]), "".join([lines[3], *lines[:3]])), text=text)
    assert turned.moved == 1 and not turned.changes


@pytest.mark.parametrize("count, shown", [(4, ""), (5, ", 1 more"), (6, ", 2 more")])
def test_four_operands_and_results_are_named(count, shown):
    names = [", ".join(f"%{i}{kind}" for i in range(count)) for kind in ("", ": f32[]")]
    made = ", ".join(f"%{count + i}: f32[]" for i in range(count))
    text = f"graph f({names[1]}) {{\n  {made} = optimization_barrier({names[0]})\n  return\n}}\n"
    (node,) = parse(HEAD + text).nodes
    four = "f32[], f32[], f32[], f32[]" + shown
    assert described(node) == f"{four} = optimization_barrier({four})"


def test_regions_that_are_not_as_many():
    region = "    graph g(%0: f32[4]) {\n      %1: f32[4] = sin(%0)\n      return %1\n    }\n"
    text = f"graph f(%0: f32[4] x) {{\n  %1: f32[4] = cond(0:i32, %0)\n{region}  return\n}}\n"
    assert told(compared((region, region * 2), text=text)) == [
        ("changed", "cond", "1 regions -> 2")
    ]


TWO_CHAINS = """graph f(%0: f32[4] x) {
  %1: f32[4] = integer_pow(%0) {y=2}  @ m.py:1
  %2: f32[4] = integer_pow(%0) {y=3}  @ m.py:1
  %3: f32[4] = sin(%1)  @ m.py:2
  %4: f32[4] = sin(%2)  @ m.py:2
  %5: f32[4] = tan(%3)  @ m.py:3
  %6: f32[4] = tan(%4)  @ m.py:3
  %7: f32[4] = integer_pow(%5) {y=2}  @ m.py:4
  %8: f32[4] = integer_pow(%6) {y=3}  @ m.py:4
  return %7, %8
}
"""


def test_what_reads_nodes_alike_follows_them():
    """Both ends of two chains have changed, and what is between by another line and order."""
    first, second = TWO_CHAINS.splitlines(keepends=True)[5:7]
    found = compared(
        (first + second, (second + first).replace("m.py:3", "m.py:9")),
        ("y=2", "y=4"),
        ("y=3", "y=5"),
        text=TWO_CHAINS,
    )
    changes = [("changed", "integer_pow", f"y: {y} -> {y + 2}") for y in (2, 3)] * 2
    assert told(found) == changes and found.moved == 1


def test_inside_a_region():
    """Of a loop only what changed in its body is told; the node around it counts as changed."""
    found = compared(("sin(%1)", "cos(%1)"), text=TEXTS["loop"].removeprefix(HEAD))
    (change,) = found.changes
    assert (change.kind, change.node.op.name, change.what) == ("changed", "scan", ())
    assert told(change.regions[0]) == [("removed", "sin"), ("added", "cos")]
    assert "region 0:" in str(found) and found.to_json()["changes"][0]["regions"]["0"]["changes"]


def test_arguments():
    found = compared((", %1: f32[4] y", ", %1: f32[4] z"))
    assert found.same, "of two arguments of one type, what is left is taken in order"
    more = compared((" y)", " y, %9: f32[2] z)"))
    assert more.ends == ("z: none -> f32[2]",) and not more.changes


UNNAMED = """graph f(%0: f32[4], %1: f32[2], %9: f32[4] x) {
  %2: f32[4] = neg(%0)
  %3: f32[2] = sin(%1)
  %4: f32[4] = exp(%2)
  %5: f32[4] = exp(%2)
  %6: f32[20] = concatenate(%0, %2, %4, %5, %9) {dimension=0}
  return %6, %3, %9
}
"""


def test_arguments_without_a_name():
    """In order as long as they are as many, and by type where one is gone."""
    wider = compared(("%0: f32[4],", "%0: f32[8],"), text=UNNAMED)
    assert wider.ends == ("input: f32[4] -> f32[8]",) and not wider.changes
    fewer = compared(("%0: f32[4], ", ""), ("%0", "%9"), text=UNNAMED)
    assert fewer.ends == ("input: f32[4] -> none",)
    assert told(fewer) == [
        ("changed", "neg", "operand 0: input 0 -> x"),
        ("changed", "concatenate", "operand 0: input 0 -> x"),
    ]
    other = compared(("return %6, %3", "return %0, %1"), text=UNNAMED)
    assert other.ends == ("output 0: concatenate -> input 0", "output 1: sin -> input 1")


def test_the_whole_text():
    """Of five operands four are named, equal changes are counted, the largest is the first."""
    found = compared(("= exp", "= sin"), ("5, %9)", "5, %0)"), text=UNNAMED)
    assert (
        str(found)
        == """\
(no scope), forward:
  - f32[4] = exp(f32[4])  (2 times)
  + f32[4] = sin(f32[4])  (2 times)
  ~ f32[20] = concatenate(f32[4], f32[4], f32[4], f32[4], 1 more) {dimension=0}
        operand 4: x -> input 0

op                 before  after  change
-----------------  ------  -----  ------
exp                     2      0      -2
sin                     1      3      +2
-----------------  ------  -----  ------
nodes                   5      5       0
FLOPs                  14     14       0
bytes moved         272 B  256 B   -16 B
bytes at the peak   144 B  144 B     0 B"""
    )
    fewer = compared(
        ("  %3: f32[2] = sin(%1)\n", ""), ("= exp", "= tan"), (", %3", ""), text=UNNAMED
    )
    assert fewer.ops == {"exp": (2, 0), "tan": (0, 2), "sin": (1, 0)}
    assert list(fewer.ops) == ["exp", "tan", "sin"]
    assert fewer.totals[-1] == ("bytes at the peak", 144, 136)
    assert "graph" not in repr(fewer).lower(), "a notebook shows changes, and not both graphs"


@pytest.mark.parametrize("over", [0, 1])
def test_long_attributes_are_cut(over):
    text = 'graph f(%0: f32[]) {\n  %1: f32[] = name(%0) {name="NAME"}\n  return %1\n}\n'
    name = "x" * (160 + over - len('name=""'))
    (change,) = diff(parse(HEAD + text), parse(HEAD + text.replace("NAME", name))).changes
    shown = f'name="{name}"' if not over else f'name="{name}...'
    assert described(change.node) == f"f32[] = name(f32[]) {{{shown}}}"


def test_equal_nodes_are_told_apart_by_place():
    twins = "graph f(%0: f32[4]) {\n" + "".join(
        f"  %{i}: f32[4] = sin(%0)  @ m.py:{i}  layer{i}\n" for i in range(1, 4)
    )
    text = twins + "  return %1, %2, %3\n}\n"
    fewer = text.replace("  %2: f32[4] = sin(%0)  @ m.py:2  layer2\n", "").replace("%2,", "%1,")
    (change,) = diff(parse(HEAD + text), parse(HEAD + fewer)).changes
    assert (change.kind, change.node.scope) == ("removed", "layer2")


def test_constants_are_compared_by_their_bytes():
    import numpy as np

    from backpass.ir import OPS, Builder

    def constant(last):
        b = Builder(OPS)
        b.origin = Origin("m.py:1")
        array = np.arange(64, dtype=np.float32)
        array[-1] = last
        return b.graph("f", (), [b.one("constant", value=array)])

    assert diff(constant(1), constant(1)).same
    (change,) = diff(constant(1), constant(2)).changes
    assert change.kind == "changed" and change.what[0].startswith("value: dense<f32[64] #")
