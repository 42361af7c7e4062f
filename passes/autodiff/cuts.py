"""Which inputs a loss depends on only through ops that pass no gradient.

One walk from the loss backwards gives each value the best way by which it reaches the loss:

    SMOOTH   a derivative can flow: add, exp, ...
    Cut      it is read, but every way leads through an op such as `round` or `gt`
    DATA     an integer or a mask on such a way

What `stop_gradient` cuts is meant, and what only the masks of a derivative read (the second
derivative of a relu) is zero by mathematics: neither counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.graph import Graph, Literal, Node, Origin, Value
from .reverse import propagates


@dataclass(frozen=True, slots=True)
class Cut:
    """The op, or the function of a library, that cuts a gradient, and where it stands."""

    op: str
    origin: Origin


SMOOTH, DATA = "smooth", "data"
Way = Cut | str | None
Ways = Sequence[Way]


def cut_inputs(graph: Graph, wrt: Sequence[int], outputs: Sequence[int] = (0,)) -> dict[int, Cut]:
    """Inputs among `wrt` from which no derivative reaches `outputs`, though they are read.

    Inputs that are not read at all are absent.
    """
    seeds = [SMOOTH if i in outputs else None for i in range(len(graph.outputs))]
    ways = _through(graph, seeds)
    return {i: way for i in wrt if isinstance(way := ways[i], Cut)}


def _through(region: Graph, outs: Ways) -> list[Way]:
    """Ways of a region's inputs from those of its outputs."""
    found: dict[Value, Way] = {}

    def join(values: Sequence[Value], ways: Ways) -> None:
        for value, way in zip(values, ways, strict=True):
            if way is not None and not isinstance(value, Literal):
                found[value] = _better(found.get(value), way)

    join(region.outputs, outs)
    for node in reversed(region.nodes):
        ways = [found.get(value) for value in node.outputs]
        if any(way is not None for way in ways):
            join(node.inputs, _of_node(node, ways))
    return [found.get(value) for value in region.inputs]


def _better(a: Way, b: Way) -> Way:
    """Return the better way; of two cuts the first that was met."""
    if a is SMOOTH or b is None:
        return a
    return b if a is None or a is DATA or b is SMOOTH else a


def _of_node(node: Node, outs: Ways) -> Ways:
    if node.op.name == "stop_gradient":
        return [None]
    rule = _REGIONS.get(node.op.name, _plain)
    ways = [_placed(way, node) for way in rule(node, outs)]
    if node.phase == "backward":
        return [way if way is SMOOTH else None for way in ways]
    return ways


def _plain(node: Node, outs: Ways) -> Ways:
    """Ways through an op without regions, or through one with a rule of its own."""
    best: Way = None
    if propagates(node):
        for value, way in zip(node.outputs, outs, strict=True):
            best = _better(best, way) if value.type.is_inexact else best
    inexact = Cut(node.op.name, node.origin) if best is None else best
    return [inexact if value.type.is_inexact else DATA for value in node.inputs]


def _placed(way: Way, call: Node) -> Way:
    """Give a cut inside a library's function the name of that function and its caller's line."""
    if isinstance(way, Cut) and not way.origin.known:
        return Cut(call.attrs.get("name", way.op), way.origin.under(call.origin))
    return way


def _call(node: Node, outs: Ways) -> Ways:
    return _through(node.regions[0], outs)


def _cond(node: Node, outs: Ways) -> Ways:
    operands: list[Way] = [None] * (len(node.inputs) - 1)
    for branch in node.regions:
        operands = list(map(_better, operands, _through(branch, outs)))
    return [DATA, *operands]


def _scan(node: Node, outs: Ways) -> Ways:
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    carry, ys = list(outs[:k]), outs[k:]
    while True:
        ins = _through(node.regions[0], [*carry, *ys])
        grown = list(map(_better, carry, ins[n : n + k]))
        if grown == carry:
            return [*ins[:n], *carry, *ins[n + k :]]
        carry = grown


def _while(node: Node, outs: Ways) -> Ways:
    test, body = node.regions
    nc, nb = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    asked = _through(test, [DATA])
    carry = list(map(_better, outs, asked[nc:]))
    while True:
        ins = _through(body, carry)
        grown = list(map(_better, carry, ins[nb:]))
        if grown == carry:
            return [*asked[:nc], *ins[:nb], *carry]
        carry = grown


_REGIONS: dict[str, Any] = {
    **dict.fromkeys(("jit", "closed_call", "eval_jaxpr", "remat2"), _call),
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
