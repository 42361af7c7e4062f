"""What the passes make of a program, the search for its plan, and in how many parts it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..ir.errors import ArgumentError, BatchError
from ..ir.fingerprint import digest
from ..ir.graph import Graph
from ..passes import Pass, Stage
from .budget import Fitting
from .options import Options
from .program import Program

# With `accumulate_steps="auto"` no batch is divided into more parts than this.
MOST = 64
LARGE = 5000  # nodes

Stages = tuple[Stage, ...]  # what a pipeline makes of a program


@dataclass(frozen=True)
class Fitted:
    """The stages of each form of a program that runs in `steps` parts, and the search for its plan.

    Without a search there is one form.
    """

    steps: int | None
    forms: tuple[Stages, ...]
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
    forms = forms_of(program, chosen) if options.planning.active else (stages_of(program, chosen),)
    try:
        search = options.planning.fitting(graphs_of(forms), donated)
        return Fitted(steps, forms, search)
    except ArgumentError:  # of a plan for another number of parts
        if not isinstance(options.accumulate_steps, str) or 2 * (steps or 1) > MOST:
            raise
        return _in(program, options, donated, 2 * (steps or 1))


def stages_of(program: Program, options: Options) -> Stages:
    """What the passes make of a program."""
    return program.stages(options.pipelines[0], bool(options.debug))


def forms_of(program: Program, options: Options, known: Stages | None = None) -> tuple[Stages, ...]:
    """What the passes make of a program, where that is not `known`, and what others make of it.

    Those that come to the same as the first are left out. A large program has none: planners take
    seconds for each.
    """
    first = known or stages_of(program, options)
    if len(first[-1].graph.nodes) > LARGE:
        return (first,)
    usual, *more = options.pipelines
    others = [each for each in more if _differs(first, usual, each)]
    return (first, *(program.stages(each, bool(options.debug)) for each in others))


def graphs_of(forms: Sequence[Stages]) -> list[Graph]:
    """The graphs that a planner may start from."""
    return [stages[-1].graph for stages in forms]


def _differs(first: Stages, usual: Sequence[Pass], passes: Sequence[Pass]) -> bool:
    """True where a pass that is added to the usual ones, changed or left out does another thing.

    `first` is what the usual ones make. Up to a pass that is added both are the same.
    """
    done = list(zip(usual, pairwise(first), strict=False))
    known, names = ({each.name for each in some} for some in (usual, passes))
    for before, each in zip(first, passes, strict=False):
        if each.name not in known:
            return each(before.graph) is not before.graph
    if any(new.graph is not old.graph for each, (old, new) in done if each.name not in names):
        return True
    changed = {each.name: each for each in passes if each not in usual}
    return any(
        digest(changed[each.name](old.graph)) != digest(new.graph)
        for each, (old, new) in done
        if each.name in changed
    )


def _is_enough(found: Fitted) -> bool:
    """True where more parts can only take longer."""
    search = found.search
    if search is None or search.given:
        return True
    return search.candidate in search.forms.plains and _promise(found)[0] == 0


def _promise(found: Fitted) -> tuple[int, float]:
    """Order of what may be tried: what should fit by its time, then the rest by its bytes."""
    search = found.search
    if search is None or search.given:
        return 0, 0.0
    candidate = search.candidate
    if search.budget is None or candidate.bytes <= search.budget:
        return 0, candidate.seconds
    return 1, candidate.bytes
