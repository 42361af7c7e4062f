"""The suites of `backpass bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arms import PEERS
from ..models.parts import parts
from ..models.sizes import SIZES
from ..rows import Row, Setup
from . import compile, contrast, dispatch, memory, steps


@dataclass(frozen=True)
class Suite:
    """What is measured: cases of a size by name, and rows of a case.

    `ratios` and `figures` are the columns of its table, `repeats` the rounds unless others are
    asked for, `peers` those that it knows. A `light` one moves no large arrays.
    """

    name: str
    about: str
    peers: Sequence[str]
    ratios: Sequence[str]
    figures: Sequence[str]
    repeats: int
    cases: Callable[[str], Mapping[str, Any]]
    measure: Callable[[str, str, Any, Setup], list[Row]]
    light: bool = False


SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "models",
            "training steps of nine models",
            tuple(PEERS),
            steps.RATIOS,
            steps.FIGURES,
            11,
            lambda size: SIZES[size],
            steps.measure,
        ),
        Suite(
            "memory",
            "peaks and times under memory budgets",
            ("jax", "jax-checkpoint"),
            memory.RATIOS,
            memory.FIGURES,
            7,
            memory.cases,
            memory.measure,
        ),
        Suite(
            "fusion",
            "parts of models where rewrites apply",
            ("jax",),
            steps.RATIOS,
            steps.FIGURES,
            11,
            parts,
            steps.measure,
        ),
        Suite(
            "contrast",
            "a tiny step, imperative and compiled",
            tuple(contrast.PEERS),
            contrast.RATIOS,
            contrast.FIGURES,
            60,
            contrast.cases,
            contrast.measure,
            light=True,
        ),
        Suite(
            "compile",
            "a first call by phases and depth",
            ("jax",),
            compile.RATIOS,
            compile.FIGURES,
            3,
            compile.cases,
            compile.measure,
        ),
        Suite(
            "dispatch",
            "a call of a compiled step",
            ("jax",),
            dispatch.RATIOS,
            dispatch.FIGURES,
            100,
            dispatch.cases,
            dispatch.measure,
            light=True,
        ),
    )
}
