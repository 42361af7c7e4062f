"""Forward mode through regions, and cut in two: against `jax.jvp`, or reverse mode's adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from passes.test_autodiff import REGIONS, X


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# JAX has no forward mode through `jax.custom_vjp`; ours transposes the backward rule.
BY_ADJOINT = {name for name in REGIONS if "custom_vjp" in name} | {"odeint"}
# Their backward rule clips the cotangent.
NOT_LINEAR = {
    "custom_vjp", "custom_vjp in scan", "custom_vjp in vmap", "custom_vjp in checkpoint",
    "custom_vjp of a checkpoint",
}  # fmt: skip
# Its backward rule calls a function whose own rule clips, which no transposition can see.
BY_ADJOINT = BY_ADJOINT - {"custom_vjp in custom_vjp"}
UNDEFINED = {"custom_vjp in custom_vjp"}
# The steps of an adaptive solver depend on the cotangent: linear up to the solver's tolerance.
TOLERANCE = {"odeint": 1e-5}
MORE = {
    "while": (
        lambda x: lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) * x), (0, jnp.cos(x))
        )[1],
        (X,),
    ),
    "while that starts without a tangent": (
        lambda x: lax.while_loop(
            lambda s: s[0] < 4, lambda s: (s[0] + 1, s[2], s[2] * x + s[1]), (0, X, 2 * X)
        )[1:],
        (X + 1,),
    ),
    "while in vmap": (
        lambda x: jax.vmap(
            lambda v: lax.while_loop(lambda s: s < 10, lambda s: s * s * v + 1, v)
        )(x),
        (X**2 + 1,),
    ),
    "fori_loop with traced bounds": (
        lambda x: jax.jit(lambda n, v: lax.fori_loop(0, n, lambda i, s: s * v, v))(3, x), (X,)
    ),
    "integers beside": (lambda x: (jnp.sin(x), jnp.argsort(x), x > 0), (X,)),
    "an output that is an input": (lambda x: (x, 2.0, x * x), (X,)),
}  # fmt: skip
CASES = {name: (fun, args) for name, (fun, args, _) in REGIONS.items()} | MORE


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def directions(rng, args):
    return tuple(
        rng.normal(size=np.shape(x))
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        else np.zeros(np.shape(x), jax.dtypes.float0)
        for x in args
    )


def kind(x):
    return np.asarray(x).dtype


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (np.shape(x), kind(x)) == (np.shape(y), kind(y))
        if kind(x) != jax.dtypes.float0:
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in CASES if name not in BY_ADJOINT | UNDEFINED])
def test_jvp_and_linearize(name, rng):
    fun, args = CASES[name]
    tangents = directions(rng, args)
    expected = jax.jit(lambda *xs: jax.jvp(fun, xs, tangents))(*args)
    assert_close(bp.jvp(fun, args, tangents), expected)
    y, linear = bp.linearize(fun, *args)
    assert_close((y, linear(*tangents)), expected)


@pytest.mark.parametrize("name", sorted(BY_ADJOINT - NOT_LINEAR))
def test_transposed_backward_rule(name, rng):
    """ct . J t = J^T ct . t."""
    fun, args = CASES[name]
    tangents = directions(rng, args)
    y, dy = bp.jvp(fun, args, tangents)
    _, pullback = bp.vjp(fun, *args)
    ct = rng.normal(size=np.shape(y))
    pulled = [np.vdot(a, t) for a, t in zip(pullback(ct), tangents, strict=True)]
    np.testing.assert_allclose(np.vdot(ct, dy), sum(pulled), rtol=TOLERANCE.get(name, 1e-9))
    np.testing.assert_allclose(bp.linearize(fun, *args)[1](*tangents), dy, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(NOT_LINEAR))
def test_backward_rule_that_is_not_linear(name, rng):
    fun, args = CASES[name]
    with pytest.raises(bp.DifferentiationError, match="not linear"):
        bp.jvp(fun, args, directions(rng, args))


def test_linear_part_computes_nothing_twice():
    """What has no tangent in it stays in the first part, in a scan as well."""

    def fun(x):
        return lax.scan(lambda c, v: (jnp.sin(c) * v, jnp.exp(v)), x[0], x)

    _, linear = bp.linearize(fun, np.ones((4, 3)))
    graph = linear.func.graph
    names = [node.op.name for node in graph.walk()]
    assert "scan" in names
    assert not {"sin", "cos", "exp"} & set(names)
    bp.ir.verify(graph)


def test_checkpoint_stays_a_checkpoint():
    """Reverse over forward recomputes the body."""

    def fun(x):
        return jnp.sum(jax.checkpoint(lambda v: jnp.sin(jnp.sin(v)))(x))

    graph = bp.compile(lambda x: bp.jvp(fun, (x,), (x,))).trace(X).graph
    assert "remat2" in [node.op.name for node in graph.walk()]
    twice = bp.grad(lambda x: bp.jvp(fun, (x,), (X,))[1])(X)
    np.testing.assert_allclose(twice, jax.grad(lambda x: jax.jvp(fun, (x,), (X,))[1])(X))


def test_phase_of_tangents_is_forward():
    graph = bp.compile(lambda x: bp.jvp(jnp.sin, (x,), (x,))[1]).lower(X).graph
    assert {node.phase for node in graph.nodes} == {"forward"}
