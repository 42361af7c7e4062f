"""One case's derivatives, ours and JAX's, in one compiled program: compiling takes the time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backpass.ir.evaluate import evaluate
from ops.harness import Case, backward_graph, gradient_graph, operands, primal

STEP = 1e-6


class Derivatives(NamedTuple):
    """At cotangents `cts` and along `directions`; `second` by the operands and by the `cts`."""

    cts: Sequence[Any]
    directions: Sequence[Any]
    width: float
    ahead: Sequence[Any]
    behind: Sequence[Any]
    first: Sequence[Any]
    second: Sequence[Any]
    jax_first: Sequence[Any]
    jax_second: Sequence[Any]


def derivatives(case: Case) -> Derivatives:
    rng, xs, f = np.random.default_rng(0), operands(case), primal(case)
    cts = [case.seen(like(rng, out)) for out in jax.eval_shape(f, *xs)]
    directions = [case.within(like(rng, x)) for x in xs]
    graph = backward_graph(case)
    both = case.peer and case.orders > 1
    wrt = [*case.active, *range(len(case.args), len(graph.inputs))]
    twice = gradient_graph(graph, wrt) if both else graph

    def jax_first(xs, cts):
        return jax.vjp(f, *xs)[1](tuple(cts))

    def jax_second(xs, cts, directions):
        by_xs, by_cts = jax.vjp(jax_first, xs, cts)[1](tuple(directions))
        return [*by_xs, *by_cts]

    @jax.jit
    def program(args, xs, cts, directions):
        def moved(step):
            return f(*(x + step * d for x, d in zip(xs, directions, strict=True)))

        return (
            moved(STEP),
            moved(-STEP),
            evaluate(graph, *args, *cts),
            evaluate(twice, *args, *cts, *directions) if both else (),
            jax_first(xs, cts) if case.peer else (),
            jax_second(xs, cts, directions) if both else (),
        )

    cts, directions = list(map(jnp.asarray, cts)), list(map(jnp.asarray, directions))
    return Derivatives(cts, directions, 2 * STEP, *program(case.args, xs, cts, directions))


def like(rng: np.random.Generator, x: Any) -> np.ndarray:
    """A random array of the shape and dtype of x."""
    noise = rng.normal(size=x.shape)
    if jnp.issubdtype(x.dtype, np.complexfloating):
        noise = noise + 1j * rng.normal(size=x.shape)
    return np.asarray(noise).astype(x.dtype)


def inner(xs: Sequence[Any], ys: Sequence[Any]) -> float:
    """Real part of the bilinear product, JAX's pairing of cotangents and tangents."""
    pairs = zip(xs, ys, strict=True)
    return float(sum(np.sum(np.asarray(x) * np.asarray(y)).real for x, y in pairs))
