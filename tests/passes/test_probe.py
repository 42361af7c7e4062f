"""Where the first bad value is born, read from records of programs that no compiler sees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir import verify
from backpass.passes.probe import births, hint_of, mask_of, recorded, tapped
from backpass.passes.probe.locate import FINITE, INFINITY, NAN, Birth
from fuzz.interpret import run_graph
from passes.texts import compiled

X = np.float32([0.5, 1.0, 2.0])
BAD = np.float32([0.5, -1.0, 2.0])
STEPS = np.float32([3.0, 2.0, -1.0, 1.0])  # the third is the first below 0


def born(fun, *args):
    """Of each result: what it is, then the op, its loops' steps and what it gave, or an argument."""
    graph = compiled(fun, *args)
    program, record = recorded(graph)
    verify(program)
    found = []
    for code, birth in births(record, [np.asarray(x) for x in run_graph(program, *args)]):
        if birth is None:
            found.append((code,))
        elif birth.node is None:
            found.append((code, birth.argument))
        else:
            steps = tuple(step for _, _, step in birth.path)
            (value,) = birth.node.outputs
            (fetched,) = run_graph(tapped(record.graph, birth.path, [value]), *args)
            assert np.isnan(fetched).any() if birth.nan else np.isinf(fetched).any()
            found.append((code, birth.node.op.name, steps))
    return found


def scanned(reverse, x):
    return lax.scan(lambda c, x: (c + jnp.log(x), c * 2), 0.0 * x[0], x, reverse=reverse)


def rounds(n, x):
    """`n` steps, each of which takes 1 off before the root is taken."""

    def body(state):
        i, x, y = state
        return i + 1, x - 1, jnp.sqrt(x)

    return lax.while_loop(lambda state: state[0] < n, body, (0, x, x))[1:]


def products(x):
    """Infinite from the second step on, NaN from the third on."""

    def body(state):
        i, x = state
        x = jnp.where(i == 0, x, jnp.where(i == 1, jnp.exp(x * 1e4), x - x))
        return i + 1, x

    return lax.while_loop(lambda state: state[0] < 4, body, (0, x))[1]


def chosen(i, x):
    return lax.switch(i, [jnp.log, jnp.sqrt, lambda x: x / 0.0 - 1e30], x)


def nested(x):
    def inner(c, x):
        return c, jnp.log(x)

    return lax.scan(lambda c, x: (c, lax.scan(inner, c, x)[1]), 0.0, x)[1]


def consts(x, scale):
    """A constant of the test, one of the body."""

    def body(state):
        i, y = state
        return i + 1, y * jnp.log(scale)

    return lax.while_loop(lambda state: state[1].sum() < x[0], body, (0, 0 * x))[1]


def vectors(x):
    """A loop over a batch of tests: nothing is told of its steps."""
    return jax.vmap(lambda x: lax.while_loop(lambda x: x < 1, jnp.log, x))(x)


CASES = {
    "fine": (jnp.log, (X,), [(FINITE,)]),
    "log": (lambda x: jnp.log(x).sum(), (BAD,), [(NAN, "log", ())]),
    "infinity": (lambda x: jnp.exp(100 * x), (X,), [(INFINITY, "exp", ())]),
    "infinities less each other": (
        lambda x: x - x,
        (X * np.inf,),
        [(NAN, "sub", ())],
    ),
    "a NaN goes before an infinity": (
        lambda x: jnp.exp(100 * x) + jnp.log(-x),
        (X,),
        [(NAN, "log", ())],
    ),
    "the first of two": (lambda x: jnp.sqrt(-x) + jnp.log(-x), (X,), [(NAN, "sqrt", ())]),
    "each its own": (
        lambda x: (jnp.log(-x), x, jnp.sqrt(-x)),
        (X,),
        [(NAN, "log", ()), (FINITE,), (NAN, "sqrt", ())],
    ),
    "an argument": (lambda x, y: (x, y * 2), (X, X * np.nan), [(FINITE,), (NAN, 1)]),
    "an infinite argument": (lambda x: x * 2, (X * np.inf,), [(INFINITY,)]),
    "a constant": (lambda x: jnp.where(x > 1, x, -np.inf), (X,), [(INFINITY,)]),
    "numbers": (
        lambda x: (np.float32("nan"), np.float32("inf"), np.float32(1), np.int32(1)),
        (X,),
        [(NAN,), (INFINITY,), (FINITE,), (FINITE,)],
    ),
    "an array": (lambda x: x + np.float32([1, np.inf, 2]), (X,), [(INFINITY,)]),
    "half": (lambda x: x.astype(np.float16) * np.float16(6e4), (X,), [(INFINITY, "mul", ())]),
    "imaginary": (lambda x: lax.complex(x, jnp.log(x)), (BAD,), [(NAN, "log", ())]),
    "complex": (lambda x: jnp.exp(lax.complex(x, x) * 100), (X,), [(INFINITY, "exp", ())]),
    "views": (lambda x: jnp.log(x)[None].T[::-1], (BAD,), [(NAN, "log", ())]),
    "nothing": (lambda x: jnp.log(x[:0]), (BAD,), [(FINITE,)]),
    "whole numbers": (lambda x: jnp.isnan(jnp.log(x)).sum(), (BAD,), [(FINITE,)]),
    "scan": (partial(scanned, False), (STEPS,), [(NAN, "log", (2,))] * 2),
    "scan from its first step": (partial(scanned, False), (-STEPS,), [(NAN, "log", (0,))] * 2),
    "scan from the end": (partial(scanned, True), (STEPS,), [(NAN, "log", (2,))] * 2),
    "fine scan": (partial(scanned, False), (X,), [(FINITE,)] * 2),
    "scan in scan": (nested, (STEPS.reshape(2, 2),), [(NAN, "log", (1, 0))]),
    "while": (partial(rounds, 3), (np.float32(1.5),), [(FINITE,), (NAN, "sqrt", (2,))]),
    "while, first step": (partial(rounds, 2), (np.float32(-1),), [(FINITE,), (NAN, "sqrt", (0,))]),
    "fine while": (partial(rounds, 2), (np.float32(2),), [(FINITE,), (FINITE,)]),
    "no step": (partial(rounds, 0), (np.float32(np.nan),), [(NAN, 0), (NAN, 0)]),
    "while with both": (products, (np.float32(1),), [(NAN, "sub", (2,))]),
    "while with constants": (consts, (X, np.float32(-1)), [(NAN, "log", (0,))]),
    "while of vectors": (vectors, (BAD,), [(NAN, "while", ())]),
    "first branch": (partial(chosen, 0), (BAD,), [(NAN, "log", (None,))]),
    "second branch": (partial(chosen, 1), (BAD,), [(NAN, "sqrt", (None,))]),
    "third branch": (chosen, (2, BAD), [(INFINITY, "div", (None,))]),
    "call": (lambda x: jax.checkpoint(jnp.log)(x), (BAD,), [(NAN, "log", ())]),
}


@pytest.mark.parametrize("name", CASES)
def test_where_bad_values_are_born(name):
    fun, args, expected = CASES[name]
    assert born(fun, *args) == expected


def test_wide_numbers():
    with jax.enable_x64(True):
        assert born(lambda x: jnp.exp(x), np.float64([80, 700])) == [(FINITE,)]
        assert born(lambda x: jnp.exp(x), np.float64([80, 710])) == [(INFINITY, "exp", ())]


def test_what_is_told_without_a_node():
    graph = compiled(jnp.log, X)
    assert hint_of(Birth(0, graph, None, (), 0), graph) == ""
    assert "log wants numbers above 0" in hint_of(Birth(0, graph, graph.nodes[0]), graph)


def hidden(x):
    return jnp.where(x > 0, jnp.sin(jnp.log(x)), 0.0)


MASKS = {
    "hidden": (hidden, True),
    "read before": (lambda x: (lambda y: (jnp.where(x > 0, y, 0.0), y))(jnp.log(x)), False),
    "in a loop": (
        lambda x: jnp.where(
            x > 0, lax.scan(lambda c, _: (c + 1, None), jnp.log(x), None, length=2)[0], 0.0
        ),
        False,
    ),
    "for whole numbers": (lambda x: jnp.isnan(jnp.log(x)), False),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_where_that_hides_a_value(name):
    fun, known = MASKS[name]
    graph = recorded(compiled(fun, X))[1].graph
    log = next(node for node in graph.nodes if node.op.name == "log")
    found = mask_of(log, graph)
    assert (found is not None and found.op.name == "select_n") == known
    hint = hint_of(Birth(0, graph, log), graph, found)
    assert hint.startswith("the where at" if known else "log wants")
