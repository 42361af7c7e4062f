"""Networks in plain `jax.numpy`: unrolled and scanned, checkpointed, stateful, twice differentiated."""

import jax
import jax.numpy as jnp
import pytest

from models import networks
from models.comparison import assert_same_gradients, draw
from models.networks import RELATIVE, TABLE, Init, labels


@pytest.mark.parametrize("name", TABLE)
def test_gradient_is_that_of_jax(name):
    loss, args = TABLE[name]
    assert_same_gradients(loss, *args, relative=RELATIVE.get(name, 1e-9))


def test_batch_statistics_come_back_as_aux():
    params = networks.resnet_params(Init(0))
    state = {k: {"mean": jnp.zeros(8), "var": jnp.ones(8)} for k in ("na", "nb")}
    args = params, state, draw(2, 2, 8, 8, 3), labels(3, 5, 2)
    assert_same_gradients(networks.resnet_batch_norm, *args, has_aux=True)


@pytest.mark.parametrize("name", ["mlp tanh", "lstm", "mlp scanned", "lenet", "vae"])
def test_gradient_of_the_gradient(name):
    loss, args = TABLE[name]

    def slope(params, *rest):
        grads = jax.grad(loss)(params, *rest)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(grads))

    assert_same_gradients(slope, *args)
