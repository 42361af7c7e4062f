"""A pair of scans written again: less is stacked, and segments run forward a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...ir.builder import Builder
from ...ir.graph import Graph, Value
from ..scan import Strips, like, slices
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
        heads, tails = self._strips.cut(b, inputs[xs])
        sub = b.nested()
        own = [*like(sub, inputs[: carry.stop]), *slices(sub, heads)]
        outputs, _ = self._forward(sub, own, self.segment, ())
        body = sub.graph(scan.body.name, own, (*outputs, *own[carry]))
        attrs = {**scan.node.attrs, "length": self._strips.count}
        found = b.emit("scan", (*inputs[: carry.stop], *heads), attrs, (body,))
        final: Sequence[Value] = found[: scan.carried]
        last: Sequence[Value] = ()
        left = None
        if self._strips.left:
            last, left = self._forward(b, (*inputs[consts], *final, *tails), self._strips.left)
            final = last[: scan.carried]
        kept = Kept(heads, found[len(outputs) :], left)
        ys = self._strips.joined(b, found[scan.carried : len(outputs)], last[scan.carried :])
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
        heads, tails = self._strips.cut(b, inputs[xs])
        last: Sequence[Value] = ()
        if kept.left:
            rest = (kept.left.stacks, kept.left.xs, tails)
            last = self._backward(b, (*parts, *rest), self._strips.left)
            parts = (*parts[:2], last[: scan.carried])
        sliced = (kept.stacks, kept.xs, heads)
        sub = b.nested()
        sub.phase = "backward"
        own = [like(sub, values) for values in parts]
        start, f_xs, b_xs = (slices(sub, values) for values in sliced)
        _, again = self._forward(sub, (*own[0], *start, *f_xs), self.segment)
        outputs = self._backward(sub, (*own, again.stacks, f_xs, b_xs), self.segment)
        body = sub.graph(scan.body.name, _flat((*own, start, f_xs, b_xs)), outputs)
        attrs = {
            **scan.node.attrs,
            "num_consts": len(fixed) + len(inputs[consts]),
            "length": self._strips.count,
        }
        found = b.emit("scan", _flat((*parts, *sliced)), attrs, (body,))
        final, ys = found[: scan.carried], found[scan.carried :]
        return (*final, *self._strips.joined(b, ys, last[scan.carried :]))

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

    @cached_property
    def _strips(self) -> Strips:
        return Strips(self.pair.forward, self.segment)


def _flat(parts: Sequence[Sequence[Value]]) -> list[Value]:
    return [v for values in parts for v in values]
