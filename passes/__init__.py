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
from .fuse import Fuse, Fusion, Fusions
from .loops import Defer, Hoist, Unroll
from .microbatch import Microbatch
from .pipeline import Pass, Stage, parse_pipeline, run_passes
from .precision import Accumulate, Autocast
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
            Hoist,
            Defer,
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
            Unroll,
            Autocast,
            Accumulate,
            Microbatch,
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
    Roll(),
    Fuse(),
    Autodiff(),
    Fold(),
    Simplify(),
    Convolutions(),
    Cse(),
    Defer(),
    Cse(),
    Dce(),
)


def default(platform: str, *, planned: bool = False) -> tuple[Pass, ...]:
    """Return the passes for a platform such as "cpu" or "gpu"; `DEFAULT` are the CPU's.

    With `planned` loops are left as they are, so that it is the planner's choice what waits in
    memory: results for all steps of a loop can't be made again step by step.
    """
    out: tuple[type[Any], ...] = () if platform == "cpu" else (Convolutions,)
    out += (Hoist, Defer) if planned else ()
    return tuple(each for each in DEFAULT if not isinstance(each, out))


# What the planner gets on a CPU.
PLANNED = default("cpu", planned=True)

__all__ = [
    "DEFAULT",
    "PASSES",
    "PLANNED",
    "Accumulate",
    "Autocast",
    "Autodiff",
    "Canonicalise",
    "Convolutions",
    "Cse",
    "Dce",
    "Defer",
    "Fold",
    "Fuse",
    "Fusion",
    "Fusions",
    "Hoist",
    "Microbatch",
    "Pass",
    "Rematerialise",
    "Restack",
    "Roll",
    "Simplify",
    "Sink",
    "Stage",
    "Unroll",
    "default",
    "parse_pipeline",
    "run_passes",
]
