"""Cut the forward half where little crosses: a chain of segments, each with its backward part."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ...ir.fusion import is_fusible, landmarks
from ...ir.graph import Node, Value
from .joint import Joint

MOST = 128  # segments; the solver's time grows with their square
SHARED = 0.1  # of the most that is between two cuts: what may cross both
LONG = 0.25  # of the forward half: a value that lives longer crosses cuts without counting


@dataclass(frozen=True)
class Segment:
    """A stretch of the forward half and the part of the rest that differentiates it.

    `entry` are the values that cross into it from the segments before.
    """

    entry: tuple[Value, ...]
    forward: tuple[Node, ...]
    rest: tuple[Node, ...]


@dataclass(frozen=True)
class Chain:
    """Segments in order. Values that cross many cuts or can't be made again are `long`: kept."""

    segments: tuple[Segment, ...]
    long: frozenset[Value]


def chain(joint: Joint, seconds: Callable[[Node], float]) -> Chain:
    """Cut `joint` at the narrowest places between its kernels."""
    crossing = _crossing(joint)
    long = _long(joint, crossing)
    local = [{v: n for v, n in values.items() if v not in long} for values in crossing]
    cuts = _cuts(joint, local, seconds)
    bounds = [-1, *cuts, len(joint.forward) - 1]
    forward = [joint.forward[a + 1 : b + 1] for a, b in zip(bounds, bounds[1:], strict=False)]
    entries = [(), *(tuple(local[cut]) for cut in cuts)]
    rests = _rests(joint, cuts, long)
    parts = zip(entries, forward, rests, strict=True)
    return Chain(tuple(Segment(entry, f, tuple(r)) for entry, f, r in parts), long)


def _crossing(joint: Joint) -> list[dict[Value, int]]:
    """For each forward node, the values that exist after it and that later ones read, in bytes."""
    last: dict[Value, int] = {}
    for i, node in enumerate(joint.forward):
        last.update(dict.fromkeys(joint.roots[node], i))
    live: dict[Value, int] = {}
    found = []
    for i, node in enumerate(joint.forward):
        live.update((v, size) for v, size in joint.buffers[node] if last.get(v, i) > i)
        for value in joint.roots[node]:
            if last[value] == i:
                live.pop(value, None)
        found.append(dict(live))
    return found


def _long(joint: Joint, crossing: Sequence[dict[Value, int]]) -> frozenset[Value]:
    ends = {value: i for i, values in enumerate(crossing) for value in values}
    limit = LONG * len(crossing)
    return joint.once.union(v for v, end in ends.items() if end - joint.place[v] > limit)


def _cuts(
    joint: Joint, local: Sequence[dict[Value, int]], seconds: Callable[[Node], float]
) -> list[int]:
    """Narrow places first, of which little crosses the next one too.

    There is one between any two kernels, and no segment is shorter than its share of the time.
    """
    total = [sum(values.values()) for values in local]
    ends = list(accumulate(map(seconds, joint.forward)))
    share = ends[-1] / MOST if ends else 0.0
    far = landmarks(joint.forward)
    kernels = [i for i, n in enumerate(joint.forward) if n in far or not is_fusible(n)]
    chosen: list[int] = []
    taken: set[int] = set()
    for i in sorted(range(len(local) - 1), key=lambda i: (total[i], i)):
        gap = bisect_left(kernels, i + 1)
        if not 0 < gap < len(kernels) or gap in taken:
            continue
        at = bisect_left(chosen, i)
        near = chosen[max(0, at - 1) : at + 1]
        times = [0.0, ends[-1], *(ends[k] for k in near)]
        if min(abs(ends[i] - time) for time in times) < share:
            continue
        if all(_shared(local[i], local[k]) <= SHARED * _most(total, i, k) for k in near):
            insort(chosen, i)
            taken.add(gap)
    return chosen


def _most(total: Sequence[int], one: int, other: int) -> int:
    """The most bytes that there are between two cuts, or at them."""
    return max(total[min(one, other) : max(one, other) + 1])


def _shared(values: dict[Value, int], others: dict[Value, int]) -> int:
    return sum(values[v] for v in values.keys() & others.keys())


def _rests(joint: Joint, cuts: Sequence[int], long: Collection[Value]) -> list[list[Node]]:
    """The nodes of the rest by segment: that of the forward node they differentiate.

    Where that is not known, as in a step that JAX has differentiated, it is the first in which a
    forward value that they read has its last forward use. None comes before what it reads: the
    rest runs from the last segment to the first. What reads nothing of all this, such as a kernel
    that is turned or made wider, comes where it is first read.
    """
    home = {
        joint.root.get(value, value): bisect_left(cuts, i)
        for i, node in enumerate(joint.forward)
        for value in (*node.inputs, *node.outputs)
    }
    place: dict[Node, int] = {}
    where: dict[Value, int] = {}
    for node in joint.rest:
        bounds = [where[v] for v in node.inputs if v in where]
        if node in joint.source:
            bounds.append(bisect_left(cuts, joint.source[node]))
        else:
            roots = (joint.root[v] for v in node.inputs if v in joint.root)
            bounds += [home[v] for v in roots if joint.bytes(v) and v not in long]
        if bounds:
            place[node] = min(bounds)
            where.update(dict.fromkeys(node.outputs, place[node]))
    first: dict[Value, int] = {}
    for node in reversed(joint.rest):
        at = place.setdefault(node, max((first.get(v, 0) for v in node.outputs), default=0))
        first.update((v, max(at, first.get(v, 0))) for v in node.inputs)
    found: list[list[Node]] = [[] for _ in range(len(cuts) + 1)]
    for node in joint.rest:
        found[place[node]].append(node)
    return found
