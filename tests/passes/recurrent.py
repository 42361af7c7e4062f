"""Recurrent programs as people write them: what of a loop's work can be done outside of it.

Each is `f(params, xs)`; `MOVED` tells how many products go before the loop, how many sums and how
many products after it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

T, B, D, H = 5, 2, 4, 6


def parameters(seed=0):
    draw = np.random.default_rng(seed).normal
    sizes = {
        "w": (D, 4 * H),
        "u": (H, 4 * H),
        "b": (4 * H,),
        "both": (D + H, 4 * H),
        "square": (D, H),
        "again": (H, H),
        "bias": (H,),
        "reset": (D, 3 * H),
        "state": (H, 3 * H),
        "head": (H, D),
        "scale": (D,),
    }
    return {name: 0.5 * draw(size=shape) for name, shape in sizes.items()}


def sequence(seed=1, length=T):
    return np.random.default_rng(seed).normal(size=(length, B, D))


def gates(z, c):
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def zeros(*shape):
    return jnp.zeros(shape or (B, H))


def lstm(p, xs, **options):
    start = jnp.zeros((xs.shape[1], p["u"].shape[0]), xs.dtype)

    def cell(state, x):
        h, c = state
        h, c = gates(x @ p["w"] + h @ p["u"] + p["b"], c)
        return (h, c), h

    return lax.scan(cell, (start, start), xs, **options)


def concatenated(p, xs):
    def cell(state, x):
        h, c = gates(jnp.concatenate([x, state[0]], -1) @ p["both"] + p["b"], state[1])
        return (h, c), h

    return lax.scan(cell, (zeros(), zeros()), xs)


def concatenated_behind(p, xs):
    """The state first, the weights to the left, and a constant among what is concatenated."""
    one = jnp.ones((B, 1))
    w = jnp.concatenate([p["u"], p["w"], p["b"][None]]).T

    def cell(state, x):
        both = jnp.concatenate([state[0], x, one], -1)
        h, c = gates((w @ both.T).T, state[1])
        return (h, c), None

    return lax.scan(cell, (zeros(), zeros()), xs)[0]


def gru(p, xs):
    def cell(h, x):
        xr, xz, xn = jnp.split(x @ p["reset"], 3, -1)
        hr, hz, hn = jnp.split(h @ p["state"], 3, -1)
        z = jax.nn.sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * h
        return h, h

    return lax.scan(cell, zeros(), xs)


def elman(p, xs, **options):
    def cell(h, x):
        h = jnp.tanh(x @ p["square"] + h @ p["again"] + p["bias"])
        return h, h

    return lax.scan(cell, zeros(), xs, **options)


def masked(p, xs):
    keep = jnp.arange(len(xs))[:, None] < jnp.array([len(xs), 3])

    def cell(h, given):
        x, on = given
        new = jnp.tanh(x @ p["square"] + h @ p["again"])
        h = jnp.where(on[:, None], new, h)
        return h, jnp.where(on[:, None], new, 0)

    return lax.scan(cell, zeros(), (xs, keep))


def tree(p, xs):
    """The carry is a pytree, with a counter that counts, and a bias that is carried along."""

    def cell(state, x):
        h = jnp.tanh(x @ p["square"] + state["h"] @ p["again"] + state["bias"])
        return {"h": h, "at": state["at"] + 1, "bias": state["bias"]}, h

    last, hs = lax.scan(cell, {"h": zeros(), "at": 0, "bias": p["bias"]}, xs)
    return last["h"], hs


def looked_up(p, xs):
    """Rows of a table, normalised on the way to the product."""
    table = xs.reshape(-1, D) * p["scale"]

    def cell(h, token):
        x = table[token]
        x = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-3)
        h = jnp.tanh((x * p["scale"]) @ p["square"] + h @ p["again"])
        return h, h

    return lax.scan(cell, zeros(), jnp.array([[0, 9], [3, 3], [7, -1], [2, 0]]))


def headed(p, xs):
    """What each step returns is a product of its state."""

    def cell(h, x):
        h = jnp.tanh(x @ p["square"] + h @ p["again"])
        return h, jnp.sin(h @ p["head"] + p["scale"])

    return lax.scan(cell, zeros(), xs)


def perceptron(p, xs):
    """Two layers before the state comes in."""

    def cell(h, x):
        x = jnp.sin(x @ p["square"]) @ p["again"]
        h = jnp.tanh(x + h * 0.5)
        return h, x[0]

    return lax.scan(cell, zeros(), xs)


def vectors(p, xs):
    """No batch: products of a matrix and a vector."""

    def cell(h, x):
        h = jnp.tanh(p["square"].T @ x + p["again"] @ h + p["bias"])
        return h, h

    return lax.scan(cell, zeros(H), xs[:, 0])


def ensemble(p, xs):
    """One cell for several sets of weights."""
    many = jax.tree.map(lambda v: jnp.stack([v, v * 0.5]), p)
    return jax.vmap(elman, (0, None))(many, xs)


def mapped(p, xs):
    return jax.vmap(lambda x: vectors(p, x[:, None]), 1)(xs)


def derived(p, xs):
    """Weights that each step makes anew."""

    def cell(h, x):
        w = p["again"] / jnp.linalg.norm(p["again"])
        h = jnp.tanh(x @ jnp.tril(p["square"]) + h @ (w + jnp.sin(w).T))
        return h, h

    return lax.scan(cell, zeros(), xs)


def rows(p, xs):
    """A loop over sequences around one over their steps."""

    def outer(total, x):
        h, _ = elman(p, x)
        return total + h, h.sum()

    return lax.scan(outer, zeros(), jnp.stack([xs, xs * 2]))


def layers(p, xs):
    """A loop over layers, whose weights are its xs, around one over steps."""

    def outer(x, w):
        return elman({**p, "square": w, "again": w}, x)[1], None

    pairs = jnp.stack([p["again"], p["again"].T])
    return lax.scan(outer, xs @ p["square"], pairs)[0]


def bidirectional(p, xs):
    return elman(p, xs)[1] + elman({**p, "again": p["again"].T}, xs, reverse=True)[1]


def gram(p, xs):
    """A sum of products of what the loop is given, and one of what it is not."""

    def step(state, x):
        total, h = state
        h = jnp.sin(h + x)
        return (total + x.T @ (2 * x) - 0.5 * x.T @ x, h), None

    return lax.scan(step, (jnp.ones((D, D)), zeros(B, D)), xs * p["scale"])[0]


def checkpointed(p, xs):
    def cell(h, x):
        h = jnp.tanh(x @ p["square"] + h @ p["again"])
        return h, h

    return lax.scan(jax.checkpoint(cell), zeros(), xs)


def half(p, xs):
    """Products of 16 bits that add up in 32."""
    w, u = (p[name].astype(jnp.bfloat16) for name in ("square", "again"))

    def dot(x, w):
        return lax.dot(x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32)

    def cell(h, x):
        h = jnp.tanh(dot(x, w) + dot(h, u))
        return h, h

    return lax.scan(cell, jnp.zeros((B, H), jnp.float32), xs)


class Flax(linen.Module):
    cell: str

    @linen.compact
    def __call__(self, x):
        cell = getattr(linen, self.cell)(
            H, param_dtype=x.dtype, kernel_init=linen.initializers.normal()
        )
        return linen.RNN(cell)(x)


def flax(cell):
    model = Flax(cell)

    def fun(p, xs):
        x = xs.swapaxes(0, 1)
        weights = jax.tree.map(jnp.asarray, model.init(jax.random.key(0), x))
        return model.apply(jax.tree.map(lambda w: w * p["scale"][0], weights), x)

    return fun


def equinox(p, xs):
    cell = eqx.nn.GRUCell(D, H, key=jax.random.key(0), dtype=xs.dtype)
    cell = jax.tree.map(lambda w: w * p["scale"][0] if eqx.is_array(w) else w, cell)

    def step(h, x):
        h = jax.vmap(cell)(x, h)
        return h, h

    return lax.scan(step, zeros(), xs)


PROGRAMS = {
    "lstm": lstm,
    "lstm, from the end": lambda p, xs: lstm(p, xs, reverse=True),
    "lstm, unrolled": lambda p, xs: lstm(p, xs, unroll=2),
    "concatenated": concatenated,
    "concatenated behind": concatenated_behind,
    "gru": gru,
    "elman": elman,
    "masked": masked,
    "tree": tree,
    "looked up": looked_up,
    "headed": headed,
    "perceptron": perceptron,
    "vectors": vectors,
    "ensemble": ensemble,
    "mapped": mapped,
    "derived": derived,
    "rows": rows,
    "layers": layers,
    "bidirectional": bidirectional,
    "gram": gram,
    "checkpointed": checkpointed,
    "flax lstm": flax("LSTMCell"),
    "flax optimised lstm": flax("OptimizedLSTMCell"),
    "flax gru": flax("GRUCell"),
    "equinox gru": equinox,
    "one step": lambda p, xs: elman(p, xs[:1]),
    "no step": lambda p, xs: elman(p, xs[:0]),
    "two steps": lambda p, xs: elman(p, xs[:2]),
}
