"""Which nodes of a step run part by part, which before and which after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from ...ir.graph import Graph, Literal, Node, Value
from .linear import NEVER
from .part import INFINITE, Part
from .split import Coupled, Kind, Split

# Sums of a part that are added to each other before the parts' are put together.
JOINED = frozenset(("add", "add_any", "sub"))
# What is needed ahead of the parts may take so many times the memory of the samples themselves.
AHEAD = 4
HEAVY = frozenset("dot_general conv_general_dilated scan while cond remat2 sort fft".split())


class Around:
    """The graph around the parts: whole values become constants of the loop, or its slices."""

    def __init__(self, k: int, env: Mapping[Value, Value]) -> None:
        """Start with none; `env` holds what is made within the loop."""
        self.k, self.env = k, env
        self.consts: dict[Value, Value] = {}
        self.xs: dict[tuple[Value, Split], Value] = {}

    def price(self, value: Value, split: Split) -> float:
        """Every whole value from before the loop may be sliced."""
        return INFINITE if value in self.env else value.type.nbytes

    def sliced(self, value: Value, split: Split) -> Value:
        """Return the slice of a step."""
        key = value, split
        if key not in self.xs:
            shape = split.cut(value.shape, self.k)
            self.xs[key] = Value(value.type.with_shape(shape).strong())
        return self.xs[key]

    def whole(self, value: Value) -> Value:
        """Return the constant of all steps."""
        if isinstance(value, Literal) or value in self.env:
            return self.env.get(value, value)
        return self.consts.setdefault(value, Value(value.type))


@dataclass
class Division:
    """A graph divided: `part` emits the nodes of the loop, `late` are those that come after it.

    `coupled` are the nodes that meet values of single samples and come after the loop, and why.
    """

    graph: Graph
    seed: Value
    split: Split
    k: int
    around: Around
    part: Part
    inside: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    coupled: list[Coupled] = field(default_factory=list)

    def kind(self, value: Value) -> Kind:
        """What a value is inside the loop."""
        return self.part.kinds.get(value)

    @property
    def given(self) -> list[Value]:
        """Values of the loop that are read after it, or returned."""
        read = [v for node in self.late for v in node.inputs]
        inputs = set(self.graph.inputs)
        found = dict.fromkeys(v for v in (*read, *self.graph.outputs) if v in self.part.env)
        return [v for v in found if v not in inputs]


def divide(graph: Graph, seed: Value, split: Split, k: int) -> Division:
    """Divide the samples of `seed`, an input, and all that is made of them one by one."""
    ahead: set[Node] = set()
    while True:
        division = _divided(graph, seed, split, k, ahead)
        more = _needed_ahead(division, seed) - ahead
        if not more:
            return division
        ahead |= more


def _divided(graph: Graph, seed: Value, split: Split, k: int, ahead: Set[Node]) -> Division:
    env: dict[Value, Value] = {}
    around = Around(k, env)
    part = Part(k, around, env)
    found = Division(graph, seed, split, k, around, part)
    part.kinds[seed], part.env[seed] = split, around.sliced(seed, split)
    late: set[Value] = set()
    for node in graph.nodes:
        kinds = part.kinds_of(node.inputs)
        if late.isdisjoint(node.inputs) and (node in ahead or not any(kinds)):
            part.made.remember([node])
            if node not in ahead and any(v in env for v in node.inputs):
                part.keep(node)
                found.inside.append(node)
        elif not _inside(found, node, kinds, late):
            found.late.append(node)
            late.update(node.outputs)
    return found


def _inside(found: Division, node: Node, kinds: Sequence[Kind], late: Set[Value]) -> bool:
    """Take a node into the loop, unless it comes after it."""
    split = any(isinstance(kind, Split) for kind in kinds)
    try:
        if split and not late.isdisjoint(node.inputs):
            raise Coupled(node, NEVER)
        if not late.isdisjoint(node.inputs):
            return False
        if not split and (node.op.name not in JOINED or not all(kinds)):
            return False
        if node.op.effect not in ("", "barrier"):
            raise Coupled(node, f"it has an effect: {node.op.effect}")
        found.part.emit(node, found.part.step(node))
    except Coupled as met:
        if split:
            found.coupled.append(met)
        return False
    found.inside.append(node)
    return True


def _needed_ahead(found: Division, seed: Value) -> set[Node]:
    """Nodes to run ahead of the loop: sums that each sample needs, and that cost next to nothing.

    How many tokens count, by a mask that the samples hold, say.
    """
    makers = {v: node for node in (*found.inside, *found.late) for v in node.outputs}
    for met in found.coupled:
        sums = [v for v in met.node.inputs if v in makers and not _single(found, v)]
        cones = [_cone(v, makers) for v in sums]
        if cones and all(_is_light(cone, seed) for cone in cones):
            return set().union(*cones)
    return set()


def _single(found: Division, value: Value) -> bool:
    return isinstance(found.kind(value), Split)


def _cone(value: Value, makers: Mapping[Value, Node]) -> set[Node]:
    cone: set[Node] = set()
    todo = [value]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node not in cone:
            cone.add(node)
            todo += node.inputs
    return cone


def _is_light(cone: Set[Node], seed: Value) -> bool:
    return not any(
        node.op.name in HEAVY or node.op.effect or v.type.nbytes > AHEAD * seed.type.nbytes
        for node in cone
        for v in node.outputs
    )
