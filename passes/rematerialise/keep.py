"""Which values of a stretch to keep and which to make again, at a price: a minimum cut.

    minimise   bytes kept + price * seconds of the nodes that run again
    such that  what is required is kept, or made again from what is kept or made again

A value is an edge between what makes it and what reads it, on a network that leads from what
exists anyway to what is required; the cut edges are the values kept. Falling prices trace the
lower hull of bytes against seconds.

Source: Picard 1976 (selections as minimum cuts); Horace He's partitioner of PyTorch's AOTAutograd
(bytes alone, a ban on what is dear to make again).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ...ir.device import DeviceSpec
from ...ir.graph import Node, Value
from .joint import Joint

_WHOLE = 1 << 28  # the finite capacities add up to this, as they are int32
_ENDLESS = 1 << 30
MOVES = 8  # between two sets on the hull


PRICES = 14


def prices(spec: DeviceSpec) -> list[float]:
    """Prices of a second in bytes, each half of the one before."""
    return [4 * spec.bytes_per_s / 2**k for k in range(PRICES)]


def ladder(
    joint: Joint, nodes: Sequence[Node], required: Iterable[Value], spec: DeviceSpec
) -> list[frozenset[Value]]:
    """Sets of values of `nodes` to keep, from most to none: less memory for more time.

    First those on the hull, by falling prices; between two of them one value after the other is
    dropped (or taken), the one that frees most bytes for its seconds. None takes longer than one
    that keeps less.
    """
    stretch = _Stretch(joint, nodes, list(required), {n: spec.seconds(n) for n in nodes})
    network = Network(joint, nodes, stretch.wanted, stretch.times.__getitem__)
    hull = list(dict.fromkeys([*network.hull(prices(spec)), frozenset()]))
    found = hull[:1]
    for goal in hull[1:]:
        found += [*stretch.between(found[-1], goal), goal]
    chosen, least = [], inf
    for keep in reversed(dict.fromkeys(found)):
        if (seconds := stretch.seconds(keep)) < least:
            chosen.append(keep)
            least = seconds
    return chosen[::-1]


@dataclass(frozen=True)
class _Stretch:
    """Forward nodes with their times, and what is wanted of them: kept, or made again."""

    joint: Joint
    nodes: Sequence[Node]
    wanted: Sequence[Value]
    times: Mapping[Node, float]

    @cached_property
    def own(self) -> set[Value]:
        """What the nodes make."""
        return {v for node in self.nodes for v in node.outputs}

    def again(self, keep: Collection[Value]) -> list[Node]:
        """The nodes that run again."""
        return closure(self.joint, self.wanted, keep, self.own)[0]

    def seconds(self, keep: Collection[Value]) -> float:
        """Time to make again what is not kept."""
        return sum(map(self.times.__getitem__, self.again(keep)))

    def bytes(self, keep: Collection[Value]) -> int:
        """Memory of what is kept."""
        return sum(map(self.joint.bytes, keep))

    def between(self, now: frozenset[Value], goal: frozenset[Value]) -> Iterator[frozenset[Value]]:
        """Sets on the way from one to the other, each smaller than the one before."""
        least, size = self.bytes(goal), self.bytes(now)
        for _ in range(MOVES):
            moves = []
            for value, more in self._changed(now, goal).items():
                other = size + self.joint.bytes(value) * (-1 if value in now else 1)
                if least < other < size:
                    moves.append((more / (size - other), other, value))
            if not moves:
                return
            _, size, value = min(moves, key=lambda move: move[:2])
            now ^= {value}
            yield now

    def _changed(self, now: frozenset[Value], goal: frozenset[Value]) -> dict[Value, float]:
        """How many more seconds it takes with each value that one set has and the other has not."""
        before, again = self.seconds(now), set(self.again(now))
        read = {v for node in again for v in node.inputs}.union(self.wanted)
        there = {*now, *(v for node in again for v in node.outputs)}
        found = {}
        for value in sorted(now ^ goal, key=self.joint.order.__getitem__):
            if value not in now:
                found[value] = self.seconds(now | {value}) - before
                continue
            there.discard(value)
            made, _ = closure(self.joint, read & {value}, there, self.own)
            there.add(value)
            found[value] = sum(self.times[node] for node in made if node not in again)
        return found


def closure(
    joint: Joint,
    wanted: Iterable[Value],
    have: Collection[Value],
    among: Collection[Value] | None = None,
) -> tuple[list[Node], list[Value]]:
    """The forward nodes to run to get `wanted`, in order, and which of `have` they start from.

    Where forward values are given, `among` which to look, others are there.
    """
    among = joint.place if among is None else among
    again: set[Node] = set()
    read: set[Value] = set()
    pending = [v for v in wanted if v in among]
    seen: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in have:
            read.add(value)
            continue
        node = joint.forward[joint.place[value]]
        if node not in again:
            again.add(node)
            pending += [v for v in node.inputs if v in among]
    ordered = sorted(again, key=lambda node: joint.place[node.outputs[0]])
    return ordered, sorted(read, key=joint.order.__getitem__)


def kept(
    joint: Joint,
    nodes: Sequence[Node],
    required: Iterable[Value],
    seconds: Callable[[Node], float],
    price: float,
) -> frozenset[Value]:
    """Return which values of the forward `nodes` to keep; `price` is in bytes for a second.

    What the nodes read from elsewhere counts as kept, and so does what costs nothing to have.
    """
    return Network(joint, nodes, required, seconds).kept(price)


@dataclass(frozen=True)
class Network:
    """The network of some forward `nodes` for every price; see `kept`."""

    joint: Joint
    nodes: Sequence[Node]
    required: Iterable[Value]
    seconds: Callable[[Node], float]

    def kept(self, price: float) -> frozenset[Value]:
        """Return which values to keep; `price` is in bytes for a second."""
        if not self._wanted:
            return frozenset()
        near = _source_side(*self._ends, np.where(self._priced, price, 1.0) * self._weights)
        return frozenset(v for v, (a, b) in self._vertices.items() if near[a] and not near[b])

    def hull(self, falling: Sequence[float]) -> list[frozenset[Value]]:
        """Sets for prices in their order: what is best at two of them is best between them."""
        found = {0: self.kept(falling[0]), len(falling) - 1: self.kept(falling[-1])}

        def between(low: int, high: int) -> None:
            middle = (low + high) // 2
            if low < middle and found[low] != found[high]:
                found[middle] = self.kept(falling[middle])
                between(low, middle)
                between(middle, high)

        between(0, len(falling) - 1)
        return [found[at] for at in sorted(found)]

    @cached_property
    def _own(self) -> dict[Value, Node]:
        return {v: n for n in self.nodes for v in n.outputs if self.joint.root[v] is v}

    @cached_property
    def _vertices(self) -> dict[Value, tuple[int, int]]:
        """For each value that has a size, the ends of its edge; 0 and 1 are source and sink."""
        sized = [v for v in self._own if self.joint.bytes(v)]
        start = 2 + len(self.nodes)
        return {v: (start + 2 * i, start + 2 * i + 1) for i, v in enumerate(sized)}

    @cached_property
    def _wanted(self) -> list[Value]:
        root = self.joint.root
        return list(dict.fromkeys(r for v in self.required if (r := root.get(v)) in self._vertices))

    @cached_property
    def _edges(self) -> list[tuple[int, int, float, bool]]:
        """Tail, head and weight; and whether the weight is in seconds."""
        joint, vertices = self.joint, self._vertices
        edges = []
        for at, node in enumerate(self.nodes, 2):
            edges.append((0, at, np.inf if node.op.effect else self.seconds(node), True))
            for value in joint.roots[node]:
                if value in vertices and self._own[value] is not node:
                    edges.append((vertices[value][1], at, np.inf, False))
            for value in node.outputs:
                if value in vertices:
                    before, after = vertices[value]
                    edges.append((at, before, np.inf, False))
                    edges.append((before, after, float(joint.bytes(value)), False))
        return edges + [(vertices[value][1], 1, np.inf, False) for value in self._wanted]

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([e[0] for e in self._edges]), np.array([e[1] for e in self._edges])

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.array([e[2] for e in self._edges])

    @cached_property
    def _priced(self) -> np.ndarray:
        return np.array([e[3] and np.isfinite(e[2]) for e in self._edges])


def _source_side(tails: np.ndarray, heads: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tell for each vertex whether it is on the source's side of a minimum cut."""
    size = int(max(tails.max(), heads.max())) + 1
    finite = np.isfinite(weights)
    scale = _WHOLE / max(float(weights[finite].sum()), 1e-300)
    capacity = np.where(finite, np.ceil(np.where(finite, weights, 0) * scale), _ENDLESS)
    network = csr_array((capacity.astype(np.int32), (tails, heads)), shape=(size, size))
    flow = maximum_flow(network, 0, 1).flow
    left = network - flow
    near = np.zeros(size, bool)
    near[breadth_first_order(left, 0, return_predecessors=False)] = True
    return near
