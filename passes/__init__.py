"""Graph -> Graph, one pass a file or folder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .autodiff import Autodiff
from .canonicalise import Canonicalise
from .cse import Cse
from .dce import Dce
from .fold import Fold
from .fuse import Fuse, Fusion
from .loops import Defer, Hoist, Unroll
from .pipeline import Pass, Stage, parse_pipeline, run_passes
from .rematerialise import Rematerialise, Restack
from .simplify import Simplify
from .sink import Sink

PASSES: Mapping[str, type[Any]] = MappingProxyType(
    {
        each.name: each
        for each in (
            Canonicalise,
            Sink,
            Hoist,
            Defer,
            Fuse,
            Autodiff,
            Fold,
            Simplify,
            Cse,
            Dce,
            Restack,
            Rematerialise,
            Unroll,
        )
    }
)
DEFAULT: tuple[Pass, ...] = (
    Canonicalise(),
    Sink(),
    Hoist(),
    Defer(),
    Cse(),
    Dce(),
    Fuse(),
    Autodiff(),
    Fold(),
    Simplify(),
    Cse(),
    Defer(),
    Cse(),
    Dce(),
)
# What the planner gets: it chooses what waits in memory, and results for all steps of a loop, once
# they are there, can't be made again step by step.
PLANNED: tuple[Pass, ...] = tuple(p for p in DEFAULT if not isinstance(p, Hoist | Defer))

__all__ = [
    "DEFAULT",
    "PASSES",
    "PLANNED",
    "Autodiff",
    "Canonicalise",
    "Cse",
    "Dce",
    "Defer",
    "Fold",
    "Fuse",
    "Fusion",
    "Hoist",
    "Pass",
    "Rematerialise",
    "Restack",
    "Simplify",
    "Sink",
    "Stage",
    "Unroll",
    "parse_pipeline",
    "run_passes",
]
