"""Functions with rules of their own, for a part of the batch: the rules are cut as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...ir.graph import Graph, Node, Value
from ...ir.op import LaterRule
from ...ir.ops.custom import with_rule
from .split import SUM, Coupled, Kind, Part, Region, Step


@dataclass(frozen=True, eq=False)
class _Cut:
    """A rule that is read when it is asked for, and cut then."""

    rule: LaterRule
    cut_forward: Callable[[Graph], Graph]
    cut_backward: Callable[[Graph, Graph], Graph]

    @property
    def order(self) -> int:
        """See `ir.op.LaterRule`."""
        return self.rule.order

    def forward(self, perturbed: Sequence[bool]) -> Graph:
        """See `ir.op.LaterRule`."""
        return self.cut_forward(self.rule.forward(perturbed))

    def backward(self, perturbed: Sequence[bool], seeded: Sequence[bool]) -> Graph:
        """See `ir.op.LaterRule`."""
        rule = self.rule
        return self.cut_backward(rule.backward(perturbed, seeded), rule.forward(perturbed))


def custom_jvp(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """Tangents are of the kinds of what they belong to."""
    call = part.region(node.regions[0], kinds, node, {})
    inputs = [*call.inputs, *_inexact(call.inputs, node.regions[0].inputs)]
    outputs = [*call.outputs, *_inexact(call.outputs, node.regions[0].outputs)]

    def forward(rule: Graph) -> Graph:
        return _exactly(part, rule, inputs, node, dict(enumerate(outputs))).graph

    return _step(node, call, forward, lambda rule, fwd: rule)


def custom_vjp(part: Part, node: Node, kinds: Sequence[Kind]) -> Step:
    """What goes back to an input that is whole is each part's own share."""
    call = part.region(node.regions[0], kinds, node, {})
    given = _inexact(call.outputs, node.regions[0].outputs)
    back = [kind or SUM for kind in _inexact(call.inputs, node.regions[0].inputs)]

    def run(rule: Graph) -> Region:
        return _exactly(part, rule, call.inputs, node, dict(enumerate(call.outputs)))

    def backward(rule: Graph, fwd: Graph) -> Graph:
        residuals = run(fwd).outputs[len(call.outputs) :]
        return _exactly(part, rule, [*residuals, *given], node, dict(enumerate(back))).graph

    return _step(node, call, lambda rule: run(rule).graph, backward)


def _inexact(kinds: Sequence[Kind], values: Sequence[Value]) -> list[Kind]:
    """The kinds of those that have tangents."""
    return [kind for kind, v in zip(kinds, values, strict=True) if v.type.is_inexact]


def _exactly(
    part: Part, rule: Graph, kinds: Sequence[Kind], node: Node, wanted: Mapping[int, Kind]
) -> Region:
    """Return a rule for a part that is given what its function is given, and no more."""
    found = part.region(rule, kinds, node, wanted)
    if list(found.inputs) != list(kinds):
        raise Coupled(node, "its rule reads samples that its function does not")
    return found


def _step(
    node: Node,
    call: Region,
    forward: Callable[[Graph], Graph],
    backward: Callable[[Graph, Graph], Graph],
) -> Step:
    """Cut the regions that are there, or the rule once it is read."""
    regions = [call.graph]
    if len(node.regions) > 1:
        regions.append(forward(node.regions[1]))
        regions += [backward(rule, node.regions[1]) for rule in node.regions[2:]]
    rule = node.op.rule
    op = None if rule is None else with_rule(node.op.name, _Cut(rule, forward, backward))
    return Step(call.inputs, call.outputs, regions=regions, op=op)
