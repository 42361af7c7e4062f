"""Schedules by stages: the solver against all schedules, the planner against the solver."""

from functools import cache
from statistics import median

import jax
import numpy as np
import pytest

import backpass as bp
from backpass import ir
from backpass.ir.device import DEVICES
from backpass.passes.rematerialise import schedule_from, step_to
from backpass.passes.rematerialise.exact import Exact
from backpass.passes.rematerialise.frontier import Frontier
from backpass.passes.rematerialise.local import MOST, Local, _front, is_small
from backpass.passes.rematerialise.schedule import Held
from backpass.passes.rematerialise.stages import Run, State, bits, numbers
from backpass.passes.rematerialise.units import Phase, Stage, joined
from passes.joints import LOSSES, attention, coupled, drawn, joint, parameters, residual, rows, sgd

SPEC = DEVICES["cpu"]


def embedded(params, x):
    """Of a gradient alone, the last kernel reads what the first of the forward pass makes."""
    return LOSSES["mlp"](params, x @ (x.T @ x))


PROGRAMS = {
    "mlp 3": (LOSSES["mlp"], 3, 16),
    "mlp 4": (LOSSES["mlp"], 4, 16),
    "mlp 5": (LOSSES["mlp"], 5, 48),
    "skips 2": (LOSSES["skips"], 2, 16),
    "skips 4": (LOSSES["skips"], 4, 16),
    "skips 6": (LOSSES["skips"], 6, 8),
    "residual 2": (residual, 2, 16),
    "residual 3": (residual, 3, 32),
    "attention": (attention, 4, 16),
    "embedded": (embedded, 3, 16),
    **{f"drawn {seed}": (drawn(seed), 4, 24) for seed in (0, 2, 3, 4)},
}
TINY = ["mlp 3", "residual 2"]


@cache
def frontier(name):
    loss, layers, width = PROGRAMS[name]
    step = bp.value_and_grad(loss) if loss is embedded else sgd(loss)
    return Frontier(joint(step, parameters(layers, width), rows(64, width)), SPEC)


def stages(name):
    (treatment,) = frontier(name).treatments
    return treatment.stages


def budgets(least, most, count):
    return np.linspace(least, most, count + 1)[:-1].tolist()


def seconds(name, state):
    """Those of the whole step, written out."""
    written = stages(name).graph(name, stages(name).schedule(state))
    return sum(map(SPEC.seconds, written.nodes))


def best_of_all(name, budget):
    """Least seconds over all sets that may be held at all stages, by dynamic programming."""
    found = stages(name)
    count = 1 << len(found.sizes)
    best = {0: 0.0}
    for t in range(len(found.reads)):
        last = t == len(found.reads) - 1
        after: dict[int, float] = {}
        for before, so_far in best.items():
            for held in (0,) if last else range(count):
                run = found.run(t, before, held)
                total = so_far + run.seconds
                if run.peak <= budget and total < after.get(held, np.inf):
                    after[held] = total
        best = after
    return best.get(0)


@pytest.mark.parametrize("name", TINY)
def test_the_solver_finds_the_best_of_all_schedules(name):
    exact, plain = Exact(stages(name)), stages(name).plain
    least = exact.leanest.state.peak
    assert best_of_all(name, least) is not None
    assert best_of_all(name, least - 1) is exact.fastest(least - 1) is None
    for budget in budgets(least, plain.peak, 3):
        found = exact.fastest(budget)
        assert found.state.peak <= budget
        assert found.state.seconds == pytest.approx(best_of_all(name, budget))
        assert found.bound == pytest.approx(found.state.seconds, rel=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_written_out_takes_what_was_counted(name):
    """At most the bytes, as XLA makes more inside of loops; and what costs next to nothing again."""
    found = stages(name)
    rest = sum(map(SPEC.seconds, found.units.joint.rest))
    states = Local(found).states()
    assert states
    for state in states:
        graph = found.graph(name, found.schedule(state))
        ir.verify(graph)
        assert ir.liveness(graph, fused=True).peak_bytes <= state.peak
        assert seconds(name, state) == pytest.approx(state.seconds + rest, rel=0.1)


@pytest.mark.parametrize("loss", [coupled, *LOSSES.values()])
@pytest.mark.parametrize("by", [bp.value_and_grad, jax.value_and_grad])
def test_stages_hold_every_node_once_and_after_what_it_reads(loss, by):
    graph = joint(sgd(loss, by), parameters(2, 16), rows(64, 16))
    (treatment, *_) = Frontier(graph, SPEC).treatments
    units = treatment.units
    found = [node for stage in units.stages for node in stage.nodes]
    assert sorted(map(id, found)) == sorted(map(id, units.joint.rest))
    made = {*graph.inputs, *(v for node in units.joint.forward for v in node.outputs)}
    for node in found:
        assert all(isinstance(v, ir.Literal) or v in made for v in node.inputs)
        made.update(node.outputs)


@pytest.mark.parametrize(("before", "count"), [(6, 3), (7, 2)])
def test_kernels_that_read_nothing_else_join_the_stage_before_them(before, count):
    """But where less is in memory than before the next stage."""
    parts = [(5, 9, (1,)), (before, 8, ()), (7, 7, (2,)), (3, 4, (2,)), (4, 6, ())]
    stages = joined([Stage((), least, (Phase(size, reads),)) for least, size, reads in parts])
    assert [stage.before for stage in stages] == ([5, 6, 7] if count == 3 else [5, 7])
    assert stages[-1].phases == ((7, (2,)), (6, ()))
    first = [((9, (1,)),), ((8, ()),)] if count == 3 else [((9, (1,)), (8, ()))]
    assert [stage.phases for stage in stages[:-1]] == first


def test_a_rest_without_kernels_has_no_stages():
    assert joined([]) == ()


@pytest.mark.parametrize("name", PROGRAMS)
def test_less_memory_takes_more_time(name):
    states = Local(stages(name)).states()
    peaks = [state.peak for state in states]
    times = [state.seconds for state in states]
    assert peaks == sorted(peaks, reverse=True) and times == sorted(times)
    assert peaks[0] > peaks[-1] and times[0] < times[-1]


@cache
def compared(name):
    """Our leanest peak, and our seconds at some budgets, each over the solver's."""
    ours, exact = frontier(name), Exact(stages(name))
    least = exact.leanest.state.peak
    low = max(least, ours.leanest.bytes)
    ratios = []
    for budget in budgets(low, stages(name).plain.peak, 3):
        best = exact.fastest(budget)
        ratios.append(ours.fastest(budget).seconds / seconds(name, best.state))
    return ours.leanest.bytes / least, ratios


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_planner_is_within_a_tenth_of_the_best(name):
    minimum, ratios = compared(name)
    assert minimum <= 1.1
    assert max(ratios) <= 1.1


def test_the_planner_is_mostly_the_best():
    every = [compared(name) for name in PROGRAMS]
    assert median(ratio for _, ratios in every for ratio in ratios) <= 1.03
    assert median(minimum for minimum, _ in every) <= 1.0


def test_a_schedule_is_written_and_read():
    held = Held(((), (0, 2), (1,)))
    assert schedule_from(step_to(held)) == held
    for wrong in (["held", 3], ["held", [["x"]]], ["other"]):
        with pytest.raises(ValueError):
            schedule_from(wrong)
    with pytest.raises(ValueError, match="stages, got 3"):
        stages("mlp 3").graph("mlp", held)


def test_what_is_large_is_not_searched():
    deep = joint(sgd(LOSSES["mlp"]), parameters(MOST, 8), rows(64, 8))
    (treatment, *_) = Frontier(deep, SPEC).treatments
    assert not is_small(treatment.stages.units) and not treatment.searched
    assert is_small(stages("mlp 5").units)


@pytest.mark.parametrize("name", ["mlp 4", "skips 4", "residual 3", "drawn 2", "drawn 3"])
def test_the_leanest_is_near_that_of_the_solver(name):
    """Written out, as XLA makes less than the solver counts."""
    found, best = stages(name), Exact(stages(name)).leanest.state
    written = found.graph(name, found.schedule(best))
    least = ir.liveness(written, fused=True).peak_bytes
    assert frontier(name).leanest.bytes <= 1.1 * least


# The parts of the search


SAME_PEAK = [name for name in PROGRAMS if name != "skips 4"]  # whose order of the rest is another


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_plain_schedule_is_the_program(name):
    """It takes its bytes and seconds, and drops what is held for nobody."""
    found, program = stages(name), frontier(name).plain
    rest = sum(map(SPEC.seconds, found.units.joint.rest))
    assert found.plain.seconds + rest == pytest.approx(program.seconds, rel=1e-2)
    assert found.plain.peak <= program.bytes
    assert name not in SAME_PEAK or found.plain.peak == program.bytes
    every = bits(range(len(found.sizes)))
    assert found.state([0, *[every] * (len(found.reads) - 1)]).held == found.plain.held


def test_numbers_of_bits():
    assert bits([0, 3, 40]) == 1 + 8 + (1 << 40)
    assert numbers(bits([3, 40, 0])) == [0, 3, 40]
    assert bits([]) == 0 and numbers(0) == []


@pytest.mark.parametrize("name", ["mlp 3", "skips 4", "attention"])
def test_bytes_of_sets_of_values(name):
    """Of as many as are looked up at once, or more."""
    found = stages(name)
    sizes = found.units.sizes.tolist()
    draw = np.random.default_rng(0)
    for _ in range(50):
        values = np.flatnonzero(draw.integers(0, 2, len(sizes))).tolist()
        assert found.size(bits(values)) == sum(sizes[v] for v in values)
    assert found.size(bits(range(len(sizes)))) == sum(sizes)


@pytest.mark.parametrize("name", ["mlp 3", "skips 2", "residual 2"])
def test_units_run_in_order_and_make_each_value_once(name):
    units = stages(name).units
    made: set[int] = set()
    for unit in units.units:
        assert made.issuperset(unit.reads) and made.isdisjoint(unit.makes)
        made.update(unit.makes)
    assert sorted(made) == list(range(len(units.values)))
    assert all(made.issuperset(stage.reads) for stage in units.stages)


def held_after(state, span):
    """What is held once a value is held, or no longer, between two stages."""
    between = range(span.start + 1, span.end + 1)
    return [h ^ (1 << span.value) if t in between else h for t, h in enumerate(state.held)]


def over(runs, budget):
    return sum(max(0, run.peak - budget) for run in runs)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("name", ["mlp 4", "skips 2", "residual 3", "drawn 2", "embedded"])
def test_what_a_move_costs(name, fine):
    """As the schedule that it makes tells, at any budget."""
    found = stages(name)
    local = Local(found, fine=fine)
    count = 0
    for state in local.states():
        for span in local._spans(state):
            held = held_after(state, span)
            runs = [found.run(t, a, b) for t, (a, b) in enumerate(zip(held, [*held[1:], 0]))]
            before = sum(run.seconds for run in state.runs)
            for budget in (0, 0.7 * state.peak, state.peak):
                change, excess = local._effect(state, span, budget)
                assert change == pytest.approx(sum(run.seconds for run in runs) - before)
                assert excess == pytest.approx(over(runs, budget) - over(state.runs, budget))
            assert local._moved(state, span).held == found.state(held).held
            count += 1
    assert count > 5


@pytest.mark.parametrize("name", ["mlp 4", "skips 2", "residual 3", "drawn 2"])
def test_ways_down_and_back(name):
    local = Local(stages(name))
    plain = stages(name).plain
    low = local._lower(plain, 0)
    assert low.peak < plain.peak and low.seconds > plain.seconds
    middle = local._lower(plain, (low.peak + plain.peak) / 2)
    assert low.peak <= middle.peak <= (low.peak + plain.peak) / 2
    assert local._lower(plain, plain.peak) is plain
    for budget in (low.peak, (low.peak + plain.peak) / 2, plain.peak):
        way = local._way(low, budget)
        assert way[0] is low and all(state.peak <= budget for state in way)
        assert all(b.seconds < a.seconds for a, b in zip(way, way[1:]))
        best = local._kicked(way[-1])
        assert best.peak <= way[-1].peak and best.seconds <= way[-1].seconds
    assert way[-1].seconds == pytest.approx(plain.seconds)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_search_for_a_budget_finds_what_the_whole_one_finds(name):
    """Or nearly."""

    def best(states, budget):
        return min(state.seconds for state in states if state.peak <= budget)

    every = Local(stages(name)).states()
    least, most = every[-1].peak, every[0].peak
    for budget in budgets(least, most, 4):
        found = Local(stages(name)).states(budget)
        assert best(found, budget) <= 1.05 * best(every, budget)
    assert Local(stages(name)).states(least)[-1].peak == least


@pytest.mark.parametrize("name", ["mlp 5", "skips 6", "residual 3"])
def test_a_search_for_a_budget_ends_below_it(name):
    local, every = Local(stages(name)), Local(stages(name)).states()
    least, most = every[-1].peak, every[0].peak
    ends = [local.states(aim)[-1].peak for aim in budgets(least, most, 3)]
    assert least == ends[0] <= ends[1] <= ends[2] < most and least < ends[2]


@pytest.mark.parametrize("name", ["skips 2", "residual 3", "drawn 2"])
def test_bare_schedules_begin_with_nothing_held(name):
    found = stages(name)
    first, *faster = Local(found).bare()
    assert not any(first.held)
    assert faster and all(state.peak <= first.peak for state in faster)
    assert all(b.seconds < a.seconds for a, b in zip([first, *faster], faster))


def test_a_front_is_of_what_nothing_beats():
    def state(seconds, peak):
        return State((), (Run(0, 0, 0, seconds, peak),))

    every = [state(*each) for each in [(1, 9), (2, 9), (2, 7), (2, 8), (5, 3), (6, 3), (7, 4)]]
    assert [(s.seconds, s.peak) for s in _front(every)] == [(1, 9), (2, 7), (5, 3)]
