"""Programs by recording: a function run on concrete values, each equation noted as it happens.

Staging runs the user's Python on abstract arrays, which have no value: `if x > 0`, `int(x)` or
`x[mask]` end it. Outside of `jax.jit` JAX differentiates such a function nevertheless, and so do
we: it is run once more, every primitive evaluated at once, and the equations on the path that
Python took are staged beside. What comes out is a jaxpr like any other, valid at these values.

    Recorded     a value (concrete, in the trace outside) and the same as staged
    process_*    evaluate and stage a primitive; what has no derivative is a plain value again

Source: define-by-run, Tokui et al., "Chainer", 2015; a tape of values as in `jax.linearize`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import linear_util as lu
from jax.extend.core import set_current_trace
from jax.interpreters import ad

from ..ir.graph import Graph
from ..ir.jax_compat import backward_result, backward_rule, current_trace, is_library
from ..ir.op import no_gradient
from ..ir.ops import OPS
from ..ir.types import is_inexact
from .custom_rules import instantiated
from .diagnose import CONCRETE, in_place_of
from .importer import import_open
from .python_call import Called, python_call

UNKNOWN: Any = object()


def imported(
    fun: Callable[..., Any], flat: Callable[..., Any], leaves: Sequence[Any], paths: Sequence[str]
) -> tuple[Graph, Sequence[Any], Any]:
    """`(graph, constants, shapes)` of `flat`, which stands in for `fun`: staged, else recorded.

    Raises what JAX raises where Python asks for a value that is not there: under `jax.jit`, say.
    """
    try:
        return _imported(fun, flat, leaves, paths)
    except CONCRETE:
        if not any(map(is_concrete, leaves)):
            raise
    with jax.ensure_compile_time_eval():
        values = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in leaves]
    return _imported(fun, recording(flat, values, current_trace()), leaves, paths)


def _imported(
    fun: Callable[..., Any], flat: Callable[..., Any], leaves: Sequence[Any], paths: Sequence[str]
) -> tuple[Graph, Sequence[Any], Any]:
    jaxpr, shapes = jax.make_jaxpr(in_place_of(fun, flat), return_shape=True)(*leaves)
    return *import_open(jaxpr, getattr(fun, "__name__", "fun"), paths), shapes


def is_concrete(x: Any) -> bool:
    """True for what has a value now: arrays, numbers, and tracers that carry one."""
    return not isinstance(x, jax.core.Tracer) or x.to_concrete_value() is not None


def recording(fun: Callable[..., Any], values: Sequence[Any], below: Any) -> Callable[..., Any]:
    """Return `fun` to be staged, its leading arguments known by `values` of the trace `below`.

    Further arguments are unknown: what depends on them is staged alone.
    """

    @functools.wraps(fun)
    def run(*args: Any) -> Any:
        trace = Recorder(current_trace(), below)
        known = [*values, *[UNKNOWN] * (len(args) - len(values))]
        given = [
            Recorded(trace, x, value) if isinstance(x, jax.core.Tracer) else x
            for x, value in zip(args, known, strict=True)
        ]
        with set_current_trace(trace):
            return jax.tree.map(trace.staged, fun(*given))

    return run


class Recorded(jax.core.Tracer):  # type: ignore[type-arg]
    """An array that may depend on what is differentiated: its value, and the same as staged."""

    __slots__ = ("held_staged", "held_value")

    def __init__(self, trace: Recorder, staged: Any, value: Any) -> None:
        """Of the trace that made it."""
        super().__init__(trace, jax.typeof(staged))
        self.held_staged, self.held_value = staged, value

    def to_concrete_value(self) -> Any:
        """What Python sees of it; None where there is nothing to see."""
        value = self.held_value
        if value is UNKNOWN:
            return None
        return value.to_concrete_value() if isinstance(value, jax.core.Tracer) else value


class Recorder(jax.core.Trace):
    """Evaluates each primitive in the trace `below`, and stages it in the trace `staging`."""

    def __init__(self, staging: Any, below: Any) -> None:
        """Between two traces of JAX's, which do what there is to do."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._staging, self._below = staging, below

    def owns(self, x: Any) -> bool:
        """True for what was made here."""
        return isinstance(x, Recorded) and x._trace is self

    def value(self, x: Any) -> Any:
        """Return x as the trace below has it."""
        return x.held_value if self.owns(x) else x

    def staged(self, x: Any) -> Any:
        """Return x as the staging trace has it, where all that is not ours is a constant."""
        return x.held_staged if self.owns(x) else x

    def stage_value(self, val: Any) -> Any:
        """Return what is recorded as it is."""
        return val if self.owns(val) else self._below.stage_value(val)

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: Any, /) -> Any:
        """Evaluate and stage an equation."""
        many = primitive.multiple_results

        def run(trace: Any, xs: Sequence[Any]) -> Sequence[Any]:
            out = trace.process_primitive(primitive, xs, params)
            return out if many else [out]

        op = OPS.get(primitive.name)
        flat = op is not None and op.vjp is no_gradient
        outs = self._both(args, run, run, flat=flat)
        return outs if many else outs[0]

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Sequence[Any], /, **options: Any
    ) -> Any:
        """Evaluate and stage a function with the user's rule, which stays with it."""
        values = list(map(self.value, args))

        def evaluate(trace: Any, xs: Sequence[Any]) -> Any:
            renewed(fun, jvp)
            return trace.process_custom_jvp_call(primitive, fun, jvp, xs, **options)

        def stage(trace: Any, xs: Sequence[Any]) -> Any:
            renewed(fun, jvp)
            parts = (self._part(f, values) for f in (fun, jvp))
            return trace.process_custom_jvp_call(primitive, *parts, xs, **options)

        return self._both(args, evaluate, stage)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Sequence[Any], /, **options: Any
    ) -> Any:
        """As of a custom JVP; the backward part knows the residuals, not the cotangents."""
        values = list(map(self.value, args))
        pairs = [x for value in values for x in (value, True)]  # each is perturbed

        def residuals() -> list[Any]:
            renewed(fwd)
            with set_current_trace(self._below):
                found = iter(fwd.call_wrapped(*pairs))
            _, _, forwarded = options["out_trees"]()
            return [next(found) if i is None else values[i] for i in forwarded]

        def evaluate(trace: Any, xs: Sequence[Any]) -> Any:
            renewed(fun, fwd)
            return trace.process_custom_vjp_call(primitive, fun, fwd, bwd, xs, **options)

        def stage(trace: Any, xs: Sequence[Any]) -> Any:
            renewed(fun, fwd)
            parts = (
                self._part(fun, values),
                self._part(fwd, pairs),
                self._backward(bwd, residuals, values),
            )
            return trace.process_custom_vjp_call(primitive, *parts, xs, **options)

        return self._both(args, evaluate, stage)

    def _both(self, args: Sequence[Any], evaluate: Run, stage: Run, *, flat: bool = False) -> Any:
        """Evaluate and stage; results without a derivative are plain values, as in JAX.

        What has no results, a print say, is evaluated alone.
        """
        if not any(map(self.owns, args)):
            return evaluate(self._below, args)
        values = list(map(self.value, args))
        known = not any(x is UNKNOWN for x in values)
        found = evaluate(self._below, values) if known else None
        if found is not None and (flat or not found):
            return found
        staged = stage(self._staging, list(map(self.staged, args)))
        if found is None:
            return [Recorded(self, x, UNKNOWN) for x in staged]
        return [
            Recorded(self, x, value) if is_inexact(x.dtype) else value
            for x, value in zip(staged, found, strict=True)
        ]

    def _backward(self, bwd: Any, residuals: Any, values: Sequence[Any]) -> Any:
        """Return a backward part: recorded, else called when the cotangents have values."""
        part = self._part(bwd, residuals)
        types = [jax.typeof(value).to_tangent_aval() for value in values]
        slopes = [i for i, aval in enumerate(types) if is_inexact(aval.dtype)]

        def call(*args: Any) -> Any:
            renewed(bwd)
            found = backward_rule(bwd, args)
            return [instantiated(found[i]) for i in slopes]

        def run(*args: Any) -> Any:
            try:
                return part.call_wrapped(*args)
            except CONCRETE as error:
                called = Called(call, [types[i] for i in slopes], error)
                found = dict(zip(slopes, python_call(called, args), strict=True))
                return backward_result([found.get(i, ad.Zero(t)) for i, t in enumerate(types)])

        return lu.wrap_init(run, debug_info=bwd.debug_info)

    def _part(self, fun: Any, values: Any) -> Any:
        """Return a part of a custom rule, recorded at `values`; JAX's own are staged, and shared.

        `values` may be a function that computes them, called when they are wanted.
        """
        if is_library(fun):
            return fun

        def run(*args: Any) -> Any:
            known = values() if callable(values) else values
            renewed(fun)
            return recording(fun.call_wrapped, known, self._below)(*args)

        return lu.wrap_init(run, debug_info=fun.debug_info)


Run = Callable[[Any, Sequence[Any]], Any]


def renewed(*funs: Any) -> None:
    """Let functions of JAX's run again: each stores the tree of its result, once."""
    for fun in funs:
        for store in fun.stores:
            if store is not None:
                store.reset()
