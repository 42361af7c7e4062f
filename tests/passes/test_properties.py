"""Drawn graphs: every pipeline keeps values and verifies, and a clean-up pass does its work at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backpass.ir import OPS, Builder, Graph, Literal, Node, Value, evaluate, parse, verify
from backpass.ir.types import ArrayType
from backpass.passes import Autodiff, Canonicalise, Cse, Dce, Fold, Simplify
from fuzz.interpret import run_graph
from ir.graphs import graphs, patient
from passes.texts import arguments

CLEAN = (Canonicalise(), Fold(), Simplify(), Cse(), Dce())
PASSES = (*CLEAN, Autodiff())


def close(found, expected):
    """Close relative to the largest number, at the precision of the narrowest dtype."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (jnp.shape(ours), jnp.asarray(ours).dtype) == (
            jnp.shape(theirs), jnp.asarray(theirs).dtype
        )  # fmt: skip
        ours, theirs = (np.asarray(x).astype(np.float64) for x in (ours, theirs))
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
        np.testing.assert_allclose(ours, theirs, rtol=5e-2, atol=5e-2 * scale)


def exact(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("step", CLEAN, ids=lambda step: step.name)
@patient
@given(graph=graphs())
def test_a_pass(step, graph):
    text = str(graph)
    found = step(graph)
    verify(found)
    assert str(graph) == text, "its argument is not changed"
    assert step(found) is found, "a second run finds nothing"
    assert found is graph or str(found) != text, "no change is the same object"
    assert found.inputs == graph.inputs and found.name == graph.name
    assert parse(str(found)) == found
    if found is not graph:
        args = arguments(graph)
        same = close if step.name in ("canonicalise", "simplify") else exact
        run = evaluate if step.name == "fold" else run_graph  # JAX folds: to the last bit
        same(run(found, *args), run(graph, *args))


@patient
@given(graph=graphs(), steps=st.lists(st.sampled_from(PASSES), max_size=8))
def test_a_pipeline(graph, steps):
    found = graph
    for step in steps:
        found = step(found)
        verify(found)
    if found is not graph:
        args = arguments(graph)
        close(run_graph(found, *args), run_graph(graph, *args))


@patient
@given(graph=graphs())
def test_clean_up_ends(graph):
    """The passes together reach a graph that none of them changes."""
    for _ in range(20):
        before = graph
        for step in CLEAN:
            graph = step(graph)
        if graph is before:
            return
    pytest.fail("still changing after 20 rounds")


def differentiated(graph: Graph) -> Graph | None:
    """`gradients` of the sum of a graph's float outputs by all its float inputs."""
    b = Builder(OPS)
    inputs = [Value(value.type, value.name) for value in graph.inputs]
    outs, _ = b.inline(graph, inputs)
    floats = [b.convert(v, np.dtype("float32")) for v in outs if v.type.is_inexact]
    wrt = tuple(i for i, value in enumerate(inputs) if value.type.is_inexact)
    if not floats or not wrt or any(node.op.name == "while" for node in graph.walk()):
        return None
    total = b.sum([b.reduce_sum(v, range(v.ndim)) for v in floats])
    if isinstance(total, Literal):
        return None
    function = b.graph("loss", inputs, [total])
    given_to = [Value(value.type, value.name) for value in inputs]
    types = OPS["gradients"].shape(given_to, {"wrt": wrt}, (function,))
    node = Node(
        OPS["gradients"], tuple(given_to), tuple(map(Value, types)), {"wrt": wrt}, (function,)
    )
    return Graph("grad", tuple(given_to), (node,), node.outputs)


@patient
@given(graph=graphs(), steps=st.lists(st.sampled_from(CLEAN), min_size=1, max_size=4))
def test_gradient_is_the_same_before_and_after_clean_up(graph, steps):
    """Differentiate and clean up, or clean up and differentiate: the same numbers, all verified."""
    asked = differentiated(graph)
    assume(asked is not None)
    plain = Autodiff()(asked)
    verify(plain)
    first, last = asked, plain
    for step in steps:
        first, last = step(first), step(last)
        verify(first)
        verify(last)
    args = arguments(asked)
    expected = run_graph(plain, *args)
    close(run_graph(Autodiff()(first), *args), expected)
    close(run_graph(last, *args), expected)


@patient
@given(graph=graphs())
def test_phases_and_places_survive(graph):
    """No clean-up pass invents a line, a scope or a phase."""
    known = {(node.source, node.phase) for node in graph.walk()} | {("", "forward")}
    sources = {source for source, _ in known}
    for step in CLEAN:
        graph = step(graph)
    for node in graph.walk():
        assert node.source in sources
        assert node.phase in {phase for _, phase in known}


def test_scalar_loss_of_a_drawn_graph_is_differentiated():
    """The strategy above is no strategy of Nones."""
    b = Builder(OPS)
    x = Value(ArrayType((3,), np.dtype("float32")))
    asked = differentiated(b.graph("f", (x,), [b.sin(x)]))
    value, grad = evaluate(Autodiff()(asked), np.ones(3, np.float32))
    np.testing.assert_allclose(value, 3 * np.sin(1), rtol=1e-6)
    np.testing.assert_allclose(grad, np.cos(np.ones(3)), rtol=1e-6)
