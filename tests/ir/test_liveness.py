"""Live bytes against counts done by hand; a `f32[256]` is 1 KiB."""

import pytest
from hypothesis import given

from backpass.ir import liveness, parse
from ir.graphs import graphs, patient
from ir.test_text import TEXTS

K = 1024


def body(text: str, inputs: str = "%0: f32[256]"):
    return parse(f"backpass.ir 1\ngraph f({inputs}) {{\n{text}\n}}\n")


CHAIN = "\n".join(f"%{i}: f32[256] = sin(%{i - 1})" for i in range(1, 4)) + "\nreturn %3"


def test_chain():
    """Only an operand and a result are live at a time, beside the argument."""
    found = liveness(body(CHAIN))
    assert found.bytes == (2 * K, 3 * K, 3 * K, 2 * K)
    assert found.temporary_bytes == (1 * K, 2 * K, 1 * K, 0)
    assert (found.argument_bytes, found.output_bytes) == (K, K)
    assert (found.peak_bytes, found.peak_position) == (3 * K, 1)
    assert [(b.kind, b.first, b.last) for b in found.buffers] == [
        ("argument", -1, 3),
        ("temporary", 0, 1),
        ("temporary", 1, 2),
        ("output", 2, 3),
    ]
    assert [b.kind for b in found.peak_buffers] == ["argument", "temporary", "temporary"]


def test_saved_values_pile_up():
    """What the backward pass reads stays: the peak is where the forward pass ends."""
    text = "\n".join(f"%{i}: f32[256] = sin(%{i - 1})" for i in range(1, 5))
    text += "\nbackward:\n%5: f32[256] = cos(%3)\n"
    text += "\n".join(f"%{i}: f32[256] = mul(%{i - 1}, %{8 - i})" for i in range(6, 8))
    found = liveness(body(text + "\nreturn %4, %7"))
    assert found.peak_bytes == (1 + 4 + 1) * K
    assert found.peak_position == 4


def test_unread_values_live_where_they_are_made():
    found = liveness(body("%1: f32[256] = sin(%0)\n%2: f32[256] = cos(%0)\nreturn"))
    assert found.bytes == (2 * K, 2 * K, K)


def test_views_share_memory():
    text = "%1: f32[256] = sin(%0)\n%2: f32[16,16] = reshape(%1)\n%3: f32[16,16] = cos(%2)\n"
    assert liveness(body(text + "return %3")).bytes == (2 * K, 2 * K, 3 * K, 2 * K)
    assert liveness(body(text + "return %2")).bytes == (2 * K, 2 * K, 3 * K, 2 * K)


def test_outputs_that_are_arguments_are_copied():
    found = liveness(body("%1: f32[16,16] = reshape(%0)\nreturn %0, %1, %0, 1.0:f32"))
    assert found.bytes == (K, 4 * K + 4)
    assert found.output_bytes == 3 * K + 4


def test_outputs_that_stand_twice_are_copied():
    found = liveness(body("%1: f32[256] = sin(%0)\nreturn %1, %1"))
    assert found.bytes == (2 * K, 3 * K)


def test_donation_frees_what_an_output_can_use():
    graph = body(
        "%2: f32[256] = sin(%0)\n%3: f32[256] = cos(%2)\n%4: f32[256] = cos(%3)\nreturn %4",
        "%0: f32[256], %1: f32[512]",
    )
    assert liveness(graph).bytes == (4 * K, 5 * K, 5 * K, 4 * K)
    found = liveness(graph, donated=[0, 1])
    assert found.donated_bytes == K
    assert found.bytes == (4 * K, 4 * K, 4 * K, 3 * K)
    assert found.argument_bytes + found.output_bytes - found.donated_bytes == 3 * K
    assert liveness(body("return %0"), donated=[0]).bytes == (K,)


SCAN = """\
%2: f32[256], %3: f32[10,256] = scan(%0, %1) {length=10, num_carry=1, num_consts=0}
graph body(%0: f32[256], %1: f32[256]) {
  %2: f32[256] = sin(%0)
  %3: f32[256] = mul(%2, %1)
  return %3, %2
}
return %2, %3
"""


def test_scan_adds_what_a_step_needs():
    """Slice of x, sin and product; the carry's buffer is the node's own output."""
    found = liveness(body(SCAN, "%0: f32[256], %1: f32[10,256]"))
    assert found.temporary_bytes == (3 * K, 0)
    assert found.peak_bytes == (11 + 11 + 3) * K
    assert "inside scan" in str(found)


def test_a_dying_carry_is_updated_in_place():
    text = "%4: f32[256] = sin(%0)\n" + SCAN.replace("scan(%0,", "scan(%4,")
    found = liveness(body(text, "%0: f32[256], %1: f32[10,256]"))
    assert found.temporary_bytes == (K, 3 * K, 0)
    again = liveness(body(text.replace("return %2", "return %4"), "%0: f32[256], %1: f32[10,256]"))
    assert again.bytes[1] == (11 + 11 + 1 + 3) * K


def test_a_constant_of_a_loop_stays_while_its_carry_is_updated():
    """Of what a step needs, constant and carry are there already."""
    made = "%4: f32[256] = sin(%0)\n%5: f32[256] = cos(%0)\n"
    product = "%3: f32[256] = mul(%0, %1)\n"
    scan = (
        "%6: f32[256], %7: f32[10,256] = scan(%4, %5, %1) {length=10, num_carry=1, num_consts=1}\n"
        f"graph body(%0: f32[256], %1: f32[256], %2: f32[256]) {{\n{product}"
        "%4: f32[256] = mul(%3, %2)\nreturn %4, %3\n}\nreturn %6"
    )
    found = liveness(body(made + scan, "%0: f32[256], %1: f32[10,256]"))
    assert found.temporary_bytes == (K, 2 * K, (1 + 10 + 3) * K, 0)
    loop = (
        "%6: f32[256] = while(%4, %4, %5) {body_nconsts=1, cond_nconsts=1}\n"
        "graph test(%0: f32[256], %1: f32[256]) {\nreturn True:bool\n}\n"
        f"graph body(%0: f32[256], %1: f32[256]) {{\n{product}return %3\n}}\nreturn %6"
    )
    (_, _, inside, after) = liveness(body(made + loop)).temporary_bytes
    assert (inside, after) == ((1 + 1) * K, 0)


@pytest.mark.parametrize("line", [
    "dynamic_update_slice(%1, %2, 0:i32)",
    "scatter-add(%1, 0:i32, %2) {dimension_numbers=ScatterDimensionNumbers(update_window_dims=(0,),"
    "inserted_window_dims=(), scatter_dims_to_operand_dims=())}",
])  # fmt: skip
def test_what_is_written_into_is_updated_in_place(line):
    text = "%1: f32[256] = sin(%0)\n%2: f32[128] = slice(%0) {limit_indices=(128,), start_indices=(0,), strides=None}\n"
    found = liveness(body(f"{text}%3: f32[256] = {line}\nreturn %3"))
    assert found.bytes == (2 * K, 2 * K + K // 2, 2 * K + K // 2, 2 * K)


def test_the_derivatives_of_a_custom_rule_do_not_run():
    big = "%2: f32[4096] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}\n"
    text = "%1: f32[256] = custom_jvp_call(%0)\ngraph a(%0: f32[256]) {\n%1: f32[256] = sin(%0)\n"
    text += "return %1\n}\n" + f"graph b(%0: f32[256], %1: f32[256]) {{\n{big}return %0, %1\n}}\n"
    assert liveness(body(text + "return %1")).temporary_bytes == (0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_zeros_for_what_a_scan_stacks_are_made_at_the_start_but_for_a_late_one(late):
    text = "%4: f32[256] = dot_general(%1, %1) {dimension_numbers=(((0,),(0,)),((),()))}\n" + SCAN
    text = text.replace("num_consts=0", "num_consts=0, late=True") if late else text
    text = text.replace("f32[256] = dot", "f32[256,256] = dot")
    graph = body(text, "%0: f32[256], %1: f32[10,256]")
    before, at_scan, _ = liveness(graph, fused=True).bytes
    assert before == (11 + 256 + (0 if late else 10)) * K
    assert at_scan > (11 + 11) * K
    assert liveness(graph).bytes[0] == (11 + 256) * K


def test_cond_takes_its_largest_branch():
    big = "%1: f32[256] = sin(%0)\n%2: f32[256] = cos(%1)\n%3: f32[256] = mul(%1, %2)\nreturn %3"
    text = f"%1: f32[256] = cond(0:i32, %0)\ngraph a(%0: f32[256]) {{\n{big}\n}}\n"
    text += "graph b(%0: f32[256]) { return %0 }\nreturn %1"
    assert liveness(body(text)).temporary_bytes == (2 * K, 0)


def test_while_counts_test_and_body():
    found = liveness(parse(TEXTS["loop"]))
    assert found.bytes[-2] - found.bytes[-1] == 4 + 4 - 4  # body's sum, the counter, the literal


def test_table():
    text = str(liveness(parse(TEXTS["training_step"])))
    assert "params['w']" in text and "8.0 KiB" in text and "argument" in text
    assert text.split("\n")[-1].startswith("peak, at ")


def test_a_graph_without_nodes_has_its_peak_where_it_returns():
    rows = str(liveness(parse("backpass.ir 1\ngraph f(%0: f32[256]) {\n  return %0\n}\n")))
    made = [line.split("  ")[0].strip() for line in rows.splitlines()[2:]]
    assert made[:2] == ["an argument", "return"] and made[-1] == "peak, at return"


@pytest.mark.parametrize("count", [12, 13, 14])
def test_of_many_the_twelve_largest_are_listed(count):
    inputs = ", ".join(f"%{i}: f32[{256 * (count - i)}] x{i}" for i in range(count))
    found = liveness(body("return", inputs))
    rest = sum(range(1, count - 11))
    for text in (str(found), found.by_line()):
        assert [line.split()[0] for line in text.splitlines() if "argument" in line] == [
            f"x{i}" for i in range(12)
        ]
        more = [line.split() for line in text.splitlines() if "more" in line]
        assert [(row[0], row[-2:]) for row in more] == (
            [(str(count - 12), [f"{rest}.0", "KiB"])] if rest else []
        )
    counts = [line.split()[2] for line in found.by_line().splitlines() if "more" in line]
    assert counts == ([str(count - 12)] if rest else [])


@pytest.mark.parametrize("count", [6, 7])
def test_of_what_is_inside_the_six_largest_are_listed(count):
    """In the order of their sizes, which is that of their definition backwards."""
    made = "".join(
        f"%{i}: f32[{256 * i}] = broadcast_in_dim(0.0:f32) {{broadcast_dimensions=()}}  @ m.py:{i}\n"
        for i in range(1, count + 1)
    )
    read = ", ".join(f"%{i}" for i in range(1, count + 1))
    text = f"%1: f32[] = cond(0:i32, %0)  @ m.py:50\ngraph a(%0: f32[256]) {{\n{made}"
    text += f"optimization_barrier({read})\nreturn 0.0:f32\n}}\nreturn %1"
    found = liveness(body(text))
    lines = [f"m.py:{i}" for i in range(count, count - 6, -1)]
    rows = [line.split() for line in str(found).splitlines()]
    at = rows.index(["inside", "cond", "m.py:50", f"{count * (count + 1) // 2}.0", "KiB"])
    assert [row[1] for row in rows[at + 1 : -2]] == lines
    rows = [line.split() for line in found.by_line().splitlines()]
    assert [row[0] for row in rows if row[1:2] == ["temporary"]] == lines
    assert [row[-2:] for row in rows if "more" in row] == [["1.0", "KiB"]] * (count - 6)


def test_what_a_scan_stacks_is_named_by_what_makes_it():
    found = liveness(
        body(SCAN.replace("= sin(%0)", "= sin(%0)  @ m.py:7"), "%0: f32[256], %1: f32[10,256] xs")
    )
    names = [line.split("  ")[0] for line in str(found).splitlines()]
    assert names[2:6] == ["xs", "stacked sin m.py:7", "an argument", "scan"]
    assert "m.py:7" in found.by_line()


def test_table_by_line():
    """The leaves of an argument are one row, and so are the values of a line."""
    inputs = "%0: f32[256] args[0]['a'], %1: f32[256] args[0]['b'], %2: f32[512] batch"
    text = """
      %3: f32[256] = sin(%0)  @ model.py:3
      %4: f32[256] = sin(%1)  @ model.py:3
      %5: f32[256] = mul(%3, %4)  @ model.py:4
      return %5
    """
    rows = [line.split() for line in liveness(body(text, inputs)).by_line().splitlines()[2:]]
    assert ["args[0]", "argument", "2", "2.0", "KiB"] in rows
    assert ["batch", "argument", "1", "2.0", "KiB"] in rows
    assert ["model.py:3", "temporary", "2", "2.0", "KiB"] in rows
    assert ["model.py:4", "output", "1", "1.0", "KiB"] in rows
    assert " ".join(rows[-1]) == "peak, at mul model.py:4 7.0 KiB"


def test_table_by_line_tells_what_a_branch_has_inside():
    chain = "%1: f32[512] = concatenate(%0, %0) {dimension=0}  @ model.py:7\n"
    big = f"{chain}%2: f32[512] = sin(%1)  @ model.py:8\n%3: f32[] = reduce_sum(%2) {{axes=(0)}}"
    text = "%1: f32[] = cond(0:i32, %0)  @ model.py:5\n"
    text += f"graph a(%0: f32[256]) {{\n{big}\nreturn %3\n}}\nreturn %1"
    rows = [line.split() for line in liveness(body(text)).by_line().splitlines()]
    at = rows.index(["inside", "cond", "model.py:5", "4.0", "KiB"])
    assert rows[at + 1 : at + 3] == [
        [f"model.py:{line}", "temporary", "1", "2.0", "KiB"] for line in (7, 8)
    ]


@patient
@given(graphs())
def test_tables_of_any_graph(graph):
    text = liveness(graph).by_line()
    assert text.split("\n")[-1].startswith("peak, at ")


@patient
@given(graphs())
def test_bounds(graph):
    """Against a count that looks at every position by itself."""
    found = liveness(graph)
    assert len(found.bytes) == len(graph.nodes) + 1
    assert found.peak_bytes == max(found.bytes) == found.bytes[found.peak_position]
    assert found.bytes[-1] == found.argument_bytes + found.output_bytes
    for i, total in enumerate(found.bytes):
        live = sum(b.nbytes for b in found.buffers if b.first <= i <= b.last)
        inside = total - live
        assert inside == 0 or (inside > 0 and graph.nodes[i].regions)
    donated = liveness(graph, donated=range(len(graph.inputs)))
    assert all(a <= b for a, b in zip(donated.bytes, found.bytes, strict=True))
