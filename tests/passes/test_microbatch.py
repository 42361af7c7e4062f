"""`microbatch`: a graph in, the loop over its parts out."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass.ir.errors import BatchError
from backpass.passes import PASSES, Cse, Dce, Fuse, Microbatch
from backpass.passes.microbatch import with_microbatch
from passes.parts import in_parts
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
    assert Microbatch(1)(STEP) is STEP and Microbatch()(STEP) is STEP


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


NUMBERS, BITS = ("float16", "float32", "int8", "int32", "uint32"), ("int8", "uint32", "bool")
MONOIDS = {
    **dict.fromkeys(("sum", "prod", "max", "min"), NUMBERS),
    **dict.fromkeys(("and", "or", "xor"), BITS),
}


@pytest.mark.parametrize("op", MONOIDS)
def test_what_all_samples_give_is_put_together(op):
    """Numbers below zero, around it and above, so that none of them is what a loop begins with."""

    def of_all(x):
        found = []
        for dtype in MONOIDS[op]:
            for shift in (4, 0, -4) if dtype != "uint32" else (4,):
                numbers = lax.round(3 * x + shift)[:, 0].astype(dtype)
                found.append(getattr(lax, f"reduce_{op}")(numbers, (0,)))
        return found

    assert f"reduce_{op}" in ops(in_parts(of_all))


@pytest.mark.parametrize("names, found", [
    ("autodiff fold simplify cse", "autodiff fold simplify microbatch cse"),
    ("cse autodiff", "cse autodiff microbatch"),
    ("simplify fold cse", "simplify fold microbatch cse"),
    ("cse dce", "cse dce microbatch"),
    ("microbatch cse", "microbatch cse"),
])  # fmt: skip
def test_the_batch_is_divided_once_gradients_are_nodes_like_others(names, found):
    passes = with_microbatch([PASSES[name]() for name in names.split()], Microbatch(4))
    assert [each.name for each in passes] == found.split()


def test_a_loss_by_rows_knows_of_the_parts():
    (fuse, cse, _) = with_microbatch([Fuse(), Cse()], Microbatch(4))
    assert fuse == replace(Fuse(), parts=4) and cse == Cse()


def part_of(step, *args):
    """The types of what each of two parts of a step is given."""
    found = bp.compile(step, accumulate_steps=2).lower(*args).graph
    (loop,) = (node for node in found.nodes if node.regions and node.regions[0].name == "part")
    return [str(v.type) for v in loop.regions[0].inputs]


W, X = np.ones((4, 4), np.float32), np.ones((3, 6, 4), np.float32)


def test_the_first_dimension_is_taken_and_arguments_that_are_read():
    assert part_of(lambda z, x, y: jnp.tanh(x), X, X.T, X) == ["f32[2,6,3]"]


def test_of_two_batches_the_one_with_more_to_do_is_taken():
    def apart(x, y):
        return jnp.tanh(jnp.tanh(x)), jnp.tanh(y)

    assert part_of(apart, np.ones((6, 5), np.float32), np.ones((6, 7), np.float32)) == ["f32[3,5]"]


@pytest.mark.parametrize("of", [lambda w: w, jnp.tanh, lambda w: jnp.tanh(w) * 2])
def test_samples_may_have_gradients_of_their_own(of):
    """By weights, or by what is made of them ahead, that each part has as a whole."""

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ of(w)) ** 2)

    assert "f32[3,3,4]" in part_of(lambda w, x: bp.grad(loss, (0, 1))(w, x), W, X)


def test_a_part_of_the_weights_is_no_part_of_the_batch():
    """Though others, of one dimension, are there as a whole."""

    def normalised(s, w, x):
        h = x @ w
        return jnp.sum(jnp.tanh(h - s @ h))

    step = bp.value_and_grad(normalised, (0, 1))
    with pytest.raises(BatchError, match=r"args\[2\] f32\[6,4\] in parts of its dimension 0"):
        part_of(lambda s, w, x: step(s, w, x), np.ones(6, np.float32), W, X[0])


def test_what_computes_nothing_is_not_divided():
    with pytest.raises(BatchError, match=r"x f32\[8,3\] in parts of its dimension 0"):
        Microbatch(2)(
            graph("%0: f32[8,3] x", "%1: f32[3,8] = transpose(%0) {permutation=(1,0)}\nreturn %1")
        )


def test_sizes_that_could_have_been_divided_are_told():
    with pytest.raises(BatchError, match=r"samples that 7 divides; first .* are \[3, 6, 8\]"):
        Microbatch(7)(STEP)


def test_the_largest_argument_is_taken_for_the_samples_that_are_refused():
    apart = graph(
        "%0: f32[4,3] x, %1: f32[8,3] y, %2: f32[4,1] z",
        """
        %3: f32[8,3] = cumsum(%1) {axis=0, reverse=False}
        %4: f32[4,3] = cumsum(%0) {axis=0, reverse=False}
        %5: f32[4,1] = cumsum(%2) {axis=0, reverse=False}
        return %3, %4, %5
        """,
    )
    with pytest.raises(
        BatchError, match=r"y f32\[8,3\].* 0: .*\n.*: cumsum runs along the samples"
    ):
        Microbatch(2)(apart)
