"""`ragged_dot_general`: one product for each group of rows, the mixture-of-experts workhorse.

    rows:   o[m,n]   = sum_k x[m,k] y[g(m),k,n]        groups partition the rows of x
    sums:   o[g,k,n] = sum_{m in g} x[m,k] y[m,n]      groups partition what is summed over

Each is the other's gradient. `x` may be laid out either way round, `y` in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from jax import lax

from ..errors import MissingRuleError
from ..op import Cts, Op, call, shape_by_jax

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value


@dataclass(frozen=True, slots=True)
class _Product:
    """A product to emit; dimension i of its result goes to the place `order[i]`."""

    operands: tuple[Value, Value]
    contract: tuple[int, int]
    ragged: int
    groups: Sequence[int]
    order: Sequence[int]
    dtype: Any

    def emit(self, b: Builder, node: Node) -> Value:
        """Emit it with the groups and the precision of `node`."""
        left, right = self.contract
        numbers = lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((left,), (right,)), ((), ())),
            lhs_ragged_dimensions=(self.ragged,),
            rhs_group_dimensions=tuple(self.groups),
        )
        attrs = {
            **node.attrs,
            "ragged_dot_dimension_numbers": numbers,
            "preferred_element_type": self.dtype,
        }
        (out,) = b.emit("ragged_dot_general", (*self.operands, node.inputs[2]), attrs)
        return b.transpose(out, sorted(range(out.ndim), key=lambda i: self.order[i]))


def _vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    x, y, _ = node.inputs
    (g,) = cts
    assert g is not None
    numbers = node.attrs["ragged_dot_dimension_numbers"]
    (xc, yc), batch = numbers.dot_dimension_numbers
    if any(batch) or len(xc) != 1 or x.ndim != 2:
        raise MissingRuleError(
            f"no VJP rule for ragged_dot_general of {x.type} and {y.type} with batch or several "
            f"contracted dimensions\n  at {node.source or 'unknown line'}; merge them by reshape, "
            "or use jax.vmap over jax.lax.ragged_dot"
        )
    (ragged,), groups = numbers.lhs_ragged_dimensions, tuple(numbers.rhs_group_dimensions)
    other = 1 - ragged
    if groups:
        (group,), (inner,) = groups, yc
        (outer,) = {0, 1, 2} - {group, inner}
        into_y: Sequence[int] = (group, inner, outer)
        dx = _Product((g, y), (1, outer), 0, groups, (ragged, other), x.dtype)
        dy = _Product((x, g), (ragged, 0), ragged, (), into_y, y.dtype)
    else:
        row = yc[0]
        dx = _Product((y, g), (1 - row, 2), row, (0,), (ragged, other), x.dtype)
        dy = _Product((x, g), (other, 1), ragged, (0,), (row, 1 - row), y.dtype)
    return [
        dx.emit(b, node) if needs[0] else None,
        dy.emit(b, node) if needs[1] else None,
        None,
    ]


def _flops(node: Node) -> int:
    """Two for each element of x and outer dimension of y: every row meets one group."""
    x, y, _ = node.inputs
    numbers = node.attrs["ragged_dot_dimension_numbers"]
    ((yc,),) = numbers.dot_dimension_numbers[0][1:]
    used = {yc, *numbers.rhs_group_dimensions}
    return 2 * x.type.size * prod(size for i, size in enumerate(y.shape) if i not in used)


_LOWER = call(lax.ragged_dot_general)

OPS: tuple[Op, ...] = (
    Op("ragged_dot_general", shape_by_jax(_LOWER), _LOWER, vjp=_vjp, flops=_flops),
)
