"""Where in a pipeline the batch is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..fuse import Fuse
from ..pipeline import Pass
from .microbatch import Microbatch


def with_microbatch(passes: Sequence[Pass], microbatch: Microbatch) -> tuple[Pass, ...]:
    """Add `microbatch` once gradients are nodes like others; a pipeline that has one stays."""
    names = [each.name for each in passes]
    if microbatch.name in names:
        return tuple(passes)
    forms = ("autodiff", "fold", "simplify")
    after = max((i + 1 for i, n in enumerate(names) if n in forms), default=len(names))
    parts = microbatch.steps
    passes = [replace(p, parts=parts) if isinstance(p, Fuse) else p for p in passes]
    return (*passes[:after], microbatch, *passes[after:])
