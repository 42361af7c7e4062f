"""A row-wise part of a graph, grown from one wide product, and its program for some of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from .rows import CARRIED, PULLED, Carry, Rows, Where

_REGIONS = {"custom_jvp_call": 2, "custom_vjp_call": 3}


@dataclass
class Body:
    """What is computed row by row: `steps` in order, `rows` of each value that they make.

    `entries` are values of the graph that are fed row by row. What else a step reads is the same
    for all rows. `own` is what no one else computes: the rest of what the steps make is cheap, and
    the graph has it as well. `after` is all that depends on `own` and is not of it, made by the
    nodes `outside`; those that were `divided` stand there in their new form. `nested` is a body
    that is the rule of a function.
    """

    graph: Graph
    count: int
    nested: bool = False
    rows: dict[Value, Rows] = field(default_factory=dict)
    entries: dict[Value, Rows] = field(default_factory=dict)
    steps: list[tuple[Node, Carry]] = field(default_factory=list)
    own: set[Value] = field(default_factory=set)
    after: set[Value] = field(default_factory=set)
    outside: list[Node] = field(default_factory=list)
    divided: dict[Node, Node] = field(default_factory=dict)

    def carry(self, node: Node) -> Carry | None:
        """Make `node` a part of the body, if it works row by row; tells how."""
        known = [self._known(v) for v in node.inputs]
        bare = [r and r.bare(v.shape) for v, r in zip(node.inputs, known, strict=True)]
        for where in (known, bare):
            found = self._carried(node, where)
            steps, entries = len(self.steps), len(self.entries)
            if found is not None and self._take_all(node, found):
                self._add(node, found)
                self.own.update(v for v in node.outputs if v in self.rows)
                return found
            self._undo(steps, entries)
        return None

    def _undo(self, steps: int, entries: int) -> None:
        for node, _ in self.steps[steps:]:
            for value in node.outputs:
                del self.rows[value]
        del self.steps[steps:]
        while len(self.entries) > entries:
            self.entries.popitem()

    def _known(self, value: Value) -> Rows | None:
        return self.rows.get(value, self.entries.get(value))

    def _carried(self, node: Node, known: Sequence[Rows | None]) -> Carry | None:
        if node.op.name in _REGIONS:
            return custom_call(node, known, nested=self.nested)
        rule = CARRIED.get(node.op.name)
        if rule is None or node.regions or not all(v.ndim for v in node.outputs):
            return None
        return rule(node, known)

    def _add(self, node: Node, found: Carry) -> None:
        self.steps.append((node, found))
        pairs = zip(node.outputs, found.outputs, strict=True)
        self.rows.update((value, rows) for value, rows in pairs if rows is not None)

    def _take_all(self, node: Node, found: Carry) -> bool:
        return all(
            self._take(v, rows) if rows else self._is_shared(v)
            for v, rows in zip(node.inputs, found.operands, strict=True)
        )

    def _is_shared(self, value: Value) -> bool:
        return value not in self.own

    def _take(self, value: Value, rows: Rows) -> bool:
        """See to it that the body has `value` with these rows."""
        have = self._known(value)
        if have is not None:
            return prod(value.shape[: have.start]) == prod(value.shape[: rows.start])
        made = self.graph.producer.get(value)
        worth = value.type.size > self.count or self.nested
        if made is not None and worth and made.op.name in PULLED:
            found = PULLED[made.op.name](made, rows)
            if found is not None and self._take_all(made, found):
                self._add(made, found)
                return True
        self.entries[value] = rows
        return True

    def grow(self, seed: Node) -> None:
        """Take in what can be taken of all that is computed from the outputs of `seed`."""
        reached = set(seed.outputs)
        begun = False
        for node in self.graph.nodes:
            if node is seed:
                begun = True
            elif begun and not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
                carried = self.after.isdisjoint(node.inputs) and not node.op.effect
                if carried and self.carry(node):
                    continue
                self.outside.append(node)
                self.after.update(node.outputs)


@dataclass(frozen=True, slots=True)
class Cut:
    """A program of some of the rows: entries and shared values -> outputs.

    A value may be both: the keys of an attention and the residual that is added to its result.
    """

    entries: tuple[Value, ...]
    shared: tuple[Value, ...]
    steps: tuple[tuple[Node, Carry], ...]
    rows: Mapping[Value, Rows]

    def emit(
        self, b: Builder, given: Mapping[Value, Value], shared: Mapping[Value, Value], count: int
    ) -> dict[Value, Value]:
        """Emit the steps for `count` rows of what is `given`; returns values by the whole ones."""
        env = dict(given)

        def read(value: Value, rows: Rows | None) -> Value:
            if rows is None:
                return shared.get(value, value)
            return b.reshape(env[value], rows.cut(value.shape, count))

        for node, carry in self.steps:
            b.origin, b.phase = node.origin, node.phase
            operands = [read(v, r) for v, r in zip(node.inputs, carry.operands, strict=True)]
            env.update(zip(node.outputs, carry.emit(b, operands, count), strict=True))
        return env


def needed(body: Body, wanted: Sequence[Value]) -> Cut:
    """Return the part of the body that makes `wanted`, and what it reads."""
    alive = set(wanted)
    steps = []
    for node, carry in reversed(body.steps):
        if not alive.isdisjoint(node.outputs):
            pairs = zip(node.inputs, carry.operands, strict=True)
            alive.update(v for v, rows in pairs if rows is not None)
            steps.append((node, carry))
    steps.reverse()
    made = {v for node, _ in steps for v in node.outputs}
    entries: dict[Value, None] = {}
    shared: dict[Value, None] = {}
    for node, carry in steps:
        for value, rows in zip(node.inputs, carry.operands, strict=True):
            if rows is None and not isinstance(value, Literal):
                shared[value] = None
            elif rows is not None and value not in made:
                entries[value] = None
    places = {**body.rows, **body.entries}
    return Cut(tuple(entries), tuple(shared), tuple(steps), places)


def custom_call(node: Node, known: Where, *, nested: bool) -> Carry | None:
    """A function with a rule of its own: row-wise if it is, and its rule.

    A rule inside a rule that is not there yet gives way to the function: it is for derivatives of
    the third order.
    """
    later = node.op.rule is not None
    if later and not nested:
        return None
    call = _Region.of(node.regions[0], known)
    if call is None or any(rows is None for rows in call.outputs):
        return None
    ins, outs = call.inputs, call.outputs
    inexact = [rows for v, rows in zip(node.inputs, ins, strict=True) if v.type.is_inexact]
    seeds = [rows for v, rows in zip(node.outputs, outs, strict=True) if v.type.is_inexact]
    rules: _Regions | None = []
    if not later:
        kind = _jvp if node.op.name == "custom_jvp_call" else _vjp
        rules = kind(node, ins, outs, inexact, seeds)
    if rules is None:
        return None
    parts = [call, *rules]

    def emit(b: Builder, xs: Sequence[Value], rows: int) -> Sequence[Value]:
        regions = [part.graph(rows) for part in parts]
        if later:
            return b.inline(regions[0], xs, node.origin)[0]
        return b.emit(node.op, xs, node.attrs, regions)

    return Carry(ins, tuple(rows for rows in outs if rows), emit)


def _jvp(node: Node, ins: Where, outs: Where, inexact: Where, seeds: Where) -> _Regions | None:
    rule = _Region.of(node.regions[1], [*ins, *inexact])
    return [rule] if rule and rule.between([*ins, *inexact], [*outs, *seeds]) else None


def _vjp(node: Node, ins: Where, outs: Where, inexact: Where, seeds: Where) -> _Regions | None:
    """What rows share would have a sum over all rows as its cotangent: nothing may be shared."""
    if None in inexact:
        return None
    forward = _Region.of(node.regions[1], ins)
    if forward is None or not forward.between(ins, [*outs, *forward.outputs[len(outs) :]]):
        return None
    given = [*forward.outputs[len(outs) :], *seeds]
    backward = _Region.of(node.regions[2], given)
    return [forward, backward] if backward and backward.between(given, inexact) else None


@dataclass(frozen=True, slots=True)
class _Region:
    """A region that can run on some rows: where its inputs and outputs have them."""

    region: Graph
    inputs: Where
    outputs: Where
    cut: Cut

    @staticmethod
    def of(region: Graph, inputs: Where) -> _Region | None:
        """Cut a region whose inputs have rows; others get them where the region asks for it."""
        where = {v: r for v, r in zip(region.inputs, inputs, strict=True) if r is not None}
        if not where:
            return None
        first = next(iter(where))
        body = Body(region, where[first].count(first.shape), nested=True)
        body.entries.update(where)
        reached = set(where)
        for node in region.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
                if node.op.effect or body.carry(node) is None:
                    return None
        if not body.entries.keys() <= set(region.inputs):
            return None
        cut = needed(body, [v for v in region.outputs if v in body.rows])
        rows = cut.rows
        if any(v in where for v in cut.shared):
            return None
        ins, outs = ([rows.get(v) for v in vs] for vs in (region.inputs, region.outputs))
        return _Region(region, ins, outs, cut)

    def between(self, inputs: Where, outputs: Where) -> bool:
        """True when rows are where the function has them."""
        return list(self.inputs) == list(inputs) and list(self.outputs) == list(outputs)

    def graph(self, count: int) -> Graph:
        """Return the region for so many rows."""
        b = Builder(OPS)
        ins = [
            Value(v.type if r is None else v.type.with_shape(r.cut(v.shape, count)), v.name)
            for v, r in zip(self.region.inputs, self.inputs, strict=True)
        ]
        env = dict(zip(self.region.inputs, ins, strict=True))
        for node in self.region.nodes:
            if not any(v in self.cut.rows for v in node.outputs):  # shared by all rows
                copy = b.clone(node, [env.get(v, v) for v in node.inputs])
                env.update(zip(node.outputs, copy.outputs, strict=True))
        given = {v: env[v] for v in self.cut.entries}
        made = {**env, **self.cut.emit(b, given, env, count)}
        return b.graph(self.region.name, ins, [made.get(v, v) for v in self.region.outputs])


_Regions = list[_Region]
