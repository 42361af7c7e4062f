"""Parallel programs on eight places: each takes `bp.grad` or `jax.grad` and returns gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

Program = Callable[[Any], Any]

DRAW = np.random.default_rng(0)
X, W, V = DRAW.normal(size=(16, 8)), DRAW.normal(size=(8, 16)), DRAW.normal(size=(16, 8))
EXPERTS, TOKENS = DRAW.normal(size=(4, 8, 8)), DRAW.normal(size=(32, 8))
ROWS = P(("d", "m"))
CHECKED = {"checked": True, "unchecked": False}


def mesh(kind: AxisType = AxisType.Auto) -> Any:
    return jax.make_mesh((2, 4), ("d", "m"), axis_types=(kind,) * 2)


def mapped(f: Any, ins: Any, outs: Any, **options: Any) -> Any:
    return jax.shard_map(f, mesh=mesh(), in_specs=ins, out_specs=outs, **options)


def sines(f: Any) -> Any:
    """A loss of a tuple of arguments that weighs every element of `f`'s result differently."""
    return lambda args: jnp.sum(jnp.sin(f(*args)))


# A map within the function that is differentiated


def tensor_parallel(check: bool) -> Program:
    def mlp(x, w, v):
        return lax.psum(jax.nn.gelu(x @ w) @ v, "m")

    specs = (P("d"), P(None, "m"), P("m"))
    return lambda g: g(sines(mapped(mlp, specs, P("d"), check_vma=check)))((X, W, V))


def sequence_parallel(check: bool) -> Program:
    def mlp(x, w, v):
        h = jax.nn.gelu(lax.all_gather(x, "m", axis=0, tiled=True) @ w) @ v
        return lax.psum_scatter(h, "m", scatter_dimension=0, tiled=True)

    specs = (ROWS, P(None, "m"), P("m"))
    return lambda g: g(sines(mapped(mlp, specs, ROWS, check_vma=check)))((X, W, V))


def ring_attention(check: bool, remat: bool = False) -> Program:
    """Keys and values go round a ring under `scan`; softmax is kept online."""
    places = [(i, (i + 1) % 4) for i in range(4)]

    def step(carry, _, q):
        k, v, top, total, out = carry
        scores = q @ k.T
        new = jnp.maximum(top, scores.max(-1))
        p, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        k_next, v_next = lax.ppermute(k, "m", places), lax.ppermute(v, "m", places)
        return (
            k_next,
            v_next,
            new,
            total * shrink + p.sum(-1),
            out * shrink[:, None] + p @ v,
        ), None

    def attention(q, k, v):
        def start(x):
            return lax.pcast(x, ("d", "m"), to="varying") if check else x

        n = q.shape[0]
        init = (k, v, start(jnp.full(n, -1e30)), start(jnp.zeros(n)), start(jnp.zeros(q.shape)))
        body = jax.checkpoint(step) if remat else step
        carry, _ = lax.scan(lambda c, x: body(c, x, q), init, None, length=4)
        return carry[-1] / carry[-2][:, None]

    ring = mapped(attention, (ROWS,) * 3, ROWS, check_vma=check)
    return lambda g: g(sines(ring))((X, X / 2, X + 0.1))


def expert_parallel(check: bool) -> Program:
    def experts(x, w):
        routed = lax.all_to_all(x.reshape(4, -1, 8), "m", 0, 0)
        return lax.all_to_all(jnp.tanh(routed @ w[0]), "m", 0, 0).reshape(x.shape)

    return lambda g: g(sines(mapped(experts, (ROWS, P("m")), ROWS, check_vma=check)))(
        (TOKENS, EXPERTS)
    )


def scalar_residuals(check: bool) -> Program:
    """One that differs from place to place and one that does not."""

    def body(s, x):
        a, b = jnp.sin(s) * jnp.sum(x), jnp.cos(s)
        return lax.psum(jnp.exp(a / 9) * jnp.exp(b), ("d", "m")), x * b

    f = mapped(body, (P(), P("d", "m")), (P(), P("d", "m")), check_vma=check)

    def loss(args):
        total, rows = f(*args)
        return 1.3 * total + jnp.sum(jnp.sin(rows))

    return lambda g: g(loss)((0.3, X))


def columns(w: Any, body: Any = jnp.tanh) -> Any:
    """Columns of x and rows of w lie along `m`: partial products are summed."""
    f = mapped(lambda w, x: lax.psum(body(x @ w), "m"), (P("m"), P("d", "m")), P("d"))
    return f(w, X)


def rows(body: Any, w: Any = W) -> Any:
    """`body(w, x)` of the rows of x along `d`."""
    return mapped(body, (P(), P("d")), P("d"))(w, X)


def second_order(g: Any) -> Any:
    def inner(v):
        return jnp.sum(jnp.sin(columns(v)))

    return g(lambda w: jnp.sum(g(inner)(w) ** 2))(W)


def scan_of_maps(g: Any) -> Any:
    f = mapped(lambda w, c: lax.psum(jnp.tanh(c @ w @ w.T), "m"), (P(None, "m"), P("d")), P("d"))
    return g(lambda w: jnp.sum(lax.scan(lambda c, _: (f(w, c), None), X, None, length=3)[0]))(W)


def branches(w: Any, x: Any) -> Any:
    first = lax.axis_index("d") == 0
    return lax.cond(first, lambda: jnp.sin(x @ w), lambda: x @ w)


def loop(w: Any, x: Any) -> Any:
    start = lax.axis_index("d").astype(float) + 1
    return x @ w * lax.while_loop(lambda c: c < 10, lambda c: c * 2, start)


def noise(w: Any, x: Any) -> Any:
    key = jax.random.fold_in(jax.random.key(0), lax.axis_index("d"))
    return (x @ w) * jax.random.normal(key, (8, 16), float)


@jax.custom_vjp
def doubled(x):
    return jnp.sin(x)


doubled.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (2 * ct * jnp.cos(x),))


def groups(x: Any) -> Any:
    pairs = [[0, 1], [2, 3]]
    return lax.psum(jnp.sin(x), "m", axis_index_groups=pairs)


def repeated(w: Any) -> Any:
    """Results that are the same everywhere, laid side by side."""
    return jnp.arange(64.0)[:, None] * mapped(jnp.sin, P(), ROWS)(w)


def summed(f: Any) -> Program:
    """The gradient of the sum of `sin(f(w))`."""
    return lambda g: g(lambda w: jnp.sum(jnp.sin(f(w))))(W)


def over(body: Any, **options: Any) -> Program:
    """The gradient of a map of blocks to blocks."""
    spec = P("d", "m")
    return lambda g: g(lambda x: jnp.sum(jnp.sin(mapped(body, spec, spec, **options)(x))))(X)


def one_of_two(check: bool) -> Program:
    """The loss hangs on the first result alone."""
    both = mapped(lambda w: (jnp.sin(w), jnp.exp(w)), P("d"), (P("d"), P("d")), check_vma=check)
    return lambda g: g(lambda w: jnp.sum(both(w)[0] ** 2))(W)


MAPS: dict[str, Program] = {
    **{f"tensor parallel, {k}": tensor_parallel(v) for k, v in CHECKED.items()},
    **{f"sequence parallel, {k}": sequence_parallel(v) for k, v in CHECKED.items()},
    **{f"ring attention, {k}": ring_attention(v) for k, v in CHECKED.items()},
    "ring attention, checkpoint": ring_attention(True, remat=True),
    **{f"expert parallel, {k}": expert_parallel(v) for k, v in CHECKED.items()},
    **{f"scalars, {k}": scalar_residuals(v) for k, v in CHECKED.items()},
    **{f"one result of two, {k}": one_of_two(v) for k, v in CHECKED.items()},
    "second order": second_order,
    "scan of maps": scan_of_maps,
    "checkpoint of a map": summed(jax.checkpoint(lambda w: columns(w, body=lambda y: jnp.sin(y**2)))),
    "cond": summed(lambda w: rows(branches, w)),
    "while": summed(lambda w: rows(loop, w)),
    "keys": summed(lambda w: rows(noise, w)),
    "custom_vjp": summed(lambda w: rows(lambda w, x: doubled(x @ w), w)),
    "custom_jvp": summed(lambda w: rows(lambda w, x: jax.nn.silu(jax.nn.relu(x @ w)), w)),
    "results repeated": summed(repeated),
    "groups": over(groups, check_vma=False),
    "shift": over(lambda x: x * lax.ppermute(x, "m", [(0, 1), (1, 2)])),
    "own slice": summed(
        lambda w: mapped(
            lambda w: lax.all_gather(jnp.sin(w), "m", axis=1, tiled=True, to="invarying"), P("d", "m"), P("d")
        )(w)
    ),
    "maximum": over(lambda x: x - lax.pmax(lax.stop_gradient(x), "m")),
    "partly manual": summed(
        lambda w: mapped(
            lambda w, x: lax.psum(jnp.tanh(x @ w), "m"), (P("m"), P(None, "m")), P(), axis_names={"m"}
        )(w, X)
    ),
    "vmap of a map": lambda g: jax.vmap(
        g(lambda s: mapped(lambda s, x: lax.psum(jnp.sum(jnp.sin(s * x)), ("d", "m")), (P(), P("d", "m")), P())(s, X))
    )(jnp.arange(3.0)),
    "pmap": lambda g: g(
        lambda x: jnp.sum(jax.pmap(lambda v: jnp.sin(v * lax.psum(v, "i")), axis_name="i")(x))
    )(X[:8]),
    "jax.grad of it": lambda g: jax.grad(
        lambda w: jnp.sum(jnp.cos(g(lambda w: jnp.sum(jnp.sin(columns(w))))(w)))
    )(W),
}  # fmt: skip


# The gradient within a map


def loss(w: Any, x: Any) -> Any:
    return jnp.mean(jnp.tanh(x @ w) ** 2)


def replicated(check: bool) -> Program:
    """Data parallel: where types are checked, the gradient of what is the same is summed."""

    def step(g):
        def body(w, x):
            grad = g(loss)(w, x)
            return grad if check else lax.pmean(grad, "d")

        return mapped(body, (P(), P("d")), P(), check_vma=check)(W, X)

    return step


def averaged(g: Any) -> Any:
    def body(w, x):
        return lax.pmean(g(loss)(lax.pcast(w, "d", to="varying"), x), "d")

    return mapped(body, (P(), P("d")), P())(W, X)


def sharded_parameters(g: Any) -> Any:
    def gathered(w, x):
        return loss(lax.all_gather(w, "d", axis=0, tiled=True), x)

    return mapped(g(gathered), (P("d"), P("d")), P("d"))(W, X)


def inside(fun: Any) -> Program:
    return lambda g: mapped(g(fun), (P(), P("d")), P())(W, X)


def recurrent(w: Any, x: Any) -> Any:
    out, _ = lax.scan(lambda c, _: (jnp.tanh(c @ w @ V), None), x, None, length=3)
    return out.sum()


WITHIN: dict[str, Program] = {
    **{f"replicated, {k}": replicated(v) for k, v in CHECKED.items()},
    "averaged": averaged,
    "sharded parameters": sharded_parameters,
    "scan": inside(recurrent),
    "checkpoint": inside(jax.checkpoint(recurrent)),
    "custom_vjp": inside(lambda w, x: jnp.sum(doubled(x @ w))),
    "custom_jvp": inside(lambda w, x: jnp.sum(jax.nn.silu(jax.nn.relu(x @ w)))),
    "all of it": lambda g: mapped(
        lambda x: g(lambda x: jnp.sum(lax.all_gather(jnp.sin(x), "m") ** 2 * lax.pmean(x, "d")))(x),
        P("d", "m"), P("d", "m"),
    )(X),
    "second order": inside(lambda w, x: jnp.sum(jax.grad(loss)(w, x) ** 2)),
    "pmap": lambda g: jax.pmap(
        g(lambda v: jnp.sum(jnp.sin(v * lax.psum(v, "i")))), axis_name="i"
    )(X[:8]),
}  # fmt: skip


# Named axes of `jax.vmap`


def along(f: Any) -> Program:
    return lambda g: jax.vmap(g(lambda v: jnp.sum(jnp.sin(f(v)))), axis_name="i")(X)


NAMED: dict[str, Program] = {
    "psum": along(lambda v: v * lax.psum(v, "i")),
    "pmean": along(lambda v: (v - lax.pmean(v, "i")) ** 2),
    "all_gather": along(lambda v: lax.all_gather(v, "i") * v),
    "psum_scatter": along(lambda v: lax.psum_scatter(jnp.outer(v[:2].sum() + jnp.arange(16.0), v), "i")),
    "ppermute": along(lambda v: v * lax.ppermute(v, "i", [(j, (3 * j) % 16) for j in range(16)])),
    "all_to_all": along(lambda v: lax.all_to_all(jnp.outer(jnp.arange(16.0), v), "i", 0, 0) * v),
    "of vmap": lambda g: g(
        lambda x: jnp.sum(jax.vmap(lambda v: jnp.sin(v - lax.pmean(v, "i")), axis_name="i")(x))
    )(X),
}  # fmt: skip
