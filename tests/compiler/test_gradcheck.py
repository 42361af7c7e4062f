"""gradcheck finds what is wrong, and names it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp

X = np.linspace(0.3, 1.7, 6).reshape(2, 3)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@jax.custom_vjp
def wrong(x):
    return jnp.sin(x)


wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x).at[1, 2].add(0.25),))


@jax.custom_vjp
def wrong_twice(x):
    """Right in value and gradient, wrong in the gradient of the gradient."""
    return x**3


wrong_twice.defvjp(lambda x: (x**3, x), lambda x, ct: (ct * 3 * x * jax.lax.stop_gradient(x),))

RIGHT = {
    "elementwise": (lambda x: jnp.exp(jnp.sin(x)), (X,)),
    "tree": (lambda t: {"y": t["a"] @ t["b"][0], "n": t["a"] > 1}, ({"a": X, "b": (X[0],)},)),
    "integers beside": (lambda x, n: x**n, (X, 3)),
    "complex": (lambda z: z**2 * z.conj() + jnp.exp(z), (X * (1 - 2j),)),
    "real to complex": (lambda x: jnp.fft.fft(x), (X,)),
    "complex to real": (lambda z: jnp.abs(z), (X * (1 + 1j),)),
    "scan": (lambda x: lax.scan(lambda c, v: (c * jnp.sin(v), c), x[0], x), (X,)),
    "scalar": (lambda x: x**2, (1.5,)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    fun, args = RIGHT[name]
    bp.gradcheck(fun, args, order=2)


def test_float32():
    bp.gradcheck(lambda x: jnp.sin(x) * x, (X.astype(np.float32),), order=2)


def test_wrong_rule_is_named():
    with pytest.raises(bp.GradcheckError) as caught:
        bp.gradcheck(lambda t: wrong(t["w"]) * 2, ({"w": X},), modes="rev")
    text = str(caught.value)
    assert "d out[1, 2] / d args[0]['w'][1, 2]" in text
    true = 2 * np.cos(X[1, 2])
    assert f"{true + 0.5:.6g}" in text
    assert f"{true:.6g}" in text
    assert "test_gradcheck.py" in text
    assert isinstance(caught.value, AssertionError)


def test_wrong_second_order():
    bp.gradcheck(wrong_twice, (X,), modes=("rev",))
    with pytest.raises(bp.GradcheckError, match="pullback"):
        bp.gradcheck(wrong_twice, (X,), order=2, modes=("rev",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bp.gradcheck(jnp.sin, X), "args as a tuple"),
        (lambda: bp.gradcheck(jnp.sin, (X,), modes=("up",)), "has modes"),
        (lambda: bp.gradcheck(jnp.sin, ("a",)), "wants arrays"),
    ],
)
def test_errors(call, message):
    with pytest.raises(bp.ArgumentError, match=message):
        call()
