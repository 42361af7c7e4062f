"""Reductions by the user's own function: first and second derivatives, ties, empty axes."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass.ir import OPS, parse, verify
from backpass.ir.builder import Builder
from backpass.ir.ops.reducers import lifted
from fuzz.interpret import run_graph
from ops.draws import distinct, positive, real

pytestmark = pytest.mark.usefixtures("float64")

ZERO, ONE = np.float64(0), np.float64(1)


def product(x, axes=(0,)):
    return lax.reduce(x, ONE, lambda a, b: a * b * 1.0, axes)


def best(x, axes=(0,)):
    """The largest element and its position: a variadic reduction."""
    where = lax.broadcasted_iota(np.int32, x.shape, axes[0])

    def later(one, two):
        wins = one[0] >= two[0]
        return jnp.where(wins, one[0], two[0]), jnp.where(wins, one[1], two[1])

    return lax.reduce((x, where), (-np.float64(np.inf), np.int32(-1)), later, axes)


def affine(x, y):
    """Composition of the maps t -> x t + y: associative, and not commutative in general."""

    def compose(first, second):
        return first[0] * second[0], first[1] * second[0] + second[1]

    return lax.reduce((x, y), (ONE, ZERO), compose, (1,))


def softened(x, axes=(0,)):
    return lax.reduce(x, -np.float64(np.inf), jnp.logaddexp, axes)


REDUCTIONS = {
    "product": (product, [positive(5, 3)]),
    "product over two axes": (lambda x: product(x, (0, 2)), [positive(2, 3, 4)]),
    "product with zeros": (product, [np.array([0.0, 2.0, 3.0])]),
    "nothing": (product, [real(0, 3)]),
    "one": (product, [real(1, 3)]),
    "by a custom rule": (softened, [real(6, 2)]),
}


def check(f, args, eps=1e-6):
    """First derivatives against finite differences, second ones against those of the first."""

    def loss(*xs):
        return jnp.sum(jnp.sin(f(*xs)))

    every = tuple(range(len(args)))
    grad = bp.grad(loss, every)

    def slope(*xs):
        return sum(jnp.sum(jnp.cos(k + g)) for k, g in enumerate(grad(*xs)))

    steps = [real(*x.shape, seed=5) for x in args]
    for function in (loss, slope):
        ahead, behind = (
            function(*(x + sign * eps * d for x, d in zip(args, steps, strict=True)))
            for sign in (1, -1)
        )
        found = bp.grad(function, every)(*args)
        along = sum(np.vdot(g, d) for g, d in zip(found, steps, strict=True))
        assert float(along) == pytest.approx(float(ahead - behind) / (2 * eps), rel=1e-5, abs=1e-6)
    return grad(*args)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduce(name: str) -> None:
    f, args = REDUCTIONS[name]
    want = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))))(*args)
    np.testing.assert_allclose(check(f, args)[0], want, rtol=1e-9)


def test_a_variadic_reduction_with_integers() -> None:
    """Where JAX has no derivative, although that of the first result is clear."""
    x = distinct(7, 2) / 5
    (found,) = check(lambda x: best(x)[0], [x])
    np.testing.assert_allclose(found, jax.grad(lambda x: jnp.sum(jnp.sin(x.max(0))))(x))


def test_a_reduction_that_does_not_commute() -> None:
    def by_hand(x, y):
        slope, offset = jnp.ones(x.shape[0]), jnp.zeros(x.shape[0])
        for k in range(x.shape[1]):
            slope, offset = slope * x[:, k], offset * x[:, k] + y[:, k]
        return slope, offset

    x, y = positive(2, 5), real(2, 5)
    for k in (0, 1):
        want = jax.grad(lambda x, y, k=k: jnp.sum(jnp.sin(by_hand(x, y)[k])), (0, 1))(x, y)
        found = check(lambda x, y, k=k: affine(x, y)[k], [x, y])
        for got, expected in zip(found, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9)


def windowed(f, init, *window):
    return lambda x: lax.reduce_window(x, init, f, *window)


WINDOWS = {
    "tiles": windowed(lambda a, b: a * b * 1.0, ONE, (2, 2), (2, 2)),
    "overlapping": windowed(lambda a, b: a * b * 1.0, ONE, (3, 2), (2, 1), "SAME"),
    "dilated": windowed(
        lambda a, b: a * b * 1.0, ONE, (2, 3), (1, 2), ((1, 0), (2, 1)), (2, 1), (1, 2)
    ),
    "cut": windowed(lambda a, b: a * b * 1.0, ONE, (2, 2), (1, 1), ((-1, 0), (0, -2))),
    "log-sum-exp": windowed(jnp.logaddexp, -np.float64(1e9), (2, 3), (1, 1), "SAME"),
    "none fits": windowed(lambda a, b: a * b * 1.0, ONE, (9, 9), (1, 1)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_reduce_window(name: str) -> None:
    """JAX has forward mode alone, and not under vmap: compare along a direction."""
    f, x, step = WINDOWS[name], positive(5, 6), real(5, 6, seed=3)
    out, moved = jax.jvp(f, (x,), (step,))
    want = np.sum(np.cos(out) * moved)
    assert float(np.sum(check(f, [x])[0] * step)) == pytest.approx(float(want), rel=1e-9)


def test_a_variadic_window() -> None:
    """The element of the window with the largest key."""

    def later(one, two):
        wins = one[0] >= two[0]
        return jnp.where(wins, one[0], two[0]), jnp.where(wins, one[1], two[1])

    def picked(x, key):
        inits = (-np.float64(np.inf), ZERO)
        return lax.reduce_window((key, x), inits, later, (3,), (2,), "VALID")[1]

    key, x = distinct(9), real(9)
    grad = check(lambda x: picked(x, key), [x])[0]
    places = np.array([i + np.argmax(key[i : i + 3]) for i in range(0, 7, 2)])
    want = np.zeros(9)
    np.add.at(want, places, np.cos(x[places]))
    np.testing.assert_allclose(grad, want)


def test_a_function_that_is_not_elementwise_is_told() -> None:
    def f(x):
        return lax.reduce(x, ZERO, lambda a, b: lax.cond(a > b, lambda: a, lambda: b), (0,))

    with pytest.raises(bp.MissingRuleError, match="'cond' in it has no derivative"):
        bp.grad(f)(real(4))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_as_they_are(name: str) -> None:
    """Types, numbers and arithmetic: two multiplications a place, those of one window more."""
    f, x = WINDOWS[name], positive(5, 6)
    graph = bp.compile(f).trace(x).graph
    verify(graph)
    (node,), want = graph.nodes[-1:], f(x)
    np.testing.assert_allclose(run_graph(graph, x)[0], want, rtol=1e-12)
    again = Builder(OPS).emit(node.op, node.inputs, node.attrs, node.regions)
    assert [v.type for v in again] == [v.type for v in node.outputs]
    body = sum(inner.op.flops(inner) for inner in node.regions[0].nodes)
    assert node.op.flops(node) == body * want.size * prod(node.attrs["window_dimensions"])


def test_arithmetic_of_a_reduction() -> None:
    """One call of the function for each element."""
    (node,) = bp.compile(product).trace(positive(5, 3)).graph.nodes
    assert node.op.flops(node) == 5 * 3 * 2


def test_a_function_of_numbers_as_one_of_arrays() -> None:
    """What gives the number itself, constants and functions that it calls."""
    text = """backpass.ir 1

graph f(%0: f64[], %1: f64[]) {
  %2: f64[] = reshape(%0)
  %3: f64[] = constant() {value=dense<f64[] [0.5]>}
  %4: f64[] = mul(%2, %3)
  %5: f64[] = jit(%4, %1) {name="g"}
    graph g(%0: f64[], %1: f64[]) {
      %2: f64[] = add(%0, %1)
      return %2
    }
  return %5, %3, 2.0:f64
}
"""
    graph = lifted(Builder(OPS), parse(text), (2, 3))
    verify(graph)
    x, y = real(2, 3), real(2, 3, seed=1)
    halves, twos = np.full((2, 3), 0.5), np.full((2, 3), 2.0)
    for found, want in zip(run_graph(graph, x, y), [x / 2 + y, halves, twos], strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("line", ["%2: f64[2] = broadcast_in_dim(%0) {broadcast_dimensions=()}"])
def test_a_function_that_makes_arrays_has_no_such_form(line: str) -> None:
    text = f"backpass.ir 1\n\ngraph f(%0: f64[], %1: f64[]) {{\n  {line}\n  return %0\n}}\n"
    with pytest.raises(bp.MissingRuleError, match="'broadcast_in_dim' in it"):
        lifted(Builder(OPS), parse(text), (2, 3))
