"""Values that wait on the host: what the graph becomes, what it needs, and how long it takes."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import backpass as bp
from backpass import ir
from backpass.ir.device import DEVICES, DeviceSpec, clock
from backpass.passes.rematerialise.frontier import Frontier
from backpass.passes.rematerialise.offload import offloaded
from backpass.passes.rematerialise.waits import Waits, settled
from fuzz.interpret import run_graph
from passes.joints import LOSSES, joint, parameters, rows, sgd
from passes.texts import assert_same_values, graph

LAYERS, WIDTH, BATCH = 6, 32, 512
QUICK = DeviceSpec(80 << 30, 1e12, 1e11, host_bytes_per_s=1e12)
SLOW = DeviceSpec(80 << 30, 1e12, 1e11, host_bytes_per_s=1e9)
DOT = "{dimension_numbers=(((1,),(0,)),((),()))}"
INPUTS = "%0: f32[64,64], %1: f32[64,64]"
CHAIN = f"""
    %2: f32[64,64] = dot_general(%0, %1) {DOT}
    %3: f32[64,64] = dot_general(%2, %1) {DOT}
    %4: f32[64,64] = dot_general(%3, %1) {DOT}
    %5: f32[64,64] = dot_general(%4, %1) {DOT}
    backward:
    %6: f32[64,64] = dot_general(%5, %1) {DOT}
    %7: f32[64,64] = dot_general(%6, %1) {DOT}
    %8: f32[64,64] = dot_general(%7, %2) {DOT}
    return %8
"""
SENT = f"""
    %2: f32[64,64] = dot_general(%0, %1) {DOT}
    %3: f32[64,64] = dot_general(%2, %1) {DOT}
    %4: f32[64,64] = dot_general(%3, %1) {DOT}
    %5: f32<host>[64,64] = offload(%2)
    %6: f32[64,64] = dot_general(%4, %1) {DOT}
    backward:
    %7: f32[64,64] = dot_general(%6, %1) {DOT}
    %8: f32<host>[64,64], %9: f32[64,64] = optimization_barrier(%5, %7)
    %10: f32[64,64] = fetch(%8)
    %11: f32[64,64] = dot_general(%9, %1) {DOT}
    %12: f32[64,64] = dot_general(%11, %10) {DOT}
    return %12
"""


def arguments():
    return parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)


def graph_of(name):
    return joint(sgd(LOSSES[name]), *arguments())


def link(graph):
    return [node for node in graph.walk() if node.op.name in ("offload", "fetch")]


def one_product(spec):
    """Seconds of one of the products above."""
    return spec.seconds(graph(INPUTS, CHAIN).nodes[0])


def spec_with(link_seconds):
    """A device on which a copy of f32[64,64] takes so many times as long as a product."""
    return DeviceSpec(1, 1e12, 1e11, 4 * 64 * 64 / (link_seconds * one_product(QUICK)))


def test_a_value_waits_on_the_host():
    """Sent while the next product runs, fetched while the one before its reader does."""
    waits = Waits(graph(INPUTS, CHAIN))
    assert [waits.gaps[v] for v in waits.parcels] == [(1, 6)]
    found = offloaded(waits, waits.parcels, spec_with(0.99))
    ir.verify(found)
    assert found == graph(INPUTS, SENT), str(found)
    assert ir.parse(str(found)) == found
    assert_same_values(found, waits.graph)


@pytest.mark.parametrize("link_seconds, sends", [(0.5, 2), (0.99, 2), (1.99, 0), (5.0, 0)])
def test_a_wait_too_short_for_both_copies_is_left(link_seconds, sends):
    waits = Waits(graph(INPUTS, CHAIN))
    found = offloaded(waits, waits.parcels, spec_with(link_seconds))
    assert len(link(found)) == sends
    assert (found is waits.graph) == (sends == 0)


def test_the_device_is_free_of_what_is_on_the_host():
    size = 4 * 64 * 64
    before, after = (ir.liveness(graph(INPUTS, text)) for text in (CHAIN, SENT))
    assert ir.liveness(graph(INPUTS, SENT)).argument_bytes == 2 * size
    assert max(before.temporary_bytes) == 3 * size
    assert after.temporary_bytes[4] == max(after.temporary_bytes[4:6]) == 2 * size
    assert before.temporary_bytes[3] == 3 * size


def test_copies_run_beside_the_arithmetic():
    """And cost what is left over of them."""
    product = one_product(QUICK)
    for copy, seconds in [(0.5, 7.0), (1.0, 7.0), (3.0, 2 + 3 + 2 + 3 + 1)]:
        spec = spec_with(copy)
        found = spec.total(graph(INPUTS, SENT).nodes)
        assert found == pytest.approx(seconds * product, rel=1e-6)
        assert clock(spec).total(graph(INPUTS, SENT).nodes) == found
    assert DEVICES["cpu"].total(graph(INPUTS, SENT).nodes) == pytest.approx(
        7 * one_product(DEVICES["cpu"])
    )


def test_a_view_is_made_again_of_what_is_fetched():
    text = CHAIN.replace("backward:", "%20: f32[4096] = reshape(%2)\nbackward:").replace(
        "return %8",
        "%9: f32[] = reduce_sum(%20) {axes=(0,)}\n%10: f32[] = reduce_max(%20) "
        "{axes=(0,)}\nreturn %8, %9, %10",
    )
    waits = Waits(settled(graph(INPUTS, text)))
    found = offloaded(waits, waits.parcels, QUICK)
    ir.verify(found)
    assert len(link(found)) == 2
    (reshape,) = (node for node in found.nodes if node.op.name == "reshape")
    assert found.producer[reshape.inputs[0]].op.name == "fetch"
    assert_same_values(found, waits.graph)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_made_in_loops_stands_before_its_reader(name):
    """Which changes neither values nor what is live."""
    given = graph_of(name)
    found = settled(given)
    ir.verify(found)
    assert sorted(map(id, found.nodes)) == sorted(map(id, given.nodes))
    peaks = [ir.liveness(g, fused=True).peak_bytes for g in (given, found)]
    assert peaks[0] == peaks[1]
    assert settled(found).nodes == found.nodes


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_the_same(name):
    """Also as XLA runs them: on a CPU it leaves an array where it is."""
    given = graph_of(name)
    frontier = Frontier(given, QUICK)
    found = frontier.hosted.sent(frontier.plain, 1000)
    ir.verify(found.graph)
    assert len(link(found.graph)) >= 4
    assert found.bytes < frontier.plain.bytes
    flat = jax.tree.leaves(arguments())
    wanted = run_graph(given, *flat)
    ours = jax.jit(lambda *xs: ir.evaluate(found.graph, *xs))(*flat)
    for values in (ours, run_graph(found.graph, *flat)):
        for x, y in zip(values, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)


def test_a_scan_sends_slice_by_slice():
    waits = Waits(graph_of("scanned"))
    found = offloaded(waits, waits.parcels[:1], SLOW)
    ir.verify(found)
    assert not any(node in link(found) for node in found.nodes)
    first, second = (node for node in found.nodes if node.op.name == "scan")
    (stack,) = (v for v in first.outputs if v.type.host)
    assert stack in second.inputs and stack.type.nbytes == 0
    assert [node.op.name for node in first.regions[0].nodes][-1] == "offload"
    assert [node.op.name for node in second.regions[0].nodes][0] == "fetch"
    size = waits.parcels[0].type.nbytes
    before, after = (ir.liveness(g, fused=True) for g in (waits.graph, found))
    assert after.bytes[-1] == before.bytes[-1]
    turn = waits.turn
    assert before.bytes[turn] - after.bytes[turn] == size
    copy = size / SLOW.host_bytes_per_s
    plain = SLOW.total(waits.graph.nodes)
    assert plain + copy < SLOW.total(found.nodes) < plain + 2.01 * copy


def test_xla_is_told_of_both_memories():
    found = offloaded(waits := Waits(settled(graph_of("mlp"))), waits.parcels, QUICK)
    program = jax.jit(lambda *xs: ir.evaluate(found, *xs))
    traced = program.trace(*jax.tree.leaves(arguments()))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    count = len(link(found)) // 2
    assert text.count('_xla_buffer_placement = "pinned_host"') == count > 3
    assert text.count('_xla_buffer_placement = "device"') == count


def test_as_few_are_sent_as_a_budget_asks_for():
    """And none where that is not quicker than the best so far."""
    frontier = Frontier(graph_of("mlp"), QUICK)
    hosted, plain = frontier.hosted, frontier.plain
    every = [hosted.sent(plain, n) for n in range(len(Waits(settled(plain.graph)).parcels) + 1)]
    assert every[0] is plain and len(every) > 4
    assert hosted.sent(plain, len(every)) is every[-1]
    for budget in {each.bytes for each in every}:
        found = hosted.fastest([plain], budget, None)
        assert found is next(each for each in every if each.bytes <= budget)
        assert hosted.fastest([plain], budget, found) is found
        assert hosted.fastest([found], budget, plain) is plain
    assert hosted.fastest([plain], every[-1].bytes - 1, None) is None
    assert [each.choice.offload for each in every] == list(range(len(every)))


def planned(name, device, **options):
    return bp.plan(sgd(LOSSES[name]), *arguments(), device=device, donate_argnums=0, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_a_quick_link_is_used_and_a_slow_one_is_not_worse_than_none(name):
    none = DeviceSpec(QUICK.memory_bytes, QUICK.flops, QUICK.bytes_per_s)
    budgets = np.linspace(1, 0.6, 4) * planned(name, none).plain_bytes
    budgets = budgets.astype(int).tolist()
    plans = [planned(name, spec, budgets=budgets) for spec in (QUICK, SLOW, none)]
    quick, slow, alone = ({p.budget_bytes: p.predicted_seconds for p in each} for each in plans)
    assert all(quick[b] <= slow[b] <= alone[b] for b in alone)
    planned_ones = list(quick.values())[1:]  # the first is the program as it is without a plan
    assert planned_ones == sorted(planned_ones)
    actions = [{d.action for p in each for d in p.decisions} for each in plans]
    assert "offload" in actions[0] and "offload" not in actions[2]
    assert all("nothing is offloaded" in str(p) for p in plans[2])
    assert not any("nothing is offloaded" in str(p) for p in plans[0])
    assert all(p.predicted_bytes <= p.budget_bytes for each in plans for p in each)


def test_decisions_tell_what_is_sent():
    least = planned("scanned", QUICK).minimum_bytes
    (plan,) = planned("scanned", QUICK, budgets=[least])
    sent = [d for d in plan.decisions if d.action == "offload"]
    plans = planned("scanned", QUICK, budgets=[least])
    assert " on the host" in str(plans)
    assert " on the host" not in str(planned("scanned", "cpu"))
    assert sent and all("joints.py" in d.source and d.bytes and d.seconds for d in sent)
    assert all("to the host" in d.reason for d in sent)
    assert "offload " in str(plan)


def test_a_plan_for_another_device_runs_here(tmp_path):
    """On a CPU, which says that it gains nothing."""
    name = "mlp"
    plain = planned(name, QUICK).plain_bytes
    (plan,) = planned(name, QUICK, budgets=[int(0.95 * plain)])
    assert plan.choice["stretches"][0]["offload"] > 0
    plan = replace(plan, budget_bytes=2 * plain)  # there is no host's memory to keep to it with
    plan.save(tmp_path / "plan.json")
    loaded = bp.MemoryPlan.load(tmp_path / "plan.json")
    step = bp.compile(sgd(LOSSES[name]), plan=loaded, donate_argnums=0)
    lowered = step.lower(*arguments())
    assert link(lowered.graph)
    assert "offloads gain nothing here" in str(lowered.compile().plan)
    wanted = jax.jit(sgd(LOSSES[name]))(*arguments())
    ours = step(*jax.tree.map(jax.numpy.array, arguments()))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_a_live_cpu_offloads_nothing():
    budget = planned("mlp", None).minimum_bytes * 5 // 4
    step = bp.compile(sgd(LOSSES["mlp"]), memory_budget=budget, donate_argnums=0)
    plan = step.lower(*arguments()).plan
    assert "offload" not in {d.action for d in plan.decisions}
    assert "nothing is offloaded: the device has no link" in str(plan)
