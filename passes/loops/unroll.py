"""Loops of tiny steps, a few steps a trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.cost import VIEWS
from ...ir.graph import Literal, Node, Value
from .walk import Loop, OverScans

_LOOPS = frozenset("scan while cond remat2 shard_map".split())


@dataclass(frozen=True)
class Unroll(OverScans):
    """scan {unroll=1}  ->  scan {unroll=steps}, where a step is tiny.

    XLA:CPU takes some microseconds for a trip and for each of its kernels, which is more than the
    arithmetic where a step makes at most `largest` bytes. Above that, the copies of slices that an
    unrolled loop makes cost more than the trips. It takes XLA three times as long to compile, so
    that a loop has to have `least` steps. What a user has unrolled stays as it is, and so do loops
    with loops inside. `jax.lax.scan` runs the steps that are left over after the loop.
    """

    steps: int = 4
    largest: int = 1 << 14
    least: int = 64

    name: ClassVar[str] = "unroll"

    def offered(self, b: Builder, loop: Loop) -> Sequence[Value] | None:
        """See the class."""
        node, nodes = loop.node, loop.body.nodes
        if node.attrs["unroll"] != 1 or loop.length < self.least:
            return None
        if any(each.op.name in _LOOPS for each in nodes) or _touched(nodes) > self.largest:
            return None
        size = loop.length * _touched(nodes)
        loop.tell("loop unrolled", node, size, gain=f"made {self.steps} steps a trip")
        return b.emit("scan", node.inputs, {**node.attrs, "unroll": self.steps}, node.regions)


def _touched(nodes: Sequence[Node]) -> int:
    """Bytes that nodes make, and that products read."""
    made = sum(v.type.nbytes for n in nodes if n.op.name not in VIEWS for v in n.outputs)
    read = (v for n in nodes if n.op.name == "dot_general" for v in n.inputs)
    return made + sum(v.type.nbytes for v in read if not isinstance(v, Literal))
