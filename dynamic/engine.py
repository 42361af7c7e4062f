"""The backward pass: walk the recorded graph from its end, each node's cotangents to its inputs'.

A graph of a structure that was seen before is walked by one compiled program, as nothing in it
depends on values; with hooks and the like, or for the first time, node by node.

Source: reverse accumulation, Griewank and Walther 2008, chapter 3; one program for a whole tape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..compiler.state import watching
from ..ir.errors import AutogradError
from . import anomaly
from .capture import Capture
from .modes import enable_grad, no_grad
from .node import Edge, Node, OpNode
from .staged import by_gradients
from .tensor import Tensor, accumulate_into
from .whole import is_plain, walked


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
            by_gradients(nodes, roots)
            if not retain:
                _release(nodes)
            return {}
    elif not record and captured is None and is_plain(nodes) and walked(nodes, roots):
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


def _array(x: Any) -> Any:
    return x.value if isinstance(x, Tensor) else x


def _sum(a: Any, b: Any) -> Any:
    return a + b
