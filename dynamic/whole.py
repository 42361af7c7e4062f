"""A backward walk as one program: for a graph of a structure that was walked before.

A small one waits until somebody asks for a gradient. If that is an optimiser, the walk and the
step are one program: at such sizes a call costs more than what it computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakSet

import jax

from ..compiler.state import watching
from ..ir.jax_compat import is_part
from ..runtime.xla import Jitted
from . import anomaly
from .node import Edge, Node, OpNode
from .storage import Awaited, Storage
from .tensor import Tensor

Places = tuple[tuple[int, int], ...]
Steps = tuple[tuple[Any, tuple[tuple[int, int] | None, ...]], ...]

LONGEST = 1024  # nodes of a graph that one program may walk
LIGHT = 1 << 20  # bytes that a walk which waits may keep from being freed
KNOWN = 1024  # structures that are remembered; the oldest is forgotten first


@dataclass(eq=False)
class Program:
    """A backward walk over nodes of such rules and edges, compiled.

    When it has run, `waits` are the leaves that it gives a gradient, if it is light enough to wait.
    """

    steps: Steps
    roots: Places
    count: int  # of leaves
    waits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.run = Jitted(self.walk)

    def note(self, saved: Sequence[Any], found: Sequence[Any]) -> None:
        """See what there is to know, when leaves that had no gradient were given some."""
        if self.waits is None:
            light = sum(getattr(x, "nbytes", 0) for x in saved) <= LIGHT
            self.waits = tuple(i for i, x in enumerate(found) if light and x is not None)

    def walk(self, saved: Sequence[Any], seeds: Sequence[Any], grads: Sequence[Any]) -> list[Any]:
        """New `.grad`s of the leaves; `grads` are their present ones, or None."""
        left = iter(saved)
        cts: dict[tuple[int, int], Any] = {}

        def add(edge: tuple[int, int], ct: Any) -> None:
            cts[edge] = cts[edge] + ct if edge in cts else ct

        for edge, seed in zip(self.roots, seeds, strict=True):
            add(edge, seed)
        for i, (rule, edges) in enumerate(self.steps):
            arrays = list(islice(left, rule.reads))
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


@dataclass(eq=False)
class Walk:
    """One walk that waits, with what it `reads`: saved arrays, and seeds.

    Afterwards `found` are the leaves' gradients, and then `reads` is None.
    """

    program: Program
    reads: tuple[Sequence[Any], Sequence[Any]] | None
    found: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        _waiting.add(self)

    def results(self) -> Sequence[Any]:
        """Gradients of the leaves; never a tracer's, whoever asks first."""
        reads = self.reads  # before another thread that asks has them
        if self.found is None:
            assert reads is not None
            with jax.ensure_compile_time_eval():
                self.arrive(self.program.run(*reads, [None] * self.program.count))
        return self.found  # type: ignore[return-value]

    def arrive(self, found: Sequence[Any]) -> None:
        """The gradients are there."""
        self.found = found
        self.reads = None
        _waiting.discard(self)


_waiting: WeakSet[Walk] = WeakSet()


def hurry() -> None:
    """Run every walk that waits: arrays that it reads may be about to be given away."""
    for walk in tuple(_waiting):
        walk.results()


def awaited(storages: Sequence[Storage]) -> Walk | None:
    """Return the walk that has not run and of which these are all the results, or None."""
    walk = getattr(storages[0], "walk", None)
    if walk is None or walk.found is not None or len(storages) != len(walk.program.waits):
        return None
    return walk if all([getattr(s, "walk", None) is walk for s in storages]) else None


_seen: dict[Hashable, Program | None] = {}


def is_plain(nodes: Sequence[Node]) -> bool:
    """True where no hook and no mode wants to see what passes between the nodes."""
    if len(nodes) > LONGEST or not nodes or anomaly.state.on:
        return False
    return all(type(node) is OpNode and node.hooks is None for node in nodes)


def walked(nodes: Sequence[Node], roots: Sequence[tuple[Edge, Any]]) -> bool:
    """Walk a graph as one program; False at the first of its structure, or with hooks."""
    steps, starts, leaves = _structure(nodes, [edge for edge, _ in roots])
    if any([leaf._hooks or leaf._after for leaf in leaves]):
        return False
    program = _program(steps, starts, len(leaves))
    if program is None:
        return False
    seeds = [ct for _, ct in roots]
    saved: list[Any] = []
    for node in nodes:
        saved += node.arrays()  # type: ignore[attr-defined]
    before = [leaf._grad for leaf in leaves]
    first = all([g is None for g in before])
    if first and program.waits and _may_wait():
        walk = Walk(program, (saved, seeds))
        for at in program.waits:
            leaves[at]._grad = grad = Tensor(None)
            grad._storage = Awaited(walk, at)
        return True
    found = program.run(saved, seeds, [None if g is None else g.value for g in before])
    if first:
        program.note(saved, found)
    for leaf, summed, new in zip(leaves, before, found, strict=True):
        if summed is not None:
            summed._put(new)
        elif new is not None:
            leaf._grad = Tensor(new)
    return True


def _structure(nodes: Sequence[Node], starts: Sequence[Edge]) -> tuple[Steps, Places, list[Tensor]]:
    """Rules and edges by number, and the leaves, which have the numbers below 0."""
    place: dict[Any, int] = {node: i for i, node in enumerate(nodes)}
    leaves: list[Tensor] = []

    def numbered(edges: Sequence[Edge | None]) -> tuple[tuple[int, int] | None, ...]:
        found: list[tuple[int, int] | None] = []
        for edge in edges:
            if edge is None:
                found.append(None)
                continue
            source, k = edge
            at = place.get(source)
            if at is None:
                at = place[source] = -1 - len(leaves)
                leaves.append(source)
            found.append((at, k))
        return tuple(found)

    steps = tuple([(node.rule, numbered(node.edges)) for node in nodes])  # type: ignore[attr-defined]
    return steps, numbered(starts), leaves  # type: ignore[return-value]


def _program(steps: Steps, starts: Places, count: int) -> Program | None:
    """The program of a structure, or None when it is met for the first time."""
    key = steps, starts
    if key not in _seen:
        if len(_seen) >= KNOWN:
            del _seen[next(iter(_seen))]
        _seen[key] = None
        return None
    program = _seen[key]
    if program is None:
        program = _seen[key] = Program(steps, starts, count)
    return program


def _may_wait() -> bool:
    """True where no one traces, nor wants to see at once what comes out."""
    watched = watching.owner is not None or jax.config.jax_debug_nans  # type: ignore[attr-defined]
    return not watched and not is_part()
