"""`passes/health`: statistics are added, results stay as they were, loops are left alone where they can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir import evaluate, verify
from backpass.passes import DEFAULT, run_passes
from backpass.passes.health import measured
from fuzz.interpret import run_graph

W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 3)), jnp.float32)


def loss(w, x):
    return jnp.sum(jnp.sin(x @ w))


def graph_of(fun, *args):
    traced = bp.compile(fun).trace(*args)
    leaves = jax.tree_util.tree_leaves_with_path(traced.out_info)
    return traced.graph, [jax.tree_util.keystr(path) for path, _ in leaves]


def seen(fun, *args):
    """The rows of a program, its norms and counts; its own results are checked to be the same."""
    graph, paths = graph_of(fun, *args)
    found = measured(graph, paths)
    verify(found.graph)
    final = bp.compile(fun).lower(*args).stages
    leaves = jax.tree.leaves(args)
    plain = evaluate(final[-1].graph, *leaves)
    *outs, norms, counts = evaluate(run_passes(found.graph, DEFAULT, check=True)[-1].graph, *leaves)
    for a, b in zip(plain, outs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    return found.rows, np.asarray(norms), np.asarray(counts)


def norm(x):
    return np.linalg.norm(np.asarray(x).ravel())


def accumulated(w, xs):
    def body(total, x):
        return total + bp.grad(loss)(w, x) / len(xs), None

    total, _ = jax.lax.scan(body, jnp.zeros_like(w), xs)
    return w - 0.1 * total


def trained(w, xs):
    return jax.lax.scan(lambda w, x: (w - 0.1 * bp.grad(loss)(w, x), None), w, xs)[0]


def trained_backwards(w, xs):
    def body(w, x):
        return w - 0.1 * bp.grad(loss)(w, x), None

    return jax.lax.scan(body, w, xs, reverse=True)[0]


def trained_while(w, xs, n):
    def body(state):
        w, i = state
        return w - 0.1 * bp.grad(loss)(w, xs[i]), i + 1

    return jax.lax.while_loop(lambda state: state[1] < n, body, (w, 0))[0]


def either(w, xs, n):
    def on(w):
        return bp.grad(loss)(w, xs[0])

    return w - jax.lax.cond(n > 0, on, lambda w: 2 * bp.grad(loss)(w, xs[1]), w)


def steps_of(order):
    w, squares = W, []
    for x in order:
        g = jax.grad(loss)(w, x)
        squares.append(norm(g) ** 2)
        w = w - 0.1 * g
    return w, np.sqrt(np.mean(squares))


def test_the_sum_over_microbatches_is_measured_and_the_loop_is_as_it_was():
    graph, paths = graph_of(accumulated, W, X)
    found = measured(graph, paths).graph
    (before,), (after,) = ([n for n in g.nodes if n.op.name == "scan"] for g in (graph, found))
    assert len(after.outputs) == len(before.outputs)
    assert after.regions[0].outputs == before.regions[0].outputs
    rows, norms, counts = seen(accumulated, W, X)
    g = jnp.mean(jax.vmap(jax.grad(loss), (None, 0))(W, X), 0)
    np.testing.assert_allclose(norms, [[norm(g), norm(W), norm(0.1 * g)]], rtol=1e-5)
    assert counts.tolist() == [[0, 0, 0, 1]] and [row.name for row in rows] == ["args[0]"]


@pytest.mark.parametrize(
    ("fun", "order"), [(trained, X), (trained_backwards, X[::-1])], ids=["scan", "reverse"]
)
def test_gradients_of_a_loop_of_steps_are_carried_out(fun, order):
    _, norms, counts = seen(fun, W, X)
    end, rms = steps_of(order)
    np.testing.assert_allclose(norms, [[rms, norm(W), norm(end - W)]], rtol=1e-5)
    assert counts.tolist() == [[0, 0, 0, 4]]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_while_counts_its_trips(n):
    _, norms, counts = seen(trained_while, W, X, n)
    end, rms = steps_of(X[:n]) if n else (W, 0.0)
    np.testing.assert_allclose(norms, [[rms, norm(W), norm(end - W)]], rtol=1e-5)
    assert counts.tolist() == [[0, 0, 0, n]]


def test_a_parameter_that_a_loop_only_reads_has_its_name():
    """It is a constant of the loop, beside which others are carried."""

    def step(w, xs):
        def body(carried, x):
            g = bp.grad(loss)(w, x)
            a, b, c = carried
            return (a + jnp.sum(g), b * 2, c - 1), g[0]

        return jax.lax.scan(body, (0.0, 1.0, 2.0), xs)

    rows, norms, _ = seen(step, W, X)
    assert [row.name for row in rows] == ["args[0]"]
    squares = [norm(jax.grad(loss)(W, x)) ** 2 for x in X]
    np.testing.assert_allclose(norms[0, 0], np.sqrt(np.mean(squares)), rtol=1e-5)


def test_a_scan_of_no_trips_tells_no_gradient():
    _, norms, counts = seen(trained, W, X[:0])
    assert counts.tolist() == [[0, 0, 0, 0]] and norms[0, 0] == 0


@pytest.mark.parametrize("n", [0, 1])
def test_branches_have_rows_of_their_own(n):
    rows, norms, counts = seen(either, W, X, n)
    assert [row.name for row in rows] == ["args[0]", "args[0] (2)"]
    taken = norm(jax.grad(loss)(W, X[1 - n]))
    np.testing.assert_allclose(norms[n, 0], taken, rtol=1e-5)  # JAX's first branch is that of False
    assert counts[:, 3].tolist() == [1 - n, n] and norms[1 - n, 0] == 0
    np.testing.assert_allclose(norms[:, 1], norm(W), rtol=1e-6)


def test_layers_that_are_scanned_over_have_rows():
    stack = jnp.stack([W.T @ W, jnp.zeros((4, 4)), 3 * jnp.eye(4)])

    def deep(stack, h):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), h, stack)[0])

    def step(stack, h):
        return stack - bp.grad(deep)(stack, h)

    rows, norms, _ = seen(step, stack, jnp.ones((2, 4)))
    g = jax.grad(deep)(stack, jnp.ones((2, 4)))
    assert [(row.name, row.layer, row.size) for row in rows] == [
        ("args[0]", i, 16) for i in range(3)
    ]
    expected = [[norm(g[i]), norm(stack[i]), norm(g[i])] for i in range(3)]
    np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "length, layers", [(1, [None]), (2, [0, 1]), (128, [*range(128)]), (129, [None])]
)
def test_so_many_steps_are_layers(length, layers):
    """A loop of one step, or of more than anyone reads, has one row for the whole parameter."""

    def deep(stack, h):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.sin(h * w), None), h, stack)[0])

    rows = measured(*graph_of(bp.grad(deep), jnp.ones((length, 4)), jnp.ones(4))).rows
    assert [row.layer for row in rows] == layers


def test_gradients_by_jax_have_a_row_of_each_parameter():
    rows, norms, _ = seen(lambda w, x: w - jax.grad(loss)(w, x), W, X[0])
    assert [(row.name, row.layer, row.size) for row in rows] == [("args[0]", None, 12)]
    np.testing.assert_allclose(norms[0, 1:], [norm(W), norm(jax.grad(loss)(W, X[0]))], rtol=1e-5)


def test_a_gradient_inside_of_a_loss_is_left_alone():
    def outer(w, x):
        return jnp.sum(bp.grad(loss)(w, x) ** 2)

    rows, norms, _ = seen(lambda w, x: w - bp.grad(outer)(w, x), W, X[0])
    assert len(rows) == 1
    g = jax.grad(lambda w: jnp.sum(jax.grad(loss)(w, X[0]) ** 2))(W)
    np.testing.assert_allclose(norms[0, 0], norm(g), rtol=1e-5)


def test_gradients_that_nobody_reads_are_not_made():
    def step(w, x):
        return w - bp.grad(loss, argnums=(0, 1))(w, x)[0]

    rows, _, _ = seen(step, W, X[0])
    assert [row.name for row in rows] == ["args[0]"]


@pytest.mark.parametrize(
    ("fun", "known"),
    [
        (lambda p, m: (p - m["w"], {"w": m["w"] + 1}), {"args[0]": 0, "args[1]['w']": 1}),
        (lambda p, m: ({"w": m["w"] + p}, p * 2), {"args[0]": 1, "args[1]['w']": 0}),
        (lambda p, m: (p + 1, p + 2), {}),  # either may be
        (lambda p, m: {"w": m["w"][::-1], "v": m["w"]}, {"args[1]['w']": 1}),
        (lambda p, m: {"w": 2 * p}, {"args[0]": 0, "args[1]['w']": None}),  # nothing of m is in it
        (lambda p, m: (p + m["w"], {"w": m["w"]}), {"args[0]": 0, "args[1]['w']": 1}),
    ],
    ids=["by path", "out of order", "ambiguous", "alone", "not of it", "one is sure"],
)
def test_updates_are_found_by_path_and_type(fun, known):
    from backpass.passes.health.updates import flow, updates

    graph, paths = graph_of(fun, jnp.ones(3), {"w": jnp.ones(3)})
    found = updates(graph, paths, flow(graph))
    places = {v.name: graph.outputs.index(new) for v, new in found.items()}
    assert known or not places
    assert {name: places.get(name) for name in known} == known


def told(fun, *args):
    """Rows, norms and counts, without XLA; and the results, which are as they were."""
    graph, paths = graph_of(fun, *args)
    found = measured(graph, paths)
    verify(found.graph)
    finals = [run_passes(each, DEFAULT)[-1].graph for each in (graph, found.graph)]
    plain, made = (run_graph(final, *jax.tree.leaves(args)) for final in finals)
    *outs, norms, counts = made
    for a, b in zip(plain, outs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return found.rows, norms, counts, outs


def summed(add):
    """A loop whose carry grows by some function of a gradient and of the step's numbers."""

    def step(w, xs):
        def body(total, x):
            return add(total, bp.grad(loss)(w, x), x), None

        return jax.lax.scan(body, jnp.zeros_like(w), xs)[0]

    return step


def w_like(x):
    return x[:3, :1] + jnp.zeros((3, 4), x.dtype)


ADDED = {
    "itself": (lambda total, g, x: total + g, True),
    "in front": (lambda total, g, x: g + total, True),
    "a part": (lambda total, g, x: total + g * 0.25, True),
    "divided": (lambda total, g, x: total + g / 4, True),
    "negated": (lambda total, g, x: total + -g, True),
    "times a number of the step": (lambda total, g, x: total + x[0, 0] * g, True),
    "times a number that is spread": (
        lambda total, g, x: total + g * jax.lax.broadcast(x[0, 0], g.shape),
        True,
    ),
    "times rows that are spread": (
        lambda total, g, x: total + g * jax.lax.broadcast_in_dim(x[0], g.shape, (0,)),
        False,
    ),
    "times what is computed": (lambda total, g, x: total + g * jnp.sin(w_like(x)), False),
    "cast": (lambda total, g, x: total + g.astype(jnp.bfloat16).astype(jnp.float32), True),
    "its inverse": (lambda total, g, x: total + 1.0 / (2 + g), False),
    "a number over it": (lambda total, g, x: total + 1.0 / g, False),
    "its square": (lambda total, g, x: total + g * g, False),
    "twice, apart": (lambda total, g, x: total + (g * 2 - g), False),
    "times a row": (lambda total, g, x: total + g * x[:1, :1] * x[0, :, None], False),
    "its sine": (lambda total, g, x: total + jnp.sin(g), False),
    "its sum": (lambda total, g, x: total + g.sum(), False),
    "to a part": (lambda total, g, x: 0.9 * total + g, False),
    "less it": (lambda total, g, x: total - g, False),
    "to its sine": (lambda total, g, x: total + g + 0 * jnp.sin(total), False),
}


def carries(graph):
    return [len(node.outputs) for node in graph.nodes if node.op.name == "scan"]


@pytest.mark.parametrize("name", ADDED)
def test_a_loop_that_only_adds_a_gradient_up_is_as_it_was(name):
    add, once = ADDED[name]
    graph, paths = graph_of(summed(add), W, X)
    assert carries(measured(graph, paths).graph) == ([1] if once else [6])


@pytest.mark.parametrize("name", ["a part", "its sine"])
def test_a_gradient_is_measured_once_where_a_loop_only_adds_it_up(name):
    add, once = ADDED[name]
    _, norms, counts, (total,) = told(summed(add), W, X)
    assert counts.tolist() == [[0, 0, 0, 1 if once else len(X)]]
    each = [norm(jax.grad(loss)(W, x)) for x in X]
    rms = np.sqrt(np.mean(np.square(each)))
    np.testing.assert_allclose(norms[0, :2], [norm(total) if once else rms, norm(W)], rtol=1e-4)


@pytest.mark.parametrize(("scale", "once"), [(lambda x: 0.5, True), (lambda x: x[0, 0], False)])
def test_a_gradient_that_is_one_number(scale, once):
    def step(w, xs):
        def body(total, x):
            return total + scale(x) * bp.grad(lambda w: jnp.sin(w * x).sum())(w), None

        return jax.lax.scan(body, jnp.zeros_like(w), xs)[0]

    graph, paths = graph_of(step, W[0, 0], X)
    assert carries(measured(graph, paths).graph) == ([1] if once else [6])


def epochs(w, xs):
    return jax.lax.scan(lambda w, _: (trained(w, xs), None), w, None, length=2)[0]


def batches(w, xs):
    return jax.lax.scan(lambda w, _: (accumulated(w, xs), None), w, None, length=2)[0]


def by_turns(w, xs):
    def body(w, i):
        return jax.lax.cond(i % 2 == 0, lambda w: trained(w, xs), lambda w: w, w), None

    return jax.lax.scan(body, w, jnp.arange(4))[0]


@pytest.mark.parametrize(("fun", "runs"), [(epochs, 8), (batches, 2), (by_turns, 8)])
def test_loops_in_loops_tell_all_their_gradients(fun, runs):
    rows, norms, counts, _ = told(fun, W, X)
    assert [row.name for row in rows] == ["args[0]"] and counts.tolist() == [[0, 0, 0, runs]]
    squares, w = [], W
    for _ in range(2):
        if fun is batches:
            g = jax.vmap(jax.grad(loss), (None, 0))(w, X).mean(0)
            squares.append(norm(g) ** 2)
            w = w - 0.1 * g
        else:
            for x in X:
                g = jax.grad(loss)(w, x)
                squares.append(norm(g) ** 2)
                w = w - 0.1 * g
    np.testing.assert_allclose(norms[0, 0], np.sqrt(np.mean(squares)), rtol=1e-4)


def test_loops_and_branches_without_gradients_are_as_they_were():
    def step(w, x, n):
        h = jax.lax.scan(lambda h, _: (jnp.sin(h), None), x, None, length=3)[0]
        h = jax.lax.while_loop(lambda h: h.sum() > 9, lambda h: h / 2, h)
        h = jax.lax.cond(n > 0, jnp.sin, jnp.cos, h)
        return w - bp.grad(loss)(w, h), h

    graph, paths = graph_of(step, W, X[0], 1)
    found = measured(graph, paths)
    for name in ("scan", "while", "cond"):
        (before,), (after,) = (
            [n for n in g.nodes if n.op.name == name] for g in (graph, found.graph)
        )
        assert after.outputs == before.outputs and after.regions == before.regions
    assert len(found.rows) == 1


# What a gradient is taken by, and the norm of that where it is known.
BY = {
    "a slice of each step": (
        lambda w, xs: jax.lax.scan(lambda c, w: (c, bp.grad(loss)(w, xs[0]).sum()), 0, w[None])[1],
        None,
    ),
    "what is computed": (lambda w, xs: bp.grad(loss)(2 * w, xs[0]), 2 * W),
    "what is spread": (
        lambda w, xs: bp.grad(loss)(jnp.broadcast_to(w[0], w.shape), xs[0]),
        jnp.broadcast_to(W[0], W.shape),
    ),
    "another form": (lambda w, xs: bp.grad(lambda v: loss(v.T, xs[0]))(w.T), W),
}


@pytest.mark.parametrize("name", BY)
def test_what_a_gradient_is_taken_by(name):
    fun, by = BY[name]
    (row,), norms, _, _ = told(fun, W, X)
    assert row.parameter == (by is not None) and row.size == W.size
    named = row.name == "args[0]"
    assert named == (by is W) and (named or "f32[3,4] at tests/passes/test_health.py" in row.name)
    np.testing.assert_allclose(norms[0, 1], 0 if by is None else norm(by), rtol=1e-5)


def test_layers_of_a_parameter_that_has_another_shape():
    stack = jnp.arange(48.0).reshape(12, 4) / 48

    def deep(stack, h):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), h, stack)[0])

    rows, norms, _, _ = told(
        lambda w, h: bp.grad(deep)(w.reshape(3, 4, 4), h), stack, jnp.ones((2, 4))
    )
    assert [(row.layer, row.size) for row in rows] == [(0, 16), (1, 16), (2, 16)]
    np.testing.assert_allclose(
        norms[:, 1], [norm(part) for part in stack.reshape(3, 16)], rtol=1e-5
    )
