"""The table of all ops. An op exists because it stands in one of the tuples joined here."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from ..op import Op
from . import (
    chunked,
    collectives,
    contraction,
    control,
    cumulative,
    dialect,
    eigen,
    elementwise,
    factor,
    fourier,
    indexing,
    linalg,
    linear_call,
    ragged,
    random,
    reducers,
    reductions,
    shard_map,
    solves,
    sorting,
    special,
    structural,
    windows,
)
from .foreign import OPS as FALLBACK
from .foreign import foreign

__all__ = ["OPS", "foreign"]

ALL: tuple[Op, ...] = (
    *elementwise.OPS,
    *special.OPS,
    *structural.OPS,
    *reductions.OPS,
    *reducers.OPS,
    *cumulative.OPS,
    *indexing.OPS,
    *sorting.OPS,
    *windows.OPS,
    *contraction.OPS,
    *ragged.OPS,
    *linalg.OPS,
    *factor.OPS,
    *eigen.OPS,
    *fourier.OPS,
    *random.OPS,
    *control.OPS,
    *chunked.OPS,
    *collectives.OPS,
    *shard_map.OPS,
    *solves.OPS,
    *linear_call.OPS,
    *dialect.OPS,
    *FALLBACK,
)


def _by_name(ops: tuple[Op, ...]) -> Mapping[str, Op]:
    twice = [name for name, count in Counter(op.name for op in ops).items() if count > 1]
    if twice:
        raise ValueError(f"ops listed twice: {', '.join(twice)}")
    return MappingProxyType({op.name: op for op in ops})


OPS: Mapping[str, Op] = _by_name(ALL)
