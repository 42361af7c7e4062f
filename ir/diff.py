"""What differs between two graphs: nodes that are gone, new or changed, and what that costs.

`match` tells which node is which. A pair is changed where its types, attributes, phase or regions
differ, or where it reads another value that stands in both graphs: that a reader of a node that
is gone reads something else is told by that node. Numbers, names of values, lines and scopes make
no difference; the order of execution does, as memory hangs on it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any
from typing import Literal as Either

from .attrs import AttrPrinter
from .cost import Cost, cost
from .graph import Graph, Literal, Node, Value
from .lexer import printable
from .liveness import liveness
from .match import Side, match
from .printer import literal_text
from .resources import Digests
from .tables import bytes_text, count_text, table

Kind = Either["removed", "added", "changed"]
_SIGNS: Mapping[Kind, str] = {"removed": "-", "added": "+", "changed": "~"}
_LONGEST = 160  # characters of a node's attributes
_MANY = 4  # types of operands or results
_SOURCE_COLUMN = 88


@dataclass(frozen=True)
class Change:
    """A node that is in one graph alone, or changed; `node` is the later one.

    `what` tells each difference of a changed one, `regions` those inside it, by number.
    """

    kind: Kind
    node: Node
    what: tuple[str, ...] = ()
    regions: Mapping[int, Difference] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The node without value numbers, then what changed."""
        code = f"{_SIGNS[self.kind]} {described(self.node)}"
        yield f"{code:<{_SOURCE_COLUMN}}  @ {self.node.source}" if self.node.source else code
        yield from (f"      {each}" for each in self.what)
        for k, inner in self.regions.items():
            yield f"      region {k}:"
            yield from (f"        {line}" for line in inner.lines())

    def to_json(self) -> dict[str, Any]:
        """Return JSON's own types."""
        return {
            "kind": self.kind,
            "op": self.node.op.name,
            "node": described(self.node),
            "phase": self.node.phase,
            "scope": self.node.scope,
            "source": self.node.source,
            "what": list(self.what),
            "regions": {str(k): inner.to_json() for k, inner in self.regions.items()},
        }


@dataclass(frozen=True)
class Difference:
    """What differs between `before` and `after`; prints the changed parts alone.

    `ends` are differences of inputs and outputs, `moved` is how many nodes of both graphs
    stand elsewhere in the order of the others.
    """

    before: Graph = field(repr=False)
    after: Graph = field(repr=False)
    changes: tuple[Change, ...]
    ends: tuple[str, ...]
    moved: int

    @property
    def same(self) -> bool:
        """True when both graphs compute the same in the same order."""
        return not (self.changes or self.ends or self.moved)

    def __str__(self) -> str:
        """Changes by scope and phase, then the counts of ops, FLOPs and bytes that differ."""
        if self.same:
            return "no difference"
        return "\n".join([*map(printable, self.lines()), "", self._summary()])

    def lines(self) -> Iterator[str]:
        """The changes, by scope and phase; equal ones of one line are counted."""
        yield from (f"~ {each}" for each in self.ends)
        groups: dict[tuple[str, str], list[Change]] = {}
        for each in self.changes:
            groups.setdefault((each.node.scope, each.node.phase), []).append(each)
        for (scope, phase), found in groups.items():
            yield f"{scope or '(no scope)'}, {phase}:"
            for lines, times in Counter(tuple(each.lines()) for each in found).items():
                count = f"  ({times} times)" if times > 1 else ""
                yield f"  {lines[0]}{count}"
                yield from (f"  {line}" for line in lines[1:])
        if self.moved:
            yield f"order: {self.moved} of the nodes in both stand elsewhere"

    @cached_property
    def totals(self) -> tuple[tuple[str, int, int], ...]:
        """Nodes, FLOPs, bytes moved and bytes at the peak, before and after."""
        a, b = self._costs
        peaks = [liveness(graph, fused=True).peak_bytes for graph in (self.before, self.after)]
        return (
            ("nodes", a.nodes, b.nodes),
            ("FLOPs", a.flops, b.flops),
            ("bytes moved", a.bytes, b.bytes),
            ("bytes at the peak", peaks[0], peaks[1]),
        )

    @cached_property
    def ops(self) -> Mapping[str, tuple[int, int]]:
        """How often each op runs before and after, where that differs, the largest change first."""
        a, b = ({name: work.nodes for name, work in each.by_op.items()} for each in self._costs)
        counts = {name: (a.get(name, 0), b.get(name, 0)) for name in {**a, **b}}
        changed = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
        return dict(sorted(changed.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item)))

    @cached_property
    def _costs(self) -> tuple[Cost, Cost]:
        return cost(self.before), cost(self.after)

    def _summary(self) -> str:
        ops = [(name, *_counts(a, b, count_text)) for name, (a, b) in self.ops.items()]
        totals = [
            (name, *_counts(a, b, bytes_text if name.startswith("bytes") else count_text))
            for name, a, b in self.totals
        ]
        return table(("op", "before", "after", "change"), ops, totals)

    def to_json(self) -> dict[str, Any]:
        """Return JSON's own types."""
        return {
            "same": self.same,
            "changes": [each.to_json() for each in self.changes],
            "ends": list(self.ends),
            "moved": self.moved,
            "ops": {name: list(pair) for name, pair in self.ops.items()},
            "totals": {name: [a, b] for name, a, b in self.totals},
        }


def _counts(a: int, b: int, text: Any) -> tuple[str, str, str]:
    return text(a), text(b), ("+" if b > a else "") + text(b - a)


def described(node: Node) -> str:
    """`f32[8,32] = tanh(f32[8,32])`: a node without the numbers of its values."""
    reads = [literal_text(v) if isinstance(v, Literal) else str(v.type) for v in node.inputs]
    makes = _some([str(value.type) for value in node.outputs])
    attrs = ", ".join(AttrPrinter(Digests(), lambda graph: f"graph {graph.name}").attrs(node))
    attrs = attrs if len(attrs) <= _LONGEST else f"{attrs[:_LONGEST]}..."
    code = f"{node.op.name}({_some(reads)})" + (f" {{{attrs}}}" if attrs else "")
    return f"{makes} = {code}" if makes else code


def _some(items: Sequence[str]) -> str:
    """All of them, or the first and how many more."""
    shown = items if len(items) <= _MANY else [*items[:_MANY], f"{len(items) - _MANY} more"]
    return ", ".join(shown)


def diff(before: Graph, after: Graph) -> Difference:
    """Compare two graphs by what their nodes compute; numbers of values make no difference.

    Returns:
        What was removed, added and changed, in program order; prints by scope and phase, with a
        table of ops. `.same` is True where nothing was, `.to_json()` has it as plain data.
    """
    a, b = match(before, after)
    compared = _Compared(a, b)
    removed = [(i, Change("removed", before.nodes[i])) for i in a.left()]
    # A removed node stands behind the last one above it that is still there.
    places = list(accumulate(range(len(before.nodes)), lambda k, i: a.pair.get(i, k), initial=-1))
    found = [((places[i], 1, i), change) for i, change in removed]
    for j, node in enumerate(after.nodes):
        if j not in b.pair:
            found.append(((j, 0, 0), Change("added", node)))
        elif (change := compared.change(b.pair[j], j)) is not None:
            found.append(((j, 0, 0), change))
    changes = tuple(change for _, change in sorted(found, key=lambda item: item[0]))
    return Difference(before, after, changes, tuple(compared.ends()), _moved(a))


def _moved(a: Side) -> int:
    """Pairs outside of the longest run of pairs that keeps its order."""
    ends: list[int] = []
    for _, j in sorted(a.pair.items()):
        k = bisect_left(ends, j)
        ends[k : k + 1] = [j]
    return len(a.pair) - len(ends)


class _Compared:
    """Tells how a pair differs."""

    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self.printer = AttrPrinter(Digests(), lambda graph: f"graph {graph.name}")

    def change(self, i: int, j: int) -> Change | None:
        """The change of a node, or None where there is none."""
        x, y = self.a.graph.nodes[i], self.b.graph.nodes[j]
        what = [f"{x.phase} -> {y.phase}"] if x.phase != y.phase else []
        what += self._types(x, y)
        if self.a.own[i] != self.b.own[j]:
            what += self._attrs(x, y)
        what += self._reads("operand", x.inputs, y.inputs)
        regions = {}
        if self.a.own[i] != self.b.own[j]:
            pairs = zip(x.regions, y.regions, strict=False)
            inner = {k: diff(*pair) for k, pair in enumerate(pairs) if pair[0] is not pair[1]}
            regions = {k: each for k, each in inner.items() if not each.same}
            if len(x.regions) != len(y.regions):
                what.append(f"{len(x.regions)} regions -> {len(y.regions)}")
        return Change("changed", y, tuple(what), regions) if what or regions else None

    def _types(self, x: Node, y: Node) -> list[str]:
        pairs = zip(x.outputs, y.outputs, strict=True)
        return [f"{a.type} -> {b.type}" for a, b in pairs if a.type != b.type]

    def _attrs(self, x: Node, y: Node) -> list[str]:
        before, after = (
            dict(each.partition("=")[::2] for each in self.printer.attrs(node)) for node in (x, y)
        )
        return [
            f"{key}: {before.get(key, 'plain')} -> {after.get(key, 'plain')}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]

    def ends(self) -> Iterator[str]:
        """Differences of inputs and outputs."""
        before = {label: value for value, label in self.a.inputs.items()}
        after = {label: value for value, label in self.b.inputs.items()}
        for label in dict.fromkeys([*before, *after]):
            x, y = before.get(label), after.get(label)
            name = (y or x).name or "input"  # type: ignore[union-attr]
            types = [str(value.type) if value else "none" for value in (x, y)]
            if types[0] != types[1]:
                yield f"{name}: {types[0]} -> {types[1]}"
        yield from self._reads("output", self.a.graph.outputs, self.b.graph.outputs)

    def _reads(self, what: str, xs: Sequence[Value], ys: Sequence[Value]) -> Iterator[str]:
        if len(xs) != len(ys):
            yield f"{len(xs)} {what}s -> {len(ys)}"
        for k, (x, y) in enumerate(zip(xs, ys, strict=False)):
            if self._differ(x, y):
                yield f"{what} {k}: {_named(self.a, x)} -> {_named(self.b, y)}"

    def _differ(self, x: Value, y: Value) -> bool:
        """True for two values that stand in both graphs and are not the same."""
        here, there = self.a.known(x), self.b.known(y)
        return here is not None and there is not None and here != there


def _named(side: Side, value: Value) -> str:
    if isinstance(value, Literal):
        return literal_text(value)
    if value in side.inputs:
        return value.name or f"input {side.graph.inputs.index(value)}"
    node = side.graph.nodes[side.home[value][0]]
    return f"{node.op.name} {node.source}".rstrip()
