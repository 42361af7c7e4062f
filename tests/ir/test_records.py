"""Records from JSON: of the declared types, or a `ValueError` that tells the place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from backpass.ir.records import parsed, read


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...]
    pair: tuple[int, str] | None
    names: Mapping[str, float] = field(default_factory=dict)
    rest: Any = None


SOUND = '{"points": [{"x": 1}, {"x": 2, "y": 3, "tags": ["a"]}], "pair": [4, "b"], "rest": [null]}'


def test_a_record_is_read():
    found = read(Shape, parsed(SOUND))
    assert found == Shape((Point(1), Point(2, 3.0, ("a",))), (4, "b"), {}, [None])
    assert type(found.points[1].y) is float
    assert read(Shape, parsed(b'{"points": [], "pair": null, "names": {"a": 1}}')).names == {"a": 1}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"x": 1', '"x": "1"', r"expected int at points\[0\].x, got '1'"),
        ('"x": 1', '"x": true', r"expected int at points\[0\].x"),
        ('"x": 1', '"x": 1.0', r"expected int at points\[0\].x"),
        ('"x": 1', '"x": 9223372036854775808', r"expected int at points\[0\].x"),
        ('"x": 1', '"y": 1', r"a Point lacks 'x' at points\[0\]"),
        ('"x": 1', '"x": 1, "z": 1', r"a Point has no 'z' at points\[0\]"),
        ('"x": 1', '"x": ' + "9" * 5000, "digits"),
        ('"y": 3', '"y": 1e999', r"expected float at points\[1\].y"),
        ('"y": 3', '"y": NaN', "NaN is no number of JSON"),
        ('"y": 3', '"y": -Infinity', "-Infinity is no number"),
        ('["a"]', '"a"', r"expected tuple.* at points\[1\].tags, got 'a'"),
        ('["a"]', "[1]", r"expected str at points\[1\].tags\[0\], got '1'"),
        ('[4, "b"]', "[4]", "expected tuple.* at pair, got 'list'"),
        ('[4, "b"]', "[4, 5]", r"expected str at pair\[1\]"),
        ("[null]", '[null], "names": [1]', "expected .*Mapping.* at names"),
        (SOUND, "[]", "expected Shape, got 'list'"),
        (SOUND, "[" * 100_000, "nests too deep"),
        (SOUND, "", "Expecting value"),
    ],
)
def test_what_is_none_is_told_with_its_place(before, after, told):
    text = SOUND.replace(before, after, 1)
    assert text != SOUND
    with pytest.raises(ValueError, match=told) as caught:
        read(Shape, parsed(text))
    assert len(str(caught.value)) < 300


def test_bytes_that_are_no_text():
    with pytest.raises(ValueError):
        parsed(b'{"a": "\xff"}')
