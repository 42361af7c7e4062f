"""The pass: rewrites that XLA does not do, on the forward graph, before autodiff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...ir.graph import Graph, Node, Value
from ..rewriter import ENTERED
from . import chunk
from .blocks import Blocks, Match, blocked, candidates, match
from .report import Fusion
from .statics import Statics
from .verify import compare

Known = Mapping[Value, Any]


@dataclass(frozen=True)
class Fuse:
    """Wide products whose rows come to a few numbers are computed some rows at a time.

    A chunk has at least `chunk` rows and `least` bytes of the product (`chunk.py`). Attention whose
    scores take `scores` bytes is computed in two to `blocks` blocks of `block` queries or more,
    where a known mask leaves out `gain` of the scores (`blocks.py`). Where `microbatch` is to
    follow, `parts` are its steps, and no chunk has rows of two of them. With `verify` each rewrite
    is compared with what it takes the place of, on random inputs.

    Raises `FusionError` when they differ.
    """

    chunk: int = 512
    least: int = 1 << 24
    block: int = 128
    blocks: int = 8
    gain: float = 0.2
    scores: int = 1 << 22
    parts: int = 1
    verify: bool = False

    name: ClassVar[str] = "fuse"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself when nothing matches."""
        return self._fused(graph, (), [], {})

    def report(self, graph: Graph) -> tuple[Fusion, ...]:
        """Tell what the pass does to `graph`, near misses with their reasons."""
        notes: list[Fusion] = []
        self._fused(graph, (), notes, {})
        return tuple(notes)

    def _fused(
        self, graph: Graph, returned: Sequence[Value], notes: list[Fusion], known: Known
    ) -> Graph:
        """Rewrite regions first.

        `returned` are the outputs that may be differentiated, `known` are inputs' known values.
        """
        statics = Statics(graph, known)
        nodes = tuple(self._entered(node, notes, statics) for node in graph.nodes)
        if any(new is not old for new, old in zip(nodes, graph.nodes, strict=True)):
            graph = replace(graph, nodes=nodes)
        for node in sorted(graph.nodes, key=_bytes, reverse=True):
            made = self._chunked(graph, node, returned, notes)
            graph = self._checked(graph, made, node, known)
        statics = Statics(graph, known)
        for node in graph.nodes:
            made = self._blocked(graph, node, statics, notes)
            graph = self._checked(graph, made, node, known)
        return graph

    def _checked(self, before: Graph, after: Graph, node: Node, known: Known) -> Graph:
        if self.verify and after is not before:
            compare(before, after, node, known)
        return after

    def _chunked(
        self, graph: Graph, node: Node, returned: Sequence[Value], notes: list[Fusion]
    ) -> Graph:
        tries: list[Graph | str] = []
        for rows, size in chunk.candidates(node, self.chunk, self.least, self.parts):
            found = chunk.match(graph, node, rows, returned)
            tries.append(found if isinstance(found, str) else chunk.chunked(graph, found, size))
            if isinstance(tries[-1], Graph):
                break
        return _outcome("rows in chunks", graph, node, tries, notes)

    def _blocked(self, graph: Graph, node: Node, statics: Statics, notes: list[Fusion]) -> Graph:
        tries: list[Graph | str] = []
        into = Blocks(self.block, self.blocks, self.gain)
        for row, column in candidates(node, self.block, self.scores):
            found: Graph | str | Match = match(graph, node, row, column)
            if isinstance(found, Match):
                found = blocked(graph, found, into, statics)
            tries.append(found)
            if isinstance(tries[-1], Graph):
                break
        return _outcome("queries in blocks", graph, node, tries, notes)

    def _entered(self, node: Node, notes: list[Fusion], statics: Statics) -> Node:
        if node.op.name not in ENTERED:
            return node
        regions = []
        for region in node.regions:
            loss = node.op.name == "gradients"
            returned = region.outputs[: 1 if loss else None]
            regions.append(self._fused(region, returned, notes, _passed(node, region, statics)))
        if all(new is old for new, old in zip(regions, node.regions, strict=True)):
            return node
        return replace(node, regions=tuple(regions))


def _passed(node: Node, region: Graph, statics: Statics) -> Known:
    """Known values that a region is given as they are."""
    count = {"gradients": None, "remat2": None, "scan": node.attrs.get("num_consts")}
    same = zip(region.inputs, node.inputs[: count.get(node.op.name, 0)], strict=False)
    found = ((inner, statics(outer)) for inner, outer in same)
    return {inner: value for inner, value in found if value is not None}


def _bytes(node: Node) -> int:
    return node.outputs[0].type.nbytes if node.op.name == "dot_general" else 0


def _outcome(
    what: str, graph: Graph, node: Node, tries: Sequence[Graph | str], notes: list[Fusion]
) -> Graph:
    """Take note of what was tried, the last of which may have been made; return the graph."""
    made = next((each for each in tries if isinstance(each, Graph)), None)
    reason = "" if made else next((each for each in tries if isinstance(each, str) and each), "")
    if made or reason:
        notes.append(Fusion(what, node.source, node.scope, node.output.type.nbytes, reason))
    return made or graph
