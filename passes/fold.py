"""Constant folding of small values, by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ..ir.builder import Builder
from ..ir.graph import Graph, Literal, Node, Value
from .rewriter import rewrite

LARGEST = 64  # elements; a larger result is cheaper computed than carried in the program


def _divide(x: Any, y: Any) -> Any:
    """Integers towards zero, as XLA divides them; not by zero."""
    if not np.issubdtype(x.dtype, np.integer):
        return np.true_divide(x, y)
    if np.any(y == 0):
        return None
    return x // y + ((x % y != 0) & ((x < 0) != (y < 0)))


def _convert(x: Any, new_dtype: Any, weak_type: bool) -> Any:
    """Not where an integer cannot hold the number: NumPy and XLA differ there."""
    found = x.astype(new_dtype)
    integral = jnp.issubdtype(new_dtype, np.integer) and jnp.issubdtype(x.dtype, np.inexact)
    if integral and not np.all(np.abs(found.astype(np.float64) - x.astype(np.float64)) < 1):
        return None
    return found


def _sign(x: Any) -> Any:
    return np.where(x == 0, x, np.sign(x))


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype == bool:  # no copy of a large mask
        return np.where(which, cases[1], cases[0])
    return np.choose(which.astype(np.int32), cases)


FOLDABLE: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "not": np.invert,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "square": np.square,
    "sign": _sign,
    "select_n": _select,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
    "convert_element_type": _convert,
    "reshape": lambda x, new_sizes: np.reshape(x, new_sizes),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "integer_pow": lambda x, y: np.power(x, np.asarray(y, x.dtype)) if y >= 0 else None,
}


@dataclass(frozen=True)
class Fold:
    """f(constants) -> constant, where the result is small."""

    name: ClassVar[str] = "fold"

    def __call__(self, graph: Graph) -> Graph:
        """Return the folded graph, or `graph` itself when nothing folds."""
        return rewrite(graph, _folder(graph))


def _folder(graph: Graph) -> Callable[[Builder, Node], Sequence[Value] | None]:
    known: dict[Value, np.ndarray[Any, Any]] = {}

    def constant(value: Value) -> Any:
        return np.asarray(value.data) if isinstance(value, Literal) else known.get(value)

    def rule(b: Builder, node: Node) -> Sequence[Value] | None:
        if node.op.name == "constant":
            value = node.attrs["value"]
            if isinstance(value, np.ndarray | np.generic) and value.size <= LARGEST:
                known[node.output] = np.asarray(value)
            return None
        if node.op.name not in FOLDABLE or not node.inputs or node.output.type.size > LARGEST:
            return None
        operands = [constant(value) for value in node.inputs]
        if any(operand is None for operand in operands):
            return None
        return _result(b, node, computed(node, operands), known)

    return rule


def computed(node: Node, operands: Sequence[Any]) -> Any:
    """What a `FOLDABLE` op gives by NumPy, which broadcasts; None where XLA's answer differs."""
    with np.errstate(all="ignore"):
        return FOLDABLE[node.op.name](*operands, **node.attrs)


def _result(
    b: Builder, node: Node, found: Any, known: dict[Value, np.ndarray[Any, Any]]
) -> Sequence[Value] | None:
    kind = node.output.type
    if found is None or np.shape(found) != kind.shape:
        return None
    data = np.asarray(found).astype(kind.dtype)
    if not kind.shape:
        return [Literal(data[()], kind)]
    out = b.constant(data)
    known[out] = data
    return [out]
