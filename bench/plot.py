"""The picture of a run: ratios as bars, and the frontier of peaks and times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..ir.errors import ArgumentError
from .report import Report
from .rows import Row

FRONTIER = "memory"


def plot(report: Report, path: Path) -> None:
    """Draw a panel for each suite. Raises `ArgumentError`: no matplotlib, no ratio, a bad path."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ArgumentError("--plot wants matplotlib: pip install matplotlib") from error
    suites = list(dict.fromkeys(row.suite for row in report.rows if row.ratios))
    if not suites:
        raise ArgumentError("there is nothing to plot: no row has a ratio")
    heights = [_height(report.of(suite)) for suite in suites]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    panels = figure.subplots(len(suites), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, suite in zip(panels, suites, strict=True):
        rows = [row for row in report.of(suite) if row.ratios]
        (frontier if suite == FRONTIER else _bars)(axes, suite, rows)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{report.environment['cpu']}, {report.environment['device']}", fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} can't be written: {error}") from error


def _height(rows: Sequence[Row]) -> float:
    """Inches of a suite's panel."""
    if rows[0].suite == FRONTIER:
        return 4.5
    return 1.3 + 0.22 * sum(bool(row.ratios) for row in rows)


def _bars(axes: Any, suite: str, rows: Sequence[Row]) -> None:
    """Times over those of each peer, with quartiles; left of 1 is better."""
    first = next(iter(rows[0].ratios))
    cases = list(dict.fromkeys(row.case for row in rows))
    peers = list(dict.fromkeys(row.peer for row in rows))
    thickness = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        mine = [row for row in rows if row.peer == peer]
        places = [cases.index(row.case) + (i - (len(peers) - 1) / 2) * thickness for row in mine]
        found = [row.ratios[first] for row in mine]
        spread = [[r.median - r.low for r in found], [r.high - r.median for r in found]]
        lengths = [r.median - 1 for r in found]
        axes.barh(places, lengths, thickness, left=1, xerr=spread, label=peer, ecolor="grey")
    axes.axvline(1, color="black", lw=1)
    axes.set(xscale="log", title=suite, xlabel=f"{first}, ours / theirs")
    _plain_ticks(axes.xaxis)
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()


def frontier(axes: Any, suite: str, rows: Sequence[Row]) -> None:
    """Time over peak, both of plain JAX's, a line for each model and one for its best rivals."""
    models = list(dict.fromkeys(row.case.partition(" budget ")[0] for row in rows))
    hollow = {"marker": "o", "ms": 5, "mfc": "white", "ls": ":"}
    for model in models:
        mine = [row for row in rows if row.case.partition(" budget ")[0] == model]
        points = {
            (row.figures["peak_bytes"] / row.figures["plain_bytes"], row.figures["time"])
            for row in mine
        }
        (line,) = axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, label=model)
        if rivals := _rivals(mine):
            axes.plot(*zip(*sorted(rivals), strict=True), **hollow, color=line.get_color())
    if any("rival" in row.figures for row in rows):
        axes.plot([], [], **hollow, color="grey", label="jax.checkpoint")
    axes.plot(1, 1, marker="s", ls="", color="black", label="plain jax")
    axes.axhline(1, color="black", lw=1)
    axes.set(yscale="log", title=suite, xlabel="peak, of plain JAX's", ylabel="time")
    _plain_ticks(axes.yaxis)


def _rivals(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Peak and time of each use of `jax.checkpoint` that is the fastest within some budget."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name, own = row.figures.get("rival"), row.figures
        if name in (None, "plain", "jax") or not row.ratios:
            continue
        peak = own["peak_bytes"] / own["plain_bytes"] / row.ratios["peak"].median
        found.setdefault(name, []).append((peak, own["time"] / row.ratios["time"].median))
    return [(points[0][0], median(time for _, time in points)) for points in found.values()]


def _plain_ticks(axis: Any) -> None:
    """Numbers such as 0.5 on a logarithmic axis, from 0.5 to 2 at least."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_view_interval(min(low, 0.5), max(high, 2.0))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
