"""State outside of a function that is traced: what the function reads besides its arguments.

Arrays that a function closes over are constants of its program. Whoever holds values that change
from call to call, as the dynamic mode's tensors do, looks at `watching.owner` when one is read,
and raises `Stateful`: the function is then compiled by `build` instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Watching(threading.local):
    """Who traces in this thread: None, a mark of `watched`, or one that takes in the state."""

    owner: Any = None


watching = _Watching()


class Stateful(BaseException):
    """Raised out of a trace that meets state; no error, so that nothing on the way handles it.

    `build(compiled)` makes of a compiled function one that passes the state in and out.
    """

    def __init__(self, build: Callable[[Any], Any]) -> None:
        """Raised by the holder of state."""
        super().__init__("state was read")
        self.build = build


@contextmanager
def watched(owner: Any = None) -> Iterator[None]:
    """Trace for `owner`; without one, within an outer trace's owner or a mark of one's own."""
    before = watching.owner
    watching.owner = owner or before or object()
    try:
        yield
    finally:
        watching.owner = before
