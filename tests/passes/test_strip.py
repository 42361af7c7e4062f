"""Loops in strips: the same numbers, and the products of a strip at a time."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import backpass as bp
from backpass.ir.errors import ArgumentError
from backpass.passes import DEFAULT, PASSES, Defer, Hoist, Strip, parse_pipeline, planned
from backpass.passes.pipeline import spelled
from models.comparison import assert_close, batches, weighted
from passes.recurrent import PROGRAMS, lstm, parameters, sequence, zeros

EAGER = {
    "strip": Strip(least=4),
    "hoist": Hoist(0.0, 1e6, innermost=True),
    "defer": Defer(0.0, 1e6, innermost=True),
}
PIPELINE = tuple(EAGER.get(each.name, each) for each in planned("cpu")[1])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def both(fun, grad):
    def loss(p, xs):
        return weighted(fun(p, xs))

    return lambda p, xs: (fun(p, xs), grad(loss, (0, 1))(p, xs))


def scans(graph):
    """Lengths of the loops of a program, outer ones first."""
    return [node.attrs["length"] for node in graph.walk() if node.op.name == "scan"]


@pytest.mark.parametrize("names", batches(PROGRAMS, 7).values(), ids=batches(PROGRAMS, 7))
def test_values_and_gradients(names):
    """Of two strips of two steps, and a step that is left."""

    def all_of(grad):
        return lambda p, xs: {name: both(PROGRAMS[name], grad)(p, xs) for name in names}

    args = parameters(), sequence()
    ours = bp.compile(all_of(bp.grad), passes=PIPELINE, debug=True)(*args)
    assert_close(ours, jax.jit(all_of(jax.grad))(*args))


@pytest.mark.parametrize("length", [4, 12, 17])
def test_lengths(length):
    args = parameters(), sequence(length=length)
    ours = bp.compile(both(lstm, bp.grad), passes=PIPELINE, debug=True)(*args)
    assert_close(ours, jax.jit(both(lstm, jax.grad))(*args))


def traced(fun, least=64, length=72):
    step = bp.value_and_grad(lambda p, xs: weighted(fun(p, xs)))
    passes = [Strip(least) if each.name == "strip" else each for each in planned("cpu")[1]]
    return bp.compile(step, passes=passes).lower(parameters(), sequence(length=length))


def test_strips_are_about_as_many_as_their_steps():
    found = traced(lstm)
    assert sorted(set(scans(found.graph))) == [8, 9]
    (note,) = [note for note in found.fusions if note.what == "loop in strips"]
    assert note.matched and "8 steps of 72" in note.gain and "recurrent.py" in note.source
    assert note.nbytes == 0  # products of a strip at a time are quicker, no array is smaller


def test_the_products_of_a_strip_are_one():
    """Those by the same matrix of what a step is given, and the gradients by both matrices."""
    final = traced(lstm).graph
    strips = [n for n in final.nodes if n.op.name == "scan"]
    inner = [next(n for n in s.regions[0].nodes if n.op.name == "scan") for s in strips]

    def products(nodes):
        return sum(node.op.name == "dot_general" for node in nodes)

    assert [products(s.regions[0].nodes) for s in strips] == [1, 2]
    assert [products(n.regions[0].nodes) for n in inner] == [1, 1]


def test_what_gains_nothing_stays():
    def elementwise(p, xs):
        return lax.scan(lambda c, x: (jnp.tanh(c + x), None), xs[0], xs)[0] @ p["square"]

    def around(p, xs):
        def inner(c, _):
            return jnp.tanh(c @ p["again"]), None

        return lax.scan(lambda c, x: (lax.scan(inner, c, None, 2)[0], None), zeros(), xs)[0]

    def unrolled(p, xs):
        def cell(c, x):
            return jnp.tanh(c @ p["again"] + x @ p["square"]), None

        return lax.scan(cell, zeros(), xs, unroll=2)[0]

    assert set(scans(traced(elementwise).graph)) == {72}
    assert set(scans(traced(unrolled).graph)) == {72}
    assert set(scans(traced(lstm, length=60).graph)) == {60}
    assert set(scans(traced(lstm, least=2, length=3).graph)) == {3}
    assert set(scans(bp.compile(lstm, passes=PIPELINE).lower(parameters(), sequence()).graph)) == {
        5
    }
    assert 72 in scans(traced(around).graph)


def test_it_is_spelled():
    assert parse_pipeline("strip{least=9}", PASSES) == (Strip(9),)
    assert parse_pipeline("hoist{innermost=true}", PASSES) == (Hoist(innermost=True),)
    (usual,) = [i for i, each in enumerate(DEFAULT) if each.name == "hoist"]
    assert planned("cpu")[1][usual] == Strip()
    assert "strip,hoist{innermost=True},defer{innermost=True}" in spelled(planned("cpu")[1])
    with pytest.raises(ArgumentError, match="least"):
        parse_pipeline("strip{least=x}", PASSES)
