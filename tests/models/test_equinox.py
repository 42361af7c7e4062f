"""Equinox models, unmodified: modules are pytrees with functions and strings among their leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import backpass as bp
from models.comparison import assert_close, assert_same_gradients, draw, weighted
from models.networks import labels


def key(seed=0):
    return jax.random.key(seed)


class Attending(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    rope: eqx.nn.RotaryPositionalEmbedding

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.2, key=key())
        self.norm = eqx.nn.LayerNorm(8)
        self.rope = eqx.nn.RotaryPositionalEmbedding(8)

    def __call__(self, x):
        h = self.rope(jax.vmap(self.norm)(x))
        return x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((5, 5), bool)), key=key(3))


class Recurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    gru: eqx.nn.GRUCell

    def __init__(self):
        self.cell = eqx.nn.LSTMCell(8, 4, key=key())
        self.gru = eqx.nn.GRUCell(4, 4, key=key(1))

    def __call__(self, xs):
        def step(carry, x):
            lstm, h = carry
            lstm = self.cell(x, lstm)
            h = self.gru(lstm[0], h)
            return (lstm, h), h

        zero = jnp.zeros(4)
        return jax.lax.scan(step, ((zero, zero), zero), xs)[1]


class Experts(eqx.Module):
    """The two best of four MLPs, made by `filter_vmap`, for each token."""

    router: eqx.nn.Linear
    experts: eqx.nn.MLP

    def __init__(self):
        self.router = eqx.nn.Linear(3, 4, key=key())
        make = eqx.filter_vmap(lambda k: eqx.nn.MLP(3, 3, 5, 1, jax.nn.gelu, key=k))
        self.experts = make(jax.random.split(key(1), 4))

    def __call__(self, x):
        gates, chosen = jax.lax.top_k(jax.nn.softmax(self.router(x)), 2)
        every = eqx.filter_vmap(lambda expert: expert(x))(self.experts)
        return jnp.sum(gates[:, None] / gates.sum() * every[chosen], 0)


MODELS = {
    "experts": lambda: (Experts(), (3,)),
    "mlp": lambda: (eqx.nn.MLP(3, 2, 8, 2, jnp.tanh, key=key()), (3,)),
    "convolutions": lambda: (
        eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 4, 3, padding=1, key=key()),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.GroupNorm(2, 4),
                eqx.nn.ConvTranspose2d(4, 2, 3, stride=2, key=key(1)),
                eqx.nn.Lambda(jax.nn.silu),
                eqx.nn.AvgPool2d(2, 2),
            ]
        ),
        (3, 8, 8),
    ),
    "attention": lambda: (Attending(), (5, 8)),
    "recurrent": lambda: (Recurrent(), (5, 8)),
    "weight norm": lambda: (eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=key())), (4,)),
    "rms norm": lambda: (eqx.nn.RMSNorm(4), (4,)),
    "prelu": lambda: (eqx.nn.PReLU(0.2), (4,)),
    "adaptive pool": lambda: (eqx.nn.AdaptiveAvgPool2d(2), (1, 4, 4)),
}


def example(name):
    """A model in float64, split into its arrays and the rest, and a batch for it."""
    model, shape = MODELS[name]()
    wide = jax.tree.map(lambda v: v.astype(float) if eqx.is_inexact_array(v) else v, model)
    return *eqx.partition(wide, eqx.is_inexact_array), draw(1, 3, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_partitioned(name):
    """`eqx.partition` gives arrays to differentiate by; `eqx.combine` the model that is called."""
    params, static, x = example(name)
    assert_same_gradients(
        lambda params, x: weighted(jax.vmap(eqx.combine(params, static))(x) ** 2),
        params,
        x,
        argnums=(0, 1),
    )


def test_batch_norm_with_state():
    model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, state, x):
        call = jax.vmap(
            eqx.combine(params, static), axis_name="batch", in_axes=(0, None), out_axes=(0, None)
        )
        out, state = call(x, state)
        return weighted(out**2), jax.tree.leaves(state)

    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    assert_same_gradients(loss, params, state, draw(1, 5, 3), has_aux=True, relative=1e-6)


def test_our_gradient_inside_filter_jit():
    """Equinox's own wrappers meet ours as any traced function."""
    params, static, x = example("mlp")

    def loss(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    found = eqx.filter_jit(bp.grad(loss))(params, x)
    assert_close(found, eqx.filter_grad(loss)(params, x))


def test_filter_grad_inside_compile():
    """The other way round: the gradient is Equinox's, the compiler ours."""
    params, static, x = example("recurrent")

    def step(params, x):
        def loss(model):
            return jnp.sum(jax.vmap(model)(x) ** 2)

        return eqx.filter(eqx.filter_grad(loss)(eqx.combine(params, static)), eqx.is_array)

    assert_close(bp.compile(step)(params, x), jax.jit(step)(params, x))


def test_training_step():
    params, static, _ = example("mlp")
    x, y, tx = draw(2, 6, 3), labels(3, 2, 6), optax.adamw(1e-2)

    def step(transform):
        def run(params, state):
            def loss(params):
                logits = jax.vmap(eqx.combine(params, static))(x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            value, grads = transform(loss)(params)
            updates, state = tx.update(grads, state, params)
            return eqx.apply_updates(params, updates), state, value

        return run

    ours, theirs = bp.compile(step(bp.value_and_grad)), jax.jit(step(jax.value_and_grad))
    found, expected = (params, tx.init(params), 0.0), (params, tx.init(params), 0.0)
    for _ in range(3):
        found, expected = ours(*found[:2]), theirs(*expected[:2])
    assert_close(found, expected)
