"""The planner on whole programs: gradients one after the other, and in the bodies of loops."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backpass as bp
from backpass import ir
from backpass.ir.device import DEVICES
from backpass.ir.links import traffic
from backpass.passes.rematerialise import Planner
from backpass.passes.rematerialise.decisions import decisions
from backpass.passes.rematerialise.sites import bodies, joined, stretches
from fuzz.interpret import run_graph
from passes.joints import STEPS, joint, parameters, rows, sgd, slope

SPEC = DEVICES["cpu"]
LAYERS, WIDTH, BATCH = 6, 16, 512
NUMBERS = ("NWC", "WIO", "NWC")
GRADIENTS = {"bp": bp.value_and_grad, "jax": jax.value_and_grad}
both = pytest.mark.parametrize("by", GRADIENTS)
each = pytest.mark.parametrize("name", STEPS)


def arguments():
    return parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)


@cache
def graph_of(name, by="bp"):
    return joint(STEPS[name](GRADIENTS[by]), *arguments())


def run(graph):
    return run_graph(graph, *jax.tree.leaves(arguments()))


@cache
def expected(name, by):
    return run(graph_of(name, by))


@both
def test_each_gradient_is_a_stretch(by):
    graph = graph_of("unrolled", by)
    found = stretches(graph)
    assert len(found) == 4
    assert sorted(map(id, graph.nodes)) == sorted(id(n) for part in found for n in part.nodes)
    for part in found:
        ir.verify(part)
        phases = [node.phase for node in part.nodes if node.op.name == "dot_general"]
        assert phases == sorted(phases, reverse=True)
        assert sum(node.op.name == "tanh" for node in part.nodes) == LAYERS


@pytest.mark.parametrize("inner", GRADIENTS)
@both
def test_the_outermost_gradient_decides_what_is_forward(by, inner):
    graph = joint(sgd(jax.jit(slope(GRADIENTS[inner])), GRADIENTS[by]), *arguments())
    products = [node.phase for node in graph.nodes if node.op.name == "dot_general"]
    assert products == sorted(products, reverse=True)
    assert products.count("forward") == 2 * LAYERS
    assert len(stretches(graph)) == 1


@both
def test_what_reads_parameters_alone_is_made_where_it_is_read(by):
    """Kernels made wider for each tap, in the backward pass of depthwise convolutions."""

    def loss(params, x):
        for w, m in params:
            x = lax.conv_general_dilated(x, w, (1,), "SAME", None, None, NUMBERS, WIDTH)
            x = jnp.tanh(x @ m)
        return (x**2).mean()

    layer = [np.ones(shape, np.float32) for shape in ((9, 1, WIDTH), (WIDTH, WIDTH))]
    step = bp.compile(GRADIENTS[by](loss), memory_budget="1GiB")
    (graph,), _ = step.forms(([layer] * LAYERS, np.ones((4, 256, WIDTH), np.float32)), {})
    planner = Planner(graph, SPEC)
    assert planner.leanest.bytes < 0.6 * planner.plain.bytes


@both
def test_updates_come_before_the_next_stretch(by):
    first, second = stretches(graph_of("adversaries", by))
    new = {v for v in first.outputs if v.type.shape == (WIDTH, WIDTH)}
    assert len(new) == LAYERS // 2 if by == "bp" else new
    assert new <= {*second.inputs, *graph_of("adversaries", by).outputs}
    assert by == "jax" or new <= {*graph_of("adversaries", by).outputs}


def overwritten(name):
    """For each stretch the values given to it whose memory it may use; the first input is ours."""
    planner = Planner(graph_of(name), SPEC, frozenset({0}))
    fronts = planner._fronts(())
    return [[front.graph.inputs[i] for i in front.donated] for front in fronts]


def test_a_stretch_may_write_over_what_nobody_reads_after_it():
    """The sums so far, and what the caller gives away once no other stretch reads it."""
    graph = graph_of("unrolled")
    found = overwritten("unrolled")
    ours = [[v for v in values if v in graph.inputs] for values in found]
    assert ours == [[], [], [], [graph.inputs[0]]]
    shapes = [[v.type.shape for v in values if v not in graph.inputs] for values in found]
    sums = [(), *[(WIDTH, WIDTH)] * LAYERS]
    assert shapes[:3] == [[], sums, sums]


def test_a_stretch_does_not_write_over_what_is_returned():
    """The first half's new parameters, which the second gradient reads."""
    graph = graph_of("adversaries")
    first, second = stretches(graph)
    assert {*first.outputs} & {*second.inputs} & {*graph.outputs}
    mine, yours = overwritten("adversaries")
    assert mine == [graph.inputs[0]]
    assert yours and {*yours}.isdisjoint(graph.outputs)


@pytest.mark.parametrize("name", ["accumulated", "several"])
@both
def test_bodies_of_loops_hold_gradients(name, by):
    graph = graph_of(name, by)
    ((i, k),) = bodies(graph)
    assert graph.nodes[i].op.name in ("scan", "while")
    assert "tanh" in {node.op.name for node in graph.nodes[i].regions[k].nodes}


@each
@both
def test_no_plan_changes_a_value(name, by):
    planner = Planner(graph_of(name, by), SPEC)
    seen = []
    for budget in np.linspace(planner.leanest.bytes, planner.plain.bytes * 1.1, 5):
        found = planner.fastest(budget)
        assert found.bytes <= budget
        if found not in seen:
            seen.append(found)
            ir.verify(found.graph)
            for ours, theirs in zip(run(found.graph), expected(name, by), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
    assert len(seen) > 2
    assert planner.leanest.bytes < 0.85 * planner.plain.bytes
    assert planner.fastest(planner.leanest.bytes - 1) is None


@each
def test_a_choice_gives_its_plan_again(name):
    planner = Planner(graph_of(name), SPEC)
    budgets = np.linspace(planner.leanest.bytes, planner.plain.bytes, 3)
    for found in (planner.plain, *map(planner.fastest, budgets)):
        again = Planner(graph_of(name), SPEC).of(found.choice)
        assert (again.bytes, again.seconds) == (found.bytes, found.seconds)
        assert again.graph == found.graph
        assert planner.gap(found) >= -1e-9


def test_a_stretch_waits_for_the_one_before():
    """What its forward pass starts from is not there before the gradients so far."""
    graph = graph_of("unrolled")
    parts = stretches(graph)
    assert not any(node.op.effect for node in joined(graph, parts, parts).nodes)
    lean = [Planner(part, SPEC).leanest.graph for part in parts]
    nodes = joined(graph, parts, lean).nodes
    made = {v: node for node in nodes for v in node.outputs}
    starts = [node for node in nodes if node.op.name == "dot_general" and node.phase == "forward"]
    for node in starts[LAYERS::LAYERS]:
        before = made[node.inputs[0]]
        while before.op.effect != "barrier":
            before = made[before.inputs[0]]
        sums = [v for v in before.inputs if v.type.shape == (WIDTH, WIDTH)]
        assert len(sums) >= LAYERS


@pytest.mark.parametrize("link, sums", [(1e7, 1), (1e15, 2)])
def test_what_devices_have_to_tell_each_other_is_kept(link, sums):
    """Two products of a size: over a slow link, the one that is summed over devices is kept.

    Over a fast link it is the one to make again: a device has an eighth of its arithmetic.
    """
    mesh = jax.make_mesh((8,), ("m",), (jax.sharding.AxisType.Auto,))

    def lies(*axes):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def loss(p, x):
        early = jnp.sin(x @ p["u"]).sum() + jnp.sin(p["y"] @ p["z"]).sum()
        return jnp.sin(p["v"] * early).sum()

    shapes = {"u": (64, 256), "y": (64, 64), "z": (64, 256), "v": (64, 1024)}
    p = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    places = {name: lies("m") if name == "u" else lies() for name in p}, lies(None, "m")
    step = bp.compile(bp.value_and_grad(loss), in_shardings=places, memory_budget="1GiB")
    (graph,), _ = step.forms((p, jax.ShapeDtypeStruct((64, 64), np.float32)), {})
    planner = Planner(graph, replace(SPEC, link_bytes_per_s=link))
    one = 4 * 64 * 256  # bytes of a product
    found = planner.fastest(planner.plain.bytes - one).graph
    products = [node for node in found.nodes if node.op.name == "dot_general"]
    assert len(products) == 6
    assert sum(traffic(node).bytes > 0 for node in products) == sums


def test_what_is_made_again_is_told_by_its_own_type():
    """And not by that of a gradient, which comes of the same line by the same op."""
    planner = Planner(graph_of("unrolled"), SPEC)
    found = planner.leanest
    told = decisions(planner.graph, found.graph, planner.clock.seconds)
    again = [each.value for each in told if each.action == "recompute"]
    products = [value for value in again if value.startswith("dot_general")]
    assert products and set(products) == {f"dot_general f32[{BATCH // 4},{WIDTH}]"}


@pytest.mark.parametrize("name", ["accumulated", "several"])
def test_what_is_made_again_in_the_body_of_a_loop_is_told(name):
    """Of a scan and of a `while`, whose body is not its first region."""
    planner = Planner(graph_of(name), SPEC)
    found = decisions(planner.graph, planner.leanest.graph, planner.clock.seconds)
    again = {each.value.partition(" ")[0] for each in found if each.action == "recompute"}
    assert "dot_general" in again
