"""Linear solves given as functions: first and second derivatives, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from ops.draws import real

pytestmark = pytest.mark.usefixtures("float64")

A, Y = real(3, 3) + 3 * np.eye(3), real(3)


def iterative(a, y):
    """Jacobi's method in a loop that reverse mode cannot pass through."""

    def solver(matrix):
        def solve(_, rhs):
            def step(state):
                i, x = state
                return i + 1, (rhs - matrix @ x) / jnp.diag(matrix) + x

            return lax.while_loop(lambda state: state[0] < 200, step, (0, rhs))[1]

        return solve

    return lax.custom_linear_solve(lambda x: a @ x, y, solver(a), solver(a.T))


def telling(a, y):
    """A solver that tells more than the solution: `has_aux`."""

    def solve(_, rhs):
        return jnp.linalg.inv(a) @ rhs, jnp.sum(rhs)

    def transposed(_, rhs):
        return jnp.linalg.inv(a).T @ rhs, jnp.sum(rhs)

    return lax.custom_linear_solve(lambda x: a @ x, y, solve, transposed, has_aux=True)[0]


FUNCTIONS = {
    "direct": lambda a, y: jnp.linalg.solve(a, y),
    "iterative": iterative,
    "telling more": telling,
    "conjugate gradients": lambda a, y: jax.scipy.sparse.linalg.cg(lambda x: a @ a.T @ x, y)[0],
    "inside a custom rule": lambda a, y: jnp.linalg.slogdet(a)[1] * y,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives_are_those_of_jax(name: str) -> None:
    def loss(a, y):
        return jnp.sum(jnp.sin(FUNCTIONS[name](a, y)))

    def twice(grad):
        def slope(a, y):
            by_a, by_y = grad(loss, (0, 1))(a, y)
            return jnp.sum(by_a * A.T) + jnp.sum(by_y**2)

        return grad(slope, (0, 1))

    for ours, theirs in (
        (bp.grad(loss, (0, 1)), jax.grad(loss, (0, 1))),
        map(twice, (bp.grad, jax.grad)),
    ):
        for got, want in zip(ours(A, Y), jax.jit(theirs)(A, Y), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("wrt", [0, 1, (0, 1)])
def test_one_of_two_solutions(wrt) -> None:
    """By a constant of the map and one of its right-hand sides; JAX has no such derivative."""

    def loss(scale, y):
        def matvec(x):
            return scale * x[0], 3 * x[1]

        def solve(_, ys):
            return ys[0] / scale, ys[1] / 3

        found = lax.custom_linear_solve(matvec, (y, Y), solve, solve)
        return jnp.sum(found[0] ** 2)

    want = -2 * np.sum(Y**2) / 2**3, 2 * Y / 2**2
    found = bp.grad(loss, wrt)(2.0, Y)
    for got, expected in zip(found, want) if wrt == (0, 1) else [(found, want[wrt])]:
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_tangents_of_what_a_solution_does_not_hang_on() -> None:
    """A solver's own guess, and one of two right-hand sides."""

    def guessed(start):
        return lax.custom_linear_solve(lambda x: 2 * x, Y, lambda _, y: y / 2 + 0 * start)

    def paired(y):
        def solve(_, ys):
            return ys[0] / 2, ys[1] / 3

        return lax.custom_linear_solve(lambda x: (2 * x[0], 3 * x[1]), (y, Y), solve, solve)

    for f, want in ((guessed, (Y / 2, 0 * Y)), (lambda y: paired(y)[0], (Y / 2, Y / 2))):
        for got, expected in zip(bp.jvp(f, (Y,), (Y,)), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    (_, other), (_, still) = bp.jvp(paired, (Y,), (Y,))
    np.testing.assert_allclose(other, Y / 3, rtol=1e-12)
    np.testing.assert_array_equal(still, 0 * Y)


def test_without_a_transposed_solver_there_is_no_gradient() -> None:
    def loss(y):
        return jnp.sum(lax.custom_linear_solve(lambda x: 2 * x, y, lambda _, y: y / 2))

    with pytest.raises(bp.MissingRuleError, match="symmetric=True"):
        bp.grad(loss)(Y)
