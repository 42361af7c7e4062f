"""Every rule of `simplify.RULES`: text in, text out."""

import numpy as np
import pytest

from backpass.passes import Dce, Simplify
from backpass.passes.simplify import RULES
from fuzz.interpret import run_graph
from passes.texts import assert_rewrites, graph, ops

X = "%0: f32[3,4]"
XY = "%0: f32[3,4], %1: f32[3,4]"

PICK = (
    "{dimension_numbers=GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(1,), "
    "start_index_map=(1,), operand_batching_dims=(0,), start_indices_batching_dims=(0,)), "
    "fill_value=nan, mode=GatherScatterMode.FILL_OR_DROP, slice_sizes=(1,1)}"
)
PICK_ONE = (
    "{dimension_numbers=GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), "
    "start_index_map=(0,)), fill_value=nan, mode=GatherScatterMode.FILL_OR_DROP, slice_sizes=(1,)}"
)

CASES = {
    # x + 0, 0 + x
    "add literal zero": (
        "add",
        "%0: f32[]",
        "%1: f32[] = add(%0, 0.0:f32)\nreturn %1",
        "return %0",
    ),
    "add zeros": (
        "add",
        X,
        """
        %1: f32[3,4] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %2: f32[3,4] = add(%1, %0)
        return %2
        """,
        """
        %1: f32[3,4] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        return %0
        """,
    ),
    "add scalar zero": ("add", X, "%1: f32[3,4] = add(%0, 0.0:f32)\nreturn %1", "return %0"),
    "add broadcasts": (
        "add",
        "%0: f32[]",
        """
        %1: f32[3] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %2: f32[3] = add(%1, %0)
        return %2
        """,
        None,
    ),
    "add_any zero": ("add_any", X, "%1: f32[3,4] = add_any(0.0:f32, %0)\nreturn %1", "return %0"),
    "add one": ("add", X, "%1: f32[3,4] = add(%0, 1.0:f32)\nreturn %1", None),
    "sub zero": ("sub", X, "%1: f32[3,4] = sub(%0, 0.0:f32)\nreturn %1", "return %0"),
    "zero minus x": ("sub", X, "%1: f32[3,4] = sub(0.0:f32, %0)\nreturn %1", None),
    "mul one": ("mul", X, "%1: f32[3,4] = mul(1.0:f32, %0)\nreturn %1", "return %0"),
    "mul zero keeps NaN": ("mul", X, "%1: f32[3,4] = mul(0.0:f32, %0)\nreturn %1", None),
    "mul integers": ("mul", "%0: i32[2]", "%1: i32[2] = mul(%0, 1:i32)\nreturn %1", "return %0"),
    "div one": ("div", X, "%1: f32[3,4] = div(%0, 1.0:f32)\nreturn %1", "return %0"),
    "one over x": ("div", X, "%1: f32[3,4] = div(1.0:f32, %0)\nreturn %1", None),
    # signs
    "double negation": (
        "neg",
        X,
        "%1: f32[3,4] = neg(%0)\n%2: f32[3,4] = neg(%1)\nreturn %2",
        "%1: f32[3,4] = neg(%0)\nreturn %0",
    ),
    "plus a negated": (
        "add",
        XY,
        "%2: f32[3,4] = neg(%1)\n%3: f32[3,4] = add(%0, %2)\nreturn %3",
        "%2: f32[3,4] = neg(%1)\n%3: f32[3,4] = sub(%0, %1)\nreturn %3",
    ),
    "plus a negated cotangent": (
        "add_any",
        XY,
        "%2: f32[3,4] = neg(%1)\n%3: f32[3,4] = add_any(%0, %2)\nreturn %3",
        "%2: f32[3,4] = neg(%1)\n%3: f32[3,4] = sub(%0, %1)\nreturn %3",
    ),
    # ops that do nothing
    "copy": ("copy", X, "%1: f32[3,4] = copy(%0)\nreturn %1", "return %0"),
    "same cast": (
        "convert_element_type",
        X,
        "%1: f32[3,4] = convert_element_type(%0)\nreturn %1",
        "return %0",
    ),
    "cast": (
        "convert_element_type",
        X,
        "%1: bf16[3,4] = convert_element_type(%0)\nreturn %1",
        None,
    ),
    # shapes
    "same reshape": ("reshape", X, "%1: f32[3,4] = reshape(%0)\nreturn %1", "return %0"),
    "reshape of reshape": (
        "reshape",
        X,
        "%1: f32[12] = reshape(%0)\n%2: f32[2,6] = reshape(%1)\nreturn %1, %2",
        "%1: f32[12] = reshape(%0)\n%2: f32[2,6] = reshape(%0)\nreturn %1, %2",
    ),
    "reshape and back": (
        "reshape",
        X,
        "%1: f32[12] = reshape(%0)\n%2: f32[3,4] = reshape(%1)\nreturn %2",
        "%1: f32[12] = reshape(%0)\nreturn %0",
    ),
    "same transpose": (
        "transpose",
        X,
        "%1: f32[3,4] = transpose(%0) {permutation=(0,1)}\nreturn %1",
        "return %0",
    ),
    "transpose and back": (
        "transpose",
        X,
        """
        %1: f32[4,3] = transpose(%0) {permutation=(1,0)}
        %2: f32[3,4] = transpose(%1) {permutation=(1,0)}
        return %2
        """,
        "%1: f32[4,3] = transpose(%0) {permutation=(1,0)}\nreturn %0",
    ),
    "transpose of transpose": (
        "transpose",
        "%0: f32[2,3,4]",
        """
        %1: f32[3,4,2] = transpose(%0) {permutation=(1,2,0)}
        %2: f32[4,3,2] = transpose(%1) {permutation=(1,0,2)}
        return %2
        """,
        """
        %1: f32[3,4,2] = transpose(%0) {permutation=(1,2,0)}
        %2: f32[4,3,2] = transpose(%0) {permutation=(2,1,0)}
        return %2
        """,
    ),
    "same broadcast": (
        "broadcast_in_dim",
        X,
        "%1: f32[3,4] = broadcast_in_dim(%0) {broadcast_dimensions=(0,1)}\nreturn %1",
        "return %0",
    ),
    "broadcast of broadcast": (
        "broadcast_in_dim",
        "%0: f32[4]",
        """
        %1: f32[1,4] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
        %2: f32[2,3,4] = broadcast_in_dim(%1) {broadcast_dimensions=(1,2)}
        return %2
        """,
        """
        %1: f32[1,4] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
        %2: f32[2,3,4] = broadcast_in_dim(%0) {broadcast_dimensions=(2,)}
        return %2
        """,
    ),
    # choices
    "select of the same": (
        "select_n",
        f"{X}, %1: bool[3,4]",
        "%2: f32[3,4] = select_n(%1, %0, %0)\nreturn %2",
        "return %0",
    ),
    "select of a known": (
        "select_n",
        XY,
        "%2: f32[3,4] = select_n(True:bool, %0, %1)\nreturn %2",
        "return %1",
    ),
    "select": (
        "select_n",
        f"{XY}, %2: bool[3,4]",
        "%3: f32[3,4] = select_n(%2, %0, %1)\nreturn %3",
        None,
    ),
    "first power": (
        "integer_pow",
        X,
        "%1: f32[3,4] = integer_pow(%0) {y=1}\nreturn %1",
        "return %0",
    ),
    "second power": (
        "integer_pow",
        X,
        "%1: f32[3,4] = integer_pow(%0) {y=2}\nreturn %1",
        "%1: f32[3,4] = square(%0)\nreturn %1",
    ),
    "third power": ("integer_pow", X, "%1: f32[3,4] = integer_pow(%0) {y=3}\nreturn %1", None),
    "max with -inf": ("max", X, "%1: f32[3,4] = max(-inf:f32, %0)\nreturn %1", "return %0"),
    "max with inf": ("max", X, "%1: f32[3,4] = max(%0, inf:f32)\nreturn %1", None),
    "min with inf": ("min", X, "%1: f32[3,4] = min(%0, inf:f32)\nreturn %1", "return %0"),
    "max of integers": ("max", "%0: i32[2]", "%1: i32[2] = max(%0, 0:i32)\nreturn %1", None),
    # the gradient of a cross-entropy
    "sum of a one-hot": (
        "reduce_sum",
        "%0: i32[3], %1: f32[3]",
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(0,)}
        %4: bool[3,5] = eq(%2, %3)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: f32[3] = reduce_sum(%7) {axes=(1,)}
        return %8
        """,
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(0,)}
        %4: bool[3,5] = eq(%2, %3)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: bool[3] = ge(%0, 0:i32)
        %9: bool[3] = lt(%0, 5:i32)
        %10: bool[3] = and(%8, %9)
        %11: f32[3] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %12: f32[3] = select_n(%10, %11, %1)
        return %12
        """,
    ),
    "sum of a one-hot of columns": (
        "reduce_sum",
        "%0: i32[3,1], %1: f32[3,1]",
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(0,1)}
        %4: bool[3,5] = eq(%3, %2)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,1)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: f32[3] = reduce_sum(%7) {axes=(1,)}
        return %8
        """,
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(0,1)}
        %4: bool[3,5] = eq(%3, %2)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,1)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: i32[3] = reshape(%0)
        %9: f32[3] = reshape(%1)
        %10: bool[3] = ge(%8, 0:i32)
        %11: bool[3] = lt(%8, 5:i32)
        %12: bool[3] = and(%10, %11)
        %13: f32[3] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %14: f32[3] = select_n(%12, %13, %9)
        return %14
        """,
    ),
    "a label for each column": (
        "reduce_sum",
        "%0: i32[5], %1: f32[3]",
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
        %4: bool[3,5] = eq(%2, %3)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: f32[3] = reduce_sum(%7) {axes=(1,)}
        return %8
        """,
        None,
    ),
    "counter wraps round": (
        "reduce_sum",
        "%0: i8[3], %1: f32[3]",
        """
        %2: i8[3,200] = iota() {dimension=1}
        %3: i8[3,200] = broadcast_in_dim(%0) {broadcast_dimensions=(0,)}
        %4: bool[3,200] = eq(%2, %3)
        %5: f32[3,200] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %6: f32[3,200] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,200] = select_n(%4, %6, %5)
        %8: f32[3] = reduce_sum(%7) {axes=(1,)}
        return %8
        """,
        None,
    ),
    "label picked from biased logits": (
        "gather",
        "%0: f32[3,5], %1: f32[5], %2: i32[3,1,1]",
        f"""
        %3: f32[3,5] = broadcast_in_dim(%1) {{broadcast_dimensions=(1,)}}
        %4: f32[3,5] = add(%0, %3)
        %5: f32[3,1] = gather(%4, %2) {PICK}
        %6: f32[3] = reduce_max(%4) {{axes=(1,)}}
        return %5, %6
        """,
        f"""
        %3: f32[3,5] = broadcast_in_dim(%1) {{broadcast_dimensions=(1,)}}
        %4: f32[3,5] = add(%0, %3)
        %5: f32[3,1] = gather(%1, %2) {PICK_ONE}
        %6: f32[3,1] = gather(%0, %2) {PICK}
        %7: f32[3,1] = add(%6, %5)
        %8: f32[3] = reduce_max(%4) {{axes=(1,)}}
        return %7, %8
        """,
    ),
    "label picked from logits of each row": (
        "gather",
        "%0: f32[3,5], %1: f32[3], %2: i32[3,1,1]",
        f"""
        %3: f32[3,5] = broadcast_in_dim(%1) {{broadcast_dimensions=(0,)}}
        %4: f32[3,5] = add(%0, %3)
        %5: f32[3,1] = gather(%4, %2) {PICK}
        return %5
        """,
        None,
    ),
    "sum along the labels": (
        "reduce_sum",
        "%0: i32[3], %1: f32[3]",
        """
        %2: i32[3,5] = iota() {dimension=1}
        %3: i32[3,5] = broadcast_in_dim(%0) {broadcast_dimensions=(0,)}
        %4: bool[3,5] = eq(%2, %3)
        %5: f32[3,5] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %6: f32[3,5] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
        %7: f32[3,5] = select_n(%4, %6, %5)
        %8: f32[5] = reduce_sum(%7) {axes=(0,)}
        return %8
        """,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    _, inputs, before, after = CASES[name]
    assert_rewrites(Simplify(), inputs, before, after)


def test_every_rule_has_a_case():
    changed = {op for op, _, _, after in CASES.values() if after is not None}
    assert changed == set(RULES)
    assert set(RULES) <= {op for op, *_ in CASES.values()}


def test_inside_of_regions():
    assert_rewrites(
        Simplify(),
        X,
        """
        %1: f32[3,4] = jit(%0) {name="inner"}
          graph inner(%0: f32[3,4]) {
            %1: f32[3,4] = add(%0, 0.0:f32)
            return %1
          }
        return %1
        """,
        """
        %1: f32[3,4] = jit(%0) {name="inner"}
          graph inner(%0: f32[3,4]) {
            return %0
          }
        return %1
        """,
    )


def test_origin_and_phase_stay():
    assert_rewrites(
        Simplify(),
        X,
        """
        %1: f32[3,4] = sin(%0)                       @ model.py:3 block
        backward:
          %2: f32[3,4] = integer_pow(%1) {y=2} of %1 @ model.py:3 block
        return %2
        """,
        """
        %1: f32[3,4] = sin(%0)                       @ model.py:3 block
        backward:
          %2: f32[3,4] = square(%1)            of %1 @ model.py:3 block
        return %2
        """,
    )


@pytest.mark.parametrize("count, left", [(127, 0), (128, 1)])
def test_a_one_hot_is_summed_where_its_length_is_a_number_of_the_counter(count, left):
    body = f"""
        %2: i8[3,{count}] = iota() {{dimension=1}}
        %3: i8[3,{count}] = broadcast_in_dim(%0) {{broadcast_dimensions=(0,)}}
        %4: bool[3,{count}] = eq(%2, %3)
        %5: f32[3,{count}] = broadcast_in_dim(%1) {{broadcast_dimensions=(0,)}}
        %6: f32[3,{count}] = broadcast_in_dim(0.0:f32) {{broadcast_dimensions=()}}
        %7: f32[3,{count}] = select_n(%4, %6, %5)
        %8: f32[3] = reduce_sum(%7) {{axes=(1,)}}
        return %8
    """
    found = Dce()(Simplify()(graph("%0: i8[3], %1: f32[3]", body)))
    assert ops(found).count("reduce_sum") == left
    labels, ct = np.int8([0, 126, -2]), np.float32([1, 2, 3])
    np.testing.assert_array_equal(*run_graph(found, labels, ct), np.float32([1, 2, 0]))
