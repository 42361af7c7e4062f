"""Matrix products and convolutions of a part of the batch."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Node
from ...ir.ops.contraction import free_dims
from .split import SUM, Coupled, Kind, Split, Step


def dot(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Samples are free in one operand, batch dimensions of both, or contracted: a sum."""
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    side = 0 if isinstance(kinds[0], Split) else 1
    split = kinds[side]
    assert isinstance(split, Split)
    mine, other = ((xn, yn), (yn, xn))[side]
    contract, across = ((xc, yc), (yc, xc))[side]
    wanted: list[Kind] = [split, split]
    if split.dim in mine:
        at = list(mine).index(split.dim)
        wanted[1 - side] = split.at(other[at])
        return Step(wanted, [split.at(at)])
    if split.dim in contract:
        wanted[1 - side] = split.at(across[list(contract).index(split.dim)])
        return Step(wanted, [SUM])
    if kinds[1 - side] is not None:
        raise Coupled(node, "each sample meets every other")
    wanted[1 - side] = None
    x, y = node.inputs
    here = free_dims((x, y)[side], contract, mine).index(split.dim)
    return Step(wanted, [split.at(len(xn) + side * len(free_dims(x, xc, xn)) + here)])


def convolution(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Samples are the batch, or features that are summed over: the gradient of a kernel."""
    n, attrs = node.attrs["dimension_numbers"], node.attrs
    x, kernel = kinds
    grouped = attrs["feature_group_count"] != 1
    if isinstance(x, Split) and x.dim == n.lhs_spec[0] and attrs["batch_group_count"] == 1:
        if kernel is not None:
            raise Coupled(node, "each sample meets the kernels of every other")
        return Step([x, None], [x.at(n.out_spec[0])])
    if isinstance(x, Split) and x.dim == n.lhs_spec[1] and not grouped:
        return Step([x, x.at(n.rhs_spec[1])], [SUM])
    if isinstance(kernel, Split) and kernel.dim == n.rhs_spec[1] and not grouped:
        return Step([kernel.at(n.lhs_spec[1]), kernel], [SUM])
    raise Coupled(node, "it runs along the samples, or in groups of them")
