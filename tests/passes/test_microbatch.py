"""`microbatch`: a graph in, the loop over its parts out."""

import pytest

from backpass.ir.errors import BatchError
from backpass.passes import Dce, Microbatch
from passes.texts import assert_same_values, graph

STEP = graph(
    "%0: f32[6,3] w, %1: f32[8,6] x, %2: f32[3] bias",
    """
    %3: f32[8,3] = dot_general(%1, %0) {dimension_numbers=(((1,),(0,)),((),()))}
    %4: f32[1,3] = reshape(%2)
    %5: f32[8,3] = broadcast_in_dim(%4) {broadcast_dimensions=(0,1)}
    %6: f32[8,3] = add(%3, %5)
    %7: f32[8,3] = tanh(%6)
    %8: f32[] = reduce_sum(%7) {axes=(0,1)}
    %9: f32[] = div(%8, 8.0:f32)
    return %9, %7
    """,
)


def ops(graph):
    return [node.op.name for node in graph.nodes]


def test_the_loop_and_what_is_around_it():
    """Samples are sliced for free, the bias is broadcast in each part, the mean is taken after."""
    found = Dce()(Microbatch(4)(STEP))
    assert ops(found) == [
        *("reshape", "reshape", "scan", "reshape", "div"),
    ]
    (loop,) = (node for node in found.nodes if node.op.name == "scan")
    assert ops(loop.regions[0]) == [
        *("dot_general", "broadcast_in_dim", "add", "tanh", "reduce_sum", "add"),
    ]
    assert [str(v.type) for v in loop.regions[0].inputs] == [
        *("f32[6,3]", "f32[1,3]", "f32[]", "f32[2,6]"),
    ]
    assert_same_values(found, STEP)


def test_one_part_is_the_graph_itself():
    assert Microbatch(1)(STEP) is STEP


def test_parts_that_do_not_lie_side_by_side():
    """Two halves of a batch in one dimension: a part has some of each."""
    joined = graph(
        "%0: f32[4,3] x, %1: f32[4,3] y, %2: f32[3,3] w",
        """
        %3: f32[8,3] = concatenate(%0, %1) {dimension=0}
        %4: f32[8,3] = dot_general(%3, %2) {dimension_numbers=(((1,),(0,)),((),()))}
        %5: f32[3,8] = transpose(%4) {permutation=(1,0)}
        return %5
        """,
    )
    assert_same_values(Microbatch(2)(joined), joined)


PULLED = {
    "product, on the left": "dot_general(%3, %2) {dimension_numbers=(((0,),(0,)),((),()))}",
    "product, on the right": "transpose(%4) {permutation=(1,0)}",
    "reshaped": "reshape(%5)",
}


@pytest.mark.parametrize("name", PULLED)
def test_what_samples_meet_is_made_part_by_part(name):
    """Of an argument of its own, so that no more than a part of it is there at once."""
    met = graph(
        "%0: f32[8,5] x, %1: f32[5,5] w, %2: f32[3,5] a, %3: f32[3,8] y",
        f"""
        %4: f32[5,8] = dot_general(%2, %3) {{dimension_numbers=(((0,),(0,)),((),()))}}
        %5: f32[8,1,5] = broadcast_in_dim(2.0:f32) {{broadcast_dimensions=()}}
        %6: f32[8,5] = {PULLED[name]}
        %7: f32[8,5] = dot_general(%0, %1) {{dimension_numbers=(((1,),(0,)),((),()))}}
        %8: f32[8,5] = mul(%7, %6)
        return %8
        """,
    )
    found = Dce()(Microbatch(4)(Dce()(met)))
    (loop,) = (node for node in found.nodes if node.op.name == "scan")
    assert ops(loop.regions[0]).count("dot_general") == (1 if name == "reshaped" else 2)
    assert all(v.shape != (8, 5) for node in found.nodes[:-2] for v in node.outputs)
    assert_same_values(found, met)


def test_a_sum_that_each_sample_needs_is_refused():
    centred = graph(
        "%0: f32[8,6] x, %1: f32[6,5] w",
        """
        %2: f32[8,5] = dot_general(%0, %1) {dimension_numbers=(((1,),(0,)),((),()))}
        %3: f32[5] = reduce_sum(%2) {axes=(0,)}
        %4: f32[8,5] = broadcast_in_dim(%3) {broadcast_dimensions=(1,)}
        %5: f32[8,5] = sub(%2, %4)
        %6: f32[8,8] = dot_general(%5, %5) {dimension_numbers=(((1,),(1,)),((),()))}
        return %6
        """,
    )
    with pytest.raises(BatchError, match=r"x f32\[8,6\].*dimension 0"):
        Microbatch(4)(centred)
