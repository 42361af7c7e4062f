"""What is taken in chunk by chunk, and what is not, with the reason: no program is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

import backpass as bp
from backpass.ir import OPS, ArrayType, Builder
from backpass.ir.errors import FusionError
from backpass.passes import DEFAULT, Fuse
from backpass.passes.fuse.verify import compare
from fuzz.interpret import run_graph, run_jaxpr
from passes.losses import picked
from passes.texts import compiled, rewritten

N, D, V = 12, 3, 12
FUSE = Fuse(chunk=5, least=1)
PASSES = tuple(FUSE if each.name == "fuse" else each for each in DEFAULT)
DRAW = np.random.default_rng(0)
X, W = (DRAW.normal(size=shape).astype(np.float32) for shape in [(N, D), (D, V)])
LABELS, MASK = DRAW.integers(0, V, N), DRAW.uniform(size=N).astype(np.float32)


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def differentiated(loss, *args):
    """The same of a loss and its gradients by `x` and `w`, beside JAX's."""
    low = bp.compile(bp.value_and_grad(loss, (0, 1)), passes=PASSES, debug=True).lower(*args)
    expected = run_jaxpr(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*args), *args)
    close(run_graph(low.graph, *args), expected)
    return [note for note in low.fusions if note.what == "rows in chunks"]


def with_jvp(fun, rule, zeros=False):
    made = jax.custom_jvp(fun)
    made.defjvp(rule, symbolic_zeros=zeros)
    return made


def with_vjp(fun, forward, backward):
    made = jax.custom_vjp(fun)
    made.defvjp(forward, backward)
    return made


def double(x):
    return 2 * x


def doubled(primals, tangents):
    return 2 * primals[0], 2 * tangents[0]


def kept(x):
    return 2 * x, (jnp.cos(x), None)


FUNCTIONS = {
    "a rule": (with_jvp(double, doubled), True),
    "a rule of many": (
        with_jvp(
            lambda x, y: (x * y, jnp.argmax(x, -1)),
            lambda p, t: (
                (p[0] * p[1], jnp.argmax(p[0], -1)),
                (t[0] * p[1] + t[1], np.zeros(N, jax.dtypes.float0)),
            ),
        ),
        True,
    ),
    "a rule that turns": (with_jvp(double, lambda p, t: (2 * p[0], t[0].T)), False),
    "a rule over rows": (with_jvp(double, lambda p, t: (2 * p[0], t[0] - t[0].mean(0))), False),
    "over rows": (
        with_jvp(lambda x: x - x.max(0), lambda p, t: (p[0] - p[0].max(0), t[0])),
        False,
    ),
    "a count of rows": (
        with_jvp(
            lambda x: x + jnp.arange(1.0, 1 + N)[:, None],
            lambda p, t: (p[0] + jnp.arange(1.0, 1 + N)[:, None], t[0]),
        ),
        False,
    ),
    "rows with all rows": (
        with_jvp(
            lambda x: x * lax.dot_general(x, x, (((1,), (1,)), ((), ()))).sum(-1)[:, None],
            lambda p, t: (p[0], t[0]),
        ),
        False,
    ),
    "what prints": (
        with_jvp(
            lambda x: jax.debug.print("{}", x[0, 0]) or 2 * x, lambda p, t: (2 * p[0], 2 * t[0])
        ),
        False,
    ),
    "a number besides": (
        with_jvp(
            lambda x: (2 * x, jnp.ones(3)),
            lambda p, t: ((2 * p[0], jnp.ones(3)), (2 * t[0], jnp.zeros(3))),
        ),
        False,
    ),
    "a pullback": (with_vjp(double, kept, lambda kept, ct: (kept[0] * ct,)), True),
    "a pullback that turns": (with_vjp(double, kept, lambda kept, ct: (kept[0] * ct.T,)), False),
    "a pullback over rows": (
        with_vjp(double, kept, lambda kept, ct: (kept[0] * ct.sum(0),)),
        False,
    ),
    "residuals over rows": (
        with_vjp(double, lambda x: (2 * x, x.sum(0)), lambda kept, ct: (kept * ct,)),
        False,
    ),
    "residuals that turn": (
        with_vjp(double, lambda x: (2 * x, x.T), lambda kept, ct: (kept * ct.T,)),
        False,
    ),
    "a result that turns": (
        with_vjp(double, lambda x: ((2 * x).T, None), lambda kept, ct: (ct,)),
        False,
    ),
    "later": (with_jvp(double, doubled, zeros=True), False),
    "later, inside": (with_jvp(with_jvp(double, doubled, zeros=True), doubled), True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_rules_of_their_own(name):
    """Row-wise where they and their rules are; the numbers are the same in any case."""
    function, matches = FUNCTIONS[name]

    def loss(x, w):
        logits = x @ w
        found = function(logits, jnp.sin(logits)) if name == "a rule of many" else function(logits)
        return nn.logsumexp(found[0] if isinstance(found, tuple) else found, -1).sum()

    assert any(note.matched for note in differentiated(loss, X, W)) == matches
    rewritten(FUSE, lambda x, w: loss(x, w), X, W)


def test_a_rule_whose_weights_are_shared_is_left_alone():
    """Their cotangent would be a sum over all rows."""
    scaled = with_vjp(
        lambda x, s: x * s,
        lambda x, s: (x * s, (x, s)),
        lambda k, ct: (ct * k[1], (ct * k[0]).sum(0)),
    )
    notes = differentiated(lambda x, w: nn.logsumexp(scaled(x @ w, w[0]), -1).sum(), X, W)
    assert not any(note.matched for note in notes)


def row_losses(x, w):
    return nn.logsumexp(x @ w, -1)


# Losses that stay as they are, and why.
NEAR = {
    "columns between": (
        lambda x, w: nn.logsumexp(jnp.einsum("adn,dv->anv", x.reshape(4, D, 3), w), -1).sum(),
        "its operands have no rows in one piece",
    ),
    "turned and as they are": (
        lambda x, w: jnp.where(MASK[:, None] > 0.5, x @ w, (x @ w).T).sum(),
        "f32[12,12] as a whole is read by select_n",
    ),
    "rows returned": (
        lambda x, w: jnp.sin(jax.checkpoint(row_losses)(x, w)).sum(),
        "its rows are returned one by one, and may be differentiated",
    ),
    "squared after": (
        lambda x, w: jnp.square(row_losses(x, w).reshape(4, 3).sum(1)).sum(),
        "its rows do not come to one number, linearly: reduce_sum",
    ),
    "sorted in pairs": (
        lambda x, w: (lax.sort((row_losses(x, w), jnp.sin(MASK)))[0] * MASK).sum(),
        "its rows do not come to one number, linearly: sort",
    ),
    "summed in other bits": (
        lambda x, w: jnp.vdot(row_losses(x, w).astype(jnp.bfloat16), MASK.astype(jnp.bfloat16), preferred_element_type=np.float32),
        "its rows do not come to one number, linearly: dot_general",
    ),
    "one over them": (
        lambda x, w: (MASK / row_losses(x, w).reshape(3, 4).T.reshape(N)).sum(),
        "its rows do not come to one number, linearly: transpose",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_tell_why(name):
    loss, reason = NEAR[name]
    notes = differentiated(loss, X, W)
    assert not any(note.matched for note in notes)
    assert any(note.reason.startswith(reason) for note in notes), [*map(str, notes)]


MATCH = {
    "their product": lambda x, w: row_losses(x, w) @ row_losses(jnp.cos(x), w),
    "with themselves": lambda x, w: -picked(nn.log_softmax(x @ x.T), LABELS).mean() + w.sum(),
    "less their mean": lambda x, w: (
        row_losses(x, w).sum()
        + lax.stop_gradient(
            jnp.where(MASK > 0.5, *[row_losses(x, w) - row_losses(x, w).mean()] * 2)
        ).sum()
    ),
}


@pytest.mark.parametrize("name", MATCH)
def test_losses_that_match(name):
    assert any(note.matched for note in differentiated(MATCH[name], X, W))


def test_products_that_nobody_reads():
    b = Builder(OPS)
    x, w = (b.value(ArrayType(v.shape, v.dtype)) for v in (X, W))
    b.dot_general(x, w, ((1,), (0,)))
    graph = b.graph("f", [x, w], [x])
    assert FUSE(graph) is graph
    assert {note.reason for note in FUSE.report(graph)} == {"nothing reads it"}


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_on_many_devices_are_left_alone(dim):
    b, on = Builder(OPS), (("d", 2),)
    x, w = (b.value(ArrayType(v.shape, v.dtype)) for v in (X, W))
    x = b.value(x.type.spread((on if dim == 0 else (), ())))
    w = b.value(w.type.spread(((), on if dim == 1 else ())))
    graph = b.graph(
        "f", [x, w], [b.one("reduce_max", b.dot_general(x, w, ((1,), (0,))), axes=(1,))]
    )
    (note,) = FUSE.report(graph)
    why = "its rows are divided over mesh axis 'd': each chunk would sum over devices"
    assert note.reason == (why if dim == 0 else "")
    assert (FUSE(graph) is graph) == (dim == 0)


def test_a_comparison_draws_keys_and_passes_over_whole_numbers():
    def f(x, key):
        return x.argmax(), jax.random.key_data(key).astype(np.float32) * x[0]

    graph = compiled(f, X[0, :2], jax.random.key(0))
    b = Builder(OPS)
    (index, numbers), _ = b.inline(graph, graph.inputs)
    other = b.graph("f", graph.inputs, [b.add(index, 1), numbers])
    compare(graph, other, graph.nodes[0], {})
    wrong = b.graph("f", graph.inputs, [index, b.mul(numbers, 1.001)])
    with pytest.raises(FusionError, match="apart by 1.0e-03 of the largest"):
        compare(graph, wrong, graph.nodes[0], {})
