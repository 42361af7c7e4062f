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
from .rows import Carry, Rows, Where
from .statics import Statics

# A number that is this low hides a column from the softmax of numbers of an ordinary size.
LOW = -1e4


class NotCut(Exception):
    """Why no column can be left out."""


@dataclass
class Columns(Body):
    """The part of a region that has columns, from the product `seed` to where they are summed.

    `bound` tells of the columns left out: an upper bound of what a value holds there, 0 for
    zeros, infinity for anything.
    """

    statics: Statics = field(kw_only=True)
    span: tuple[int, int] = field(kw_only=True)
    bound: dict[Value, float] = field(default_factory=dict)
    zero: set[Value] = field(default_factory=set)

    def _carried(self, node: Node, known: Where) -> Carry | None:
        return super()._carried(node, known) or self._closed(node, known)

    def _closed(self, node: Node, known: Where) -> Carry | None:
        """An op after which there are no columns."""
        name = node.op.name
        if name in ("reduce_max", "reduce_sum"):
            rows, axes = known[0], node.attrs["axes"]
            if rows is None or rows.start not in axes:
                return None
            x = node.inputs[0]
            neutral = x in self.zero if name == "reduce_sum" else self.bound.get(x, np.inf) <= LOW
            return Carry([rows], (None,), _as_it_is(node)) if neutral else None
        if name == "dot_general":
            contract = node.attrs["dimension_numbers"][0]
            side = 0 if known[0] is not None else 1
            rows = known[side]
            if rows is None or rows.start not in contract[side]:
                return None
            there = contract[1 - side][contract[side].index(rows.start)]
            wanted: list[Rows | None] = [rows, rows]
            wanted[1 - side] = Rows(there, there + 1)
            neutral = node.inputs[side] in self.zero
            return Carry(wanted, (None,), _as_it_is(node)) if neutral else None
        return None

    def _add(self, node: Node, found: Carry) -> None:
        super()._add(node, found)
        if found.outputs[0] is None:
            return
        bound = self._bound(node)
        for value in node.outputs:
            self.bound[value] = bound
            if bound == 0 and self._is_zero(node):
                self.zero.add(value)

    def _of(self, value: Value) -> float:
        """Upper bound of a value in the columns left out."""
        known = self.statics(value)
        if known is None or known.dtype.kind not in "fV":
            return self.bound.get(value, np.inf)
        left = self._left_out(known, self._known(value))
        return float(np.max(left, initial=-np.inf))

    def _left_out(self, known: Any, rows: Rows | None) -> Any:
        known = np.asarray(known, np.float64) if known.dtype != bool else known
        if rows is None or known.shape[rows.start] == 1:
            return known
        lo, hi = self.span
        return np.delete(known, np.s_[lo:hi], axis=rows.start)

    def _bound(self, node: Node) -> float:
        name = node.op.name
        if name == "select_n" and len(node.inputs) == 3:
            return self._selected(node)
        if name in _SAME:
            return self._of(node.inputs[0])
        if name in ("exp", "exp2"):
            return 0.0 if self._of(node.inputs[0]) <= LOW else np.inf
        if name in ("add", "add_any", "sub"):
            return self._added(node)
        if name in ("mul", "div"):
            return self._scaled(node)
        if name == "max":
            return max(map(self._of, node.inputs))
        return np.inf

    def _is_zero(self, node: Node) -> bool:
        """Told of a node whose bound is 0: it is zero, not only not above."""
        name = node.op.name
        if name == "select_n":
            return all(self._zero(v) for v in self._cases(node))
        if name in ("mul", "div"):
            return self._zero(node.inputs[0]) or (name == "mul" and self._zero(node.inputs[1]))
        return name in ("exp", "exp2") or (name in _SAME and self._zero(node.inputs[0]))

    def _zero(self, value: Value) -> bool:
        known = self.statics(value)
        return value in self.zero or (known is not None and not known.any())

    def _cases(self, node: Node) -> Sequence[Value]:
        """The cases of a select that are chosen in the columns left out."""
        which, off, on = node.inputs
        known = self.statics(which)
        if known is None:
            return (off, on)
        left = self._left_out(known, self._known(which))
        return tuple(v for v, used in ((off, not left.all()), (on, left.any())) if used)

    def _selected(self, node: Node) -> float:
        which, *cases = node.inputs
        hides = any(v not in self.rows and self._low(v) for v in cases)
        if hides and self.statics(which) is None:
            raise NotCut("a mask that is known only when it runs may hide all of a row")
        return max(map(self._of, self._cases(node)), default=-np.inf)

    def _low(self, value: Value) -> bool:
        known = self.statics(value)
        return known is not None and known.dtype.kind in "fV" and bool((known <= LOW).any())

    def _added(self, node: Node) -> float:
        x, y = node.inputs
        for v in (x, y):
            has_columns = v.ndim and self._known(v) is not None
            if has_columns and v not in self.rows and self.statics(v) is None:
                raise NotCut("what is added to the scores may hide all of a row")
        a, b = self._of(x), self._of(y)
        low = a if node.op.name == "sub" else min(a, b)
        return low if low <= LOW else np.inf

    def _scaled(self, node: Node) -> float:
        x, y = node.inputs
        if self._is_zero(node):
            return 0.0
        a, scale = self._of(x), self.statics(y)
        if scale is None or not (scale > 0).all() or a > LOW:
            return np.inf
        return a * float(scale.min() if node.op.name == "mul" else 1 / scale.max())


_SAME = frozenset(
    "convert_element_type stop_gradient copy name reduce_precision broadcast_in_dim reshape squeeze"
    " expand_dims transpose".split()
)


def _as_it_is(node: Node) -> Any:
    return lambda b, xs, rows: b.emit(node.op, xs, node.attrs)


def visible(region: Graph, statics: Statics, seed: Node, column: int) -> tuple[int, int]:
    """First and last column, the latter excluded, that a known mask of the region shows.

    Raises `NotCut` where a row may be hidden as a whole, or nothing is hidden.
    """
    size = seed.output.shape[column]
    shown = np.ones(size, bool)
    for node in region.nodes:
        found = _shown(node, statics, size)
        if found is None:
            continue
        if not found.any(-1).all():
            raise NotCut("its mask hides all of a row")
        shown &= found.reshape(-1, found.shape[-1]).any(0)
    where = np.flatnonzero(shown)
    if not where.size:
        raise NotCut("its masks together hide all of a row")
    return int(where[0]), int(where[-1]) + 1


def _shown(node: Node, statics: Statics, size: int) -> Any:
    """What a mask shows, columns last; None for a node that is no known mask."""
    name = node.op.name
    if name not in ("select_n", "add") or not node.output.ndim or node.output.shape[-1] != size:
        return None
    if name == "add":
        known = [statics(v) for v in node.inputs]
        masks = [x for x in known if x is not None and x.ndim and x.dtype.kind in "fV"]
        return masks[0] > LOW if masks and masks[0].shape[-1] == size else None
    which, *cases = node.inputs
    mask = statics(which)
    if mask is None or len(cases) != 2 or mask.ndim == 0 or mask.shape[-1] != size:
        return None
    low = [
        (x := statics(v)) is not None and x.dtype.kind in "fV" and (x <= LOW).all() for v in cases
    ]
    if low == [True, False]:
        return mask.astype(bool)
    return ~mask.astype(bool) if low == [False, True] else None


def cut(
    region: Graph, seed: Node, y: Rows, column: int, given: Mapping[Value, Any]
) -> tuple[Graph, tuple[int, int]]:
    """Return the region without the columns that its mask hides, and which it keeps.

    `y` are the columns of the product's operand that has them, `column` where they are in the
    product, `given` what is known of the region's inputs. Raises `NotCut`.
    """
    statics = Statics(region, given)
    span = visible(region, statics, seed, column)
    body = Columns(region, seed.output.shape[column], statics=statics, span=span)
    side = 0 if column < _split(seed) else 1
    body.entries[seed.inputs[side]] = y
    if body.carry(seed) is None:
        raise NotCut("its keys have no columns in one piece")
    for node in region.nodes[region.nodes.index(seed) + 1 :]:
        if not body.own.isdisjoint(node.inputs) and body.carry(node) is None:
            raise NotCut(f"{node.op.name} at {node.source or 'unknown line'} reads all columns")
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
