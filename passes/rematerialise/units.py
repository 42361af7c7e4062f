"""A joint graph condensed to what a schedule decides about: units, values and stages.

A unit is a forward kernel, or a fusible op whose result takes memory, with the fusible ops that
XLA makes inside its loop and with what costs nothing. A stage is a kernel of the rest with those
after it that read nothing else of the forward half; before it units may run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

from ...ir.cost import is_view
from ...ir.fusion import Fusion
from ...ir.graph import Graph, Node, Value
from ...ir.liveness import Liveness, liveness
from .joint import Joint, runs_once
from .segments import Chain

SLACK = 1 / 256  # of the peak: less that is free before a kernel is worth no stage


@dataclass(frozen=True)
class Unit:
    """Forward nodes that run together; `makes` and `reads` are numbers of values.

    `inside` are bytes that they need besides, such as a convolution's copies; `first` bytes of all
    but the forward half's values when they run for the first time. `fixed` ones run once.
    """

    nodes: tuple[Node, ...]
    makes: tuple[int, ...]
    reads: tuple[int, ...]
    seconds: float
    inside: int
    first: int
    fixed: bool


class Phase(NamedTuple):
    """A part of a stage: the forward half's values that it reads, and `bytes` of all others."""

    bytes: int
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Kernels of the rest with the nodes in their loops; `before` are bytes as in its phases.

    Each phase reads no more than the one before it.
    """

    nodes: tuple[Node, ...]
    before: int
    phases: tuple[Phase, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """The forward values that it reads."""
        return self.phases[0].reads


@dataclass(frozen=True, eq=False)
class Units:
    """The units and stages of `joint`; `values` are what units make, each with its own buffer."""

    joint: Joint
    seconds: Callable[[Node], float]
    donated: frozenset[int] = frozenset()

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """What a schedule may hold or drop; what the program returns is always there."""
        joint = self.joint
        own = (v for v in joint.order if joint.root[v] is v and joint.bytes(v))
        absent = self.returned | self._inside | self._unread
        return tuple(v for v in own if v not in absent)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each value."""
        return np.array([value.type.nbytes for value in self.values], np.int64)

    @cached_property
    def returned(self) -> frozenset[Value]:
        """Forward values that the program returns."""
        root = self.joint.root
        return frozenset(root[v] for v in self.joint.outputs if v in root)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The units in the order of the program."""
        return tuple(
            self._unit(at, node)
            for at, node in enumerate(self.joint.forward)
            if runs_once(node) or any(v in self._number or v in self.returned for v in node.outputs)
        )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; the first of them is number 1, as the forward half is stage 0."""
        found, at = [], len(self.joint.forward)
        for nodes in self._kernels:
            found.append(self._stage(nodes, at))
            at += len(nodes)
        return joined(found)

    def _unit(self, at: int, node: Node) -> Unit:
        values, again = self._behind([node])
        makes = tuple(self._number[v] for v in node.outputs if v in self._number)
        nodes = (*again, node)
        inside = int(self._live_bytes[at] - self._held[at])
        first = int(self._live_bytes[at] - self._forward[at])
        time = sum(map(self.seconds, nodes))
        fixed = runs_once(node) or not self.returned.isdisjoint(node.outputs)
        return Unit(nodes, makes, values, time, inside, first, fixed)

    def _stage(self, nodes: list[Node], at: int) -> Stage:
        others = self._live_bytes - self._forward
        end = at + len(nodes)
        before = sum(
            b.nbytes
            for b in self._live.buffers
            if b.first < at <= b.last and b.value not in self._number
        )
        phases = [Phase(int(max(others[at:end])), self._behind(nodes)[0])]
        if end == len(self._graph.nodes):
            phases.append(Phase(int(others[end]), ()))
        return Stage(tuple(nodes), before, tuple(phases))

    def _behind(self, nodes: Iterable[Node]) -> tuple[tuple[int, ...], list[Node]]:
        """The values that nodes start from, and the nodes of no unit on the way from them.

        A loop starts from what a repeated value is made of.
        """
        joint, fusion = self.joint, self._fusion
        values: set[int] = set()
        found: set[Node] = set()
        seen: set[tuple[bool, Value]] = set()
        pending = [(node in fusion.repeating, v) for node in nodes for v in node.inputs]
        while pending:
            loop, value = edge = pending.pop()
            node = fusion.graph.producer.get(value)
            if edge in seen or node is None or value in self.returned:
                continue
            seen.add(edge)
            again = loop and (node in fusion.repeated or is_view(node))
            if value not in joint.place and not again:
                continue
            if value in self._number and not again:
                values.add(self._number[value])
                continue
            if value in joint.place:
                found.add(node)
            inner = loop if is_view(node) else node in fusion.repeating
            pending += [(inner, v) for v in node.inputs]
        ordered = sorted(found, key=lambda node: joint.place[node.outputs[0]])
        return tuple(sorted(values)), ordered

    @cached_property
    def _number(self) -> dict[Value, int]:
        return {value: i for i, value in enumerate(self.values)}

    @cached_property
    def _inside(self) -> set[Value]:
        """Forward values made inside the loop of a forward reader whose result is no larger."""
        joint = self.joint
        size = {v: sum(o.type.nbytes for o in n.outputs) for n in joint.forward for v in n.inputs}
        return {v for v in self._fusion.inlined & size.keys() if size[v] <= v.type.nbytes}

    @cached_property
    def _unread(self) -> set[Value]:
        """What exists in loops alone, as each makes it again."""
        there = {buffer.value for buffer in self._live.buffers}
        return {v for node in self._fusion.repeated for v in node.outputs if v not in there}

    @cached_property
    def _fusion(self) -> Fusion:
        joint = self.joint
        return Fusion(Graph("", joint.inputs, (*joint.forward, *joint.rest), joint.outputs))

    @cached_property
    def _kernels(self) -> list[list[Node]]:
        """The rest by what takes memory: each such node after those inside of its loop.

        A node of several results is in the loops of several readers, or of some: it stays alone.
        """
        maker = {v: node for node in self.joint.rest for v in node.outputs}
        inside = set(self._fusion.inlined)
        for node in self.joint.rest:
            if is_view(node) and node.inputs[0] in inside:
                inside.update(node.outputs)
        within = {v: n for v, n in maker.items() if v in inside and len(n.outputs) == 1}

        def collect(node: Node) -> list[Node]:
            found, pending = list[Node](), [node]
            while pending:
                found.append(pending.pop())
                inputs = dict.fromkeys(found[-1].inputs)
                pending += [within[v] for v in inputs if v in within]
            return found[::-1]

        kernels = (node for node in self.joint.rest if within.keys().isdisjoint(node.outputs))
        return [collect(node) for node in kernels]

    @cached_property
    def _graph(self) -> Graph:
        joint = self.joint
        rest = (node for kernel in self._kernels for node in kernel)
        return Graph("units", joint.inputs, (*joint.forward, *rest), joint.outputs)

    @cached_property
    def _live(self) -> Liveness:
        return liveness(self._graph, self.donated, fused=True)

    @cached_property
    def _live_bytes(self) -> np.ndarray:
        return np.array(self._live.bytes, np.int64)

    @cached_property
    def _held(self) -> np.ndarray:
        """Bytes of all buffers at each position."""
        return self._sum(lambda value: True)

    @cached_property
    def _forward(self) -> np.ndarray:
        """Bytes of the forward half's values at each position."""
        return self._sum(lambda value: value in self._number)

    def _sum(self, which: Callable[[Value], bool]) -> np.ndarray:
        total = np.zeros(len(self._graph.nodes) + 1, np.int64)
        for buffer in self._live.buffers:
            if which(buffer.value):
                total[max(buffer.first, 0) : buffer.last + 1] += buffer.nbytes
        return total


def joined(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Put kernels that read nothing else into the stage before them, which loses next to nothing.

    What would run again before one of them may as well wait for the next stage, unless less is in
    memory than there.
    """
    slack = max((phase.bytes for s in stages for phase in s.phases), default=0) * SLACK
    found: list[Stage] = []
    least = 0.0  # bytes before the next stage; after the last one nothing runs again
    tail: list[Stage] = []
    for before, stage in reversed([*zip((None, *stages), stages, strict=False)]):
        tail.append(stage)
        if before is None or not {*before.reads}.issuperset(stage.reads) or stage.before < least:
            nodes = chain.from_iterable(each.nodes for each in reversed(tail))
            phases = chain.from_iterable(each.phases for each in reversed(tail))
            same = groupby(phases, key=lambda phase: phase.reads)
            most = (Phase(max(each.bytes for each in group), reads) for reads, group in same)
            found.append(Stage(tuple(nodes), stage.before, tuple(most)))
            least, tail = stage.before - slack, []
    return tuple(reversed(found))


def units_of(
    joint: Joint, segments: Chain, seconds: Callable[[Node], float], donated: Collection[int] = ()
) -> Units:
    """Condense a joint graph; the rest runs in the order of the chain, as it does elsewhere."""
    rest = tuple(node for segment in reversed(segments.segments) for node in segment.rest)
    ordered = Joint(joint.inputs, joint.forward, rest, joint.outputs)
    return Units(ordered, seconds, frozenset(donated))
