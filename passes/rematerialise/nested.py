"""A pair of scans written again: less is stacked, and segments run forward a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.builder import Builder
from ...ir.graph import Graph, Value
from .pairs import Pair


@dataclass(frozen=True)
class Kept:
    """What forward steps leave for backward ones: their xs, and stacks of values or of carries.

    `left` is that of the steps that follow the segments.
    """

    xs: Sequence[Value]
    stacks: Sequence[Value]
    left: Kept | None = None


@dataclass(frozen=True, eq=False)
class Nested:
    """How a pair is written again: `body` is the backward step, which reads `stacked` values.

    Its consts and xs are those of the forward scan and its own, its xs begin with the stacks.
    `segment` is a number of steps, or 0 for no segments.
    """

    pair: Pair
    stacked: tuple[Value, ...]
    body: Graph
    segment: int

    def forward(self, b: Builder, inputs: Sequence[Value]) -> tuple[Sequence[Value], Kept]:
        """Emit the forward scan; gives its outputs and what it keeps."""
        scan = self.pair.forward
        if not self.segment:
            return self._forward(b, inputs, scan.length)
        consts, carry, xs = scan.parts
        heads, tails = self._cut(b, inputs[xs])
        sub = b.nested()
        own = [*_like(sub, inputs[: carry.stop]), *_slices(sub, heads)]
        outputs, _ = self._forward(sub, own, self.segment, ())
        body = sub.graph(scan.body.name, own, (*outputs, *own[carry]))
        attrs = {**scan.node.attrs, "length": scan.length // self.segment}
        found = b.emit("scan", (*inputs[: carry.stop], *heads), attrs, (body,))
        final: Sequence[Value] = found[: scan.carried]
        last: Sequence[Value] = ()
        left = None
        if self._left:
            last, left = self._forward(b, (*inputs[consts], *final, *tails), self._left)
            final = last[: scan.carried]
        kept = Kept(heads, found[len(outputs) :], left)
        ys = self._joined(b, found[scan.carried : len(outputs)], last[scan.carried :])
        return (*final, *ys), kept

    def backward(
        self, b: Builder, fixed: Sequence[Value], inputs: Sequence[Value], kept: Kept
    ) -> Sequence[Value]:
        """Emit the backward scan; `fixed` are the forward scan's consts."""
        scan = self.pair.backward
        consts, carry, xs = scan.parts
        parts = (fixed, inputs[consts], inputs[carry])
        if not self.segment:
            return self._backward(b, (*parts, kept.stacks, kept.xs, inputs[xs]), scan.length)
        heads, tails = self._cut(b, inputs[xs])
        last: Sequence[Value] = ()
        if kept.left:
            rest = (kept.left.stacks, kept.left.xs, tails)
            last = self._backward(b, (*parts, *rest), self._left)
            parts = (*parts[:2], last[: scan.carried])
        sliced = (kept.stacks, kept.xs, heads)
        sub = b.nested()
        sub.phase = "backward"
        own = [_like(sub, values) for values in parts]
        start, f_xs, b_xs = (_slices(sub, values) for values in sliced)
        _, again = self._forward(sub, (*own[0], *start, *f_xs), self.segment)
        outputs = self._backward(sub, (*own, again.stacks, f_xs, b_xs), self.segment)
        body = sub.graph(scan.body.name, _flat((*own, start, f_xs, b_xs)), outputs)
        attrs = {
            **scan.node.attrs,
            "num_consts": len(fixed) + len(inputs[consts]),
            "length": scan.length // self.segment,
        }
        found = b.emit("scan", _flat((*parts, *sliced)), attrs, (body,))
        final, ys = found[: scan.carried], found[scan.carried :]
        return (*final, *self._joined(b, ys, last[scan.carried :]))

    def _forward(
        self,
        b: Builder,
        inputs: Sequence[Value],
        length: int,
        stacked: Sequence[Value] | None = None,
    ) -> tuple[Sequence[Value], Kept]:
        scan = self.pair.forward
        stacked = self.stacked if stacked is None else stacked
        body = replace(scan.body, outputs=(*scan.body.outputs, *stacked))
        found = b.emit("scan", inputs, {**scan.node.attrs, "length": length}, (body,))
        count = len(scan.body.outputs)
        return found[:count], Kept(inputs[scan.parts[2]], found[count:])

    def _backward(
        self, b: Builder, parts: Sequence[Sequence[Value]], length: int
    ) -> Sequence[Value]:
        fixed, consts, *_ = parts
        attrs = {
            **self.pair.backward.node.attrs,
            "num_consts": len(fixed) + len(consts),
            "length": length,
        }
        return b.emit("scan", _flat(parts), attrs, (self.body,))

    @property
    def _left(self) -> int:
        """Steps that the segments leave: the last ones of the forward scan."""
        return self.pair.forward.length % self.segment

    def _cut(self, b: Builder, xs: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """`[n, ...]` in segments, `[n // segment, segment, ...]`, and the steps left."""
        heads, tails = [], []
        for x in xs:
            length = x.shape[0]
            at = self._left if self._reverse else length - self._left
            low, high = b.slice_in_dim(x, 0, at, 0), b.slice_in_dim(x, at, length, 0)
            tail, head = (low, high) if self._reverse else (high, low)
            heads.append(b.reshape(head, (length // self.segment, self.segment, *x.shape[1:])))
            tails.append(tail)
        return heads, tails

    def _joined(
        self, b: Builder, heads: Sequence[Value], tails: Sequence[Value]
    ) -> Sequence[Value]:
        """Whole ys from those of the segments and of the steps left, if any."""
        ys = [b.reshape(y, (y.shape[0] * y.shape[1], *y.shape[2:])) for y in heads]
        if not tails:
            return ys
        pairs = zip(ys, tails, strict=True)
        return [b.concatenate((t, h) if self._reverse else (h, t), 0) for h, t in pairs]

    @property
    def _reverse(self) -> bool:
        """True when the forward scan begins at the end, so that the steps left come first."""
        return bool(self.pair.forward.node.attrs["reverse"])


def _like(b: Builder, values: Sequence[Value]) -> list[Value]:
    return [b.value(v.type) for v in values]


def _slices(b: Builder, xs: Sequence[Value]) -> list[Value]:
    """Values for one step's slices."""
    return [b.value(x.type.with_shape(x.shape[1:])) for x in xs]


def _flat(parts: Sequence[Sequence[Value]]) -> list[Value]:
    return [v for values in parts for v in values]
