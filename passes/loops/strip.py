"""Strip mining: a loop in a loop, so that what is done in one go is done for a strip of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.graph import Value
from ..scan import Strips, strip_of
from .kinds import Kinds
from .walk import Loop, OverScans


@dataclass(frozen=True)
class Strip(OverScans):
    """A scan whose steps multiply by the same matrices, as a scan over strips of such steps.

        scan(c, x[n]) { .. }  ->  scan(c, x[n/k, k]) { scan(c, x[k]) { .. } }

    `hoist` and `defer` then do the products of a strip at a time, and the planner decides about
    strips: what the steps of one leave for the backward pass may be made again with it. There
    are about as many strips as steps in one; the steps left come after. Only what will be
    differentiated, of `least` steps or more: else there is nothing to make again. What a user has
    unrolled stays as it is.
    """

    least: int = 64

    name: ClassVar[str] = "strip"

    def offered(self, b: Builder, loop: Loop) -> Sequence[Value] | None:
        """See the class."""
        each = strip_of(loop.length, loop.length**0.5)
        if not (loop.differentiated and each and loop.length >= self.least):
            return None
        if loop.node.attrs["unroll"] != 1 or not (loop.is_innermost and _multiplies(loop)):
            return None
        strips = Strips(loop, each)
        loop.tell("loop in strips", loop.node, 0, gain=f"{strips.each} steps of {loop.length} each")
        outputs, _ = strips.emit(b, loop.node.inputs)
        return outputs


def _multiplies(loop: Loop) -> bool:
    """True where a step has a product by what is the same in each of them."""
    fixed = Kinds(loop).invariant
    products = (node for node in loop.body.nodes if node.op.name == "dot_general")
    return any(not fixed.isdisjoint(node.inputs) for node in products)
