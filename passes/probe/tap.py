"""A program that hands out chosen values of any of its graphs, as they were in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ..dce import Dce
from ..scan import Scan
from .locate import Path
from .record import STEP


def tapped(graph: Graph, path: Path, values: Sequence[Value]) -> Graph:
    """Return the program of the same inputs whose outputs are `values`, of the graph at `path`."""
    whole = _tapped(graph, path, values)
    return Dce()(replace(whole, outputs=whole.outputs[len(graph.outputs) :]))


def _tapped(graph: Graph, path: Path, values: Sequence[Value]) -> Graph:
    """The graph with the values behind its outputs."""
    if not path:
        return replace(graph, outputs=(*graph.outputs, *values))
    (entered, place, step), *rest = path
    region = _tapped(entered.regions[place], tuple(rest), values)
    b = Builder(OPS)
    handed: Sequence[Value] = ()
    for node in graph.nodes:
        if node is entered:
            b.origin, b.phase = node.origin, node.phase
            handed = _ENTER[node.op.name](b, node, _Entered(region, len(node.outputs), place, step))
        else:
            b.nodes.append(node)
    return b.graph(graph.name, graph.inputs, (*graph.outputs, *handed))


@dataclass(frozen=True)
class _Entered:
    """A region whose outputs from `count` on are handed out, in one step of its loop."""

    region: Graph
    count: int
    place: int
    step: int | None

    @property
    def values(self) -> tuple[Value, ...]:
        """What is handed out."""
        return self.region.outputs[self.count :]

    @cached_property
    def carried(self) -> tuple[Value, ...]:
        """What a loop carries besides: the number of its round, and the values once it is due."""
        return Value(STEP), *(Value(v.type.strong()) for v in self.values)

    def start(self, b: Builder) -> list[Value]:
        """What the loop begins with."""
        return [b.literal(0, np.int32), *(b.empty(v.type) for v in self.values)]

    def round(self, at: int) -> tuple[Graph, list[Value]]:
        """The region's nodes, and what it carries on: the values of round `at`."""
        b = Builder(OPS)
        b.nodes += self.region.nodes
        number, *held = self.carried
        due = b.eq(number, at)
        pairs = zip(self.values, held, strict=True)
        carried = [b.add(number, 1), *(b.select(due, new, old) for new, old in pairs)]
        return b.graph(self.region.name, self.region.inputs, self.region.outputs), carried


def _cond(b: Builder, node: Node, entered: _Entered) -> Sequence[Value]:
    regions = [_with_zeros(region, entered.values) for region in node.regions]
    regions[entered.place] = entered.region
    more = tuple(Value(v.type) for v in entered.values)
    b.nodes.append(replace(node, outputs=(*node.outputs, *more), regions=tuple(regions)))
    return more


def _with_zeros(graph: Graph, like: Sequence[Value]) -> Graph:
    b = Builder(OPS)
    b.nodes += graph.nodes
    return b.graph(graph.name, graph.inputs, (*graph.outputs, *(b.empty(v.type) for v in like)))


def _scan(b: Builder, node: Node, entered: _Entered) -> Sequence[Value]:
    scan, step = Scan(node), entered.step or 0
    end, k = scan.parts[1].stop, scan.carried
    body, carried = entered.round(scan.length - 1 - step if node.attrs["reverse"] else step)
    ins, outs = body.inputs, body.outputs[: entered.count]
    body = replace(
        body,
        inputs=(*ins[:end], *entered.carried, *ins[end:]),
        outputs=(*outs[:k], *carried, *outs[k:]),
    )
    more = tuple(Value(v.type) for v in entered.carried)
    start = entered.start(b)
    b.nodes.append(
        replace(
            node,
            inputs=(*node.inputs[:end], *start, *node.inputs[end:]),
            outputs=(*node.outputs[:k], *more, *node.outputs[k:]),
            attrs={**node.attrs, "num_carry": k + len(more)},
            regions=(body,),
        )
    )
    return more[1:]


def _while(b: Builder, node: Node, entered: _Entered) -> Sequence[Value]:
    test, _ = node.regions
    body, carried = entered.round(entered.step or 0)
    outs = (*body.outputs[: entered.count], *carried)
    body = replace(body, inputs=(*body.inputs, *entered.carried), outputs=outs)
    more = tuple(Value(v.type) for v in entered.carried)
    start = entered.start(b)
    unread = (Value(v.type) for v in entered.carried)
    b.nodes.append(
        replace(
            node,
            inputs=(*node.inputs, *start),
            outputs=(*node.outputs, *more),
            regions=(replace(test, inputs=(*test.inputs, *unread)), body),
        )
    )
    return more[1:]


_ENTER: Mapping[str, Callable[[Builder, Node, _Entered], Sequence[Value]]] = MappingProxyType(
    {"scan": _scan, "cond": _cond, "while": _while}
)
