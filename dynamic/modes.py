"""Whether operations are recorded: `no_grad`, `enable_grad`, `inference_mode`; for each thread.

Each is a context manager, a decorator and, as `set_grad_enabled`, a plain call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any


class _Mode(threading.local):
    """What holds in this thread."""

    grad = True
    inference = False
    packing: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = ()
    cast: Any = None  # the dtype of autocast


mode = _Mode()


class _Setting(ContextDecorator):
    """Sets the mode of this thread on entry and puts the former one back on exit; may nest."""

    def __init__(self, grad: bool, inference: bool | None = None) -> None:
        """`inference` None keeps what is."""
        self._wanted = grad, inference
        self._before: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        """Begin."""
        grad, inference = self._wanted
        self._before.append((mode.grad, mode.inference))
        mode.grad = grad
        if inference is not None:
            mode.inference = inference

    def __exit__(self, *_: object) -> None:
        """End."""
        mode.grad, mode.inference = self._before.pop()


def _decorating(setting: _Setting, fun: Callable[..., Any] | None) -> Any:
    return setting if fun is None else setting(fun)


def no_grad(fun: Callable[..., Any] | None = None) -> Any:
    """Record nothing within; results may be used later in what is recorded."""
    return _decorating(_Setting(False), fun)


def enable_grad(fun: Callable[..., Any] | None = None) -> Any:
    """Record again, inside of `no_grad`."""
    return _decorating(_Setting(True), fun)


class set_grad_enabled(_Setting):  # noqa: N801  PyTorch's name
    """Record or not, from now on; as a context manager, until its end."""

    def __init__(self, enabled: bool) -> None:
        """Sets the mode at once."""
        super().__init__(enabled)
        self._at_once = mode.grad, mode.inference
        mode.grad = enabled

    def __enter__(self) -> None:
        """Begin; the end gives back what was before the call."""
        self._before.append(self._at_once)
        mode.grad = self._wanted[0]


def inference_mode(enabled: Any = True) -> Any:
    """Record nothing within; results may never be saved for a backward pass."""
    if callable(enabled):
        return _Setting(False, True)(enabled)
    return _Setting(False, True) if enabled else _Setting(mode.grad, mode.inference)


def is_grad_enabled() -> bool:
    """True where operations are recorded."""
    return mode.grad


def is_inference_mode_enabled() -> bool:
    """True inside of `inference_mode`."""
    return mode.inference
