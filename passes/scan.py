"""A scan node taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value

NEAR = 1.5  # a strip's length that needs no copies of slices may be off by so much


@dataclass(frozen=True)
class Scan:
    """A scan node's consts, carry and xs, outside and inside its body."""

    node: Node

    @property
    def body(self) -> Graph:
        """The function of one step."""
        return self.node.regions[0]

    @property
    def length(self) -> int:
        """Number of steps."""
        return int(self.node.attrs["length"])

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Where the consts, the carry and the xs stand among the inputs."""
        n, k = self.node.attrs["num_consts"], self.node.attrs["num_carry"]
        return slice(0, n), slice(n, n + k), slice(n + k, None)

    @property
    def carried(self) -> int:
        """Number of outputs that are the final carry."""
        return int(self.node.attrs["num_carry"])

    @property
    def sliced(self) -> Sequence[Value]:
        """What a step is given of the xs, and what it leaves in the ys."""
        return (*self.body.inputs[self.parts[2]], *self.body.outputs[self.carried :])


def strip_of(length: int, target: float) -> int:
    """A strip of about `target` steps of so many, a divisor if one is near; 0 if too few."""
    if length < 4:
        return 0
    divisors = [n for n in range(2, length // 2 + 1) if length % n == 0]
    found = min(divisors, key=lambda n: max(n / target, target / n), default=0)
    if found and max(found / target, target / found) < NEAR:
        return found
    return min(max(round(target), 2), length // 2)


@dataclass(frozen=True)
class Strips:
    """The steps of a scan in strips of `each`, the first that run; the steps left come after."""

    scan: Scan
    each: int

    @property
    def count(self) -> int:
        """Number of strips."""
        return self.scan.length // self.each

    @property
    def left(self) -> int:
        """Steps that the strips leave."""
        return self.scan.length % self.each

    @property
    def reverse(self) -> bool:
        """True when the scan begins at the end, so that the steps left come first in its xs."""
        return bool(self.scan.node.attrs["reverse"])

    def cut(self, b: Builder, xs: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """`[n, ...]` in strips, `[n // each, each, ...]`, and the steps left."""
        heads, tails = [], []
        for x in xs:
            length = x.shape[0]
            at = self.left if self.reverse else length - self.left
            low, high = b.slice_in_dim(x, 0, at, 0), b.slice_in_dim(x, at, length, 0)
            tail, head = (low, high) if self.reverse else (high, low)
            heads.append(b.reshape(head, (self.count, self.each, *x.shape[1:])))
            tails.append(tail)
        return heads, tails

    def joined(self, b: Builder, heads: Sequence[Value], tails: Sequence[Value]) -> list[Value]:
        """Whole ys from those of the strips and of the steps left, if any."""
        ys = [b.reshape(y, (y.shape[0] * y.shape[1], *y.shape[2:])) for y in heads]
        if not tails:
            return ys
        pairs = zip(ys, tails, strict=True)
        return [b.concatenate((t, h) if self.reverse else (h, t), 0) for h, t in pairs]


def like(b: Builder, values: Sequence[Value]) -> list[Value]:
    """New values of the same types."""
    return [b.value(v.type) for v in values]


def slices(b: Builder, xs: Sequence[Value]) -> list[Value]:
    """New values for one step's slices."""
    return [b.value(x.type.with_shape(x.shape[1:])) for x in xs]
