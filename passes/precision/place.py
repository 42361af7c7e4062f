"""Where in a pipeline the precision is decided."""

from __future__ import annotations

from collections.abc import Sequence

from ..pipeline import Pass
from .accumulate import Accumulate
from .autocast import Autocast


def with_precision(passes: Sequence[Pass], autocast: Autocast) -> tuple[Pass, ...]:
    """Add `autocast` before gradients are derived, and `accumulate` once products have their form.

    A pipeline that has an `autocast` is left as it is.
    """
    names = [each.name for each in passes]
    if autocast.name in names:
        return tuple(passes)
    before = min((names.index(n) for n in ("fuse", "autodiff") if n in names), default=len(names))
    forms = ("autodiff", "fold", "simplify", "convolutions")
    after = max((i + 1 for i, n in enumerate(names) if n in forms), default=len(names))
    after = max(before, after)
    return (*passes[:before], autocast, *passes[before:after], Accumulate(), *passes[after:])
