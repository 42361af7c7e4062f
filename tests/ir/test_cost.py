"""Costs against sums done by hand."""

import pytest

from backpass.ir import cost, parse
from backpass.ir.cost import Work, node_cost
from backpass.ir.device import DeviceSpec, kind
from ir.test_text import TEXTS

INPUTS = "%0: f32[8,4], %1: f32[4,2], %3: f32[1,4], %4: c64[2,8], %5: c64[16,1]"


def body(text: str, inputs: str = INPUTS):
    return parse(f"backpass.ir 1\ngraph f({inputs}) {{\n{text}\nreturn\n}}\n")


MATMUL = "{dimension_numbers=(((1,),(0,)),((),()))}"
CASES = {
    f"%2: f32[8,2] = dot_general(%0, %1) {MATMUL}": Work(1, 2 * 8 * 4 * 2, (32 + 8) * 4, 16 * 4),
    "%2: f32[8,4] = mul(%0, 0.5:f32)": Work(1, 32, 128, 128),
    "%2: f32[8,4] = mul(%0, %0)": Work(1, 32, 128, 128),
    "%2: f32[32] = reshape(%0)": Work(1),
    "%2: f32[4,8] = transpose(%0) {permutation=(1,0)}": Work(1, 0, 128, 128),
    "%2: f32[4] = reduce_sum(%0) {axes=(0,)}": Work(1, 32, 128, 16),
    "%2: f32[8,4] = sort(%0) {dimension=0, is_stable=True, num_keys=1}": Work(1, 96, 128, 128),
    "%2: f32[1,4] = sort(%3) {dimension=0, is_stable=True, num_keys=1}": Work(1, 4, 16, 16),
    "%2: c64[2,8] = fft(%4) {fft_lengths=(8,), fft_type=FftType.FFT}": Work(1, 240, 128, 128),
    "%2: c64[16,1] = fft(%5) {fft_lengths=(1,), fft_type=FftType.FFT}": Work(1, 16, 128, 128),
    "%2: bf16[8,4] = convert_element_type(%0)": Work(1, 0, 128, 64),
    "%2: f32[5] = broadcast_in_dim(1.0:f32) {broadcast_dimensions=()}": Work(1, 0, 0, 20),
}


@pytest.mark.parametrize("text", CASES)
def test_node(text):
    graph = body(text)
    assert node_cost(graph.nodes[0]) == CASES[text]
    total = cost(graph)
    assert Work(total.nodes, total.flops, total.bytes_read, total.bytes_written) == CASES[text]


def test_training_step():
    found = cost(parse(TEXTS["training_step"]))
    dot = 2 * 8 * 64 * 32
    assert found.by_op["dot_general"].flops == 2 * dot
    assert found.by_phase["forward"].flops == dot + 256 + 256
    assert found.by_phase["backward"].flops == dot + 256
    assert found.by_phase["update"] == Work(2, 2 * 2048, 3 * 8192, 2 * 8192)
    assert found.flops == sum(work.flops for work in found.by_phase.values())
    assert found.flops == sum(work.flops for work in found.by_op.values())
    assert not found.unbounded
    assert "dot_general" in str(found) and "65,536" in str(found)


NEG = "{ \n%9: f32[8,4] = neg(%0)\n return %9 }\n"
CALL = "%2: f32[8,4] = jit(%0)\ngraph g(%0: f32[8,4]) " + NEG


def test_calls_count_once():
    assert dict(cost(body(CALL)).by_op) == {"neg": Work(1, 32, 128, 128)}


def test_scan_counts_its_length():
    text = "%2: f32[8,4] = scan(%0) {length=10, num_carry=1, num_consts=0}\n"
    found = cost(body("backward:\n" + text + "graph g(%0: f32[8,4]) " + NEG))
    assert dict(found.by_op) == {"neg": Work(10, 320, 1280, 1280)}
    assert found.by_phase == {"backward": Work(10, 320, 1280, 1280)}


def test_cond_counts_the_dearest_branch():
    branches = "graph a(%0: f32[8,4]) { return %0 }\ngraph b(%0: f32[8,4]) " + NEG
    found = cost(body("%2: f32[8,4] = cond(0:i32, %0)\n" + branches))
    assert dict(found.by_op) == {"neg": Work(1, 32, 128, 128)}


def test_while_is_flagged():
    found = cost(parse(TEXTS["loop"]))
    assert found.unbounded
    assert found.by_op["add"].nodes == found.by_op["lt"].nodes == 1
    assert "at least" in str(found)


def test_slices_of_stacks_are_copied():
    text = "%2: f32[8,4], %3: f32[10,4,2] = scan(%0, %1) {length=10, num_carry=1, num_consts=0}\n"
    region = "graph g(%0: f32[8,4], %4: f32[4,2]) {\nreturn %0, %4\n}\n"
    graph = body(text + region, "%0: f32[8,4], %1: f32[10,4,2]")
    spec = DeviceSpec(1 << 30, 1e12, 1e9)
    assert spec.seconds(graph.nodes[0]) == pytest.approx(2 * (320 + 320) / 1e9)


@pytest.mark.parametrize("groups, found", [(1, "conv_general_dilated"), (2, "grouped")])
def test_convolutions_of_groups_are_priced_apart(groups, found):
    text = (
        "%2: f32[2,4,6] = conv_general_dilated(%0, %1) {batch_group_count=1, "
        "dimension_numbers=ConvDimensionNumbers(lhs_spec=(0,1,2),"
        "rhs_spec=(0,1,2),out_spec=(0,1,2)), "
        f"feature_group_count={groups}, lhs_dilation=(1,), padding=((0,0),), precision=None, "
        "preferred_element_type=None, rhs_dilation=(1,), window_strides=(1,)}\n"
    )
    graph = body(text, f"%0: f32[2,4,8], %1: f32[4,{4 // groups},3]")
    assert kind(graph.nodes[0]).endswith(found)


def test_nested_scans_multiply():
    inner = "%5: f32[8,4] = scan(%0) {length=3, num_carry=1, num_consts=0}\ngraph h(%0: f32[8,4]) "
    outer = "%2: f32[8,4] = scan(%0) {length=10, num_carry=1, num_consts=0}\ngraph g(%0: f32[8,4]) "
    found = cost(body(outer + "{\n" + inner + NEG + "return %5 }\n"))
    assert found.flops == 30 * 32
