"""Where a program holds several steps: gradients one after the other, and those in loops' bodies.

F1 B1 | F2 B2 update      two stretches: little of what F1 makes is read after B1
scan { F B update }       the body is a program of its own, as in gradient accumulation
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ...ir.builder import Builder
from ...ir.fusion import free_values
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from ..rewriter import substituted
from .joint import joint_of
from .pairs import pairs
from .replay import loose

SHARED = 0.25  # part of a stretch's stash that the backward nodes after it may read too


def stretches(graph: Graph) -> list[Graph]:
    """Cut a graph between a backward pass and the forward pass of the next gradient.

    Each stretch is a graph over the same values: its inputs are made before it or given, its
    outputs are read after it or returned.
    """
    groups = _groups(graph)
    if len(groups) == 1:
        return [graph]
    last = {v: k for k, nodes in enumerate(groups) for node in nodes for v in node.inputs}
    last.update((v, len(groups)) for v in graph.outputs)
    found = []
    for k, nodes in enumerate(groups):
        made = dict.fromkeys(v for node in nodes for v in node.outputs)
        reads = dict.fromkeys(v for node in nodes for v in node.inputs)
        inputs = tuple(v for v in reads if v not in made and not isinstance(v, Literal))
        outputs = tuple(v for v in made if last.get(v, k) > k)
        found.append(Graph(graph.name, inputs, tuple(nodes), outputs))
    return found


def joined(graph: Graph, parts: Sequence[Graph], rewritten: Sequence[Graph]) -> Graph:
    """Put what became of the stretches `parts` of `graph` in their places.

    A fence before each makes it wait for what the one before returns: XLA would run the forward
    passes of independent stretches first.
    """
    if len(parts) == 1:
        return rewritten[0]
    fences = any(new is not part for part, new in zip(parts, rewritten, strict=True))
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    before: list[Value] = []
    for part, new in zip(parts, rewritten, strict=True):
        if fences and before:
            passed = [env.get(v, v) for v in (*loose(new.nodes, before), *before)]
            b.phase = "backward"
            fenced = dict(zip(passed, b.emit("optimization_barrier", passed), strict=True))
            env = {old: fenced.get(value, value) for old, value in env.items()} | fenced
        b.nodes += [substituted(node, env) for node in new.nodes]
        outputs = zip(part.outputs, new.outputs, strict=True)
        env.update((old, env.get(value, value)) for old, value in outputs)
        before = list(part.outputs)
    return b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs])


def bodies(graph: Graph) -> Iterator[tuple[int, int]]:
    """Positions of the nodes, and of their regions, in which a whole gradient stands.

    The bodies of a scan and its backward scan are planned as a pair, and are not among them.
    """
    paired = {scan.node for pair in pairs(graph) for scan in (pair.forward, pair.backward)}
    for i, node in enumerate(graph.nodes):
        for k, region in enumerate(node.regions):
            if node not in paired and _holds_gradient(region):
                yield i, k


def with_bodies(graph: Graph, new: Mapping[tuple[int, int], Graph]) -> Graph:
    """Return the graph with some regions replaced, by positions of their nodes and their own."""
    if not new:
        return graph
    nodes = []
    for i, node in enumerate(graph.nodes):
        regions = tuple(new.get((i, k), region) for k, region in enumerate(node.regions))
        nodes.append(replace(node, regions=regions) if regions != node.regions else node)
    return replace(graph, nodes=tuple(nodes))


def _holds_gradient(graph: Graph) -> bool:
    joint = joint_of(graph)
    return any(map(joint.bytes, joint.required)) or any(True for _ in bodies(graph))


def _groups(graph: Graph) -> list[list[Node]]:
    """The nodes of each stretch; what the next one does not need comes before its first node."""
    nodes = graph.nodes
    backward = [i for i, node in enumerate(nodes) if node.phase == "backward"]
    stashed, crossing = _stash(graph)
    leading = _leading(nodes)
    found: list[list[Node]] = [[]]
    start = end = 0
    for i in range(1, backward[-1] if backward else 0):
        own = stashed[i] - stashed[start]
        turns = nodes[i].phase == "forward" and nodes[i - 1].phase != "forward"
        if i < end or not turns or not own or crossing[i] > SHARED * own:
            continue
        after = backward[bisect_left(backward, i)]
        early, late = _parted(nodes[i:after], leading)
        if late:
            found[-1] += [*nodes[end:i], *early]
            found.append(late)
            start, end = i, after
    found[-1] += nodes[end:]
    return found


def _leading(nodes: Sequence[Node]) -> set[Node]:
    """The nodes that a backward node after them depends on."""
    needed: set[Value] = set()
    found = set()
    for node in reversed(nodes):
        if node.phase == "backward" or not needed.isdisjoint(node.outputs):
            found.add(node)
            needed.update(node.inputs)
    return found


def _parted(nodes: Sequence[Node], leading: Collection[Node]) -> tuple[list[Node], list[Node]]:
    """Updates, what they read and what leads nowhere; then what the next stretch needs."""
    needed: set[Value] = set()
    updates = set()
    for node in reversed(nodes):
        if node.phase == "update" or not needed.isdisjoint(node.outputs):
            updates.add(node)
            needed.update(node.inputs)
    early, late = [], []
    after: set[Value] = set()
    for node in nodes:
        if node in updates or (node not in leading and after.isdisjoint(node.inputs)):
            early.append(node)
        else:
            late.append(node)
            after.update(node.outputs)
    return early, late


def _stash(graph: Graph) -> tuple[list[int], list[int]]:
    """Bytes of forward values that other phases read: made before each position, read after it."""
    nodes = graph.nodes
    free = free_values(graph.inputs, nodes)
    last = {v: i for i, node in enumerate(nodes) if node.phase != "forward" for v in node.inputs}
    made, open_ = [0] * (len(nodes) + 1), [0] * (len(nodes) + 1)
    for i, node in enumerate(nodes):
        for value in node.outputs if node.phase == "forward" else ():
            if value in last and value not in free:
                made[i + 1] += value.type.nbytes
                open_[i + 1] += value.type.nbytes
                open_[last[value] + 1] -= value.type.nbytes
    return list(accumulate(made)), list(accumulate(open_))
