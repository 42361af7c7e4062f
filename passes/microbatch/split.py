"""What a value is for one part of the batch.

A step over k parts of the batch sees three kinds of values:

    Split     one dimension holds samples: a part has its own k-th of it
    Partial   a sum over the samples: the parts' values add up to the batch's (or the greatest of
              them is the batch's, ...)
    None      the whole: the same for every part
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from ...ir.graph import Graph, Node
from ...ir.op import Op

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Dimension `dim` has k parts: part m are the indices i with `i // stride % k == m`.

    The dimension is `outer * k * stride` long; of a part it is `outer * stride`.
    """

    dim: int
    stride: int

    def at(self, dim: int) -> Split:
        """Return the same parts of another dimension of the same length."""
        return Split(dim, self.stride)

    def cut(self, shape: Sequence[int], k: int) -> Shape:
        """Shape of a part of an array of `shape`."""
        return (*shape[: self.dim], shape[self.dim] // k, *shape[self.dim + 1 :])

    def divided(self, shape: Sequence[int], k: int) -> tuple[Shape, Shape, Shape, Shape]:
        """Sizes before the parts' dimension, outside the parts, within them, and after it."""
        before, after = tuple(shape[: self.dim]), tuple(shape[self.dim + 1 :])
        return before, (shape[self.dim] // (k * self.stride),), (self.stride,), after

    def reshaped(self, old: Sequence[int], new: Sequence[int], k: int) -> Split | None:
        """Where the parts are once the array has another shape, if one dimension has them all."""
        apart = self.stride * prod(old[self.dim + 1 :])  # elements from one part to the next
        inside = 1
        for dim in reversed(range(len(new))):
            fits = apart % inside == 0 and new[dim] % (k * max(1, apart // inside)) == 0
            if inside <= apart < inside * new[dim] and fits:
                return Split(dim, apart // inside)
            inside *= new[dim]
        return None


@dataclass(frozen=True, slots=True)
class Partial:
    """The parts' values are put together by `op`: `add`, `max`, `min`, `mul`, `or`, `and`."""

    op: str


SUM = Partial("add")
Kind = Split | Partial | None


@dataclass(frozen=True, slots=True)
class Step:
    """How a node runs on a part: the kinds that its operands have to have, those of its outputs.

    `attrs`, `regions` and `op` are new ones, where the shapes of a part ask for them.
    """

    wanted: Sequence[Kind]
    outputs: Sequence[Kind]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    regions: Sequence[Graph] | None = None
    op: Op | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A region for a part of the batch, the kinds of its inputs and of its outputs."""

    graph: Graph
    inputs: Sequence[Kind]
    outputs: Sequence[Kind]


class Part(Protocol):
    """What runs a region for one of `k` parts of the batch."""

    k: int

    def region(
        self, graph: Graph, kinds: Sequence[Kind], node: Node, wanted: Mapping[int, Kind]
    ) -> Region:
        """Return a region of `node` for a part; some outputs are of the kinds `wanted`.

        Inputs may have to be of other kinds than `kinds`: whole ones split.
        """


class Coupled(Exception):
    """A node ties the samples of the batch to each other; `args[0]` says how."""

    def __init__(self, node: Node, why: str) -> None:
        """Tell `why`, of which the node is the place."""
        super().__init__(why)
        self.node = node
