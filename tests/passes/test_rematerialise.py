"""The planner: segments, what to keep, schedules, and that no schedule changes a value."""

import itertools
from bisect import bisect
from dataclasses import replace
from functools import cache

import jax
import jax.experimental
import numpy as np
import pytest

from backpass import ArgumentError, ir
from backpass.ir.device import DEVICES, clock, device_named
from backpass.ir.graph import Graph
from backpass.passes import PASSES, Rematerialise, parse_pipeline
from backpass.passes.pipeline import spelled
from backpass.passes.rematerialise import segments, step_from, step_to
from backpass.passes.rematerialise.frontier import Frontier
from backpass.passes.rematerialise.joint import joint_of
from backpass.passes.rematerialise.keep import closure, kept, ladder
from backpass.passes.rematerialise.scans import Scans
from backpass.passes.rematerialise.schedule import SLOTS, Drop, Keep, Last, Link, Option, Schedules
from backpass.passes.rematerialise.segments import chain
from passes.joints import LOSSES, joint, parameters, rows, sgd

SPEC = replace(DEVICES["cpu"], flops=1e10)  # where products of small matrices are dear
LAYERS, WIDTH, BATCH = 6, 16, 64


@cache
def graph_of(name):
    return joint(sgd(LOSSES[name]), parameters(LAYERS, WIDTH), rows(BATCH, WIDTH))


@cache
def expected(name):
    return run(graph_of(name))


def run(graph: Graph):
    return ir.evaluate(graph, *parameters(LAYERS, WIDTH), rows(BATCH, WIDTH))


def same(name, graph, atol=1e-6):  # of values about 1, added up in another order
    ir.verify(graph)
    for ours, theirs in zip(run(graph), expected(name), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=atol)


def test_a_chain_is_cut_between_its_products():
    found = chain(joint_of(graph_of("mlp")), SPEC.seconds)
    assert all(
        sum(node.op.name == "dot_general" for node in segment.forward) <= 1
        for segment in found.segments
    )
    assert len(found.segments) >= LAYERS
    assert not found.long


@pytest.mark.parametrize("most", [1, 2, 3, 5, 128])
def test_no_segment_is_shorter_than_its_share(most, monkeypatch):
    """Of the time of the forward half; but for the last one."""
    whole = joint_of(graph_of("mlp"))
    every = chain(whole, SPEC.seconds).segments
    monkeypatch.setattr(segments, "MOST", most)
    found = chain(whole, SPEC.seconds).segments
    times = [sum(map(SPEC.seconds, segment.forward)) for segment in found]
    assert all(time >= 0.999 * sum(times) / most for time in times[:-1])
    assert len(found) == len(every) if most == 128 else 1 <= len(found) <= most + 1
    entries = [segment.entry for segment in found]
    assert entries[0] == () and set(entries) <= {segment.entry for segment in every}


def test_what_jumps_over_the_cuts_is_long():
    found = chain(joint_of(graph_of("skips")), SPEC.seconds)
    assert [str(value.type) for value in found.long] == [f"f32[{BATCH},{WIDTH}]"] * len(found.long)
    assert found.long


def test_what_is_small_may_cross_cuts():
    """Results of parts that wait for each other, as those of an attention's blocks do."""

    def loss(params, x):
        parts = [jax.numpy.sin(x @ w) @ w.T[:, :1] for w in params]
        return (jax.numpy.concatenate(parts, 1) ** 2).mean()

    params = [np.ones((4, 256), np.float32)] * 2 * LAYERS
    found = chain(joint_of(joint(sgd(loss), params, rows(16, 4))), SPEC.seconds)
    for segment in found.segments:
        assert sum(node.op.name == "dot_general" for node in segment.forward) <= 1


@pytest.mark.parametrize("name", LOSSES)
def test_segments_hold_every_node_once_and_in_order(name):
    whole = joint_of(graph_of(name))
    found = chain(whole, SPEC.seconds).segments
    assert [n for s in found for n in s.forward] == list(whole.forward)
    rest = [n for s in reversed(found) for n in s.rest]
    assert sorted(map(id, rest)) == sorted(map(id, whole.rest))
    made = set(graph_of(name).inputs) | {v for n in whole.forward for v in n.outputs}
    for node in rest:
        assert all(isinstance(v, ir.Literal) or v in made for v in node.inputs)
        made.update(node.outputs)


def cost(whole, keep, price):
    again, _ = closure(whole, whole.required, keep)
    return sum(map(whole.bytes, keep)) + price * sum(map(SPEC.seconds, again))


@pytest.mark.parametrize("price", [1e7, 1e8, 1e9, 1e10])
@pytest.mark.parametrize("name", ["mlp", "skips"])
def test_a_minimum_cut_is_no_worse_than_any_other_selection(name, price):
    """Against random selections, and those one value away from it."""
    whole = joint_of(graph_of(name))
    best = kept(whole, whole.forward, whole.required, SPEC.seconds, price)
    least = cost(whole, best, price)
    values = [v for v in whole.place if whole.root[v] is v and whole.bytes(v)]
    random = np.random.default_rng(0)
    others = [best ^ {v} for v in values]
    others += [{v for v in values if random.random() < 0.4} for _ in range(200)]
    assert least <= min(cost(whole, other, price) for other in others) * (1 + 1e-6)


def test_a_price_of_nothing_keeps_nothing():
    whole = joint_of(graph_of("mlp"))
    assert not kept(whole, whole.forward, whole.required, SPEC.seconds, 0.0)


def revolve(steps, checkpoints):
    """Extra forward steps of the best reversal. Source: Griewank and Walther 2000."""

    @cache
    def best(n, c):
        if n <= 1:
            return 0
        if c == 0:
            return n * (n - 1) // 2
        return min(k + best(n - k, c - 1) + best(k, c) for k in range(1, n))

    return best(steps, checkpoints)


@pytest.mark.parametrize("length, checkpoints", [*itertools.product((5, 16, 33), (1, 2, 3, 5))])
def test_a_uniform_chain_is_reversed_as_revolve_does(length, checkpoints):
    """A slot for each checkpoint, for the entry of the last segment, and for its backward."""
    links = [Link(1, 1.0, 0, (Option(0, 1.0, 1),))] * length
    found = Schedules(links, SLOTS).seconds(checkpoints + 2)
    assert found == revolve(length, checkpoints) + 1


def every_schedule(links, s, t, first):
    """All schedules of a chain as (extra seconds, slots), by brute force."""
    link = links[s]
    if s == t:
        options = link.options if first else link.options[-1:]
        return {(o.seconds, o.bytes + o.working) for o in options}
    found = set()
    run = 0.0 if first else link.seconds
    for o in link.options:
        for seconds, slots in every_schedule(links, s + 1, t, first):
            held = o.bytes + links[s + 1].entry
            found.add((run + o.seconds + seconds, max(held + slots, o.bytes + o.working)))
    for k in range(s + 1, t + 1):
        swept = 0.0 if first else sum(each.seconds for each in links[s:k])
        need = max(each.working for each in links[s:k])
        for a, m in every_schedule(links, k, t, first):
            for b, n in every_schedule(links, s, k - 1, False):
                found.add((swept + a + b, max(links[k].entry + m, n, need)))
    return found


def cost_of(step, links, t, first):
    """Extra seconds and slots of one schedule up to segment `t`."""
    link = links[step.at]
    run = 0.0 if first else link.seconds
    if isinstance(step, Drop):
        swept = 0.0 if first else sum(each.seconds for each in links[step.at : step.to])
        need = max(each.working for each in links[step.at : step.to])
        a, m = cost_of(step.then, links, t, first)
        b, n = cost_of(step.again, links, step.to - 1, False)
        return swept + a + b, max(links[step.to].entry + m, n, need)
    option = link.options[step.option]
    alone = option.bytes + option.working
    if isinstance(step, Last):
        assert step.at == t
        return option.seconds, alone
    seconds, slots = cost_of(step.then, links, t, first)
    held = option.bytes + links[step.at + 1].entry
    return run + option.seconds + seconds, max(held + slots, alone)


@pytest.mark.parametrize("seed", range(6))
def test_schedules_are_the_best_of_all(seed):
    random = np.random.default_rng(seed)

    def link():
        seconds = float(random.integers(1, 9))
        sizes = sorted(random.integers(0, 12, 2).tolist(), reverse=True)
        options = [Option(n, float(random.integers(0, 5)), 3) for n in sizes if n]
        last = Option(0, seconds, int(random.integers(3, 9)))
        return Link(int(random.integers(1, 5)), seconds, 2, (*options, last))

    links = [link() for _ in range(4)]
    every = every_schedule(links, 0, 3, True)
    schedules = Schedules(links, SLOTS)
    for slots in range(2, 60):
        best = min((s for s, n in every if n <= slots), default=np.inf)
        assert schedules.seconds(slots) == pytest.approx(best)
        if np.isfinite(best):
            seconds, taken = cost_of(schedules.step(slots), links, 3, True)
            assert seconds == pytest.approx(best) and taken <= slots


@pytest.mark.parametrize("name", LOSSES)
def test_no_schedule_changes_a_value(name):
    frontier = Frontier(graph_of(name), SPEC)
    seen = []
    for budget in np.linspace(frontier.leanest.bytes, frontier.plain.bytes * 1.1, 7):
        candidate = frontier.fastest(budget)
        assert candidate.bytes <= budget
        if candidate not in seen:
            seen.append(candidate)
            same(name, candidate.graph)
    assert len(seen) > 1
    assert frontier.leanest.bytes < frontier.plain.bytes


@pytest.mark.parametrize("name", LOSSES)
def test_less_memory_takes_more_time(name):
    frontier = Frontier(graph_of(name), SPEC)
    budgets = np.linspace(frontier.leanest.bytes, frontier.plain.bytes, 9)
    seconds = [frontier.fastest(budget).seconds for budget in budgets]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert frontier.fastest(frontier.leanest.bytes - 1) is None


@pytest.mark.parametrize("name", LOSSES)
def test_a_choice_gives_its_candidate_again(name):
    frontier = Frontier(graph_of(name), SPEC)
    budgets = np.linspace(frontier.leanest.bytes, frontier.plain.bytes, 5)
    for candidate in (frontier.plain, *map(frontier.fastest, budgets)):
        again = Frontier(graph_of(name), SPEC).of(candidate.choice)
        assert (again.bytes, again.seconds) == (candidate.bytes, candidate.seconds)
        assert again.graph == candidate.graph


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_that_jax_has_differentiated(name):
    """Its phases are read from JAX's name stack."""
    step = sgd(LOSSES[name], jax.value_and_grad)
    graph = joint(step, parameters(LAYERS, WIDTH), rows(BATCH, WIDTH))
    frontier = Frontier(graph, SPEC)
    assert frontier.leanest.bytes < 0.8 * frontier.plain.bytes
    for budget in np.linspace(frontier.leanest.bytes, frontier.plain.bytes, 3):
        same(name, frontier.fastest(budget).graph)


@pytest.mark.parametrize("segment", [0, 2, 3, 4])
@pytest.mark.parametrize("name", ["scanned", "backwards"])
def test_scans_that_stack_less_compute_the_same(name, segment):
    graph = graph_of(name)
    scans = Scans(graph, SPEC)
    for level in range(scans.levels):
        lean = scans.leaner(level, segment)
        assert lean is not graph
        same(name, lean)


def test_a_scan_stacks_less_at_a_higher_level():
    scans = Scans(graph_of("scanned"), SPEC)
    most, least = (
        ir.liveness(scans.leaner(level), fused=True).peak_bytes for level in (0, scans.levels - 1)
    )
    assert least < most


@pytest.mark.parametrize("name", ["mlp", "skips"])
def test_a_ladder_goes_down_in_bytes_and_up_in_seconds(name):
    whole = joint_of(graph_of(name))
    sets = ladder(whole, whole.forward, whole.required, SPEC)
    sizes = [sum(map(whole.bytes, keep)) for keep in sets]
    seconds = [cost(whole, keep, 1.0) - size for keep, size in zip(sets, sizes)]
    assert sizes == sorted(sizes, reverse=True) and not sets[-1]
    assert seconds == pytest.approx(sorted(seconds))
    assert len(sets) > 4


def test_segments_of_a_scan_divide_its_length():
    scans = Scans(graph_of("scanned"), SPEC)
    assert scans.segments == [0, 2, 3]
    assert [pair.forward.length for pair in scans.pairs] == [LAYERS]
    assert not Scans(graph_of("mlp"), SPEC).pairs


def test_a_mask_that_is_made_again_is_the_same_mask():
    """Random bits come from their key, so that they may run twice; nothing else may change."""
    (treatment,) = Frontier(graph_of("dropout"), SPEC).treatments
    graph = treatment.candidate(treatment.sizes[0]).graph
    drawn = [node.op.name for node in graph.walk()].count("random_bits")
    assert drawn > [node.op.name for node in graph_of("dropout").walk()].count("random_bits")
    same("dropout", graph)


def test_nodes_with_effects_run_once():
    def loss(params, x):
        for w in params:
            x = jax.numpy.tanh(x @ w)
            jax.debug.callback(lambda value: None, x.sum())
        return x.sum()

    graph = joint(sgd(loss), parameters(LAYERS, WIDTH), rows(BATCH, WIDTH))
    lean = Frontier(graph, SPEC).leanest.graph
    calls = [sum(n.op.name == "debug_callback" for n in g.walk()) for g in (graph, lean)]
    assert calls == [LAYERS, LAYERS]


@pytest.mark.parametrize("in_scan", [False, True])
def test_what_an_effect_returns_is_kept(in_scan):
    """A host's answer may be another one the second time."""

    def layer(x, w):
        kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = jax.experimental.io_callback(lambda x: x * 0 + 1, kind, jax.lax.stop_gradient(x))
        return jax.numpy.tanh(x @ w) * jax.lax.stop_gradient(noise), None

    def loss(params, x):
        if in_scan:
            x, _ = jax.lax.scan(layer, x, jax.numpy.stack(params))
        else:
            for w in params:
                x, _ = layer(x, w)
        return (x**2).sum()

    graph = joint(sgd(loss), parameters(LAYERS, WIDTH), rows(BATCH, WIDTH))
    lean = Frontier(graph, SPEC).leanest.graph
    calls = [sum(n.op.name == "io_callback" for n in g.walk()) for g in (graph, lean)]
    assert calls == [1, 1] if in_scan else calls == [LAYERS, LAYERS]
    assert lean is not graph


def towers(params, x):
    """Two of them: neither one's gradients are read in the other's."""
    sums = []
    for own in (params[:3], params[3:]):
        h = x
        for w in own:
            h = jax.numpy.tanh(jax.numpy.sin(h @ w))
        sums.append((h**2).mean())
    return sums[0] * sums[1]


def plans(loss):
    """Graphs under budgets from the least to that of the program as it is."""
    frontier = Frontier(joint(sgd(loss), parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)), SPEC)
    for budget in np.linspace(frontier.leanest.bytes, frontier.plain.bytes, 9):
        yield frontier.fastest(budget).graph


def fences(graph):
    return [i for i, node in enumerate(graph.nodes) if node.op.name == "optimization_barrier"]


@pytest.mark.parametrize("loss", [towers, *LOSSES.values()])
def test_each_second_run_waits_for_all_that_is_done(loss):
    """XLA would start early on what waits for nothing, and hold both at once."""
    for graph in plans(loss):
        place = {node: i for i, node in enumerate(graph.nodes)}
        products = [node for node in graph.nodes if node.op.name == "dot_general"]
        forward = {node.attrs["dimension_numbers"] for node in products if node.phase == "forward"}
        for node in products:
            if node.attrs["dimension_numbers"] not in forward:  # a gradient's
                fence = min((i for i in fences(graph) if i > place[node]), default=np.inf)
                assert all(place[user] <= fence for user in graph.users[node.output])
        for value in graph.outputs:
            made = graph.producer[value]
            if made.phase != "forward" and place[made] not in fences(graph):
                assert place[made] > max(fences(graph), default=-1)


def pooled(params, x):
    for w in params:
        x = jax.lax.reduce_window(x @ w, -np.inf, jax.lax.max, (2, 1), (1, 1), "SAME")
    return (x**2).mean()


def scaled(params, x):
    """Each part begins with an argument and a number."""
    scale = jax.numpy.full_like(x, 8)
    return sum((jax.numpy.sin(x / scale @ w) ** 2).mean() for w in params)


def repeated(params, x):
    """The same, where the number is read by derivatives too."""
    scale = jax.numpy.full_like(params[0], 8)
    return sum((jax.numpy.sin(x @ (w / scale)) ** 2).mean() for w in params)


@pytest.mark.parametrize("loss", [scaled, repeated])
def test_second_runs_wait_for_cotangents(loss):
    """Whatever they begin with: nothing but a number waits for nothing."""
    second = 0
    for graph in plans(loss):
        products = [node for node in graph.nodes if node.op.name == "dot_general"]
        forward = {node.attrs["dimension_numbers"] for node in products if node.phase == "forward"}
        for node in products:
            if node.phase == "backward" and node.attrs["dimension_numbers"] in forward:
                waits = {n for n in upstream(graph, node, real=True) if n.phase == "backward"}
                assert any(n.op.name == "optimization_barrier" for n in waits)
                second += 1
    assert second


@pytest.mark.parametrize("loss", [pooled, scaled, repeated])
def test_no_fence_holds_a_constant(loss):
    """It would lie in memory from there to its last reader."""
    for graph in plans(loss):
        for i in fences(graph):
            made = [graph.producer[v] for v in graph.nodes[i].inputs if v in graph.producer]
            assert not any(node.op.name == "broadcast_in_dim" for node in made)


def dropped(params, x):
    keys = jax.random.split(jax.random.key(0), len(params))
    for key, w in zip(keys, params, strict=True):
        x = jax.numpy.sin(x @ w)
        x = jax.numpy.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0)
    return (x**2).mean()


def untouched(params, x):
    """Dropouts again, of which a stretch has no derivative."""
    for i, w in enumerate(params):
        x = x + jax.lax.stop_gradient(jax.numpy.cos(dropped([w, w], x))) if i % 2 else x @ w
    return (x**2).mean()


@pytest.mark.parametrize("loss", [dropped, untouched])
def test_random_bits_wait_for_their_layer(loss):
    """They depend on a key alone: XLA would draw those of all layers as the program starts."""
    drawn = 0
    for graph in plans(loss):
        place = {node: i for i, node in enumerate(graph.nodes)}
        products = [place[n] for n in graph.nodes if n.op.name == "dot_general"]
        for node in graph.nodes:
            if fences(graph) and node.op.name == "random_bits" and place[node] > min(products):
                waits = [
                    fence
                    for fence in upstream(graph, node)
                    if fence.op.name == "optimization_barrier"
                    and any(v.dtype == np.float32 and graph.users[v] for v in fence.outputs)
                ]
                assert max(products[: bisect(products, place[node])]) < max(map(place.get, waits))
                drawn += 1
    assert drawn


def abreast(params, x):
    return sum((jax.numpy.sin(jax.numpy.cos(x @ w)) ** 2).mean() for w in params)


@pytest.mark.parametrize("loss", [abreast, towers])
def test_kernels_run_in_turn(loss):
    """Even where neither reads the other: XLA would start on all of them at once."""
    fenced = [graph for graph in plans(loss) if fences(graph)]
    assert fenced
    for graph in fenced:
        products = [n for n in graph.nodes if (n.op.name, n.phase) == ("dot_general", "forward")]
        assert len(products) == LAYERS
        for first, second in itertools.pairwise(products):
            assert first in upstream(graph, second, real=True)


def operands(params, x):
    for w in params:
        x = jax.numpy.tanh(x @ jax.numpy.sin(w))
    return (x**2).mean()


def rows_of(params, x):
    """The products that read the large operands make little of them."""
    for w in params:
        x = jax.numpy.tanh(x @ w) * (w[0] @ jax.numpy.sin(w))
    return (x**2).mean()


@pytest.mark.parametrize("loss", [operands, rows_of])
def test_operands_are_made_in_turn(loss):
    """What one kernel alone reads is made when the kernel before it is done."""
    fenced = [graph for graph in plans(loss) if fences(graph)]
    assert fenced
    for graph in fenced:
        products = [n for n in graph.nodes if (n.op.name, n.phase) == ("dot_general", "forward")]
        made = 0
        for first, second in itertools.pairwise(products):
            operand = graph.producer.get(second.inputs[1])
            if operand is not None and operand.op.name == "sin":
                assert first in upstream(graph, operand, real=True)
                made += 1
        assert made >= LAYERS - 1


def upstream(graph, node, real=False):
    """What a node depends on, or does so by values that are not real numbers."""
    found, pending = dict.fromkeys([node]), [node]
    while pending:
        inputs = [v for v in pending.pop().inputs if real or v.dtype != np.float32]
        makers = {graph.producer[v] for v in inputs if v in graph.producer} - found.keys()
        found |= dict.fromkeys(makers)
        pending += makers
    return list(found)[1:]


def test_steps_are_written_and_read():
    step = Keep(0, 1, Drop(1, 3, Last(3, 0), Keep(1, 0, Last(2, 2))))
    assert step_from(step_to(step)) == step
    with pytest.raises(ValueError, match="expected a step"):
        step_from(["keep", 1, "x"])


def test_as_a_pass():
    graph = graph_of("mlp")
    budget = Frontier(graph, SPEC).leanest.bytes * 2
    (planner,) = parse_pipeline(f"rematerialise{{budget={budget}}}", PASSES)
    assert planner == Rematerialise(budget)
    assert spelled([planner]) == f"rematerialise{{budget={budget}}}"
    planned = planner(graph)
    assert ir.liveness(planned, fused=True).peak_bytes <= budget
    same("mlp", planned)
    assert Rematerialise(1 << 40)(graph) is graph


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_known_of_alike_segments_holds_for_each(name):
    """A segment's ladder and link are those that it would get by itself."""
    (treatment, *_) = Frontier(graph_of(name), SPEC).treatments
    whole, segments = treatment.joint, treatment.chain.segments
    required = set(whole.required)
    for segment, sets, link in zip(segments, treatment.kept, treatment.schedules.links):
        own = [v for node in segment.forward for v in node.outputs if v in required]
        assert sets == ladder(whole, segment.forward, own, SPEC)
        assert link == treatment._link(segment, sets)


def test_equal_layers_are_alike_and_others_are_not():
    (treatment, *_) = Frontier(graph_of("mlp"), SPEC).treatments
    assert len(treatment.kinds) >= LAYERS > len(set(treatment.kinds))
    widths = [(8, 16), (16, 24), (24, 32), (32, 8)]
    params = [np.ones(shape, np.float32) for shape in widths]
    graph = joint(sgd(LOSSES["mlp"]), params, rows(BATCH, 8))
    (treatment, *_) = Frontier(graph, SPEC).treatments
    assert len(set(treatment.kinds)) == len(treatment.kinds) > 2


@pytest.mark.parametrize("name", LOSSES)
def test_a_clock_tells_what_its_device_does(name):
    frontier = Frontier(graph_of(name), SPEC)
    nodes = [*frontier.leanest.graph.walk(), *frontier.plain.graph.walk()]
    assert [frontier.clock.seconds(n) for n in nodes] == [SPEC.seconds(n) for n in nodes]


def test_a_clock_tells_operands_apart():
    """`x * x` reads half of what `x * y` does, in a kernel; a literal is not read."""

    def both(x, y):
        return x @ x, x @ y, y @ x

    graph = ir.parse(str(joint(both, *parameters(2, WIDTH))))
    spec = DEVICES["cpu"]
    ours = clock(spec)
    told = [ours.seconds(node) for node in graph.nodes]
    assert told == [spec.seconds(node) for node in graph.nodes]
    assert told[0] < told[1] == told[2]


def test_devices_have_names():
    assert device_named("h200").memory_bytes == 141 * 10**9
    with pytest.raises(ArgumentError, match="there is no device 'h9'; known are"):
        device_named("h9")
