"""Repeated blocks become one scan: values, gradients, and what is left as it is."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import backpass as bp
from backpass.ir import verify
from backpass.ir.graph import UNKNOWN, Origin
from backpass.passes import DEFAULT, Canonicalise, Cse, Dce, Roll
from backpass.passes.roll.runs import Run, runs
from backpass.passes.roll.scopes import Scopes
from fuzz.interpret import run_graph, run_jaxpr
from passes.draw_repeats import arguments, repeated
from passes.repeats import PART, ROLL, STAY, TIME, B, D, N, dense, layer, mlp, rows, scopes
from passes.texts import compiled, ops

ROLLED = tuple(Roll(True) if each.name == "roll" else each for each in DEFAULT)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def lengths(graph):
    return sorted(node.attrs["length"] for node in graph.walk() if node.op.name == "scan")


def rolled(stages):
    return next(stage for stage in stages if stage.name == "roll")


def close(got, want, tolerance=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def both(loss, params, x, tolerance=1e-9):
    """Values and gradients, ours rolled; returns the stages."""
    has_aux = loss.__name__ == "hidden_states"

    def step(grad):
        return grad(loss, argnums=(0, 1), has_aux=has_aux)

    ours = bp.compile(step(bp.value_and_grad), passes=ROLLED, debug=True)
    close(ours(params, x), jax.jit(step(jax.value_and_grad))(params, x), tolerance)
    return ours.lower(params, x).stages


@pytest.mark.parametrize("name", ROLL)
def test_blocks_become_a_scan(name):
    loss, params, want = ROLL[name]
    tolerance = 0.05 if name == "half_precision" else 1e-9
    stages = both(loss, params(), rows(), tolerance)
    assert lengths(rolled(stages).graph) == want, list(map(str, rolled(stages).report()))


@pytest.mark.parametrize("name", TIME)
def test_steps_in_time_become_a_scan(name):
    loss, params, want = TIME[name]
    x = jax.random.normal(jax.random.key(2), (B, N, D))
    assert lengths(rolled(both(loss, params(), x)).graph) == want


@pytest.mark.parametrize("name", STAY)
def test_look_alike_is_left_alone(name):
    stages = both(STAY[name], dense(), rows())
    assert lengths(rolled(stages).graph) == []
    assert not any(each.matched for each in rolled(stages).report())


@pytest.mark.parametrize("name", PART)
def test_what_fits_is_rolled(name):
    loss, among = PART[name]
    found = lengths(rolled(both(loss, dense(), rows())).graph)
    assert found
    assert among.issuperset(found)


def blocks_of(n):
    """A chain of `n` layers, and its parameters."""
    return [{"w": jnp.eye(D) * (i + 1), "b": jnp.zeros(D)} for i in range(n)]


def test_text_of_a_rolled_chain():
    passes = "canonicalise,cse,dce,roll{roll=true}"
    graph = bp.compile(scopes, passes=passes, debug=True).lower(blocks_of(3), rows()).graph
    (scan,) = [node for node in graph.nodes if node.op.name == "scan"]
    (body,) = scan.regions
    assert [node.op.name for node in body.nodes] == "dot_general broadcast_in_dim add tanh".split()
    assert [str(value.type) for value in body.inputs] == [f"f64[{B},{D}]", "f64[4,4]", "f64[4]"]
    assert [node.op.name for node in graph.nodes[:3]] == ["stack", "stack", "scan"]
    assert scan.scope == "layer[0:3]"
    assert all(node.scope == "" and "repeats.py" in node.source for node in body.nodes)


def test_report_tells_blocks_and_line():
    low = bp.compile(mlp, passes="canonicalise,cse,dce,roll{roll=true}").lower(dense(), rows())
    (found,) = low.fusions
    assert found.matched
    assert str(found).startswith("6 blocks of 4 nodes at ")
    assert str(found).endswith(": rolled into one scan")


def test_near_miss_names_the_line():
    low = bp.compile(STAY["two_back"], passes="cse,dce,roll{roll=true}").lower(dense(), rows())
    (found,) = low.fusions
    assert not found.matched
    assert "differ in what they read: " in found.reason
    assert "repeats.py" in found.reason


def test_weights_of_one_array_are_not_copied():
    loss, params, _ = ROLL["stacked_weights"]
    graph = bp.compile(loss, passes="cse,dce,roll{roll=true}").lower(params(), rows()).graph
    (scan,) = [node for node in graph.nodes if node.op.name == "scan"]
    assert graph.producer[scan.inputs[-1]].op.name == "reshape"  # f64[6,4,4] as f64[6,1,4,4]
    assert not any(node.op.name in ("stack", "slice") for node in graph.nodes)


def test_states_in_one_array_are_what_the_scan_stacks():
    loss, params, _ = ROLL["states"]
    graph = bp.compile(loss, passes="cse,dce,roll{roll=true}").lower(params(), rows()).graph
    names = [node.op.name for node in graph.nodes]
    assert "unstack" not in names
    assert names[names.index("scan") + 1] == "transpose"


def test_masks_are_the_same_bits():
    def masks(params, x):
        key, found = jax.random.key(3), []
        for i, p in enumerate(params):
            found.append(jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, x.shape))
            x = x @ p["w"] * found[-1]
        return x, found

    ours = bp.compile(masks, passes=ROLLED, debug=True)
    assert lengths(ours.lower(dense(), rows()).graph) == [N]
    for a, b in zip(ours(dense(), rows())[1], masks(dense(), rows())[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_callbacks_keep_their_order():
    seen = []

    def told(params, x):
        for i, p in enumerate(params):
            x = jnp.tanh(x @ p["w"])
            jax.debug.callback(lambda _, i=i: seen.append(i), x[0, 0], ordered=True)
        return x

    ours = bp.compile(told, passes=ROLLED, debug=True)
    close(ours(dense(), rows()), jax.jit(told)(dense(), rows()))
    jax.effects_barrier()
    assert seen == [*range(N), *range(N)]


def test_auto_leaves_what_compiles_soon_enough():
    low = bp.compile(bp.grad(mlp)).lower(dense(), rows())
    assert lengths(low.graph) == []
    assert low.fusions == ()


@pytest.mark.parametrize(("flops", "want"), [(0, [20]), (10**6, [])])
def test_auto_rolls_many_nodes_with_work(flops, want):
    passes = f"canonicalise,cse,dce,roll{{nodes=80,flops={flops}}}"
    low = bp.compile(mlp, passes=passes).lower(blocks_of(20), rows())
    assert lengths(low.graph) == want
    assert [each.matched for each in low.fusions] == [bool(want)]


def test_false_rolls_nothing_and_other_words_are_refused():
    low = bp.compile(mlp, passes="roll{roll=false}").lower(blocks_of(20), rows())
    assert lengths(low.graph) == []
    with pytest.raises(bp.ArgumentError, match="auto, true and false"):
        bp.compile(mlp, passes="roll{roll=maybe}")


def test_a_budget_holds_within_the_scan():
    def step(params, x):
        value, grads = bp.value_and_grad(ROLL["residual"][0])(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    params, x = blocks_of(24), jax.random.normal(jax.random.key(1), (256, D))
    passes = tuple(Roll(True) if each.name == "roll" else each for each in DEFAULT)
    plain = bp.compile(step, passes=passes).lower(params, x).compile()
    sizes = plain.memory_analysis()
    fixed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    budget = fixed + int(0.6 * sizes.temp_size_in_bytes)
    lean = bp.compile(step, passes=passes, memory_budget=budget)
    compiled = lean.lower(params, x).compile()
    assert lengths(compiled.stages[-1].graph)
    assert compiled.plan.measured_bytes <= budget
    close(lean(params, x), plain(params, x))


@pytest.mark.parametrize("seed", range(24))
def test_random_repeats_keep_values_and_gradients(seed):
    """In NumPy: nothing is compiled."""
    program = repeated(seed)
    args = arguments(program)

    def step(grad):
        return grad(program.loss, argnums=(0, 1))

    low = bp.compile(step(bp.value_and_grad), passes=ROLLED, debug=True).lower(*args)
    got = run_graph(low.graph, *jax.tree.leaves(args))
    want = run_jaxpr(jax.make_jaxpr(step(jax.value_and_grad))(*args), *jax.tree.leaves(args))
    close(got, want, 1e-8)
    graph = rolled(low.stages).graph
    assert Roll(True)(graph) is graph


# By the pass alone: no program is compiled


def alone(apply, fun, *args):
    """What the pass makes of a function, which gives the same numbers; and its notes."""
    given = Dce()(Cse()(Canonicalise()(compiled(fun, *args))))
    found = apply(given)
    verify(found)
    close(run_graph(found, *jax.tree.leaves(args)), run_graph(given, *jax.tree.leaves(args)))
    return found, apply.report(given)


def test_what_the_last_block_makes_is_read():
    def loss(params, x):
        for p in params[:3]:
            y = x @ p["w"]
            x = jnp.tanh(y + p["b"])
        return x.mean() + y.sum()

    found, (note,) = alone(Roll(True), loss, dense(), rows())
    assert note.reason == "what the blocks make is read elsewhere" and not lengths(found)


@pytest.mark.parametrize("count, found", [(2, []), (3, [3]), (4, [4])])
def test_three_blocks_of_two_nodes_are_the_fewest(count, found):
    def loss(params, x):
        for p in params[:count]:
            x = jnp.tanh(x @ p["w"])
        return x

    assert lengths(alone(Roll(True), loss, dense(), rows())[0]) == found


@pytest.mark.parametrize("starts", [(0, 0, 1, 1, 1), (0, 0, 1, 0, 0, 0)])
def test_blocks_of_which_one_has_another_slice(starts):
    """Of what it makes itself, as of what is given slices may differ."""

    def loss(params, x):
        for p, start in zip(params, starts):
            part = (x @ p["w"])[:, start : start + 2]
            x = jnp.tanh(jnp.concatenate([part, -part], 1))
        return x

    found, _ = alone(Roll(True), loss, dense(), rows())
    assert lengths(found) == [3]


def test_blocks_that_read_answers_of_a_host_stay_in_their_order():
    """One that is asked for in between, though it depends on no block."""

    def loss(params, x):
        for p in params:
            noise = io_callback(lambda: 0, jax.ShapeDtypeStruct(x.shape, x.dtype))
            x = jnp.tanh(noise + x @ p["w"])
        return x

    given = Dce()(Cse()(Canonicalise()(compiled(loss, dense(), rows()))))
    assert Roll(True)(given) is given
    (note,) = Roll(True).report(given)
    assert note.reason.startswith("a block reads what is only known when others have run: io_callb")


def test_pieces_of_one_array_that_were_reshaped_are_not_copied():
    def loss(w, x):
        for each in [piece.reshape(D, D) for piece in jnp.split(w, N)]:
            x = jnp.tanh(x @ each)
        return x

    found, _ = alone(Roll(True), loss, jnp.stack([p["w"] for p in dense()]), rows())
    assert lengths(found) == [N] and "stack" not in ops(found)


def test_pieces_of_other_arrays_are_stacked():
    def loss(w, x):
        pieces = [w[0], w[1], w[2], w[4], w[3]]
        for each in pieces:
            x = jnp.tanh(x @ each)
        return x

    found, _ = alone(Roll(True), loss, jnp.stack([p["w"] for p in dense()]), rows())
    assert lengths(found) == [5] and "stack" in ops(found)


@pytest.mark.parametrize(
    ("least", "reasons"), [(20, [""]), (30, ["24 nodes compile soon enough as they are"]), (50, [])]
)
def test_auto_counts_the_nodes_of_the_blocks(least, reasons):
    def loss(params, x):
        x = functools.reduce(lambda h, p: layer(p, h), params, x)
        for fun in (jnp.sin, jnp.cos, jnp.exp, jnp.tan, jnp.square, jnp.abs, jnp.sinh, jnp.cosh):
            x = fun(x).reshape(2, -1).T.ravel()[None] * x.sum()
        return x

    found, notes = alone(Roll(blocks=3, nodes=least, flops=0), loss, dense(), rows())
    assert [note.reason for note in notes] == reasons and lengths(found) == [N] * (reasons == [""])


# Where numbers repeat, and names of what repeats


@pytest.mark.parametrize(
    "labels, least, found",
    [
        ("ababab", 3, [Run(0, 6, 2, 4)]),
        ("ababab", 4, []),
        ("xabcabcabcay", 3, [Run(1, 11, 3, 7)]),
        ("aaaxbcbcbc", 3, [Run(4, 10, 2, 4), Run(0, 3, 1, 2)]),
        ("aa", 2, [Run(0, 2, 1, 1)]),
        ("abc", 2, []),
        ("a", 2, []),
        ("", 2, []),
    ],
)
def test_runs(labels, least, found):
    """Of so many blocks, those first whose repeats are most."""
    assert runs([ord(label) for label in labels], [1] * len(labels), least) == found


def test_runs_of_more_weight_come_first():
    found = runs([ord(label) for label in "aaaxbcbcbc"], [5, 5, 5, *[1] * 7], 3)
    assert [(run.period, run.cover) for run in found] == [(1, 10), (2, 4)]


@pytest.mark.parametrize(
    "first, last, name",
    [
        ("a/layers_0", "a/layers_5", "a/layers[0:6]"),
        ("h[2]", "h[7]", "h[2:8]"),
        ("a/b", "a/b", "a/b/blocks[0:6]"),
        ("a/l_0/b", "a/l_5/b", "a/blocks[0:6]"),
        ("l_0", "m_5", "blocks[0:6]"),
        ("a/up", "a/down", "a/blocks[0:6]"),
        ("", "", "blocks[0:6]"),
    ],
)
def test_names_of_rolled_blocks(first, last, name):
    (node,) = compiled(jnp.tanh, rows()).nodes
    one, other = ([replace(node, origin=Origin("m.py:1", at))] for at in (first, last))
    found = Scopes.of([*[one] * 5, other])
    assert found.origin.scope == name and found.origin.source == "m.py:1"
    for inside in ("", "mlp") if first else ():
        assert found.inner(Origin("m.py:2", f"{first}/{inside}".rstrip("/"))).scope == inside
    assert found.inner(UNKNOWN) is UNKNOWN
    other = Origin("m.py:3", f"{first}1/mlp")
    assert found.inner(other).scope == other.scope
