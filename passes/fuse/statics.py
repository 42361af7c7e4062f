"""Values that are known when a program is compiled: masks made of iotas and constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ...ir.graph import Graph, Literal, Node, Value
from ..fold import FOLDABLE, computed
from ..rewriter import known_array
from .rows import ELEMENTWISE

# Bytes of the largest array that is looked at: a mask of 16,384 x 16,384.
LARGEST = 1 << 28


@dataclass
class Statics:
    """Known values of a graph; dimensions along which they are constant have size one.

    `given` are the values of some of the graph's inputs.
    """

    graph: Graph
    given: Mapping[Value, Any] = field(default_factory=dict)
    _found: dict[Value, Any] = field(default_factory=dict)

    def __call__(self, value: Value) -> Any:
        """Return an array of as many dimensions as `value`, or None where it is not known."""
        if isinstance(value, Literal):
            return np.asarray(value.data)
        if value in self.given:
            return self.given[value]
        if value not in self._found:
            node = self.graph.producer.get(value)
            found = None if node is None or len(node.outputs) != 1 else self._made(node)
            self._found[value] = found
        return self._found[value]

    def _made(self, node: Node) -> Any:
        name, shape = node.op.name, node.output.shape
        if name == "iota":
            dim = node.attrs["dimension"]
            along = [n if i == dim else 1 for i, n in enumerate(shape)]
            return np.arange(shape[dim], dtype=node.output.dtype).reshape(along)
        if name == "constant":
            return known_array(node.attrs["value"])
        if name not in ELEMENTWISE and name not in _MOVES:
            return None
        operands = [self(x) for x in node.inputs]
        if any(x is None for x in operands):
            return None
        if name == "broadcast_in_dim":
            small = [1] * len(shape)
            for i, d in enumerate(node.attrs["broadcast_dimensions"]):
                small[d] = operands[0].shape[i]
            return operands[0].reshape(small)
        if name in _MOVES:
            return self._moved(node, operands[0])
        return _elementwise(node, operands)

    def _moved(self, node: Node, x: Any) -> Any:
        if node.op.name == "transpose":
            return x.transpose(node.attrs["permutation"])
        if x.size == 1:
            return x.reshape((1,) * node.output.ndim)
        if x.itemsize * node.output.type.size > LARGEST:
            return None
        return np.broadcast_to(x, node.inputs[0].shape).reshape(node.output.shape)


_MOVES = frozenset("broadcast_in_dim reshape squeeze transpose".split())


def _elementwise(node: Node, operands: list[Any]) -> Any:
    """Run an element-wise op on what is known of its operands."""
    whole = [x for x in operands if x.ndim]
    shape = np.broadcast_shapes(*(x.shape for x in whole)) if whole else ()
    dtype, name = node.output.dtype, node.op.name
    if math.prod(shape) * dtype.itemsize > LARGEST:
        return None
    if name in FOLDABLE:
        found = computed(node, operands)
        return None if found is None else np.asarray(found).astype(dtype)
    same = [np.broadcast_to(x, shape) if x.ndim else x for x in operands]
    with jax.ensure_compile_time_eval():
        (out,) = node.op.lower(same, node.attrs, (), _no_regions)
    return np.asarray(out)


def _no_regions(*args: Any) -> list[Any]:
    raise TypeError("this op has no regions")
