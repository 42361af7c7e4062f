"""`health=True` on networks: norms, zeros and update ratios as NumPy has them, results unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from models.networks import TABLE

NAMES = ["mlp tanh", "mlp scanned", "lenet", "lstm", "wavenet", "vae"]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_numpy(name):
    loss, (params, *rest) = TABLE[name]

    def step(params, *rest):
        value, grads = bp.value_and_grad(loss)(params, *rest)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    (new, value), health = bp.compile(step, health=True)(params, *rest)
    expected, grads = jax.value_and_grad(loss)(params, *rest)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert health.norms.dtype == np.float64
    leaves = [jax.tree.leaves(tree) for tree in (grads, params, new)]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    for path, *found in zip(paths, *leaves, strict=True):
        g, p, q = map(np.asarray, found)
        reading = health[f"args[0]{path}"]
        np.testing.assert_allclose(reading.gradient_norm, np.linalg.norm(g), rtol=1e-7)
        np.testing.assert_allclose(reading.parameter_norm, np.linalg.norm(p), rtol=1e-9)
        ratio = np.linalg.norm(q - p) / np.linalg.norm(p)
        np.testing.assert_allclose(reading.update_ratio, ratio, rtol=1e-6)
        np.testing.assert_allclose(reading.zeros, np.mean(g == 0), atol=1e-12)
        assert (reading.nans, reading.infinities, reading.runs) == (0, 0, 1)
    assert jnp.all(jnp.isfinite(health.norms))
