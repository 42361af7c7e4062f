"""Which node of one graph is which node of another, whatever their values are numbered.

Nodes are paired by labels, the k-th of a label with the k-th of the same label, in rounds:

    down     what a node computes: op, attributes, types, and the labels of its operands
    up       what becomes of it: op, attributes, types, and the labels of its readers
    near     op, attributes, types, scope, phase and line; then less and less of these

The label of a node that is paired is its pair, so that each round goes on from what is known.
Near labels pair what is alone with its label first, what is left of them at last, and never two
nodes all of whose operands are known to be others. Names, lines and scopes tell nodes apart only
there, and none of these makes a difference.

Source: Falleri et al. 2014, "Fine-grained and accurate source code differencing": equal subtrees
first, then what lies around them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .attrs import AttrPrinter
from .graph import Graph, Literal, Node, Value
from .printer import literal_text
from .resources import Digests

_ROUNDS = 12
_INPUT, _RETURN = -1, -2

Label = Hashable


@dataclass
class Labels:
    """Small numbers for labels, the same for equal labels of both graphs."""

    numbers: dict[Label, int] = field(default_factory=dict)
    graphs: dict[int, tuple[Graph, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Print attributes; graphs among them are numbers as well."""
        self.printer = AttrPrinter(Digests(), lambda graph: f"graph {self.graph(graph)}")

    def __call__(self, label: Label) -> int:
        """Return the number of a label."""
        return self.numbers.setdefault(label, len(self.numbers))

    def node(self, node: Node) -> int:
        """Label of a node by itself: op, attributes, types and regions."""
        attrs, types = tuple(self.printer.attrs(node)), tuple(value.type for value in node.outputs)
        return self((node.op.name, attrs, types, tuple(map(self.graph, node.regions))))

    def graph(self, graph: Graph) -> int:
        """Label of a region: what it computes."""
        if id(graph) not in self.graphs:
            places: dict[Value, int] = {value: i for i, value in enumerate(graph.inputs)}
            rows: list[Label] = [tuple(value.type for value in graph.inputs)]
            for node in graph.nodes:
                reads = tuple(self._reads(node.inputs, places))
                rows.append((self.node(node), node.phase, reads))
                for value in node.outputs:
                    places[value] = len(places)
            rows.append(tuple(self._reads(graph.outputs, places)))
            self.graphs[id(graph)] = graph, self(tuple(rows))
        return self.graphs[id(graph)][1]

    def _reads(self, values: Iterable[Value], places: dict[Value, int]) -> Iterable[Label]:
        return (literal_text(v) if isinstance(v, Literal) else places[v] for v in values)


class Side:
    """One of the two graphs: its nodes' own labels, and where values come from and go to."""

    def __init__(self, graph: Graph, labels: Labels) -> None:
        """Label every node by itself."""
        self.graph, self.labels = graph, labels
        self.own = [labels.node(node) for node in graph.nodes]
        self.pair: dict[int, int] = {}  # position here -> position there
        self.named: dict[int, int] = {}  # position -> label of its pair
        self.inputs: dict[Value, Label] = {}
        self.home = {v: (i, k) for i, node in enumerate(graph.nodes) for k, v in _numbered(node)}
        self.readers: dict[Value, list[tuple[int, int]]] = {}
        for i, node in enumerate(graph.nodes):
            for k, value in enumerate(node.inputs):
                self.readers.setdefault(value, []).append((i, k))
        for k, value in enumerate(graph.outputs):
            self.readers.setdefault(value, []).append((_RETURN, k))

    def down(self) -> list[int]:
        """Label each node by what it computes."""
        found: list[int] = []
        for i, node in enumerate(self.graph.nodes):
            label = self.named.get(i)
            if label is None:
                reads = tuple(self.operand(value, found) for value in node.inputs)
                label = self.labels((self.own[i], reads))
            found.append(label)
        return found

    def operand(self, value: Value, nodes: Sequence[int]) -> Label:
        """Label of a value that is read, by those of the nodes above."""
        if isinstance(value, Literal):
            return literal_text(value)
        if value in self.inputs:
            return self.inputs[value]
        i, k = self.home[value]
        return nodes[i], k

    def up(self) -> list[int]:
        """Label each node by what becomes of it."""
        found: dict[int, int] = {_RETURN: _RETURN}
        for i in reversed(range(len(self.graph.nodes))):
            label = self.named.get(i)
            if label is None:
                reads = (self.readers.get(v, ()) for v in self.graph.nodes[i].outputs)
                to = tuple(tuple(sorted((found[j], k) for j, k in each)) for each in reads)
                label = self.labels((self.own[i], to, "up"))
            found[i] = label
        return [found[i] for i in range(len(self.graph.nodes))]

    def known(self, value: Value) -> Label | None:
        """What a value is in both graphs; None where it is in one alone, as yet."""
        if isinstance(value, Literal):
            return literal_text(value)
        if value in self.inputs:
            return self.inputs[value]
        i, k = self.home[value]
        return (self.named[i], k) if i in self.named else None

    def left(self) -> list[int]:
        """Positions of nodes that have no pair."""
        return [i for i in range(len(self.graph.nodes)) if i not in self.pair]


def _numbered(node: Node) -> Iterable[tuple[int, Value]]:
    return enumerate(node.outputs)


def _near(*parts: str) -> Callable[[Side, int], Label]:
    """Label by `parts` of a node: its own label or its op, kinds or shapes of what it makes."""

    def label(side: Side, i: int) -> Label:
        node = side.graph.nodes[i]
        own = side.own[i] if "own" in parts else node.op.name
        return own, *(_PARTS[part](node) for part in parts if part != "own")

    return label


_PARTS: Mapping[str, Callable[[Node], Label]] = {
    "scope": lambda node: node.scope,
    "source": lambda node: node.source,
    "phase": lambda node: node.phase,
    "kinds": lambda node: tuple((value.dtype, value.ndim) for value in node.outputs),
    "shapes": lambda node: tuple(value.shape for value in node.outputs),
}
_WAYS = (Side.down, Side.up)
_NEAR = (
    _near("own", "scope", "phase", "source"),
    _near("own", "scope", "phase"),
    _near("own", "scope"),
    *(
        _near(kind, *rest)
        for rest in (("scope", "phase", "source"), ("scope", "phase"))
        for kind in ("shapes", "kinds")
    ),
)


def match(a: Graph, b: Graph) -> tuple[Side, Side]:
    """Pair the nodes of two graphs: `side.pair` maps positions to those of the other."""
    labels = Labels()
    sides = Side(a, labels), Side(b, labels)
    _match_inputs(*sides)
    _rounds(*sides)
    for near in _NEAR:
        if _near_by(*sides, near):
            _rounds(*sides)
    return sides


def _match_inputs(a: Side, b: Side) -> None:
    """By name; of the others, in order, by type where they are not equally many."""
    named = [{v.name for v in side.graph.inputs if v.name is not None} for side in (a, b)]
    both = named[0] & named[1]
    rest = [[v for v in side.graph.inputs if v.name not in both] for side in (a, b)]
    in_order = len(rest[0]) == len(rest[1])
    for side in (a, b):
        seen: dict[Label, int] = {}
        for value in side.graph.inputs:
            label: Label = value.name if value.name in both else in_order or value.type
            seen[label] = seen.get(label, 0) + 1
            side.inputs[value] = (_INPUT, label, seen[label])


def _rounds(a: Side, b: Side) -> None:
    """Pair down and up as long as that finds pairs, then what is alone with its near label."""
    for _ in range(_ROUNDS):
        found = 0
        for way in _WAYS:
            of_a, of_b = way(a), way(b)
            found += _by(a, b, partial(_placed, a, of_a), partial(_placed, b, of_b))
            found += _by(a, b, of_a.__getitem__, of_b.__getitem__)
        if not found and not any(_near_by(a, b, near, alone=True) for near in _NEAR):
            return


def _placed(side: Side, labels: Sequence[int], i: int) -> Label:
    """Label with phase and scope: of many equal nodes, those of one place are paired first."""
    return labels[i], side.graph.nodes[i].phase, side.graph.nodes[i].scope


def _near_by(a: Side, b: Side, label: Callable[[Side, int], Label], alone: bool = False) -> int:
    return _by(a, b, lambda i: label(a, i), lambda j: label(b, j), near=True, alone=alone)


def _by(
    a: Side,
    b: Side,
    of_a: Callable[[int], Label],
    of_b: Callable[[int], Label],
    near: bool = False,
    alone: bool = False,
) -> int:
    """Pair nodes without a pair that have equal labels, in order; gives how many pairs."""
    groups: dict[Label, tuple[list[int], list[int]]] = {}
    for k, (side, label) in enumerate(((a, of_a), (b, of_b))):
        for i in side.left():
            groups.setdefault(label(i), ([], []))[k].append(i)
    found = 0
    for here, there in groups.values():
        if alone and not len(here) == len(there) == 1:
            continue
        for i, j in zip(here, there, strict=False):
            if near and _strange(a, b, i, j):
                continue
            a.pair[i], b.pair[j] = j, i
            a.named[i] = b.named[j] = a.labels(("pair", len(a.pair)))
            found += 1
    return found


def _strange(a: Side, b: Side, i: int, j: int) -> bool:
    """True for two nodes that read other values throughout, all of them in both graphs."""
    reads = zip(a.graph.nodes[i].inputs, b.graph.nodes[j].inputs, strict=False)
    values = [pair for pair in reads if not any(isinstance(v, Literal) for v in pair)]
    known = [(a.known(x), b.known(y)) for x, y in values]
    return bool(known) and all(None not in pair and pair[0] != pair[1] for pair in known)
