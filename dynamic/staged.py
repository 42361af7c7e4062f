"""`backward` in a compiled step: no walk, a `gradients` node over what was recorded.

The graph's passes derive the backward pass then, as of any static function, and plan it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.gradients import value_and_grad
from ..ir.errors import ZeroGradientWarning
from .node import Edge, Node
from .tensor import Tensor, accumulate_into


def by_gradients(nodes: Sequence[Node], roots: Sequence[tuple[Edge, Any]]) -> None:
    """In a compiled step: ask for the gradients of what was recorded, to be derived as a graph."""
    for node in nodes:
        node.checked()  # type: ignore[attr-defined]
    leaves: dict[Tensor, int] = {}
    for edge in (*(edge for edge, _ in roots), *(e for node in nodes for e in node.edges)):
        if edge is not None and isinstance(edge[0], Tensor):
            leaves.setdefault(edge[0], len(leaves))

    live = [
        (node, i)
        for node in nodes
        for i, x in enumerate(node.results)  # type: ignore[attr-defined]
        if x() is not None
    ]

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
        ends = [
            jnp.real(read(edge) * (ct.value if isinstance(ct, Tensor) else ct)).sum()
            for edge, ct in roots
        ]
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
