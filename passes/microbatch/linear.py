"""What is done with sums over the samples before the parts' are put together.

An op that is linear in its sums gives a sum again: `c (s1 + s2) = c s1 + c s2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir.graph import Node
from .split import SUM, Coupled, Kind, Step

# Ops that are linear in all of these operands together, the rest of which are whole.
TOGETHER: Mapping[str, slice] = {
    **dict.fromkeys("add add_any sub concatenate stack optimization_barrier".split(), slice(None)),
    **dict.fromkeys("neg copy name real imag conj complex transpose reshape".split(), slice(None)),
    **dict.fromkeys("squeeze broadcast_in_dim slice split rev".split(), slice(None)),
    **dict.fromkeys("reduce_sum cumsum reduce_window_sum pad unstack".split(), slice(None)),
    "select_n": slice(1, None),
    "dynamic_slice": slice(0, 1),
    "dynamic_update_slice": slice(0, 2),
    "gather": slice(0, 1),
}
# Ops that are linear in any one of these operands, the others being whole.
APART: Mapping[str, Sequence[int]] = {
    **dict.fromkeys("mul dot_general conv_general_dilated".split(), (0, 1)),
    "div": (0,),
}
NEVER = "the sum over all samples is needed by each of them"


def combined(node: Node, kinds: Sequence[Kind]) -> Step:
    """Keep sums that the parts have not put together yet. Raises `Coupled` where that is wrong."""
    name = node.op.name
    if any(kind not in (None, SUM) for kind in kinds):
        raise Coupled(node, NEVER)
    if name == "convert_element_type" and all(
        v.type.is_inexact for v in (*node.inputs, *node.outputs)
    ):
        return Step([SUM], [SUM])
    if name == "scatter-add" and kinds[1] is None:
        return Step([SUM, None, SUM], [SUM])
    sums = [i for i, kind in enumerate(kinds) if kind == SUM]
    if name in TOGETHER and sums:
        may = range(len(kinds))[TOGETHER[name]]
        if all(i in may for i in sums):
            wanted = [SUM if i in may else None for i in range(len(kinds))]
            return Step(wanted, [SUM] * len(node.outputs))
    if name in APART and len(sums) == 1 and sums[0] in APART[name]:
        return Step(kinds, [SUM])
    raise Coupled(node, f"{name} of a sum over the samples is no such sum")
