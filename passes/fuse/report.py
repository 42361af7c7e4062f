"""What a rewrite did or did not do, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ...ir.graph import Node, Value
from ...ir.tables import bytes_text


@dataclass(frozen=True)
class Fusion:
    """A match of a rewrite, or a near miss.

    `what` names the rewrite, `source` the user's line and `scope` the name stack. `reason` tells
    why a near miss is none; it is empty for a match. `nbytes` is what need not be there at once
    any more, or what `gain` says; 0 where bytes are not what is gained.
    """

    what: str
    source: str
    scope: str
    nbytes: int
    reason: str = ""
    gain: str = ""

    @property
    def matched(self) -> bool:
        """True when the rewrite was made."""
        return not self.reason

    def __str__(self) -> str:
        """One line."""
        where = f"{self.what} at {self.source or 'unknown line'}"
        gain = self.gain or "never there as a whole"
        size = f"{bytes_text(self.nbytes)} " if self.nbytes else ""
        return f"{where}: {self.reason or size + gain}"


class Fusions(tuple[Fusion, ...]):
    """Matches and near misses, in the order of the passes; prints as lines, equal ones as one."""

    __slots__ = ()

    def __str__(self) -> str:
        """What was done, then what was not and why."""
        made = Counter(str(each) for each in self if each.matched)
        missed = Counter(str(each) for each in self if not each.matched)
        rows = [
            (mark + line, count)
            for mark, lines in (("", made), ("not: ", missed))
            for line, count in lines.items()
        ]
        return "\n".join(f"{count} x {line}" if count > 1 else line for line, count in rows)


def told(node: Node) -> str:
    """Name the op and its line."""
    return f"{node.op.name} at {node.source or 'unknown line'}"


def divided(value: Value, dims: Iterable[int]) -> str:
    """The mesh axes that divide some dimensions of a value, in words; empty where none does."""
    spec = value.type.spec
    return ", ".join(repr(name) for i in dims if spec for name, _ in spec[i])
