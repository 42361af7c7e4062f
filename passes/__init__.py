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
from .pipeline import Pass, Stage, parse_pipeline, run_passes
from .rematerialise import Rematerialise, Restack
from .roll import Roll
from .simplify import Simplify
from .sink import Sink

PASSES: Mapping[str, type[Any]] = MappingProxyType(
    {
        each.name: each
        for each in (
            Canonicalise,
            Sink,
            Roll,
            Fuse,
            Autodiff,
            Fold,
            Simplify,
            Cse,
            Dce,
            Restack,
            Rematerialise,
        )
    }
)
DEFAULT: tuple[Pass, ...] = (
    Canonicalise(),
    Sink(),
    Cse(),
    Dce(),
    Roll(),
    Fuse(),
    Autodiff(),
    Fold(),
    Simplify(),
    Cse(),
    Dce(),
)

__all__ = [
    "DEFAULT",
    "PASSES",
    "Autodiff",
    "Canonicalise",
    "Cse",
    "Dce",
    "Fold",
    "Fuse",
    "Fusion",
    "Pass",
    "Rematerialise",
    "Restack",
    "Roll",
    "Simplify",
    "Sink",
    "Stage",
    "parse_pipeline",
    "run_passes",
]
