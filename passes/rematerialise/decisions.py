"""What a schedule does, told for each value: kept for the backward pass, or made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...ir.cost import VIEWS
from ...ir.device import LINK
from ...ir.fusion import CALLS, Fusion, free_values, is_fusible
from ...ir.graph import Graph, Node, maker
from ...ir.op import Op
from ...ir.types import ArrayType
from .sites import bodies

_HOLDERS = CALLS | VIEWS | LINK | {"scan", "while", "cond", "remat2"}


@dataclass(frozen=True)
class Decision:
    """What becomes of one value: `action` is save, recompute or offload.

    `bytes` that keeping it takes; `seconds` that making it again takes, or would take, by the
    roofline and over all the times; of an offload the seconds of both copies.
    """

    value: str
    action: str
    bytes: int
    seconds: float
    source: str
    scope: str
    reason: str


def decisions(before: Graph, after: Graph, seconds: Callable[[Node], float]) -> list[Decision]:
    """Compare a program with what a schedule made of it; the largest values come first."""
    found = [*_saved(after, seconds), *_again(before, after, seconds), *_sent(after, seconds)]
    return sorted(found, key=lambda each: -each.bytes)


def _saved(graph: Graph, seconds: Callable[[Node], float]) -> list[Decision]:
    late = Fusion(graph).read(node for node in graph.nodes if node.phase != "forward")
    free = free_values(graph.inputs, graph.nodes)
    found = []
    for node in graph.nodes:
        for k, value in enumerate(node.outputs if node.phase == "forward" else ()):
            if value in late and value not in free and not value.type.host:
                made = maker(node, k)
                times = 1 if made is node else int(node.attrs["length"])
                time = times * seconds(made)
                reason = f"made again it would cost {_milliseconds(time)}"
                found.append(_told(made, "save", str(value.type), value.type.nbytes, time, reason))
    for i, k in bodies(graph):
        found += _saved(graph.nodes[i].regions[k], seconds)
    return found


def _sent(graph: Graph, seconds: Callable[[Node], float], times: int = 1) -> list[Decision]:
    found = []
    for node in graph.nodes:
        length = times * int(node.attrs["length"]) if node.op.name == "scan" else times
        for region in node.regions:
            found += _sent(region, seconds, length)
        if node.op.name == "offload":
            (value,) = node.inputs
            maker = graph.producer.get(value, node)
            size, time = times * value.type.nbytes, times * seconds(node)
            reason = f"{_milliseconds(time)} to the host and as long back, beside the arithmetic"
            found.append(_told(maker, "offload", str(value.type), size, 2 * time, reason))
    return found


def _again(before: Graph, after: Graph, seconds: Callable[[Node], float]) -> list[Decision]:
    was, now = _runs(before), _runs(after)
    found = []
    for key, (node, runs) in now.items():
        more = runs - was.get(key, (node, 0))[1]
        size = sum(value.type.nbytes for value in node.outputs)
        if more <= 0 or node.phase == "forward" or not size:
            continue
        time = more * seconds(node)
        reason = "made inside the loops that read it"
        if not is_fusible(node):
            reason = f"frees its memory for {_milliseconds(time)}"
        kind = ", ".join(str(value.type) for value in node.outputs)
        found.append(_told(node, "recompute", kind, size, time, reason))
    return found


def _told(node: Node, action: str, kind: str, size: int, time: float, reason: str) -> Decision:
    name = f"{node.op.name} {kind}"
    return Decision(name, action, size, time, node.source, node.scope, reason)


def _runs(graph: Graph) -> dict[Any, tuple[Node, int]]:
    """How often each op of each origin and types runs, in loops too, with the last such node.

    What is made again has the origin of its backward nodes, whose results are of other types.
    """
    found: dict[tuple[Op, Any, tuple[ArrayType, ...]], tuple[Node, int]] = {}

    def count(graph: Graph, times: int) -> None:
        for node in graph.nodes:
            if node.op.name not in _HOLDERS:
                key = (node.op, node.origin, tuple(value.type for value in node.outputs))
                found[key] = (node, found.get(key, (node, 0))[1] + times)
            length = int(node.attrs["length"]) if node.op.name == "scan" else 1
            every = node.op.name in ("cond", "while")  # others have rules besides their function
            for region in node.regions if every else node.regions[:1]:
                count(region, times * length)

    count(graph, 1)
    return found


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms"
