"""The pass: repeated blocks become one scan, where XLA would take long over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.errors import ArgumentError
from ...ir.fingerprint import gradient_order
from ...ir.graph import Graph, Node
from ..dce import Dce
from ..fuse.report import Fusion
from ..rewriter import ENTERED
from .blocks import Match, match, shared
from .emit import rolled
from .runs import runs
from .sequence import Labels, depth_first, fixed, weight

_MODES = ("auto", "true", "false")


@dataclass(frozen=True)
class Roll:
    """h = f(h, w0); h = f(h, w1); ...  ->  h, _ = scan(f)(h, stack(w0, w1, ...)).

    `roll="auto"` rolls `blocks` or more that have `nodes` or more between them, and `flops` for
    each byte that has to be stacked: XLA's compile time grows with the number of nodes, and a
    step's with the bytes that are copied. `True` rolls any three, `False` none.

    Raises `ArgumentError` for another word.
    """

    roll: str | bool = "auto"
    blocks: int = 16
    nodes: int = 1500
    flops: int = 16

    name: ClassVar[str] = "roll"

    def __post_init__(self) -> None:
        """See the class."""
        if self._mode not in _MODES:
            raise ArgumentError(f"roll wants one of auto, true and false, got {self.roll!r}")

    @property
    def _mode(self) -> str:
        return str(self.roll).lower()

    def __call__(self, graph: Graph) -> Graph:
        """Return the rolled graph, or `graph` itself when nothing repeats."""
        return self._rolled(graph, [])

    def report(self, graph: Graph) -> tuple[Fusion, ...]:
        """Tell what the pass does to `graph`, near misses with their reasons."""
        notes: list[Fusion] = []
        self._rolled(graph, notes)
        return tuple(dict.fromkeys(notes))

    def _rolled(self, graph: Graph, notes: list[Fusion]) -> Graph:
        if self._mode == "false" or (self._mode == "auto" and self._small(graph)):
            return graph
        labels = Labels(gradient_order(graph))
        found = self._entered(graph, labels, notes)
        return graph if found is graph else Dce()(found)

    def _small(self, graph: Graph) -> bool:
        """True where not even the whole graph has the nodes that blocks need."""
        return sum(1 for _ in graph.walk()) < self.nodes

    def _entered(self, graph: Graph, labels: Labels, notes: list[Fusion]) -> Graph:
        """Regions first; then the graph, as long as something in it repeats."""
        nodes = tuple(self._inside(node, labels, notes) for node in graph.nodes)
        if any(new is not old for new, old in zip(nodes, graph.nodes, strict=True)):
            graph = replace(graph, nodes=nodes)
        found = self._best(graph, labels, notes)
        if found is None:
            return graph
        notes.append(_note(found, ""))
        return self._entered(rolled(graph, found, fixed(graph)), labels, notes)

    def _inside(self, node: Node, labels: Labels, notes: list[Fusion]) -> Node:
        if node.op.name not in ENTERED:
            return node
        regions = tuple(self._entered(region, labels, notes) for region in node.regions)
        same = all(new is old for new, old in zip(regions, node.regions, strict=True))
        return node if same else replace(node, regions=regions)

    def _best(self, graph: Graph, labels: Labels, notes: list[Fusion]) -> Match | None:
        """The blocks that hold most nodes, in the order as written or as the outputs ask for."""
        constant = fixed(graph)
        written = [node for node in graph.nodes if node not in constant]
        if len(written) < 2 * self._least:
            return None
        tried = [self._tried(graph, written, labels, notes)]
        tried.append(self._tried(graph, depth_first(graph, written), labels, notes))
        found = [each for each in tried if each is not None]
        return max(found, key=_size, default=None)

    def _tried(
        self, graph: Graph, nodes: Sequence[Node], labels: Labels, notes: list[Fusion]
    ) -> Match | None:
        for found in self._matches(graph, nodes, labels, notes):
            reason = self._not_worth(found)
            if not reason:
                return found
            notes.append(_note(found, reason))
        return None

    def _matches(
        self, graph: Graph, nodes: Sequence[Node], labels: Labels, notes: list[Fusion]
    ) -> Iterator[Match]:
        weights = [weight(node) for node in nodes]
        for run in runs(labels.of(nodes), weights, self._least):
            if self._mode == "auto" and 2 * run.cover < self.nodes:
                return
            found = match(graph, nodes, run, self._least)
            if isinstance(found, Match):
                yield found
            elif found:
                first = nodes[run.start]
                what = f"{(run.stop - run.start) // run.period} blocks of {run.period} nodes"
                notes.append(Fusion(what, first.source, first.scope, 0, found))

    @property
    def _least(self) -> int:
        return self.blocks if self._mode == "auto" else 3

    def _not_worth(self, found: Match) -> str:
        """Why blocks that can be rolled are not; empty where they are."""
        if len(found.rows[0]) < 2 and not found.rows[0][0].regions:
            return "one node is no block"
        if self._mode == "true":
            return ""
        if _size(found) < self.nodes:
            return f"{_size(found)} nodes compile soon enough as they are"
        work = sum(node.op.flops(node) for node in found.rows[0])
        size = sum(values[0].type.nbytes for values in found.given if not shared(values))
        if work < self.flops * size:
            return f"{work / max(size, 1):.1f} FLOPs for each byte that would be stacked"
        return ""


def _size(found: Match) -> int:
    return sum(weight(node) for row in found.rows for node in row)


def _note(found: Match, reason: str) -> Fusion:
    first = found.rows[0][0]
    what = f"{found.length} blocks of {len(found.rows[0])} nodes"
    return Fusion(what, first.source, first.scope, 0, reason, "rolled into one scan")
