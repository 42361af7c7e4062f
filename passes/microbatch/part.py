"""One part of the batch: nodes emitted again, for its samples alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from ..rewriter import Producers
from .linear import NEVER, combined
from .loops import REGIONS
from .rules import PULLED, RULES
from .split import SUM, Coupled, Kind, Partial, Region, Split, Step

INFINITE = float("inf")


class Entry(Protocol):
    """How whole values come into a part from around it."""

    def price(self, value: Value, split: Split) -> float:
        """Bytes that it costs to have a whole value sliced; infinite where it can't be."""

    def sliced(self, value: Value, split: Split) -> Value:
        """Return the part's own slice of a whole value."""

    def whole(self, value: Value) -> Value:
        """Return a whole value as the part reads it."""


class Part:
    """Emits nodes for one of `k` parts of the batch; `kinds` tell what each value is."""

    def __init__(self, k: int, entry: Entry, env: dict[Value, Value]) -> None:
        """Start with no node; `env` is to hold the values of the part."""
        self.k, self.entry, self.env = k, entry, env
        self.b = Builder(OPS)
        self.kinds: dict[Value, Kind] = {}
        self.made = Producers()
        self._narrow: dict[tuple[Value, Split], Value] = {}
        self._filled: dict[Value, Value] = {}
        self._prices: dict[tuple[Value, Split], float] = {}

    def kinds_of(self, values: Sequence[Value]) -> list[Kind]:
        """What values are; those that nothing is known of are whole."""
        return [self.kinds.get(value) for value in values]

    def step(self, node: Node) -> Step:
        """How a node runs that reads a value that is not whole. Raises `Coupled`."""
        kinds = self.kinds_of(node.inputs)
        name = node.op.name
        if name in REGIONS:
            return REGIONS[name](self, node, kinds)
        if any(isinstance(kind, Partial) for kind in kinds):
            return combined(node, kinds)
        if name not in RULES:
            raise Coupled(node, f"it is not known what {name} does with a part of the batch")
        return RULES[name](node, kinds, self.k)

    def region(
        self, graph: Graph, kinds: Sequence[Kind], node: Node, wanted: Mapping[int, Kind]
    ) -> Region:
        """Return a region of `node` for a part; see `loops.Part`."""
        kinds = list(kinds)
        while True:
            try:
                return _run(graph, kinds, self.k, node, wanted)
            except Wider as wider:
                kinds[wider.index] = wider.kind

    def emit(self, node: Node, step: Step) -> None:
        """Emit a node as `step` has it. Raises `Coupled` where an operand can't be had so."""
        inputs = [self.read(x, w, node) for x, w in zip(node.inputs, step.wanted, strict=True)]
        self.b.origin, self.b.phase = node.origin, node.phase
        regions = node.regions if step.regions is None else step.regions
        outs = self.b.emit(step.op or node.op, inputs, {**node.attrs, **step.attrs}, regions)
        for value, out, kind in zip(node.outputs, outs, step.outputs, strict=True):
            self.env[value], self.kinds[value] = out, kind

    def whole(self, value: Value) -> Value:
        """Return a whole value; one number in all places is made anew rather than kept."""
        made = self.made.made_by(value, "broadcast_in_dim")
        if value in self.env or made is None or not isinstance(made.inputs[0], Literal):
            return self.entry.whole(value)
        if value not in self._filled:
            self.b.origin, self.b.phase = made.origin, made.phase
            self._filled[value] = self.b.clone(made, made.inputs).output
        return self._filled[value]

    def keep(self, node: Node) -> None:
        """Emit a node that is the same for every part."""
        copy = self.b.clone(node, list(map(self.whole, node.inputs)))
        self.env.update(zip(node.outputs, copy.outputs, strict=True))

    def read(self, value: Value, wanted: Kind, node: Node) -> Value:
        """Return `value` as one of the kind `wanted`. Raises `Coupled`."""
        kind = self.kinds.get(value)
        if kind == wanted:
            return self.whole(value) if kind is None else self.env[value]
        if kind is not None:
            both = isinstance(kind, Split) and isinstance(wanted, Split)
            raise Coupled(node, "each sample meets every other" if both else NEVER)
        if isinstance(wanted, Split):
            return self.narrowed(value, wanted, node)
        if wanted != SUM:
            raise Coupled(node, NEVER)
        return self.share(value, node)

    def share(self, value: Value, node: Node) -> Value:
        """Return the k-th of a whole value: the parts' add up to it."""
        whole = self.whole(value)
        if self.number(value) == 0:
            return whole
        if not value.type.is_inexact:
            raise Coupled(node, "it adds a whole number to those of the samples")
        return self.b.mul(whole, self.b.broadcast(self.b.literal(1 / self.k, value.dtype), ()))

    def number(self, value: Value) -> Any:
        """Return the number that fills `value`, where it is known."""
        while not isinstance(value, Literal):
            made = self.made.made_by(value, "broadcast_in_dim")
            if made is None:
                return None
            value = made.inputs[0]
        return value.data

    def narrowed(self, value: Value, split: Split, node: Node) -> Value:
        """Return a part's own share of a whole value: made for it alone, or sliced."""
        key = value, split
        if self.kinds.get(value) == split:
            return self.env[value]
        if key not in self._narrow:
            price = self._price(value, split)
            if price == INFINITE:
                raise Coupled(node, f"{value.type} is not made sample by sample")
            pulled = self._pulled(value, split)
            if pulled is None or price == self.entry.price(value, split) < self._cost(*pulled):
                self._narrow[key] = self.entry.sliced(value, split)
            else:
                self._narrow[key] = self._again(*pulled)
        return self._narrow[key]

    def _again(self, node: Node, step: Step) -> Value:
        inputs = [
            self.narrowed(x, w, node) if isinstance(w, Split) else self.whole(x)
            for x, w in zip(node.inputs, step.wanted, strict=True)
        ]
        self.b.origin, self.b.phase = node.origin, node.phase
        return self.b.emit(node.op, inputs, {**node.attrs, **step.attrs})[0]

    def _pulled(self, value: Value, split: Split) -> tuple[Node, Step] | None:
        node = self.made.producer.get(value)
        if node is None or node.op.name not in PULLED or len(node.outputs) > 1:
            return None
        step = PULLED[node.op.name](node, split, self.k)
        if step is None:
            return None
        found = zip(self.kinds_of(node.inputs), step.wanted, strict=True)
        return (node, step) if all(kind in (None, wanted) for kind, wanted in found) else None

    def _cost(self, node: Node, step: Step) -> float:
        pairs = zip(node.inputs, step.wanted, strict=True)
        return sum(self._price(x, w) for x, w in pairs if isinstance(w, Split))

    def _price(self, value: Value, split: Split) -> float:
        """Bytes that are sliced to have a part of a whole value, by the cheapest way."""
        key = value, split
        if self.kinds.get(value) == split:
            return 0.0
        if key not in self._prices:
            pulled = self._pulled(value, split)
            again = INFINITE if pulled is None else self._cost(*pulled)
            self._prices[key] = min(self.entry.price(value, split), again)
        return self._prices[key]


@dataclass(frozen=True)
class Wider(Exception):
    """An input of a region has to be of another kind than it was taken for."""

    index: int
    kind: Kind


class _Inside:
    """The entry into a region: its inputs may be asked for in parts."""

    def __init__(self, region: Graph, env: Mapping[Value, Value]) -> None:
        self.env = env
        self.index = {value: i for i, value in enumerate(region.inputs)}

    def price(self, value: Value, split: Split) -> float:
        return 0.0 if value in self.index else INFINITE

    def sliced(self, value: Value, split: Split) -> Value:
        raise Wider(self.index[value], split)

    def whole(self, value: Value) -> Value:
        return self.env.get(value, value)


def _run(
    region: Graph, kinds: Sequence[Kind], k: int, node: Node, wanted: Mapping[int, Kind]
) -> Region:
    env: dict[Value, Value] = {}
    part = Part(k, _Inside(region, env), env)
    inputs = []
    for value, kind in zip(region.inputs, kinds, strict=True):
        type = value.type
        if isinstance(kind, Split):
            type = type.with_shape(kind.cut(type.shape, k))
        inputs.append(part.b.value(type))
        part.env[value], part.kinds[value] = inputs[-1], kind
    for each in region.nodes:
        part.made.remember([each])
        if all(kind is None for kind in part.kinds_of(each.inputs)):
            part.keep(each)
        else:
            part.emit(each, part.step(each))
    found = [wanted.get(i, part.kinds.get(v)) for i, v in enumerate(region.outputs)]
    outputs = [part.read(v, w, node) for v, w in zip(region.outputs, found, strict=True)]
    outputs = [_typed(part.b, x, v) for x, v in zip(outputs, region.outputs, strict=True)]
    return Region(part.b.graph(region.name, inputs, outputs), kinds, found)


def _typed(b: Builder, x: Value, like: Value) -> Value:
    """Return `x` as weak or strong as `like` is."""
    if x.type.weak == like.type.weak or isinstance(x, Literal):
        return x
    return b.one("convert_element_type", x, new_dtype=x.dtype, weak_type=like.type.weak)
