"""Loops as they are: what a scan and a function of rows in parts compute, and how much of it."""

import jax
import numpy as np
import pytest

from backpass.ir import OPS, parse, verify
from backpass.ir.builder import Builder
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Value
from backpass.ir.ops.chunked import evenly
from backpass.ir.types import type_of
from backpass.passes.autodiff import Forward, Reverse
from fuzz.interpret import run_graph

CHUNKED = """backpass.ir 1

graph f(%0: f32[2] w, %1: f32[7,2] x) {
  %2: f32[], %3: f32[7,2] = chunked(%0, %1) {chunk=3, num_shared=1, num_sums=1}
    graph part(%0: f32[2], %1: f32[3,2]) {
      %2: f32[3,2] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
      %3: f32[3,2] = mul(%1, %2)
      %4: f32[] = reduce_sum(%3) {axes=(0,1)}
      return %4, %3
    }
    graph rest(%0: f32[2], %1: f32[1,2]) {
      %2: f32[1,2] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
      %3: f32[1,2] = mul(%1, %2)
      %4: f32[] = reduce_sum(%3) {axes=(0,1)}
      return %4, %3
    }
  return %2, %3
}
"""


EVEN = CHUNKED.split("    graph rest")[0].replace("7,2", "6,2") + "  return %2, %3\n}\n"


@pytest.mark.parametrize("text, count", [(CHUNKED, 7), (EVEN, 6)])
def test_rows_in_parts_and_those_that_are_left_over(text, count):
    graph = parse(text)
    verify(graph)
    w, x = np.array([1, -2], np.float32), np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    total, rows = jax.jit(lambda w, x: evaluate(graph, w, x))(w, x)
    np.testing.assert_array_equal(rows, w * x)
    assert total == (w * x).sum()
    jaxpr = jax.make_jaxpr(lambda w, x: evaluate(graph, w, x))(w, x)
    assert [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"] == [2]
    (node,) = graph.nodes
    assert node.op.flops(node) == 2 * (6 + 6) + (2 + 2) * (count - 6)


@pytest.mark.parametrize("active", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "given", ["both", "the sum alone", "rows that nothing is asked of", "even parts"]
)
def test_rows_in_parts_are_differentiated(given, active):
    """In one pass where one number is asked for, else by a second one over the rows."""
    count, once = 6 if given == "even parts" else 7, given == "the sum alone"
    text, both = EVEN if count == 6 else CHUNKED, given in ("both", "even parts")
    if not both:
        text = text.replace("return %4, %3", "return %4" if once else "return %4, %1")
    if once:
        text = text.replace("%2: f32[], %3: f32[7,2] =", "%2: f32[] =").replace(
            "%2, %3\n}", "%2\n}"
        )
    split = Reverse().split(parse(text), active)
    verify(split.forward)
    verify(split.backward)
    w, x = np.array([1, -2], np.float32), np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    found = run_graph(split.forward, w, x)
    outs = [(w * x).sum(), w * x if both else x]
    results = 1 if once else 2
    for got, want in zip(found[:results], outs, strict=False):
        np.testing.assert_allclose(got, want)
    cts = [np.float32(3), np.cos(x)]
    where = {"input": [w, x], "stored": found[results:]}
    residuals = [where[kind][i] for kind, i in split.residuals]
    back = run_graph(split.backward, *residuals, *(cts[i] for i in split.seeds))
    by_product = cts[0] + (cts[1] if both else 0 * x)
    by_x = by_product * w + (cts[1] if given.startswith("rows") else 0)
    want = [(by_product * x).sum(0), by_x]
    for got, expected in zip(back, (g for g, on in zip(want, active) if on), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    at_once = once or (given.startswith("rows") and active == (True, False))
    loops = [
        sum(n.op.name in ("scan", "chunked") for n in g.nodes)
        for g in (split.forward, split.backward)
    ]
    assert loops == ([1, 0] if at_once else [1, 1])


@pytest.mark.parametrize("active", [(True, False), (False, True), (True, True)])
def test_rows_in_parts_carry_tangents(active):
    w, x = np.array([1, -2], np.float32), np.arange(14, dtype=np.float32).reshape(7, 2)
    joint = Forward().region(parse(CHUNKED), active)
    verify(joint)
    moved = [t for t, on in zip((np.sin(w), np.cos(x)), active) if on]
    found = run_graph(joint, w, x, *moved)
    rows = active[0] * np.sin(w) * x + active[1] * w * np.cos(x)
    for got, want in zip(found, [(w * x).sum(), w * x, rows.sum(), rows], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("rows, chunk, found", [
    (12, 4, 4), (12, 5, 4), (10, 8, 10), (11, 8, 8), (6, 8, 6), (5, 8, 8), (7, 1, 1), (100, 9, 10),
])  # fmt: skip
def test_a_size_that_divides_the_rows_is_taken_if_one_is_near(rows, chunk, found):
    """Within a quarter."""
    assert evenly(rows, chunk) == found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [True, np.int32(3), np.float16(0.5), np.float64(2)], ids=str)
def test_a_scan_that_makes_its_stacks_late(start, reverse):
    """Of one byte, of which there are no bits to wait for, of two, of four and of eight."""
    with jax.enable_x64(True):
        kind = type_of(np.asarray(start))
        b, sub = Builder(OPS), Builder(OPS)
        init, inner = Value(kind), Value(kind)
        after = sub.one("not", inner) if start is True else sub.add(inner, 1)
        body = sub.graph("step", [inner], [after, inner])
        attrs = {"length": 5, "num_carry": 1, "num_consts": 0, "unroll": 1}
        attrs |= {"reverse": reverse, "late": True}
        graph = b.graph("f", [init], b.emit("scan", (init,), attrs, (body,)))
        verify(graph)
        last, stack = map(np.asarray, jax.jit(lambda x: evaluate(graph, x))(start))
    given = [i % 2 == 0 if start is True else start + i for i in range(6)]
    assert last == given[5] and stack.dtype == kind.dtype
    np.testing.assert_array_equal(stack, given[4::-1] if reverse else given[:5])
    assert graph.nodes[0].op.flops(graph.nodes[0]) == 5
