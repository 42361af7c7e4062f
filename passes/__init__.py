"""Graph -> Graph, one pass a file or folder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .autodiff import Autodiff
from .canonicalise import Canonicalise
from .convolutions import Convolutions
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
            Convolutions,
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
    Convolutions(),
    Cse(),
    Dce(),
)


def default(platform: str) -> tuple[Pass, ...]:
    """Return the passes for a platform such as "cpu" or "gpu"; `DEFAULT` are the CPU's."""
    if platform == "cpu":
        return DEFAULT
    return tuple(each for each in DEFAULT if not isinstance(each, Convolutions))


__all__ = [
    "DEFAULT",
    "PASSES",
    "Autodiff",
    "Canonicalise",
    "Convolutions",
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
    "default",
    "parse_pipeline",
    "run_passes",
]
