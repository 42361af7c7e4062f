"""One process at a time saves in a directory."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path

from ..ir.errors import SaveError

if sys.platform != "win32":
    import fcntl


class Lock:
    """A lock on a directory that the system takes back when the process ends, however it does.

    Processes that are forked do not inherit it; another lock of this process is not refused.
    Raises `SaveError` where another process has it, `OSError` where no file can be made.
    """

    def __init__(self, directory: Path) -> None:
        """Take it."""
        file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self.close = weakref.finalize(self, os.close, file)
        if sys.platform == "win32":  # has no such locks: nothing is refused
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(file, 20).decode(errors="replace") or "unknown"
            self.close()
            raise SaveError(
                f"process {owner} saves in {directory}\n  end it, or give another directory"
            ) from None
        except OSError:  # a file system without locks
            return
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
