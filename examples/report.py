"""What an example leaves behind: its loss curve as a picture, and every compiler stage as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import MaxNLocator  # noqa: E402

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A loss curve: named series of `(x, y)` points over one axis, and levels to compare with.

    Arguments:
      series: points of each line by its label; the densest is drawn pale, as a background.
      levels: height of each dashed horizontal line by its label.
    """

    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, Points]
    levels: Mapping[str, float]

    def save(self, path: Path) -> Path:
        """Draw the curve into a PNG at `path`."""
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        densest = max(len(points) for points in self.series.values())
        for label, points in self.series.items():
            dense = len(points) == densest > 50
            style = {"linewidth": 0.8, "alpha": 0.5} if dense else {"linewidth": 2, "marker": "."}
            axes.plot(*zip(*points, strict=True), label=label, **style)
        for label, level in self.levels.items():
            axes.axhline(level, linestyle="--", color="grey", label=label)
        axes.set(title=self.title, xlabel=self.xlabel, ylabel=self.ylabel, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
        return path


def save_dumps(lowered, directory: Path) -> list[Path]:
    """Write each compiler stage of `lowered` into `directory`, in place of an earlier run's."""
    return lowered.dump(directory)


def print_results(curve: Path, dumps: Sequence[Path]) -> None:
    """Tell on stdout where the loss curve and the graph dumps lie."""
    print(f"\nloss curve   {curve}")
    print(f"graph dumps  {dumps[0].parent} ({len(dumps)} files)")
    for path in dumps:
        print(f"             {path.name}")
