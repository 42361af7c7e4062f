"""Graph -> Graph, one pass a file or folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .autodiff import Autodiff
from .canonicalise import Canonicalise
from .convolutions import Convolutions
from .cse import Cse
from .dce import Dce
from .fold import Fold
from .fuse import Fuse, Fusion, Fusions
from .loops import Defer, Hoist, Strip, Unroll
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
            Strip,
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


def default(platform: str) -> tuple[Pass, ...]:
    """Return the passes for a platform such as "cpu" or "gpu"; `DEFAULT` are the CPU's."""
    return DEFAULT if platform == "cpu" else _without(DEFAULT, Convolutions)


def planned(platform: str) -> tuple[tuple[Pass, ...], ...]:
    """Return pipelines whose results a planner may start from as well.

    Results for all steps of a loop can't be made again step by step, nor those for all queries of
    an attention some at a time. The first pipeline leaves loops as they are and computes attention
    in more blocks, so that it is the planner's choice what waits in memory; the second does for
    strips of steps what the usual passes do for loops.
    """
    usual = default(platform)
    inside = [_inside(each) for each in usual]
    at = next(i for i, each in enumerate(usual) if isinstance(each, Hoist))
    lean = tuple(map(_lean, _without(usual, Hoist, Defer)))
    return lean, (*inside[:at], Strip(), *inside[at:])


def _without(passes: Sequence[Pass], *kinds: type[Any]) -> tuple[Pass, ...]:
    return tuple(each for each in passes if not isinstance(each, kinds))


def _lean(each: Pass) -> Pass:
    """The pass, with more and smaller blocks, whether a mask leaves out something or not."""
    return replace(each, block=64, blocks=16, gain=0.0) if isinstance(each, Fuse) else each


def _inside(each: Pass) -> Pass:
    """The pass, kept from loops around strips."""
    return replace(each, innermost=True) if isinstance(each, Hoist | Defer) else each


# Of these, that which leaves loops as they are, on a CPU.
PLANNED = planned("cpu")[0]

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
    "Strip",
    "Unroll",
    "default",
    "parse_pipeline",
    "planned",
    "run_passes",
]
