"""The HTML page of a lowered program: its stages, and what its plan decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from ..ir.page import write_page
from ..passes import Stage
from ..runtime.device import live_spec
from .memory_plan import MemoryPlan

_TOLD = ("value", "action", "bytes", "source", "scope", "reason")


def page(
    title: str, stages: Sequence[Stage], plan: MemoryPlan | None, donated: Collection[int]
) -> str:
    """Text of the page; times are those of the device at hand."""
    figures: dict[str, int] = {}
    decisions = []
    if plan is not None:
        known = {
            "budget": plan.budget_bytes,
            "predicted": plan.predicted_bytes,
            "measured": plan.measured_bytes,
        }
        figures = {name: size for name, size in known.items() if size is not None}
        decisions = [{name: asdict(each)[name] for name in _TOLD} for each in plan.decisions]
    return write_page(
        title, stages, device=live_spec(), donated=donated, figures=figures, decisions=decisions
    )
