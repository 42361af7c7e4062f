"""The HTML page of a lowered program: its stages, and what its plan decided."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..ir.page import write_page
from ..runtime.device import live_spec

if TYPE_CHECKING:
    from .stages import Lowered

_TOLD = ("value", "action", "bytes", "source", "scope", "reason")


def page(lowered: Lowered) -> str:
    """Text of the page; times are those of the device at hand."""
    plan = lowered.plan
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
        lowered._program.name,
        lowered.stages,
        device=live_spec(),
        donated=lowered.donated,
        figures=figures,
        decisions=decisions,
    )
