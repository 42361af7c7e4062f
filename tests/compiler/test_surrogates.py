"""`bp.stop_gradient`, `straight_through`, `surrogate`, `checkpoint`, and the warning of zeros."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp

X = np.array([0.4, -1.3, 2.6])
SINGLE = X.astype(np.float32)

# Where a gradient may be asked for: each takes a loss and gives its gradient at x.
WAYS = {
    "bp.grad": lambda loss: bp.grad(loss),
    "bp.compile": lambda loss: bp.compile(bp.grad(loss), debug=True),
    "bp.grad in jax.jit": lambda loss: jax.jit(bp.grad(loss)),
    "bp.grad in jax.vmap": lambda loss: lambda x: jax.vmap(bp.grad(loss))(x[None])[0],
    "jax.grad": lambda loss: jax.grad(loss),
    "jax.grad in bp.compile": lambda loss: bp.compile(jax.grad(loss), debug=True),
    "jax.grad around bp.compile": lambda loss: jax.grad(bp.compile(loss, debug=True)),
    "jax.grad around vmap": lambda loss: jax.grad(lambda x: jax.vmap(loss)(x[None])[0]),
}


@pytest.fixture(autouse=True)
def float64():
    """Gradients near 0 are differences of numbers near 1."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=WAYS)
def gradient(request):
    return WAYS[request.param]


def step(v):
    return (v > 0).astype(v.dtype)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stop_gradient(gradient):
    close(gradient(lambda x: jnp.sum(x * bp.stop_gradient({"a": x, "f": jnp.sin})["a"]))(X), X)


def test_stop_gradient_leaves_what_is_no_array():
    found = bp.stop_gradient({"x": X, "n": 3, "name": "relu", "f": jnp.sin, "none": None})
    assert (found["name"], found["f"], found["none"]) == ("relu", jnp.sin, None)
    assert found["n"] == 3 and jnp.array_equal(found["x"], X)


def test_straight_through(gradient):
    quantise = bp.straight_through(jnp.round)
    close(gradient(lambda x: jnp.sum(quantise(x) ** 2))(X), 2 * np.round(X))


def test_straight_through_has_the_exact_value():
    """`x + stop_gradient(f(x) - x)`, the usual form, has not: it rounds twice."""
    tiny = np.float32([1e-8, 3e8])
    assert jnp.array_equal(bp.straight_through(lambda x: x * 0 + 0.1)(tiny), np.float32([0.1, 0.1]))


def test_straight_through_of_a_tree(gradient):
    both = bp.straight_through(lambda t: {"a": jnp.sign(t["a"]), "n": t["n"] + 1})

    def loss(x):
        out = both({"a": x, "n": jnp.arange(3)})
        return jnp.sum(out["a"] * x * out["n"])

    close(gradient(loss)(X), (np.sign(X) + X) * np.array([1, 2, 3]))


def test_straight_through_of_what_has_no_rule(gradient):
    """A loop without a known end has no gradient, and none is asked of it."""

    def halve(x):
        return jax.lax.while_loop(lambda v: jnp.abs(v).max() > 1, lambda v: v / 2, x)

    close(gradient(lambda x: jnp.sum(bp.straight_through(halve)(x) ** 2))(X), 2 * halve(X))


def test_surrogate(gradient):
    spike = bp.surrogate(step, lambda v: jax.nn.sigmoid(4 * v))
    slope = jax.grad(lambda x: jnp.sum(jax.nn.sigmoid(4 * x) * X))(X)
    close(gradient(lambda x: jnp.sum(spike(x) * X))(X), slope)


def test_surrogate_of_trees_and_keywords(gradient):
    def hard(x, *, scale):
        return {"y": jnp.floor(x * scale["s"])}

    def soft(x, *, scale):
        return {"y": x * scale["s"]}

    both = bp.surrogate(hard, soft)
    found = gradient(lambda x: jnp.sum(both(x, scale={"s": x})["y"] ** 2))(X)
    close(found, 2 * np.floor(X * X) * 2 * X)


def test_surrogate_closes_over_what_is_differentiated(gradient):
    def loss(w):
        spike = bp.surrogate(lambda v: step(v * w), lambda v: jnp.tanh(v * w))
        return jnp.sum(spike(X))

    close(gradient(loss)(X + 1), jax.grad(lambda w: jnp.sum(jnp.tanh(X * w)))(X + 1))


def test_surrogate_in_a_scan(gradient):
    """A spiking neuron: the membrane leaks, spikes and is reset."""
    spike = bp.surrogate(step, lambda v: 1 / (1 + jnp.exp(-5 * v)))

    def loss(x):
        def tick(v, _):
            s = spike(v - 1)
            return 0.9 * v * (1 - s) + x, s

        return jnp.sum(jax.lax.scan(tick, x, None, length=5)[1])

    found, expected = gradient(loss)(X), jax.grad(loss)(X)
    close(found, expected)
    assert np.abs(expected).max() > 0.1


def test_second_derivative_is_that_of_the_surrogate():
    spike = bp.surrogate(step, jnp.tanh)
    found = bp.grad(lambda x: jnp.sum(bp.grad(lambda x: jnp.sum(spike(x)))(x)))(X)
    close(found, jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(x)))(x)))(X))


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, lambda f: jax.vmap(f, (0, None))])
@pytest.mark.parametrize("outer", [jax.grad, bp.grad])
def test_a_rule_that_an_inner_gradient_has_no_use_for_is_kept(outer, around):
    """Meta-learning: the inner gradient is by `p`, the rule belongs to `h`."""
    quantise = bp.straight_through(jnp.round)

    def loss(transform):
        def inner(p, h):
            return transform(lambda p: jnp.sum(jnp.sin(p * quantise(h))))(p)

        return lambda h: jnp.sum(around(inner)(jnp.outer(X, X), h))

    close(outer(loss(bp.grad))(X), jax.grad(loss(jax.grad))(X))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bp.straight_through(jnp.sum)(SINGLE), r"f32\[\] in place of f32\[3\]"),
        (lambda: bp.straight_through(lambda x: x > 0)(SINGLE), r"bool\[3\] in place of f32\[3\]"),
        (lambda: bp.straight_through(lambda x: (x, x))(SINGLE), "straight_through wants"),
        (lambda: bp.straight_through(lambda x: "no")(SINGLE), "return arrays, got str at result"),
        (lambda: bp.straight_through(3), "straight_through wants a function, got int"),
        (lambda: bp.surrogate(step, lambda x: {"y": x})(SINGLE), "surrogate wants step"),
        (
            lambda: bp.surrogate(lambda x: {"y": step(x)}, lambda x: {"y": x[:2]})(SINGLE),
            r"f32\[3\] in place of f32\[2\] at \['y'\]",
        ),
        (lambda: bp.surrogate(step, None), "surrogate wants a function, got NoneType"),
        (lambda: bp.checkpoint("block"), "checkpoint wants a function, got str"),
        (lambda: bp.checkpoint(step, policy="dots"), "checkpoint's policy wants a function"),
    ],
)
def test_misuse_says_what_was_wanted(call, message):
    with pytest.raises(bp.ArgumentError, match=message) as raised:
        call()
    assert "test_surrogates.py:" in str(raised.value)


# checkpoint


def block(x, w):
    return jnp.tanh(jnp.sin(x * w) * w)


def sines(graph):
    return sum(node.op.name == "sin" for node in graph.walk())


def test_checkpoint(gradient):
    marked = bp.checkpoint(block)
    found = gradient(lambda x: jnp.sum(marked(marked(x, 2.0), x) ** 2))(X)
    close(found, jax.grad(lambda x: jnp.sum(block(block(x, 2.0), x) ** 2))(X))


def test_checkpoint_computes_again_behind_a_barrier():
    def plain(x):
        return jnp.sum(block(x, x))

    def marked(x):
        return jnp.sum(bp.checkpoint(block)(x, x))

    before = bp.compile(bp.value_and_grad(plain)).lower(X).graph
    after = bp.compile(bp.value_and_grad(marked)).lower(X).graph
    assert (sines(before), sines(after)) == (1, 2)
    assert any(node.op.name == "optimization_barrier" for node in after.nodes)
    assert sines(bp.compile(marked).lower(X).graph) == 1, "forward alone has nothing to repeat"


def test_checkpoint_policy_says_what_is_saved():
    from jax.ad_checkpoint import checkpoint_name

    def named(x):
        return jnp.sum(jnp.cos(checkpoint_name(jnp.sin(x), "kept")) ** 2)

    def count(policy):
        step = bp.value_and_grad(bp.checkpoint(named, policy))
        return sines(bp.compile(step).lower(X).graph)

    # the derivative of cos is a sine as well, and stands in each
    assert count(None) == 3
    assert count(jax.checkpoint_policies.everything_saveable) == 2
    close(bp.grad(bp.checkpoint(named))(X), jax.grad(named)(X))


def test_checkpoint_hands_settings_through():
    def layer(x, w, n, *, act, train):
        return act(x * w) * n if train else x

    def loss(f):
        return lambda w: jnp.sum(f(X, w, 3, act=jnp.tanh, train=True))

    close(bp.compile(bp.grad(loss(bp.checkpoint(layer))))(X), jax.grad(loss(layer))(X))


def test_checkpointed_layers_are_traced_once():
    calls = []

    def layer(x, w):
        calls.append(1)
        return jnp.tanh(x * w)

    marked = bp.checkpoint(layer)

    def loss(ws):
        x = jnp.asarray(X)
        for w in ws:
            x = marked(x, w)
        return jnp.sum(x)

    bp.grad(loss)([X] * 6)
    assert len(calls) == 1


# The warning of gradients that are zero everywhere

CUT = {
    "round": (lambda x: jnp.sum(jnp.round(x) ** 2), "round", "bp.straight_through"),
    "floor": (lambda x: jnp.sum(jnp.floor(x) * X), "floor", "bp.straight_through"),
    "floor division": (lambda x: jnp.sum(x // 1.0 * X), "floor_divide", "straight_through"),
    "sign": (lambda x: jnp.sum(jnp.sign(jnp.sin(x)) * X), "sign", "bp.straight_through"),
    "cast": (lambda x: jnp.sum(x.astype(int) * X), "convert_element_type", "straight_through"),
    "comparison": (lambda x: jnp.mean((x > 0).astype(jnp.float32)), "gt", "a sigmoid"),
    "mask": (lambda x: jnp.sum(jnp.where(x > 0.5, X, -X)), "gt", "bp.surrogate"),
    "argmax": (lambda x: jnp.take(jnp.asarray(X), jnp.argmax(x)), "argmax", "a softmax"),
    "argsort": (lambda x: jnp.sum(jnp.argsort(x) * X), "argsort", "bp.surrogate"),
    "bucket": (lambda x: jnp.sum(jnp.digitize(x, X[1:]) * X), "digitize", "bp.surrogate"),
    "accuracy": (lambda x: jnp.mean(jnp.argmax(jnp.outer(x, X), 1) == 1), "argmax", "softmax"),
    "in a scan": (
        lambda x: jax.lax.scan(lambda c, v: (c + jnp.round(v), v), 0.0, x)[0],
        "round",
        "bp.straight_through",
    ),
    "through a carry": (
        lambda x: jax.lax.scan(lambda c, _: ((c[0] + jnp.round(c[1]), c[1]), 0), (X, x), None, 3)[
            0
        ][0].sum(),
        "round",
        "bp.straight_through",
    ),
    "in a branch": (
        lambda x: jax.lax.cond(x[0] > 0, jnp.floor, jnp.ceil, x).sum(),
        "floor|ceil",
        "bp.straight_through",
    ),
    "decides a branch": (
        lambda x: jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0),
        "gt",
        "bp.surrogate",
    ),
    "stops a loop": (
        lambda x: jax.lax.while_loop(lambda c: c < x[0], lambda c: c + 1.0, 0.0),
        "lt",
        "bp.surrogate",
    ),
    "checkpointed": (lambda x: jnp.sum(bp.checkpoint(jnp.round)(x)), "round", "straight_through"),
}


@pytest.mark.parametrize("name", CUT)
def test_zero_gradient_warns(name):
    loss, op, instead = CUT[name]
    message = rf"by args\[0\] is zero everywhere.* only through '({op})'"
    with pytest.warns(bp.ZeroGradientWarning, match=message) as record:
        found = bp.grad(loss)(X)
    assert len(record) == 1 and not np.any(found)
    assert instead in str(record[0].message)
    assert "at tests/compiler/test_surrogates.py:" in str(record[0].message)
    assert record[0].filename == __file__


def test_zero_gradient_warns_at_trace_time_and_once():
    def loss(x):
        return jnp.sum(jnp.round(x))

    compiled = bp.compile(bp.grad(loss))
    with pytest.warns(bp.ZeroGradientWarning):
        compiled(X)
    compiled(X)  # a warning would be an error here


def test_one_warning_for_all_that_one_op_cuts():
    def loss(p, y):
        return jnp.sum(jnp.round(p["a"] * p["b"]) * p["c"]) + jnp.sum(y)

    with pytest.warns(bp.ZeroGradientWarning, match=r"args\[0\]\['a'\] and 1 more") as record:
        bp.grad(loss)({"a": X, "b": X, "c": X}, X)
    assert len(record) == 1


def test_scope_is_named():
    def loss(x):
        with jax.named_scope("quantiser"):
            return jnp.sum(jnp.round(x))

    with pytest.warns(bp.ZeroGradientWarning, match="in quantiser"):
        bp.grad(loss)(X)


HARMLESS = {
    "a mask beside": lambda x: jnp.sum(jnp.where(x > 0, x, 0.0)),
    "a residual of rounding": lambda x: jnp.sum(x - jnp.round(x)),
    "labels by argmax": lambda x: -jax.nn.log_softmax(x)[jnp.argmax(x)],
    "sorted": lambda x: jnp.sum(jnp.sort(x) * X),
    "abs, max, clip": lambda x: jnp.max(jnp.clip(jnp.abs(x), 0, 1)),
    "meant": lambda x: jnp.sum(jnp.round(bp.stop_gradient(x)) * X),
    "meant, after": lambda x: jnp.sum(bp.stop_gradient(jnp.round(x)) * X),
    "straight through": lambda x: jnp.sum(bp.straight_through(jnp.round)(x)),
    "surrogate": lambda x: jnp.sum(bp.surrogate(step, jnp.tanh)(x)),
    "not used": lambda x: jnp.sum(X),
    "of a derivative": lambda x: jnp.sum(jax.grad(lambda v: jnp.sum(jax.nn.relu(v) * X))(x)),
    "of our derivative": lambda x: jnp.sum(bp.grad(lambda v: jnp.sum(jax.nn.relu(v) * X))(x)),
    "an optional loop": lambda x: jax.lax.fori_loop(
        0, 3, lambda i, c: jnp.where(c > 0, c * 0.5, c * 2), x
    ).sum(),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_everyday_uses_do_not_warn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bp.grad(HARMLESS[name])(X)
    close(found, jax.grad(HARMLESS[name])(X))


def test_accuracy_in_aux_does_not_warn():
    def loss(x):
        return jnp.sum(x**2), {"accuracy": jnp.mean(x > 0), "prediction": jnp.argmax(x)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.grad(loss, has_aux=True)(X)
