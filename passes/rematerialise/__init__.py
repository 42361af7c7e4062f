"""Fit a step into memory: what to keep for the backward pass, what to make again, and when."""

from .decisions import Decision, decisions
from .frontier import Candidate, Choice, Frontier
from .rematerialise import Rematerialise
from .schedule import schedule_from, step_from, step_to

__all__ = [
    "Candidate",
    "Choice",
    "Decision",
    "Frontier",
    "Rematerialise",
    "decisions",
    "schedule_from",
    "step_from",
    "step_to",
]
