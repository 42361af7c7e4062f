"""What was rolled, and what was not, for people to read."""

from __future__ import annotations

from dataclasses import dataclass

from ..fuse.report import Fusion


@dataclass(frozen=True)
class Rolled(Fusion):
    """Blocks that became one scan, or a reason why they did not."""

    def __str__(self) -> str:
        """One line."""
        told = self.reason or "rolled into one scan"
        return f"{self.what} at {self.source or 'unknown line'}: {told}"
