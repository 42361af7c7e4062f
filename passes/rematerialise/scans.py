"""What a scan stacks for its backward scan: less, at a price, and in nested scans.

c, ys, kept = scan(f)(c, xs);  ct = reverse scan(b)(ct, kept, xs)
->  f keeps what a minimum cut tells, b makes the rest again from it and from its carry

with segments of `length` steps: an outer scan keeps its carry alone; its backward step runs
the segment forward, keeping as above, and then backward
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...ir.builder import Builder
from ...ir.device import DeviceSpec
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops import OPS
from ..dce import Dce
from ..rewriter import substituted
from .joint import Joint
from .keep import kept
from .replay import Replay
from .segments import chain


@dataclass(frozen=True)
class Scan:
    """A scan node taken apart: consts, carry and xs, outside and inside its body."""

    node: Node

    @property
    def body(self) -> Graph:
        """The function of one step."""
        return self.node.regions[0]

    @property
    def length(self) -> int:
        """Number of steps."""
        return int(self.node.attrs["length"])

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Where the consts, the carry and the xs stand among the inputs."""
        n, k = self.node.attrs["num_consts"], self.node.attrs["num_carry"]
        return slice(0, n), slice(n, n + k), slice(n + k, None)

    @property
    def carried(self) -> int:
        """Number of outputs that are the final carry."""
        return int(self.node.attrs["num_carry"])


@dataclass(frozen=True)
class Pair:
    """A forward scan and the backward scan that reads what it stacks.

    Inside, `known` maps inputs of the backward body to the forward body's own values.
    """

    forward: Scan
    backward: Scan

    @cached_property
    def known(self) -> dict[Value, Value]:
        """Backward body's inputs that are values of the forward body."""
        f, b = self.forward, self.backward
        stacked = dict(zip(f.node.outputs[f.carried :], f.body.outputs[f.carried :], strict=True))
        consts, _, xs = f.parts
        sliced = dict(zip(f.node.inputs[xs], f.body.inputs[xs], strict=True))
        whole = dict(zip(f.node.inputs[consts], f.body.inputs[consts], strict=True))
        b_consts, _, b_xs = b.parts
        found = {}
        for outer, inner in zip(b.node.inputs[b_xs], b.body.inputs[b_xs], strict=True):
            value = stacked.get(outer, sliced.get(outer))
            if value is not None and value.type == inner.type:
                found[inner] = value
        for outer, inner in zip(b.node.inputs[b_consts], b.body.inputs[b_consts], strict=True):
            if outer in whole:
                found[inner] = whole[outer]
        return found

    @cached_property
    def joint(self) -> Joint:
        """One step forward and backward. The carry exists only where it was stacked."""
        f, b = self.forward, self.backward
        consts, carry, xs = f.parts
        entry = Node(_ENTRY, (), f.body.inputs[carry])
        rest = [
            replace(node, inputs=tuple(self.known.get(v, v) for v in node.inputs))
            for node in b.body.nodes
        ]
        own = [v for v in b.body.inputs if v not in self.known]
        inputs = (*f.body.inputs[consts], *f.body.inputs[xs], *own)
        outputs = tuple(self.known.get(v, v) for v in b.body.outputs)
        return Joint(inputs, (entry, *f.body.nodes), tuple(rest), outputs)


def _no_shape(inputs: object, attrs: object, regions: object) -> tuple[()]:
    return ()


# Stands for the carry at a step's start: an effect, as it can't be made again.
_ENTRY = Op("entry", _no_shape, lambda *_: [], effect="entry")


def pairs(graph: Graph) -> list[Pair]:
    """The scans of a joint graph whose stacks one backward scan reads."""
    found = []
    for node in graph.nodes:
        if node.op.name != "scan" or node.phase != "forward":
            continue
        stacks = set(node.outputs[node.attrs["num_carry"] :])
        readers = {
            user
            for value in stacks
            for user in graph.users.get(value, ())
            if user.op.name == "scan"
            and user.phase == "backward"
            and user.attrs["length"] == node.attrs["length"]
            and user.attrs["reverse"] != node.attrs["reverse"]
        }
        if len(readers) == 1:
            pair = Pair(Scan(node), Scan(readers.pop()))
            if not set(pair.known.values()).isdisjoint(pair.joint.place):
                found.append(pair)
    return found


def leaner(graph: Graph, spec: DeviceSpec, price: float, segment: int = 0) -> Graph:
    """Return `graph` with its scans stacking what is worth it at `price`, in bytes for a second.

    With a `segment` the forward scans run again, so many steps at a time, where that divides
    their length.
    """
    lean = [_lean(pair, spec, price, segment) for pair in pairs(graph)]
    if not lean:
        return graph
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


def _lean(pair: Pair, spec: DeviceSpec, price: float, segment: int) -> _Lean:
    joint = pair.joint
    keep = kept(joint, joint.forward, joint.required, spec.seconds, price)
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


def lengths(graph: Graph) -> list[int]:
    """Segment lengths worth a try for the scans of a graph; 0 is no segments."""
    found = pairs(graph)
    if not found:
        return []
    longest = max(pair.forward.length for pair in found)
    divisors = [n for n in range(2, longest // 2 + 1) if longest % n == 0]
    middle = longest**0.5
    return [0, *sorted(sorted(divisors, key=lambda n: abs(n - middle) / (n + middle))[:3])]
