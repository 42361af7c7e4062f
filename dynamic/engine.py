"""The backward pass: walk the recorded graph from its end, each node's cotangents to its inputs'.

A graph of a structure that was seen before is walked by one compiled program, as nothing in it
depends on values; with hooks and the like, or for the first time, node by node.

Source: reverse accumulation, Griewank and Walther 2008, chapter 3; one program for a whole tape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.gradients import value_and_grad
from ..compiler.state import watching
from ..ir.errors import AutogradError, ZeroGradientWarning
from . import anomaly
from .capture import Capture
from .modes import enable_grad, mode, no_grad
from .node import Edge, Node, OpNode
from .tensor import Tensor

LONGEST = 1024  # nodes of a graph that one program may walk


def run_backward(
    roots: Sequence[tuple[Edge, Any]],
    *,
    retain: bool,
    record: bool,
    captured: Mapping[tuple[int, int], Any] | None = None,
    accumulate: bool = True,
) -> dict[tuple[int, int], Any]:
    """Walk from `roots`, pairs of an edge and its cotangent, and sum into the leaves' `.grad`.

    `captured` maps edges, by the identity of their source and position, to what they stand for:
    only those are walked to, and unless `accumulate`, their cotangents are returned instead.
    """
    nodes = _reached([edge for edge, _ in roots])
    if captured is not None:
        nodes = _leading_to(nodes, captured)
    if isinstance(watching.owner, Capture) and not record and captured is None:
        if all(type(node) is OpNode and node.hooks is None for node in nodes):
            _by_gradients(nodes, roots)
            if not retain:
                _release(nodes)
            return {}
    elif not record and captured is None and _is_plain(nodes):
        program = _program(nodes, roots)
        if program is not None:
            program(nodes, [ct for _, ct in roots])
            if not retain:
                _release(nodes)
            return {}
    walk = _Walk(nodes, record, captured, accumulate)
    with enable_grad() if record else no_grad():
        return walk(roots, retain)


def _reached(roots: Sequence[Edge]) -> list[Node]:
    """All nodes behind some edges, the latest first."""
    found: set[Node] = set()
    pending = [source for source, _ in roots if isinstance(source, Node)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            for edge in node.edges:
                if edge is not None and isinstance(edge[0], Node):
                    pending.append(edge[0])
    return sorted(found, key=_number, reverse=True)


def _number(node: Node) -> int:
    return node.number


def _leading_to(nodes: Sequence[Node], captured: Collection[tuple[int, int]]) -> list[Node]:
    """Those of the nodes from which a captured edge is reached."""
    needed: set[Node] = set()
    for node in reversed(nodes):
        for edge in node.edges:
            if edge is None:
                continue
            if (id(edge[0]), edge[1]) in captured or edge[0] in needed:
                needed.add(node)
                break
    return [node for node in nodes if node in needed]


def _release(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.release()


@dataclass
class _Walk:
    """One walk, node by node; cotangents are arrays, or tensors where they are recorded."""

    nodes: Sequence[Node]
    record: bool
    captured: Mapping[tuple[int, int], Any] | None
    accumulate: bool

    def __call__(
        self, roots: Sequence[tuple[Edge, Any]], retain: bool
    ) -> dict[tuple[int, int], Any]:
        self.found: dict[tuple[int, int], Any] = {}
        self.cts: dict[Node, list[Any]] = {}
        self.walked = set(self.nodes)
        self.leaves: dict[int, list[Any]] = {}  # the leaf, contributions that are due, their sum
        for (source, _), _ in roots:
            self._expect(source)
        for node in self.nodes:
            for edge in node.edges:
                if edge is not None:
                    self._expect(edge[0])
        for edge, ct in roots:
            self._pass(edge, Tensor(ct) if self.record and not isinstance(ct, Tensor) else ct)
        for node in self.nodes:
            given = self.cts.pop(node, None)
            self._visit(node, given or [None] * node.count, retain)
        if self.accumulate:
            for key, ct in self.found.items():
                accumulate_into(self.captured[key], ct, self.record)  # type: ignore[index]
        return self.found

    def _expect(self, source: Any) -> None:
        """Count a contribution to a leaf, whose hooks run when the last has come."""
        if not isinstance(source, Node):
            self.leaves.setdefault(id(source), [source, 0, None])[1] += 1

    def _visit(self, node: Node, cts: list[Any], retain: bool) -> None:
        hooks = node.hooks
        if hooks is not None:
            for k, tensor_hooks in hooks.tensor.items():
                for hook in tuple(tensor_hooks):
                    cts[k] = self._hooked(hook, cts[k])
            for before in tuple(hooks.before):
                changed = before(tuple(map(self._shown, cts)))
                if changed is not None:
                    cts = [self._taken(x) for x in changed]
            for k, reference in hooks.retained.items():
                tensor = reference()
                if tensor is not None and cts[k] is not None:
                    tensor.grad = self._kept(cts[k])
        for k, ct in enumerate(cts):
            if self.captured is not None and (id(node), k) in self.captured:
                self._capture((id(node), k), ct)
        if any(ct is not None for ct in cts):
            out = list(self._pull(node, cts))
        else:
            out = [None] * len(node.edges)
        if hooks is not None:
            for after in tuple(hooks.after):
                changed = after(tuple(map(self._shown, out)), tuple(map(self._shown, cts)))
                if changed is not None:
                    out = [self._taken(x) for x in changed]
        if not retain:
            node.release()
        for edge, ct in zip(node.edges, out, strict=True):
            if edge is not None:
                self._pass(edge, ct)

    def _pull(self, node: Node, cts: Sequence[Any]) -> Sequence[Any]:
        try:
            out = node.pull_recorded(cts) if self.record else node.pull(cts)
        except Exception as error:
            if node.trace:
                error.add_note(f"{node.name()} is the backward of the operation at\n{node.trace}")
            raise
        if anomaly.state.on and anomaly.state.check_nan:
            for k, ct in enumerate(out):
                if ct is not None and bool(jnp.isnan(_array(ct)).any()):
                    raise AutogradError(
                        f"{node.name()} returned NaN as the gradient of its input {k}; the "
                        f"operation stands at\n{node.trace or '  an unknown line'}"
                    )
        return out

    def _pass(self, edge: Edge, ct: Any) -> None:
        """Add a cotangent to what has come to an edge."""
        source, k = edge
        if isinstance(source, Node):
            if ct is not None and (source in self.walked or self._wants(edge)):
                if source not in self.walked:
                    self._capture((id(source), k), ct)
                    return
                cts = self.cts.setdefault(source, [None] * source.count)
                cts[k] = ct if cts[k] is None else _sum(cts[k], ct)
            return
        entry = self.leaves[id(source)]
        entry[1] -= 1
        if ct is not None:
            entry[2] = ct if entry[2] is None else _sum(entry[2], ct)
        if entry[1] == 0 and entry[2] is not None:
            self._arrive(source, entry[2])

    def _wants(self, edge: Edge) -> bool:
        return self.captured is not None and (id(edge[0]), edge[1]) in self.captured

    def _arrive(self, leaf: Tensor, ct: Any) -> None:
        if self.captured is not None and (id(leaf), 0) not in self.captured:
            return
        for hook in tuple(leaf._hooks or ()):
            ct = self._hooked(hook, ct)
        if self.captured is not None and not self.accumulate:
            self._capture((id(leaf), 0), ct)
            return
        accumulate_into(leaf, ct, self.record)

    def _capture(self, key: tuple[int, int], ct: Any) -> None:
        """Add to what comes to an edge that was asked for."""
        if ct is not None:
            self.found[key] = _sum(self.found[key], ct) if key in self.found else ct

    def _hooked(self, hook: Callable[..., Any], ct: Any) -> Any:
        """A cotangent after a tensor's hook."""
        if ct is None:
            return None
        changed = hook(self._shown(ct))
        return ct if changed is None else self._taken(changed)

    def _shown(self, ct: Any) -> Any:
        return ct if ct is None or isinstance(ct, Tensor) else Tensor(ct)

    def _taken(self, x: Any) -> Any:
        if x is None or self.record:
            return x
        return x.value if isinstance(x, Tensor) else x

    def _kept(self, ct: Any) -> Tensor:
        return ct if isinstance(ct, Tensor) else Tensor(ct)


def accumulate_into(leaf: Tensor, ct: Any, record: bool) -> None:
    """Sum a cotangent into `.grad`, the same tensor if there is one, and run the hooks after."""
    if leaf._grad is None:
        leaf._grad = ct if isinstance(ct, Tensor) else Tensor(ct)
    elif record:
        leaf._grad = leaf._grad + ct
    else:
        with no_grad():
            leaf._grad._put(jnp.add(leaf._grad.value, _array(ct)))
    for hook in tuple(leaf._after or ()):
        hook(leaf)


def _array(x: Any) -> Any:
    return x.value if isinstance(x, Tensor) else x


def _sum(a: Any, b: Any) -> Any:
    return a + b


def _by_gradients(nodes: Sequence[Node], roots: Sequence[tuple[Edge, Any]]) -> None:
    """In a compiled step: ask for the gradients of what was recorded, to be derived as a graph."""
    for node in nodes:
        node.checked()  # type: ignore[attr-defined]
    leaves: dict[Tensor, int] = {}
    for edge in (*(edge for edge, _ in roots), *(e for node in nodes for e in node.edges)):
        if edge is not None and isinstance(edge[0], Tensor):
            leaves.setdefault(edge[0], len(leaves))

    live = [(node, i) for node in nodes for i, x in enumerate(node.results) if x() is not None]  # type: ignore[attr-defined]

    def total(*values: Any) -> tuple[Any, list[Any]]:
        made: dict[tuple[Any, int], Any] = {}
        outs: dict[Node, list[Any]] = {}

        def read(edge: Edge) -> Any:
            return values[leaves[edge[0]]] if isinstance(edge[0], Tensor) else made[edge]

        for node in reversed(nodes):
            rule, xs = node.rule, list(node.replay)  # type: ignore[attr-defined]
            for i, edge in zip(rule.active, node.edges, strict=True):
                xs[i] = xs[i] if edge is None else read(edge)
            outs[node] = jax.tree.leaves(rule.fun(*xs))
            made.update(((node, k), outs[node][i]) for k, i in enumerate(rule.seeded))
        ends = [jnp.real(read(edge) * _array(ct)).sum() for edge, ct in roots]
        loss = sum(ends[1:], ends[0]).astype(ends[0].dtype)
        return loss, [outs[node][i] for node, i in live]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradientWarning)
        places = tuple(range(len(leaves)))
        asked = value_and_grad(total, places, has_aux=True)
        (_, again), found = asked(*(leaf.value for leaf in leaves))
    for (node, i), array in zip(live, again, strict=True):
        tensor = node.results[i]()  # type: ignore[attr-defined]
        if tensor is not None and tensor._view is None and not tensor._storage.version:
            tensor._storage.array = array  # of the one forward pass that the gradient needs
    for leaf, ct in zip(leaves, found, strict=True):
        for hook in tuple(leaf._hooks or ()):
            changed = hook(Tensor(ct))
            ct = ct if changed is None else changed.value
        accumulate_into(leaf, ct, False)


# One program for a graph of a known structure.


@dataclass(eq=False)
class _Program:
    """A backward walk over nodes of such rules and edges, compiled."""

    steps: tuple[tuple[Any, tuple[tuple[int, int] | None, ...]], ...]
    roots: tuple[tuple[int, int], ...]
    count: int  # of leaves

    def __post_init__(self) -> None:
        self.run = jax.jit(self._walk)

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


def _is_plain(nodes: Sequence[Node]) -> bool:
    """True where no hook and no mode wants to see what passes between the nodes."""
    if len(nodes) > LONGEST or not nodes or anomaly.state.on:
        return False
    return all(type(node) is OpNode and node.hooks is None for node in nodes)


def _program(
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


__all__ = ["mode", "run_backward"]
