"""A run beside an earlier one: what has become slower or larger."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.tables import table
from .measure import Ratio
from .report import Report
from .rows import Row

# Ratios that are compared, and by how much of the old one the new one has to be more. Times have
# noise that quartiles tell, and some that they do not; bytes have none.
WATCHED = {"time": 1.05, "temp": 1.02, "peak": 1.02}
# What ought to be the same for times to be comparable.
SETTING = ("cpu", "cores", "device", "allocator", "jax", "jaxlib")


@dataclass(frozen=True)
class Change:
    """One ratio of one row, then and now; `worse` by the rule of `Comparison`."""

    key: tuple[str, str, str]
    name: str
    old: Ratio
    new: Ratio
    worse: bool

    def cells(self) -> list[str]:
        """Return the row as text."""
        mark = "worse" if self.worse else ""
        return [" / ".join(self.key), self.name, str(self.old), str(self.new), mark]


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common; prints as a table.

    A ratio is worse where its lower quartile now is above its upper quartile then, so that the
    middle halves of the rounds do not overlap, and its median is more than the old one by
    over 5%, for bytes by over 2%. A row that has failed since is worse as well. Ratios to a peer
    are compared, not seconds, so that a slower machine changes little.
    """

    changes: tuple[Change, ...]
    broken: tuple[Row, ...]
    missing: tuple[tuple[str, str, str], ...]
    setting: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """True where something has become worse."""
        return bool(self.broken) or any(change.worse for change in self.changes)

    def __str__(self) -> str:
        """Old and new ratio of each row, then what can't be compared."""
        head = ("suite / case / peer", "ratio", "old", "new", "")
        lines = [table(head, [change.cells() for change in self.changes])]
        lines += [f"failed since: {' / '.join(row.key)}: {row.error}" for row in self.broken]
        if self.missing:
            names = ", ".join(" / ".join(key) for key in self.missing)
            lines.append(f"not measured this time: {names}")
        if self.setting:
            lines.append(f"the setting was another: {'; '.join(self.setting)}")
        return "\n".join(lines)


def compare(old: Report, new: Report) -> Comparison:
    """Compare two runs row by row, by suite, case and peer."""
    now, then = ({row.key: row for row in report.rows} for report in (new, old))
    changes = tuple(
        Change(key, name, was.ratios[name], now[key].ratios[name], _worse(name, was, now[key]))
        for key, was in then.items()
        if key in now
        for name in WATCHED
        if name in was.ratios and name in now[key].ratios
    )
    broken = (row for row in new.failed if row.key in then and then[row.key].error is None)
    missing = tuple(key for key in then if key not in now)
    setting = tuple(
        f"{name} {old.environment.get(name)}, now {new.environment.get(name)}"
        for name in SETTING
        if old.environment.get(name) != new.environment.get(name)
    )
    return Comparison(changes, tuple(broken), missing, setting)


def _worse(name: str, old: Row, new: Row) -> bool:
    was, now = old.ratios[name], new.ratios[name]
    return now.low > was.high and now.median > WATCHED[name] * was.median
