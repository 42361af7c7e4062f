"""Passes as text in, expected text out."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np

from backpass.ir import Graph, parse, verify
from fuzz.interpret import run_graph


def graph(inputs: str, body: str) -> Graph:
    """`graph f(inputs) { body }`."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), "  ")
    found = parse(f"backpass.ir 1\n\ngraph f({inputs}) {{\n{lines}\n}}\n")
    verify(found)
    return found


def arguments(graph: Graph, seed: int = 0):
    """Numbers in (-1, 1), small integers and booleans for a graph's inputs."""
    rng = np.random.default_rng(seed)

    def draw(type):
        if jnp.issubdtype(type.dtype, jnp.inexact):
            return jnp.asarray(rng.uniform(-1, 1, type.shape), type.dtype)
        return jnp.asarray(rng.integers(0, 2, type.shape), type.dtype)

    return [draw(value.type) for value in graph.inputs]


def assert_same_values(found: Graph, expected: Graph, tolerance: float = 1e-6) -> None:
    """Equal types and equal numbers on the same arguments."""
    assert [v.type.strong() for v in found.outputs] == [v.type.strong() for v in expected.outputs]
    args = arguments(expected)
    for ours, theirs in zip(run_graph(found, *args), run_graph(expected, *args), strict=True):
        ours, theirs = (np.asarray(x).astype(np.float64) for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_rewrites(apply, inputs: str, before: str, after: str | None) -> None:
    """`apply` makes `after` of `before`; None for a graph that it has to leave as it is.

    Twice does what once does, and what does not change is the same object.
    """
    given = graph(inputs, before)
    text = str(given)
    found = apply(given)
    assert str(given) == text, "the argument is not changed"
    verify(found)
    assert_same_values(found, given)
    if after is None:
        assert found is given, f"unexpected rewrite:\n{found}"
        return
    expected = graph(inputs, after)
    assert found == expected, f"found:\n{found}\nexpected:\n{expected}"
    assert apply(found) is found
    assert apply(expected) is expected


def compiled(fun, *args):
    """The graph of a function as traced, without any pass."""
    import backpass as bp

    return bp.compile(fun).trace(*args).graph


def rewritten(apply, fun, *args):
    """What a pass tells of a function; what it makes of it gives the same numbers."""
    from backpass.passes import Canonicalise, Cse, Sink

    given = Cse()(Sink()(Canonicalise()(compiled(fun, *args))))
    found = apply(given)
    verify(found)
    for ours, theirs in zip(run_graph(found, *args), run_graph(given, *args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    return apply.report(given)


def ops(graph: Graph) -> list[str]:
    """Names of all ops, those of regions included."""
    return [node.op.name for node in graph.walk()]


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
