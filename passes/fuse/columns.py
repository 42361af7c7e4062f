"""Columns that a mask hides from all rows need not be computed.

    p = softmax(where(mask, q . k, low));  o = p . v
    ->  the same of k[lo:hi] and v[lo:hi], where the mask is false outside of lo to hi

What the columns left out would hold is followed through the program: `low` numbers do not change a
maximum, their exponentials are zeros, and zeros change neither a sum nor a product. Each row has
to have a column that is not hidden, or its softmax would be one over numbers that are all low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Value
from ...ir.ops import OPS
from ..dce import Dce
from .body import Body
from .report import told
from .rows import Carry, Rows, Where
from .statics import Statics

# A number that is this low hides a column from the softmax of numbers of an ordinary size.
LOW = -1e4

ZERO, ORDINARY, WILD = "zero", "ordinary", "wild"
Held = float | str  # a bound, at most LOW, below which all numbers are; or one of the three above


class NotCut(Exception):
    """Why no column can be left out."""


@dataclass
class Columns(Body):
    """The part of a region that has columns, from the product of scores to where they are summed.

    `held` tells what values hold in the columns left out, those outside of `span`. What is known
    of nothing is ordinary: finite, and far from LOW.
    """

    statics: Statics = field(kw_only=True)
    span: tuple[int, int] = field(kw_only=True)
    held: dict[Value, Held] = field(default_factory=dict)

    def _carried(self, node: Node, known: Where) -> Carry | None:
        return super()._carried(node, known) or self._summed(node, known)

    def _summed(self, node: Node, known: Where) -> Carry | None:
        """An op after which there are no columns, those left out being neutral."""
        if node.op.name in ("reduce_max", "reduce_sum"):
            rows, what = known[0], self.of(node.inputs[0])
            if rows is None or rows.start not in node.attrs["axes"]:
                return None
            neutral = what == ZERO if node.op.name == "reduce_sum" else isinstance(what, float)
            return Carry([rows], (None,), _as_it_is(node)) if neutral else None
        if node.op.name != "dot_general":
            return None
        contract = node.attrs["dimension_numbers"][0]
        side = 0 if known[0] is not None else 1
        rows = known[side]
        if rows is None or rows.start not in contract[side]:
            return None
        there = contract[1 - side][contract[side].index(rows.start)]
        wanted: list[Rows | None] = [rows, rows]
        wanted[1 - side] = Rows(there, there + 1)
        neutral = _times(*map(self.of, node.inputs)) == ZERO
        return Carry(wanted, (None,), _as_it_is(node)) if neutral else None

    def _add(self, node: Node, found: Carry) -> None:
        super()._add(node, found)
        if found.outputs[0] is not None:
            self.held.update(dict.fromkeys(node.outputs, self._holds(node)))

    def of(self, value: Value) -> Held:
        """What a value holds in the columns left out."""
        known = self.statics(value)
        if known is None or known.dtype.kind not in "fV":
            return self.held.get(value, ORDINARY)
        left = self._left_out(np.asarray(known, np.float64), self._known(value))
        if (left <= LOW).all():
            return float(left.max(initial=-np.inf))
        if not left.any():
            return ZERO
        return ORDINARY if (abs(left) < -LOW).all() else WILD

    def _left_out(self, known: Any, rows: Rows | None) -> Any:
        if rows is None or known.shape[rows.start] == 1:
            return known
        lo, hi = self.span
        return np.delete(known, np.s_[lo:hi], axis=rows.start)

    def _holds(self, node: Node) -> Held:
        """What the output of an op holds."""
        name, inputs = node.op.name, node.inputs
        if name == "select_n" and len(inputs) == 3:
            return _either([self.of(v) for v in self._cases(node)])
        if name in _SAME:
            return self.of(inputs[0])
        held = [self.of(v) for v in inputs]
        if name in ("exp", "exp2"):
            return ZERO if isinstance(held[0], float) else _plain(held)
        if name in ("add", "add_any", "sub"):
            self._check_added(node)
            return _plus(*held) if name != "sub" else _minus(*held)
        if name == "mul":
            return self._scaled(inputs[0], inputs[1], 1) or _times(*held)
        if name == "div":
            return self._scaled(inputs[0], inputs[1], -1) or (
                ZERO if held == [ZERO, ORDINARY] else _plain(held)
            )
        if name == "max":
            lows = [h for h in held if isinstance(h, float)]
            others = [h for h in held if not isinstance(h, float)]
            return _either(others) if others else max(lows)
        if name == "dot_general":
            return _times(*held)
        if name in _ODD and held == [ZERO]:
            return ZERO
        return _plain(held)

    def _cases(self, node: Node) -> Sequence[Value]:
        """The cases of a select that are chosen in the columns left out."""
        which, off, on = node.inputs
        known = self.statics(which)
        if known is None:
            if any(v not in self.own and isinstance(self.of(v), float) for v in (off, on)):
                raise NotCut("a mask that is known only when it runs may hide all of a row")
            return (off, on)
        left = self._left_out(known, self._known(which))
        return tuple(v for v, used in ((off, not left.all()), (on, left.any())) if used)

    def _check_added(self, node: Node) -> None:
        for value in () if self.own.isdisjoint(node.inputs) else node.inputs:
            columns = value.ndim and self._known(value) is not None
            if columns and value not in self.own and self.statics(value) is None:
                raise NotCut("what is added to the scores may hide all of a row")

    def _scaled(self, x: Value, y: Value, power: int) -> Held | None:
        """Low numbers times a positive one that is known."""
        held, scale = self.of(x), self.statics(y)
        if not isinstance(held, float) or scale is None or not (scale > 0).all():
            return None
        bound = held * float(np.asarray(scale, np.float64).min() if power > 0 else 1 / scale.max())
        return bound if bound <= LOW else WILD


def _plain(held: Sequence[Held]) -> Held:
    """Any function of ordinary numbers is one."""
    return ORDINARY if all(h in (ZERO, ORDINARY) for h in held) else WILD


def _either(held: Sequence[Held]) -> Held:
    lows = [h for h in held if isinstance(h, float)]
    if len(lows) == len(held):
        return max(lows, default=-np.inf)
    return held[0] if len(set(held)) == 1 else _plain(held)


def _plus(a: Held, b: Held) -> Held:
    if isinstance(a, float) and isinstance(b, float):
        return a + b
    low, other = (a, b) if isinstance(a, float) else (b, a)
    if isinstance(low, float):
        return low if other in (ZERO, ORDINARY) else WILD
    return ZERO if a == b == ZERO else _plain([a, b])


def _minus(a: Held, b: Held) -> Held:
    return WILD if isinstance(b, float) else _plus(a, b)


def _times(a: Held, b: Held) -> Held:
    return ZERO if ZERO in (a, b) and _plain([a, b]) == ORDINARY else _plain([a, b])


_SAME = frozenset(
    "convert_element_type stop_gradient copy name reduce_precision broadcast_in_dim reshape squeeze"
    " transpose reduce_max reduce_sum slice rev".split()
)
_ODD = frozenset("neg abs sign sqrt square tanh sin erf integer_pow".split())


def _as_it_is(node: Node) -> Any:
    return lambda b, xs, rows: b.emit(node.op, xs, node.attrs)


def visible(region: Graph, statics: Statics, columns: Body) -> tuple[int, int]:
    """First and last column, the latter excluded, that the region's known masks show.

    `columns` is what works column by column. Raises `NotCut` where all of a row may be hidden.
    """
    kept = np.ones(columns.count, bool)
    shown: Any = None
    for node in region.nodes:
        if len(node.outputs) != 1 or node.outputs[0] not in columns.own:
            continue
        mask, low = _mask(node, statics)
        if mask is None:
            continue
        mask = np.moveaxis(mask, columns.rows[node.output].start, -1)
        kept &= mask.reshape(-1, mask.shape[-1]).any(0)
        if low and shown is not None and shown.ndim != mask.ndim:
            raise NotCut("its masks are of several shapes")
        if low:
            shown = mask if shown is None else shown & mask
    if shown is not None and not shown.any(-1).all():
        raise NotCut("its mask hides all of a row")
    where = np.flatnonzero(kept)
    if not where.size:
        raise NotCut("its masks together hide all")
    return int(where[0]), int(where[-1]) + 1


def _mask(node: Node, statics: Statics) -> tuple[Any, bool]:
    """What a mask shows, None for a node that is no known mask; and if it hides by low numbers."""
    if node.op.name == "add":
        known = [x for v in node.inputs if (x := statics(v)) is not None and x.dtype.kind in "fV"]
        fits = known and known[0].ndim == node.output.ndim
        return (known[0] > LOW, True) if fits else (None, False)
    if node.op.name != "select_n" or len(node.inputs) != 3:
        return None, False
    mask = statics(node.inputs[0])
    if mask is None or mask.ndim != node.output.ndim:
        return None, False
    for case, shows in zip(node.inputs[1:], (mask.astype(bool), ~mask.astype(bool)), strict=True):
        x = statics(case)
        if x is not None and x.dtype.kind in "fV":
            low = bool((x <= LOW).all())
            if low or not x.any():
                return shows, low
    return None, False


def cut(
    region: Graph, seed: Node, y: Rows, column: int, given: Mapping[Value, Any]
) -> tuple[Graph, tuple[int, int]]:
    """Return the region without the columns that its mask hides, and which it keeps.

    `y` are the columns of the product's operand that has them, `column` where they are in the
    product, `given` what is known of the region's inputs. Raises `NotCut`.
    """
    statics = Statics(region, given)
    side, count = 0 if column < _split(seed) else 1, seed.output.shape[column]
    free = Body(region, count)
    free.entries[seed.inputs[side]] = y
    for node in region.nodes:
        if not free.rows.keys().isdisjoint(node.inputs) or node is seed:
            free.carry(node)
    span = visible(region, statics, free)
    if span == (0, count):
        return region, span
    body = Columns(region, count, statics=statics, span=span)
    body.entries[seed.inputs[side]] = y
    body.carry(seed)
    for node in region.nodes[region.nodes.index(seed) + 1 :]:
        if not body.own.isdisjoint(node.inputs) and body.carry(node) is None:
            raise NotCut(f"{told(node)} reads all columns")
    if not body.rows.keys().isdisjoint(region.outputs):
        raise NotCut("all columns are returned")
    return _without(region, body, span), span


def _split(seed: Node) -> int:
    """Where the free dimensions of the second operand begin in a product."""
    (xc, _), (xn, _) = seed.attrs["dimension_numbers"]
    return int(seed.inputs[0].ndim - len(xc))


def _without(region: Graph, body: Columns, span: tuple[int, int]) -> Graph:
    lo, hi = span
    b = Builder(OPS)
    whole: dict[Value, Value] = {v: v for v in region.inputs}
    part: dict[Value, Value] = {}
    steps = {node: carry for node, carry in body.steps}

    def read(value: Value, rows: Rows | None) -> Value:
        if rows is None:
            return whole.get(value, value)
        if value not in part:
            part[value] = b.slice_in_dim(whole[value], lo, hi, rows.start)
        return part[value]

    for node in region.nodes:
        b.origin, b.phase = node.origin, node.phase
        carry = steps.get(node)
        if carry is not None:
            operands = [read(v, r) for v, r in zip(node.inputs, carry.operands, strict=True)]
            found = carry.emit(b, operands, hi - lo)
            summed = carry.outputs[0] is None
            (whole if summed else part).update(zip(node.outputs, found, strict=True))
            if summed or node.outputs[0] in body.own:
                continue
        copy = b.clone(node, [whole.get(v, v) for v in node.inputs])
        whole.update(zip(node.outputs, copy.outputs, strict=True))
    made = b.graph(region.name, region.inputs, [whole.get(v, v) for v in region.outputs])
    return Dce()(made)
