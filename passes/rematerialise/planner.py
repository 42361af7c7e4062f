"""Plan a whole program: its stretches, and the programs in the bodies of its loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.device import Clock, DeviceSpec, clock
from ...ir.fusion import inlined, is_fusible
from ...ir.graph import Graph
from ...ir.liveness import Liveness, liveness
from .frontier import Candidate, Choice, Frontier
from .sites import bodies, joined, stretches, with_bodies

AIMS = 4  # sums of the parts that are tried for one budget


@dataclass(frozen=True)
class Choices:
    """What a planned program is made of: one for each loop's body that is planned and stretch.

    `form` is the position of the form of the program that it starts from; see `Forms`.
    """

    bodies: tuple[Choices, ...]
    stretches: tuple[Choice, ...]
    form: int = 0


@dataclass(frozen=True, eq=False)
class Planned:
    """A program under a plan; `seconds` by the roofline."""

    bodies: tuple[Planned, ...]
    stretches: tuple[Candidate, ...]
    graph: Graph
    live: Liveness
    seconds: float
    form: int = 0

    @property
    def bytes(self) -> int:
        """Predicted peak: arguments, outputs and temporaries, less what is donated."""
        return self.live.peak_bytes

    @cached_property
    def fenced(self) -> bool:
        """True where barriers give XLA an order: its peak is closer to the predicted one."""
        return any(node.op.name == "optimization_barrier" for node in self.graph.nodes)

    @cached_property
    def choice(self) -> Choices:
        """What tells this plan from others of its program."""
        return Choices(
            tuple(each.choice for each in self.bodies),
            tuple(each.choice for each in self.stretches),
            self.form,
        )


@dataclass
class Planner:
    """The plans of one form of a program on one device; `donated` are positions of inputs."""

    graph: Graph
    spec: DeviceSpec
    donated: frozenset[int] = frozenset()
    form: int = 0
    _known: dict[tuple[object, ...], Planned] = field(default_factory=dict)
    _frontiers: dict[tuple[object, ...], tuple[Frontier, ...]] = field(default_factory=dict)
    _regions: dict[int, Liveness] = field(default_factory=dict)

    @cached_property
    def clock(self) -> Clock:
        """The device, which remembers what each node takes."""
        return clock(self.spec)

    @cached_property
    def inner(self) -> dict[tuple[int, int], Planner]:
        """The planners of loops' bodies, by the positions of their nodes and of the regions."""
        nodes = self.graph.nodes
        return {(i, k): Planner(nodes[i].regions[k], self.clock) for i, k in bodies(self.graph)}

    @cached_property
    def plain(self) -> Planned:
        """The program as it is."""
        inside = tuple(each.plain for each in self.inner.values())
        return self._planned(inside, [f.plain for f in self._fronts(inside)])

    def fastest(self, budget: float) -> Planned | None:
        """Return the fastest plan whose predicted peak is within `budget`, or None."""
        aim = budget
        for _ in range(AIMS):
            found = self._within(aim)
            if found.bytes <= budget:
                return found
            if not self._composed:
                return None
            aim -= found.bytes - budget
        return next((each for each in self.leanest_of_each if each.bytes <= budget), None)

    @property
    def leanest(self) -> Planned:
        """The plan of the lowest predicted peak."""
        return self.leanest_of_each[0]

    @cached_property
    def leanest_of_each(self) -> list[Planned]:
        """A few of the lowest predicted peaks."""
        inside = tuple(each.leanest for each in self.inner.values())
        ways = [f.leanest_of_each for f in self._fronts(inside)]
        found = [
            self._planned(inside, [way[min(i, len(way) - 1)] for way in ways])
            for i in range(max(map(len, ways)))
        ]
        if self._composed:  # a part that does not hold the peak need not be lean
            found.append(self._within(min(each.bytes for each in found)))
        return sorted(found, key=lambda each: (each.bytes, each.seconds))

    def of(self, choice: Choices) -> Planned:
        """Return the plan for a choice, as from a saved one."""
        inside = tuple(
            each.of(own) for each, own in zip(self.inner.values(), choice.bodies, strict=True)
        )
        fronts = self._fronts(inside)
        return self._planned(
            inside, [f.of(own) for f, own in zip(fronts, choice.stretches, strict=True)]
        )

    @cached_property
    def floor(self) -> int:
        """Bytes that every schedule needs: what the caller sees, and one kernel at a time."""
        live = self.plain.live
        fixed = live.argument_bytes + live.output_bytes - live.donated_bytes
        outside = {*self.graph.inputs, *self.graph.outputs}
        outside |= inlined(self.graph)
        sizes = (
            sum(v.type.nbytes for v in {*node.inputs, *node.outputs} - outside)
            for node in self.graph.nodes
            if not is_fusible(node) and not node.regions
        )
        return fixed + max(sizes, default=0)

    def gap(self, planned: Planned) -> float:
        """How much longer a plan takes than any of its memory must, in plain steps.

        That of each stretch for its own memory; see `Frontier.gap`.
        """
        gaps = [
            front.gap(each) * front.plain.seconds
            for front, each in zip(self._fronts(planned.bodies), planned.stretches, strict=True)
        ]
        for ((i, _), planner), each in zip(self.inner.items(), planned.bodies, strict=True):
            times = int(self.graph.nodes[i].attrs.get("length", 1))
            gaps.append(times * planner.gap(each) * planner.plain.seconds)
        return sum(gaps) / self.plain.seconds if self.plain.seconds else 0.0

    @property
    def _composed(self) -> bool:
        return bool(self.inner) or len(self.plain.stretches) > 1

    def _within(self, budget: float) -> Planned:
        """The fastest of each part within what the others leave of a budget; else the leanest."""
        live = self.plain.live.bytes
        inside = []
        for (i, _), planner in self.inner.items():
            room = budget - (live[i] - planner.plain.bytes)
            inside.append(planner.fastest(room) or planner.leanest)
        whole = self._planned(tuple(inside), [f.plain for f in self._fronts(tuple(inside))])
        found, start = [], 0
        for front in self._fronts(tuple(inside)):
            end = start + len(front.graph.nodes)
            alone = len(whole.stretches) == 1
            others = 0 if alone else max(whole.live.bytes[start:end]) - front.plain.bytes
            room = budget - others
            found.append(front.fastest(room) or front.leanest)
            start = end
        return self._planned(whole.bodies, found)

    def _fronts(self, inside: Sequence[Planned]) -> tuple[Frontier, ...]:
        """The frontiers of the stretches, the bodies being planned as told."""
        key = tuple(map(id, inside))
        if key not in self._frontiers:
            new = {site: each.graph for site, each in zip(self.inner, inside, strict=True)}
            graph = with_bodies(self.graph, new)
            parts = stretches(graph)
            self._frontiers[key] = tuple(
                Frontier(part, self.clock, self._given(graph, part)) for part in parts
            )
        return self._frontiers[key]

    def _given(self, graph: Graph, part: Graph) -> frozenset[int]:
        """Positions of a stretch's inputs whose memory nobody reads after it."""
        if part is graph:
            return self.donated
        given = {v for i, v in enumerate(graph.inputs) if i not in self.donated}
        given.update(graph.outputs)
        own = set(part.nodes)
        after = False
        for node in graph.nodes:
            after = after or node in own
            if after and node not in own:
                given.update(node.inputs)
        return frozenset(i for i, value in enumerate(part.inputs) if value not in given)

    def _planned(self, inside: tuple[Planned, ...], parts: Sequence[Candidate]) -> Planned:
        key = (*map(id, inside), *map(id, parts))
        if key not in self._known:
            fronts = self._fronts(inside)
            graph = joined(self.graph, [f.graph for f in fronts], [c.graph for c in parts])
            live = parts[0].live
            if len(parts) > 1:
                live = liveness(graph, self.donated, fused=True, known=self._regions)
            seconds = sum(each.seconds for each in parts)
            self._known[key] = Planned(inside, tuple(parts), graph, live, seconds, self.form)
        return self._known[key]
