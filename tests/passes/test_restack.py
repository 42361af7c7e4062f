"""What scans stack when time alone counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass import ir
from backpass.ir.device import device_named
from backpass.passes import DEFAULT, Restack
from backpass.passes.rematerialise import Choice, scans
from backpass.passes.rematerialise.frontier import Frontier
from backpass.passes.rematerialise.scans import LEVELS, Scans
from passes.joints import STEPS, joint, parameters, rows, sgd

LAYERS, WIDTH, BATCH = 6, 512, 16


def activations(params, x):
    """Each step has one product; the rest is cheap to make again."""

    def layer(h, w):
        h = h @ w
        norm = 1 + h * h
        return jnp.sqrt(norm) / (2 + norm * norm), None

    h, _ = lax.scan(layer, x, jnp.stack(params))
    return (h**2).mean()


def products(params, x):
    """Nothing is cheap to make again but what is read anyway."""
    h, _ = lax.scan(lambda h, w: (h @ w, None), x, jnp.stack(params))
    return (h**2).mean()


def drawn(params, x):
    """A mask whose key is carried: the key is stacked, or the mask, and it is the same mask."""

    def layer(state, w):
        h, key = state
        key, mine = jax.random.split(key)
        h = jnp.tanh(h @ w) * jax.random.bernoulli(mine, 0.5, h.shape)
        return (jnp.sin(h), key), None

    (h, _), _ = lax.scan(layer, (x, jax.random.key(3)), jnp.stack(params))
    return (h**2).mean()


LOSSES = {"activations": activations, "products": products, "drawn": drawn}


def arguments():
    return parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)


def stacked(graph):
    """Bytes that one step of the forward scan stacks for the backward one."""
    (pair,) = Scans(graph, None).pairs
    return sum(pair.joint.bytes(v) for v in set(pair.stacked))


@pytest.mark.parametrize("name", LOSSES)
def test_values_stay(name):
    step = sgd(LOSSES[name])
    params, x = arguments()
    ours = bp.compile(step)(params, x)
    theirs = jax.jit(sgd(LOSSES[name], jax.value_and_grad))(params, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_what_is_cheap_is_made_again():
    before = joint(sgd(activations), *arguments())
    after = Restack()(before)
    assert stacked(after) <= stacked(before) / 2
    products = [node.op.name for node in before.walk()].count("dot_general")
    assert [node.op.name for node in after.walk()].count("dot_general") == products
    assert ir.liveness(after, fused=True).peak_bytes < ir.liveness(before, fused=True).peak_bytes


def test_what_is_dear_stays():
    graph = joint(sgd(products), *arguments())
    assert Restack()(graph) is graph


def test_a_scan_of_no_steps():
    params, x = arguments()
    empty = [p[:0] for p in (np.stack(params),)]

    def loss(w, x):
        h, ys = lax.scan(lambda h, w: (jnp.sqrt(1 + (h @ w) ** 2) / 2, h), x, w)
        return (h**2).mean() + ys.sum()

    ours = bp.compile(bp.grad(loss, (0, 1)))(*empty, x)
    theirs = jax.grad(loss, (0, 1))(*empty, x)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_no_scan_no_change():
    graph = joint(sgd(lambda params, x: jnp.sin(x @ params[0]).sum()), *arguments())
    assert Restack()(graph) is graph


def test_scans_in_the_bodies_of_loops():
    """Gradients by micro-batches, whose loss is a scan over layers."""

    def step(params, x):
        def add(total, part):
            value, grads = bp.value_and_grad(activations)(params, part)
            return jax.tree.map(jnp.add, total, (value, grads)), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return lax.scan(add, zero, x.reshape(4, -1, WIDTH))[0]

    before = joint(step, *arguments())
    after = Restack()(before)
    stacks = []
    for graph in (before, after):
        (body,) = [node.regions[0] for node in graph.nodes if node.op.name == "scan"]
        stacks.append(stacked(body))
    assert stacks[1] <= stacks[0] / 2
    ours = jax.tree.leaves(bp.compile(step)(*arguments()))
    theirs = jax.tree.leaves(bp.compile(step, passes=DEFAULT)(*arguments()))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_it_is_the_last_but_one_where_there_is_no_budget():
    def last(at=-1, **options):
        return bp.compile(sgd(activations), **options).lower(*arguments()).stages[at].name

    assert last(-2) == "restack"
    assert last(memory_budget="1GiB") == "rematerialise"
    assert last(passes=DEFAULT) == "dce"


@pytest.mark.parametrize("name", STEPS)
def test_it_applies_to_what_the_planner_gets(name):
    graph = joint(STEPS[name](bp.value_and_grad), *arguments())
    leaves = jax.tree.leaves(arguments())
    ours, theirs = (ir.evaluate(g, *leaves) for g in (Restack()(graph), graph))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def two(params, x):
    """Two scans of which the one has much to make again, the other little."""
    first = activations(params, x)
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w) * 2, None), x + first, jnp.stack(params[:4]))
    return (h**2).mean()


@pytest.mark.parametrize("levels", [LEVELS, 1])
@pytest.mark.parametrize("loss", [activations, products, drawn, two])
def test_the_planner_knows_of_what_takes_the_least_time(loss, levels, monkeypatch):
    monkeypatch.setattr(scans, "LEVELS", levels)
    graph = joint(sgd(loss), *arguments())
    frontier = Frontier(graph, device_named("cpu"))
    quickest = frontier.candidate(Choice(None, 0, None), graph, Restack()(graph))
    found = frontier.fastest(quickest.bytes)
    assert found.seconds <= quickest.seconds * (1 + 1e-9)
