"""A small GPT whose layers are one stack, and four ways to lay it over devices.

    data       the batch is divided, every device has all parameters
    tensor     heads, hidden units and vocabulary are divided over `model`, the batch over `data`
    fsdp       parameters and the optimiser's state are divided, as is the batch
    pipeline   layers are divided into stages; microbatches move from stage to stage by `ppermute`

The first three are the same function: what differs is where its arguments lie. Activations are
told to stay with their part of the batch, or XLA may divide them by features, as it finds the
parameters. The pipeline is a `shard_map` with a scan over ticks inside.

Source: Shoeybi et al. 2019 (tensor); Rajbhandari et al. 2020 (fsdp); Huang et al. 2019 (pipeline).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp

STRATEGIES = ("data", "tensor", "fsdp", "pipeline")
RATE, BETA1, BETA2 = 1e-2, 0.9, 0.99


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batch; heads, layers and batch are multiples of the devices."""

    layers: int = 8
    width: int = 64
    heads: int = 8
    context: int = 64
    vocabulary: int = 256
    batch: int = 16


# The model


def init(sizes: Sizes) -> dict:
    """Parameters as NumPy arrays, the same in every process."""
    draw, n, d = np.random.default_rng(0), sizes.layers, sizes.width
    head = d // sizes.heads

    def matrix(*shape: int) -> np.ndarray:
        return (0.05 * draw.normal(size=shape)).astype(np.float32)

    return {
        "embedding": matrix(sizes.vocabulary, d),
        "positions": matrix(sizes.context, d),
        "blocks": {
            "norm1": np.ones((n, d), np.float32),
            "qkv": matrix(n, d, 3, sizes.heads, head),
            "out": matrix(n, sizes.heads, head, d),
            "norm2": np.ones((n, d), np.float32),
            "up": matrix(n, d, 4 * d),
            "down": matrix(n, 4 * d, d),
        },
        "norm": np.ones(d, np.float32),
        "head": matrix(d, sizes.vocabulary),
    }


def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def block(x: jax.Array, p: dict) -> jax.Array:
    """One layer: `f32[batch, time, width]` to the same."""
    with jax.named_scope("attention"):
        q, k, v = jnp.einsum("btd,dshk->sbthk", normalise(x, p["norm1"]), p["qkv"])
        scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        x += jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, v), p["out"])
    with jax.named_scope("mlp"):
        return x + jax.nn.gelu(normalise(x, p["norm2"]) @ p["up"]) @ p["down"]


def layers(x: jax.Array, blocks: dict, lie: Callable = lambda x: x) -> jax.Array:
    """All layers; `lie` says where an activation lies."""
    return lax.scan(lambda x, p: (lie(block(x, p)), None), lie(x), blocks)[0]


def loss_of(params: dict, tokens: jax.Array, body: Callable) -> jax.Array:
    """Mean cross-entropy in nats of `i32[batch, time + 1]`; `body` are the layers."""
    x = params["embedding"][tokens[:, :-1]] + params["positions"]
    x = normalise(body(x, params["blocks"]), params["norm"])
    logits = jax.nn.log_softmax(x @ params["head"])
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1).mean()


def pipelined(mesh: Mesh, microbatches: int) -> Callable:
    """Return `layers` in stages: at each tick a stage works, and hands on what it has made."""
    stages = mesh.shape["stage"]
    ring = [(i, (i + 1) % stages) for i in range(stages)]

    def staged(x: jax.Array, blocks: dict) -> jax.Array:
        parts = x.reshape(microbatches, -1, *x.shape[1:])
        stage = lax.axis_index("stage")

        def tick(carry, t):
            coming, done = carry
            fresh = parts[jnp.minimum(t, microbatches - 1)]
            made = layers(jnp.where(stage == 0, fresh, coming), blocks)
            at = jnp.maximum(t - stages + 1, 0)
            done = lax.dynamic_update_index_in_dim(done, made, at, 0)
            return (lax.ppermute(made, "stage", ring), done), None

        start = lax.pcast((jnp.zeros_like(parts[0]), jnp.zeros_like(parts)), "stage", to="varying")
        (_, done), _ = lax.scan(tick, start, jnp.arange(microbatches + stages - 1))
        last = jnp.where(stage == stages - 1, done, 0)
        return lax.psum(last, "stage").reshape(x.shape)

    specs = (P(), jax.tree.map(lambda _: P("stage"), {**init(Sizes())["blocks"]}))
    return jax.shard_map(staged, mesh=mesh, in_specs=specs, out_specs=P())


# Where things lie

TENSOR = {
    "qkv": P(None, None, None, "model"),
    "out": P(None, "model"),
    "up": P(None, None, "model"),
    "down": P(None, "model"),
    "head": P(None, "model"),
}


def mesh_of(strategy: str) -> Mesh:
    """All devices of all processes: `data` and `model`, `stage`, or `data` alone."""
    count = jax.device_count()
    if strategy == "tensor":
        model = 4 if count % 4 == 0 else count
        return jax.make_mesh((count // model, model), ("data", "model"), (AxisType.Auto,) * 2)
    name = "stage" if strategy == "pipeline" else "data"
    return jax.make_mesh((count,), (name,), (AxisType.Auto,))


def shardings(strategy: str, mesh: Mesh, params: dict) -> tuple:
    """Shardings of the parameters and of the tokens."""

    def of(path, x) -> P:
        name = path[-1].key
        if strategy == "tensor":
            return TENSOR.get(name, P())
        if strategy == "pipeline":
            return P("stage") if path[0].key == "blocks" else P()
        if strategy == "fsdp":  # the last dimension that all devices divide
            even = [i for i, n in enumerate(x.shape) if n % mesh.size == 0]
            return P(*[None] * even[-1], "data") if even else P()
        return P()

    specs = jax.tree_util.tree_map_with_path(of, params)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return placed, NamedSharding(mesh, P() if strategy == "pipeline" else P("data"))


# Training


def make_step(strategy: str, mesh: Mesh, places: tuple, **options) -> Callable:
    """Return the compiled `(state, tokens) -> (state, loss)`, with Adam; `options` are bp's."""
    of_params, of_tokens = places
    if strategy == "pipeline":
        body = pipelined(mesh, microbatches=mesh.size)
    else:
        body = partial(layers, lie=partial(lax.with_sharding_constraint, shardings=of_tokens))
    of_state = (of_params, of_params, of_params, NamedSharding(mesh, P()))

    def step(state, tokens):
        params, m, v, t = state
        loss, grads = bp.value_and_grad(loss_of)(params, tokens, body)
        t = t + 1
        with jax.named_scope("adam"):
            m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, grads)
            v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, grads)
            rate = RATE * jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
            params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, m, v)
        return (params, m, v, t), loss

    return bp.compile(
        step,
        donate_argnums=0,
        in_shardings=(of_state, of_tokens),
        out_shardings=(of_state, NamedSharding(mesh, P())),
        **options,
    )


def placed(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Lay an array that every process has over the devices of all of them."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def prepared(strategy: str, sizes: Sizes, **options) -> tuple[Callable, tuple, Callable]:
    """Return a compiled step, a state that lies where it should, and the tokens of step `i`."""
    mesh = mesh_of(strategy)
    params = init(sizes)
    places = shardings(strategy, mesh, params)
    zeros = jax.tree.map(np.zeros_like, params)
    here = (jax.tree.map(placed, tree, places[0]) for tree in (params, zeros, zeros))
    state = (*here, placed(np.float32(0), NamedSharding(mesh, P())))

    def tokens(i: int) -> jax.Array:
        start = np.random.default_rng(i).integers(0, sizes.vocabulary, (sizes.batch, 1))
        drawn = (start + 3 * np.arange(sizes.context + 1)) % sizes.vocabulary
        return placed(drawn.astype(np.int32), places[1])

    return make_step(strategy, mesh, places, **options), state, tokens


def train(
    strategy: str,
    steps: int,
    sizes: Sizes,
    tell: Callable = print,
    saves: Path | None = None,
    **options,
) -> list:
    """Train on bytes of a pattern and return the losses, one for each step.

    With a folder for `saves` the state is saved after each step, every process its part, and a run
    goes on from the last save.
    """
    step, state, tokens = prepared(strategy, sizes, **options)
    losses = []
    with bp.Saver(saves) if saves else nullcontext() as saver:
        start, state = saver and saver.restore(state) or (0, state)
        for i in range(start, steps):
            state, loss = step(state, tokens(i))
            losses.append(float(loss))
            tell(f"{strategy}, step {i + 1} of {steps}: loss {losses[-1]:.4f}")
            if saver:
                saver.save(i + 1, state)
    return losses
