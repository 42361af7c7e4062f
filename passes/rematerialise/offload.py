"""Values that wait in the host's memory from the forward pass to the backward pass.

    y = f(x); ...; g(y, ct)
->  y = f(x); ...; h = offload(y); ...; h, ct = optimization_barrier(h, ct); y' = fetch(h);
    ...; g(y', ct)

    ys = scan(f); ...; scan(g)(ys)
->  the step of f ends with an offload of its y, the step of g begins with a fetch of its own

Copies run beside the arithmetic. An `offload` stands where the link has sent its operand, which is
in the device's memory until then, a `fetch` where it has to begin for its result to be there in
time; the barrier keeps XLA from fetching it sooner. A value whose wait is too short for both stays.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ...ir.builder import Builder
from ...ir.cost import VIEWS
from ...ir.device import DeviceSpec
from ...ir.fusion import inlined
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ..dce import Dce
from .waits import Waits

Gaps = dict[Value, tuple[int, int]]


def offloaded(waits: Waits, values: Sequence[Value], spec: DeviceSpec) -> Graph:
    """Let `values`, some of the `parcels` of a graph, wait on the host."""
    sent = dict.fromkeys(v for v in values if v in waits.stacks)
    graph = _by_slices(waits.graph, sent)
    return _whole(graph, waits.gaps, [v for v in values if v not in sent], spec)


def _by_slices(graph: Graph, sent: Collection[Value]) -> Graph:
    """Send what scans stack slice by slice."""
    if not sent:
        return graph
    away = {v: Value(v.type.on_host()) for v in sent}
    nodes = []
    for node in graph.nodes:
        if not away.keys().isdisjoint(node.outputs):
            node = _sending(node, away)
        if not away.keys().isdisjoint(node.inputs):
            node = _fetching(node, away)
        nodes.append(node)
    return Graph(graph.name, graph.inputs, tuple(nodes), graph.outputs)


def _sending(node: Node, away: dict[Value, Value]) -> Node:
    """The scan whose step sends what it stacks, at its end."""
    (body,) = node.regions
    nodes, outputs = list(body.nodes), list(body.outputs)
    for i, value in enumerate(node.outputs):
        if value in away:
            maker = body.producer.get(outputs[i], node)
            copy = Value(outputs[i].type.strong().on_host())
            inputs = (outputs[i],)
            nodes.append(Node(OPS["offload"], inputs, (copy,), origin=maker.origin))
            outputs[i] = copy
    region = replace(body, nodes=tuple(nodes), outputs=tuple(outputs))
    return replace(node, outputs=tuple(away.get(v, v) for v in node.outputs), regions=(region,))


def _fetching(node: Node, away: dict[Value, Value]) -> Node:
    """The scan whose step begins by fetching its slices, in the order of their use."""
    (body,) = node.regions
    inputs, copies = list(body.inputs), []
    for i, value in enumerate(node.inputs):
        if value in away:
            inputs[i] = Value(body.inputs[i].type.on_host())
            step = Node(OPS["fetch"], (inputs[i],), (body.inputs[i],), phase="backward")
            copies.append(replace(step, origin=node.origin))
    first = {v: -i for i, n in enumerate(reversed(body.nodes)) for v in n.inputs}
    copies.sort(key=lambda copy: first.get(copy.output, 1))
    region = replace(body, inputs=tuple(inputs), nodes=(*copies, *body.nodes))
    return replace(node, inputs=tuple(away.get(v, v) for v in node.inputs), regions=(region,))


def _whole(graph: Graph, gaps: Gaps, values: Collection[Value], spec: DeviceSpec) -> Graph:
    """Send values as a whole, those of which the wait is long enough."""
    if not values:
        return graph
    found = _timetable(graph, gaps, values, spec)
    found = _timetable(graph, gaps, found, spec)  # with less on the link
    return Dce()(_Journey(graph, found).graph()) if found else graph


def _timetable(graph: Graph, gaps: Gaps, values: Collection[Value], spec: DeviceSpec) -> Gaps:
    """For each value the positions before which its offload and its fetch stand."""
    times = [0.0, *accumulate(map(spec.seconds, graph.nodes))]
    link = spec.host_bytes_per_s or float("inf")
    sent: dict[Value, int] = {}
    free = 0.0
    for value in sorted(values, key=lambda v: gaps[v][0]):
        free = max(free, times[gaps[value][0] + 1]) + value.type.nbytes / link
        sent[value] = max(bisect_left(times, free), gaps[value][0] + 1)
    found = {}
    free = times[-1]
    for value in sorted(values, key=lambda v: -gaps[v][1]):
        free = min(free, times[gaps[value][1]]) - value.type.nbytes / link
        start = min(bisect_right(times, free) - 1, gaps[value][1])
        if sent[value] < start:
            found[value] = sent[value], start
    return found


@dataclass(eq=False)
class _Journey:
    """Emits a graph with copies of values to the host and back, at the positions given."""

    old: Graph
    stops: Gaps

    def graph(self) -> Graph:
        """Return the graph."""
        self.b, self.waits = Builder(OPS), Waits(self.old)
        self.env: dict[Value, Value] = {}
        self.hidden = inlined(self.old)
        sends: dict[int, list[Value]] = {}
        fetches: dict[int, list[Value]] = {}
        for value, (send, fetch) in self.stops.items():
            sends.setdefault(send, []).append(value)
            fetches.setdefault(fetch, []).append(value)
        away: dict[Value, Value] = {}
        for i, node in enumerate(self.old.nodes):
            for value in sends.get(i, ()):
                self._stamp(value, node)
                (away[value],) = self.b.emit("offload", (value,))
            if i in fetches:
                self._fetch(i, {v: away.pop(v) for v in fetches[i]})
            self.b.phase, self.b.origin = node.phase, node.origin
            inputs = tuple(self._now(v, i) for v in node.inputs)
            self.b.nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        outputs = [self._now(v, len(self.old.nodes)) for v in self.old.outputs]
        return self.b.graph(self.old.name, self.old.inputs, outputs)

    def _stamp(self, value: Value, node: Node) -> None:
        """The copies come from where the value comes from."""
        self.b.origin = self.old.nodes[self.waits.place[value]].origin
        self.b.phase = node.phase

    def _fetch(self, at: int, away: dict[Value, Value]) -> None:
        """Fetch values that are on the host, after what was made last before position `at`."""
        tie = self._tie(at)
        self.b.phase = "backward"
        held = list(away.values())
        if tie is not None:
            *held, passed = self.b.emit("optimization_barrier", [*held, self._now(tie, at)])
            self.env[tie] = passed
        for value, copy in zip(away, held, strict=True):
            self._stamp(value, self.old.nodes[at])
            (self.env[value],) = self.b.emit("fetch", (copy,))

    def _tie(self, at: int) -> Value | None:
        """The latest value before `at` that is read after it."""
        for node in reversed(self.old.nodes[:at]):
            for value in () if node.op.name in VIEWS else node.outputs:
                late = self.old.last_use.get(value, 0) >= at and value not in self.hidden
                if late and value not in self.stops and value.type.is_inexact:
                    return value
        return None

    def _now(self, value: Value, at: int) -> Value:
        """The present copy of a value; that of a view is made again from its operand's."""
        chain = []
        root = self.waits.root.get(value, value)
        while value not in self.env and root in self.env and value is not root:
            if self.waits.place[value] >= self.stops.get(root, (0, 0))[1]:
                break
            chain.append(value)
            value = self.old.nodes[self.waits.place[value]].inputs[0]
        found = self.env.get(value, value)
        for view in reversed(chain):
            self.b.phase = "backward"
            node = self.old.nodes[self.waits.place[view]]
            found = self.env[view] = self.b.clone(node, (found,)).output
        return found
