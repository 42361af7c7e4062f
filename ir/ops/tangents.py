"""Forward mode of ops with regions: tangents are carried into them.

Each rule emits the op once more, with regions that compute tangents beside their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..op import Cts, Differentiator, ForwardDifferentiator

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Result = tuple[Sequence["Value"], Cts]


def grown(
    region: Graph,
    active: list[bool],
    carry: slice,
    ad: Differentiator | ForwardDifferentiator,
) -> Sequence[bool]:
    """Least fixed point of: a carry is active if it starts so, or if the body makes it so.

    `carry` are the carry's places among the region's inputs; it comes first among the outputs.
    Changes `active`, of the inputs, in place and returns the activity of the outputs.
    """
    while True:
        outs = ad.activity(region, active)
        new = [a or b for a, b in zip(active[carry], outs, strict=False)]
        if new == active[carry]:
            return outs
        active[carry] = new


def call(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """A call is inlined."""
    return ad.inline(b, node.regions[0], node.inputs, tangents)


def checkpoint(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """Tangents are computed inside, so that a later reverse mode recomputes them as well."""
    (body,) = node.regions
    active = [t is not None for t in tangents]
    wanted = ad.activity(body, active)
    given = [t for t in tangents if t is not None]
    found = b.emit(node.op, (*node.inputs, *given), node.attrs, (ad.region(body, active, wanted),))
    return _with_tangents(found, wanted)


def cond(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """An output has a tangent if it has one in any branch."""
    active = [t is not None for t in tangents[1:]]
    each = [ad.activity(branch, active) for branch in node.regions]
    wanted = [any(outs) for outs in zip(*each, strict=True)]
    branches = [ad.region(branch, active, wanted) for branch in node.regions]
    given = [t for t in tangents[1:] if t is not None]
    return _with_tangents(b.emit(node.op, (*node.inputs, *given), node.attrs, branches), wanted)


def scan(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """Tangents of constants, carry and slices stand behind those."""
    (body,), attrs = node.regions, node.attrs
    n, k = attrs["num_consts"], attrs["num_carry"]
    active = [t is not None for t in tangents]
    wanted = list(grown(body, active, slice(n, n + k), ad))
    wanted[:k] = active[n : n + k]
    joint = ad.region(body, active, wanted)
    kinds = (slice(0, n), slice(n, n + k), slice(n + k, None))
    inputs = _grouped(joint.inputs, active, kinds)
    outputs = _grouped(joint.outputs, wanted, (slice(0, k), slice(k, None)))
    filled = [_filled(b, x, t, a) for x, t, a in zip(node.inputs, tangents, active, strict=True)]
    given = _grouped((*node.inputs, *(t for t in filled if t is not None)), active, kinds)
    attrs = {**attrs, "num_consts": len(inputs[0]), "num_carry": len(inputs[1])}
    region = type(joint)(joint.name, sum(inputs, ()), joint.nodes, sum(outputs, ()))
    found = b.emit(node.op, sum(given, ()), attrs, (region,))
    carry, ys = found[: len(outputs[0])], found[len(outputs[0]) :]
    count = len(body.outputs) - k
    return _with_tangents((*carry[:k], *ys[:count], *carry[k:], *ys[count:]), wanted)


def while_loop(b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator) -> Result:
    """The loop runs as long as without tangents."""
    test, body = node.regions
    nc, nb = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    active = [t is not None for t in tangents[nc:]]
    grown(body, active, slice(nb, None), ad)
    wanted = active[nb:]
    joint = ad.region(body, active, wanted)
    inputs = _grouped(joint.inputs, active, (slice(0, nb), slice(nb, None)))
    filled = [
        _filled(b, x, t, a) for x, t, a in zip(node.inputs[nc:], tangents[nc:], active, strict=True)
    ]
    given = _grouped(
        (*node.inputs[nc:], *(t for t in filled if t is not None)),
        active,
        (slice(0, nb), slice(nb, None)),
    )
    unread = b.fresh(joint.outputs[len(body.outputs) :])
    again = type(test)(test.name, (*test.inputs, *unread), test.nodes, test.outputs)
    step = type(joint)(joint.name, sum(inputs, ()), joint.nodes, joint.outputs)
    attrs = {**node.attrs, "body_nconsts": len(inputs[0])}
    found = b.emit(node.op, (*node.inputs[:nc], *sum(given, ())), attrs, (again, step))
    return _with_tangents(found, wanted)


def _filled(b: Builder, x: Value, tangent: Value | None, active: bool) -> Value | None:
    """A carry that becomes active later starts with a tangent of zeros."""
    return b.zeros(x) if active and tangent is None else tangent


def _with_tangents(found: Sequence[Value], wanted: Sequence[bool]) -> Result:
    """Divide `outputs ++ tangents of the wanted outputs`."""
    rest = iter(found[len(wanted) :])
    return found[: len(wanted)], [next(rest) if asked else None for asked in wanted]


def _grouped(
    values: Sequence[Value], active: Sequence[bool], kinds: Sequence[slice]
) -> list[tuple[Value, ...]]:
    """Put each kind's tangents behind it, of `values ++ tangents of the active`."""
    rest = iter(values[len(active) :])
    tangents = [next(rest) if a else None for a in active]
    return [(*values[: len(active)][s], *(t for t in tangents[s] if t is not None)) for s in kinds]
