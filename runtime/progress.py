"""A word on stderr when a compile, or another wait, takes long."""

from __future__ import annotations

import sys
import threading
import time

PATIENCE = 5.0  # seconds of silence


class Watch:
    """Tells on stderr that `what` is being compiled once so many seconds have passed.

    On a terminal the seconds count up in place; elsewhere one line is printed, and one at the end.
    """

    def __init__(
        self,
        what: str,
        doing: str = "compiling",
        done: str = "compiled",
        after: float | None = None,
    ) -> None:
        """Start the clock."""
        self._doing, self._ended = f"{doing} {what}", f"{done} {what}"
        self._patience = PATIENCE if after is None else after
        self._start = time.perf_counter()
        self._done = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def stop(self) -> float:
        """Stop telling; returns the seconds that passed."""
        seconds = self.seconds
        self._done.set()
        self._thread.join()
        if self._told:
            _say(f"backpass: {self._ended} in {seconds:.1f} s", end="\n")
        return seconds

    def _wait(self) -> None:
        terminal = sys.stderr.isatty()
        pause = self._patience
        while not self._done.wait(pause):
            if not self._told or terminal:
                _say(
                    f"backpass: {self._doing} ... {self.seconds:.0f} s",
                    end="" if terminal else "\n",
                )
            self._told, pause = True, 1.0


def _say(text: str, end: str) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}{text}{end}")
    sys.stderr.flush()
