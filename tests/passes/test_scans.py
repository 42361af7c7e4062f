"""Scans under a plan: segments of any length, stacks that are made late, loops of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass import ir
from backpass.ir.device import DEVICES
from backpass.passes.rematerialise.frontier import Frontier
from backpass.passes.rematerialise.scans import Scans
from passes.joints import joint, parameters, rows, sgd

SPEC = DEVICES["cpu"]
WIDTH, BATCH = 8, 16


def both_ways(params, x):
    """Thirteen steps from each end; ys and xs of several shapes, a carry of two and a mask."""
    u, v = params[:2]
    steps = jnp.sin(jnp.arange(13.0)), jnp.outer(jnp.arange(13.0), x[0])

    def cell(state, given):
        h, count = state
        scale, row = given
        y = h @ u
        h = jnp.where(y > 0, jnp.tanh(y + row @ v), 0.1 * y) * scale
        return (h, count + h.mean()), (h, y.sum(), y > 0)

    (a, n), (hs, sums, _) = lax.scan(cell, (x, 0.0), steps)
    (b, m), (gs, _, masks) = lax.scan(cell, (a, n), steps, reverse=True)
    weights = jnp.cos(jnp.arange(13.0))[:, None, None]
    return (weights * hs * gs).mean() + (b * masks[2]).sum() + m + (sums * steps[0]).sum()


def without_xs(params, x):
    """Seven steps that read nothing, then eleven that read a stack of weights."""
    w = jnp.stack(params * 4)[:11]
    h, _ = lax.scan(lambda h, _: (jnp.tanh(h @ params[0]), None), x, None, length=7)
    h, norms = lax.scan(lambda h, w: (jnp.sin(h @ w), (h**2).sum(-1)), h, w)
    return (h**2).mean() + 1e-2 * norms.sum()


def in_a_loop(params, x):
    def step(i, h):
        return jnp.tanh(h @ params[0]) + i * 1e-2

    return (lax.fori_loop(0, 7, step, x) ** 2).mean()


def mapped(params, x):
    def two(row):
        return jnp.tanh(jnp.tanh(row @ params[0]) @ params[1])

    return (lax.map(two, x) ** 2).mean()


def associative(params, x):
    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return (lax.associative_scan(combine, (jnp.tanh(x @ params[0]), x))[1] ** 2).mean()


def scans_in_scans(params, x):
    def outer(h, ws):
        h, sums = lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum()), h, ws)
        return h + jnp.sin(h), sums

    h, sums = lax.scan(outer, x, jnp.stack([jnp.stack(params)] * 5))
    return (h**2).mean() + 1e-2 * sums.sum()


def keys(params, x):
    """A key in the carry, and keys among the ys."""

    def step(state, w):
        h, key = state
        key, mine = jax.random.split(key)
        kept = jax.random.bernoulli(mine, 0.5, h.shape)
        return (jnp.where(kept, jnp.tanh(h @ w), 0.0), key), mine

    (h, _), drawn = lax.scan(step, (x, jax.random.key(1)), jnp.stack(params * 2))
    return (h**2).sum() + jax.vmap(jax.random.uniform)(drawn).sum()


def arguments():
    return parameters(3, WIDTH), rows(BATCH, WIDTH)


def same(loss, *graphs):
    """Each of the graphs gives what JAX gives; one program for all of them."""
    leaves = jax.tree.leaves(arguments())

    def every():
        ours = [ir.evaluate(graph, *leaves) for graph in graphs]
        return ours, sgd(loss, jax.value_and_grad)(*arguments())

    ours, theirs = jax.jit(every, compiler_options={"xla_backend_optimization_level": 0})()
    for outputs in ours:
        for a, b in zip(outputs, jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [both_ways, without_xs])
def test_segments_need_not_fill_the_length(loss):
    scans = Scans(joint(sgd(loss), *arguments()), SPEC)
    graphs = [scans.leaner(0, 5), scans.leaner(scans.levels - 1, 4)]
    for graph in graphs:
        ir.verify(graph)
    same(loss, *graphs)


def lengths(graph):
    """Steps of the scans of a graph, and of those in their bodies, in order."""
    scans = [node for node in graph.nodes if node.op.name == "scan"]
    return [(n.attrs["length"], *lengths(n.regions[0])) for n in scans]


def test_the_last_steps_are_a_pair_by_themselves():
    scans = Scans(joint(sgd(in_a_loop), *arguments()), SPEC)
    forward, backward = [(2, (3,)), (1,)], [(1,), (2, (3,), (3,))]
    assert lengths(scans.leaner(0, 3)) == forward + backward
    assert lengths(scans.leaner(0)) == [(7,), (7,)]


def test_steps_that_are_left_stand_first_in_a_reverse_scan():
    def loss(params, x):
        ws = jnp.stack(params * 3)
        h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws, reverse=True)
        return (h**2).mean()

    graph = Scans(joint(sgd(loss), *arguments()), SPEC).leaner(0, 4)
    assert lengths(graph)[:2] == [(2, (4,)), (1,)]
    same(loss, graph)


def test_segments_are_about_the_square_root():
    def segments(length):
        def loss(params, x):
            h, _ = lax.scan(lambda h, _: (jnp.tanh(h @ params[0]), None), x, None, length=length)
            return (h**2).mean()

        return Scans(joint(sgd(loss), *arguments()), SPEC).segments

    assert segments(64) == [0, 4, 8, 16]
    assert segments(61) == [0, 4, 8, 16]
    assert segments(13) == [0, 2, 4, 6]
    assert segments(3) == [0]


def test_shorter_scans_have_shorter_segments():
    scans = Scans(joint(sgd(without_xs), *arguments()), SPEC)
    assert [pair.forward.length for pair in scans.pairs] == [7, 11]
    assert lengths(scans.leaner(0, 5))[:4] == [(2, (3,)), (1,), (2, (5,)), (1,)]


@pytest.mark.parametrize("loss", [mapped, associative, scans_in_scans, keys])
def test_loops_of_every_kind_are_planned(loss):
    frontier = Frontier(joint(sgd(loss), *arguments()), SPEC)
    middle = frontier.fastest((frontier.plain.bytes + frontier.leanest.bytes) / 2)
    graphs = {id(c.graph): c.graph for c in (frontier.leanest, middle)}.values()
    for graph in graphs:
        ir.verify(graph)
    same(loss, *graphs)


def test_what_a_step_is_made_of_again_is_made_once():
    """However many segments a step has: three products again, and two gradients of each."""

    def loss(params, x):
        def layer(h, scale):
            for w in params:
                h = jnp.tanh(h @ w * scale)
            return h, None

        return (lax.scan(layer, x, jnp.arange(6.0))[0] ** 2).mean()

    scans = Scans(joint(sgd(loss), *arguments()), SPEC)

    def products(level):
        loops = [n.regions[0].nodes for n in scans.leaner(level).nodes if n.op.name == "scan"]
        return [sum(n.op.name == "dot_general" for n in nodes) for nodes in loops]

    assert products(0) == [3, 6] and products(scans.levels - 1) == [3, 9]
    most, least = ([len(pair) for pair in scans.sets[at]] for at in (0, -1))
    assert most > [1] and least == [1]  # the carry alone


def test_a_late_scan_gives_what_a_scan_gives():
    graph = joint(sgd(both_ways), *arguments())
    late = Scans(graph, SPEC).leaner(0)
    scans = [node for node in late.walk() if node.op.name == "scan"]
    stacking = [node for node in scans if len(node.outputs) > node.attrs["num_carry"]]
    assert [node for node in scans if node.attrs.get("late")] == stacking != []
    assert ir.parse(str(late)) == late
    same(both_ways, late)
