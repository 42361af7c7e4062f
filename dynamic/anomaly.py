"""Anomaly mode: each operation remembers where it was called, and NaN in backward is an error."""

from __future__ import annotations

import threading
import traceback
from contextlib import ContextDecorator
from typing import Any


class _State(threading.local):
    on = False
    check_nan = True


state = _State()


class detect_anomaly(ContextDecorator):  # noqa: N801  PyTorch's name
    """Tell the forward traceback of an operation whose backward fails or gives NaN."""

    def __init__(self, check_nan: bool = True) -> None:
        """`check_nan`: a NaN among the cotangents is an error."""
        self._wanted = check_nan
        self._before: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        """Begin."""
        self._before.append((state.on, state.check_nan))
        state.on, state.check_nan = True, self._wanted

    def __exit__(self, *_: object) -> None:
        """End."""
        state.on, state.check_nan = self._before.pop()


def trace_of() -> Any:
    """Where the operation stands, in anomaly mode; else None."""
    if not state.on:
        return None
    frames = traceback.extract_stack()[:-1]
    own = __file__.rpartition("/")[0]
    return "".join(traceback.format_list([f for f in frames if not f.filename.startswith(own)]))
