"""Where tensors keep their arrays: storages that count changes, and views that follow them.

JAX's arrays never change. A change puts a new array into the storage, and a view computes itself
anew when its storage has changed. Both are what a compiled step finds as its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..compiler.state import Stateful, watching

if TYPE_CHECKING:
    from .tensor import Tensor
    from .whole import Walk


class Storage:
    """An array, or a tree of arrays, that may be replaced; `version` counts how often it was.

    `owner` is who traced when it was made: for any other tracer it is state from outside. `spent`
    is for gradients: the version that an optimiser's step used, or -1 (`mistakes.py`).
    """

    __slots__ = ("__weakref__", "array", "owner", "spent", "version")

    def __init__(self, array: Any) -> None:
        """At version 0."""
        self.array = array
        self.version = 0
        self.spent = -1
        self.owner = watching.owner

    def read(self) -> Any:
        """What it holds."""
        if watching.owner is not None:
            meet(self)
        return self.array

    def write(self, array: Any) -> None:
        """Replace what it holds."""
        if watching.owner is not None:
            meet(self)
        self.array = array
        self.version += 1


class Awaited(Storage):
    """A gradient that nobody has looked at: result `at` of a `walk` that has not run.

    Whoever asks for the array runs it; an optimiser's step may run it as a part of its own program.
    """

    __slots__ = ("at", "walk")

    def __init__(self, walk: Walk, at: int) -> None:
        """At version 0."""
        super().__init__(None)
        self.walk: Walk | None = walk
        self.at = at

    @property
    def array(self) -> Any:
        """What it holds; the walk runs now, if it has not."""
        walk = self.walk  # that another thread may take away
        if walk is not None:
            self.array = walk.results()[self.at]
        return _array.__get__(self)

    @array.setter
    def array(self, array: Any) -> None:
        _array.__set__(self, array)
        self.walk = None

    def __reduce__(self) -> Any:
        """A copy is a plain storage."""
        return Storage, (self.array,), (None, {"version": self.version, "spent": self.spent})


_array: Any = Storage.__dict__["array"]  # the slot behind the property


def meet(state: Storage | Tensor, grad: str = "") -> None:
    """Tell who traces of state from outside that is about to be read or changed.

    `grad` is what is done with a tensor's `.grad`, "read" or "set".
    """
    owner = watching.owner
    storage = state if isinstance(state, Storage) else state._storage
    if storage.owner is owner:
        return
    from .capture import Capture, CompiledStep

    if not isinstance(owner, Capture):
        raise Stateful(CompiledStep)
    owner.take(state, grad)


class View:
    """How a view comes from its base: functions one after the other; what it was when computed."""

    __slots__ = ("array", "base", "steps", "version")

    def __init__(self, base: Tensor, steps: tuple[Callable[..., Any], ...], array: Any) -> None:
        """Computed at the base's present version."""
        self.base, self.steps, self.array = base, steps, array
        self.version = base._storage.version
