"""One traced program: what a function is for one signature of its arguments."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax

from ..ir.graph import Graph, Value
from ..ir.spread import spread
from ..ir.types import ArrayType, Spec
from ..passes import Pass, Stage, run_passes
from ..passes.rewriter import substituted
from .arguments import Arguments, Signature
from .diagnose import tracing
from .importer import import_jaxpr
from .state import watched
from .uneven import check_constraints, evenly


@dataclass(frozen=True)
class Program:
    """A traced function and what the passes made of it."""

    name: str
    signature: Signature
    jaxpr: Any
    graph: Graph
    out_shapes: Any
    trace_seconds: float

    @property
    def out_types(self) -> list[ArrayType]:
        """Types of the output leaves, as traced."""
        return [value.type for value in self.graph.outputs]

    @property
    def holds_tracers(self) -> bool:
        """True when the function closes over values of an outer trace: use once, do not keep."""
        return any(isinstance(const, jax.core.Tracer) for const in self.jaxpr.consts)

    def stages(self, passes: Sequence[Pass], check: bool) -> tuple[Stage, ...]:
        """Run the passes; `traced` comes first."""
        return run_passes(self.graph, passes, seconds=self.trace_seconds, check=check)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Put off Python's cyclic garbage collection: tracing makes many objects that all stay.

    Each full collection would walk all of them again; without it the 48-layer GPT of
    `benchmarks/tracing.py` is traced, differentiated and bound in a quarter less time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trace_program(
    arguments: Arguments,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    specs: tuple[Spec, ...] = (),
) -> Program:
    """Trace a function at the types of these arguments and import it.

    `specs` tell how the leaves lie on a mesh, and so how all values do; see `ir/spread.py`.
    """
    signature = replace(arguments.signature(args, kwargs), specs=specs)
    flat = arguments.flat(args, kwargs, signature.tree)
    start = perf_counter()
    with tracing(arguments.fun), evenly(arguments.fun), watched():
        jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*signature.structs)
    graph = import_jaxpr(jaxpr, name, signature.paths)
    check_constraints(graph)
    graph = spread(_lying(graph, specs))
    return Program(name, signature, jaxpr, graph, shapes, perf_counter() - start)


def _lying(graph: Graph, specs: Sequence[Spec]) -> Graph:
    """Return the graph with inputs that are told how they lie on a mesh."""
    if not any(specs):
        return graph
    pairs = zip(graph.inputs, specs, strict=True)
    new = {old: Value(old.type.spread(spec), old.name) for old, spec in pairs}
    nodes = tuple(substituted(node, new) for node in graph.nodes)
    return Graph(
        graph.name, tuple(new.values()), nodes, tuple(new.get(v, v) for v in graph.outputs)
    )
