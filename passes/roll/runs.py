"""Runs of a sequence that repeat: maximal stretches with `x[i] = x[i + period]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOWS = 8  # windows of 1, 2, 4, ... labels: one of them tells a place in its block from others
PERIODS = 4  # that are tried for each of them
RUNS = 8  # that are handed on, those that cover most first


@dataclass(frozen=True)
class Run:
    """Labels `start` to `stop` repeat with `period`; `cover` is the weight of the repeats."""

    start: int
    stop: int
    period: int
    cover: int


def runs(labels: Sequence[int], weights: Sequence[int], least: int) -> list[Run]:
    """Return runs of `least` blocks or more, those that cover most first, then short periods.

    Takes time in proportion to the number of labels, but for logarithms.
    """
    row = np.asarray(labels, np.int64)
    sums = np.concatenate([[0], np.cumsum(np.asarray(weights, np.int64))])
    found: list[Run] = []
    for period in _periods(row):
        same = row[period:] == row[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2).tolist():
            if stop - start >= period * (least - 1):
                cover = int(sums[stop + period] - sums[start + period])
                found.append(Run(start, stop + period, period, cover))
    return sorted(found, key=lambda run: (-run.cover, run.period))[:RUNS]


def _periods(row: np.ndarray[Any, Any]) -> list[int]:
    """Distances between places where the same window of labels is found, frequent ones first."""
    found: set[int] = set()
    for k in range(WINDOWS):
        if len(row) < 2:
            break
        order = np.argsort(row, kind="stable")
        near = row[order[1:]] == row[order[:-1]]
        distances = np.bincount((order[1:] - order[:-1])[near], minlength=1)
        scores = distances * np.arange(len(distances))
        found.update(p for p in np.argsort(scores)[-PERIODS:].tolist() if scores[p])
        half = 1 << k
        pairs = np.stack([row[:-half], row[half:]]) if len(row) > half else row[:0].reshape(2, 0)
        _, row = np.unique(pairs, axis=1, return_inverse=True)
        row = np.ravel(row)
    return sorted(found)
