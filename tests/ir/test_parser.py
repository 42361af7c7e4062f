"""Bad text ends in a `ParseError` that points at the fault; nothing else ever happens."""

import re
import time
import zlib
from base64 import b64encode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpass import ParseError
from backpass.ir import OPS, Graph, parse, print_graph
from backpass.ir.graph import Node
from backpass.ir.lexer import Cursor
from backpass.ir.parser import LIMITS, Limits
from ir.graphs import graphs, patient
from ir.test_text import TEXTS


def whole(body: str) -> str:
    return f"backpass.ir 1\ngraph f(%0: f32[2]) {{\n{body}\nreturn\n}}\n"


WHOLE = {
    "": "line 1, column 1: expected 'backpass.ir 1' at the top",
    "graph f() {}": "line 1, column 1: expected 'backpass.ir 1' at the top",
    "backpass.ir 2\ngraph f() {return}": "version 2 of the text form, backpass reads version 1",
    "backpass.ir 1\n": "expected a graph",
    "backpass.ir 1\ngraph f": "expected '(' before the inputs",
    "backpass.ir 1\ngraph (": "expected the name of a graph",
    "backpass.ir 1\ngraph f(": "expected a value and its type",
    "backpass.ir 1\ngraph f(%0: f32)": "expected a type such as f32[8,16]",
    "backpass.ir 1\ngraph f(%0: f31[])": "line 2, column 13: unknown dtype 'f31'",
    "backpass.ir 1\ngraph f(%0: key<x>[])": "unknown dtype 'key<x>'",
    "backpass.ir 1\ngraph f(%0: f32[] %1": "expected ')' or a comma",
    "backpass.ir 1\ngraph f(%0: f32[], %0: f32[])": "%0 is defined twice",
    "backpass.ir 1\ngraph f() {": "expected a node",
    "backpass.ir 1\ngraph f() { return": "expected an operand",
    "backpass.ir 1\ngraph f() { return } x": "expected the end of the text",
    "backpass.ir 1\ngraph f() { return }\nresources {": "expected a constant such as",
    "backpass.ir 1\ngraph f() { return }\nresources {}x": "nothing may follow the resources",
}

BODIES = {
    "%1: f32[2] = foo(%0)": "line 3, column 14: unknown op 'foo'",
    "%1: f32[2] neg(%0)": "expected '=' after the outputs",
    "%1: f32[2] = neg(%2)": "line 3, column 18: %2 is not defined above",
    "%1: f32[2] = add(%0, %1)": "%1 is not defined above",
    "%1: f32[2] = add(%0, 1.0:f32, %9)": "%9 is not defined above",
    "%1: f32[2] = add(%0, 1.0)": "expected an operand such as",
    "%1: f32[2] = add(%0, 1.5:i32)": "1.5 is not an integer",
    "%1: f32[2] = add(%0, 300:i8)": "300 does not fit int8",
    "%1: f32[2] = add(%0, 1.0:g32)": "unknown dtype 'g32'",
    "%1: f32[2] = neg(%0": "expected ')' or a comma",
    "%1: f32[2] = neg %0": "expected '(' before the operands",
    "%1: f32[2] = neg(undefined<f32[2]>)": "expected an operand",
    "%0: f32[2] = neg(%0)": "%0 is defined twice",
    "%1: f32[2] = neg(%0) %2: f32[2] = neg(%0)": "expected the end of the line",
    "%1: f32[2] = neg(%0) {": "expected '=' after the attribute 'return'",
    "%1: f32[2] = neg(%0) {(": "expected an attribute",
    "%1: f32[2] = neg(%0) {a}": "expected '=' after the attribute 'a'",
    "%1: f32[2] = neg(%0) {a=}": "expected a value for attribute 'a' of neg",
    "%1: f32[2] = neg(%0) {a=1, a=2}": "attribute 'a' is given twice",
    "%1: f32[2] = neg(%0) {a=1 b=2}": "expected '}' after the attributes",
    "%1: f32[2] = neg(%0) {a=300:i8}": "line 3, column 25: 300 does not fit int8",
    "%1: f32[2] = neg(%0) {a=(1}": "expected ')' or a comma",
    '%1: f32[2] = neg(%0) {a="x}': "expected a string that ends on its line",
    '%1: f32[2] = neg(%0) {a="\\q"}': "unknown escape",
    '%1: f32[2] = neg(%0) {a="\\u{110000}"}': "unknown escape",
    "%1: f32[2] = neg(%0) {a=foo}": "unknown value 'foo' for attribute 'a' of neg",
    "%1: f32[2] = neg(%0) {a=__import__('os')}": "expected a value for attribute 'a'",
    "%1: f32[2] = neg(%0) {a=Precision.FOO}": "Precision has no member 'FOO'",
    "%1: f32[2] = neg(%0) {a=Precision.__class__}": "Precision has no member '__class__'",
    "%1: f32[2] = neg(%0) {a=GatherDimensionNumbers(x=1)}": "GatherDimensionNumbers cannot be",
    "%1: f32[2] = neg(%0) {a=policy.foo}": "unknown policy 'foo'",
    "%1: f32[2] = neg(%0) {a=prng<foo>}": "unknown PRNG 'foo'",
    "%1: f32[2] = neg(%0) {a=slice(1)}": "a slice wants start, stop and step",
    "%1: f32[2] = neg(%0) {a={[]: 1}}": "a list cannot be a key",
    "%1: f32[2] = neg(%0) {a=frozenset{[]}}": "a list cannot be a key",
    "%1: f32[2] = neg(%0) {a=frozenset{nan}}": "nan cannot be a key",
    "%1: f32[2] = neg(%0) {a={(1, (nan,)): 1}}": "nan cannot be a key",
    "%1: f32[2] = neg(%0) {a=slice(dense<f32[2] 0.0>, 1, 2)}": "a ndarray cannot be a key or a part",
    "%1: f32[2] = neg(%0) {a=P(dense<f32[2] 0.0>)}": "a PartitionSpec wants None, or names",
    "%1: f32[2] = neg(%0) {a=P(None,(0,))}": "a PartitionSpec wants None, or names",
    "%1: f32[2] = neg(%0) {a=Tolerance(atol=dense<f32[2] 0.0>)}": "a ndarray cannot be a key",
    "%1: f32[2] = neg(%0) {a=dense<f32[3] [1.0]>}": "f32[3] wants 3 elements, got 1",
    "%1: f32[2] = neg(%0) {a=dense<f32[1] [x]>}": "expected a number",
    "%1: f32[2] = neg(%0) {a=dense<f32[9999999999] 0.0>}": "larger than the limit",
    "%1: f32[2] = neg(%0) {a=dense<key<fry>[1] 0>}": "a constant cannot have the type",
    '%1: f32[2] = neg(%0) {a=keys<"foo" 3>}': "keys cannot be made",
    '%1: f32[2] = neg(%0) {a=keys<"fry" dense<u32[3] 0>>}': "keys cannot be made",
    "%1: f32[2] = neg(%0) {a=@c0}": "there is no constant @c0",
    '%1: f32[2] = neg(%0) {f=opaque<"function g">}': (
        "attribute 'f' of neg is a Python object that text cannot bring back: function g"
    ),
    "%1: f32[2] = neg(%0) of %0": "`of` wants a forward node of the same graph",
    "%1: f32[2] = neg(%0) of #7": "`of` wants a forward node of the same graph",
    "%1: f32[2] = neg(%0)\n%2: f32[2] = neg(%0) of %1": "`of` stands at a backward node alone",
    "%1: f32[2] = neg(%0) @ a:1\nbackward:\n%2: f32[2] = neg(%0) of %1 @ b:1": (
        "line 5, column 1: a backward node has the source and scope of its forward node"
    ),
    "%1: f32[2] = neg(%0) @": "expected a source",
    "graph g() { return }": "a region belongs to the node above it",
    "%1: f32[2] = neg(%0)\ngraph g() { return %0 }": "%0 is not defined above",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [*WHOLE.items(), *((whole(body), message) for body, message in BODIES.items())],
)
def test_message(text, message):
    with pytest.raises(ParseError) as caught:
        parse(text)
    first, line, caret = str(caught.value).split("\n")
    assert message in first
    number, column = map(int, re.findall(r"line (\d+), column (\d+)", first)[0])
    shown = ([*text.split("\n"), ""])[number - 1]
    assert line.strip() == shown.strip()[:100].strip() or len(shown) > 100
    assert caret.endswith("^") and len(caret) - 5 <= column


def test_the_caret_of_a_long_line_stays_near():
    with pytest.raises(ParseError) as caught:
        parse(whole(f"{'%0, ' * 500}"))
    assert max(map(len, str(caught.value).split("\n"))) < 140
    with pytest.raises(ParseError, match="unknown op") as caught:
        parse(whole(f"%1: f32[2] = {'x' * 5000}()"))
    assert len(str(caught.value).split("\n")[1]) < 140


@pytest.mark.parametrize("at", [0, 49, 50, 51, 120, 239, 240])
def test_a_hundred_characters_around_the_fault_are_shown(at):
    line = "".join(f"{i:04}" for i in range(60))
    with pytest.raises(ParseError) as caught:
        Cursor(f"first\n{line}\nlast").fail("no", len("first\n") + at)
    left = max(0, at - 50)
    assert str(caught.value).split("\n") == [
        f"line 2, column {at + 1}: no", f"    {line[left : left + 100]}", f"    {' ' * (at - left)}^",
    ]  # fmt: skip


@pytest.mark.parametrize("length, shown", [(300, "x" * 300), (301, "x" * 300 + "...")])
def test_a_message_that_quotes_a_long_name_is_cut(length, shown):
    with pytest.raises(ParseError) as caught:
        Cursor("").fail("x" * length)
    assert str(caught.value).split("\n")[0] == f"line 1, column 1: {shown}"


def test_equal_types_and_attributes_are_one_object():
    """What is told by identity, such as the time of a node on a device, is told once."""
    line = "f32[2] = transpose({}) {{permutation=(0,)}} @ m.py:1\n"
    graph = parse(whole("".join(f"%{i}: {line.format(f'%{i - 1}')}" for i in range(1, 5))))
    assert len({id(node.attrs) for node in graph.nodes}) == 1
    assert len({id(v.type) for v in (*graph.inputs, *(n.output for n in graph.nodes))}) == 1
    other = parse(whole("%1: f32[2] = neg(%0)\n%2: f16[2] = neg(%1)\n%3: f32[2] = neg(%2)\n"))
    assert [
        node.output.type.dtype.name for node in other.nodes
    ] == "float32 float16 float32".split()


def packed(raw: bytes) -> str:
    return b64encode(zlib.compress(raw, 9)).decode()


RESOURCES = {
    f"@c0 = f32[2] zlib({packed(bytes(8))})": None,
    f"@c0 = f32[2] zlib({packed(bytes(7))})": "wants 8 bytes, got others",
    f"@c0 = f32[2] zlib({packed(bytes(9))})": "wants 8 bytes, got others",
    f"@c0 = f32[2] zlib({packed(bytes(8))[:-4]})": "wants 8 bytes, got others",
    f"@c0 = f32[2] zlib({packed(bytes(8)) + packed(bytes(8))})": "damaged constant",
    "@c0 = f32[2] zlib(AAAA)": "damaged constant",
    "@c0 = f32[2] zlib(A)": "damaged constant",
    f"@c0 = bool[2] zlib({packed(bytes([1, 2]))})": "booleans wants bytes 0 and 1",
    f"@c0 = f32[99999999999] zlib({packed(bytes(8))})": "larger than the limit",
    "@c0 = f32[2] pickle(AAAA)": "expected 'zlib('",
    "@c0 = f32[2]* zlib(AAAA)": "a constant cannot have the type",
    "@c1 = f32[2] zlib(AAAA)": "there is no constant @c0",
    "@c0 = f32[] zlib(AA)\n@c0 = f32[] zlib(AA)": "@c0 is defined twice",
    "@c0 = f32[2] zlib(": "expected ')'",
}


@pytest.mark.parametrize(("section", "message"), RESOURCES.items())
def test_resources(section, message):
    text = whole("%1: f32[2] = constant() {value=@c0}") + f"\nresources {{\n{section}\n}}\n"
    if message is None:
        assert not np.any(parse(text).nodes[0].attrs["value"])
    else:
        with pytest.raises(ParseError, match=re.escape(message)):
            parse(text)


def test_a_decompression_bomb_ends_early():
    bomb = packed(bytes(1 << 27))
    text = whole("%1: f32[2] = constant() {value=@c0}")
    for kind in ("f32[2]", "u8[134217728]", "u8[67108864]"):
        begin = time.process_time()
        with pytest.raises(ParseError, match="limit|wants"):
            parse(f"{text}\nresources {{\n  @c0 = {kind} zlib({bomb})\n}}\n")
        assert time.process_time() - begin < 2


def constants(*arrays):
    nodes = [Node(OPS["constant"], (), (), {"value": array}) for array in arrays]
    return Graph("f", (), tuple(nodes), ())


def test_the_limit_of_constants_is_on_the_bytes_of_all_of_them():
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, 5000, np.uint8) for _ in range(2))
    size = len(zlib.compress(one.tobytes()))
    whole = print_graph(constants(one, one), resource_limit=size)
    assert whole.count("@c0") == 3 and "opaque" not in whole
    text = print_graph(constants(one, other), resource_limit=size)
    assert re.findall("value=(@c0|opaque)", text) == ["@c0", "opaque"]
    assert "opaque" in print_graph(constants(one), resource_limit=size - 1)
    parts = rng.integers(0, 256, 5 << 19, np.uint8)  # in pieces of a MiB
    size = len(zlib.compress(parts.tobytes()))
    written = [
        "opaque" not in print_graph(constants(parts), resource_limit=size - k) for k in (0, 1)
    ]
    assert written == [True, False]


@pytest.mark.parametrize("array, text", [
    (np.zeros(1), "[0.0]"), (np.zeros(2), "0.0"), (np.array([0.0, 1.0]), "[0.0, 1.0]"),
    (np.zeros(1000), "0.0"), (np.zeros(0), "[]"), (np.array([0.0, -0.0]), "[0.0, -0.0]"),
])  # fmt: skip
def test_equal_elements_are_written_once(array, text):
    assert f"value=dense<f64[{array.size}] {text}>" in print_graph(constants(array))


@pytest.mark.parametrize("count, inline", [(16, True), (17, False)])
def test_small_constants_stand_in_place(count, inline):
    text = print_graph(constants(np.arange(count)))
    assert ("resources" not in text) == inline
    assert all(len(line) <= 100 for line in text.splitlines() if "=" not in line)


def test_constants_over_the_limit_are_not_written():
    graph = parse(TEXTS["constants"])
    text = print_graph(graph, resource_limit=10)
    assert "u8[20], 20 bytes: over the limit of the resources" in text
    with pytest.raises(ParseError, match="over the limit of the resources"):
        parse(text)


def regions(depth: int) -> str:
    return "backpass.ir 1\n" + "graph g() {\njit()\n" * depth + "return }\n" * depth


@pytest.mark.parametrize("depth", [100, 100_000])
@pytest.mark.parametrize(
    "nest",
    [
        lambda n: whole("%1: f32[2] = neg(%0) {a=" + "(" * n + ")" * n + "}"),
        lambda n: whole("%1: f32[2] = neg(%0) {a=" + "{1:" * n + "}" * n + "}"),
        lambda n: whole("%1: f32[2] = neg(%0) {a=" + "graph g() { jit() {a=" * n + "}" * n + "}"),
        regions,
    ],
)
def test_deep_nesting_is_refused(nest, depth):
    with pytest.raises(ParseError, match="deep"):
        parse(nest(depth))


def test_values_beside_each_other_are_not_deep():
    def text(depth: int) -> str:
        values = ",".join(["(" * depth + ")" * depth] * 9)
        return whole(f"%1: f32[2] = neg(%0) {{a=({values})}}")

    limits = Limits(depth=8)
    assert parse(text(7), limits=limits)
    with pytest.raises(ParseError, match="deep"):
        parse(text(8), limits=limits)


def test_graphs_beside_each_other_are_not_deep():
    """What follows them may be as deep as without them, and no deeper."""

    def text(depth: int) -> str:
        flat = "graph g() {\nreturn }\n"
        deep = "graph g() {\njit()\n" * depth + flat + "return }\n" * depth
        return "backpass.ir 1\ngraph f() {\njit()\n" + flat * 9 + deep + "return }\n"

    limits = Limits(depth=8)
    assert parse(text(6), limits=limits)
    with pytest.raises(ParseError, match="deep"):
        parse(text(7), limits=limits)


def test_a_link_to_a_node_without_a_line():
    graph = parse(
        "backpass.ir 1\ngraph f(%0: f32[]) {\nforward:\n  %1: f32[] = sin(%0)\n  %2: f32[] = sin(%1)\n"
        "backward:\n  %3: f32[] = cos(%0) of %1\n  return %2, %3\n}"
    )
    first, second, last = graph.nodes
    assert graph.forward_of == {last: first}
    assert second.origin is not first.origin


def test_limits():
    assert LIMITS == Limits(characters=2**28, nodes=2**21, depth=40, constant_bytes=2**26)
    text = TEXTS["training_step"]
    assert parse(text, limits=Limits(nodes=8))
    with pytest.raises(ParseError, match="more than 7 nodes"):
        parse(text, limits=Limits(nodes=7))
    with pytest.raises(ParseError, match="the limit is 10"):
        parse(text, limits=Limits(characters=10))
    with pytest.raises(ParseError, match="larger than the limit"):
        parse(TEXTS["constants"], limits=Limits(constant_bytes=100))


def check(text: str) -> None:
    """Parse, and print what parses; only `ParseError` may come out."""
    try:
        graph = parse(text)
    except ParseError as error:
        assert re.match(r"line \d+, column \d+: ", str(error))
    else:
        assert parse(str(graph)) == graph


SEEDS = st.sampled_from(sorted(TEXTS.values()))
WORDS = """
    % %0 %1 : , ( ) { } [ ] < > = * - @ # " \\ // of return graph forward: inf nan 0x1 1e9 1:f32
    f32[2] key<fry> dense< opaque< @c0 keys< slice( None Precision. resources { ! \0 é
"""
PIECES = st.sampled_from(WORDS.split())


@patient
@given(SEEDS, st.data())
def test_mutations(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(PIECES | st.text(max_size=3)) + text[end:]
    check(text)


@patient
@given(SEEDS, st.data())
def test_lines_in_another_order(text, data):
    lines = data.draw(st.permutations(text.split("\n")))
    check("\n".join([text.split("\n")[0], *lines]))


@patient
@given(graphs(hostile=True), st.data())
def test_cut_off(graph, data):
    text = str(graph)
    check(text[: data.draw(st.integers(0, len(text)))])


@given(st.text(max_size=200))
def test_any_text(text):
    check(text)
    check("backpass.ir 1\n" + text)


@pytest.mark.parametrize(
    "text",
    [
        "backpass.ir 1" + " " * 1_000_000,
        "backpass.ir 1\n" + "// " * 300_000,
        "backpass.ir 1\n" + "/" * 1_000_000,
        whole('%1: f32[2] = name(%0) {name="' + "\\" * 300_001),
        whole("%1: f32[2] = add(" + "%0, " * 100_000),
        whole("%1: f32[2] = neg(%0) {a=" + "1" * 1_000_000 + "}"),
        whole("%1: f32[2] = neg(%0) {a=" + "0." * 500_000 + "}"),
        whole("%1: f32[2] = neg(%0)" + " " * 1_000_000 + "x"),
        whole("%1: f32[2] = neg(%0) @ " + "a/" * 500_000 + "/"),
        whole("%1: f32[" + "1," * 500_000),
        whole("a" * 1_000_000),
        whole('"' * 100_001),
        "\nresources {" * 50_000,
    ],
    ids=lambda text: text[:60],
)
def test_no_text_takes_long(text):
    begin = time.process_time()
    check(text)
    assert time.process_time() - begin < 3
