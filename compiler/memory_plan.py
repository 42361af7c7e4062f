"""What a planned program keeps, what it makes again, and why: read it, save it, pin it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..ir.device import DeviceSpec
from ..ir.errors import ArgumentError
from ..ir.fingerprint import digest
from ..ir.records import parsed, read
from ..ir.tables import bytes_text, table
from ..passes.rematerialise import (
    Choice,
    Choices,
    Decision,
    Forms,
    Planned,
    decisions,
    schedule_from,
    step_to,
)

_SHOWN = 14
DEPTH = 40  # of loops in loops: as deep as the text form of a graph goes


@dataclass(frozen=True)
class MemoryPlan:
    """The plan of one program. Bytes are peaks: arguments + outputs + temporaries - donated.

    `measured_bytes` is XLA's report, after compilation; `baseline_bytes` the prediction without a
    plan; `gap` how much slower the plan is than the bound on any of its form, as a part of the
    step. `timeline` are the predicted bytes at each node of the final graph; `note` tells of a
    device for which offloading is no choice.
    """

    budget_bytes: int | None
    predicted_bytes: int
    measured_bytes: int | None
    lower_bound_bytes: int
    gap: float
    rounds: int
    predicted_seconds: float
    baseline_bytes: int
    baseline_seconds: float
    decisions: tuple[Decision, ...]
    timeline: tuple[int, ...]
    program: str
    choice: dict[str, Any]
    peak: str = ""
    note: str = ""

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        """The plan as `from_json` reads it."""
        flat = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**flat, "decisions": [asdict(each) for each in self.decisions]}

    @classmethod
    def load(cls, path: str | Path) -> MemoryPlan:
        """Read a plan that `save` wrote. Raises `ArgumentError` on anything else."""
        try:
            return cls.from_json(parsed(Path(path).read_bytes()))
        except ValueError as error:
            raise ArgumentError(f"{path} holds no memory plan: {error}") from None

    @classmethod
    def from_json(cls, data: Any) -> MemoryPlan:
        """Read what `as_json` gave. Raises `ValueError`."""
        plan: MemoryPlan = read(cls, data)
        choice_of(plan)
        return plan

    def __str__(self) -> str:
        """One screen: the figures, what is live at the peak, what is made again."""
        parts = (self._figures(), self.peak, self._again(), self.note)
        return "\n\n".join(part for part in parts if part)

    @property
    def _slowdown(self) -> float:
        return self.predicted_seconds / self.baseline_seconds if self.baseline_seconds else 1.0

    def _figures(self) -> str:
        rows = [
            ("predicted peak", bytes_text(self.predicted_bytes)),
            ("without a plan", bytes_text(self.baseline_bytes)),
            ("no plan below", bytes_text(self.lower_bound_bytes)),
            ("time, of the plain step's", f"{self._slowdown:.3f}"),
            ("of that above any plan's", f"{self.gap:.3f}"),
        ]
        if self.measured_bytes is not None:
            rows.insert(0, ("peak, by XLA", bytes_text(self.measured_bytes)))
        if self.budget_bytes is not None:
            rows.insert(0, ("budget", bytes_text(self.budget_bytes)))
        return table(("memory plan", f"{self.rounds} compiled"), rows)

    def _again(self) -> str:
        groups: dict[tuple[str, str, str], list[Decision]] = {}
        for each in self.decisions:
            groups.setdefault((each.action, each.value, each.source), []).append(each)
        rows = [
            (
                f"{action} {value} {source}".rstrip(),
                str(len(found)),
                bytes_text(sum(each.bytes for each in found)),
                f"{1e3 * sum(each.seconds for each in found):.2f} ms",
            )
            for (action, value, source), found in groups.items()
        ]
        left = len(rows) - _SHOWN
        more = [(f"{left} more", "", "", "")] if left > 0 else []
        return table(("decision", "values", "bytes", "again"), rows[:_SHOWN] + more)


def plan_of(
    forms: Forms, planned: Planned, budget: int | None, peak: int | None, rounds: int
) -> MemoryPlan:
    """Describe a planned."""
    plain, start = forms.plain, forms.planners[planned.form].graph
    return MemoryPlan(
        budget,
        planned.bytes,
        peak,
        forms.floor,
        forms.gap(planned),
        rounds,
        planned.seconds,
        plain.bytes,
        plain.seconds,
        tuple(decisions(start, planned.graph, forms.spec.seconds)),
        planned.live.bytes,
        digest(forms.graph),
        choices_to(planned.choice),
        str(planned.live),
        _note(forms.spec, planned),
    )


def _note(spec: DeviceSpec, planned: Planned) -> str:
    if spec.host_bytes_per_s:
        return ""
    offloads = any(node.op.name == "offload" for node in planned.graph.walk())
    told = "offloads gain nothing here" if offloads else "nothing is offloaded"
    return f"{told}: the device has no link to a memory of the host's besides its own"


def choice_of(plan: MemoryPlan) -> Choices:
    """Return the choices that a plan holds."""
    return choices_from(plan.choice)


def choices_from(data: Any, depth: int = DEPTH) -> Choices:
    """Read what `choices_to` wrote. Raises `ValueError`."""
    if depth == 0:
        raise ValueError(f"its loops nest deeper than {DEPTH}")
    found = read(_Choices, data)
    return Choices(
        tuple(choices_from(each, depth - 1) for each in found.bodies),
        tuple(
            Choice(
                each.level,
                each.segment,
                None if each.step is None else schedule_from(each.step),
                each.offload,
            )
            for each in found.stretches
        ),
        found.form,
    )


@dataclass(frozen=True)
class _Choice:
    """A `Choice` in JSON: the step is in lists."""

    level: int | None
    segment: int
    step: list[Any] | None
    offload: int


@dataclass(frozen=True)
class _Choices:
    """`Choices` in JSON: the bodies are yet to be read."""

    bodies: tuple[Any, ...]
    stretches: tuple[_Choice, ...]
    form: int


def choices_to(choices: Choices) -> dict[str, Any]:
    """Return choices as JSON has them."""
    stretches = [
        {
            "level": choice.level,
            "segment": choice.segment,
            "step": None if choice.step is None else step_to(choice.step),
            "offload": choice.offload,
        }
        for choice in choices.stretches
    ]
    bodies = list(map(choices_to, choices.bodies))
    return {"form": choices.form, "bodies": bodies, "stretches": stretches}
