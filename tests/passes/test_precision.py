"""`autocast` and `accumulate`: which op runs in which dtype, and that gradients are as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass.passes import PASSES, Accumulate, Autocast, Canonicalise, Dce, parse_pipeline
from backpass.passes.precision import with_precision
from fuzz.interpret import run_graph
from passes.texts import compiled

DRAWN = [np.random.default_rng(0)]
BF16 = jnp.dtype("bfloat16")


@pytest.fixture(autouse=True)
def same_numbers():
    """Each test draws the same, whichever ran before: roundings flip the sign of a relu's input."""
    DRAWN[0] = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(DRAWN[0].standard_normal(shape), jnp.float32)


def lowered(fun, *args, **options):
    return bp.compile(fun, precision="bfloat16", **options).lower(*args)


def dtypes(graph, op):
    return [str(n.outputs[0].dtype) for n in graph.walk() if n.op.name == op]


def block(w, x):
    h = x + jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]
    mean = h.mean(-1, keepdims=True)
    return (h - mean) * lax.rsqrt(((h - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * w["g"]


def weights(n=16):
    a, c = (normal(n, n) / n**0.5 for _ in range(2))
    return {"a": a, "b": normal(n), "c": c, "g": normal(n)}


def test_products_are_narrow_and_sums_are_wide():
    stage = {s.name: s.graph for s in lowered(block, weights(), normal(8, 16)).stages}["autocast"]
    assert dtypes(stage, "dot_general") == ["bfloat16"] * 2
    assert dtypes(stage, "tanh") == ["bfloat16"]  # with the bias, which is cast as the product is
    assert set(dtypes(stage, "reduce_sum") + dtypes(stage, "rsqrt")) == {"float32"}
    (out,) = stage.outputs
    assert out.dtype == np.float32


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "sigmoid", "leaky_relu"])
def test_activations_are_narrow(name):
    """And their slopes those of JAX, at 0 too."""
    w, x = normal(16, 16), normal(8, 16).at[0].set(0)

    def loss(w, x):
        return jnp.sum(getattr(jax.nn, name)(x @ w) @ w)

    stage = {s.name: s.graph for s in lowered(loss, w, x).stages}["autocast"]
    products = [n for n in stage.nodes if n.op.name == "dot_general"]
    between = stage.nodes[stage.nodes.index(products[0]) + 1 : stage.nodes.index(products[1])]
    assert all(n.outputs[0].dtype != np.float32 for n in between if n.outputs[0].ndim == 2)
    got = bp.compile(bp.grad(loss, 1), precision="bfloat16")(w, x)
    exact = jax.grad(loss, 1)(w, x)
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


def test_the_residual_stream_and_what_loops_carry_stay_wide():
    def fun(ws, x):
        return lax.scan(lambda x, w: (block(w, x), None), x, ws)[0]

    ws = jax.tree.map(lambda *xs: jnp.stack(xs), *[weights() for _ in range(3)])
    stage = {s.name: s.graph for s in lowered(fun, ws, normal(8, 16)).stages}["autocast"]
    (scan,) = [n for n in stage.nodes if n.op.name == "scan"]
    (body,) = scan.regions
    assert all(v.dtype == np.float32 for v in (*scan.inputs, *scan.outputs))
    assert dtypes(body, "dot_general") == ["bfloat16"] * 2
    residual = [n for n in body.nodes if n.op.name == "add" and body.inputs[-5] in n.inputs]
    assert all(n.output.dtype == np.float32 for n in residual)


W, X, P = (np.random.default_rng(i).standard_normal((4, 4)).astype(np.float32) for i in range(3))
FOLLOWS = {
    "a bias": (lambda x, w, p: x @ w + p, "add"),
    "a bias in another shape": (lambda x, w, p: x @ w + p.reshape(2, 8).T.reshape(4, 4), "add"),
    "a column of a table": (lambda x, w, p: (x @ w) * p[:, :1], "mul"),
    "a number": (lambda x, w, p: (x @ w) * 3.0, "mul"),
    "an array of one number": (lambda x, w, p: (x @ w) - jnp.full((4, 4), 0.5), "sub"),
    "a comparison": (lambda x, w, p: jnp.where(x @ w > p, 1.0, 2.0), "gt"),
    "a cube": (lambda x, w, p: (x @ w) ** 3, "integer_pow"),
    "a half": (lambda x, w, p: (x @ w) / 2, "div"),
    "as precise as usual": (lambda x, w, p: jnp.dot(x, w, precision="default"), "dot_general"),
    "two products": (lambda x, w, p: x @ w + x @ p, "add"),
    "ends of a range": (lambda x, w, p: jnp.clip(x @ w, -0.5, p), "min"),
}
STAYS = {
    "what is computed of parameters": (lambda x, w, p: x @ w + jnp.exp(p), "add"),
    "and moved": (lambda x, w, p: x @ w + jnp.exp(p).T, "add"),
    "a product of parameters": (lambda x, w, p: x @ w - x * p, "mul"),
    "a square": (lambda x, w, p: (x @ w) ** 2, "integer_pow"),
    "a quotient": (lambda x, w, p: (x @ w) / p, "div"),
    "a function of steep slope": (lambda x, w, p: jnp.exp(x @ w), "exp"),
    "more precision": (lambda x, w, p: jnp.dot(x, w, precision="high"), "dot_general"),
    "precision of one": (
        lambda x, w, p: jnp.dot(x, w, precision=("highest", "default")),
        "dot_general",
    ),
}


@pytest.mark.parametrize("name", [*FOLLOWS, *STAYS])
def test_what_follows_a_product(name):
    """What is added to it runs as it does, if it is an input, or one that was moved."""
    fun, op = {**FOLLOWS, **STAYS}[name]
    given = compiled(fun, X, W, P)
    found = Autocast()(Canonicalise()(given))
    bp.ir.verify(found)
    assert [v.type for v in found.outputs] == [v.type for v in given.outputs]
    (node,) = (n for n in found.walk() if n.op.name == op)
    assert (node.inputs[0].dtype == BF16) == (name in FOLLOWS)
    theirs = run_graph(given, X, W, P)
    np.testing.assert_allclose(*run_graph(found, X, W, P), *theirs, rtol=0.05, atol=0.1)


def test_an_infinity_is_one_in_any_dtype():
    given = compiled(lambda x, w: jnp.where(np.eye(4) > 0, x @ w, -jnp.inf), X, W)
    (found,) = run_graph(Autocast("float16")(given), X, W)
    assert (np.isinf(found) == (np.eye(4) == 0)).all()


def test_updates_stay_wide():
    def step(w, x):
        grads = bp.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)
        preconditioned = grads @ (grads.T @ grads)
        return w - 0.1 * preconditioned

    stage = {s.name: s.graph for s in lowered(step, normal(16, 16), normal(8, 16)).stages}
    found = [n for n in stage["autodiff"].walk() if n.op.name == "dot_general"]
    assert {str(n.output.dtype) for n in found if n.phase == "update"} == {"float32"}
    assert {str(n.output.dtype) for n in found if n.phase != "update"} == {"bfloat16"}


def test_gradients_taken_by_jax_are_cast_by_their_phase():
    def step(w, x):
        grads = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)
        return w - 0.1 * grads

    low = lowered(step, normal(16, 16), normal(8, 16))
    products = [n for n in low.graph.walk() if n.op.name == "dot_general"]
    assert len(products) == 2 and all(v.dtype == BF16 for n in products for v in n.inputs)


def test_more_precision_is_given_where_it_is_asked_for():
    def fun(w, x):
        return jnp.dot(x, w, precision="highest") + x @ w

    stage = {s.name: s.graph for s in lowered(fun, normal(16, 16), normal(8, 16)).stages}
    assert sorted(dtypes(stage["autocast"], "dot_general")) == ["bfloat16", "float32"]


def test_gradients_of_parameters_are_sums_that_were_never_rounded():
    w, x, t = normal(64, 64), normal(512, 64), normal(512, 64)
    got = bp.compile(bp.grad(lambda w: jnp.sum((x @ w) * t)), precision="bfloat16")(w)
    low, ct = (np.asarray(v.astype(BF16), np.float64) for v in (x, t))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, low.T @ ct, rtol=1e-5, atol=1e-4)


MOVES = {
    "nothing": lambda y: y,
    "turned": lambda y: y.T,
    "turned and reshaped": lambda y: y.T.reshape(2, 6),
    "a slice": lambda y: y[1:, :2],
    "a row": lambda y: lax.squeeze(y[:1], (0,)),
    "spread": lambda y: lax.broadcast_in_dim(y, (5, 4, 3), (1, 2)),
}
ROUNDED = {
    "a function": lambda y: jnp.exp(y),
    "a function, then turned": lambda y: jnp.tanh(y).T,
    "reversed": lambda y: lax.rev(y, (0,)),
}


@pytest.mark.parametrize("name", [*MOVES, *ROUNDED])
def test_sums_that_were_moved_were_never_rounded(name):
    x, y = (np.ones(shape, np.float32).astype(BF16) for shape in ((4, 8), (8, 3)))
    fun = {**MOVES, **ROUNDED}[name]
    given = compiled(lambda x, y: fun(x @ y).astype(np.float32), x, y)
    found = Dce()(Accumulate()(given))
    bp.ir.verify(found)
    (product,) = (node for node in found.nodes if node.op.name == "dot_general")
    assert product.output.dtype == np.float32
    assert any(n.output.dtype == BF16 for n in found.nodes) == (name in ROUNDED)
    np.testing.assert_allclose(*run_graph(found, x, y), *run_graph(given, x, y), rtol=0.02)


def test_inputs_that_are_cast_are_no_sums():
    x = np.ones((4, 8), np.float32).astype(BF16)
    given = compiled(lambda x: x.T.astype(np.float32) + 1, x)
    assert Accumulate()(given) is given


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_are_near_those_in_float32(dtype):
    w, x = weights(64), normal(32, 64)

    def loss(w):
        return jnp.mean(block(w, block(w, x)) ** 2 * x)

    value, grads = bp.compile(bp.value_and_grad(loss), precision=dtype)(w)
    want, exact = jax.value_and_grad(loss)(w)
    near = 0.05 if dtype == "bfloat16" else 0.01
    np.testing.assert_allclose(value, want, rtol=near, atol=near)
    for name, g in grads.items():
        apart = np.linalg.norm(g - exact[name]) / np.linalg.norm(exact[name])
        assert g.dtype == np.float32 and 0 < apart < near, name


def test_branches_whiles_and_checkpoints():
    w, x = weights(), normal(8, 16)

    def loss(w, which):
        f = jax.checkpoint(block)
        h = lax.cond(which > 0, lambda h: f(w, h), lambda h: h @ w["a"], x)
        return jnp.mean(lax.fori_loop(0, 3, lambda _, h: block(w, h), h) ** 2)

    for which in (0, 1):
        got = bp.compile(bp.grad(loss), precision="bfloat16")(w, which)
        exact = jax.grad(loss)(w, which)
        for name, g in got.items():
            apart = np.linalg.norm(g - exact[name]) / (np.linalg.norm(exact[name]) + 1e-6)
            assert apart < 0.1, (name, apart)


def test_a_loop_whose_steps_are_not_known():
    """Products in its test and in its body have narrow operands, of what they close over too."""
    w, bound, x = weights(), normal(16, 3), normal(8, 16)

    def fun(x):
        def more(state):
            return (state[0] < 3) & (jnp.sum(x @ bound) < jnp.inf)

        return lax.while_loop(more, lambda s: (s[0] + 1, block(w, s[1])), (0, x))[1]

    step = bp.compile(fun, precision="bfloat16")
    (loop,) = (n for n in step.lower(x).stages[-1].graph.nodes if n.op.name == "while")
    for region in loop.regions:
        products = [n for n in region.walk() if n.op.name == "dot_general"]
        assert products and {v.dtype.name for n in products for v in n.inputs} == {"bfloat16"}
    np.testing.assert_allclose(step(x), fun(x), rtol=0.05, atol=0.05)


def test_masks_stay_within_range():
    """-1e9 is no float16: a masked row must not become one of infinities."""

    def fun(q, k):
        scores = jnp.where(jnp.zeros((4, 4), bool), q @ k.T, -1e9)
        return jax.nn.softmax(scores)

    got = bp.compile(fun, precision="float16")(normal(4, 8), normal(4, 8))
    np.testing.assert_allclose(got, np.full((4, 4), 0.25), rtol=1e-3)


@pytest.mark.parametrize("left", ["bhtd", "bhdt", "bthd", "tbhd"])
@pytest.mark.parametrize("right", ["bhsd", "bhds", "bshd", "sdhb", "dbsh"])
def test_batched_products_in_any_order(left, right):
    sizes = dict(b=2, h=3, t=4, s=5, d=8)
    x, y = (normal(*(sizes[i] for i in name)) for name in (left, right))
    fun = bp.compile(lambda x, y: jnp.einsum(f"{left},{right}->bhts", x, y), precision="bfloat16")
    want = np.einsum(f"{left},{right}->bhts", x, y)
    np.testing.assert_allclose(fun(x, y), want, atol=0.15)


def test_training_falls_as_in_float32():
    x = normal(256, 16)
    y = jnp.sin(x @ normal(16, 4))
    start = {"a": normal(16, 64) / 4, "b": jnp.zeros(64), "c": normal(64, 4) / 8}

    def step(w):
        def loss(w):
            return jnp.mean((jnp.tanh(x @ w["a"] + w["b"]) @ w["c"] - y) ** 2)

        value, grads = bp.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value

    losses = {}
    for precision in (None, "bfloat16"):
        run, w = bp.compile(step, precision=precision), start
        for _ in range(60):
            w, losses[precision] = run(w)
    assert losses[None] < 0.9 * float(bp.compile(step)(start)[1])
    np.testing.assert_allclose(losses["bfloat16"], losses[None], rtol=0.02)


def test_integers_doubles_and_programs_without_products_are_left_alone():
    def fun(x):
        return jnp.cumsum(x) * 2

    text = str(lowered(fun, normal(8)).graph)
    assert "bf16" not in text
    ints = jnp.arange(16).reshape(4, 4)
    assert "bf16" not in str(lowered(lambda i: i @ i, ints).graph)
    with jax.enable_x64(True):
        assert "bf16" not in str(lowered(lambda x: x @ x, np.ones((4, 4))).graph)


@pytest.mark.parametrize(
    "passes, wanted",
    [
        ("", "autocast accumulate"),
        ("dce", "dce autocast accumulate"),
        ("cse,autodiff,dce", "cse autocast autodiff accumulate dce"),
        ("fuse,cse,autodiff,dce", "autocast fuse cse autodiff accumulate dce"),
        ("autodiff,cse,fold,dce,cse", "autocast autodiff cse fold accumulate dce cse"),
        ("fold,dce,fuse", "fold dce autocast accumulate fuse"),
        ("autodiff,autocast", "autodiff autocast"),
    ],
)
def test_where_casts_and_sums_stand(passes, wanted):
    """Before gradients are derived, and right behind what gives products their form."""
    found = with_precision(parse_pipeline(passes, PASSES), Autocast())
    assert [each.name for each in found] == wanted.split()


def test_with_passes_of_ones_own():
    low = lowered(lambda w, x: x @ w, normal(4, 4), normal(4, 4), passes="canonicalise,dce")
    assert [s.name for s in low.stages] == "traced canonicalise dce autocast accumulate".split()
    passes = "autocast{dtype=float16},autodiff,accumulate"
    both = bp.compile(lambda w, x: x @ w, passes=passes).lower(normal(4, 4), normal(4, 4))
    assert "f16" in str(both.graph) and "bf16" not in str(both.graph)


def test_bad_dtypes_are_told():
    with pytest.raises(bp.ArgumentError, match="bfloat16, float16, got 'int8'"):
        bp.compile(lambda x: x, precision="int8")


def test_a_budget_counts_the_narrow_values():
    ws, x = [normal(128, 128) / 11 for _ in range(6)], normal(2048, 128)

    def step(ws):
        def loss(ws):
            h = x
            for w in ws:
                h = jnp.tanh(h @ w)
            return jnp.mean(h**2)

        return bp.grad(loss)(ws)

    plain, narrow = (
        bp.plan(bp.compile(step, precision=p), ws).plain_bytes for p in (None, "bfloat16")
    )
    assert narrow < 0.75 * plain
