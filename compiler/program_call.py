"""One JAX primitive that carries a graph: how our functions stand in a trace of JAX's.

`bp.grad`, `bp.vjp`, `bp.jvp` and the rest trace a function, make a graph of it and bind this
primitive. Under `bp.compile` the importer takes the graph out again, and the passes see it whole.
Anywhere else (called as it is, under `jax.jit`, `jax.vmap`, `jax.lax.scan`, or the user's own
`jax.grad`) the primitive expands itself in the same way and runs as ordinary JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.extend.core as jec
from jax.interpreters import ad, batching, mlir

from ..ir.fingerprint import fingerprint
from ..ir.graph import Graph, Node
from ..ir.jax_compat import (
    bind,
    manual_axes,
    mentions,
    on_no_mesh,
    out_avals,
    pvary,
    varying_axes,
)
from ..ir.ops.shard_map import meshes_of
from ..ir.ops.varying import varying
from ..ir.types import ArrayType
from ..passes import Autodiff, Canonicalise, Dce
from ..passes.autodiff import Forward
from ..runtime.lower import lowered
from ..runtime.xla import Jitted
from .python_call import calls_python

program_call_p = jec.Primitive("program_call")
program_call_p.multiple_results = True

# A program of up to this many nodes, none with regions, runs op by op: a compile costs more. Each
# op of a new shape is a compile too, so that a larger program is better off as one.
SMALL = 24


@dataclass(frozen=True, eq=False)
class Held:
    """A graph as a parameter of the primitive: compared by identity, which JAX's caches do.

    `is_plain`: calls are inlined and gradients expanded already.
    """

    graph: Graph
    is_plain: bool = False

    def __repr__(self) -> str:
        """What runs as a jaxpr, as JAX prints its own calls; one that needs a mesh by its name."""
        structs = [jax.ShapeDtypeStruct(v.type.shape, v.type.dtype) for v in self.graph.inputs]
        try:
            return str(jax.make_jaxpr(functools.partial(_expanded, held=self))(*structs))
        except NameError:  # of an axis
            return repr(self.graph)

    @functools.cached_property
    def plain(self) -> Graph:
        """The graph with calls inlined and gradients expanded, to be differentiated again."""
        return self.graph if self.is_plain else Dce()(plain(self.graph))

    @functools.cached_property
    def final(self) -> Graph:
        """The graph that runs: custom rules that no gradient has a use for are dropped."""
        return self.graph if self.is_plain else Dce()(plain(self.graph, outermost=True))


def plain(graph: Graph, *, outermost: bool = False) -> Graph:
    """Inline calls and expand gradients; see `Autodiff` for `outermost`."""
    return Autodiff(outermost)(Canonicalise()(graph))


def call_program(graph: Graph, *args: Any, is_plain: bool = False) -> list[Any]:
    """Run a graph on arrays or tracers."""
    if any(map(_is_traced, graph.walk())):
        graph, consts = _opened(graph if is_plain else Dce()(plain(graph)))
        args, is_plain = (*consts, *args), True
    meshes = tuple(map(mentions, meshes_of(graph)))
    held = Held(graph, is_plain)
    return program_call_p.bind(*args, held=held, meshes=meshes)  # type: ignore[no-any-return]


def _is_traced(node: Node) -> bool:
    """True for a constant of a custom rule that is a tracer: the rule closes over it."""
    return node.op.name == "constant" and isinstance(node.attrs["value"], jax.core.Tracer)


def _opened(graph: Graph) -> tuple[Graph, list[Any]]:
    """Return the graph with such constants as leading inputs, and them beside it."""
    found = [node for node in graph.nodes if _is_traced(node)]
    inputs = (*(node.output for node in found), *graph.inputs)
    rest = tuple(node for node in graph.nodes if node not in found)
    return replace(graph, inputs=inputs, nodes=rest), [node.attrs["value"] for node in found]


def _expanded(
    *args: Any, held: Held, outermost: bool = False, meshes: Sequence[Any] = ()
) -> list[Any]:
    """Bind each node by itself, with its own line."""
    types = [value.type for value in held.graph.outputs]
    outs = lowered(held.final if outermost else held.plain, types)(*args)
    if not (manual := manual_axes()):
        return outs
    axes = varying(held.graph, list(map(varying_axes, args)), manual)
    return [pvary(out, tuple(over)) for out, over in zip(outs, axes, strict=True)]


@dataclass(frozen=True)
class _Question:
    """A graph as a key; equal ones share an executable."""

    key: Hashable
    outermost: bool
    held: Held = field(compare=False)


@functools.lru_cache(maxsize=512)
def _executable(question: _Question) -> Callable[..., list[Any]]:
    run = functools.partial(_expanded, held=question.held, outermost=question.outermost)
    return Jitted(run)


def _program(args: Sequence[Any], held: Held, *, outermost: bool) -> Callable[..., list[Any]]:
    """Return what to call: node by node where a trace is under way or the graph is small.

    So it is where Python has to run a part of it. Else, on arrays, one program, compiled once for
    all graphs that compute the same.
    """
    traced = any(isinstance(arg, jax.core.Tracer) for arg in args)
    if traced or _is_small(held, outermost) or calls_python(held.graph):
        return functools.partial(_expanded, held=held, outermost=outermost)
    return _executable(_Question(fingerprint(held.graph), outermost, held))


def _is_small(held: Held, outermost: bool) -> bool:
    """True for few nodes without regions. A graph that is large already is not expanded to see."""
    if any(i >= SMALL for i, _ in enumerate(held.graph.walk())):
        return False
    graph = held.final if outermost else held.plain
    return len(graph.nodes) <= SMALL and not any(node.regions for node in graph.nodes)


def _run(*args: Any, held: Held, meshes: Sequence[Any]) -> list[Any]:
    """Run on arrays."""
    outs = _program(args, held, outermost=True)(*args)
    return [_as_array(x, v.type) for x, v in zip(outs, held.graph.outputs, strict=True)]


def _as_array(x: Any, type: ArrayType) -> Any:
    """Return what was passed through, a literal or an argument, as an array."""
    if isinstance(x, jax.Array) or type.dtype == jax.dtypes.float0:
        return x
    return bind("convert_element_type", [x], {"new_dtype": type.dtype, "weak_type": type.weak})[0]


def _abstract(*avals: Any, held: Held, meshes: Sequence[Any]) -> list[Any]:
    if not on_no_mesh():  # types tell of the mesh too
        return out_avals(functools.partial(_expanded, held=held), avals)
    types = [value.type for value in held.graph.outputs]
    return [jax.core.ShapedArray(t.shape, t.dtype, weak_type=t.weak) for t in types]


def _batched(
    axis: Any, args: Sequence[Any], dims: Sequence[Any], *, held: Held, meshes: Sequence[Any]
) -> tuple[list[Any], Any]:
    """Batch what we expand; the axis keeps its name, as the function may ask for it."""
    if all(dim is None for dim in dims):
        outs = program_call_p.bind(*args, held=held, meshes=meshes)
        return outs, [None] * len(outs)
    run = jax.vmap(
        _program(args, held, outermost=False),
        in_axes=tuple(dims),
        axis_name=axis.name,
        axis_size=axis.size,
        spmd_axis_name=axis.spmd_name,
    )
    outs = run(*args)
    return outs, [0] * len(outs)


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, held: Held, meshes: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """The user's own `jax.grad` or `jax.jvp` around ours: expanded with its tangents."""
    active = [
        not isinstance(t, ad.Zero) and value.type.is_inexact
        for t, value in zip(tangents, held.plain.inputs, strict=True)
    ]
    wanted = Forward().activity(held.plain, active)
    joint = Forward().region(held.plain, active, wanted)
    given = [t for t, is_active in zip(tangents, active, strict=True) if is_active]
    found = lowered(joint, [value.type for value in joint.outputs])(*primals, *given)
    outs, rest = found[: len(wanted)], iter(found[len(wanted) :])
    zeros = [ad.Zero(jax.typeof(out).to_tangent_aval()) for out in outs]
    return outs, [next(rest) if on else zero for on, zero in zip(wanted, zeros, strict=True)]


program_call_p.def_impl(_run)
program_call_p.def_abstract_eval(_abstract)
batching.fancy_primitive_batchers[program_call_p] = _batched
ad.primitive_jvps[program_call_p] = _jvp
mlir.register_lowering(
    program_call_p,
    mlir.lower_fun(functools.partial(_expanded, outermost=True), multiple_results=True),
)
