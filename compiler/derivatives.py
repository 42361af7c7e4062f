"""`bp.vjp`, `bp.jvp` and `bp.linearize`: derivatives of a function at a point, as functions.

Each traces the function once, at the types of its arguments, and cuts a graph of it in two with
our own rules: what is computed now, and the linear map that is computed when its argument comes.
What the second part reads of the first are arrays that the returned function holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from ..ir.builder import Builder
from ..ir.errors import ArgumentError, DifferentiationError
from ..ir.graph import Graph
from ..ir.ops import OPS
from ..ir.types import ArrayType, is_inexact
from ..passes import Dce
from ..passes.autodiff import Forward, Reverse, linearised
from .diagnose import caller_line, check_results, defined_at, is_array, tracing
from .program_call import call_program, plain
from .record import imported


def vjp(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Evaluate `fun` and return with it its pullback, by reverse mode.

        y = f(x);  pullback: ct of y -> ct of x, that is ct^T J

    Args:
        fun: a function of arrays; takes and returns pytrees.
        primals: the point x, pytrees of arrays. Integers are accepted; their cotangent is float0.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.

    Returns:
        `(y, pullback)`, or `(y, pullback, aux)`. `pullback` takes cotangents with the tree,
        shapes and dtypes of y (float0 for integers) and returns a tuple, one tree for each
        primal. It is a pytree of the residuals that it holds, and may be called many times.

    Raises:
        ArgumentError: a primal is no array; or, from the pullback, a cotangent does not fit.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    point = _at(fun, primals, has_aux, "vjp")
    seeds = [is_inexact(t.dtype) for t in point.types] + [False] * point.aux_count
    split = Reverse().split(point.graph, point.active, seeds=seeds)
    found = call_program(Dce()(split.forward), *point.operands, is_plain=True)
    residuals = _residuals(split.residuals, point, found)
    linear = _Pullback(_weak_as(split.backward, point), point)
    return point.results(found, Partial(linear, residuals))


def linearize(fun: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Evaluate `fun` and return with it its derivative at this point, by forward mode.

        y = f(x);  linear: tangent of x -> tangent of y, that is J t

    What does not depend on the tangent is computed once.

    Args:
        fun: a function of arrays; takes and returns pytrees.
        primals: the point x, pytrees of arrays. Integers are accepted; their tangent is float0.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.

    Returns:
        `(y, linear)`, or `(y, linear, aux)`. `linear` takes tangents with the trees, shapes and
        dtypes of the primals (float0 for integers).

    Raises:
        ArgumentError: a primal is no array; or, from `linear`, a tangent does not fit.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    point = _at(fun, primals, has_aux, "linearize")
    first, second, kinds = linearised(point.graph, point.active)
    found = call_program(Dce()(first), *point.operands, is_plain=True)
    residuals = _residuals(kinds, point, found)
    return point.results(found, Partial(_Linear(second, point), residuals))


def jvp(
    fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False
) -> Any:
    """Evaluate `fun` and its derivative along `tangents`, by forward mode.

        y = f(x);  dy = J t

    Args:
        fun: a function of arrays; takes and returns pytrees.
        primals: tuple of pytrees of arrays, the arguments of `fun`.
        tangents: tuple of the same trees, shapes and dtypes; float0 for integers.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.

    Returns:
        `(y, dy)`, or `(y, dy, aux)`; dy of an integer output is float0.

    Raises:
        ArgumentError: tangents do not fit the primals.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, tuple | list):
            raise ArgumentError(
                f"jvp wants {name} as a tuple of arguments, got {type(given).__name__}\n"
                f"  at {caller_line()}; write bp.jvp(f, (x,), (t,))"
            )
    point = _at(fun, tuple(primals), has_aux, "jvp")
    leaves = _fitting(point.tree, point.primal_types, tuple(tangents), "jvp wants tangents")
    wanted = [is_inexact(t.dtype) for t in point.types] + [False] * point.aux_count
    joint = Forward().region(point.graph, point.active, wanted)
    found = call_program(Dce()(joint), *point.operands, *leaves, is_plain=True)
    count = len(point.graph.outputs)
    return point.results(found, point.tangent_tree(found[count:]))


@dataclass(frozen=True, eq=False)
class _Point:
    """A function traced at a point: its graph, what the graph reads, and the trees."""

    graph: Graph
    consts: Sequence[Any]
    leaves: Sequence[Any]
    tree: Any
    out_tree: Any
    aux_tree: Any
    has_aux: bool

    @property
    def operands(self) -> list[Any]:
        """Arguments of the graph."""
        return [*self.consts, *self.leaves]

    @property
    def primal_types(self) -> list[ArrayType]:
        """Types of the leaves of the primals."""
        return [value.type for value in self.graph.inputs[len(self.consts) :]]

    @property
    def active(self) -> list[bool]:
        """Which of the graph's inputs are differentiated by."""
        return [False] * len(self.consts) + [is_inexact(t.dtype) for t in self.primal_types]

    @property
    def aux_count(self) -> int:
        """Number of leaves that are not differentiated."""
        return int(self.aux_tree.num_leaves)

    @property
    def types(self) -> list[ArrayType]:
        """Types of the leaves of y."""
        return [value.type for value in self.graph.outputs[: self.out_tree.num_leaves]]

    def results(self, found: Sequence[Any], derivative: Any) -> Any:
        """`(y, derivative)`, or `(y, derivative, aux)`."""
        n, m = self.out_tree.num_leaves, self.aux_count
        y = jax.tree.unflatten(self.out_tree, found[:n])
        if not self.has_aux:
            return y, derivative
        return y, derivative, jax.tree.unflatten(self.aux_tree, found[n : n + m])

    def tangent_tree(self, found: Sequence[Any]) -> Any:
        """Tangents of y as its tree; float0 where y is an integer."""
        return jax.tree.unflatten(self.out_tree, _with_float0(self.types, found))


@dataclass(frozen=True, eq=False)
class _Pullback:
    """residuals, ct of y -> cts of the primals."""

    graph: Graph
    point: _Point

    def __call__(self, residuals: Sequence[Any], ct: Any) -> tuple[Any, ...]:
        """Apply it to a cotangent."""
        point = self.point
        given = _fitting(point.out_tree, point.types, ct, "the pullback wants cotangents")
        found = call_program(self.graph, *residuals, *given, is_plain=True)
        cts = _with_float0(point.primal_types, found)
        return jax.tree.unflatten(point.tree, cts)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class _Linear:
    """residuals, tangents of the primals -> tangent of y."""

    graph: Graph
    point: _Point

    def __call__(self, residuals: Sequence[Any], *tangents: Any) -> Any:
        """Apply it to tangents."""
        point = self.point
        given = _fitting(point.tree, point.primal_types, tangents, "linearize wants tangents")
        return point.tangent_tree(call_program(self.graph, *residuals, *given, is_plain=True))


def _at(fun: Callable[..., Any], primals: tuple[Any, ...], has_aux: bool, what: str) -> _Point:
    """Trace `fun` at the types of its arguments. Raises `ArgumentError`."""
    where = caller_line()
    if not callable(fun):
        raise ArgumentError(
            f"{what} wants a function, got {type(fun).__name__}\n  at {where}; Expected a callable "
            "value as the first argument"
        )
    with_paths, tree = jax.tree_util.tree_flatten_with_path(primals)
    paths = [f"args[{path[0].idx}]{jax.tree_util.keystr(path[1:])}" for path, _ in with_paths]
    leaves = [leaf for _, leaf in with_paths]
    for path, leaf in zip(paths, leaves, strict=True):
        if not is_array(leaf):
            raise ArgumentError(
                f"{what} of {defined_at(fun)} wants arrays, got {type(leaf).__name__} at "
                f"{path}, which is not a valid JAX type\n  at {where}; close over it, or bind it "
                "with functools.partial"
            )

    def flat(*xs: Any) -> tuple[Any, Any]:
        out = fun(*jax.tree.unflatten(tree, xs))
        return pair_of(fun, check_results(fun, out), has_aux, where)

    with tracing(fun):
        graph, consts, shapes = imported(fun, flat, leaves, paths)
    y, aux = map(jax.tree.structure, shapes)
    return _Point(plain(graph), consts, leaves, tree, y, aux, has_aux)


def pair_of(fun: Callable[..., Any], out: Any, has_aux: bool, where: str) -> tuple[Any, Any]:
    """Return what is differentiated, and aux. Raises `DifferentiationError` where there is none."""
    if not has_aux:
        return out, ()
    if not (isinstance(out, tuple | list) and len(out) == 2):
        raise DifferentiationError(
            f"has_aux=True wants {defined_at(fun)} to return a two-element tuple (loss, aux), got "
            f"{type(out).__name__}\n  at {where}"
        )
    return out[0], out[1]


def _residuals(kinds: Sequence[tuple[str, int]], point: _Point, found: Sequence[Any]) -> list[Any]:
    """Collect what a linear part reads: the graph's own operands, and what it stored."""
    count = len(point.graph.outputs)
    given = point.operands
    return [given[i] if kind == "input" else found[count + i] for kind, i in kinds]


def _weak_as(graph: Graph, point: _Point) -> Graph:
    """Give cotangents of weak primals, which are Python numbers, weak types, as in JAX."""
    types = [t for t in point.primal_types if is_inexact(t.dtype)]
    if not any(t.weak for t in types):
        return graph
    b = Builder(OPS)
    b.nodes.extend(graph.nodes)
    outputs = [
        b.one("convert_element_type", v, new_dtype=t.dtype, weak_type=True) if t.weak else v
        for v, t in zip(graph.outputs, types, strict=True)
    ]
    return b.graph(graph.name, graph.inputs, outputs)


def _fitting(tree: Any, types: Sequence[ArrayType], given: Any, what: str) -> list[Any]:
    """Return the leaves of inexact type, checked. Raises `ArgumentError`."""
    leaves, found = jax.tree.flatten(given)
    if found != tree:
        raise ArgumentError(
            f"{what} with the tree {tree}, got {found}: unexpected tree structure\n"
            f"  at {caller_line()}; give one array for each leaf"
        )
    return [
        np.asarray(leaf, type.dtype) if isinstance(leaf, float | complex) else leaf
        for leaf, type in zip(leaves, types, strict=True)
        if _fits(leaf, type, what) and is_inexact(type.dtype)
    ]


def _fits(leaf: Any, type: ArrayType, what: str) -> bool:
    """True when shape and dtype are those of `type`, or the leaf is a Python number of its kind."""
    dtype = type.dtype if is_inexact(type.dtype) else jax.dtypes.float0
    if is_array(leaf) or getattr(leaf, "dtype", None) == jax.dtypes.float0:
        found = ArrayType(np.shape(leaf), np.dtype(jax.dtypes.result_type(leaf)))
        loose = isinstance(leaf, float | complex) and is_inexact(type.dtype)
        ignored = dtype != type.dtype and "cotangents" in what  # JAX looks at the shape alone
        if found.shape == type.shape and (found.dtype == dtype or loose or ignored):
            return True
    else:
        found = leaf.__class__.__name__
    raise ArgumentError(
        f"{what} of type {ArrayType(type.shape, np.dtype(dtype))}, got {found}: "
        f"unexpected JAX type\n  at {caller_line()}; cast or reshape it"
        + ("; np.zeros(shape, jax.dtypes.float0) for integers" if dtype != type.dtype else "")
    )


def _with_float0(types: Sequence[ArrayType], found: Sequence[Any]) -> list[Any]:
    """Put float0 zeros where a type is not inexact."""
    rest = iter(found)
    return [
        next(rest) if is_inexact(t.dtype) else np.zeros(t.shape, jax.dtypes.float0) for t in types
    ]
