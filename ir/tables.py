"""Small tables for people: the analyses print themselves with these."""

from __future__ import annotations

from collections.abc import Sequence

from .lexer import printable

Row = Sequence[str]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def count_text(number: int) -> str:
    """`1234567` as `1,234,567`."""
    return f"{number:,}"


def bytes_text(number: int) -> str:
    """Bytes in a binary unit, for instance `1.5 MiB`."""
    size, unit = float(number), 0
    while abs(size) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{number} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def table(head: Row, *groups: Sequence[Row]) -> str:
    """Columns: the first to the left, the others to the right; a rule before each group.

    What is not printable in a cell, such as an escape of a terminal in a scope, is written out.
    """
    plain = [[[*map(printable, row)] for row in group] for group in ([head], *groups)]
    rows = [row for group in plain for row in group]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def line(row: Row) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    parts = [line(rows[0])]
    for group in plain[1:]:
        if group:
            parts += [rule, *map(line, group)]
    return "\n".join(parts)
