"""What benchmarks give: rows of ratios, ours / a peer's, and the setting they were taken in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .measure import Ratio, note


@dataclass(frozen=True)
class Setup:
    """How to measure: the size of models, the peers, rounds, the seed of parameters and data.

    `passes` is a pipeline in place of the default one, `precision` that of products in steps of
    models; `tell` takes lines of progress.
    """

    size: str
    peers: tuple[str, ...] = ("jax",)
    repeats: int = 11
    seed: int = 0
    passes: str | None = None
    precision: str | None = None
    tell: Callable[[str], None] = note


@dataclass(frozen=True)
class Row:
    """One case beside one peer.

    `ratios` are ours / the peer's, below 1 is better. `figures` are what else is known: seconds,
    bytes, fractions. Where `error` is told there are no ratios.
    """

    suite: str
    case: str
    peer: str
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells a row from the others."""
        return self.suite, self.case, self.peer


def exact(ours: float, theirs: float) -> Ratio:
    """Return a ratio that was measured once."""
    value = ours / theirs
    return Ratio(value, value, value)


def agree(what: str, apart: float, limit: float) -> None:
    """Raise ValueError where results are further apart from ours than by rounding."""
    if not apart <= limit:  # NaN too
        raise ValueError(
            f"expected {what} within {limit:.0e} of ours, found {apart:.1e} apart: "
            "nothing was timed"
        )


def message(error: Exception) -> str:
    """Return an error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
