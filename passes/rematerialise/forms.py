"""The plans of a program that may start from several forms of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...ir.device import DeviceSpec, clock
from ...ir.graph import Graph
from ...ir.spread import spread
from .planner import Choices, Planned, Planner

FEW = 5  # of the leanest plans


@dataclass(frozen=True)
class Forms:
    """The planners of each form; the first is the program as it runs without a plan.

    A loop whose products were moved out of it is quicker, and one where they are made again step
    by step needs less memory: which of them can go on from there, only a planner can tell.
    """

    planners: tuple[Planner, ...]

    @classmethod
    def of_graphs(
        cls, graphs: Sequence[Graph], spec: DeviceSpec, donated: Collection[int] = ()
    ) -> Forms:
        """Return the forms of a program on a device; `donated` are positions of inputs.

        Sizes are those of one device, where values are divided among several.
        """
        known, given = clock(spec), frozenset(donated)
        mine = (spread(graph, back=True) for graph in graphs)
        return cls(tuple(Planner(graph, known, given, form) for form, graph in enumerate(mine)))

    @property
    def graph(self) -> Graph:
        """The program as it runs without a plan."""
        return self.planners[0].graph

    @property
    def spec(self) -> DeviceSpec:
        """The device."""
        return self.planners[0].spec

    @property
    def plain(self) -> Planned:
        """The program as it runs without a plan."""
        return self.planners[0].plain

    @cached_property
    def plains(self) -> list[Planned]:
        """Each form as it is: the program without a plan, then the fastest first."""
        first, *others = (each.plain for each in self.planners)
        return [first, *sorted(others, key=lambda each: each.seconds)]

    def fastest(self, budget: float) -> Planned | None:
        """Return the fastest plan whose predicted peak is within `budget`, or None.

        Where the program fits as it is, that is the plan: what its passes did was chosen by
        measurements, which predictions do not overrule.
        """
        if self.plain.bytes <= budget:
            return self.plain
        found = filter(None, (each.fastest(budget) for each in self.planners))
        return min(found, key=lambda each: each.seconds, default=None)

    @property
    def leanest(self) -> Planned:
        """The plan of the lowest predicted peak."""
        return self.leanest_of_each[0]

    @cached_property
    def leanest_of_each(self) -> list[Planned]:
        """A few of the lowest predicted peaks."""
        found = (plan for each in self.planners for plan in each.leanest_of_each)
        return sorted(found, key=lambda each: (each.bytes, each.seconds))[:FEW]

    def of(self, choice: Choices) -> Planned:
        """Return the plan for a choice, as from a saved one."""
        return self.planners[choice.form].of(choice)

    @cached_property
    def floor(self) -> int:
        """Bytes that every schedule of every form needs; see `Planner.floor`."""
        return min(each.floor for each in self.planners)

    def gap(self, planned: Planned) -> float:
        """How much longer a plan takes than any of its form and memory must; see `Planner.gap`."""
        return self.planners[planned.form].gap(planned)
