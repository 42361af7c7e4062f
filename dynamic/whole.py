"""A backward walk as one program: for a graph of a structure that was walked before."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.xla import Jitted
from . import anomaly
from .node import Edge, Node, OpNode
from .tensor import Tensor

LONGEST = 1024  # nodes of a graph that one program may walk
KNOWN = 1024  # structures that are remembered; the oldest is forgotten first


@dataclass(eq=False)
class _Program:
    """A backward walk over nodes of such rules and edges, compiled."""

    steps: tuple[tuple[Any, tuple[tuple[int, int] | None, ...]], ...]
    roots: tuple[tuple[int, int], ...]
    count: int  # of leaves

    def __post_init__(self) -> None:
        self.run = Jitted(self._walk)

    def _walk(self, saved: Sequence[Any], seeds: Sequence[Any], grads: Sequence[Any]) -> list[Any]:
        """New `.grad`s of the leaves; `grads` are their present ones, or None."""
        cts: dict[tuple[int, int], Any] = {}

        def add(edge: tuple[int, int], ct: Any) -> None:
            cts[edge] = cts[edge] + ct if edge in cts else ct

        for edge, seed in zip(self.roots, seeds, strict=True):
            add(edge, seed)
        for i, ((rule, edges), arrays) in enumerate(zip(self.steps, saved, strict=True)):
            given = [cts.pop((i, k), None) for k in range(len(rule.seeded))]
            if all(ct is None for ct in given):
                continue
            for to, ct in zip(edges, rule.apply(arrays, given), strict=True):
                if to is not None:
                    add(to, ct)
        new = [cts.get((-1 - n, 0)) for n in range(self.count)]
        return [
            g if ct is None else ct if g is None else g + ct
            for g, ct in zip(grads, new, strict=True)
        ]


_seen: dict[Hashable, _Program | None] = {}


def is_plain(nodes: Sequence[Node]) -> bool:
    """True where no hook and no mode wants to see what passes between the nodes."""
    if len(nodes) > LONGEST or not nodes or anomaly.state.on:
        return False
    return all(type(node) is OpNode and node.hooks is None for node in nodes)


def program_of(
    nodes: Sequence[Node], roots: Sequence[tuple[Edge, Any]]
) -> Callable[[Sequence[Node], Sequence[Any]], None] | None:
    """Return what walks such a graph, or None when it is the first of its structure."""
    place: dict[Any, int] = {node: i for i, node in enumerate(nodes)}
    leaves: list[Tensor] = []

    def number(edge: Edge) -> tuple[int, int]:
        source, k = edge
        if source not in place:
            place[source] = -1 - len(leaves)
            leaves.append(source)
        return place[source], k

    steps = tuple(
        (node.rule, tuple([None if edge is None else number(edge) for edge in node.edges]))  # type: ignore[attr-defined]
        for node in nodes
    )
    starts = tuple([number(edge) for edge, _ in roots])
    if any(leaf._hooks or leaf._after for leaf in leaves):
        return None
    key = steps, starts
    if key not in _seen:
        if len(_seen) >= KNOWN:
            del _seen[next(iter(_seen))]
        _seen[key] = None
        return None
    program = _seen[key]
    if program is None:
        program = _seen[key] = _Program(steps, starts, len(leaves))

    def walk(nodes: Sequence[Node], seeds: Sequence[Any]) -> None:
        saved = [node.arrays() for node in nodes]  # type: ignore[attr-defined]
        before = [leaf._grad for leaf in leaves]
        found = program.run(saved, seeds, [None if g is None else g.value for g in before])
        for leaf, summed, new in zip(leaves, before, found, strict=True):
            if summed is not None:
                summed._put(new)
            elif new is not None:
                leaf._grad = Tensor(new)

    return walk
