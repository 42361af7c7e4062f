"""Write a schedule out as a graph: what is made again stands where it is needed, behind fences.

XLA merges a node that runs again with its first run, or runs it early, unless it can't see that
they are equal. So each part of the backward pass looks like this:

    kept, cts = optimization_barrier(kept, cts)      not before its cotangents are there
    made = forward nodes of kept                     kernels, and what they read
    made, kept, cts = optimization_barrier(...)      the derivatives see the second run alone
    cheap forward nodes of made and kept             XLA makes them inside the derivatives' loops
    backward nodes of all of these and cts
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.builder import Builder
from ...ir.fusion import free_values, is_fusible
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from .joint import Joint
from .keep import closure
from .schedule import Drop, Keep, Step
from .segments import Chain
from .turns import in_turn


def loose(nodes: Sequence[Node], tied: Collection[Value]) -> list[Value]:
    """The program's inputs that `nodes` start from and that nothing else holds back.

    Where a kernel starts from a number alone, as a key does from its seed, that number.
    """
    held = set(tied)
    found: dict[Value, None] = {}
    made = {v for node in nodes for v in node.outputs}
    for node in nodes:
        if held.isdisjoint(node.inputs):
            start = [v for v in node.inputs if v not in made]
            outer = [v for v in start if not isinstance(v, Literal)]
            if not outer and not is_fusible(node):
                outer = start
            if not outer:
                continue
            found.update(dict.fromkeys(outer))
            held.update(outer)
        held.update(node.outputs)
    return list(found)


@dataclass
class Replay:
    """Emits the rest of `joint` in the order of a schedule.

    `have` maps forward values that are in memory to their present copies, `now` those of the
    rest. `done` are results of a part that a later one or the caller reads: they pass the next
    fence, so that they are made before what follows, if that waits for nothing else.
    """

    joint: Joint
    chain: Chain
    kept: Sequence[Sequence[Collection[Value]]]
    b: Builder = field(default_factory=lambda: Builder(OPS))
    have: dict[Value, Value] = field(default_factory=dict)
    now: dict[Value, Value] = field(default_factory=dict)
    done: list[Value] = field(default_factory=list)

    def graph(self, name: str, step: Step) -> Graph:
        """Return the whole program under the schedule `step`."""
        joint = self.joint
        self.b.nodes.extend(in_turn(joint.forward, self._constant)[0])
        returned = [joint.root[v] for v in joint.outputs if v in joint.root]
        self.have.update((v, v) for v in (*self.chain.long, *returned))
        self._run(step, len(self.chain.segments) - 1, first=True)
        return self.b.graph(name, joint.inputs, [self.now.get(v, v) for v in joint.outputs])

    def staged(
        self, name: str, again: Sequence[Sequence[Node]], held: Sequence[Collection[Value]]
    ) -> Graph:
        """Return the whole program, the parts of the chain in order: the last one first.

        `again[t]` are forward nodes that run again before part t, `held[t]` what it begins with,
        besides what the program returns.
        """
        joint = self.joint
        self.b.nodes.extend(in_turn(joint.forward, self._constant)[0])
        always = {joint.root[v] for v in joint.outputs if v in joint.root}
        self.have.update((v, v) for v in (*always, *held[-1]))
        cheap = [v for v in held[-1] if is_fusible(joint.forward[joint.place[v]])]
        if cheap:  # held itself, rather than what it is made of in the loop of its reader
            self.b.phase = "backward"
            copies = self.b.emit("optimization_barrier", cheap)
            self.have.update(zip(cheap, copies, strict=True))
        for at in reversed(range(len(again))):
            nodes, stay = again[at], {*always, *(held[at - 1] if at else ())}
            dear = _upstream(nodes, stay)
            made = [(n, v) for n in nodes for v in n.outputs if joint.root[v] is v]
            keep = [v for n, v in made if joint.bytes(v) and n in dear]
            self._sweep(keep, at, first=False)
            self._backward(at)
            self.have = {v: copy for v, copy in self.have.items() if v in stay}
        return self.b.graph(name, joint.inputs, [self.now.get(v, v) for v in joint.outputs])

    def again(self) -> tuple[Value, ...]:
        """Emit the rest from what `have` holds, without the first forward run; gives the outputs.

        Entries of segments that have to be made again anyway are made first, all in one run.
        """
        nodes, _ = closure(self.joint, self.joint.required, self.have)
        made = {v for node in nodes for v in node.outputs}
        entries = [v for segment in self.chain.segments for v in segment.entry if v in made]
        end = len(self.chain.segments) - 1
        self._sweep([*entries, *(v for v in self.chain.long if v in made)], end, first=False)
        for at in reversed(range(end + 1)):
            self._backward(at)
        missing = [v for v in self.joint.outputs if v in self.joint.place and v not in self.have]
        self._sweep(missing, 0, first=False)
        return tuple(self.now.get(v, self.have.get(v, v)) for v in self.joint.outputs)

    def _run(self, step: Step, end: int, *, first: bool) -> None:
        if isinstance(step, Drop):
            entry = self.chain.segments[step.to].entry
            self._sweep(entry, end, first)
            self._run(step.then, end, first=first)
            self._run(step.again, step.to - 1, first=False)
            return
        kept = self.kept[step.at][step.option]
        if isinstance(step, Keep):
            self._sweep([*kept, *self.chain.segments[step.at + 1].entry], end, first)
            self._run(step.then, end, first=first)
        elif first:
            self._sweep(kept, end, first)
        self._backward(step.at)

    def _sweep(self, keep: Collection[Value], end: int, first: bool) -> None:
        """Run forward to the values to keep, when backward has come to segment `end`."""
        if first:
            self.have.update((v, v) for v in keep)
            return
        missing = [v for v in keep if v not in self.have]
        again, read = closure(self.joint, missing, self.have)
        local = self._tied(again, read, self._cts(end))
        self._emit(again, local)
        self.have.update((v, local[v]) for v in missing)

    def _backward(self, at: int) -> None:
        nodes = self.chain.segments[at].rest
        wanted = self.joint.reads(nodes)
        again, read = closure(self.joint, wanted, self.have)
        cts = self._cts(at)
        local = self._tied(again, read, cts)
        dear = _upstream(again)
        self._emit([node for node in again if node in dear], local)
        cheap = [node for node in again if node not in dear]
        if dear:
            later = dict.fromkeys(v for node in (*cheap, *nodes) for v in node.inputs)
            seen = [v for v in later if v in local and v not in self._constant]
            local.update(zip(seen, self._fence([local[v] for v in seen], cts), strict=True))
        self._emit(cheap, local)
        for node in nodes:
            self.b.phase = node.phase
            copy = self.b.clone(node, [self.now.get(v, local.get(v, v)) for v in node.inputs])
            self.now.update(zip(node.outputs, copy.outputs, strict=True))
        results = (v for node in nodes for v in node.outputs if v not in self._constant)
        self.done = [v for v in (*self.done, *results) if self._reader.get(v, at) < at]

    def _tied(
        self, again: Sequence[Node], read: Sequence[Value], cts: Sequence[Value]
    ) -> dict[Value, Value]:
        """Copies of what the second run starts from, which are not there before `cts`."""
        start = [*read, *loose(again, read)]
        copies = self._fence([self.have.get(v, v) for v in start], cts)
        return dict(zip(start, copies, strict=True))

    def _cts(self, at: int) -> list[Value]:
        """What the backward part of segment `at` reads of those after it.

        Where that is nothing, as of a segment that nobody differentiates, what the next one reads.
        """
        for segment in reversed(self.chain.segments[: at + 1]):
            inputs = dict.fromkeys(v for node in segment.rest for v in node.inputs)
            found = [v for v in inputs if v in self.now and v not in self._constant]
            if found:
                return found
        return []

    @cached_property
    def _constant(self) -> set[Value]:
        """Zeros and the like: no fence holds them, as it would have them lie in memory."""
        return free_values((), (*self.joint.forward, *self.joint.rest))

    @cached_property
    def _reader(self) -> dict[Value, int]:
        """The last segment whose backward part reads a value; the caller comes after all."""
        found = dict.fromkeys(self.joint.outputs, -1)
        for at, segment in enumerate(self.chain.segments):
            for value in (v for node in segment.rest for v in node.inputs):
                found.setdefault(value, at)
        return found

    def _fence(self, values: Sequence[Value], cts: Sequence[Value]) -> Sequence[Value]:
        """Pass values and cotangents through a barrier; the cotangents' copies are the new ones."""
        passed = [*dict.fromkeys((*cts, *self.done))]
        if not values or not passed:
            return values
        self.done = []
        self.b.phase = "backward"
        found = self.b.emit("optimization_barrier", [*values, *(self.now[v] for v in passed)])
        self.now.update(zip(passed, found[len(values) :], strict=True))
        return found[: len(values)]

    def _emit(self, nodes: Sequence[Node], local: dict[Value, Value]) -> None:
        self.b.phase = "backward"
        ordered, copies = in_turn(nodes, self._constant)
        for node in ordered:
            copy = self.b.clone(node, [local.get(v, v) for v in node.inputs])
            local.update(zip(node.outputs, copy.outputs, strict=True))
        local.update((v, local[copy]) for v, copy in copies.items())


def _upstream(nodes: Sequence[Node], wanted: Collection[Value] = ()) -> set[Node]:
    """The kernels among `nodes`, what makes `wanted`, and all that these depend on."""
    needed = set(wanted)
    found: set[Node] = set()
    for node in reversed(nodes):
        if not is_fusible(node) or not needed.isdisjoint(node.outputs):
            found.add(node)
            needed.update(node.inputs)
    return found
