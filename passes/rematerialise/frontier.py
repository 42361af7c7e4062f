"""The schedules of a program, fewer bytes for more seconds, written out when asked for."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...ir.device import Clock, DeviceSpec, clock
from ...ir.fusion import repeated
from ...ir.graph import Graph, Node, Value
from ...ir.liveness import Liveness, liveness
from .alike import kinds
from .hosted import Hosted
from .joint import Joint, joint_of
from .keep import Network, closure, ladder, prices
from .local import Local, is_small
from .replay import Replay
from .scans import Scans
from .schedule import SLOTS, Held, Link, Option, Schedules, Step
from .segments import Chain, Segment, chain
from .stages import Stages, State
from .units import Units, units_of

STEPS = 33  # numbers of slots that are tried
STRIDE = 8  # of these, for a schedule whose values may be offloaded besides
LONGEST = 1024  # nodes of a forward half that may be small enough to be searched
LEAST = 0.9  # of the counted seconds: those of a schedule by stages that is written out, or more


@dataclass(frozen=True)
class Choice:
    """What a schedule is made of: how scans stack, and the steps along the chain, or stages.

    `level` counts from what scans stack at most, None where they are left alone; `step` is None
    for the program as it is. Of what then waits for the backward pass, `offload` values are sent
    to the host.
    """

    level: int | None
    segment: int
    step: Step | Held | None
    offload: int = 0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A program under a schedule; `seconds` by the roofline. `before` has its scans alone."""

    choice: Choice
    before: Graph
    graph: Graph
    live: Liveness
    seconds: float

    @property
    def bytes(self) -> int:
        """Predicted peak: arguments, outputs and temporaries, less what is donated."""
        return self.live.peak_bytes


@dataclass
class Frontier:
    """The candidates for one joint graph on one device; `donated` are positions of inputs."""

    graph: Graph
    spec: DeviceSpec
    donated: frozenset[int] = frozenset()
    _known_turns: dict[Graph, list[tuple[float, int, float]]] = field(default_factory=dict)
    _known_regions: dict[int, Liveness] = field(default_factory=dict)

    @cached_property
    def clock(self) -> Clock:
        """The device, which remembers what each node takes."""
        return clock(self.spec)

    @cached_property
    def scans(self) -> Scans:
        """The scans of the graph."""
        return Scans(self.graph, self.clock)

    @cached_property
    def plain(self) -> Candidate:
        """The program as it is."""
        return self.candidate(Choice(None, 0, None), self.graph, self.graph)

    @cached_property
    def treatments(self) -> list[Treatment]:
        """What may be done to the scans, and the chain that is left."""
        return [Treatment(self, level, segment, g) for level, segment, g in self._treated()]

    def fastest(self, budget: float) -> Candidate | None:
        """Return the fastest candidate whose predicted peak is within `budget`, or None."""
        found = [c for t in self.treatments if (c := t.fastest(budget)) is not None]
        best = min(found, key=lambda c: (c.seconds, c.bytes), default=None)
        return self.hosted.fastest(self._bases, budget, best)

    @cached_property
    def hosted(self) -> Hosted:
        """What may be sent to the host."""
        return Hosted(self.clock, self.candidate)

    @cached_property
    def _bases(self) -> list[Candidate]:
        """Candidates of which a part may wait on the host, the fastest first."""
        if not self.spec.host_bytes_per_s:
            return []
        found = [t.plain for t in self.treatments]
        found += [t.candidate(n) for t in self.treatments for n in t.sizes[::STRIDE]]
        return sorted(found, key=lambda c: (c.seconds, c.bytes))

    @property
    def leanest(self) -> Candidate:
        """The candidate of the lowest predicted peak."""
        return self.leanest_of_each[0]

    @cached_property
    def leanest_of_each(self) -> list[Candidate]:
        """A few of the lowest predicted peaks, of several treatments of the scans."""
        found = [c for t in self.treatments for c in {t.leanest: 0, t.steady: 0}]
        if self.spec.host_bytes_per_s:
            found += self.hosted.lightest([*found, *(t.plain for t in self.treatments)])
        return sorted(found, key=lambda c: (c.bytes, c.seconds))[:3]

    def of(self, choice: Choice) -> Candidate:
        """Return the candidate for a choice, as from a saved plan."""
        graph = self.graph
        if choice.level is not None:
            graph = self.scans.leaner(choice.level, choice.segment)
        treatment = Treatment(self, choice.level, choice.segment, graph)
        found = treatment.plain if choice.step is None else treatment.under(choice.step)
        return self.hosted.sent(found, choice.offload)

    def gap(self, candidate: Candidate) -> float:
        """How much longer a candidate takes than any schedule of its memory must, in plain steps.

        What is not kept when the backward pass begins runs again: the price that values this
        most gives the bound, by the duality of minimum cuts. Scans are taken as they are. Where
        values may wait on the host, there is no such bound. What XLA makes again anyway is free.
        """
        if not self.plain.seconds:
            return 0.0
        room = candidate.bytes - self._arguments
        bounds = ((size - room) / price + again for price, size, again in self._turns(candidate))
        least = 0.0 if self.spec.host_bytes_per_s else max(0.0, *bounds)
        joint = joint_of(candidate.before)
        once, _ = closure(joint, joint.outputs, ())
        first = sum(map(self.clock.seconds, (*once, *joint.rest)))
        return (candidate.seconds - first - least) / self.plain.seconds

    @cached_property
    def _arguments(self) -> int:
        """Bytes of the arguments that are in memory when the backward pass begins."""
        late = {v for node in joint_of(self.graph).rest for v in node.inputs}
        given = enumerate(self.graph.inputs)
        return sum(v.type.nbytes for i, v in given if i not in self.donated or v in late)

    def _turns(self, candidate: Candidate) -> list[tuple[float, int, float]]:
        """For each price the bytes to keep at the turn, and seconds to make the rest again."""
        if candidate.before not in self._known_turns:
            joint, within = joint_of(candidate.before), repeated(candidate.before)
            times = {n: 0.0 if n in within else self.clock.seconds(n) for n in joint.forward}
            seconds = times.__getitem__
            network = Network(joint, joint.forward, joint.required, seconds)
            found = []
            for price in prices(self.clock):
                keep = network.kept(price)
                again, _ = closure(joint, joint.required, keep)
                size = sum(map(joint.bytes, keep))
                found.append((price, size, sum(map(seconds, again))))
            self._known_turns[candidate.before] = found
        return self._known_turns[candidate.before]

    def _treated(self) -> Iterator[tuple[int | None, int, Graph]]:
        """The graph, and that with leaner scans: the Pareto front of bytes and seconds."""
        found: list[tuple[int | None, int, Graph]] = [(None, 0, self.graph)]
        for segment in self.scans.segments:
            for level in range(self.scans.levels):
                found.append((level, segment, self.scans.leaner(level, segment)))
        costs = [self._cost(graph) for _, _, graph in found]
        seen: set[tuple[int, float]] = set()
        for each, (size, seconds) in zip(found, costs, strict=True):
            if (size, seconds) in seen:
                continue
            seen.add((size, seconds))
            others = (cost for cost in costs if cost != (size, seconds))
            if not any(s <= size and t <= seconds for s, t in others):
                yield each

    def _cost(self, graph: Graph) -> tuple[int, float]:
        return self._live(graph).peak_bytes, sum(map(self.clock.seconds, graph.nodes))

    def candidate(self, choice: Choice, before: Graph, graph: Graph) -> Candidate:
        """Measure a graph."""
        seconds = self.clock.total(graph.nodes)
        return Candidate(choice, before, graph, self._live(graph), seconds)

    def _live(self, graph: Graph) -> Liveness:
        return liveness(graph, self.donated, fused=True, known=self._known_regions)


@dataclass
class Treatment:
    """A graph whose scans are settled, and the schedules of its chain."""

    frontier: Frontier
    level: int | None
    segment: int
    graph: Graph
    _known: dict[Step | Held, Candidate] = field(default_factory=dict)

    @cached_property
    def joint(self) -> Joint:
        """The halves of the graph."""
        return joint_of(self.graph)

    @cached_property
    def chain(self) -> Chain:
        """Its segments."""
        return chain(self.joint, self.times.__getitem__)

    @cached_property
    def times(self) -> dict[Node, float]:
        """Seconds of each forward node."""
        return {node: self.frontier.clock.seconds(node) for node in self.joint.forward}

    @cached_property
    def kinds(self) -> list[Hashable]:
        """Keys of the segments: those that are alike are looked at once."""
        return kinds(self.joint, self.chain, self.frontier.clock.seconds)

    @cached_property
    def kept(self) -> list[list[frozenset[Value]]]:
        """For each segment the sets of values to keep, from most to none."""
        known: dict[Hashable, list[list[int]]] = {}
        found = []
        for kind, segment in zip(self.kinds, self.chain.segments, strict=True):
            values = [v for node in segment.forward for v in node.outputs]
            if kind not in known:
                known[kind] = self._ladder(segment, values)
            found.append([frozenset(values[i] for i in keep) for keep in known[kind]])
        return found

    def _ladder(self, segment: Segment, values: Sequence[Value]) -> list[list[int]]:
        """The sets as positions in `values`."""
        place = {v: i for i, v in enumerate(values)}
        own = [v for v in values if v in self._required]
        sets = ladder(self.joint, segment.forward, own, self.frontier.clock)
        return [[place[v] for v in keep] for keep in sets]

    @cached_property
    def _required(self) -> frozenset[Value]:
        return frozenset(self.joint.required)

    @cached_property
    def schedules(self) -> Schedules:
        """All schedules of the chain, by memory."""
        known: dict[Hashable, Link] = {}
        for kind, segment, sets in zip(self.kinds, self.chain.segments, self.kept, strict=True):
            if kind not in known:
                known[kind] = self._link(segment, sets)
        links = [known[kind] for kind in self.kinds]
        most = sum(link.entry + max(o.bytes for o in link.options) for link in links)
        most += max(max(o.working for o in link.options) for link in links)
        return Schedules(links, most)

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of slots to try, rising, that have a schedule."""
        tried = np.unique(np.geomspace(1, SLOTS, 4 * STEPS).astype(int))
        able = [int(n) for n in tried if np.isfinite(self.schedules.seconds(int(n)))]
        return sorted({able[int(i)] for i in np.linspace(0, len(able) - 1, STEPS)}) if able else []

    @cached_property
    def leanest(self) -> Candidate:
        """The candidate of the lowest peak among the smallest schedules, and the plain one."""
        every = (self.steady, *self.searched)
        return min(every, key=lambda c: (c.bytes, c.seconds))

    @cached_property
    def steady(self) -> Candidate:
        """The same, without those that rely on what XLA makes inside loops, and on its order."""
        found = [self.candidate(n) for n in self.sizes[:6]]
        return min([*found, self.plain], key=lambda c: (c.bytes, c.seconds))

    @cached_property
    def stages(self) -> Stages:
        """All schedules by stages."""
        return Stages(self.units)

    @cached_property
    def units(self) -> Units:
        """What these schedules decide about."""
        clock, donated = self.frontier.clock, self.frontier.donated
        return units_of(self.joint, self.chain, clock.seconds, donated)

    @cached_property
    def local(self) -> Local | None:
        """A search over the schedules by stages, where the program is small."""
        small = len(self.joint.forward) <= LONGEST and is_small(self.units)
        return Local(self.stages) if small else None

    def states(self, aim: float = 0) -> list[State]:
        """Schedules that it finds down to somewhat below `aim` bytes, the fastest first."""
        found = [*self.local.states(aim), *self._bare] if self.local else []
        return sorted(found, key=lambda state: state.seconds)

    @cached_property
    def _bare(self) -> list[State]:
        return self.local.bare() if self.local else []

    @cached_property
    def _rest(self) -> float:
        """Seconds of what no state tells of: the rest's nodes."""
        return sum(map(self.frontier.clock.seconds, self.joint.rest))

    @cached_property
    def searched(self) -> list[Candidate]:
        """The program under these."""
        return [self.under(self.stages.schedule(state)) for state in self.states()]

    @cached_property
    def plain(self) -> Candidate:
        """The graph without fences."""
        choice = Choice(self.level, self.segment, None)
        return self.frontier.candidate(choice, self.graph, self.graph)

    def fastest(self, budget: float) -> Candidate | None:
        """Return the fastest candidate within `budget`: the largest schedule that is."""
        best = _fastest([*self._near(budget), self.plain], budget)
        for state in self.states(budget):
            if best is not None and LEAST * (state.seconds + self._rest) > best.seconds:
                break
            found = self.under(self.stages.schedule(state))
            best = _fastest([*filter(None, [best]), found], budget)
        if best is None and self.leanest.bytes <= budget:
            return self.leanest
        return best

    def _near(self, budget: float) -> list[Candidate]:
        """The schedules of the chain about the largest one within `budget`."""
        low, high = 0, len(self.sizes) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.candidate(self.sizes[middle]).bytes <= budget:
                low = middle
            else:
                high = middle - 1
        return [self.candidate(n) for n in self.sizes[low : low + 3]]

    def candidate(self, slots: int) -> Candidate:
        """Return the program under the best schedule within so many slots."""
        return self.under(self.schedules.step(slots))

    def under(self, step: Step | Held) -> Candidate:
        """Return the program under a schedule."""
        if step not in self._known:
            name = self.graph.name
            if isinstance(step, Held):
                graph = self.stages.graph(name, step)
            else:
                graph = Replay(self.joint, self.chain, self.kept).graph(name, step)
            choice = Choice(self.level, self.segment, step)
            self._known[step] = self.frontier.candidate(choice, self.graph, graph)
        return self._known[step]

    def _link(self, segment: Segment, sets: Sequence[Collection[Value]]) -> Link:
        """The segment in numbers."""
        joint, long, seconds = self.joint, self.chain.long, self.times.__getitem__
        wanted = joint.reads(segment.rest)
        options = []
        for keep in sets:
            have = {*keep, *segment.entry, *long}
            again, _ = closure(joint, wanted, have)
            size = sum(joint.bytes(v) for v in keep)
            working = _peak(joint, [*again, *segment.rest], have)
            options.append(Option(size, sum(map(seconds, again)), working))
        return Link(
            sum(joint.bytes(v) for v in segment.entry),
            sum(map(seconds, segment.forward)),
            _peak(joint, segment.forward, {*segment.entry, *long}),
            tuple(options),
        )


def _fastest(candidates: Sequence[Candidate], budget: float) -> Candidate | None:
    """The fastest of those within `budget`."""
    able = (c for c in candidates if c.bytes <= budget)
    return min(able, key=lambda c: (c.seconds, c.bytes), default=None)


def _peak(joint: Joint, nodes: Sequence[Node], have: Collection[Value]) -> int:
    """Bytes at the peak of what `nodes` make and read; what is in `have` is counted elsewhere."""
    last = {v: i for i, node in enumerate(nodes) for v in joint.roots[node]}
    own = {v for node in nodes for v in node.outputs}
    live = {
        v: v.type.nbytes
        for v in last
        if v in joint.made and v not in own and v not in have and v not in joint.place
    }
    total = peak = sum(live.values())
    for i, node in enumerate(nodes):
        for value, size in joint.buffers[node]:
            if value in last and value not in have:
                live[value] = size
                total += size
        peak = max(peak, total)
        for value in joint.roots[node]:
            if last[value] == i:
                total -= live.pop(value, 0)
    return peak
