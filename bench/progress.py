"""Progress on stderr: a bar where it is a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from .measure import note


class Progress:
    """Counts `total` cases; lines are told above the bar. Without tqdm there are lines alone."""

    def __init__(self, total: int) -> None:
        self._bar: Any = _bar(total)

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def tell(self, text: str) -> None:
        """Tell a line."""
        if self._bar is None:
            note(text)
        else:
            self._bar.write(text, file=sys.stderr)

    def advance(self, text: str) -> None:
        """A case is over, and `text` is next."""
        if self._bar is None:
            note(text)
        else:
            self._bar.set_description(text, refresh=False)
            self._bar.update()


def _bar(total: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=total, unit="case", file=sys.stderr)
