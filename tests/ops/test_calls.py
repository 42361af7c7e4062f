"""Calls that bring their own derivative, or choose among functions by the platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_derivatives import linear_call

import backpass as bp
from backpass.ir import parse, verify
from backpass.passes.autodiff import Forward
from fuzz.interpret import run_graph
from ops.draws import positive, real

pytestmark = pytest.mark.usefixtures("float64")

X, D = real(3), positive(3)


def test_a_linear_call_is_pulled_back_by_its_transpose() -> None:
    """Which is a false one here, so that it is seen."""

    def loss(x, d):
        (y,) = linear_call(lambda r, x: [x[0] / r], lambda r, y: [7 * y[0] / r], d, [x])
        return jnp.sum(jnp.sin(y))

    def twice(grad):
        return lambda x: jnp.sum(grad(loss)(x, D) ** 2)

    np.testing.assert_allclose(bp.grad(loss)(X, D), 7 * np.cos(X / D) / D, rtol=1e-12)
    np.testing.assert_allclose(bp.grad(twice(bp.grad))(X), jax.grad(twice(jax.grad))(X))


def test_a_linear_call_with_constants_on_both_sides() -> None:
    def loss(x):
        scale = jnp.sin(D) * 2
        (y,) = linear_call(lambda r, x: [x[0] * scale * r[0]], _scaled, [scale, D], [x])
        return jnp.sum(y**3)

    def _scaled(r, y):
        return [y[0] * r[0] * r[0] * D / D]

    want = 3 * (X * 4 * np.sin(D) ** 2) ** 2 * 4 * np.sin(D) ** 2
    np.testing.assert_allclose(bp.grad(loss)(X), want, rtol=1e-12)


@pytest.mark.parametrize("wrt", [0, 1, (0, 1)])
def test_one_of_two_results_of_a_linear_call(wrt) -> None:
    def loss(x, z):
        there, back = (lambda r, xs, c=c: [c * xs[0] / r, 3 * xs[1]] for c in (2, 7))
        return jnp.sum(linear_call(there, back, D, [x, z])[0] * np.cos(X))

    found = bp.grad(loss, wrt)(X, D)
    want = 7 * np.cos(X) / D, 0 * D
    for got, expected in zip(
        found if wrt == (0, 1) else [found], want[-wrt:] if wrt == 1 else want
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_call_that_was_not_inlined_carries_tangents() -> None:
    region = "graph g(%0: f64[3], %1: f64[3]) {\n%2: f64[3] = mul(%0, %1)\nreturn %2, %0\n}\n"
    text = f"%2: f64[3], %3: f64[3] = jit(%0, %1)\n{region}return %3, %2"
    graph = parse(f"backpass.ir 1\ngraph f(%0: f64[3], %1: f64[3]) {{\n{text}\n}}\n")
    joint = Forward().region(graph, [True, False])
    verify(joint)
    found = run_graph(joint, X, D, D)
    for got, want in zip(found, (X, X * D, D, D * D), strict=True):
        np.testing.assert_allclose(got, want)


def test_jax_differentiates_a_lowered_linear_call() -> None:
    @bp.compile
    def f(x):
        return jnp.sum(linear_call(lambda r, x: x / r, lambda r, y: 7 * y / r, D, x) ** 2)

    np.testing.assert_allclose(jax.grad(f)(X), 14 * X / D**2)


def test_a_branch_for_another_platform_is_not_lowered() -> None:
    def elsewhere(x):
        return lax.platform_dependent(x, tpu=lambda x: x * 777, default=jnp.sin)

    @bp.compile
    def step(x):
        return bp.value_and_grad(lambda x: jnp.sum(elsewhere(x)))(x)

    loss, grad = step(X)
    np.testing.assert_allclose(loss, np.sum(np.sin(X)))
    np.testing.assert_allclose(grad, np.cos(X))
    assert "777" in str(step.lower(X).graph)
    text = step.lower(X).as_text("stablehlo")
    assert "777" not in text and "7.77" not in text


def test_residuals_that_jax_may_drop() -> None:
    @partial(jax.custom_vjp)
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda r, g: (g * r,), optimize_remat=True)

    def once(x):
        return jnp.sum(bp.grad(lambda x: jnp.sum(f(x)))(x))

    np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(f(x)))(X), np.cos(X))
    np.testing.assert_allclose(bp.grad(once)(X), -np.sin(X))
