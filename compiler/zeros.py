"""A warning where a gradient is zero everywhere, which says what to use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.errors import ZeroGradientWarning
from ..ir.graph import Graph
from ..passes.autodiff.cuts import Cut, cut_inputs
from .diagnose import caller_level, defined_at

_ROUNDING = "bp.straight_through(f) passes the gradient on as it is, bp.surrogate(f, g) that of g"
_CHOOSING = (
    "a smooth form (a sigmoid for a comparison, a softmax for an argmax) has a gradient, and "
    "bp.surrogate(f, g) gives f that of g"
)
_INSTEAD: Mapping[str, str] = dict.fromkeys(
    "round floor ceil sign rint trunc fix floor_divide convert_element_type".split(), _ROUNDING
)


def warn_of_zeros(
    fun: Callable[..., Any], graph: Graph, wrt: Sequence[int], outputs: Sequence[int] = (0,)
) -> None:
    """Warn of inputs `wrt` on which `outputs` depend only through ops that pass no gradient.

    Inputs that are not used at all have no gradient either, which is nothing to warn of.
    """
    by_cut: dict[tuple[str, str], list[str]] = {}
    cuts: dict[tuple[str, str], Cut] = {}
    for i, cut in cut_inputs(graph, wrt, outputs).items():
        key = cut.op, cut.origin.source
        cuts[key] = cut
        by_cut.setdefault(key, []).append(graph.inputs[i].name or f"input {i}")
    for key, paths in by_cut.items():
        warnings.warn(_message(fun, cuts[key], paths), ZeroGradientWarning, caller_level())


def _message(fun: Callable[..., Any], cut: Cut, paths: Sequence[str]) -> str:
    rest = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    scope = f" in {cut.origin.scope}" if cut.origin.scope else ""
    return (
        f"the gradient of {defined_at(fun)} by {paths[0]}{rest} is zero everywhere: the loss "
        f"depends on it only through {cut.op!r}, which passes none"
        f"\n  at {cut.origin.source or 'unknown line'}{scope}; {_INSTEAD.get(cut.op, _CHOOSING)}; "
        "bp.stop_gradient says that zero is meant"
    )
