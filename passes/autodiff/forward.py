"""Forward mode: emit a region's nodes, and beside each the tangent of what it makes.

An op needs no second rule for it. Its pullback, ct of y -> ct of x, is linear, and the transpose
of that map takes a tangent of x to one of y: so each op's VJP rule is written out for a cotangent
that is never given, and pulled back itself. `None` is the symbolic zero. Ops with regions have
`jvp` rules, which carry tangents into the regions.

Source: Radul et al., "You Only Linearize Once", 2023, for the kinship of the two modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ...ir.builder import Builder
from ...ir.graph import Graph, Node, Origin, Value
from ...ir.op import Cts, Pullback, VjpRule
from ...ir.ops import OPS
from .partition import partition as cut_in_two
from .reverse import Reverse, missing_rule, moved, propagates

Tangents = Sequence[Value | None]
# Where a residual comes from; see `Split`.
Residual = tuple[str, int]


# Ops whose `jvp` computes outputs and tangents in one node.
JOINT = frozenset(("scan", "cond", "while", "remat2", "custom_jvp_call"))


@dataclass(frozen=True, slots=True)
class Forward:
    """The forward-mode differentiator that the `jvp` rules of ops with regions are given.

    `apart`: no node computes outputs and tangents together, so that the two can be cut apart.
    Then such ops are linearised as for reverse mode, and their pullback is transposed.
    """

    apart: bool = False

    def activity(self, region: Graph, active: Sequence[bool]) -> Sequence[bool]:
        """Tell which outputs depend differentiably on the active inputs."""
        return Reverse().activity(region, active)

    def linear_tape(
        self, b: Builder, region: Graph, inputs: Sequence[Value | None]
    ) -> tuple[Sequence[Value | None], Pullback]:
        """Emit the part of a region without tangents; pull back through the linear rest."""
        return Reverse().linear_tape(b, region, inputs, phase=b.phase)

    def inline(
        self, b: Builder, region: Graph, inputs: Sequence[Value], tangents: Tangents
    ) -> tuple[Sequence[Value], Tangents]:
        """Emit a region's nodes in place; gives its outputs and their tangents."""
        within = b.origin
        env = dict(zip(region.inputs, inputs, strict=True))
        tangent_of = {
            v: t
            for v, t in zip(region.inputs, tangents, strict=True)
            if t is not None and v.type.is_inexact
        }
        origins: dict[Origin, Origin] = {}
        for node in region.nodes:
            b.origin = moved(node.origin, within, origins)
            operands = [env.get(value, value) for value in node.inputs]
            given = [tangent_of.get(value) for value in node.inputs]
            outputs, found = self.node(b, node, operands, given)
            env.update(zip(node.outputs, outputs, strict=True))
            tangent_of.update(
                (v, t) for v, t in zip(node.outputs, found, strict=True) if t is not None
            )
        b.origin = within
        return (
            [env.get(value, value) for value in region.outputs],
            [tangent_of.get(value) for value in region.outputs],
        )

    def node(
        self, b: Builder, node: Node, operands: Sequence[Value], tangents: Tangents
    ) -> tuple[Sequence[Value], Tangents]:
        """Emit one node on other operands, and the tangents of its outputs."""
        if all(t is None for t in tangents) or not propagates(node):
            return b.clone(node, operands, b.origin).outputs, [None] * len(node.outputs)
        asked = Node(node.op, tuple(operands), node.outputs, node.attrs, node.regions, b.origin)
        only_linearised = node.op.jvp is None and node.op.vjp is None and node.op.linearise
        if only_linearised or (self.apart and node.op.name in JOINT):
            return self._apart(b, asked, tangents)
        if node.op.jvp is not None:
            return node.op.jvp(b, asked, tangents, self)
        copy = b.clone(node, operands, b.origin)
        if node.op.vjp is None:
            raise missing_rule(copy, copy.origin)
        needs = [t is not None for t in tangents]
        pullback = partial(_apply_vjp, node.op.vjp, copy, needs)
        return copy.outputs, self._transposed(b, copy, pullback, tangents)

    def _apart(
        self, b: Builder, node: Node, tangents: Tangents
    ) -> tuple[Sequence[Value], Tangents]:
        """Outputs and tangents by separate nodes; a `while`, which has no pullback, runs twice."""
        if node.op.name == "while":
            assert node.op.jvp is not None
            copy = b.clone(node, node.inputs, b.origin)
            return copy.outputs, node.op.jvp(b, node, tangents, self)[1]
        assert node.op.linearise is not None
        needs = [t is not None for t in tangents]
        outputs, pullback = node.op.linearise(b, node, needs, Reverse())
        return outputs, self._transposed(b, node, pullback, tangents)

    def _transposed(
        self, b: Builder, node: Node, pullback: Pullback, tangents: Tangents
    ) -> Tangents:
        """Tangents of a node's outputs by transposing its pullback."""
        rule = b.nested()
        cts = {i: Value(v.type.strong()) for i, v in enumerate(node.outputs) if v.type.is_inexact}
        pulled = pullback(rule, [cts.get(i) for i in range(len(node.outputs))])
        pairs = [
            (ct, t)
            for ct, t in zip(pulled, tangents, strict=True)
            if ct is not None and t is not None
        ]
        linear = rule.graph(f"{node.op.name}_pullback", list(cts.values()), [ct for ct, _ in pairs])
        _, transposed = self.linear_tape(b, linear, [None] * len(cts))
        found = iter(transposed(b, [t for _, t in pairs]))
        return [next(found) if i in cts else None for i in range(len(node.outputs))]

    def region(
        self, region: Graph, active: Sequence[bool], wanted: Sequence[bool] | None = None
    ) -> Graph:
        """Return a region that carries tangents.

            inputs ++ tangents of the active inputs  ->  outputs ++ tangents of the wanted outputs

        `wanted` are by default the outputs of inexact type.
        """
        b = Builder(OPS)
        inputs = [Value(value.type, value.name) for value in region.inputs]
        given = [
            Value(value.type.strong()) if is_active else None
            for value, is_active in zip(region.inputs, active, strict=True)
        ]
        outputs, found = self.inline(b, region, inputs, given)
        wanted = wanted or [value.type.is_inexact for value in region.outputs]
        tangents = [
            b.zeros(out) if t is None else t
            for out, t, asked in zip(region.outputs, found, wanted, strict=True)
            if asked
        ]
        extra = [t for t in given if t is not None]
        return b.graph(f"{region.name}_jvp", [*inputs, *extra], [*outputs, *tangents])


def _apply_vjp(vjp: VjpRule, node: Node, needs: Sequence[bool], b: Builder, cts: Cts) -> Cts:
    return vjp(b, node, cts, needs)


def linearised(region: Graph, active: Sequence[bool]) -> tuple[Graph, Graph, Sequence[Residual]]:
    """Cut a region's forward mode in two: what has no tangent in it, and the linear rest.

    Returns:
        `first`: inputs -> outputs ++ stored residuals; `second`: residuals ++ tangents of the
        active inputs -> tangents of the inexact outputs; and where each residual comes from, as
        in `Split`.
    """
    joint = Forward(apart=True).region(region, active)
    inputs = joint.inputs[: len(region.inputs)]
    tangents = joint.inputs[len(region.inputs) :]
    linear = set(tangents)
    for node in joint.nodes:
        if not linear.isdisjoint(node.inputs):
            linear.update(node.outputs)
    forward = [node for node in joint.nodes if linear.isdisjoint(node.outputs)]
    rest = [node for node in joint.nodes if not linear.isdisjoint(node.outputs)]
    count = len(region.outputs)
    outputs, wanted = joint.outputs[:count], joint.outputs[count:]
    cut = cut_in_two(
        region.name, inputs, forward, rest, outputs, dict(enumerate(tangents)), wanted, frozenset()
    )
    return cut.forward, cut.backward, cut.residuals
