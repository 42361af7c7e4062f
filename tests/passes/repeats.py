"""Programs of repeated blocks: those that roll, and look-alikes that do so in part or not at all.

Each is a function of parameters and an input; `ROLL` tells the lengths of the scans that are made.
"""

import jax
import jax.numpy as jnp
from jax import lax, nn

import backpass as bp

N, B, D = 6, 3, 4


def weights(*shape, n=N, seed=0):
    """A list of `n` arrays."""
    keys = jax.random.split(jax.random.key(seed), n)
    return [0.5 * jax.random.normal(key, shape) for key in keys]


def rows(seed=9):
    return jax.random.normal(jax.random.key(seed), (B, D))


def dense():
    return [{"w": w, "b": b} for w, b in zip(weights(D, D), weights(D, seed=1), strict=True)]


def layer(p, h):
    return jnp.tanh(h @ p["w"] + p["b"])


def norm(h):
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)


def mlp(params, x):
    for p in params:
        x = layer(p, x)
    return (x**2).mean()


def residual(params, x):
    for p in params:
        x = x + layer(p, norm(x))
    return (x**2).mean()


def alternating(params, x):
    for a, b in zip(params[::2], params[1::2], strict=True):
        x = jnp.tanh(x @ a["w"])
        x = x * nn.sigmoid(x + b["b"])
    return (x**2).mean()


def attention(params, x):
    mask = jnp.tril(jnp.ones((B, B), bool))
    for p in params:
        y = norm(x)
        scores = jnp.where(mask, (y @ p["w"]) @ y.T, -1e9)
        x = x + nn.softmax(scores) @ y + p["b"]
    return (x**2).mean()


def masked_inside(params, x):
    """Each layer makes its mask: CSE leaves the first one's."""
    for p in params:
        mask = jnp.tril(jnp.ones((B, B), bool))
        x = x + nn.softmax(jnp.where(mask, x @ x.T, -1e9)) @ layer(p, x)
    return (x**2).mean()


def stacked_weights(w, x):
    for i in range(N):
        x = jnp.tanh(x @ w[i])
    return (x**2).mean()


def unstacked_weights(w, x):
    for each in w:
        x = jnp.tanh(x @ each)
    return (x**2).mean()


def time_steps(w, x):
    """An unrolled recurrent network whose states are all returned."""
    h, hs = jnp.zeros((B, D)), []
    for t in range(N):
        h = jnp.tanh(x[:, t] @ w + h @ w.T)
        hs.append(h)
    return (jnp.stack(hs, 1) ** 2).mean()


def lstm(w, x):
    h = c = jnp.zeros((B, D))
    for t in range(N):
        i, f, g, o = jnp.split(jnp.concatenate([x[:, t], h], -1) @ w, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
    return (h * c).mean()


def split_keys(params, x):
    keys = jax.random.split(jax.random.key(3), N)
    for key, p in zip(keys, params, strict=True):
        x = layer(p, x) * jax.random.bernoulli(key, 0.7, x.shape)
    return (x**2).mean()


def folded_keys(params, x):
    key = jax.random.key(3)
    for i, p in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(key, i), 0.7, x.shape)
        x = x + jnp.where(keep, layer(p, x) / 0.7, 0)
    return (x**2).mean()


def chained_keys(params, x):
    key = jax.random.key(3)
    for p in params:
        key, mine = jax.random.split(key)
        x = layer(p, x) + 0.1 * jax.random.normal(mine, x.shape)
    return (x**2).mean()


def numbers_differ(params, x):
    for i, p in enumerate(params):
        x = x + layer(p, x) * (0.5**i)
    return (x**2).mean()


def skip_to_embedding(params, x):
    h = x
    for p in params:
        h = layer(p, h + 0.1 * x)
    return (h**2).mean()


def hidden_states(params, x):
    found = []
    for p in params:
        x = layer(p, x)
        found.append(x)
    return sum((h**2).mean() for h in found), found


def auxiliary_losses(params, x):
    total = jnp.zeros(())
    for p in params:
        gates = nn.softmax(x @ p["w"])
        total = total + (gates.mean(0) ** 2).sum()
        x = x + gates * p["b"]
    return (x**2).mean() + total


def auxiliary_at_end(params, x):
    aux = []
    for p in params:
        gates = nn.softmax(x @ p["w"])
        aux.append((gates.mean(0) ** 2).sum())
        x = x + gates * p["b"]
    return (x**2).mean() + sum(aux)


def checkpointed(params, x):
    for p in params:
        x = jax.checkpoint(layer)(p, x) + x
    return (x**2).mean()


def ruled(params, x):
    """Activations with rules of their own."""
    for p in params:
        x = nn.relu(x @ p["w"] + p["b"]) + nn.silu(x)
    return (x**2).mean()


def scopes(params, x):
    for i, p in enumerate(params):
        with jax.named_scope(f"layer_{i}"):
            x = layer(p, x)
    return (x**2).mean()


def tied_in_pairs(params, x):
    for i in range(N):
        x = layer(params[i // 2], x)
    return (x**2).mean()


def memory_of_encoder(params, x):
    memory = jnp.sin(x)
    for p in params:
        x = x + nn.softmax(x @ memory.T) @ (memory @ p["w"])
    return (x**2).mean()


def two_towers(params, x):
    y = jnp.cos(x)
    for p in params:
        x, y = layer(p, x) + 0.1 * y, jnp.sin(y @ p["w"])
    return (x * y).mean()


def in_a_cond(params, x):
    return lax.cond(x[0, 0] > 0, mlp, residual, params, x)


def in_a_scan(params, x):
    h, _ = lax.scan(lambda h, _: (h + 0 * mlp(params, h) + layer(params[0], h), None), x, None, 2)
    return mlp(params, h)


def half_precision(params, x):
    x = x.astype(jnp.bfloat16)
    for p in params:
        x = jnp.tanh(x @ p["w"].astype(jnp.bfloat16)) + x
    return (x.astype(jnp.float32) ** 2).mean()


def inner_steps(params, x):
    """Each block holds a whole gradient."""
    p = params[0]["w"]
    for each in params:
        p = p - 0.1 * bp.grad(lambda w, b=each["b"]: (jnp.tanh(x @ w + b) ** 2).mean())(p)
    return (p**2).mean()


def stages(params, x):
    """Two widths: each stage is a chain of its own."""
    for p in params:
        x = layer(p, x)
    x = jnp.concatenate([x, x], -1)
    for p in params:
        x = jnp.sin(x @ jnp.tile(p["w"], (2, 2)))
    return (x**2).mean()


def embedded(params, x):
    """The first layer reads integers, the last gives more than a layer."""
    h = params[0]["w"][jnp.arange(B) % 2] + x
    for p in params:
        h = h + layer(p, norm(h))
    return -nn.log_softmax(norm(h) @ params[0]["w"].T).mean()


def differing_widths(params, x):
    for i, p in enumerate(params):
        width = D - i % 2
        x = jnp.pad(jnp.tanh(x[:, :width] @ p["w"][:width]), ((0, 0), (0, i)))[:, :D]
    return (x**2).mean()


def differing_ops(params, x):
    for f, p in zip([jnp.tanh, jnp.sin, jnp.cos, jnp.exp, jnp.abs, nn.gelu], params, strict=True):
        x = f(0.1 * x @ p["w"])
    return (x**2).mean()


def parallel(params, x):
    """Each layer reads the input; the sum of their losses is a chain."""
    return sum((layer(p, x) ** 2).mean() for p in params)


def states(params, x):
    """All states are returned as one array: the scan has it."""
    found = []
    for p in params:
        x = layer(p, x)
        found.append(x)
    return (jnp.stack(found, 1) ** 2).mean()


def ensemble(params, x):
    return jnp.stack([layer(p, x) for p in params]).var(0).mean()


def dense_connections(params, x):
    """Each layer reads the sum of a growing list."""
    found = [x]
    for p in params:
        found.append(layer(p, jnp.concatenate(found, -1)[:, -D:] + sum(found)))
    return (found[-1] ** 2).mean()


def two_back(params, x):
    before, now = x, jnp.sin(x)
    for p in params:
        before, now = now, layer(p, now) + 0.3 * before
    return (now**2).mean()


def two_layers(params, x):
    return mlp(params[:2], x)


def printed(params, x):
    for p in params:
        x = layer(p, x)
        jax.debug.callback(lambda _: None, x[0, 0])
    return (x**2).mean()


def axes_differ(params, x):
    for i, p in enumerate(params):
        x = jnp.tanh(x @ p["w"]) - x.mean(i % 2, keepdims=True)
        x = x * (1 if i < 3 else 2) if i % 3 else x
    return (x**2).mean()


def casts_differ(params, x):
    types = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float32, jnp.float16, jnp.bfloat16]
    for kind, p in zip(types, params, strict=True):
        x = layer(p, x.astype(kind).astype(x.dtype))
    return (x**2).mean()


def permutations_differ(params, x):
    for i, p in enumerate(params):
        cube = (x @ p["w"]).reshape(B, 2, 2)
        turns = [(0, 1, 2), (0, 2, 1), (0, 2, 1), (0, 1, 2), (0, 1, 2), (0, 2, 1)]
        x = jnp.tanh(jnp.transpose(cube, turns[i]).reshape(B, D) + cube.reshape(B, D) * i)
    return (x**2).mean()


def closures_differ(params, x):
    """Each layer has a rule of its own, and they are not the same rule."""
    for i, p in enumerate(params):

        @jax.custom_jvp
        def f(h):
            return jnp.tanh(h)

        @f.defjvp
        def rule(primals, tangents, i=i):
            return jnp.tanh(primals[0]), tangents[0] * jnp.cos(primals[0] * (i + 1) ** 0.5)

        x = f(x @ p["w"])
    return (x**2).mean()


def own_gradient(params, x):
    """A step that JAX has differentiated: the backward half reads what all layers made."""
    grads = jax.grad(residual)(params[:2], x)
    return sum((g**2).sum() for g in jax.tree.leaves(grads))


def waits_for_all(params, x):
    """The second loop's layers read the first one's results in the other order."""
    found = []
    for p in params[:2]:
        x = layer(p, x)
        found.append(x)
    return (x * found[0]).mean()


STAY = {
    "differing_widths": differing_widths,
    "differing_ops": differing_ops,
    "dense_connections": dense_connections,
    "two_back": two_back,
    "two_layers": two_layers,
    "casts_differ": casts_differ,
    "axes_differ": axes_differ,
    "closures_differ": closures_differ,
    "own_gradient": own_gradient,
    "waits_for_all": waits_for_all,
    "ensemble": ensemble,
}


def first_differs(params, x):
    return mlp(params, layer(params[0], norm(x)))


def middle_differs(params, x):
    for i, p in enumerate([*params, *params]):
        x = layer(p, x)
        if i == 5:
            x = norm(x)
    return (x**2).mean()


def skip_from_middle(params, x):
    """The last layers read what the third one made."""
    kept = x
    for i, p in enumerate([*params, *params]):
        x = layer(p, x + kept)
        if i == 3:
            kept = x
    return (x**2).mean()


def unet(params, x):
    skips = []
    for p in params:
        x = layer(p, x)
        skips.append(x)
    for p in params:
        x = jnp.sin(x @ p["w"]) + skips.pop()
    return (x**2).mean()


def last_is_read(params, x):
    """What the last layer makes on its way is read as well."""
    for p in params:
        y = x @ p["w"]
        x = jnp.tanh(y) + x
    return (x**2).mean() + (y**2).mean()


def drop_path(params, x):
    """Layers differ in whether they have the branch: the longest stretch is rolled."""
    for i, p in enumerate([*params, *params]):
        x = layer(p, x) if i % 7 else x + jnp.sin(p["b"])
    return (x**2).mean()


PART = {
    "first_differs": (first_differs, {5}),
    "middle_differs": (middle_differs, {5, 6}),
    "skip_from_middle": (skip_from_middle, {4, 6}),
    "unet": (unet, {6}),
    "last_is_read": (last_is_read, {5}),
    "drop_path": (drop_path, {4, 5, 6}),
}


# Names and lengths of the scans
ROLL = {
    "mlp": (mlp, dense, [6]),
    "residual": (residual, dense, [6]),
    "alternating": (alternating, dense, [3]),
    "attention": (attention, dense, [6]),
    "masked_inside": (masked_inside, dense, [6]),
    "stacked_weights": (stacked_weights, lambda: jnp.stack(weights(D, D)), [6]),
    "unstacked_weights": (unstacked_weights, lambda: jnp.stack(weights(D, D)), [6]),
    "split_keys": (split_keys, dense, [6]),
    "folded_keys": (folded_keys, dense, [6]),
    "chained_keys": (chained_keys, dense, [5]),
    "numbers_differ": (numbers_differ, dense, [6]),
    "skip_to_embedding": (skip_to_embedding, dense, [6]),
    "hidden_states": (hidden_states, dense, [6]),
    "auxiliary_losses": (auxiliary_losses, dense, [6]),
    "auxiliary_at_end": (auxiliary_at_end, dense, [6]),
    "checkpointed": (checkpointed, dense, [6]),
    "ruled": (ruled, dense, [6]),
    "scopes": (scopes, dense, [6]),
    "tied_in_pairs": (tied_in_pairs, dense, [3]),
    "memory_of_encoder": (memory_of_encoder, dense, [6]),
    "two_towers": (two_towers, dense, [6]),
    "in_a_cond": (in_a_cond, dense, [6, 6]),
    "stages": (stages, dense, [6, 6]),
    "states": (states, dense, [6]),
    "embedded": (embedded, dense, [6]),
    "half_precision": (half_precision, dense, [6]),
    "parallel": (parallel, dense, [6]),
    "printed": (printed, dense, [6]),
    "inner_steps": (inner_steps, dense, [6]),
    "in_a_scan": (in_a_scan, dense, [2, 6, 6]),
}
TIME = {
    "time_steps": (time_steps, lambda: weights(D, D)[0], [5]),
    "lstm": (lstm, lambda: 0.5 * jax.random.normal(jax.random.key(0), (2 * D, 4 * D)), [6]),
}
