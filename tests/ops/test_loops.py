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


def test_rows_in_parts_and_those_that_are_left_over():
    graph = parse(CHUNKED)
    verify(graph)
    w, x = np.array([1, -2], np.float32), np.arange(14, dtype=np.float32).reshape(7, 2)
    total, rows = jax.jit(lambda w, x: evaluate(graph, w, x))(w, x)
    np.testing.assert_array_equal(rows, w * x)
    assert total == (w * x).sum()
    (node,) = graph.nodes
    assert node.op.flops(node) == 2 * (6 + 6) + (2 + 2)


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
