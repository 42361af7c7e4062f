"""Warnings of what is most often a mistake in a training loop.

PyTorch runs such loops without a word. Each warning has a condition that no sound loop meets:

- **no gradient**  `step()` when no parameter has a gradient: it moves nothing.
- **again**  `step()` with the gradients that the last one used: no backward in between.
- **stale**  `step()` with gradients that hold those of an earlier step, as backward added to them
  and nobody called `zero_grad`. Adding up micro-batches before one step is none, nor is adding to
  used gradients that are dropped before the next step, as the two optimisers of a GAN do.
- **never**  a parameter that requires grad had no gradient in any of the first `STEPS` steps, or
  in a compiled step, whose program never gives it one.

A gradient's storage is marked as spent by the step that uses it; the mark is wiped by `zero_grad`
and by any change in place that a user makes, and goes through sums of backward and clipping.
Under `bp.compile` a step is looked at when it is traced: a step compiled without its backward, and
called twice, goes unseen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ..compiler.diagnose import caller_level
from ..compiler.state import watching
from ..ir.errors import TrainingWarning

if TYPE_CHECKING:
    from .storage import Storage
    from .tensor import Tensor

Groups: TypeAlias = Sequence[dict[str, Any]]

STEPS = 5  # with a gradient at all, after which a parameter without any is told of
SHOWN = 4  # names of parameters in a message


class Watch:
    """What an optimiser saw of its gradients; each cause is told once."""

    def __init__(self, kind: str) -> None:
        """Of an optimiser that is called so."""
        self._kind = kind
        self._told: set[str] = set()
        self._steps = 0
        self._reached: set[Tensor] = set()

    def check(self, groups: Groups) -> list[Storage]:
        """Look at the gradients that a step of these groups is about to use, and return them."""
        used = _gradients(groups)
        if not used:
            self._tell(
                "no gradient",
                "step() found no gradient and moves nothing: there was no backward since "
                "zero_grad()\n  call loss.backward() between zero_grad() and step()",
            )
            return used
        spent = [s for s in used if s.spent >= 0]
        if len(spent) == len(used) and all(s.spent == s.version for s in used):
            self._tell(
                "again",
                "step() takes the gradients of the last step again: there was no backward "
                "since\n  call zero_grad() and loss.backward() before each step()",
            )
        elif spent:
            self._tell(
                "stale",
                f"step() takes gradients that an earlier step has used already, in {len(spent)} of "
                f"{len(used)}: backward has added to them\n  call zero_grad() after each step(); "
                "to add up micro-batches, do so between steps",
            )
        if "never" not in self._told:
            self._look_for_idle(groups)
        return used

    def _look_for_idle(self, groups: Groups) -> None:
        params = [p for group in groups for p in group["params"]]
        reached = {p for p in params if p._grad is not None}
        if watching.owner is not None:
            where = "in the compiled step"
        else:
            self._reached |= reached
            reached, self._steps = self._reached, self._steps + 1
            if self._steps < STEPS:
                return
            where = f"in the first {STEPS} steps"
            self._reached = set()
        idle = [i for i, p in enumerate(params) if p not in reached and p._requires]
        if idle:
            self._tell(
                "never",
                f"{len(idle)} of {len(params)} parameters had no gradient {where}: "
                f"{_listed(idle, groups)}\n  does the loss depend on them, without "
                "detach() or no_grad()? freeze what is not to learn with requires_grad_(False)",
            )
        elif watching.owner is None:
            self._told.add("never")  # nothing is to be told: look no more

    def _tell(self, cause: str, message: str) -> None:
        if cause not in self._told:
            self._told.add(cause)
            warnings.warn(f"{self._kind}: {message}", TrainingWarning, caller_level())


def _gradients(groups: Groups) -> list[Storage]:
    """The gradients that are there."""
    grads = [p._grad for group in groups for p in group["params"]]
    return [g._storage for g in grads if g is not None]


def _listed(places: Sequence[int], groups: Groups) -> str:
    """Names and shapes of the parameters at some places."""
    names: list[str] = []
    for group in groups:
        numbers = range(len(names), len(names) + len(group["params"]))
        names += group.get("param_names") or [f"parameter {i}" for i in numbers]
    shapes = [list(p.shape) for group in groups for p in group["params"]]
    shown = ", ".join(f"{names[i]} of shape {shapes[i]}" for i in places[:SHOWN])
    return shown + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
