"""The joint graph: phases, provenance, symbolic zeros; and gradients through every region op."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.ode import odeint

import backpass as bp
from backpass.ir import evaluate, verify
from backpass.passes import Autodiff, Canonicalise, Dce
from models.comparison import assert_close, assert_same_gradients, batches, draw
from passes.texts import compiled, graph, ops


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def joint(fun, *args, passes="autodiff"):
    final = bp.compile(fun, passes=passes, debug=True).lower(*args).graph
    assert Autodiff()(final) is final
    return final


# Text in, text out


def test_chain_rule():
    given, expected = (graph("%0: f32[3], %1: f32[3]", text) for text in CHAIN)
    found = Autodiff()(given)
    assert found == expected, found
    assert Autodiff()(found) is found


CHAIN = (
    """
    %2: f32[], %3: f32[3] = gradients(%0, %1) {wrt=(1,)}
      graph f(%0: f32[3], %1: f32[3]) {
        %2: f32[3] = mul(%0, %1)               @ model.py:1 a
        %3: f32[] = reduce_sum(%2) {axes=(0,)} @ model.py:2 b
        return %3
      }
    %4: f32[3] = sub(%1, %3)
    return %2, %4
    """,
    """
    %2: f32[3] = mul(%0, %1)                   @ model.py:1 a
    %3: f32[] = reduce_sum(%2) {axes=(0,)}     @ model.py:2 b
    backward:
      %4: f32[3] = broadcast_in_dim(1.0:f32) {broadcast_dimensions=()} of %3 @ model.py:2 b
      %5: f32[3] = mul(%0, %4)                 of %2 @ model.py:1 a
    update:
      %6: f32[3] = sub(%1, %5)
    return %3, %6
    """,
)


def test_nothing_to_differentiate():
    given = graph("%0: f32[3]", "%1: f32[3] = sin(%0)\nreturn %1")
    assert Autodiff()(given) is given


# Phases and provenance


def loss(params, x):
    with jax.named_scope("first"):
        h = jnp.tanh(x @ params["w"])
    with jax.named_scope("second"):
        return jnp.mean(lax.scan(lambda c, v: (c * v, jnp.sin(c)), h[0], h)[1])


def step(params, x):
    value, grads = bp.value_and_grad(loss)(params, x)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


ARGS = {"w": np.ones((3, 3))}, np.ones((3, 3))


@pytest.mark.parametrize("passes", ["autodiff", "canonicalise,sink,autodiff,fold,simplify,cse,dce"])
def test_phases_come_in_order(passes):
    final = joint(step, *ARGS, passes=passes)
    phases = [node.phase for node in final.nodes if node.op.name != "constant"]
    assert set(phases) == {"forward", "backward", "update"}
    assert phases == sorted(phases, key=["forward", "backward", "update"].index)
    for node in final.nodes:
        for region in node.regions:
            assert {inner.phase for inner in region.walk()} <= {node.phase}


@pytest.mark.parametrize("passes", ["autodiff", "canonicalise,sink,autodiff,fold,simplify,cse,dce"])
def test_backward_nodes_name_their_forward_node(passes):
    final = joint(step, *ARGS, passes=passes)
    backward = [node for node in final.nodes if node.phase == "backward"]
    linked = [node for node in backward if node in final.forward_of]
    assert len(linked) >= 0.7 * len(backward)
    for node in linked:
        forward = final.forward_of[node]
        assert forward.phase == "forward"
        assert (node.source, node.scope) == (forward.source, forward.scope)
    products = [node for node in linked if node.op.name == "dot_general"]
    assert [final.forward_of[node].op.name for node in products] == ["dot_general"]
    assert {node.scope for node in linked} == {"first", "second"}
    assert all(node.source.startswith("tests/passes/test_autodiff.py") for node in backward)


def test_aux_and_what_follows_the_loss_are_forward():
    def fun(x):
        value, slope = bp.value_and_grad(lambda x: (jnp.sum(x * x), jnp.sin(x)), has_aux=True)(x)
        return jnp.exp(value[0]), slope * 2, jnp.cos(value[1])

    phase = {node.op.name: node.phase for node in joint(fun, np.ones(3)).nodes}
    assert (phase["sin"], phase["exp"], phase["cos"]) == ("forward", "forward", "forward")


# Symbolic zeros


def backward_ops(fun, *args, **options):
    final = joint(bp.grad(fun, **options), *args, passes="autodiff,dce")
    return [node.op.name for node in final.nodes if node.phase == "backward"]


ZEROS = {
    "not read": (lambda x, y: jnp.sum(y), ["broadcast_in_dim"]),
    "stopped": (lambda x, y: jnp.sum(lax.stop_gradient(jnp.sin(x)) * y), ["broadcast_in_dim"]),
    "integers": (lambda x, y: jnp.sum(jnp.argsort(x) * y), ["broadcast_in_dim"]),
    "compared": (lambda x, y: jnp.sum(jnp.where(x > 0, y, -y)), ["broadcast_in_dim"]),
    "rounded": (lambda x, y: jnp.sum(jnp.floor(x) + jnp.sign(x) + y), ["broadcast_in_dim"]),
    "cast to integers": (lambda x, y: jnp.sum(x.astype(int) * y), ["broadcast_in_dim"]),
    "read elsewhere": (lambda x, y: (jnp.sum(y), jnp.sin(x))[0], ["broadcast_in_dim"]),
}


@pytest.mark.filterwarnings("ignore::backpass.ZeroGradientWarning")
@pytest.mark.parametrize("name", ZEROS)
def test_no_work_for_a_zero(name):
    fun, expected = ZEROS[name]
    x = np.linspace(-1.0, 1.0, 3)
    assert backward_ops(fun, x, x) == expected
    np.testing.assert_array_equal(bp.grad(fun)(x, x), 0.0)


def test_no_work_for_what_is_not_asked_for():
    x, w = np.ones((2, 3)), np.ones((3, 4))
    one = backward_ops(lambda x, w: jnp.sum(x @ w), x, w)
    both = backward_ops(lambda x, w: jnp.sum(x @ w), x, w, argnums=(0, 1))
    assert (one.count("dot_general"), both.count("dot_general")) == (1, 2)


def test_first_cotangent_is_not_added_to_zeros():
    assert "add_any" not in backward_ops(lambda x: jnp.sum(jnp.sin(x)), np.ones(3))
    assert backward_ops(lambda x: jnp.sum(jnp.sin(x) * x), np.ones(3)).count("add_any") == 1


def test_equal_gradients_of_one_argument_given_twice():
    final = joint(bp.grad(lambda x, y: jnp.sum(jnp.sin(x) * y), (0, 1)), np.ones(3), np.ones(3))
    assert len(final.inputs) == 2
    f = lambda x: jnp.sum(jnp.sin(x) * x)  # noqa: E731
    assert_same_gradients(lambda x: (lambda a, b: jnp.vdot(jnp.sin(a), b))(x, x), draw(1, 3))
    np.testing.assert_allclose(
        bp.compile(bp.grad(lambda x: (lambda a, b: jnp.vdot(jnp.sin(a), b))(x, x)))(np.ones(3)),
        jax.grad(f)(np.ones(3)),
    )


# Through regions, against jax.grad


def scan_all_kinds(w, x, xs):
    def body(carry, v):
        a, n = carry
        row, i = v
        return (jnp.tanh(a @ w + row) + i, n + 1), (jnp.sin(a) * n, n, w.sum())

    (a, n), ys = lax.scan(body, (x, 0), (xs, jnp.arange(len(xs))))
    return jnp.vdot(a, a) + n * jnp.sum(ys[0]) + jnp.sum(ys[1]) + jnp.sum(ys[2] ** 2)


def scan_option(x, xs, **options):
    carry, ys = lax.scan(lambda c, v: (jnp.sin(c) + v * c, c * c), x, xs, **options)
    return jnp.sum(carry) + jnp.sum(jnp.cos(ys))


def nested_scan(w, xs):
    def outer(c, row):
        inner, ys = lax.scan(lambda s, v: (jnp.sin(s * w) + v, s * v), c, row)
        return inner, jnp.sum(ys) + c

    return jnp.sum(jnp.stack(jax.tree.leaves(lax.scan(outer, jnp.ones(()), xs)[1])))


def condition(x, index, w):
    branches = [
        lambda v: jnp.sin(v) * w,
        lambda v: v @ jnp.outer(w, w),
        lambda v: jnp.ones_like(v),
        lambda v: jnp.exp(v) * lax.cond(v[0] > 0, lambda: w, lambda: w * v),
    ]
    return jnp.sum(lax.switch(index, branches, x) ** 2) + jnp.vdot(x, w)


@jax.custom_jvp
def lying(x, y):
    return x * y, jnp.argmax(x)


@lying.defjvp
def _lying(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    out = lying(x, y)
    return out, (7 * dx * jnp.cos(y) + 3 * dy * out[0], np.zeros((), jax.dtypes.float0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def clipped(limit, x, n):
    return x * n


clipped.defvjp(
    lambda limit, x, n: (x * n, (jnp.sin(x), n)),
    lambda limit, saved, ct: (jnp.clip(ct, -limit, limit) * saved[0] * saved[1], None),
)


@jax.custom_vjp
def weighty(x, n, y):
    return jnp.vdot(x, y) * n


weighty.defvjp(
    lambda x, n, y: (weighty(x, n, y), (x, n, y)),
    lambda saved, g: (2 * g * saved[2], None, 3 * g * saved[1] * saved[0]),
)


@jax.custom_vjp
def treelike(tree, pair):
    return {"a": tree["w"] * pair[0], "n": tree["n"]}


treelike.defvjp(
    lambda tree, pair: (treelike(tree, pair), (tree["w"], pair[0])),
    lambda saved, g: ({"w": 2 * g["a"] * saved[1], "n": None}, (g["a"] * saved[0], None)),
)


@jax.custom_vjp
def outer_rule(x, y):
    return jnp.sin(clipped(0.5, x * y, 2))


outer_rule.defvjp(
    lambda x, y: (clipped(0.5, x, 2) * y, (x, y)),
    lambda saved, g: (clipped(0.7, g * saved[1], 1), clipped(0.7, g * saved[0], 1)),
)


@jax.custom_vjp
def fixed_point(a):
    return lax.while_loop(
        lambda s: jnp.abs(s - jnp.sqrt(a)) > 1e-12, lambda s: 0.5 * (s + a / s), a
    )


fixed_point.defvjp(lambda a: (fixed_point(a), fixed_point(a)), lambda root, g: (g / (2 * root),))


@jax.custom_jvp
def by_parts(x, y):
    return jnp.sin(x) * y


by_parts.defjvps(lambda t, out, x, y: t * jnp.cos(x) * y, None)


@jax.custom_jvp
def looping(x, xs):
    """Its rule takes primals and tangents through one loop, and through one branch."""
    carry, rows = lax.scan(lambda c, v: (jnp.sin(c * v), c * c), x, xs)
    return lax.cond(x[0] > 0, jnp.sin, jnp.cos, carry), rows


@looping.defjvp
def _looping(primals, tangents):
    out, dout = jax.jvp(looping.fun, primals, tangents)
    return out, jax.tree.map(lambda t: 3 * t, dout)


@jax.custom_jvp
def looping_twice(x, xs):
    """Its rule takes primals and tangents through a loop in a loop: the primal one is no tangent."""

    def step(c, v):
        return jnp.tanh(c * lax.scan(lambda s, u: (jnp.sin(s * u), None), 1.0, x)[0] + v), None

    return lax.scan(step, jnp.ones(3), xs)[0]


looping_twice.defjvp(lambda primals, tangents: jax.jvp(looping_twice.fun, primals, tangents))
TIMES = np.linspace(0.0, 1.0, 3)
X, M, XS = draw(1, 3), draw(2, 3, 3), draw(3, 4, 3)
SCANS = {
    "scan all kinds": (scan_all_kinds, (M, X, XS), (0, 1, 2)),
    "scan reversed": (functools.partial(scan_option, reverse=True), (X, XS), (0, 1)),
    "scan unrolled": (functools.partial(scan_option, unroll=3), (X, XS), (0, 1)),
    "scan unrolled whole": (functools.partial(scan_option, unroll=True), (X, XS), (0, 1)),
    "scan of one step": (scan_option, (X, XS[:1]), (0, 1)),
    "scan of no step": (scan_option, (X, XS[:0]), 0),
    "scan: slices that nothing reads": (
        lambda x: jnp.sum(lax.scan(lambda c, v: (jnp.sin(c), None), x, lax.while_loop(
            lambda s: jnp.sum(s) < 9, lambda s: s + 1, x
        ))[0]), (X,), 0,
    ),
    "scan without carry": (
        lambda x: jnp.sum(lax.scan(lambda c, v: (c, jnp.sin(v)), None, x)[1] ** 2), (XS,), 0
    ),
    "scan without slices": (
        lambda x, w: jnp.sum(lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, 5)[0]),
        (X, M), (0, 1),
    ),
    "scan: carry is constant": (
        lambda x, xs: jnp.sum(lax.scan(lambda c, v: (c, c * v), x, xs)[1]), (X, XS), (0, 1)
    ),
    "scan: carry becomes active late": (
        lambda xs: lax.scan(
            lambda c, v: ((c[1], c[2], jnp.sum(v)), c[0]), (0.0, 0.0, 0.0), xs
        )[1].sum(),
        (draw(4, 6, 3),), 0,
    ),
    "scan: swapped carries": (
        lambda x, y: lax.scan(lambda c, _: ((c[1] * c[0], c[0]), None), (x, y), None, 3)[0][0].sum(),
        (X, X + 1), (0, 1),
    ),
    "scan: one slice twice": (
        lambda xs: jnp.sum(lax.scan(lambda c, v: (c + v[0] * v[1], v[0]), X, (xs, xs))[0]), (XS,), 0
    ),
    "scan: only the carry is read": (
        lambda x, xs: jnp.sum(lax.scan(lambda c, v: (c * v, jnp.sin(c)), x, xs)[0]), (X, XS), (0, 1)
    ),
    "scan: an output is a constant": (
        lambda x: jnp.sum(lax.scan(lambda c, _: (c * x, x), 1.0, None, 3)[1] ** 2), (X[0],), 0
    ),
    "scan: keys": (
        lambda x: lax.scan(
            lambda c, k: (c * jax.random.normal(k, (3,)), None), x, jax.random.split(jax.random.key(0), 3)
        )[0].sum(),
        (X,), 0,
    ),
    "scan: carried key": (
        lambda x: lax.scan(
            lambda c, _: ((jax.random.split(c[0])[0], c[1] * jax.random.normal(c[0], (3,))), None),
            (jax.random.key(0), x), None, 3,
        )[0][1].sum(),
        (X,), 0,
    ),
    "scan: carried mask": (
        lambda xs: lax.scan(
            lambda c, v: ((c[0] & (v[0] < 1), c[1] + jnp.where(c[0], v, 0)), None), (True, X), xs
        )[0][1].sum(),
        (XS,), 0,
    ),
    "scan: index": (
        lambda x: lax.fori_loop(0, 3, lambda i, s: s + x[i] * s, jnp.ones(())), (X,), 0
    ),
    "scan: written buffer": (
        lambda x: jnp.sum(
            lax.fori_loop(0, 3, lambda i, s: s.at[i + 1].set(jnp.sin(s[i]) * x[i]), jnp.ones(4)) ** 2
        ),
        (X,), 0,
    ),
    "scan nested": (nested_scan, (X[0], XS), (0, 1)),
    "scan in vmap": (jax.vmap(nested_scan, (0, None)), (X, XS), (0, 1)),
    "associative scan": (lambda xs: jnp.sum(lax.associative_scan(jnp.multiply, xs)), (XS,), 0),
    "map": (lambda xs: jnp.sum(lax.map(lambda v: jnp.sin(v) * X, xs) ** 2), (XS,), 0),
    "map in batches": (lambda xs: jnp.sum(lax.map(jnp.sin, xs, batch_size=2) ** 2), (XS,), 0),
    "gradient inside": (
        lambda x: lax.scan(
            lambda c, _: (c - 0.1 * jax.grad(lambda v: jnp.sum(v**4))(c), None), x, None, 3
        )[0].sum(),
        (X,), 0,
    ),
    "our gradient inside": (
        lambda x: lax.scan(
            lambda c, _: (c - 0.1 * bp.grad(lambda v: jnp.sum(v**4))(c), None), x, None, 3
        )[0].sum(),
        (X,), 0,
    ),
}  # fmt: skip
REGIONS = SCANS | {
    **{f"cond {i}": (condition, (X, i, X + 1), (0, 2)) for i in range(4)},
    "cond of a traced index": (
        lambda x, w: condition(x, jnp.argmax(x), w), (X, X + 1), (0, 1)
    ),
    "cond out of range": (lambda x, w: condition(x, 17, w), (X, X), (0, 1)),
    "cond on the value": (
        lambda x: jnp.sum(lax.cond(jnp.sum(x) > 0, jnp.sin, lambda v: 2 * v, x)), (X,), 0
    ),
    "cond without operands": (
        lambda x: lax.cond(x[0] > 100, lambda: jnp.sum(x), lambda: 3.0) + x[0], (X,), 0
    ),
    "cond with integers": (
        lambda x: jnp.sum(lax.cond(x[0] > 0, lambda n: (x * n, n), lambda n: (x, n + 1), 2)[0]),
        (X,), 0,
    ),
    "cond in scan": (
        lambda xs: lax.scan(
            lambda c, v: (lax.cond(v[0] > 0, lambda: c * v, lambda: c + v), c), X, xs
        )[1].sum(),
        (XS,), 0,
    ),
    "cond in vmap": (
        lambda xs: jnp.sum(jax.vmap(lambda v: lax.cond(v[0] > 0, jnp.sin, jnp.cos, v))(xs)), (XS,), 0
    ),
    "while that is not differentiated": (
        lambda x: jnp.sum(x) * lax.while_loop(lambda n: n < 5, lambda n: n * 2, 1), (X,), 0
    ),
    "while behind stop_gradient": (
        lambda x: jnp.sum(x * lax.stop_gradient(
            lax.while_loop(lambda s: s.sum() < 9, lambda s: s + 1, lax.stop_gradient(x))
        )),
        (X,), 0,
    ),
    "while that is not reached": (
        lambda x: jnp.sum(x * lax.while_loop(
            lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.ceil(s[1] + jnp.sin(x[0])), s[2]),
            (0, 1.0, x),
        )[1]),
        (X,), 0,
    ),
    "binomial": (lambda x: jnp.sum(x * jax.random.binomial(jax.random.key(0), 5, x)), (X**2 / 9,), 0),
    "fori_loop with static bounds": (
        lambda x: jnp.sum(lax.fori_loop(2, 5, lambda i, s: s * jnp.sin(s + i), x)), (X,), 0
    ),
    "jit": (lambda x: jnp.sum(jax.jit(lambda a, b: (a * b, jnp.sin(a)))(x, 2.0)[0]), (X,), 0),
    "jit called twice": (
        lambda x: (lambda f: jnp.sum(f(f(x)) * f(x)))(jax.jit(lambda a: jnp.sin(a) * a)), (X,), 0
    ),
    "custom_jvp": (lambda x, y: jnp.sum(lying(x, y)[0]), (X, X + 1), (0, 1)),
    "custom_jvp in scan": (
        lambda x: lax.scan(lambda c, v: (lying(c, v)[0], None), x, XS)[0].sum(), (X,), 0
    ),
    "custom_jvp in vmap": (lambda xs: jnp.sum(jax.vmap(lambda v: lying(v, X)[0])(xs)), (XS,), 0),
    "custom_jvp by parts": (lambda x, y: jnp.sum(by_parts(x, y) + y), (X, X + 1), (0, 1)),
    "custom_jvp of loops": (
        lambda x, xs: jnp.sum(looping(x, xs)[0] * x) + jnp.sum(looping(x, xs)[1] ** 2),
        (X, XS), (0, 1),
    ),
    "custom_jvp of a loop in a loop": (
        lambda x, xs: jnp.sum(looping_twice(x, xs) * x), (X, XS), (0, 1),
    ),
    "reshape that permutes": (
        lambda m: lax.reshape(lax.reshape(m, (9,), (1, 0)), (3, 3)) @ X @ X, (M,), 0,
    ),
    "custom_vjp": (lambda x: jnp.sum(clipped(0.5, x, 3) ** 2), (X,), 0),
    "custom_vjp in scan": (
        lambda x: lax.scan(lambda c, n: (clipped(0.5, c, n), c), x, jnp.arange(3))[1].sum(), (X,), 0
    ),
    "custom_vjp in vmap": (lambda xs: jnp.sum(jax.vmap(lambda v: clipped(0.5, v, 2))(xs)), (XS,), 0),
    "custom_vjp in checkpoint": (
        lambda x: jnp.sum(jax.checkpoint(lambda v: clipped(0.5, jnp.sin(v), 2))(x)), (X,), 0
    ),
    "custom_vjp of three": (lambda x, y: weighty(x, 3, y) + weighty(y, 2, x), (X, X + 1), (0, 1)),
    "custom_vjp of trees": (
        lambda x, y: jnp.sum(treelike({"w": x, "n": 3}, (y, None))["a"] ** 2), (X, X + 1), (0, 1)
    ),
    "custom_vjp in custom_vjp": (lambda x: jnp.sum(outer_rule(x, X)), (X,), 0),
    "odeint": (
        lambda y, w: jnp.sum(odeint(lambda y, t, w: jnp.tanh(w @ y) * jnp.cos(t), y, TIMES, w)),
        (X, M), (0, 1),
    ),
    "custom_vjp around a while": (lambda x: jnp.sum(jax.vmap(fixed_point)(x**2 + 1)), (X,), 0),
    "custom_vjp of a checkpoint": (
        lambda x: jnp.sum(jax.checkpoint(lambda v: jnp.sin(clipped(0.5, v, 2)))(x)), (X,), 0
    ),
    "custom_root": (
        lambda a: lax.custom_root(
            lambda z: z**3 - a, 1.0,
            lambda f, z: lax.fori_loop(0, 30, lambda _, z: z - f(z) / (3 * z**2), z),
            lambda g, y: y / g(1.0),
        ),
        (np.float64(2.0),), 0,
    ),
    "custom_linear_solve": (
        lambda m, b: jnp.sum(lax.custom_linear_solve(
            lambda v: m @ v, b, lambda mv, r: jnp.linalg.solve(m, r),
            lambda mv, r: jnp.linalg.solve(m.T, r),
        )),
        (M + 3 * np.eye(3), X), (0, 1),
    ),
    "closure_convert": (
        lambda x: (lambda f, c: jnp.sum(f(x, *c)))(*jax.closure_convert(lambda v: v * x, x)), (X,), 0
    ),
    "linear_transpose": (
        lambda x: jnp.sum(jax.linear_transpose(lambda v: v * x, x)(x)[0]), (X,), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("names", batches(REGIONS, 9).values(), ids=batches(REGIONS, 9))
def test_through(names):
    def slopes(value_and_grad):
        return lambda args: {
            name: value_and_grad(
                lambda *xs: jnp.sum(REGIONS[name][0](*xs)),  # noqa: B023
                REGIONS[name][2],
            )(*args[name])
            for name in names
        }

    args = {name: REGIONS[name][1] for name in names}
    expected = jax.jit(slopes(jax.value_and_grad))(args)
    found = bp.compile(slopes(bp.value_and_grad), debug=True)(args)
    assert_close(found, expected)
    for name, (_, grads) in expected.items():
        assert any(jnp.any(grad != 0) for grad in jax.tree.leaves(grads)), f"{name} tests nothing"


SECOND = [
    "scan all kinds", "scan reversed", "scan unrolled", "scan nested", "scan: written buffer",
    "scan: carry becomes active late", "cond 0", "cond 1", "cond 3", "cond in scan", "custom_jvp",
    "custom_jvp of loops", "custom_jvp of a loop in a loop",
    "custom_vjp", "custom_vjp in scan", "custom_vjp of three", "custom_jvp in scan", "jit called twice", "custom_root",
    "our gradient inside", "associative scan",
]  # fmt: skip


@pytest.mark.parametrize("outer", [bp.grad, jax.grad])
@pytest.mark.parametrize("names", batches(SECOND, 9).values(), ids=batches(SECOND, 9))
def test_second_order_through(names, outer):
    """The gradient of a gradient, both ours, and with JAX's around ours."""

    def curvatures(outer, inner):
        def curvature(name, args):
            fun, _, wrt = REGIONS[name]
            wrt = wrt if isinstance(wrt, int) else wrt[0]
            slope = inner(lambda *xs: jnp.sum(fun(*xs)), wrt)
            return outer(lambda *xs: jnp.sum(jnp.sin(slope(*xs))), wrt)(*args)

        return lambda args: {name: curvature(name, args[name]) for name in names}

    args = {name: REGIONS[name][1] for name in names}
    found = jax.jit(curvatures(outer, bp.grad))(args)
    expected = jax.jit(curvatures(jax.grad, jax.grad))(args)
    assert_close(found, expected)


def test_fifth_derivative():
    f, g = jnp.sin, jnp.sin
    for _ in range(5):
        f, g = bp.grad(f), jax.grad(g)
    np.testing.assert_allclose(bp.compile(f)(0.3), g(0.3), rtol=1e-12)


@pytest.mark.parametrize("kind", [lambda f: f, bp.compile])
def test_meta_learning(kind):
    """A gradient step inside the loss of another."""

    def task(grad):
        def loss(w, x):
            inner = w - 0.1 * grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)
            return jnp.sum(jnp.tanh(x @ inner) ** 2)

        return grad(lambda w, xs: jnp.mean(jax.vmap(loss, (None, 0))(w, xs)))

    xs = draw(5, 2, 4, 3)
    np.testing.assert_allclose(kind(task(bp.grad))(X, xs), task(jax.grad)(X, xs), rtol=1e-9)


# Loops without a known length


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: lax.while_loop(lambda s: jnp.sum(s) < 9, lambda s: s * 2, x),
        lambda x: lax.scan(
            lambda c, _: (lax.while_loop(lambda s: jnp.sum(s) < 9, lambda s: s * 2, c), None), x, None, 2
        )[0],
        lambda x: lax.cond(
            x[0] > 0, lambda: lax.while_loop(lambda s: jnp.sum(s) < 9, lambda s: s * 2, x), lambda: x
        ),
    ],
)  # fmt: skip
def test_while_says_what_to_do(fun):
    with pytest.raises(
        bp.DifferentiationError, match="fixed number of steps, got `while`"
    ) as caught:
        bp.compile(bp.grad(lambda x: jnp.sum(fun(x))))(X)
    assert "tests/passes/test_autodiff.py:" in str(caught.value)
    assert "jax.lax.scan" in str(caught.value)


# Checkpoints


def named_block(x, w):
    h = checkpoint_name(jnp.sin(x @ w), "hidden")
    g = checkpoint_name(jnp.cos(h @ w), "gate")
    return jnp.sum(jnp.tanh(g @ w))


P = jax.checkpoint_policies
POLICIES = {  # how often (dot_general, sin, cos, tanh) run in the backward pass, the chain rule's own apart
    "none": (None, (3, 1, 1, 1)),
    "nothing": (P.nothing_saveable, (3, 1, 1, 1)),
    "everything": (P.everything_saveable, (0, 0, 0, 0)),
    "dots": (P.dots_saveable, (0, 1, 1, 1)),
    "dots without batch": (P.dots_with_no_batch_dims_saveable, (0, 1, 1, 1)),
    "these names": (P.save_only_these_names("hidden"), (3, 0, 1, 1)),
    "other names": (P.save_any_names_but_these("hidden"), None),
    "both": (P.save_from_both_policies(P.dots_saveable, P.save_only_these_names("gate")), None),
    "anything except": (P.save_anything_except_these_names("hidden", "gate"), None),
}


@pytest.mark.parametrize("prevent_cse", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_checkpoint_policy(name, prevent_cse):
    policy, _ = POLICIES[name]
    block = jax.checkpoint(named_block, policy=policy, prevent_cse=prevent_cse)
    assert_same_gradients(block, XS @ M, M, argnums=(0, 1))


def forward_work(fun):
    final = bp.compile(bp.value_and_grad(fun, (0, 1)), debug=True).lower(XS @ M, M).graph
    found = ops(final)
    return [found.count(name) for name in ("dot_general", "sin", "cos", "tanh")]


@pytest.mark.parametrize("name", [name for name, (_, counts) in POLICIES.items() if counts])
def test_checkpoint_recomputes_what_the_policy_leaves(name):
    policy, expected = POLICIES[name]
    plain = forward_work(named_block)
    found = forward_work(jax.checkpoint(named_block, policy=policy))
    assert tuple(a - b for a, b in zip(found, plain, strict=True)) == expected


CHECKPOINTS = {
    "twice": lambda x: jnp.sum(jax.checkpoint(jax.checkpoint(jnp.sin))(x) ** 2),
    "in sequence": lambda x: jnp.sum(jax.checkpoint(jnp.sin)(jax.checkpoint(jnp.cos)(x))),
    "of a scan": lambda x: jax.checkpoint(lambda v: scan_option(v, XS))(x),
    "in a scan": lambda x: lax.scan(
        jax.checkpoint(lambda c, v: (jnp.sin(c) * v, c), prevent_cse=False), x, XS
    )[1].sum(),
    "of a cond": lambda x: jax.checkpoint(lambda v: condition(v, 3, v))(x),
    "in a cond": lambda x: jnp.sum(lax.cond(x[0] > 9, jnp.cos, jax.checkpoint(jnp.sin), x)),
    "with integers": lambda x: jnp.sum(jax.checkpoint(lambda v, n: (v**n, n + 1))(x, 3)[0]),
    "static argument": lambda x: jnp.sum(
        jax.checkpoint(lambda v, n: v**n, static_argnums=1)(x, 3)
    ),
    "closure": lambda x: jnp.sum(jax.checkpoint(lambda: jnp.sin(x) * x)()),
    "dropout": lambda x: jnp.sum(
        jax.checkpoint(lambda v, k: jnp.where(jax.random.bernoulli(k, 0.5, v.shape), v, 0) ** 2)(
            x, jax.random.key(0)
        )
    ),
    "of a vmap": lambda x: jnp.sum(jax.checkpoint(jax.vmap(jnp.sin))(x) ** 2),
    "in a vmap": lambda x: jnp.sum(jax.vmap(jax.checkpoint(lambda v: jnp.sin(v) * v))(x)),
    "offloaded": lambda x: jnp.sum(
        jax.checkpoint(
            lambda v: jnp.sin(checkpoint_name(jnp.sin(v), "a")),
            policy=P.save_and_offload_only_these_names(
                names_which_can_be_saved=["a"], names_which_can_be_offloaded=[],
                offload_src="device", offload_dst="pinned_host",
            ),
        )(x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(name):
    assert_same_gradients(CHECKPOINTS[name], X)


@pytest.mark.parametrize("name", ["in a scan", "of a scan", "twice", "with integers", "closure"])
def test_second_order_through_checkpoint(name):
    def slope(grad):
        return lambda x: jnp.sum(jnp.sin(grad(CHECKPOINTS[name])(x)))

    found = bp.compile(bp.grad(slope(bp.grad)), debug=True)(X)
    np.testing.assert_allclose(found, jax.grad(slope(jax.grad))(X), rtol=1e-9)


# What the forward pass stores


def test_scan_stores_no_input_and_nothing_twice():
    """Slices and constants are read again; only what the body computed, or its carry, is stacked."""

    def fun(w, xs):
        return jnp.sum(lax.scan(lambda c, v: (jnp.sin(c * w + v), None), jnp.zeros(3), xs)[0])

    final = joint(bp.grad(fun), X, XS, passes="autodiff,dce")
    forward, _ = (node for node in final.nodes if node.op.name == "scan")
    stacked = [value for value in forward.outputs if value.shape == (4, 3)]
    assert len(stacked) == 2, "the carry and the operand of the sine"


def test_joint_graph_of_a_scan_gives_the_values_of_jax():
    final = joint(bp.value_and_grad(scan_all_kinds, (0, 1, 2)), M, X, XS)
    expected = jax.tree.leaves(jax.value_and_grad(scan_all_kinds, (0, 1, 2))(M, X, XS))
    for found, wanted in zip(evaluate(final, M, X, XS), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_expansion_of_an_expansion():
    """`gradients` inside `gradients`, innermost first."""

    def fun(x):
        return bp.grad(lambda y: jnp.sum(bp.grad(lambda z: jnp.sum(jnp.sin(z) * y))(y) ** 2))(x)

    traced = compiled(fun, X)
    assert [node.op.name for node in traced.walk()].count("gradients") == 2
    final = Dce()(Autodiff()(Canonicalise()(traced)))
    verify(final)
    assert "gradients" not in ops(final)
    expected = jax.grad(lambda y: jnp.sum(jax.grad(lambda z: jnp.sum(jnp.sin(z) * y))(y) ** 2))(X)
    np.testing.assert_allclose(evaluate(final, X)[0], expected, rtol=1e-10)
