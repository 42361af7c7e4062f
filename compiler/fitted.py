"""What the passes make of a program, the search for its plan, and in how many parts it runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..ir.errors import ArgumentError, BatchError
from ..passes import Stage
from .budget import Fitting
from .options import Options
from .program import Program

# With `accumulate_steps="auto"` no batch is divided into more parts than this.
MOST = 64


@dataclass(frozen=True)
class Fitted:
    """The stages of a program that runs in `steps` parts, and the search for its plan."""

    steps: int | None
    stages: tuple[Stage, ...]
    search: Fitting | None


def fitted(program: Program, options: Options, donated: Collection[int], least: int = 1) -> Fitted:
    """Run the passes and begin the search; parts are chosen, `least` or more, where asked for.

    The whole where that fits without work done twice; else what is predicted to take the least
    time of 1, 2, 4, ... parts. Raises `BatchError` when `least` parts can't be.
    """
    asked = options.accumulate_steps
    if not isinstance(asked, str):
        return _in(program, options, donated, asked)
    tried = [_in(program, options, donated, least)]
    while not _is_enough(tried[-1]) and 2 * (tried[-1].steps or 1) <= MOST:
        try:
            tried.append(_in(program, options, donated, 2 * (tried[-1].steps or 1)))
        except BatchError:
            break
    return min(tried, key=_promise)


def _in(program: Program, options: Options, donated: Collection[int], steps: int | None) -> Fitted:
    chosen = replace(options, accumulate_steps=steps)
    stages = program.stages(chosen.pipeline, bool(options.debug))
    try:
        return Fitted(steps, stages, options.planning.fitting(stages[-1].graph, donated))
    except ArgumentError:  # of a plan for another number of parts
        if not isinstance(options.accumulate_steps, str) or 2 * (steps or 1) > MOST:
            raise
        return _in(program, options, donated, 2 * (steps or 1))


def _is_enough(found: Fitted) -> bool:
    """True where more parts can only take longer."""
    search = found.search
    if search is None or search.given:
        return True
    return search.candidate is search.planner.plain and _promise(found)[0] == 0


def _promise(found: Fitted) -> tuple[int, float]:
    """Order of what may be tried: what should fit by its time, then the rest by its bytes."""
    search = found.search
    if search is None or search.given:
        return 0, 0.0
    candidate = search.candidate
    if search.budget is None or candidate.bytes <= search.budget:
        return 0, candidate.seconds
    return 1, candidate.bytes
