"""A step by hand: its halves, its segments, what is kept of it, and what is told of that."""

import numpy as np
import pytest

from backpass.ir.device import DEVICES
from backpass.passes.rematerialise import decisions
from backpass.passes.rematerialise.joint import joint_of
from backpass.passes.rematerialise.keep import PRICES, closure, kept, prices
from backpass.passes.rematerialise.planner import Planner
from backpass.passes.rematerialise.segments import chain
from backpass.passes.rematerialise.waits import Waits
from fuzz.interpret import run_graph
from passes.texts import arguments, graph

SPEC = DEVICES["cpu"]
INPUTS = "%0: f32[64,64], %1: f32[64,64]"
DOT = "{dimension_numbers=(((1,),(0,)),((),()))}"
SIZE = 4 * 64 * 64
STEP = f"""
    %2: f32[64,64] = dot_general(%0, %1) {DOT}
    %3: f32[64,64] = tanh(%2)
    %4: f32[4096] = reshape(%3)
    %5: f32[64,64] = reshape(%4)
    %6: f32[64,64] = dot_general(%5, %1) {DOT}
    %7: f32[64,64] = exp(%1)
    %8: f32[64,64] = dot_general(%6, %7) {DOT}
    backward:
    %9: f32[64,64] = dot_general(%8, %1) {DOT}
    %10: f32[64,64] = mul(%9, %5)
    %11: f32[64,64] = dot_general(%10, %2) {DOT}
    return %11, %3
"""
GIVEN = graph(INPUTS, STEP)
JOINT = joint_of(GIVEN)
VALUES = [*GIVEN.inputs, *(v for node in GIVEN.nodes for v in node.outputs)]


def at(*numbers):
    return [VALUES[i] for i in numbers]


def numbered(values):
    return [VALUES.index(v) for v in values]


def test_what_the_halves_are():
    assert JOINT.forward == GIVEN.nodes[:7] and JOINT.rest == GIVEN.nodes[7:]
    assert numbered(JOINT.required) == [8, 5, 2]
    assert numbered(JOINT.place) == [2, 3, 4, 5, 6, 7, 8]
    assert list(JOINT.order.values()) == list(range(7))


def test_a_view_is_known_by_what_it_is_one_of():
    assert dict(zip(numbered(JOINT.root), numbered(JOINT.root.values()), strict=True)) == {
        **{i: i for i in (2, 3, 6, 7, 8)},
        **{4: 3, 5: 3},
    }
    assert numbered(JOINT.roots[GIVEN.nodes[4]]) == [3, 1]
    assert JOINT.buffers[GIVEN.nodes[1]] == ((VALUES[3], SIZE),)
    assert JOINT.buffers[GIVEN.nodes[3]] == ()


def test_what_is_made_of_parameters_alone_costs_nothing():
    assert sorted(numbered(JOINT.free)) == [0, 1, 7]
    assert [JOINT.bytes(v) for v in at(0, 7, 6)] == [0, 0, SIZE]
    assert JOINT.buffers[GIVEN.nodes[5]] == ()


@pytest.mark.parametrize(
    "wanted, have, again, read",
    [
        ((8,), (), [2, 3, 4, 5, 6, 7, 8], []),
        ((8,), (3,), [4, 5, 6, 7, 8], [3]),
        ((8, 5), (2, 6), [3, 4, 5, 7, 8], [2, 6]),
        ((5,), (5, 2), [], [5]),
        ((0, 11), (), [], []),
    ],
)
def test_what_runs_again(wanted, have, again, read):
    nodes, start = closure(JOINT, at(*wanted), at(*have))
    assert numbered(node.output for node in nodes) == again
    assert numbered(start) == read
    among = set(at(6, 7, 8))
    nodes, _ = closure(JOINT, at(*wanted), at(*have), among)
    assert numbered(node.output for node in nodes) == [i for i in again if i > 5]


def test_segments_have_a_kernel_each():
    """What lives for long crosses without counting; a part of the rest is where its reads are."""
    found = chain(JOINT, SPEC.seconds)
    assert numbered(found.long) == [3]
    rows = [
        (numbered(s.entry), *(numbered(n.output for n in part) for part in (s.forward, s.rest)))
        for s in found.segments
    ]
    assert rows == [([], [2, 3], [11]), ([], [4, 5, 6], []), ([6], [7, 8], [9, 10])]


def test_what_a_price_keeps():
    """A value as soon as its bytes are less than its seconds are worth; of a product all at 1."""
    one = SPEC.seconds(GIVEN.nodes[0])
    assert not kept(JOINT, JOINT.forward, JOINT.required, SPEC.seconds, 0.9 * SIZE / (3 * one))
    dear = kept(JOINT, JOINT.forward, JOINT.required, SPEC.seconds, 1e3 * SIZE / one)
    assert numbered(sorted(dear, key=VALUES.index)) == [2, 3, 8]
    assert not kept(JOINT, (), (), SPEC.seconds, 1.0)


def test_prices_are_halves():
    found = prices(SPEC)
    assert len(found) == PRICES and found[0] == 4 * SPEC.bytes_per_s
    assert all(a == 2 * b for a, b in zip(found, found[1:]))


def told(given, planned):
    found = decisions(given, planned, SPEC.seconds)
    return [(each.value, each.action, each.bytes, each.seconds, each.reason) for each in found]


def test_what_is_told_of_the_leanest():
    """Nothing of parameters and what costs nothing to make of them."""
    planned = Planner(GIVEN, SPEC).leanest.graph
    product, tanh = (SPEC.seconds(node) for node in GIVEN.nodes[:2])
    kind = "f32[64,64]"
    assert told(GIVEN, planned) == [
        (f"tanh {kind}", "save", SIZE, tanh, f"made again it would cost {1e3 * tanh:.2g} ms"),
        *(
            (f"dot_general {kind}", action, SIZE, product, f"{words} {1e3 * product:.2g} ms")
            for action, words in [
                ("save", "made again it would cost"),
                ("recompute", "frees its memory for"),
            ]
        ),
    ]
    (x, y) = arguments(GIVEN)
    for ours, theirs in zip(run_graph(planned, x, y), run_graph(GIVEN, x, y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_what_is_told_of_the_plain_program():
    """What waits for the backward pass: the product that both read, and what is multiplied."""
    saved = [value for value, action, *_ in told(GIVEN, GIVEN) if action == "save"]
    assert saved == ["dot_general f32[64,64]", "reshape f32[64,64]", "dot_general f32[64,64]"]
    assert len(told(GIVEN, GIVEN)) == 3


def test_what_is_told_comes_largest_first():
    body = f"""
        %2: f32[64,64] = dot_general(%0, %1) {DOT}
        %3: f32[64] = reduce_sum(%2) {{axes=(0,)}}
        %4: f32[64] = tanh(%3)
        backward:
        %5: f32[64] = sin(%4)
        %6: f32[64,64] = dot_general(%2, %1) {DOT}
        return %5, %6
    """
    given = graph(INPUTS, body)
    assert [(action, size) for _, action, size, *_ in told(given, given)] == [
        ("save", SIZE),
        ("save", 256),
    ]


LOOP = """
    %2: f32[64,64], %3: f32[5,64,64] = scan(%1, %0) {length=5, num_carry=1, num_consts=1}
      graph step(%0: f32[64,64], %1: f32[64,64]) {
        %2: f32[64,64] = dot_general(%1, %0) {dimension_numbers=(((1,),(0,)),((),()))}
        %3: f32[64,64] = tanh(%2)
        return %3, %2
      }
    backward:
    %4: f32[64,64] = scan(%1, %2, %3) {length=5, num_carry=1, num_consts=1, reverse=True}
      graph step(%0: f32[64,64], %1: f32[64,64], %2: f32[64,64]) {
        %3: f32[64,64] = dot_general(%1, %0) {dimension_numbers=(((1,),(0,)),((),()))}
        %4: f32[64,64] = mul(%3, %2)
        return %4
      }
    return %4
"""


def test_what_a_loop_stacks_is_told_of_all_its_steps():
    given = graph(INPUTS, LOOP)
    loop = given.nodes[0]
    product = SPEC.seconds(loop.regions[0].nodes[0])
    found = [row[:4] for row in told(given, given)]
    assert found == [
        ("dot_general f32[5,64,64]", "save", 5 * SIZE, pytest.approx(5 * product)),
        ("scan f32[64,64]", "save", SIZE, SPEC.seconds(loop)),
    ]


def test_stacks_that_backward_loops_alone_read_may_wait():
    """A stack that is read as a whole may not, nor one that is returned."""
    given = graph(INPUTS, LOOP)
    (stack,) = Waits(given).stacks
    assert stack is given.nodes[0].outputs[1]
    last = LOOP.rstrip().removesuffix("return %4")
    for more in ("return %4, %3", "%5: f32[5,64,64] = sin(%3)\nreturn %4, %5"):
        assert not Waits(graph(INPUTS, last + more)).stacks


def test_a_floor_is_of_arguments_results_and_one_kernel():
    """Not of what XLA makes in loops, nor of loops, whose bodies are planned by themselves."""
    assert Planner(GIVEN, SPEC).floor == (2 + 2 + 3) * SIZE
    assert Planner(graph(INPUTS, LOOP), SPEC).floor == (2 + 1) * SIZE
    loose = f"""
        %2: f32[64,64] = dot_general(%0, %1) {DOT}
        %3: f32[64,64] = dot_general(%2, %1) {DOT}
        %4: f32[64,64] = dot_general(%3, %1) {DOT}
        %5: f32[64,64] = clamp(%2, %3, %4)
        %6: f32[64,64] = dot_general(%5, %1) {DOT}
        return %6
    """
    assert Planner(graph(INPUTS, loose), SPEC, frozenset({0})).floor == (1 + 1 + 2) * SIZE
