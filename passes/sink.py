"""Pick first, compute after: gathers and slices move in front of the work on what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value
from .picks import own_rows
from .rewriter import rewrite
from .slices import early

UNARY = frozenset("neg exp log log1p expm1 tanh logistic sqrt rsqrt square".split())
BINARY = frozenset("add sub mul div".split())


@dataclass(frozen=True)
class Sink:
    """pick(f(x, y), i)  ->  f(pick(x, i), y), y the same along the axis of the pick.

    `pick` takes a few elements of each row along the last axis, as `take_along_axis` does. The
    loss of a classifier, `log_softmax(logits)[label]`, becomes `logits[label] - max - log(sum)`:
    neither the log-probabilities nor their cotangent are ever made for all classes. Runs before
    autodiff, so that the gradient gains as well. NaN, which fills picks out of bounds, goes
    through every `f` here.
    """

    name: ClassVar[str] = "sink"

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph, or `graph` itself when nothing moves."""
        return rewrite(early(own_rows(graph)), _Sinking())


@dataclass(frozen=True)
class _Sinking:
    """The rule for `rewrite`; knows the producers seen so far."""

    producer: dict[Value, Node] = field(default_factory=dict)

    def __call__(self, b: Builder, node: Node) -> Sequence[Value] | None:
        if node.op.name != "gather" or not picks_from_rows(node):
            self.producer.update((value, node) for value in node.outputs)
            return None
        moved = self._picked(b, node, node.inputs[0])
        return None if moved is None else [moved]

    def _picked(self, b: Builder, pick: Node, value: Value) -> Value | None:
        """Return `value` picked, computed from its operands picked; None if it is no such value."""
        made = self.producer.get(value)
        if made is None or made.op.name not in UNARY | BINARY or made.attrs:
            return None
        whole = [x for x in made.inputs if x.shape == value.shape]
        if len(whole) != 1 or not all(_same_along_last(x, value) for x in made.inputs):
            return None
        b.origin = made.origin
        operands = [self._operand(b, pick, x, value) for x in made.inputs]
        return b.emit(made.op, operands)[0]

    def _operand(self, b: Builder, pick: Node, x: Value, value: Value) -> Value:
        if x.shape != value.shape:
            return x if x.ndim == 0 else b.broadcast(x, pick.output.shape)
        deeper = self._picked(b, pick, x)
        if deeper is not None:
            return deeper
        return b.emit(pick.op, (x, pick.inputs[1]), pick.attrs)[0]


def _same_along_last(x: Value, value: Value) -> bool:
    """True for the whole, a scalar, or one number for each row."""
    return x.shape in (value.shape, (), (*value.shape[:-1], 1))


def picks_from_rows(node: Node) -> bool:
    """True for `take_along_axis` on the last axis of floating numbers, filled with NaN if ever."""
    x, indices = node.inputs
    numbers, fill = node.attrs["dimension_numbers"], node.attrs.get("fill_value")
    rows = tuple(range(x.ndim - 1))
    return (
        x.ndim > 1
        and x.type.is_inexact
        and (fill is None or bool(np.isnan(fill)))
        and tuple(numbers.operand_batching_dims) == rows
        and tuple(numbers.start_indices_batching_dims) == rows
        and tuple(numbers.collapsed_slice_dims) == (x.ndim - 1,)
        and tuple(numbers.start_index_map) == (x.ndim - 1,)
        and tuple(numbers.offset_dims) == ()
        and indices.ndim == x.ndim + 1
    )
