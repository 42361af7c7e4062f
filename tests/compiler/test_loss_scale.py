"""`bp.LossScale`: skipped steps, back-off and growth, in the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((32, 16)), jnp.float32)
W = jnp.asarray(RNG.standard_normal((16, 4)), jnp.float32) / 4


@bp.compile(precision="float16")
def step(w, scale, x):
    loss, grads = bp.value_and_grad(lambda w: scale.scale(jnp.mean(jnp.tanh(x @ w) ** 2)))(w)
    grads, finite = scale.unscale(grads)
    new = w - 0.1 * grads
    return scale.keep(finite, new, w), scale.adjust(finite), loss / scale.value, grads


def test_gradients_are_those_of_the_loss():
    scale = bp.LossScale()
    w, after, loss, grads = step(W, scale, X)
    want, exact = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(X @ w) ** 2))(W)
    np.testing.assert_allclose(loss, want, rtol=1e-2)
    np.testing.assert_allclose(grads, exact, rtol=0.05, atol=1e-4)
    np.testing.assert_allclose(w, W - 0.1 * grads, rtol=1e-6)
    assert float(after.value) == 2**15 and int(after.steps) == 1


def test_an_overflow_skips_the_step_and_backs_off():
    scale = bp.LossScale(value=jnp.float32(2.0**40))
    w = W
    for skipped in range(1, 40):
        w, scale, _, _ = step(w, scale, X)
        if (np.asarray(w) != np.asarray(W)).any():
            break
        assert float(scale.value) == 2.0 ** (40 - skipped) and int(scale.steps) == 0
    assert skipped > 1 and np.isfinite(w).all()


def test_it_grows_after_a_period():
    scale = bp.LossScale(value=jnp.float32(8), period=3, factor=4.0)
    seen = []
    for _ in range(4):
        scale = scale.adjust(jnp.bool_(True))
        seen.append((float(scale.value), int(scale.steps)))
    assert seen == [(8, 1), (8, 2), (32, 0), (32, 1)]
    least = bp.LossScale(value=jnp.float32(1)).adjust(jnp.bool_(False))
    assert float(least.value) == 1
    most = bp.LossScale(value=jnp.float32(3e38), period=1).adjust(jnp.bool_(True))
    assert float(most.value) == np.float32(3e38)


def test_integers_among_the_gradients_stay():
    scale = bp.LossScale(value=jnp.float32(4))
    grads, finite = scale.unscale({"w": jnp.full(3, 8.0), "n": np.zeros(2, jax.dtypes.float0)})
    assert (grads["w"] == 2).all() and grads["n"].dtype == jax.dtypes.float0 and bool(finite)
