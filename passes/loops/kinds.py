"""What the values of a loop's body depend on: its constants, the step alone, or the carry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ...ir.cost import VIEWS
from ...ir.graph import Graph, Literal, Node, Value
from ..autodiff.invariant import invariants
from ..dce import has_effects
from ..scan import Scan
from .trips import has_rule


@dataclass(frozen=True, eq=False)
class Kinds:
    """The values of a scan's body that are the same in each step, and those of the step alone.

    A carry that the body hands on as it is counts as a constant.
    """

    scan: Scan

    @property
    def body(self) -> Graph:
        """The function of one step."""
        return self.scan.body

    @cached_property
    def fixed(self) -> dict[Value, Value]:
        """Values outside by the inputs that have them in each step."""
        consts, carry, _ = self.scan.parts
        inner, outer = self.body.inputs, self.scan.node.inputs
        kept = zip(inner[carry], self.body.outputs, outer[carry], strict=False)
        return dict(zip(inner[consts], outer[consts], strict=True)) | {
            value: given for value, handed_on, given in kept if value is handed_on
        }

    @cached_property
    def invariant(self) -> frozenset[Value]:
        """What is the same in each step."""
        return frozenset(self.fixed.keys() | invariants(self.body.nodes, self.fixed.keys()))

    @cached_property
    def parallel(self) -> frozenset[Value]:
        """What depends on slices of the xs and on invariants, and can be made for all steps."""
        found = set(self.body.inputs[self.scan.parts[2]])
        for node in self.body.nodes:
            stacks = [value in found for value in node.inputs]
            if node.op.effect or has_effects(node) or not any(stacks):
                continue
            others = (v for v, on in zip(node.inputs, stacks, strict=True) if not on)
            if all(isinstance(v, Literal) or v in self.invariant for v in others):
                if has_rule(node, stacks, self.scan.length):
                    found.update(node.outputs)
        return frozenset(found)

    @property
    def stacks(self) -> int:
        """Bytes of a step's slices of what the scan is given and leaves, each value once."""
        return sum(value.type.nbytes for value in set(self.scan.sliced))

    def made(self, without: Collection[Node] = ()) -> int:
        """Bytes of the floating numbers that a step makes of what differs from step to step."""
        return sum(
            value.type.nbytes
            for node in self.body.nodes
            if node not in without and node.op.name not in VIEWS
            for value in node.outputs
            if value.type.is_inexact and value not in self.invariant
        )
