"""A scan node taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value

NEAR = 1.5  # a strip's length that needs no copies of slices may be off by so much


@dataclass(frozen=True)
class Kept:
    """What steps leave for others: their xs, and stacks of values or of carries.

    `left` is that of the steps that follow strips of them.
    """

    xs: Sequence[Value]
    stacks: Sequence[Value]
    left: Kept | None = None


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

    def steps(
        self, b: Builder, inputs: Sequence[Value], length: int, stacked: Sequence[Value] = ()
    ) -> tuple[Sequence[Value], Kept]:
        """Emit so many steps, which also stack other values of the body; gives the outputs too."""
        body = replace(self.body, outputs=(*self.body.outputs, *stacked))
        found = b.emit("scan", inputs, {**self.node.attrs, "length": length}, (body,))
        count = len(self.body.outputs)
        return found[:count], Kept(inputs[self.parts[2]], found[count:])


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

    def around(self, scan: Scan) -> dict[str, Any]:
        """Attributes of a scan over strips of so many steps; what a user has unrolled are steps."""
        return {**scan.node.attrs, "length": self.count, "unroll": 1}

    def emit(
        self, b: Builder, inputs: Sequence[Value], stacked: Sequence[Value] | None = None
    ) -> tuple[Sequence[Value], Kept]:
        """Emit the scan as one over strips; gives its outputs and what it keeps.

        Where the steps left are to stack values, each strip keeps the carry that it starts from.
        """
        scan = self.scan
        consts, carry, xs = scan.parts
        heads, tails = self.cut(b, inputs[xs])
        sub = b.nested()
        own = [*like(sub, inputs[: carry.stop]), *slices(sub, heads)]
        outputs, _ = scan.steps(sub, own, self.each)
        starts = () if stacked is None else own[carry]
        body = sub.graph(scan.body.name, own, (*outputs, *starts))
        found = b.emit("scan", (*inputs[: carry.stop], *heads), self.around(scan), (body,))
        final: Sequence[Value] = found[: scan.carried]
        last: Sequence[Value] = ()
        left = None
        if self.left:
            rest = (*inputs[consts], *final, *tails)
            last, left = scan.steps(b, rest, self.left, stacked or ())
            final = last[: scan.carried]
        ys = self.joined(b, found[scan.carried : len(outputs)], last[scan.carried :])
        return (*final, *ys), Kept(heads, found[len(outputs) :], left)

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
