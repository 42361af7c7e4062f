"""What is out of the ordinary in gradients and updates, by rules of thumb.

Source: Glorot and Bengio 2010 (gradients by layer); Pascanu et al. 2013 (exploding gradients).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VANISHED = 1e-4  # a parameter's gradient beside the largest one's, root mean squares
EXPLODED = 100.0  # a step's gradient norm, beside the median of those before
JUMP = 20.0  # a step's update norm, beside the median of those before
TURN = -0.5  # the median cosine between an update and the one before
ENOUGH = 5  # steps, before steps are compared


@dataclass(frozen=True)
class Finding:
    """What is out of the ordinary: its kind, where it is, and the whole sentence."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        """The sentence."""
        return self.text


def medians(rows: np.ndarray[Any, Any]) -> list[float]:
    """By column, over what is there."""
    there = [column[np.isfinite(column)] for column in rows.T]
    return [float(np.median(column)) if column.size else float("nan") for column in there]


def vanishing(gradients: np.ndarray[Any, Any], names: Sequence[str]) -> Iterable[Finding]:
    """Parameters whose gradient is a share `VANISHED` of the largest one's, or 0."""
    sizes = np.array(medians(gradients))
    largest = np.nanmax(sizes) if np.isfinite(sizes).any() else 0.0
    for name, size in zip(names, sizes, strict=True):
        if size < VANISHED * largest:
            beside = f"{size:.1e} beside {largest:.1e} of the largest" if size else "0"
            yield Finding(
                "vanishing",
                name,
                f"the gradient of {name} vanishes: its root mean square is {beside}\n  try a "
                "residual connection, a norm, ReLU for sigmoid or tanh, or another initialisation",
            )


def exploding(norms: np.ndarray[Any, Any]) -> Iterable[Finding]:
    """The first step whose gradient is not finite, or `EXPLODED` times what was usual."""
    remedy = "clip with nn.utils.clip_grad_norm_, or take a smaller learning rate"
    for step, norm in enumerate(norms):
        usual = float(np.median(norms[:step])) if step >= ENOUGH else float("inf")
        if not np.isfinite(norm) or norm > EXPLODED * usual > 0:
            beside = f", beside {usual:.1e} of the steps before" if np.isfinite(norm) else ""
            text = f"the gradient explodes at step {step + 1}: its norm is {norm:.1e}{beside}"
            yield Finding("exploding", f"step {step + 1}", f"{text}\n  {remedy}")
            return


def rough(sizes: np.ndarray[Any, Any], cosines: np.ndarray[Any, Any]) -> Iterable[Finding]:
    """The first step that is `JUMP` times as long as usual; steps that undo each other."""
    for step in range(ENOUGH, len(sizes)):
        usual = float(np.median(sizes[:step]))
        if sizes[step] > JUMP * usual > 0:
            yield Finding(
                "jump",
                f"step {step + 1}",
                f"the parameters jump at step {step + 1}: by {sizes[step]:.1e}, beside "
                f"{usual:.1e} of the steps before\n  clip gradients, or warm the rate up",
            )
            break
    turn = float(np.median(cosines[1:])) if len(cosines) > ENOUGH else 0.0
    if turn < TURN:
        yield Finding(
            "zigzag",
            "all steps",
            f"the steps undo each other: the cosine between one and the next is {turn:.2f} in "
            "the median\n  take a smaller learning rate, or momentum",
        )
