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

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ...ir.device import DeviceSpec
from ...ir.graph import Node, Value
from .joint import Joint

_WHOLE = 1 << 28  # the finite capacities add up to this, as they are int32
_ENDLESS = 1 << 30
MOVES = 8  # between two sets on the hull


PRICES = 14  # of a second in bytes, each half of the one before


def ladder(
    joint: Joint, nodes: Sequence[Node], required: Iterable[Value], spec: DeviceSpec
) -> list[frozenset[Value]]:
    """Sets of values of `nodes` to keep, from most to none: less memory for more time.

    First those on the hull, by falling prices; between two of them one value after the other is
    dropped (or taken), the one that frees most bytes for its seconds.
    """
    wanted = list(required)
    prices = (4 * spec.bytes_per_s / 2**k for k in range(PRICES))
    hull = [kept(joint, nodes, wanted, spec.seconds, price) for price in prices]
    hull = list(dict.fromkeys([*hull, frozenset()]))
    outside = {v for v in joint.place} - {v for node in nodes for v in node.outputs}

    def cost(keep: frozenset[Value]) -> tuple[int, float]:
        again, _ = closure(joint, wanted, keep | outside)
        return sum(map(joint.bytes, keep)), sum(map(spec.seconds, again))

    found = hull[:1]
    for goal in hull[1:]:
        found += [*_between(found[-1], goal, cost), goal]
    return list(dict.fromkeys(found))


def _between(
    start: frozenset[Value],
    goal: frozenset[Value],
    cost: Callable[[frozenset[Value]], tuple[int, float]],
) -> Iterator[frozenset[Value]]:
    """Sets on the way from one to the other, each smaller than the one before."""
    least, _ = cost(goal)
    now, (size, seconds) = start, cost(start)
    for _ in range(MOVES):
        moves = []
        for value in now ^ goal:
            other = now ^ {value}
            other_size, other_seconds = cost(other)
            if least < other_size < size:
                moves.append(((other_seconds - seconds) / (size - other_size), other_size, other))
        if not moves:
            return
        _, size, now = min(moves, key=lambda move: move[:2])
        seconds = cost(now)[1]
        yield now


def closure(
    joint: Joint, wanted: Iterable[Value], have: Collection[Value]
) -> tuple[list[Node], list[Value]]:
    """The forward nodes to run to get `wanted`, in order, and which of `have` they start from."""
    again: set[Node] = set()
    read: set[Value] = set()
    pending = [v for v in wanted if v in joint.place]
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
            pending += [v for v in node.inputs if v in joint.place]
    ordered = sorted(again, key=lambda node: joint.place[node.outputs[0]])
    return ordered, sorted(read, key=joint.place.__getitem__)


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
    own = {v: node for node in nodes for v in node.outputs if joint.root[v] is v}
    sized = {value for value in own if joint.bytes(value)}
    wanted = {joint.root[v] for v in required if v in joint.root} & sized
    if not wanted:
        return frozenset()
    edges: list[tuple[Hashable, Hashable, float]] = []
    for node in nodes:
        edges.append(("source", node, np.inf if node.op.effect else price * seconds(node)))
        for value in dict.fromkeys(joint.root.get(v, v) for v in node.inputs):
            if value in sized and own[value] is not node:
                edges.append((("after", value), node, np.inf))
        for value in sized.intersection(node.outputs):
            edges.append((node, ("before", value), np.inf))
            edges.append((("before", value), ("after", value), joint.bytes(value)))
    edges += [(("after", value), "sink", np.inf) for value in wanted]
    near = _source_side(edges)
    return frozenset(v for v in sized if ("before", v) in near and ("after", v) not in near)


def _source_side(edges: Sequence[tuple[Hashable, Hashable, float]]) -> set[Hashable]:
    """The vertices on the source's side of a minimum cut."""
    names = dict.fromkeys(["source", "sink", *(end for edge in edges for end in edge[:2])])
    index = {name: i for i, name in enumerate(names)}
    weights = np.array([edge[2] for edge in edges])
    finite = np.isfinite(weights)
    scale = _WHOLE / max(float(weights[finite].sum()), 1e-300)
    capacity = np.where(finite, np.ceil(np.where(finite, weights, 0) * scale), _ENDLESS)
    rows = [index[tail] for tail, _, _ in edges]
    columns = [index[head] for _, head, _ in edges]
    size = (len(index), len(index))
    network = csr_array((capacity.astype(np.int32), (rows, columns)), shape=size)
    flow = maximum_flow(network, index["source"], index["sink"]).flow
    left = csr_array(network - flow).maximum(0)
    near = breadth_first_order(left, index["source"], return_predecessors=False)
    listed = list(index)
    return {listed[i] for i in near}
