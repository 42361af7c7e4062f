"""Which values of a stretch to keep and which to make again, at a price: a minimum cut.

    minimise   bytes kept + price * seconds of the nodes that run again
    such that  what is required is kept, or made again from what is kept or made again

A value is an edge between what makes it and what reads it, on a network that leads from what
exists anyway to what is required; the cut edges are the values kept. Falling prices trace the
lower hull of bytes against seconds.

Source: Picard 1976 (selections as minimum cuts); Horace He's partitioner of PyTorch's AOTAutograd
(bytes alone, a ban on what is dear to make again).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ...ir.graph import Node, Value
from .joint import Joint

_WHOLE = 1 << 28  # the finite capacities add up to this, as they are int32
_ENDLESS = 1 << 30


def kept(
    joint: Joint,
    nodes: Sequence[Node],
    required: Iterable[Value],
    seconds: Callable[[Node], float],
    price: float,
) -> frozenset[Value]:
    """Return which values of the forward `nodes` to keep; `price` is in bytes for a second.

    What the nodes read from elsewhere counts as kept, and so does what costs nothing to have.
    """
    own = {v: node for node in nodes for v in node.outputs if joint.root[v] is v}
    sized = {value for value in own if joint.bytes(value)}
    wanted = {joint.root[v] for v in required if v in joint.root} & sized
    if not wanted:
        return frozenset()
    edges: list[tuple[Hashable, Hashable, float]] = []
    for node in nodes:
        edges.append(("source", node, np.inf if node.op.effect else price * seconds(node)))
        for value in dict.fromkeys(joint.root.get(v, v) for v in node.inputs):
            if value in sized and own[value] is not node:
                edges.append((("after", value), node, np.inf))
        for value in sized.intersection(node.outputs):
            edges.append((node, ("before", value), np.inf))
            edges.append((("before", value), ("after", value), joint.bytes(value)))
    edges += [(("after", value), "sink", np.inf) for value in wanted]
    near = _source_side(edges)
    return frozenset(v for v in sized if ("before", v) in near and ("after", v) not in near)


def _source_side(edges: Sequence[tuple[Hashable, Hashable, float]]) -> set[Hashable]:
    """The vertices on the source's side of a minimum cut."""
    names = dict.fromkeys(["source", "sink", *(end for edge in edges for end in edge[:2])])
    index = {name: i for i, name in enumerate(names)}
    weights = np.array([edge[2] for edge in edges])
    finite = np.isfinite(weights)
    scale = _WHOLE / max(float(weights[finite].sum()), 1e-300)
    capacity = np.where(finite, np.ceil(np.where(finite, weights, 0) * scale), _ENDLESS)
    rows = [index[tail] for tail, _, _ in edges]
    columns = [index[head] for _, head, _ in edges]
    size = (len(index), len(index))
    network = csr_array((capacity.astype(np.int32), (rows, columns)), shape=size)
    flow = maximum_flow(network, index["source"], index["sink"]).flow
    left = csr_array(network - flow).maximum(0)
    near = breadth_first_order(left, index["source"], return_predecessors=False)
    listed = list(index)
    return {listed[i] for i in near}
