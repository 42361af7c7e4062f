"""What a scan stacks for its backward scan: less, and in nested scans.

c, ys, stack = scan(f)(c, xs);  ct = reverse scan(b)(ct, stack, xs)
->  f stacks fewer values, b makes the rest again from them and from the carry

with a segment of so many steps: an outer scan stacks its carry alone; its backward step runs
the segment forward, stacking as above, and then backward. The last steps, where the segments do
not fill the length, are a pair by themselves, as without segments.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter

from ...ir.builder import Builder
from ...ir.device import SLICED, DeviceSpec
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ..cse import stacked_once
from ..dce import Dce
from ..rewriter import substituted
from ..scan import Kept, strip_of
from .joint import Joint
from .keep import closure, kept, ladder, prices
from .nested import Nested
from .pairs import Pair, pairs
from .replay import Replay
from .segments import chain

LEVELS = 64  # of what all pairs stack; where their ladders have more rungs, one for each price


@dataclass(frozen=True)
class Scans:
    """The pairs of a joint graph (see `pairs` for `fleeting`), and what each may stack."""

    graph: Graph
    spec: DeviceSpec
    fleeting: bool = False

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs in order."""
        return pairs(self.graph, fleeting=self.fleeting)

    @cached_property
    def sets(self) -> list[tuple[frozenset[Value], ...]]:
        """What the pairs stack at each level, from most to least.

        The pairs go down their ladders together, first where a second frees most bytes: at some
        level each stacks what `quickest` has it stack.
        """
        ladders = [_ladder(pair, self.spec) for pair in self.pairs]
        moves = [
            (slope, at, rung)
            for at, (pair, ladder) in enumerate(zip(self.pairs, ladders, strict=True))
            for rung, slope in enumerate(_slopes(pair, ladder, self.spec), 1)
        ]
        if len(moves) > LEVELS:
            grid = [1 / price for price in prices(self.spec)]
            moves = [(float(bisect(grid, slope)), at, rung) for slope, at, rung in moves]
        now = [0] * len(ladders)
        found = [tuple(ladder[0] for ladder in ladders)] if ladders else []
        for _, group in groupby(sorted(moves), key=itemgetter(0)):
            for _, at, rung in group:
                now[at] = rung
            found.append(tuple(ladder[at] for ladder, at in zip(ladders, now, strict=True)))
        return found

    @property
    def levels(self) -> int:
        """How many sets there are to choose from."""
        return len(self.sets)

    @property
    def longest(self) -> int:
        """Steps of the longest scan of a pair."""
        return max((pair.forward.length for pair in self.pairs), default=0)

    @property
    def segments(self) -> list[int]:
        """Segment lengths of the longest scan that are worth a try; 0 is no segments.

        The carries of all segments and the stacks of one are fewest around the square root.
        """
        middle = self.longest**0.5
        near = {strip_of(self.longest, by * middle) for by in (0.5, 1, 2)}
        return [0, *sorted(near - {0})]

    def leaner(self, level: int, segment: int = 0) -> Graph:
        """Return the graph with its scans stacking less: the more so the higher the level.

        With a `segment` the forward scans run again, so many steps of the longest one at a time,
        fewer in proportion to the square roots in shorter ones.
        """
        lean = [
            _lean(pair, self.spec, keep, self._segment(pair, segment))
            for pair, keep in zip(self.pairs, self.sets[level], strict=True)
        ]
        return _late(_rewritten(self.graph, lean))

    def quickest(self) -> Graph:
        """Return the graph whose scans stack what takes longer to make again than to pass on."""
        price = self.spec.bytes_per_s / (2 * SLICED)
        sets = [(pair, _kept(pair, self.spec, price)) for pair in self.pairs]
        lean = [
            _lean(pair, self.spec, keep, 0)
            for pair, keep in sets
            if _size(pair, keep) < _size(pair, pair.stacked)
        ]
        return _late(_rewritten(self.graph, lean)) if lean else self.graph

    def _segment(self, pair: Pair, segment: int) -> int:
        length = pair.forward.length
        if length == self.longest:
            return segment if 1 < segment < length else 0
        return strip_of(length, segment * (length / self.longest) ** 0.5) if segment else 0


def _late(graph: Graph) -> Graph:
    """The graph with all its stacks made when their scans begin; itself if it has none."""
    nodes = tuple(map(_late_node, graph.nodes))
    same = all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if same else replace(graph, nodes=nodes)


def _late_node(node: Node) -> Node:
    regions = tuple(map(_late, node.regions))
    if node.op.name == "scan" and len(node.outputs) > node.attrs["num_carry"]:
        return replace(node, attrs={**node.attrs, "late": True}, regions=regions)
    same = all(new is old for new, old in zip(regions, node.regions, strict=True))
    return node if same else replace(node, regions=regions)


def _ladder(pair: Pair, spec: DeviceSpec) -> list[frozenset[Value]]:
    """What the forward scan may stack, with what can't be made again: the carry, say."""
    joint = pair.joint
    sets = ladder(joint, joint.forward, joint.required, spec)
    return list(dict.fromkeys(_possible(joint, keep) for keep in sets))


def _slopes(pair: Pair, ladder: Sequence[frozenset[Value]], spec: DeviceSpec) -> list[float]:
    """Seconds for a byte on the way to each rung but the first, on the lower hull."""
    joint = pair.joint
    costs = []
    for keep in ladder:
        again, _ = closure(joint, joint.required, keep)
        costs.append((_size(pair, keep), sum(map(spec.seconds, again))))
    found: list[float] = []
    while len(found) + 1 < len(ladder):
        at = len(found)
        size, seconds = costs[at]
        slopes = [(t - seconds) / max(size - s, 1) for s, t in costs[at + 1 :]]
        least = min(slopes)
        found += [least] * (slopes.index(least) + 1)
    return found


def _kept(pair: Pair, spec: DeviceSpec, price: float) -> frozenset[Value]:
    """What to stack at a price, in bytes for a second."""
    joint = pair.joint
    return _possible(joint, kept(joint, joint.forward, joint.required, spec.seconds, price))


def _size(pair: Pair, values: Iterable[Value]) -> int:
    """Bytes of one step's values, each once."""
    return sum(pair.joint.bytes(v) for v in set(values))


def _possible(joint: Joint, keep: frozenset[Value]) -> frozenset[Value]:
    again, _ = closure(joint, joint.required, keep | joint.once)
    read = {v for node in again for v in node.inputs}.union(joint.required)
    return keep | (joint.once & read)


def _rewritten(graph: Graph, lean: Sequence[Nested]) -> Graph:
    """The graph with each pair emitted anew, and without what nobody reads any more."""
    first = {each.pair.forward.node: each for each in lean}
    second = {each.pair.backward.node: each for each in lean}
    stashes: dict[Nested, Kept] = {}
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = [env.get(v, v) for v in node.inputs]
        b.origin, b.phase = node.origin, node.phase
        if node in first:
            outputs, stashes[first[node]] = first[node].forward(b, inputs)
            env.update(zip(node.outputs, outputs, strict=True))
        elif node in second:
            each = second[node]
            consts, _, _ = each.pair.forward.parts
            fixed = [env.get(v, v) for v in each.pair.forward.node.inputs[consts]]
            outputs = each.backward(b, fixed, inputs, stashes[each])
            env.update(zip(node.outputs, outputs, strict=True))
        else:
            b.nodes.append(substituted(node, env))
    found = b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])
    return Dce()(stacked_once(found))


def _lean(pair: Pair, spec: DeviceSpec, keep: frozenset[Value], segment: int) -> Nested:
    joint = pair.joint
    stacked = tuple(sorted(keep, key=joint.order.__getitem__))
    read = tuple(Value(v.type) for v in stacked)
    f, scan = pair.forward.body, pair.backward.body
    f_consts, _, f_xs = pair.forward.parts
    consts, carry, xs = pair.backward.parts
    replay = Replay(joint, chain(joint, spec.seconds), ())
    replay.have.update(zip(stacked, read, strict=True))
    replay.now.update((v, v) for v in scan.inputs if v not in pair.known)
    outputs = replay.again()
    inputs = (*f.inputs[f_consts], *scan.inputs[consts], *scan.inputs[carry])
    inputs += (*read, *f.inputs[f_xs], *scan.inputs[xs])
    own = {v: Value(v.type, v.name) for v in inputs}  # or both bodies would have some of these
    nodes = tuple(substituted(node, own) for node in replay.b.nodes)
    body = Graph(scan.name, tuple(own.values()), nodes, tuple(own.get(v, v) for v in outputs))
    return Nested(pair, stacked, body, segment)
