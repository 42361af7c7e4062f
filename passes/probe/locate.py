"""Reading the records: in which node, and in which step of which loop, trouble began."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from ...ir.graph import Graph, Literal, Node, Phase, Value
from ..scan import Scan
from .record import INFINITE, Record

FINITE, INFINITY, NAN = 0, 1, 2
Arrays = Sequence[np.ndarray]
# The nodes that are entered, from the outermost: (node, region, step), no step for a branch.
Path = tuple[tuple[Node, int, int | None], ...]


@dataclass(frozen=True, eq=False)
class Birth:
    """The first bad value on a way to an output.

    A `node` that made it of finite operands, or of infinite ones that nobody computed: or none,
    where it came in by `argument`, a position among the graph's inputs. `path` leads to the graph
    that the node stands in, `graph`. `order` is that of execution.
    """

    order: int
    graph: Graph
    node: Node | None
    path: Path = ()
    argument: int | None = None
    nan: bool = True

    @property
    def phase(self) -> Phase:
        """That of the node, or of what it stands in: JAX tells it of a loop, not of its body."""
        within = (outer.phase for outer, _, _ in self.path)
        own: Phase = self.node.phase if self.node is not None else "forward"
        return next((phase for phase in (*within, own) if phase != "forward"), "forward")

    @property
    def source(self) -> str:
        """`file:line` of the node, or else of what it stands in; the empty string for none."""
        nodes = (self.node, *(outer for outer, _, _ in reversed(self.path)))
        return next((n.source for n in nodes if n is not None and n.source), "")


def births(record: Record, arrays: Arrays) -> list[tuple[int, Birth | None]]:
    """Return for each output of the recorded graph what it is, and where that was born.

    Nowhere if it is `FINITE`, or infinite as an operand or a constant of the program is.
    """
    walk = _Walk()
    code = _codes(record, arrays)
    given = {
        value: Birth(next(walk.order), record.graph, None, (), i)
        for i, value in enumerate(record.graph.inputs)
        if code(value) == NAN
    }
    found = walk.through(record, arrays, given, ())
    return list(zip(map(code, record.graph.outputs), found, strict=True))


def _codes(record: Record, arrays: Arrays) -> Callable[[Value], int]:
    """A function that tells of a value whether it is finite."""

    def code(value: Value) -> int:
        while value in record.same:
            value = record.same[value]
        if isinstance(value, Literal):
            return _code_of(value.data) if value.type.is_inexact else FINITE
        if value not in record.place:
            return FINITE
        at, i = record.place[value]
        bits, infinite = int(arrays[at][i]), INFINITE[arrays[at].dtype]
        return FINITE if bits < infinite else INFINITY if bits == infinite else NAN

    return code


def _code_of(number: np.generic) -> int:
    if np.isnan(number):
        return NAN
    return INFINITY if np.isinf(number) else FINITE


Taints = Mapping[Value, Birth]


def first_of(found: Iterable[Birth | None]) -> Birth | None:
    """The earliest of some births, where there is one."""
    return min((b for b in found if b is not None), key=lambda b: b.order, default=None)


@dataclass
class _Walk:
    """Follows what is bad from node to node, in order of execution."""

    order: Iterator[int] = field(default_factory=count)

    def through(
        self, record: Record, arrays: Arrays, given: Taints, path: Path
    ) -> list[Birth | None]:
        """Return the births behind a graph's outputs; `given` are those behind its inputs."""
        code = _codes(record, arrays)
        taints = {value: birth for value, birth in given.items() if code(value)}
        for node in record.graph.nodes:
            bad = [value for value in node.outputs if code(value)]
            inner: Sequence[Birth | None] = [None] * len(node.outputs)
            if bad and node in record.within:
                inner = _ENTER[node.op.name](self, record, arrays, node, taints, path)
            for value, birth in zip(node.outputs, inner, strict=True):
                if code(value) and birth is not None:
                    taints[value] = birth
            self._born(record, node, [v for v in bad if v not in taints], code, taints, path)
        return [taints.get(value) for value in record.graph.outputs]

    def _born(
        self,
        record: Record,
        node: Node,
        bad: Sequence[Value],
        code: Callable[[Value], int],
        taints: dict[Value, Birth],
        path: Path,
    ) -> None:
        """Find what is behind the bad outputs of a node: a bad operand, or the node itself."""
        operands = [value for value in node.inputs if code(value)]
        for value in bad:
            nan = code(value) == NAN
            found = first_of([taints.get(v) for v in operands if nan and code(v) == NAN])
            found = found or first_of([taints.get(v) for v in operands])
            given = operands or node in record.within or node.op.name == "constant"
            if found is None and (nan or not given):
                found = Birth(next(self.order), record.graph, node, path, nan=nan)
            if found is not None:
                taints[value] = found

    def scan(
        self, record: Record, arrays: Arrays, node: Node, taints: Taints, path: Path
    ) -> list[Birth | None]:
        """Step by step, from one carry to the next."""
        scan = Scan(node)
        _, carry, _ = scan.parts
        ((body, at),) = record.within[node]
        stacked = arrays[at : at + len(body.types)]
        behind = [taints.get(value) for value in node.inputs]
        found: list[Birth | None] = [None] * len(node.outputs)
        steps = range(scan.length)
        for step in reversed(steps) if node.attrs["reverse"] else steps:
            now = [array[step] for array in stacked]
            outs: list[Birth | None] = [None] * len(node.outputs)
            if any((array >= INFINITE[array.dtype]).any() for array in now):
                given = _pairs(body.graph.inputs, behind)
                outs = self.through(body, now, given, (*path, (node, 0, step)))
            behind[carry] = outs[: scan.carried]
            stacks = zip(found[scan.carried :], outs[scan.carried :], strict=True)
            found = [*outs[: scan.carried], *map(first_of, stacks)]
        return found

    def cond(
        self, record: Record, arrays: Arrays, node: Node, taints: Taints, path: Path
    ) -> list[Birth | None]:
        """The branch that was taken; the records of the others are of finite values."""
        each = []
        for i, (branch, at) in enumerate(record.within[node]):
            given = _pairs(branch.graph.inputs, [taints.get(v) for v in node.inputs[1:]])
            now = arrays[at : at + len(branch.types)]
            each.append(self.through(branch, now, given, (*path, (node, i, None))))
        return [first_of(found) for found in zip(*each, strict=True)]

    def loop(
        self, record: Record, arrays: Arrays, node: Node, taints: Taints, path: Path
    ) -> list[Birth | None]:
        """The two steps of a `while` that were recorded; what is bad in its end began there."""
        skipped = node.attrs["cond_nconsts"]
        consts = node.attrs["body_nconsts"]
        behind = [taints.get(value) for value in node.inputs[skipped:]]
        found: list[Birth | None] = []
        for body, at in record.within[node]:
            step = int(arrays[at - 1])
            if step >= 0:
                now = arrays[at : at + len(body.types)]
                given = _pairs(body.graph.inputs, behind)
                outs = self.through(body, now, given, (*path, (node, 1, step)))
                behind[consts:] = outs
                found += outs
        return [birth or first_of(found) for birth in behind[consts:]]


def _pairs(values: Sequence[Value], behind: Sequence[Birth | None]) -> dict[Value, Birth]:
    pairs = zip(values, behind, strict=True)
    return {value: birth for value, birth in pairs if birth is not None}


_ENTER = {"scan": _Walk.scan, "cond": _Walk.cond, "while": _Walk.loop}
