"""Arithmetic and memory traffic of a graph, counted op by op as if nothing were fused.

    flops          floating-point operations, a fused multiply-add counts as two
    bytes_read     of distinct operands; literals and views (reshape, ...) move nothing
    bytes_written  of outputs

A scan costs its length times its body, a cond its dearest branch. The trips of a while are not
known: it counts once, and `unbounded` tells that the truth is more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from .graph import Graph, Literal, Node

# Ops that XLA gives the buffer of their operand.
VIEWS = frozenset(
    "bitcast_convert_type copy_p expand_dims name optimization_barrier reshape squeeze"
    " stop_gradient".split()
)


@dataclass(frozen=True, slots=True)
class Work:
    """What some nodes cost: how many they are, FLOPs, bytes."""

    nodes: int = 0
    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Work) -> Work:
        """Sum, part by part."""
        return Work(
            self.nodes + other.nodes,
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def times(self, count: int) -> Work:
        """Work of `count` runs."""
        parts = (self.nodes, self.flops, self.bytes_read, self.bytes_written)
        return Work(*(part * count for part in parts))
