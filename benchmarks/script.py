"""What the scripts have in common: their options, and how they tell results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backpass.bench.measure import note
from backpass.ir.tables import table


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="PATH", help="write all numbers to PATH")
    made.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    made.add_argument(
        "--default-allocator", action="store_true", help="leave malloc as the system has it"
    )
    return made


def finish(
    stamp: Mapping[str, Any],
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]],
    results: Any,
    path: Path | None,
) -> None:
    """Print stamp and tables (columns and rows) on stdout, and write all numbers where asked."""
    print("  ".join(f"{name} {value}" for name, value in stamp.items()))
    for columns, rows in tables:
        print()
        print(table(columns, rows))
    if path is not None:
        path.write_text(json.dumps({"environment": stamp, "results": results}, indent=1) + "\n")
        note(f"wrote {path}")


def finish_rows(
    stamp: Mapping[str, Any], columns: Sequence[str], results: Sequence[Any], path: Path | None
) -> None:
    """`finish` where each result is a dataclass and a row, by its `cells()`, of the one table."""
    finish(stamp, [(columns, [r.cells() for r in results])], [asdict(r) for r in results], path)
