"""One traced program: what a function is for one signature of its arguments."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import jax

from ..ir.graph import Graph, Value
from ..ir.jax_compat import on_no_mesh, struct_of, trace_context
from ..ir.spread import spread
from ..ir.types import ArrayType, Spec, type_of
from ..passes import Pass, Stage, run_passes
from ..passes.rewriter import substituted
from .diagnose import check_results, in_place_of, not_an_array, tracing
from .importer import import_jaxpr
from .state import watched
from .uneven import check_constraints, evenly


@dataclass(frozen=True)
class Signature:
    """What decides whether a program can be used again: leaf types, tree, static values.

    `context` is JAX's own: x64, matmul precision, the mesh and the like. `specs` tell how the
    leaves lie on a mesh, or are empty.
    """

    paths: tuple[str, ...]
    types: tuple[ArrayType, ...]
    tree: Any
    static: tuple[tuple[str, Hashable], ...]
    context: Hashable = None
    placed: tuple[Any, ...] = ()
    specs: tuple[Spec, ...] = ()

    @cached_property
    def structs(self) -> list[jax.ShapeDtypeStruct]:
        """The leaves as `jax.ShapeDtypeStruct`s; on a mesh, with what their types tell of it."""
        if self.placed:
            return list(self.placed)
        return [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak) for t in self.types]


@dataclass(frozen=True)
class Arguments:
    """How a call's arguments divide into arrays and static values."""

    fun: Callable[..., Any]
    static_positions: frozenset[int]
    static_names: frozenset[str]

    def signature(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature:
        """Signature of a call. Raises `ArgumentError` for a leaf that is no array."""
        dynamic, static = self.divide(args, kwargs)
        leaves, tree = jax.tree_util.tree_flatten_with_path(dynamic)
        paths = tuple(path_text(path) for path, _ in leaves)
        types = tuple(self._type(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True))
        placed = () if on_no_mesh() else tuple(struct_of(leaf) for _, leaf in leaves)
        return Signature(paths, types, tree, static, trace_context(), placed)

    def listed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[tuple[str, Any]], Sequence[tuple[str, Any]]]:
        """Return the array leaves and the static values, each with its path."""
        dynamic, static = self.divide(args, kwargs)
        leaves = jax.tree_util.tree_leaves_with_path(dynamic)
        return [(path_text(path), leaf) for path, leaf in leaves], static

    def divide(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[dict[int, Any], dict[str, Any]], tuple[tuple[str, Hashable], ...]]:
        """Return `((arrays by position, arrays by name), static values)`."""
        positional = {i: x for i, x in enumerate(args) if i not in self.static_positions}
        named = {k: x for k, x in kwargs.items() if k not in self.static_names}
        static = [(f"args[{i}]", args[i]) for i in sorted(self.static_positions) if i < len(args)]
        static += [(k, kwargs[k]) for k in sorted(self.static_names) if k in kwargs]
        return (positional, named), tuple(static)

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any], tree: Any) -> Callable[..., Any]:
        """Return the function of the array leaves alone, static values as in this call."""

        def flat(*leaves: Any) -> Any:
            positional, named = jax.tree.unflatten(tree, leaves)
            full = [positional.get(i, x) for i, x in enumerate(args)]
            return check_results(self.fun, self.fun(*full, **{**kwargs, **named}))

        return in_place_of(self.fun, flat)

    def _type(self, path: str, leaf: Any) -> ArrayType:
        if isinstance(leaf, jax.core.Tracer):
            return type_of(leaf)
        try:
            return type_of(jax.typeof(leaf))
        except TypeError:
            raise not_an_array(self.fun, path, leaf) from None


def path_text(path: Any) -> str:
    """`args[0]['w']` for a leaf of a positional argument, `name['w']` for that of a named one.

    `path` is that in `(args, kwargs)`.
    """
    group, argument, *rest = path
    place = getattr(argument, "idx", None) if group.idx == 0 else None
    place = getattr(argument, "key", None) if place is None else place
    first = f"args[{place}]" if group.idx == 0 else str(place)
    return first + jax.tree_util.keystr(tuple(rest))


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

    Each full collection would walk all of them again; without it a 48-layer GPT is
    traced, differentiated and bound in a quarter less time.
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
