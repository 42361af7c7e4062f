"""The picture of `bp.Health.plot`: norms of gradients and lengths of updates over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import ArgumentError

if TYPE_CHECKING:
    from .health import Reading

NAMED = 10  # parameters that have a line of their own; of the others the range is shaded


def plot(steps: Sequence[Sequence[Reading]], path: Path) -> None:
    """Draw the readings of each step. Raises `ArgumentError` where matplotlib is not installed.

    The parameters that are worst at the end, or of the steepest gradients, are drawn by name.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ArgumentError("plot wants matplotlib: pip install matplotlib") from error
    names = [reading.name for reading in steps[-1]]
    states = [reading.state for reading in steps[-1]]
    chosen = _chosen(steps)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    drawn = (
        ("gradient norm", _array([[r.gradient_norm for r in step] for step in steps])),
        ("update / parameter", _array([[r.update_ratio for r in step] for step in steps])),
    )
    for axes, (title, values) in zip(figure.subplots(1, 2), drawn, strict=True):
        _draw(axes, values, chosen, [_label(n, s) for n, s in zip(names, states, strict=True)])
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.25)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(lines, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _label(name: str, state: str) -> str:
    return name if state in ("fine", "unknown") else f"{name}, {state}"


def _array(rows: Sequence[Sequence[float | None]]) -> np.ndarray[Any, Any]:
    """As float64[steps, parameters]; NaN for what can't be drawn on a logarithmic axis."""
    found = np.array([[math.nan if x is None else x for x in row] for row in rows], np.float64)
    return np.where(np.isfinite(found) & (found > 0), found, math.nan)


def _chosen(steps: Sequence[Sequence[Reading]]) -> list[int]:
    """The parameters to be named, in their order."""
    last = steps[-1]
    ill = [i for i, r in enumerate(last) if r.state not in ("fine", "unknown")]
    sizes = [(-(r.gradient_norm or 0.0), i) for i, r in enumerate(last) if i not in ill]
    well = [i for _, i in sorted(sizes)]
    return sorted([*ill, *well][:NAMED])


def _draw(
    axes: Any, values: np.ndarray[Any, Any], chosen: Sequence[int], labels: Sequence[str]
) -> None:
    """Lines of the chosen, and of the others the range."""
    x = np.arange(1, len(values) + 1)
    others = np.delete(values, chosen, axis=1)
    there = np.isfinite(others).any(1) if others.size else np.zeros(len(x), bool)
    if there.any():
        low, high = np.nanmin(others[there], 1), np.nanmax(others[there], 1)
        axes.fill_between(x[there], low, high, color="grey", alpha=0.2, label="the others")
    marker = "o" if len(x) == 1 else None
    for i in chosen:
        axes.plot(x, values[:, i], label=labels[i], lw=1.3, marker=marker)
