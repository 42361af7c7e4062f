"""Live bytes over program order, for the page.

bytes      at each position, as the difference from the one before
buffers    five columns: value, node that made it (-1: an argument), first and last position,
           kind (0 argument, 1 output, 2 temporary)
inside     by position of a node with regions: what is live in its body at the body's own peak,
           as value, node, bytes, value, ...

Bytes are those that XLA is taken to use: see `liveness.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, get_args

from ..graph import Node, Value, maker
from ..liveness import Buffer, Kind, Liveness
from .tables import Tables

_KINDS = get_args(Kind)
_INSIDE = 8


def memory_data(tables: Tables, live: Liveness) -> dict[str, Any]:
    """What the timeline draws."""
    made = _made(live)
    buffers = [b for b in live.buffers if b.nbytes and b.last >= 0]
    return {
        "bytes": [live.bytes[0], *(b - a for a, b in pairwise(live.bytes))],
        "buffers": [
            [tables.value(b.value) for b in buffers],
            [_maker(tables, made, b) for b in buffers],
            [b.first for b in buffers],
            [b.last for b in buffers],
            [_KINDS.index(b.kind) for b in buffers],
        ],
        "inside": {position: _inside(tables, inner) for position, inner in live.regions.items()},
    }


def _inside(tables: Tables, live: Liveness) -> list[int]:
    made = _made(live)
    buffers = [b for b in live.peak_buffers if b.kind != "argument"][:_INSIDE]
    rows = ((tables.value(b.value), _maker(tables, made, b), b.nbytes) for b in buffers)
    return [number for row in rows for number in row]


def _made(live: Liveness) -> dict[Value, tuple[Node, int]]:
    return {value: (node, k) for node in live.graph.nodes for k, value in enumerate(node.outputs)}


def _maker(tables: Tables, made: Mapping[Value, tuple[Node, int]], buffer: Buffer) -> int:
    """The node that a buffer's bytes come from: of a stack, the one in the body of the scan."""
    return tables.node(maker(*made[buffer.value])) if buffer.value in made else -1
