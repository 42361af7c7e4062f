"""Fit a step into memory: what to keep for the backward pass, what to make again, and when."""

from .decisions import Decision, decisions
from .forms import Forms
from .frontier import Choice
from .planner import Choices, Planned, Planner
from .rematerialise import Rematerialise
from .restack import Restack
from .schedule import schedule_from, step_from, step_to

__all__ = [
    "Choice",
    "Choices",
    "Decision",
    "Forms",
    "Planned",
    "Planner",
    "Rematerialise",
    "Restack",
    "decisions",
    "schedule_from",
    "step_from",
    "step_to",
]
