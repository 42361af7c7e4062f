"""Gradients on many devices: `shard_map`, collectives and shardings, beside JAX's own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp
from compiler.parallel import MAPS, NAMED, WITHIN, Program, V, W, X, loss, mapped, mesh

AROUND = {
    "eager": lambda call: call(),
    "jit": lambda call: jax.jit(call)(),
    "compile": lambda call: bp.compile(call, debug=True)(),
}


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def close(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@cache
def by_jax(program: Program):
    return jax.jit(lambda: program(jax.grad))()


def test_there_are_eight_places():
    assert jax.device_count() >= 8


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", MAPS)
def test_gradient_of_a_map(name, around):
    found = AROUND[around](lambda: MAPS[name](bp.grad))
    close(found, by_jax(MAPS[name]))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", WITHIN)
def test_gradient_within_a_map(name, around):
    found = AROUND[around](lambda: WITHIN[name](bp.grad))
    close(found, by_jax(WITHIN[name]))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", NAMED)
def test_gradient_along_a_named_axis(name, around):
    found = AROUND[around](lambda: NAMED[name](bp.grad))
    close(found, by_jax(NAMED[name]))


def test_compiled_function_within_a_map():
    def step(grad, compile):
        return mapped(compile(grad(loss)), (P(), P("d")), P())(W, X)

    close(step(bp.grad, bp.compile), step(jax.grad, jax.jit))


def test_a_compiled_function_is_traced_again_within_a_map():
    """The same shapes, other axes to vary over."""
    grad = bp.compile(bp.grad(loss))
    halves = np.concatenate([X, X])
    close(grad(W, X), jax.grad(loss)(W, X))
    found = mapped(grad, (P(), P("d")), P())(W, halves)
    close(found, mapped(jax.grad(loss), (P(), P("d")), P())(W, halves))


# Shardings


def constrained(w, x):
    h = lax.with_sharding_constraint(jnp.tanh(x @ w), NamedSharding(mesh(), P("d", "m")))
    return jnp.sum(jnp.sin(h))


@pytest.mark.parametrize("around", AROUND)
def test_sharding_constraint(around):
    found = AROUND[around](lambda: bp.grad(constrained, (0, 1))(W, X))
    close(found, jax.grad(constrained, (0, 1))(W, X))


def test_shardings_of_arguments_and_results():
    places = [NamedSharding(mesh(), spec) for spec in (P("m"), P("d"))]
    step = bp.compile(bp.grad(constrained), in_shardings=tuple(places), out_shardings=places[0])
    found = step(W, X)
    assert found.sharding == places[0]
    close(found, jax.grad(constrained)(W, X))


def on_context_mesh(w, x):
    f = jax.shard_map(
        lambda w, x: lax.psum(jnp.tanh(x @ w), "m"),
        in_specs=(P("m", None), P("d", "m")),
        out_specs=P("d", None),
    )
    return jnp.sum(jnp.sin(f(w, x)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("way", [jax.jit, bp.compile], ids=["jit", "compile"])
def test_mesh_of_the_context(way, kind):
    places = mesh(kind)
    with jax.set_mesh(places):
        w = jax.device_put(W, NamedSharding(places, P("m", None)))
        x = jax.device_put(X, NamedSharding(places, P("d", "m")))
        found = way(bp.grad(on_context_mesh, (0, 1)))(w, x)
        expected = jax.jit(jax.grad(on_context_mesh, (0, 1)))(w, x)
    close(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


def moved(w, x):
    return jnp.sum(jnp.sin(jax.sharding.reshard(jnp.tanh(w * x), P(None, "m"))) * w)


@pytest.mark.parametrize("way", [jax.jit, bp.compile], ids=["jit", "compile"])
def test_reshard(way):
    """A cotangent goes back to where the value came from."""
    places = mesh(AxisType.Explicit)
    with jax.set_mesh(places):
        w = jax.device_put(V, NamedSharding(places, P(None, "m")))
        x = jax.device_put(X, NamedSharding(places, P("d", None)))
        found, expected = way(bp.grad(moved, (1,)))(w, x), jax.jit(jax.grad(moved, (1,)))(w, x)
    close(found, expected)


def test_a_map_can_be_read():
    """Mesh, specs and casts stand in the text; devices have none."""
    graph = bp.compile(bp.grad(on_devices)).lower(X).graph
    text = str(graph)
    assert 'in_specs=(P("d","m"),P("d"))' in text
    assert 'pvary(%1) {axes=("m",)}' in text
    assert "Mesh d=2 m=4" in text
    with pytest.raises(bp.ParseError, match="Mesh d=2 m=4"):
        bp.ir.parse(text)


def test_a_map_of_shards_that_do_not_fit_is_no_graph():
    graph = bp.compile(on_devices).lower(X).stages[0].graph
    (node,) = (node for node in graph.nodes if node.op.name == "shard_map")
    turned = replace(node, attrs={**node.attrs, "in_specs": (P("m", "d"),)})
    wrong = replace(graph, nodes=tuple(turned if n is node else n for n in graph.nodes))
    bp.ir.verify(graph)
    with pytest.raises(bp.GraphError, match=r"shard_map wants f64\[32,4\]"):
        bp.ir.verify(wrong)


def on_devices(x):
    return jnp.sum(mapped(lambda x: lax.psum(jnp.sin(x), "m"), P("d", "m"), P("d"))(x))
