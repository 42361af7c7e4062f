"""How far XLA's peaks are from the predicted ones, learnt from the plans compiled so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..passes.rematerialise import Planned

MARGIN = 0.99  # of a peak, where no larger one and no smaller one has been read


@dataclass(frozen=True)
class Calibration:
    """Plans for one step that are alike, each with its peak as XLA reports it, in bytes.

    Temporaries turn out larger or smaller in the proportion in which those of the nearest plan
    did; between two plans in a straight line. Without any, as predicted.
    """

    measured: Sequence[tuple[Planned, int]]

    def expected(self, plan: Planned) -> int:
        """Return the peak that XLA should report for a plan."""
        if not self.measured:
            return plan.bytes
        return int(self._fixed + _along(plan.bytes - self._fixed, *self._points))

    def predicted(self, peak: float) -> float:
        """Return the predicted peak of a plan for which XLA should report `peak`."""
        if not self.measured:
            return peak
        ours, theirs = self._points
        size = peak - self._fixed
        margin = 1.0 if theirs[0] <= size <= theirs[-1] else MARGIN
        return self._fixed + _along(margin * size, theirs, ours)

    @cached_property
    def _fixed(self) -> int:
        """Bytes of what the caller sees, which are known."""
        live = self.measured[0][0].live
        return live.argument_bytes + live.output_bytes - live.donated_bytes

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and reported bytes of temporaries, rising."""
        pairs = sorted((plan.bytes, peak) for plan, peak in self.measured)
        ours, theirs = np.maximum(np.array(pairs, float).T - self._fixed, 1)
        return ours, np.maximum.accumulate(theirs)


def _along(x: float, xs: np.ndarray, ys: np.ndarray) -> float:
    """The value at `x` on the line through points; beyond its ends through the origin too."""
    end = -1 if x > xs[-1] else 0
    return float(np.interp(x, xs, ys) if xs[0] <= x <= xs[-1] else x * ys[end] / xs[end])
