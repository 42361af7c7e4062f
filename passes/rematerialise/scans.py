"""What a scan stacks for its backward scan: less, and in nested scans.

c, ys, stack = scan(f)(c, xs);  ct = reverse scan(b)(ct, stack, xs)
->  f stacks fewer values, b makes the rest again from them and from the carry

with a segment of so many steps: an outer scan stacks its carry alone; its backward step runs
the segment forward, stacking as above, and then backward
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...ir.builder import Builder
from ...ir.device import DeviceSpec
from ...ir.graph import Graph, Value
from ...ir.ops import OPS
from ..dce import Dce
from ..rewriter import substituted
from .joint import Joint
from .keep import closure, ladder
from .pairs import Pair, pairs
from .replay import Replay
from .segments import chain


@dataclass(frozen=True)
class Scans:
    """The pairs of a joint graph, and the ladder of what each may stack."""

    graph: Graph
    spec: DeviceSpec

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs in order."""
        return pairs(self.graph)

    @cached_property
    def ladders(self) -> list[list[frozenset[Value]]]:
        """For each pair what it may stack, from most to least."""
        return [_ladder(pair, self.spec) for pair in self.pairs]

    @property
    def levels(self) -> int:
        """How many rungs the longest ladder has."""
        return max(map(len, self.ladders), default=0)

    @property
    def segments(self) -> list[int]:
        """Segment lengths worth a try: divisors of the longest scan; 0 is no segments."""
        longest = max((pair.forward.length for pair in self.pairs), default=0)
        divisors = [n for n in range(2, longest // 2 + 1) if longest % n == 0]
        middle = longest**0.5
        return [0, *sorted(sorted(divisors, key=lambda n: abs(n - middle) / (n + middle))[:3])]

    def leaner(self, level: int, segment: int = 0) -> Graph:
        """Return the graph with its scans stacking less: the more so the higher the level.

        With a `segment` the forward scans run again, so many steps at a time, where that divides
        their length.
        """
        sets = [rungs[min(level, len(rungs) - 1)] for rungs in self.ladders]
        lean = [
            _lean(pair, self.spec, keep, segment)
            for pair, keep in zip(self.pairs, sets, strict=True)
        ]
        return _rewritten(self.graph, lean)


def _ladder(pair: Pair, spec: DeviceSpec) -> list[frozenset[Value]]:
    """What the forward scan may stack, with what can't be made again: the carry, say."""
    joint = pair.joint
    sets = ladder(joint, joint.forward, joint.required, spec)
    return list(dict.fromkeys(_possible(joint, keep) for keep in sets))


def _possible(joint: Joint, keep: frozenset[Value]) -> frozenset[Value]:
    again, _ = closure(joint, joint.required, keep | joint.once)
    read = {v for node in again for v in node.inputs}.union(joint.required)
    return keep | (joint.once & read)


def _rewritten(graph: Graph, lean: Sequence[_Lean]) -> Graph:
    """The graph with each pair emitted anew, and without what nobody reads any more."""
    first = {each.pair.forward.node: each for each in lean}
    second = {each.pair.backward.node: each for each in lean}
    stacks: dict[_Lean, Sequence[Value]] = {}
    b = Builder(OPS)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = [env.get(v, v) for v in node.inputs]
        b.origin, b.phase = node.origin, node.phase
        if node in first:
            outputs, stacks[first[node]] = first[node].forward(b, inputs)
            env.update(zip(node.outputs, outputs, strict=True))
        elif node in second:
            each = second[node]
            before = [env.get(v, v) for v in each.pair.forward.node.inputs]
            outputs = each.backward(b, before, inputs, stacks[each])
            env.update(zip(node.outputs, outputs, strict=True))
        else:
            b.nodes.append(substituted(node, env))
    return Dce()(b.graph(graph.name, graph.inputs, [env.get(v, v) for v in graph.outputs]))


@dataclass(frozen=True, eq=False)
class _Lean:
    """How a pair is written again: `body` is the backward step, which reads `stacked` values.

    Its consts and xs are those of the forward scan and its own, its xs begin with the stacks.
    `segment` is a number of steps, or 0.
    """

    pair: Pair
    stacked: tuple[Value, ...]
    body: Graph
    segment: int

    def forward(
        self, b: Builder, inputs: Sequence[Value]
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        """Emit the forward scan; gives its outputs and its stacks, or those of the segments."""
        scan = self.pair.forward
        if not self.segment:
            return self._forward(b, inputs, scan.length, self.stacked)
        consts, carry, xs = scan.parts
        sub = b.nested()
        own = [sub.value(v.type) for v in (*inputs[consts], *inputs[carry])]
        cut = [self._cut(b, x) for x in inputs[xs]]
        slices = [sub.value(x.type.with_shape(x.shape[1:])) for x in cut]
        outputs, _ = self._forward(sub, (*own, *slices), self.segment, ())
        body = sub.graph(scan.body.name, (*own, *slices), (*outputs, *own[carry]))
        attrs = {**scan.node.attrs, "length": scan.length // self.segment}
        found = b.emit("scan", (*inputs[consts], *inputs[carry], *cut), attrs, (body,))
        carries, ys = found[: scan.carried], found[scan.carried : len(outputs)]
        return (*carries, *(self._joined(b, y) for y in ys)), found[len(outputs) :]

    def _forward(
        self, b: Builder, inputs: Sequence[Value], length: int, stacked: Sequence[Value]
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        scan = self.pair.forward
        body = replace(scan.body, outputs=(*scan.body.outputs, *stacked))
        found = b.emit("scan", inputs, {**scan.node.attrs, "length": length}, (body,))
        count = len(scan.body.outputs)
        return found[:count], found[count:]

    def backward(
        self,
        b: Builder,
        before: Sequence[Value],
        inputs: Sequence[Value],
        stacks: Sequence[Value],
    ) -> Sequence[Value]:
        """Emit the backward scan; `before` are the forward scan's inputs."""
        f, scan = self.pair.forward, self.pair.backward
        if not self.segment:
            return self._backward(b, before, inputs, stacks, scan.length)
        f_consts, f_carry, f_xs = f.parts
        consts, carry, xs = scan.parts
        outer_consts = (*before[f_consts], *inputs[consts])
        cut = [*stacks, *(self._cut(b, x) for x in (*before[f_xs], *inputs[xs]))]
        sub = b.nested()
        fixed = [sub.value(v.type) for v in (*outer_consts, *inputs[carry])]
        slices = [sub.value(x.type.with_shape(x.shape[1:])) for x in cut]
        own_consts, own_carry = fixed[: len(outer_consts)], fixed[len(outer_consts) :]
        start, slices_f, slices_b = _split(slices, len(stacks), len(before[f_xs]))
        inner = [*own_consts[: len(before[f_consts])], *start, *slices_f]
        sub.phase = "backward"
        _, kept = self._forward(sub, inner, self.segment, self.stacked)
        again = [*own_consts[len(before[f_consts]) :], *own_carry, *slices_b]
        outputs = self._backward(sub, inner, again, kept, self.segment)
        body = sub.graph(scan.body.name, (*fixed, *slices), outputs)
        attrs = {
            **scan.node.attrs,
            "num_consts": len(outer_consts),
            "length": scan.length // self.segment,
        }
        found = b.emit("scan", (*outer_consts, *inputs[carry], *cut), attrs, (body,))
        ys = (self._joined(b, y) for y in found[scan.carried :])
        return (*found[: scan.carried], *ys)

    def _backward(
        self,
        b: Builder,
        before: Sequence[Value],
        inputs: Sequence[Value],
        stacks: Sequence[Value],
        length: int,
    ) -> Sequence[Value]:
        f_consts, _, f_xs = self.pair.forward.parts
        consts, carry, xs = self.pair.backward.parts
        given = (*before[f_consts], *inputs[consts], *inputs[carry])
        sliced = (*stacks, *before[f_xs], *inputs[xs])
        attrs = {
            **self.pair.backward.node.attrs,
            "num_consts": len(before[f_consts]) + len(inputs[consts]),
            "length": length,
        }
        return b.emit("scan", (*given, *sliced), attrs, (self.body,))

    def _cut(self, b: Builder, x: Value) -> Value:
        """`[n, ...]` in segments, `[n / segment, segment, ...]`."""
        return b.reshape(x, (x.shape[0] // self.segment, self.segment, *x.shape[1:]))

    def _joined(self, b: Builder, y: Value) -> Value:
        return b.reshape(y, (y.shape[0] * y.shape[1], *y.shape[2:]))


def _split(values: Sequence[Value], *counts: int) -> list[list[Value]]:
    """The first so many, the next so many, ..., and the rest."""
    found, start = [], 0
    for count in counts:
        found.append(list(values[start : start + count]))
        start += count
    return [*found, list(values[start:])]


def _lean(pair: Pair, spec: DeviceSpec, keep: frozenset[Value], segment: int) -> _Lean:
    joint = pair.joint
    stacked = tuple(sorted(keep, key=joint.place.__getitem__))
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
    body = Graph(scan.name, inputs, tuple(replay.b.nodes), outputs)
    divides = 1 < segment < pair.forward.length and pair.forward.length % segment == 0
    return _Lean(pair, stacked, body, segment if divides else 0)
