"""Losses by epoch on training and on validation data, and what they say of overfitting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

PATIENCE = 3  # epochs since the lowest validation loss
RISE = 0.05  # of the validation loss above its lowest, as a share


@dataclass
class History:
    """Losses of each epoch on training and on validation data, and other scores."""

    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)

    def add(self, training: Any, validation: Any, **scores: Any) -> None:
        """Note an epoch's losses, and scores such as precision and recall by their names."""
        self.training.append(float(training))
        self.validation.append(float(validation))
        self.scores.append({name: float(x) for name, x in scores.items()})

    @property
    def best(self) -> int:
        """The epoch with the lowest validation loss, from 1 on."""
        return int(np.argmin(self.validation)) + 1

    @property
    def note(self) -> str:
        """Return what the losses say of overfitting; nothing where they do not say it.

        They do when for `PATIENCE` epochs the validation loss has not been as low as it was, is
        now a share `RISE` above that, and the training loss has gone on falling meanwhile.
        """
        if len(self.validation) <= PATIENCE:
            return ""
        best, last = self.best, len(self.validation)
        lowest, now = self.validation[best - 1], self.validation[-1]
        then, trained = self.training[best - 1], self.training[-1]
        if last - best < PATIENCE or now <= lowest * (1 + RISE) or trained >= then:
            return ""
        return (
            f"overfitting since epoch {best} of {last}: the validation loss rose from {lowest:.3g} "
            f"to {now:.3g}, while the training loss fell from {then:.3g} to {trained:.3g}\n"
            f"  stop at epoch {best}, or take more data, weight decay or dropout"
        )

    def __str__(self) -> str:
        """One row an epoch, the best one marked, and the note."""
        names = list(dict.fromkeys(name for each in self.scores for name in each))
        rows = ["epoch  training  validation" + "".join(f"  {name:>9}" for name in names)]
        losses = zip(self.training, self.validation, self.scores, strict=True)
        for epoch, (ours, theirs, scores) in enumerate(losses, 1):
            cells = "".join(f"  {scores.get(name, float('nan')):9.3f}" for name in names)
            mark = "  lowest" if epoch == self.best else ""
            rows.append(f"{epoch:5}  {ours:8.4f}  {theirs:10.4f}{cells}{mark}")
        return "\n".join([*rows, *([self.note] if self.note else [])])
