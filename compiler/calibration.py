"""How far XLA's peaks are from the predicted ones, learnt from the programs compiled so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..ir.liveness import Liveness

MARGIN = 0.99  # of a peak, where no larger one and no smaller one has been read


@dataclass(frozen=True)
class Calibration:
    """Programs for one step, each with its peak as XLA reports it, in bytes; at least one.

    Temporaries turn out larger or smaller in the proportion in which those of the nearest program
    did; between two programs in a straight line.
    """

    measured: tuple[tuple[Liveness, int], ...]

    def expected(self, live: Liveness) -> int:
        """Return the peak that XLA should report for a program."""
        return int(self._fixed + _along(live.peak_bytes - self._fixed, *self._points))

    def predicted(self, peak: float) -> float:
        """Return the predicted peak of a program for which XLA should report `peak`."""
        theirs, ours = self._points[::-1]
        size = peak - self._fixed
        margin = 1.0 if theirs[0] <= size <= theirs[-1] else MARGIN
        return self._fixed + _along(margin * size, theirs, ours)

    @cached_property
    def _fixed(self) -> int:
        """Bytes of what the caller sees, which are known."""
        live, _ = self.measured[0]
        return live.argument_bytes + live.output_bytes - live.donated_bytes

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and reported bytes of temporaries, rising."""
        pairs = sorted((live.peak_bytes, peak) for live, peak in self.measured)
        ours, theirs = np.maximum(np.array(pairs, float).T - self._fixed, 1)
        return ours, np.maximum.accumulate(theirs)


def _along(x: float, xs: np.ndarray, ys: np.ndarray) -> float:
    """The value at `x` on the line through points; beyond its ends through the origin too."""
    end = -1 if x > xs[-1] else 0
    return float(np.interp(x, xs, ys) if xs[0] <= x <= xs[-1] else x * ys[end] / xs[end])
