"""Rules of the user's own, of functions that run on a part of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

from backpass.ir.evaluate import evaluate
from backpass.ir.fingerprint import fingerprint
from backpass.ir.verifier import verify
from backpass.passes import Dce, Microbatch
from passes.parts import assert_refused
from passes.texts import compiled, ops

RNG = np.random.default_rng(0)
W, X = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 3), (6, 5)))
N = np.arange(6, dtype=np.int32)[:, None]


def value(w, n, x):
    return n * jnp.sin(x @ w)


def by_jvp(asks):
    """The derivative by w is three times too large; `asks` which tangents there are."""
    f = jax.custom_jvp(value)

    def rule(primals, tangents):
        (w, n, x), (dw, _, dx) = primals, tangents
        tangent = jnp.zeros((len(x), 3))
        if not isinstance(dw, SymbolicZero):
            tangent += 3 * n * (x @ dw)
        if not isinstance(dx, SymbolicZero):
            tangent += n * (dx @ w)
        return f(w, n, x), tangent

    f.defjvp(rule, symbolic_zeros=asks)
    return f


def by_vjp(asks):
    f = jax.custom_vjp(value)

    def forward(*args):
        w, n, x = (each.value for each in args) if asks else args
        return f(w, n, x), (n, w, x)

    def backward(kept, ct):
        n, w, x = kept
        return 3 * x.T @ (n * ct), None, (n * ct) @ w.T

    f.defvjp(forward, backward, symbolic_zeros=asks)
    return f


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("made", [by_jvp, by_vjp])
def test_a_rule_holds_for_a_part(made, asks):
    """Also one that is read when a derivative comes to it."""
    f = made(asks)

    def loss(w, n, x):
        return jnp.sum(f(w, n, x) ** 2)

    found = Dce()(Microbatch(2)(compiled(loss, W, N, X)))
    verify(found)
    assert "scan" in ops(found)
    if asks:
        again = Dce()(Microbatch(2)(compiled(loss, W, N, X)))
        assert fingerprint(found) == fingerprint(again), "a rule for derivatives of no one"
    ours = jax.grad(lambda *args: evaluate(found, *args)[0], (0, 2))(W, N, X)
    for one, other in zip(ours, jax.grad(loss, (0, 2))(W, N, X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_rule_that_reads_samples_of_its_own_is_refused():
    """The weights of samples, which the function itself has no use for."""

    @jax.custom_vjp
    def weighed(weights, x):
        return jnp.sin(x)

    weighed.defvjp(
        lambda weights, x: (jnp.sin(x), weights * jnp.cos(x)), lambda kept, ct: (None, kept * ct)
    )
    assert_refused(
        lambda x: weighed(jnp.cos(jnp.arange(6.0))[:, None, None], x),
        "its rule reads samples that its function does not",
    )
