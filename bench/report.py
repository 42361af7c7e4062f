"""All rows of a run with their stamp: as Markdown, as JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..ir import records
from ..ir.errors import ArgumentError
from .measure import Ratio
from .rows import Row
from .suites.table import SUITES, Suite

SCHEMA = "backpass.bench 1"

# How figures are written; others are plain text.
FORMATS = {
    "loss": ".0e",
    "grads": ".0e",
    "ms": ".3g",
    "us": ".3g",
    "utilisation": ".1%",
    "traffic": ".2f",
    "budget": ".2f",
    "within": ".2f",
    "predicted": ".2f",
    "equations": ".2f",
    "passes": ".2f",
    "plan": ".2f",
}


@dataclass(frozen=True)
class Report:
    """What a run has found: the setting, the options, the rows."""

    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: tuple[Row, ...]

    def of(self, suite: str) -> list[Row]:
        """Return the rows of a suite."""
        return [row for row in self.rows if row.suite == suite]

    @property
    def failed(self) -> list[Row]:
        """The rows without ratios because of an error."""
        return [row for row in self.rows if row.error is not None]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as plain data; seconds of each round too."""
        shown = [
            Means(suite, peer, means(self.of(suite), peer))
            for suite in SUITES
            for peer in _peers(self.of(suite))
        ]
        return asdict(_File(SCHEMA, self.environment, self.options, self.rows, tuple(shown)))

    def save(self, path: Path) -> None:
        """Write the JSON. Raises `ArgumentError` where that is not possible."""
        _write(path, json.dumps(self.to_json(), indent=1) + "\n")

    def save_markdown(self, path: Path) -> None:
        """Write the tables. Raises `ArgumentError` where that is not possible."""
        _write(path, f"{self}\n")

    def __str__(self) -> str:
        """The stamp, then a Markdown table for each suite, then what failed."""
        stamp = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        parts = [stamp]
        for suite in SUITES.values():
            if rows := self.of(suite.name):
                parts.append(f"## {suite.name}: {suite.about}, ours / theirs")
                parts.append(_table(suite, rows))
        if self.failed:
            parts.append("\n".join(f"- {' / '.join(r.key)}: {r.error}" for r in self.failed))
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Means:
    """Geometric means of a suite's ratios beside a peer."""

    suite: str
    peer: str
    ratios: Mapping[str, float]


@dataclass(frozen=True)
class _File:
    """What the JSON holds."""

    schema: str
    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: tuple[Row, ...]
    means: tuple[Means, ...] = ()

    def report(self) -> Report:
        """Return what was saved. Raises `ValueError` for another schema."""
        if self.schema != SCHEMA:
            raise ValueError(f"its schema is {self.schema!r}")
        return Report(self.environment, self.options, self.rows)


def read(path: Path) -> Report:
    """Read what `Report.save` wrote. Raises `ArgumentError`."""
    try:
        found: _File = records.read(_File, records.parsed(path.read_bytes()))
        return found.report()
    except (OSError, ValueError) as error:
        wanted = f"expected a file of backpass bench --json, {SCHEMA!r}"
        raise ArgumentError(f"{path}: {wanted}: {type(error).__name__} {error}") from error


def means(rows: Sequence[Row], peer: str) -> dict[str, float]:
    """Return the geometric means of the medians beside a peer, of ratios that all its rows have."""
    mine = [row.ratios for row in rows if row.peer == peer and row.ratios]
    names = [name for name in mine[0] if all(name in each for each in mine)] if mine else []
    return {
        name: math.exp(sum(math.log(each[name].median) for each in mine) / len(mine))
        for name in names
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ArgumentError(f"{path} can't be written: {error.strerror}") from error


def _peers(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.peer for row in rows))


def _table(suite: Suite, rows: Sequence[Row]) -> str:
    """Ratios first, then figures; geometric means at the end."""
    head = ["case", "peer", *suite.ratios, *suite.figures]
    cells = [_cells(suite, row) for row in rows]
    blanks = [""] * len(suite.figures)
    for peer in _peers(rows):
        if found := means(rows, peer):
            middle = [f"{found[name]:.2f}" if name in found else "" for name in suite.ratios]
            cells.append(["geometric mean", peer, *middle, *blanks])
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in (head, rule, *cells)
    )


def _cells(suite: Suite, row: Row) -> list[str]:
    if row.error is not None:
        return [row.case, row.peer, "failed", *[""] * (len(suite.ratios) + len(suite.figures) - 1)]
    ratios = (_ratio(row.ratios.get(name)) for name in suite.ratios)
    return [row.case, row.peer, *ratios, *(_figure(name, row) for name in suite.figures)]


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return str(ratio) if ratio.low < ratio.high else f"{ratio.median:.2f}"


def _figure(name: str, row: Row) -> str:
    value = row.figures.get(name)
    return "-" if value is None else format(value, FORMATS.get(name, ""))
