"""What every arm is given, and what it has to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .models.model import Model

RATE = 1e-4
# The update at this rate is the gradient, but for rounding: it is how gradients are compared
# without another program.
CHECK_RATE = 2.0**20


@dataclass(frozen=True)
class Task:
    """What all arms are given: a builder of the model, which takes `remat`, and the arrays.

    `precision` is that of products where an arm can be told it: ours and PyTorch's `autocast`.
    """

    build: Callable[..., Model]
    model: Model
    params: Any
    batch: Any
    precision: str | None = None

    @classmethod
    def of(cls, build: Callable[..., Model], seed: int = 0, precision: str | None = None) -> Task:
        """Draw parameters and a batch."""
        model, keys = build(), jax.random.split(jax.random.key(seed))
        return cls(build, model, model.init(keys[0]), model.batch(keys[1]), precision)


@dataclass(frozen=True)
class Arm:
    """A step that is ready to run.

    `once` runs it on the arm's own state and waits. `first(rate)` gives loss and parameters after
    one step from the start, leaves as `backpass` has them. Seconds to compile and bytes are None
    where nobody tells them; `program` is what was compiled.
    """

    name: str
    once: Callable[[], None]
    first: Callable[[float], tuple[float, list[np.ndarray[Any, Any]]]]
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    peak_bytes: int | None = None
    program: Any = None
