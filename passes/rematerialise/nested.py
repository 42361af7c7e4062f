"""A pair of scans written again: less is stacked, and segments run forward a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...ir.builder import Builder
from ...ir.graph import Graph, Value
from ..scan import Kept, Strips, like, slices
from .pairs import Pair


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
        if not self.segment:
            scan = self.pair.forward
            return scan.steps(b, inputs, scan.length, self.stacked)
        return self._strips.emit(b, inputs, self.stacked)

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
        given = (*own[0], *start, *f_xs)
        _, again = self.pair.forward.steps(sub, given, self.segment, self.stacked)
        outputs = self._backward(sub, (*own, again.stacks, f_xs, b_xs), self.segment)
        body = sub.graph(scan.body.name, _flat((*own, start, f_xs, b_xs)), outputs)
        attrs = {**self._strips.around(scan), "num_consts": len(fixed) + len(inputs[consts])}
        found = b.emit("scan", _flat((*parts, *sliced)), attrs, (body,))
        final, ys = found[: scan.carried], found[scan.carried :]
        return (*final, *self._strips.joined(b, ys, last[scan.carried :]))

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
