"""Keys of graphs: equal where they compute the same, names of values apart."""

from dataclasses import replace

import pytest

from backpass.ir import parse
from backpass.ir.fingerprint import digest, fingerprint

TEXT = """backpass.ir 1
graph f(%0: f32[4] x) {
  %1: f32[4] = integer_pow(%0) {y=2}
  %2: f32[4] = add(%1, 0.5:f32)
  return %2, %1
}
"""


def test_names_and_lines_are_no_part_of_it():
    other = TEXT.replace("%1", "%7").replace("] x", "] z").replace("{y=2}", "{y=2} @ m.py:1")
    assert fingerprint(parse(other)) == fingerprint(parse(TEXT))
    assert hash(fingerprint(parse(other))) == hash(fingerprint(parse(TEXT)))


@pytest.mark.parametrize("old, new", [
    ("y=2", "y=3"), ("0.5:f32", "0.25:f32"), ("add(%1, 0.5", "sub(%1, 0.5"), ("return %2, %1", "return %2"),
    ("(%0: f32[4] x)", "(%0: f32[5] x)"), ("add(%1", "add(%0"), ("%2, %1", "%1, %2"),
])  # fmt: skip
def test_what_is_computed_is(old, new):
    assert old in TEXT
    assert fingerprint(parse(TEXT.replace(old, new))) != fingerprint(parse(TEXT))


def test_what_cannot_be_a_key_is_one_by_itself():
    """Such as a function's own object that has no hash."""
    graph = parse(TEXT)

    def held(thing):
        first, *rest = graph.nodes
        return fingerprint(replace(graph, nodes=(replace(first, attrs={"y": thing}), *rest)))

    one, other = {1}, {1}
    assert held(one) == held(one) and hash(held(one)) == hash(held(one))
    assert held(one) != held(other) and held(one) != held(1)


CALL = """backpass.ir 1
graph f(%0: f32[4]) {
  %1: f32[4] = sin(%0)
  %2: f32[4] = jit(%1)
    graph g(%0: f32[4]) {
      %1: f32[4] = add(%0, 0.5:f32)
      return %1
    }
  return %2
}
"""


def test_a_digest_tells_ops_types_and_wiring():
    """Of regions too; names, lines, phases and attributes are left out."""
    texts = [CALL] + [
        CALL.replace(old, new)
        for old, new in (
            ("sin", "cos"), ("0.5", "0.25"), ("add(%0,", "add(0.5:f32,"), ("add", "sub"), ("jit(%1)", "jit(%0)"),
            ("return %2", "return %1"), ("return %2", "return %2, %2"), ("f32", "f16"), ("[4]", "[5]"),
            ("      return %1", "      return %0"),
        )
    ]  # fmt: skip
    assert len({digest(parse(text)) for text in texts}) == len(texts)
    same = CALL.replace("sin(%0)", "sin(%0) {accuracy=2} @ m.py:1  block").replace(
        "graph g", "graph h"
    )
    for text in (same, same.replace("{\n  %1", "{\nbackward:\n  %1")):
        assert digest(parse(text)) == digest(parse(CALL))
