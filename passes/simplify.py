"""Algebraic simplification: rules that make no value and no gradient less exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import lax

from ..ir.builder import Builder
from ..ir.graph import Graph, Literal, Node, Value
from .rewriter import Producers, rewrite
from .sink import picks_from_rows

Rule = Callable[["Known", Builder, Node], Value | None]


@dataclass(frozen=True)
class Simplify:
    """x + 0 -> x, 1 x -> x, -(-x) -> x, and chains of shape ops merged; see `RULES`."""

    name: ClassVar[str] = "simplify"

    def __call__(self, graph: Graph) -> Graph:
        """Return the simplified graph, or `graph` itself when no rule applies."""
        return rewrite(graph, Known())


class Known(Producers):
    """The rule for `rewrite`: looks up each op's rules, with the producers seen so far."""

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        """Return the simpler value, or None."""
        for rule in RULES.get(node.op.name, ()):
            start = len(b.nodes)
            value = rule(self, b, node)
            if value is not None:
                self.remember(b.nodes[start:])
                return [value]
            del b.nodes[start:]
        self.remember([node])
        return None

    def number(self, value: Value) -> Any:
        """Return the number that fills `value`, or None where it is not one known number."""
        if isinstance(value, Literal):
            return value.data
        node = self.made_by(value, "broadcast_in_dim")
        return self.number(node.inputs[0]) if node else None

    def row(self, value: Value, size: int) -> Value | None:
        """Return the `size` elements that every row of `value` repeats, or None."""
        node = self.made_by(value, "broadcast_in_dim")
        if value.ndim == 0 or value.shape[-1] != size:
            return None
        if value.type.size == size:
            return value
        if node is None or node.attrs["broadcast_dimensions"][-1:] != (value.ndim - 1,):
            return None
        return self.row(node.inputs[0], size)

    def filled_with(self, value: Value, number: float) -> bool:
        """True when every element of `value` is known to be `number`."""
        found = self.number(value)
        return found is not None and bool(found == number)


def _same(value: Value, node: Node) -> Value | None:
    """Return `value` in place of the node's output where the types agree."""
    out = node.output.type
    return value if (value.shape, value.dtype) == (out.shape, out.dtype) else None


def _neutral(number: float, *, left: bool) -> Rule:
    """x op number -> x, and number op x -> x where `left`."""

    def rule(known: Known, b: Builder, node: Node) -> Value | None:
        x, y = node.inputs
        if known.filled_with(y, number):
            return _same(x, node)
        return _same(y, node) if left and known.filled_with(x, number) else None

    return rule


def _identity(known: Known, b: Builder, node: Node) -> Value | None:
    """Op that returns its operand."""
    return node.inputs[0]


def _double_negation(known: Known, b: Builder, node: Node) -> Value | None:
    """-(-x) -> x."""
    inner = known.made_by(node.inputs[0], "neg")
    return inner.inputs[0] if inner else None


def _minus_negated(known: Known, b: Builder, node: Node) -> Value | None:
    """x + (-y) -> x - y."""
    x, y = node.inputs
    inner = known.made_by(y, "neg")
    return b.sub(x, inner.inputs[0]) if inner and x.shape == y.shape else None


def _same_cast(known: Known, b: Builder, node: Node) -> Value | None:
    """Cast to the dtype that a value has."""
    x = node.inputs[0]
    return x if x.type == node.output.type else None


def _reshape(known: Known, b: Builder, node: Node) -> Value | None:
    """reshape(reshape(x)) -> reshape(x), and nothing where the shape is the same."""
    inner = known.made_by(node.inputs[0], "reshape")
    x = inner.inputs[0] if inner else node.inputs[0]
    if x.shape == node.output.shape:
        return x
    return b.reshape(x, node.output.shape) if inner else None


def _transpose(known: Known, b: Builder, node: Node) -> Value | None:
    """transpose(transpose(x)) -> transpose(x), the identity -> x."""
    (x,), order = node.inputs, node.attrs["permutation"]
    inner = known.made_by(x, "transpose")
    if inner:
        first = inner.attrs["permutation"]
        return b.transpose(inner.inputs[0], [first[i] for i in order])
    return x if order == tuple(range(x.ndim)) else None


def _broadcast(known: Known, b: Builder, node: Node) -> Value | None:
    """broadcast(broadcast(x)) -> broadcast(x), the identity -> x."""
    (x,), dims = node.inputs, node.attrs["broadcast_dimensions"]
    if x.shape == node.output.shape and dims == tuple(range(x.ndim)):
        return x
    inner = known.made_by(x, "broadcast_in_dim")
    if not inner:
        return None
    first = inner.attrs["broadcast_dimensions"]
    return b.broadcast_in_dim(inner.inputs[0], node.output.shape, [dims[i] for i in first])


def _select(known: Known, b: Builder, node: Node) -> Value | None:
    """select(p, x, x) -> x, and the chosen case where p is known."""
    which, *cases = node.inputs
    if all(case is cases[0] for case in cases):
        return cases[0]
    chosen = known.number(which)
    return cases[int(chosen)] if chosen is not None else None


def _square(known: Known, b: Builder, node: Node) -> Value | None:
    """x^1 -> x, x^2 -> square(x)."""
    (x,), power = node.inputs, node.attrs["y"]
    return x if power == 1 else b.square(x) if power == 2 else None


def _below_all(known: Known, b: Builder, node: Node) -> Value | None:
    """max(-inf, x) -> x, min(inf, x) -> x."""
    bound = -np.inf if node.op.name == "max" else np.inf
    x, y = node.inputs
    if not node.output.type.is_inexact:
        return None
    return (
        _same(y, node)
        if known.filled_with(x, bound)
        else (_same(x, node) if known.filled_with(y, bound) else None)
    )


def _sum_of_one_hot(known: Known, b: Builder, node: Node) -> Value | None:
    """sum_k select(k == i, g, 0) -> select(0 <= i < n, g, 0), all of g alike along k.

    What is left of the softmax in the gradient of a cross-entropy with integer labels: without
    this, one pass over all logits.
    """
    axes = node.attrs["axes"]
    picked = known.made_by(node.inputs[0], "select_n")
    if picked is None or len(axes) != 1 or len(picked.inputs) != 3:
        return None
    which, off, on = picked.inputs
    test = known.made_by(which, "eq")
    spread = known.made_by(on, "broadcast_in_dim")
    if test is None or spread is None or not known.filled_with(off, 0):
        return None
    for counter, index in (test.inputs, test.inputs[::-1]):
        iota = known.made_by(counter, "iota")
        label = known.made_by(index, "broadcast_in_dim")
        if iota is None or label is None or iota.attrs["dimension"] != axes[0]:
            continue
        size = node.inputs[0].shape[axes[0]]
        if size > np.iinfo(counter.dtype).max:  # the iota wraps round
            continue
        i = _without(b, label, axes[0], node.output.shape)
        g = _without(b, spread, axes[0], node.output.shape)
        if i is not None and g is not None:
            inside = b.logical_and(b.ge(i, 0), b.lt(i, size))
            return b.select(inside, g, b.zeros(g))
    return None


def _pick_of_biased(known: Known, b: Builder, node: Node) -> Value | None:
    """(x + b)[i] -> x[i] + b[i] for rows x and one b for all rows.

    The gradient of a cross-entropy reads the same logits x + b; once the label's pick does not,
    XLA computes them where they are read, and they are never written.
    """
    if not picks_from_rows(node):
        return None
    value, indices = node.inputs
    total = known.made_by(value, "add")
    for x, y in (total.inputs, total.inputs[::-1]) if total else ():
        row = known.row(y, value.shape[-1])
        if row is None or x.shape != value.shape:
            continue
        numbers = lax.GatherDimensionNumbers((), (0,), (0,))
        attrs = {**node.attrs, "dimension_numbers": numbers, "slice_sizes": (1,)}
        picked = b.emit("gather", (b.reshape(row, (value.shape[-1],)), indices), attrs)[0]
        return b.add(b.emit(node.op, (x, indices), node.attrs)[0], picked)
    return None


def _without(b: Builder, spread: Node, axis: int, shape: Sequence[int]) -> Value | None:
    """Return what `spread` broadcasts along `axis`, broadcast to the other dimensions alone."""
    (x,), dims = spread.inputs, spread.attrs["broadcast_dimensions"]
    if axis in dims:
        if x.shape[dims.index(axis)] != 1:
            return None
        x = b.reshape(x, [n for n, d in zip(x.shape, dims, strict=True) if d != axis])
        dims = tuple(d for d in dims if d != axis)
    return b.broadcast_in_dim(x, shape, [d - (d > axis) for d in dims])


RULES: Mapping[str, tuple[Rule, ...]] = {
    "add": (_neutral(0, left=True), _minus_negated),
    "add_any": (_neutral(0, left=True), _minus_negated),
    "sub": (_neutral(0, left=False),),
    "mul": (_neutral(1, left=True),),
    "div": (_neutral(1, left=False),),
    "neg": (_double_negation,),
    "copy": (_identity,),
    "convert_element_type": (_same_cast,),
    "reshape": (_reshape,),
    "transpose": (_transpose,),
    "broadcast_in_dim": (_broadcast,),
    "select_n": (_select,),
    "integer_pow": (_square,),
    "max": (_below_all,),
    "min": (_below_all,),
    "reduce_sum": (_sum_of_one_hot,),
    "gather": (_pick_of_biased,),
}
