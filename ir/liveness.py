"""What is in memory at each position of a graph, in bytes.

A value lives from the node that defines it to the last node that reads it. Arguments live
throughout, unless they are donated to an output of the same type. Outputs live to the end. A
view (reshape, ...) shares the buffer of its operand. With `fused`, what XLA makes inside the loop
of its one reader, or cheaply again in that of each, has no buffer for these: its operands live
until they have run instead; and what a scan stacks lives from the start, as XLA makes its zeros
there, but for a `late` scan. While a node with regions runs, what its body needs besides the node's
own operands and results is added:

    convolution    transposed copies, with `fused`: see `fusion.py`
    scan, while    the slices of a step and the body's temporaries; the carry is updated in place
    others         the largest of the regions
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal as Either
from typing import get_args

from .cost import VIEWS, is_view
from .fusion import Fusion, transposed_bytes
from .graph import Graph, Node, Value, maker
from .tables import bytes_text, count_text, table

Kind = Either["argument", "output", "temporary"]
_SHOWN = 12
_INSIDE = 6


@dataclass(frozen=True)
class Buffer:
    """Memory of a value and its views: live at the positions `first` to `last`, both included.

    Position i is the i-th node; arguments live from -1 on, outputs to the number of nodes.
    """

    value: Value
    nbytes: int
    kind: Kind
    first: int
    last: int


@dataclass(frozen=True)
class Liveness:
    """Live bytes of a graph at each position; the last position is the return.

    `bytes` is arguments + outputs so far + temporaries, `temporary_bytes` the temporaries alone,
    those inside regions included. `argument_bytes` and `output_bytes` are whole sizes, donated
    arguments included; an output that is an argument counts as an output too, as it is copied.
    """

    graph: Graph = field(repr=False)
    buffers: tuple[Buffer, ...] = field(repr=False)
    bytes: tuple[int, ...] = field(repr=False)
    temporary_bytes: tuple[int, ...] = field(repr=False)
    argument_bytes: int
    output_bytes: int
    donated_bytes: int
    peak_bytes: int
    peak_position: int
    regions: Mapping[int, Liveness] = field(default_factory=dict, repr=False)

    @cached_property
    def peak_buffers(self) -> tuple[Buffer, ...]:
        """What is live at the peak, the largest first."""
        here = self.peak_position
        live = [b for b in self.buffers if b.first <= here <= b.last]
        return tuple(sorted(live, key=lambda b: -b.nbytes))

    def __str__(self) -> str:
        """Table of what is live at the peak."""
        live = self.peak_buffers
        rows = [self._row(buffer) for buffer in live[:_SHOWN]]
        if len(live) > _SHOWN:
            rest = sum(buffer.nbytes for buffer in live[_SHOWN:])
            rows.append((f"{len(live) - _SHOWN} more", "", "", bytes_text(rest)))
        inside = self.peak_bytes - sum(buffer.nbytes for buffer in live)
        if inside:
            rows.append((f"inside {self._name(self.peak_position)}", "", "", bytes_text(inside)))
            rows += self._inner_rows()
        peak = f"peak, at {self._name(self.peak_position)}"
        total = (peak, "", "", bytes_text(self.peak_bytes))
        return table(("live at the peak", "type", "kind", "size"), rows, [total])

    def by_line(self) -> str:
        """Table of what is live at the peak by Python line; leaves of one argument are one row."""
        rows = _lines(self, self.peak_buffers, _SHOWN)
        inside = self.peak_bytes - sum(buffer.nbytes for buffer in self.peak_buffers)
        if inside:
            rows.append((f"inside {self._name(self.peak_position)}", "", "", bytes_text(inside)))
            inner = self.regions.get(self.peak_position)
            if inner is not None:
                made = [b for b in inner.peak_buffers if b.kind != "argument"]
                rows += [("  " + line, *rest) for line, *rest in _lines(inner, made, _INSIDE)]
        peak = f"peak, at {self._name(self.peak_position)}"
        total = (peak, "", "", bytes_text(self.peak_bytes))
        return table(("live at the peak", "kind", "values", "size"), rows, [total])

    def _inner_rows(self) -> list[tuple[str, ...]]:
        inner = self.regions.get(self.peak_position)
        if inner is None:
            return []
        buffers = [b for b in inner.peak_buffers if b.kind != "argument"]
        rows = [inner._row(buffer) for buffer in buffers[:_INSIDE]]
        return [("  " + name, *rest) for name, *rest in rows]

    def _row(self, buffer: Buffer) -> tuple[str, ...]:
        name = buffer.value.name or self._maker(buffer)
        return (name, str(buffer.value.type), buffer.kind, bytes_text(buffer.nbytes))

    def _line(self, buffer: Buffer) -> str:
        node = self.graph.producer.get(buffer.value)
        if node is None:
            return self._name(buffer.first)
        return maker(node, node.outputs.index(buffer.value)).source or "(unknown line)"

    def _maker(self, buffer: Buffer) -> str:
        node = self.graph.producer.get(buffer.value)
        if node is None:
            return self._name(buffer.first)
        made = maker(node, node.outputs.index(buffer.value))
        stacked = "" if made is node else "stacked "
        return f"{stacked}{made.op.name} {made.source}".rstrip()

    def _name(self, position: int) -> str:
        if not 0 <= position < len(self.graph.nodes):
            return "return" if position >= 0 else "an argument"
        node = self.graph.nodes[position]
        return f"{node.op.name} {node.source}".rstrip()


def _lines(live: Liveness, buffers: Collection[Buffer], count: int) -> list[tuple[str, ...]]:
    """Rows by line and kind: the `count` largest, and one for the rest."""
    groups: dict[tuple[str, Kind], list[int]] = {}
    for buffer in buffers:
        name = buffer.value.name
        line = argument_of(name) if name else live._line(buffer)
        groups.setdefault((line, buffer.kind), []).append(buffer.nbytes)
    found = sorted(groups.items(), key=lambda group: -sum(group[1]))
    rows: list[tuple[str, ...]] = [
        (line, kind, count_text(len(sizes)), bytes_text(sum(sizes)))
        for (line, kind), sizes in found[:count]
    ]
    if len(found) > count:
        rest = [size for _, sizes in found[count:] for size in sizes]
        rows.append(
            (f"{len(found) - count} more", "", count_text(len(rest)), bytes_text(sum(rest)))
        )
    return rows


def argument_of(path: str) -> str:
    """`args[0]` of the path `args[0]['w']`, `batch` of `batch['x']`."""
    found = re.match(r"args\[\d+\]|\w+", path)
    return found[0] if found else path


def liveness(
    graph: Graph,
    donated: Collection[int] = (),
    *,
    fused: bool = False,
    known: dict[int, Liveness] | None = None,
) -> Liveness:
    """Return the live bytes of `graph` at each of its nodes, and what is live at the peak.

    Args:
        graph: any graph; its nodes run in order.
        donated: positions of inputs whose memory may be reused. As in JAX, a donated input is of
            use only to an output of its type.
        fused: leave out what XLA makes inside the loop of its reader; else every value counts.
        known: remembers regions from one call to the next.
    """
    return _liveness(graph, frozenset(donated), fused, {} if known is None else known)


def _liveness(
    graph: Graph, donated: frozenset[int], fused: bool, inner: dict[int, Liveness]
) -> Liveness:
    end = len(graph.nodes)
    given = _matched(graph, donated)
    buffers = tuple(_buffers(graph, given, fused))
    changes = {kind: [0] * (end + 2) for kind in get_args(Kind)}
    for buffer in buffers:
        if buffer.last >= 0:
            changes[buffer.kind][max(buffer.first, 0)] += buffer.nbytes
            changes[buffer.kind][buffer.last + 1] -= buffer.nbytes
    arguments, outputs, temporaries = (
        list(accumulate(changes[kind][:-1])) for kind in ("argument", "output", "temporary")
    )
    regions = {}
    for i, node in enumerate(graph.nodes):
        if node.regions:
            size, regions[i] = _inside(node, fused, inner)
            temporaries[i] += size
        elif fused and node.op.name == "conv_general_dilated":
            temporaries[i] += transposed_bytes(node)
    total = [sum(parts) for parts in zip(arguments, outputs, temporaries, strict=True)]
    peak = max(total)
    return Liveness(
        graph,
        buffers,
        tuple(total),
        tuple(temporaries),
        sum(value.type.nbytes for value in graph.inputs),
        sum(value.type.nbytes for value in graph.outputs),
        sum(value.type.nbytes for value in given),
        peak,
        total.index(peak),
        regions,
    )


def _matched(graph: Graph, donated: frozenset[int]) -> frozenset[Value]:
    """The donated inputs that an output of the same type can take the memory of."""
    free = Counter((value.shape, value.dtype) for value in graph.outputs)
    found = []
    for i in sorted(donated):
        value = graph.inputs[i]
        if free[value.shape, value.dtype]:
            free[value.shape, value.dtype] -= 1
            found.append(value)
    return frozenset(found)


def _buffers(graph: Graph, given: frozenset[Value], fused: bool) -> Iterator[Buffer]:
    """The buffers of `graph`, in the order of their definition; `given` are donated inputs."""
    end = len(graph.nodes)
    absent, loop, again = set[Value](), set[Node](), set[Node]()
    if fused:
        fusion = Fusion(graph)
        absent, loop, again = fusion.inlined, fusion.repeating, fusion.repeated
    roots: dict[Value, tuple[Value, ...]] = {value: (value,) for value in graph.inputs}
    within = dict(roots)  # what a loop reads in their place
    first = dict.fromkeys(graph.inputs, -1)
    last = {value: -1 if value in given else end for value in graph.inputs}
    for i, node in enumerate(graph.nodes):
        handed_on = _handed_on(node)
        view = node.op.name in VIEWS
        given_by = within if node in loop or is_view(node) else roots
        read: dict[Value, None] = {}
        for k, value in enumerate(node.inputs):
            end_here = i - (k in handed_on)
            for buffer in given_by.get(value, ()):
                read[buffer] = None
                if last.get(buffer, -1) < end_here:
                    last[buffer] = end_here
        for k, value in enumerate(node.outputs):
            if view and node.inputs[k] in roots:
                roots[value] = roots[node.inputs[k]]
                within[value] = given_by[node.inputs[k]]
            elif value in absent:
                roots[value] = within[value] = tuple(read)
            else:
                roots[value] = within[value] = (value,)
                first[value] = 0 if fused and _made_early(node, k) else i
                if node in again:  # in memory if anything reads it there
                    within[value] = tuple(read)
                else:
                    last[value] = i
    root = {value: found[0] for value, found in roots.items() if len(found) == 1}
    copies, returned = [], set()
    for value in graph.outputs:
        source = root.get(value)
        if source is None or source in returned or (first[source] < 0 and source not in given):
            copies.append(Buffer(value, value.type.nbytes, "output", end, end))
        else:
            returned.add(source)
            last[source] = end
    for value, start in first.items():
        kind: Kind = "argument" if start < 0 else "output" if value in returned else "temporary"
        if value in last:
            yield Buffer(value, value.type.nbytes, kind, start, last[value])
    yield from copies


def _made_early(node: Node, output: int) -> bool:
    """True for what a scan stacks, unless its zeros wait for its operands."""
    scan = node.op.name == "scan" and not node.attrs.get("late")
    return scan and output >= node.attrs["num_carry"]


def _handed_on(node: Node) -> range:
    """Positions of the operands whose buffers the results take over."""
    name, attrs = node.op.name, node.attrs
    if name == "scan":
        return range(attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"])
    if name == "while":
        return range(attrs["cond_nconsts"] + attrs["body_nconsts"], len(node.inputs))
    return range(1 if name == "dynamic_update_slice" or name.startswith("scatter") else 0)


def _inside(node: Node, fused: bool, known: dict[int, Liveness]) -> tuple[int, Liveness]:
    """Bytes that the regions of a node need besides its operands and results; the largest one."""

    def peak(region: Graph) -> Liveness:
        if id(region) not in known:
            known[id(region)] = _liveness(region, frozenset(), fused, known)
        return known[id(region)]

    if node.op.name == "scan":
        (body,) = node.regions
        held = body.inputs[: node.attrs["num_consts"] + node.attrs["num_carry"]]
        inner = peak(body)
        return inner.peak_bytes - sum(value.type.nbytes for value in held), inner
    # A custom rule holds the function, then its derivatives, which do not run.
    run = node.regions if node.op.name in ("cond", "while") else node.regions[:1]
    given = 0 if node.op.name == "while" else 1
    sizes = [(f.peak_bytes - f.argument_bytes - given * f.output_bytes, f) for f in map(peak, run)]
    return max(sizes, key=lambda pair: pair[0])
