"""Scopes and lines of a rolled scan: `layers_0`, `layers_1`, ...  ->  `layers[0:48]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from ...ir.graph import UNKNOWN, Node, Origin

_NUMBERED = re.compile(r"(.*?)[_\[]?(\d+)\]?")


@dataclass
class Scopes:
    """The origin of the scan, and those of its body's nodes, whose scopes are inside of it."""

    origin: Origin
    outer: str
    moved: dict[Origin, Origin] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Sequence[Node]]) -> Scopes:
        """Read off the blocks: each row has one block's nodes."""
        first, last = _common(rows[0]), _common(rows[-1])
        origin = rows[0][0].origin
        name = _ranged(first, last, len(rows))
        return cls(Origin(origin._source, name, origin.traceback), "/".join(first))

    def inner(self, origin: Origin) -> Origin:
        """The origin without what is common to the first block's scopes."""
        if origin is UNKNOWN or not self.outer:
            return origin
        if origin not in self.moved:
            scope = origin.scope
            inside = scope == self.outer or scope.startswith(f"{self.outer}/")
            scope = scope[len(self.outer) :].removeprefix("/") if inside else scope
            self.moved[origin] = Origin(origin._source, scope, origin.traceback)
        return self.moved[origin]


def _common(nodes: Iterable[Node]) -> list[str]:
    """Leading parts of the scopes of nodes that have one."""
    scopes = [node.scope.split("/") for node in nodes if node.scope]
    return reduce(_shared, scopes) if scopes else []


def _shared(one: list[str], other: list[str]) -> list[str]:
    same = [a == b for a, b in zip(one, other, strict=False)]
    return one[: (*same, False).index(False)]


def _ranged(first: list[str], last: list[str], count: int) -> str:
    """`a/layers_0`, `a/layers_5`  ->  `a/layers[0:6]`; else the common parts and `blocks[0:6]`."""
    same = _shared(first, last)
    if len(first) == len(last) == len(same) + 1:
        one, other = _NUMBERED.fullmatch(first[-1]), _NUMBERED.fullmatch(last[-1])
        if one and other and one[1] == other[1]:
            return "/".join([*same, f"{one[1]}[{one[2]}:{int(other[2]) + 1}]"])
    return "/".join([*same, f"blocks[0:{count}]"])
