"""Blocks that are alike node by node, and how they are wired to each other and to the rest.

An operand of a block's node comes from the same block, from the same place of the block before
(in the first block from elsewhere), or from elsewhere: the same value for all blocks, or one for
each. Nothing else can be rolled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ...ir.graph import Graph, Literal, Node, Value, same_attr
from ..fuse.report import told
from .runs import Run
from .sequence import acts, sliced

Place = tuple[int, int]  # of a value in its block: the node's position, and which output
Wire = tuple[str, int, int]  # "made" or "before" and a place, or "given"
GIVEN: Wire = ("given", -1, -1)


@dataclass(frozen=True)
class Match:
    """Blocks of a graph, one row of nodes each, that can become one scan.

    `wires` tells for each node of a block where its operands come from. `views` are positions of
    slices that differ from block to block, and stay where they are. `escapes` are the places of
    values that others read, those of the last block's carries apart.
    """

    rows: tuple[tuple[Node, ...], ...]
    wires: tuple[tuple[Wire, ...], ...]
    views: frozenset[int]
    escapes: tuple[Place, ...]

    @property
    def length(self) -> int:
        """Number of blocks."""
        return len(self.rows)

    @cached_property
    def members(self) -> frozenset[Node]:
        """The nodes that the scan takes the place of."""
        return frozenset(n for row in self.rows for j, n in enumerate(row) if j not in self.views)

    @cached_property
    def carries(self) -> tuple[tuple[Place, Value], ...]:
        """What a block reads of the one before: its place there, and the first block's."""
        found = [
            ((at, which), value)
            for wires, node in zip(self.wires, self.rows[0], strict=True)
            for (kind, at, which), value in zip(wires, node.inputs, strict=True)
            if kind == "before"
        ]
        return tuple(dict.fromkeys(found))

    @cached_property
    def given(self) -> tuple[tuple[Value, ...], ...]:
        """What the blocks read of elsewhere, one value for each block; views, too."""
        found = [tuple(row[j].output for row in self.rows) for j in sorted(self.views)]
        for j, wires in enumerate(self.wires):
            if j in self.views:
                continue
            for slot, wire in enumerate(wires):
                if wire == GIVEN:
                    found.append(tuple(row[j].inputs[slot] for row in self.rows))
        return tuple(dict.fromkeys(found))

    @property
    def inputs(self) -> list[Value]:
        """All values that the blocks read of elsewhere."""
        starts = [value for _, value in self.carries]
        return [*starts, *(v for values in self.given for v in values)]


def match(graph: Graph, nodes: Sequence[Node], run: Run, least: int) -> Match | str:
    """Return the longest stretch of blocks that can be rolled, or why there is none.

    Blocks of which none reads what another made are no chain, and need no reason. `nodes` are
    those of the sequence that `run` is of.
    """
    start = _cut(nodes, run)
    count = (run.stop - start) // run.period
    bounds = range(start, start + count * run.period, run.period)
    rows = [tuple(nodes[i : i + run.period]) for i in bounds]
    rows, wires, views, reason = _Wiring(rows).longest()
    if len(rows) < least:
        return reason
    while len(rows) >= least:
        escapes, last = _escapes(graph, rows, wires, views)
        if not last:
            made = Match(tuple(rows), tuple(wires), views, escapes)
            return (_tangled(graph, made) or made) if made.carries else ""
        rows = rows[:-1]  # what the last block makes besides is read: it stays as it is
    return "what the blocks make is read elsewhere"


def _cut(nodes: Sequence[Node], run: Run) -> int:
    """Where the blocks begin: fewest bytes go from one to the next there, and most blocks fit."""
    start, period = run.start, run.period
    part = nodes[start : run.stop]
    last = {v: i for i, node in enumerate(part) for v in node.inputs}
    change = [0] * (2 * period + 2)
    for i, node in enumerate(part[: 2 * period]):
        for v in node.outputs:
            if v in last:
                change[i + 1] += v.type.nbytes
                change[min(last[v], 2 * period) + 1] -= v.type.nbytes
    live = list(accumulate(change))
    best = min(
        range(period), key=lambda i: (live[i + period], -((run.stop - start - i) // period), i)
    )
    return start + best


@dataclass(frozen=True)
class _Wiring:
    """Rows of nodes with equal labels, and where in them values are made."""

    rows: Sequence[tuple[Node, ...]]

    @cached_property
    def made(self) -> Mapping[Value, tuple[int, int, int]]:
        return {
            v: (k, j, which)
            for k, row in enumerate(self.rows)
            for j, node in enumerate(row)
            for which, v in enumerate(node.outputs)
        }

    def longest(
        self,
    ) -> tuple[list[tuple[Node, ...]], list[tuple[Wire, ...]], frozenset[int], str]:
        """The most blocks in a row that are alike, and why there are not more."""
        best, at, why = (0, 1), 0, ""
        while at < len(self.rows) - 1:
            stop, reason = self._stretch(at)
            why = why or reason
            if stop - at > best[1] - best[0]:
                best = at, stop
            at = max(stop - 1, at + 1)
        first, stop = best
        rows = list(self.rows[first:stop])
        at = min(first + 1, stop - 1)
        wires = [self._wires(node, at, first) for node in self.rows[at]]
        return rows, wires, self._views(rows), why

    def _stretch(self, first: int) -> tuple[int, str]:
        """The block before which the likeness to the second block from `first` on ends; and why."""
        steady = [self._wires(node, first + 1, first) for node in self.rows[first + 1]]
        for j, node in enumerate(self.rows[first]):
            begins = tuple(GIVEN if wire[0] == "before" else wire for wire in steady[j])
            if self._wires(node, first, first) != begins:
                return first + 1, self._differ(first, j)
        for k in range(first + 1, len(self.rows)):
            for j, node in enumerate(self.rows[k]):
                if self._wires(node, k, first) != steady[j] or not self._alike(j, first, k, steady):
                    return k, self._differ(k - 1, j)
        return len(self.rows), ""

    def _wires(self, node: Node, k: int, first: int) -> tuple[Wire, ...]:
        found: list[Wire] = []
        for value in node.inputs:
            block, j, which = self.made.get(value, (-1, -1, -1))
            if block == k:
                found.append(("made", j, which))
            elif block == k - 1 and block >= first:
                found.append(("before", j, which))
            elif block < first:
                found.append(GIVEN)
            else:
                found.append(("far", k - block, j))
        return tuple(found)

    def _alike(self, j: int, k: int, other: int, steady: Sequence[tuple[Wire, ...]]) -> bool:
        """What differs in attributes is a slice of what is given."""
        node = self.rows[k][j]
        return not sliced(node) or steady[j] == (GIVEN,) or _same_slice(node, self.rows[other][j])

    def _views(self, rows: Sequence[tuple[Node, ...]]) -> frozenset[int]:
        return frozenset(
            j
            for j, node in enumerate(rows[0])
            if sliced(node) and not all(_same_slice(node, row[j]) for row in rows[1:])
        )

    def _differ(self, k: int, j: int) -> str:
        return f"blocks {k} and {k + 1} differ in what they read: {told(self.rows[k + 1][j])}"


def _same_slice(one: Node, other: Node) -> bool:
    return same_attr(one.attrs["start_indices"], other.attrs["start_indices"])


def read_elsewhere(graph: Graph, members: Set[Node]) -> set[Value]:
    """Values that others than `members` read, or that the graph returns."""
    read = {v for node in graph.nodes if node not in members for v in node.inputs}
    return read.union(graph.outputs)


def _escapes(
    graph: Graph,
    rows: Sequence[tuple[Node, ...]],
    wires: Sequence[tuple[Wire, ...]],
    views: Set[int],
) -> tuple[tuple[Place, ...], bool]:
    """Places of what others read, but for the last block's carries; True where only its else is."""
    members = {node for row in rows for j, node in enumerate(row) if j not in views}
    read = read_elsewhere(graph, members)
    carried = {(j, which) for each in wires for kind, j, which in each if kind == "before"}
    blocks: dict[Place, set[int]] = {}
    for k, row in enumerate(rows):
        for j, node in enumerate(row):
            for which, value in enumerate(node.outputs):
                if j not in views and value in read:
                    blocks.setdefault((j, which), set()).add(k)
    last = {len(rows) - 1}
    escapes = tuple(at for at, ks in blocks.items() if not (ks == last and at in carried))
    return escapes, any(blocks[at] == last for at in escapes)


def _tangled(graph: Graph, found: Match) -> str:
    """Why the blocks can't all run at once; empty where they can."""
    members = found.members
    late: set[Value] = set()
    begun = False
    for node in graph.nodes:
        begun = begun or node in members
        if begun and (node in members or acts(node) or not late.isdisjoint(node.inputs)):
            late.update(node.outputs)
    for value in found.inputs:
        if value in late:
            node = graph.producer[value]
            return f"a block reads what is only known when others have run: {told(node)}"
    return ""


def shared(values: Sequence[Value]) -> bool:
    """True for one value, or one number, in all places."""
    return all(one is other or _same_number(one, other) for one, other in pairwise(values))


def _same_number(one: Value, other: Value) -> bool:
    both = isinstance(one, Literal) and isinstance(other, Literal)
    return both and one.type == other.type and same_attr(one.data, other.data)  # type: ignore[attr-defined]
