"""Flax models as their users write them: Linen modules and NNX modules, with state and dropout."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import backpass as bp
from models.comparison import assert_close, assert_same_gradients, draw, weighted
from models.networks import cross_entropy, labels

# Linen


class Cnn(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Conv(4, (3, 3), dtype=x.dtype)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.max_pool(linen.relu(x), (2, 2), (2, 2))
        x = linen.ConvTranspose(3, (3, 3), (2, 2))(x)
        x = linen.avg_pool(linen.GroupNorm(3)(x), (2, 2), (2, 2))
        return linen.Dense(5)(linen.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1)))


class Residual(linen.Module):
    """Two blocks of a ResNet, the second of which halves the image and doubles the channels."""

    @linen.compact
    def __call__(self, x, train=True):
        for channels, stride in ((3, 1), (6, 2)):
            y = linen.Conv(channels, (3, 3), (stride, stride), use_bias=False)(x)
            y = linen.relu(linen.BatchNorm(use_running_average=not train)(y))
            y = linen.Conv(channels, (3, 3), use_bias=False)(y)
            y = linen.BatchNorm(use_running_average=not train)(y)
            if stride > 1:
                x = linen.Conv(channels, (1, 1), (stride, stride), use_bias=False)(x)
            x = linen.relu(x + y)
        return linen.Dense(5)(x.mean((1, 2)))


class Mlp(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        for size in (6, 5):
            x = linen.tanh(linen.Dense(size)(x))
        return linen.Dense(2)(x)


class Encoder(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        y = linen.LayerNorm()(x)
        y = linen.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not train)(y)
        x = x + y
        return x + linen.Dense(x.shape[-1])(linen.gelu(linen.Dense(12)(linen.RMSNorm()(x))))


class Stacked(linen.Module):
    """Layers by `nn.scan` of `nn.remat`, as in every large Linen model."""

    @linen.compact
    def __call__(self, tokens, train=True):
        x = linen.Embed(7, 8)(tokens)
        layer = linen.remat(Block, prevent_cse=False)
        scanned = linen.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return linen.Dense(7)(scanned()(x, None)[0])


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.Dense(8)(linen.silu(linen.Dense(8)(x))), None


class Recurrent(linen.Module):
    cell: str

    @linen.compact
    def __call__(self, x, train=True):
        cell = getattr(linen, self.cell)(5, param_dtype=x.dtype)
        return linen.RNN(cell, reverse=True, keep_order=True)(x)


class Wrapped(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.WeightNorm(linen.Dense(4))(x)
        x = linen.SpectralNorm(linen.Dense(4))(x, update_stats=train)
        x = linen.PReLU()(linen.Einsum((4, 2, 3), "...a,abc->...bc")(x))
        return linen.DenseGeneral(4, axis=(-2, -1))(linen.InstanceNorm()(x))


IMAGE, SEQUENCE = (2, 4, 4, 3), (2, 5, 8)
LINEN = {
    "mlp": (Mlp(), (4, 3)),
    "cnn": (Cnn(), IMAGE),
    "residual": (Residual(), IMAGE),
    "encoder": (Encoder(), SEQUENCE),
    "stacked": (Stacked(), None),
    "lstm": (Recurrent("OptimizedLSTMCell"), SEQUENCE),
    "gru": (Recurrent("GRUCell"), SEQUENCE),
    "wrapped": (Wrapped(), (2, 5, 8)),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    module, shape = LINEN[name]
    x = labels(1, 7, 2, 5) if shape is None else draw(1, *shape)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(module.init)(rngs, x)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), variables["params"])
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, x):
        given = {"params": params, **state}
        out, new = module.apply(given, x, rngs=rngs, mutable=["batch_stats"])
        return weighted(out**2), new

    assert_same_gradients(loss, params, x, has_aux=True)


def test_linen_train_state():
    """`TrainState` crosses the boundary as an argument and as a result."""
    module, x, y = Encoder(), draw(1, *SEQUENCE), draw(2, *SEQUENCE)
    init = jax.jit(lambda key: module.init(key, x, train=False))
    params = init(jax.random.key(0))["params"]
    state = train_state.TrainState.create(
        apply_fn=module.apply, params=params, tx=optax.adamw(1e-2)
    )

    def step(transform):
        def run(state, x, y):
            def loss(params):
                out = state.apply_fn({"params": params}, x, train=False)
                return jnp.mean((out - y) ** 2)

            value, grads = transform(loss)(state.params)
            return state.apply_gradients(grads=grads), value

        return run

    ours = bp.compile(step(bp.value_and_grad))
    theirs = jax.jit(step(jax.value_and_grad))
    found = expected = state
    for _ in range(3):
        (found, loss), (expected, reference) = ours(found, x, y), theirs(expected, x, y)
    assert_close(loss, reference, 1e-6)
    assert_close(found.params, expected.params, 1e-5)
    assert int(found.step) == 3 and len(ours.explain().traces) == 1


# NNX


class Mixer(nnx.Module):
    def __init__(self, rngs):
        options = {"rngs": rngs, "param_dtype": jnp.float64}
        self.conv = nnx.Conv(3, 4, (3, 3), **options)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.dense = nnx.Linear(4, 8, **options)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, **options)
        self.last = nnx.LayerNorm(8, **options)

    def __call__(self, x):
        x = self.norm(self.conv(x).astype(jnp.float32)).astype(jnp.float64)
        x = nnx.max_pool(nnx.relu(x), (2, 2), (2, 2))
        x = self.dense(x.reshape(x.shape[0], -1, 4))
        return self.last(x + self.attention(self.drop(x)))


class Tower(nnx.Module):
    """Layers made by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs):
            return nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.float64)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return jnp.tanh(layer(x)) + x

        return forward(self.layers, x)


class Lora(nnx.Module):
    def __init__(self, rngs):
        self.lora = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs, param_dtype=jnp.float64)
        self.embed = nnx.Embed(7, 4, rngs=rngs, param_dtype=jnp.float64)
        self.cell = nnx.GRUCell(4, 4, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, tokens):
        x = self.lora(self.embed(tokens))
        h = jnp.zeros_like(x[:, 0])
        for i in range(x.shape[1]):
            h, _ = self.cell(h, x[:, i])
        return h


class Residuals(nnx.Module):
    """A ResNet block with its running statistics."""

    def __init__(self, rngs):
        options = {"rngs": rngs, "param_dtype": jnp.float64}
        self.convs = nnx.List([nnx.Conv(3, 3, (3, 3), use_bias=False, **options) for _ in "ab"])
        self.norms = nnx.List([nnx.BatchNorm(3, rngs=rngs) for _ in "ab"])
        self.head = nnx.Linear(3, 5, **options)

    def __call__(self, x):
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(nnx.relu(y)).astype(jnp.float32)).astype(jnp.float64)
        return self.head(nnx.relu(x + y).mean((1, 2)))


class Transformer(nnx.Module):
    """Pre-norm blocks with tied embeddings; causal."""

    def __init__(self, rngs):
        options = {"rngs": rngs, "param_dtype": jnp.float64}
        self.embed = nnx.Embed(7, 8, **options)
        self.norms = nnx.List([nnx.RMSNorm(8, **options) for _ in "abc"])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, **options)
        self.up, self.down = nnx.Linear(8, 12, **options), nnx.Linear(12, 8, **options)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(tokens))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.embed.attend(self.norms[2](x))


class Recurrence(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 5, rngs=rngs, param_dtype=jnp.float64))

    def __call__(self, x):
        return self.rnn(x)


NNX = {
    # running statistics are in float32
    "residuals": (Residuals, lambda: draw(1, *IMAGE), 1e-4),
    # its softmax is in float32
    "transformer": (Transformer, lambda: labels(1, 7, 2, 5), 1e-5),
    "lstm": (Recurrence, lambda: draw(1, *SEQUENCE), 1e-9),
    "mixer": (Mixer, lambda: draw(1, *IMAGE), 1e-4),
    "tower": (Tower, lambda: draw(1, 3, 4), 1e-9),
    "lora": (Lora, lambda: labels(1, 7, 2, 3), 1e-9),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx_functional(name):
    """`nnx.split` and `nnx.merge`: parameters are a pytree, what else changes comes back as aux."""
    kind, inputs, relative = NNX[name]
    definition, params, rest = nnx.split(kind(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, rest, x):
        module = nnx.merge(definition, params, rest, copy=True)
        out = weighted(module(x) ** 2)
        return out, jax.tree.map(jnp.asarray, nnx.state(module, nnx.BatchStat))

    assert_same_gradients(loss, params, rest, inputs(), has_aux=True, relative=relative)


def test_nnx_module_and_optimizer():
    """The step of Flax's own guide with `bp.value_and_grad` on the split parameters."""
    x, y = draw(1, 6, 4), labels(2, 3, 6)

    def train(compile, transform):
        model = nnx.Sequential(
            nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 3, rngs=nnx.Rngs(1))
        )
        tx = optax.adam(1e-2)
        definition, params = nnx.split(model)

        def step(params, state, x, y):
            def loss(params):
                return cross_entropy(nnx.merge(definition, params)(x), y)

            value, grads = transform(loss)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        step, state = compile(step), tx.init(params)
        losses = []
        for _ in range(5):
            params, state, value = step(params, state, x, y)
            losses.append(float(value))
        return losses

    found, expected = train(bp.compile, bp.value_and_grad), train(jax.jit, jax.value_and_grad)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] < found[0]
