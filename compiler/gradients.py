"""`bp.grad` and `bp.value_and_grad`: functions that ask for gradients by our own chain rules.

A call traces the function, imports it and binds one primitive, `gradients`, that carries the
graph. Under `bp.compile` it becomes a `gradients` node, which `passes/autodiff` expands into the
joint graph. Anywhere else (called as it is, under `jax.jit`, `jax.vmap`, `jax.lax.scan`, or the
user's own `jax.grad`) the primitive expands itself in the same way and runs as ordinary JAX.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jec
import numpy as np
from jax.interpreters import ad, batching, mlir

from ..ir.errors import ArgumentError, DifferentiationError
from ..ir.fingerprint import fingerprint
from ..ir.graph import Graph, Node, Value
from ..ir.jax_compat import manual_axes, mentions, on_no_mesh, out_avals, pvary, varying_axes
from ..ir.ops import OPS
from ..ir.ops.shard_map import meshes_of
from ..ir.ops.varying import varying
from ..ir.types import ArrayType, is_complex, is_inexact, type_of
from ..passes import Autodiff, Canonicalise, Dce
from ..runtime.lower import lowered
from .diagnose import caller_line, check_results, defined_at, in_place_of, is_array, tracing
from .importer import import_open

gradients_p = jec.Primitive("gradients")
gradients_p.multiple_results = True


@dataclass(frozen=True, eq=False)
class Held:
    """A graph as a parameter of the primitive: compared by identity, which JAX's caches do."""

    graph: Graph

    def __repr__(self) -> str:
        """Name and size of the graph."""
        return repr(self.graph)


def gradients_graph(graph: Graph, wrt: tuple[int, ...]) -> Graph:
    """Return a graph of one `gradients` node that differentiates `graph`."""
    inputs = tuple(Value(value.type, value.name) for value in graph.inputs)
    outputs = tuple(map(Value, _types(graph, wrt)))
    node = Node(OPS["gradients"], inputs, outputs, {"wrt": wrt}, (graph,))
    return Graph(f"grad_{graph.name}", inputs, (node,), node.outputs)


def _expanded(*args: Any, held: Held, wrt: tuple[int, ...], meshes: Any = ()) -> list[Any]:
    """Run the joint graph of forward and backward nodes."""
    joint = gradients_graph(held.graph, wrt)
    for step in (Canonicalise(), Autodiff(), Dce()):
        joint = step(joint)
    outs = lowered(joint, _types(held.graph, wrt))(*args)
    return list(map(pvary, outs, _varying(held.graph, wrt, args)))


def _types(graph: Graph, wrt: tuple[int, ...]) -> tuple[ArrayType, ...]:
    """Types of the outputs and the gradients; those of weak inputs are weak, as in JAX."""
    return OPS["gradients"].shape(graph.inputs, {"wrt": wrt}, (graph,))


def _varying(graph: Graph, wrt: tuple[int, ...], args: Sequence[Any]) -> Sequence[Any]:
    """Mesh axes that the outputs and the gradients vary over, inside `jax.shard_map`."""
    question = gradients_graph(graph, wrt)
    manual = manual_axes()
    if not manual:
        return [()] * len(question.outputs)
    return varying(question, list(map(varying_axes, args)), manual)


@dataclass(frozen=True)
class _Question:
    """A graph and what to differentiate it by, as a key; equal ones share an executable."""

    key: Hashable
    wrt: tuple[int, ...]
    held: Held = field(compare=False)


@functools.lru_cache(maxsize=512)
def _executable(question: _Question) -> Callable[..., list[Any]]:
    return jax.jit(functools.partial(_expanded, held=question.held, wrt=question.wrt))


def _run(*args: Any, held: Held, wrt: tuple[int, ...], meshes: Any) -> list[Any]:
    """Run on arrays: one program, compiled once for all graphs that compute the same."""
    question = _Question(fingerprint(held.graph), wrt, held)
    return _executable(question)(*args)


def _abstract(*avals: Any, held: Held, wrt: tuple[int, ...], meshes: Any) -> list[Any]:
    types = _types(held.graph, wrt)
    if not on_no_mesh():  # types tell of the mesh too
        return out_avals(functools.partial(_expanded, held=held, wrt=wrt), avals)
    return [jax.core.ShapedArray(t.shape, t.dtype, weak_type=t.weak) for t in types]


def _batched(
    axis: Any, args: Sequence[Any], dims: Sequence[Any], **params: Any
) -> tuple[list[Any], Any]:
    """Batch what we expand; the axis keeps its name, as the function may ask for it."""
    if all(dim is None for dim in dims):
        outs = gradients_p.bind(*args, **params)
        return outs, [None] * len(outs)
    run = jax.vmap(
        functools.partial(_expanded, **params),
        in_axes=tuple(dims),
        axis_name=axis.name,
        axis_size=axis.size,
        spmd_axis_name=axis.spmd_name,
    )
    outs = run(*args)
    return outs, [0] * len(outs)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    """The user's own `jax.grad` or `jax.jvp` around ours: JAX differentiates what we expanded."""
    run = functools.partial(_expanded, **params)
    return jax.jvp(run, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


gradients_p.def_impl(_run)
gradients_p.def_abstract_eval(_abstract)
batching.fancy_primitive_batchers[gradients_p] = _batched
ad.primitive_jvps[gradients_p] = _jvp
mlir.register_lowering(gradients_p, mlir.lower_fun(_expanded, multiple_results=True))


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates `fun` and the gradient of its first output.

    Args:
        fun: returns a scalar of floating dtype, or with `has_aux` a pair of it and any pytree.
        argnums: positions of the arguments to differentiate by; pytrees of floating arrays.
        has_aux: `fun` returns `(loss, aux)`.
        holomorphic: `fun` is holomorphic; inputs and output are complex.
        allow_int: integer and boolean inputs are accepted; their gradient is float0.

    Returns:
        A function with the signature of `fun` that returns `(loss, gradients)`, or
        `((loss, aux), gradients)`; gradients have the tree of the argument, or are a tuple of
        such trees when `argnums` is a sequence.

    Raises:
        DifferentiationError: the loss is no scalar, or an input cannot be differentiated by.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    if not callable(fun):
        raise ArgumentError(
            f"grad wants a function, got {type(fun).__name__}\n  at {caller_line()}; write "
            "bp.grad(f)(x), not bp.grad(f(x))"
        )
    positions = _positions(argnums)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        where = caller_line()
        chosen = _chosen(fun, args, positions, where)
        leaves, tree = jax.tree.flatten(chosen)
        paths = _paths(chosen, [i % len(args) for i in positions])
        _check_inputs(fun, leaves, paths, holomorphic, allow_int, where)

        def flat(*xs: Any) -> tuple[Any, Any]:
            full = list(args)
            for i, x in zip(positions, jax.tree.unflatten(tree, xs), strict=True):
                full[i] = x
            return _loss_and_aux(fun, check_results(fun, fun(*full, **kwargs)), has_aux, where)

        with tracing(fun):
            jaxpr, shapes = jax.make_jaxpr(in_place_of(fun, flat), return_shape=True)(*leaves)
        _check_loss(fun, shapes[0], holomorphic, where)
        graph, consts = import_open(jaxpr, getattr(fun, "__name__", "fun"), paths)
        wrt = [i for i, x in enumerate(leaves) if is_inexact(type_of(x).dtype)]
        at = tuple(len(consts) + i for i in wrt)
        meshes = tuple(map(mentions, meshes_of(graph)))
        with tracing(fun):
            found = gradients_p.bind(*consts, *leaves, held=Held(graph), wrt=at, meshes=meshes)
        count = len(found) - len(wrt)
        given = dict(zip(wrt, found[count:], strict=True))
        grads = [given[i] if i in given else _float0(x) for i, x in enumerate(leaves)]
        loss, aux = jax.tree.unflatten(jax.tree.structure(shapes), found[:count])
        trees = jax.tree.unflatten(tree, grads)
        value = (loss, aux) if has_aux else loss
        return value, trees if np.iterable(argnums) else trees[0]

    return wrapped


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates the gradient of `fun`; see `value_and_grad`.

    Returns:
        A function that returns gradients, or `(gradients, aux)` with `has_aux`.
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def _float0(x: Any) -> Any:
    return np.zeros(np.shape(x), jax.dtypes.float0)


def _positions(argnums: Any) -> tuple[int, ...]:
    """Return `argnums` as a tuple. Raises `ArgumentError` for what is no integer."""
    try:
        return tuple(map(operator.index, argnums if np.iterable(argnums) else (argnums,)))
    except TypeError:
        raise ArgumentError(
            f"argnums wants an integer or a sequence of integers, got {argnums!r}\n"
            f"  at {caller_line()}; give the positions of the arguments to differentiate by"
        ) from None


def _paths(chosen: Sequence[Any], positions: Sequence[int]) -> list[str]:
    """Paths of the leaves of the chosen arguments: `args[1]['w']`."""
    return [
        f"args[{i}]{jax.tree_util.keystr(path)}"
        for i, tree in zip(positions, chosen, strict=True)
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def _chosen(
    fun: Callable[..., Any], args: Sequence[Any], positions: Sequence[int], where: str
) -> tuple[Any, ...]:
    for i in positions:
        if not -len(args) <= i < len(args):
            raise ArgumentError(
                f"argnums={i} needs a positional argument at that place, got {len(args)} "
                f"positional arguments\n  at {where}; differentiate by arguments that are passed "
                "by position"
            )
    if len({i % len(args) for i in positions}) < len(positions):
        raise ArgumentError(
            f"argnums={tuple(positions)} names an argument twice\n  at {where}; name each once"
        )
    return tuple(args[i] for i in positions)


def _check_inputs(
    fun: Callable[..., Any],
    leaves: Sequence[Any],
    paths: Sequence[str],
    holomorphic: bool,
    allow_int: bool,
    where: str,
) -> None:
    for leaf, path in zip(leaves, paths, strict=True):
        if not is_array(leaf):
            raise ArgumentError(
                f"grad of {defined_at(fun)} wants arrays, got {type(leaf).__name__} at "
                f"{path}\n  at {where}; pass it as another argument, or close over it"
            )
        _check_dtype(fun, type_of(leaf), path, holomorphic, allow_int, where)


def _check_dtype(
    fun: Callable[..., Any],
    kind: ArrayType,
    path: str,
    holomorphic: bool,
    allow_int: bool,
    where: str,
) -> None:
    if holomorphic and not is_complex(kind.dtype):
        wanted, todo = "complex inputs with holomorphic=True", "cast the input"
    elif not is_inexact(kind.dtype) and not allow_int:
        wanted = "floating inputs"
        todo = "cast it to a floating dtype, leave it out of argnums, or pass allow_int=True"
    else:
        return
    raise DifferentiationError(
        f"grad of {defined_at(fun)} wants {wanted}, got {kind} at {path}\n  at {where}; {todo}"
    )


def _loss_and_aux(fun: Callable[..., Any], out: Any, has_aux: bool, where: str) -> tuple[Any, Any]:
    if not has_aux:
        return out, ()
    if not (isinstance(out, tuple | list) and len(out) == 2):
        raise DifferentiationError(
            f"has_aux=True wants {defined_at(fun)} to return a pair (loss, aux), got "
            f"{type(out).__name__}\n  at {where}"
        )
    return out[0], out[1]


def _check_loss(fun: Callable[..., Any], loss: Any, holomorphic: bool, where: str) -> None:
    wanted = f"grad wants {defined_at(fun)} to return a scalar loss"
    leaves = jax.tree.leaves(loss)
    if len(leaves) != 1 or leaves[0] is not loss:
        found = f"a {type(loss).__name__} of {len(leaves)} arrays" if leaves else "no array"
        todo = "return the loss alone, or (loss, aux) with has_aux=True"
        raise DifferentiationError(f"{wanted}, got {found}\n  at {where}; {todo}")
    kind = type_of(loss)
    if kind.shape:
        todo = "reduce it with .mean() or .sum(), or differentiate one element of it"
        raise DifferentiationError(f"{wanted}, got {kind}\n  at {where}; {todo}")
    if not is_inexact(kind.dtype) or (is_complex(kind.dtype) and not holomorphic):
        todo = "return a real floating number, or pass holomorphic=True for a complex one"
        raise DifferentiationError(f"{wanted} of floating dtype, got {kind}\n  at {where}; {todo}")
