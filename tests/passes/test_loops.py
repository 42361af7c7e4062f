"""What a loop need not do step by step is done before or after it, and only that."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import backpass as bp
from backpass import ir
from backpass.passes import DEFAULT, Cse, Dce, Defer, Hoist, Unroll
from models.comparison import assert_close, batches, weighted
from passes.recurrent import PROGRAMS, B, D, H, T, elman, half, lstm, parameters, sequence, zeros
from passes.texts import assert_rewrites, compiled, graph, ops

EAGER = {"hoist": Hoist(0.0, 1e6), "defer": Defer(0.0, 1e6)}
PASSES = tuple(EAGER.get(each.name, each) for each in DEFAULT)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# Text in, text out

HOISTED = """
    %3: f32[3,8] = scan(%0, %1, %2) {length=5, num_carry=1, num_consts=1}
      graph step(%0: f32[4,8], %1: f32[3,8], %2: f32[3,4]) {
        %3: f32[3,8] = dot_general(%2, %0) {dimension_numbers=(((1,),(0,)),((),()))}
        %4: f32[3,8] = add(%1, %3)
        %5: f32[3,8] = tanh(%4)
        return %5
      }
    return %3
    """
BEFORE = """
    %3: f32[15,4] = reshape(%2)
    %4: f32[15,8] = dot_general(%3, %0) {dimension_numbers=(((1,),(0,)),((),()))}
    %5: f32[5,3,8] = reshape(%4)
    %6: f32[3,8] = scan(%0, %1, %2, %5) {length=5, num_carry=1, num_consts=1}
      graph step(%0: f32[4,8], %1: f32[3,8], %2: f32[3,4], %3: f32[3,8]) {
        %4: f32[3,8] = add(%1, %3)
        %5: f32[3,8] = tanh(%4)
        return %5
      }
    return %6
    """
GIVEN = "%0: f32[4,8], %1: f32[3,8], %2: f32[5,3,4]"


def test_a_product_of_what_a_step_is_given_is_made_before():
    assert_rewrites(Hoist(room=3), GIVEN, HOISTED, BEFORE)


def test_a_product_whose_results_are_too_large_stays():
    assert_rewrites(Hoist(), GIVEN, HOISTED, None)
    (note,) = Hoist().report(graph(GIVEN, HOISTED))
    assert not note.matched and "480 B" in note.reason


def test_a_product_that_reads_little_stays():
    assert_rewrites(Hoist(ratio=2, room=3), GIVEN, HOISTED, None)


def test_what_is_made_of_constants_is_made_once():
    before = """
        %2: f32[4], %3: f32[3,4] = scan(%0, %0, %1) {length=3, num_carry=1, num_consts=1}
          graph body(%0: f32[4], %1: f32[4], %2: f32[4]) {
            %3: f32[4] = sin(%0)
            %4: f32[4] = mul(%1, %3)
            return %4, %2
          }
        return %2, %3
        """
    after = """
        %2: f32[4] = sin(%0)
        %3: f32[4], %4: f32[3,4] = scan(%0, %2, %0, %1) {length=3, num_carry=1, num_consts=2}
          graph body(%0: f32[4], %1: f32[4], %2: f32[4], %3: f32[4]) {
            %4: f32[4] = mul(%2, %1)
            return %4, %3
          }
        return %3, %4
        """
    assert_rewrites(Hoist(), "%0: f32[4], %1: f32[3,4]", before, after)


def test_what_would_grow_stays():
    before = """
        %2: f32[4] = scan(%0, %1) {length=3, num_carry=1, num_consts=1}
          graph body(%0: f32[4], %1: f32[4]) {
            %2: f32[9,4] = broadcast_in_dim(%0) {broadcast_dimensions=(1,)}
            %3: f32[9,4] = sin(%2)
            %4: f32[4] = reduce_max(%3) {axes=(0,)}
            %5: f32[9,4] = cos(%2)
            %6: f32[4] = reduce_sum(%5) {axes=(0,)}
            %7: f32[4] = mul(%1, %6)
            return %7
          }
        return %2
        """
    found = Hoist()(graph("%0: f32[4], %1: f32[4]", before))
    assert [node.op.name for node in found.nodes] == "broadcast_in_dim cos reduce_sum scan".split()


SUMMED = """
    %4: f32[4,8], %5: f32[3,8] = scan(%0, %1, %2, %3) {length=5, num_carry=2, num_consts=0}
      graph step(%0: f32[4,8], %1: f32[3,8], %2: f32[3,4], %3: f32[3,8]) {
        %4: f32[3,8] = tanh(%1)
        %5: f32[4,8] = dot_general(%2, %3) {dimension_numbers=(((0,),(0,)),((),()))}
        %6: f32[4,8] = add(%5, %0)
        return %6, %4
      }
    return %4, %5
    """
AFTER = """
    %4: f32[3,8] = scan(%1, %2, %3) {length=5, num_carry=1, num_consts=0}
      graph step(%0: f32[3,8], %1: f32[3,4], %2: f32[3,8]) {
        %3: f32[3,8] = tanh(%0)
        return %3
      }
    %5: f32[15,4] = reshape(%2)
    %6: f32[15,8] = reshape(%3)
    %7: f32[4,8] = dot_general(%5, %6) {dimension_numbers=(((0,),(0,)),((),()))}
    %8: f32[4,8] = add(%0, %7)
    return %8, %4
    """


def test_a_sum_of_products_of_stacks_is_one_product_after():
    given = "%0: f32[4,8], %1: f32[3,8], %2: f32[5,3,4], %3: f32[5,3,8]"
    assert_rewrites(Defer(), given, SUMMED, AFTER)


def test_a_loop_that_is_not_differentiated_gets_no_new_stacks():
    given = "%0: f32[4,8], %1: f32[3,8], %2: f32[5,3,4], %3: f32[5,3,8]"
    text = SUMMED.replace("dot_general(%2, %3)", "dot_general(%2, %4)")
    assert_rewrites(Defer(), given, text, None)
    (note,) = Defer().report(graph(given, text))
    assert not note.matched and note.what == "sum after a loop"


TINY = "%0: f32[4], %1: f32[70,4]"
LOOP = """
    %2: f32[4] = scan(%0, %1) {length=70, num_carry=1, num_consts=0}
      graph step(%0: f32[4], %1: f32[4]) {
        %2: f32[4] = mul(%0, %1)
        return %2
      }
    return %2
    """


def test_a_loop_of_tiny_steps_is_unrolled():
    unrolled = LOOP.replace("num_consts=0", "num_consts=0, unroll=4")
    assert_rewrites(Unroll(), TINY, LOOP, unrolled)
    assert_rewrites(Unroll(), TINY, LOOP.replace("num_consts=0", "num_consts=0, unroll=2"), None)
    assert_rewrites(Unroll(largest=8), TINY, LOOP, None)
    assert_rewrites(Unroll(least=100), TINY, LOOP, None)
    (note,) = Unroll().report(graph(TINY, LOOP))
    assert note.matched and note.nbytes == 70 * 16 and "4 steps a trip" in str(note)


# Bytes of one step: what it makes, and what products read; a view makes nothing.
STEPS = {
    "mul": ("%2: f32[4] = mul(%0, %1)", 16),
    "view": ("%3: f32[2,2] = reshape(%0)\n%4: f32[4] = reshape(%3)\n%2: f32[4] = sin(%4)", 16),
    "product": (
        """
        %3: f32[1,4] = reshape(%0)
        %4: f32[4,4] = broadcast_in_dim(%1) {broadcast_dimensions=(0,)}
        %5: f32[1,4] = dot_general(%3, %4) {dimension_numbers=(((1,),(0,)),((),()))}
        %2: f32[4] = reshape(%5)
        """,
        64 + 16 + (16 + 64),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_loop_is_unrolled_up_to_some_bytes_and_from_some_steps_on(name):
    text, size = STEPS[name]
    given = graph(TINY, LOOP.replace("%2: f32[4] = mul(%0, %1)", text))
    for unroll, made in [
        (Unroll(largest=size, least=70), True),
        (Unroll(largest=size - 1, least=70), False),
        (Unroll(largest=size, least=71), False),
    ]:
        assert (unroll(given) is not given) == made
        assert [note.nbytes for note in unroll.report(given)] == [70 * size] * made


# Real loops


def joint(fun, passes=PASSES, wrt=(0, 1)):
    """A program's value and gradients, as compiled by `passes`."""
    loss = partial(_weighed, fun)
    return bp.compile(bp.value_and_grad(loss, wrt), passes=passes, debug=True)


def _weighed(fun, *args):
    return weighted(fun(*args))


# (products before, constants, sums after, products after) where all that can be moved is.
EXPECTED = {
    "lstm": (1, 0, 2, 0),
    "lstm, from the end": (1, 0, 2, 0),
    "lstm, unrolled": (1, 0, 2, 0),
    "concatenated": (1, 1, 2, 0),
    "concatenated behind": (1, 1, 1, 0),
    "gru": (1, 0, 1, 0),
    "elman": (1, 0, 2, 0),
    "masked": (1, 0, 1, 0),
    "tree": (1, 0, 2, 0),
    "looked up": (1, 0, 1, 0),
    "headed": (1, 0, 1, 1),
    "perceptron": (2, 0, 0, 0),
    "vectors": (1, 0, 2, 0),
    "ensemble": (1, 0, 2, 0),
    "mapped": (1, 0, 2, 0),
    "rows": (2, 0, 3, 0),
    "layers": (1, 0, 2, 0),
    "bidirectional": (2, 0, 4, 0),
    "gram": (0, 0, 1, 0),
    "one step": (0, 0, 0, 0),
    "no step": (0, 0, 0, 0),
    "two steps": (1, 0, 2, 0),
}
WHAT = ("product before a loop", "constant of a loop", "sum after a loop", "product after a loop")


@pytest.mark.parametrize("name", EXPECTED)
def test_what_moves(name):
    notes = joint(PROGRAMS[name]).lower(parameters(), sequence()).fusions
    found = Counter(note.what for note in notes if note.matched)
    assert tuple(found[what] for what in WHAT) == EXPECTED[name], [*map(str, notes)]
    assert all("recurrent.py" in note.source or "site-packages" in note.source for note in notes)


@pytest.mark.parametrize("names", batches(PROGRAMS, 7).values(), ids=batches(PROGRAMS, 7))
def test_values_and_gradients(names):
    def losses(p, xs):
        return {name: _weighed(PROGRAMS[name], p, xs) for name in names}

    def both(grad):
        return lambda p, xs: (
            losses(p, xs),
            {name: grad(partial(_weighed, PROGRAMS[name]), (0, 1))(p, xs) for name in names},
        )

    args = parameters(), sequence()
    ours = bp.compile(both(bp.grad), passes=PASSES, debug=True)(*args)
    assert_close(ours, jax.jit(both(jax.grad))(*args))


def test_second_derivatives():
    def slopes(grad):
        def slope(fun, p, xs):
            return weighted(grad(partial(_weighed, fun), (0, 1))(p, xs))

        return lambda p, xs: [grad(partial(slope, f), (0, 1))(p, xs) for f in (lstm, elman)]

    args = parameters(), sequence()
    ours = bp.compile(slopes(bp.grad), passes=PASSES, debug=True)(*args)
    assert_close(ours, jax.jit(slopes(jax.grad))(*args))


def test_products_of_16_bits_add_up_in_32():
    p, xs = jax.tree.map(np.float32, (parameters(), sequence()))
    program = joint(half)
    notes = program.lower(p, xs).fusions
    assert sum(note.matched for note in notes) >= 2
    expected = jax.jit(jax.value_and_grad(partial(_weighed, half), (0, 1)))(p, xs)
    assert_close(program(p, xs), expected, relative=2e-2)


def products(loop):
    """Products in the steps of a loop."""
    return ops(loop.regions[0]).count("dot_general")


def test_an_lstm_has_one_product_a_step_each_way():
    final = joint(lstm, DEFAULT).lower(parameters(), sequence()).graph
    loops = [node for node in final.nodes if node.op.name == "scan"]
    assert [products(loop) for loop in loops] == [1, 1]
    outside = [node.output.shape for node in final.nodes if node.op.name == "dot_general"]
    assert sorted(outside) == sorted([(T * B, 4 * H), (T * B, D), (D, 4 * H), (H, 4 * H)])
    assert all(node.source for node in final.nodes if node.op.name == "dot_general")
    assert {n.phase for n in final.nodes if n.op.name == "dot_general"} == {"forward", "backward"}


def test_its_memory_is_no_more_than_that_of_jax():
    width, steps, batch = 64, 32, 8
    shapes = {"w": (width, 4 * width), "u": (width, 4 * width), "b": (4 * width,)}
    p = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    xs = jax.ShapeDtypeStruct((steps, batch, width), np.float32)

    def temp(step):
        return step.lower(p, xs).compile().memory_analysis().temp_size_in_bytes

    loss = partial(_weighed, lstm)
    program = bp.compile(bp.grad(loss))
    (found,) = (f for f in program.lower(p, xs).fusions if f.what == "product before a loop")
    assert found.nbytes == (steps - 1) * 4 * width * 4 * width  # not read again by each step
    assert temp(program) <= temp(jax.jit(jax.grad(loss)))


# Look-alikes


def also_read(p, xs):
    """The sum is read by the step."""

    def step(total, x):
        total = total + x.T @ x
        return total, x @ total

    return lax.scan(step, jnp.ones((D, D)), xs)


def scaled(p, xs):
    return lax.scan(lambda total, x: (0.9 * total + x.T @ x, None), jnp.ones((D, D)), xs)[0]


def returned(p, xs):
    """Each partial sum is returned."""

    def step(total, x):
        total = total + x.T @ x
        return total, total

    return lax.scan(step, jnp.ones((D, D)), xs)


def swapped(p, xs):
    """Two sums that change places."""

    def step(sums, x):
        a, b = sums
        return (b + x.T @ x, a + x.T @ jnp.sin(x)), None

    return lax.scan(step, (jnp.ones((D, D)), jnp.zeros((D, D))), xs)[0]


def subtracted_from(p, xs):
    return lax.scan(lambda total, x: (x.T @ x - total, None), jnp.ones((D, D)), xs)[0]


def doubled(p, xs):
    return lax.scan(lambda total, x: (total + x.T @ x + total, None), jnp.ones((D, D)), xs)[0]


def varying(p, xs):
    """Weights that are carried and change."""

    def step(w, x):
        return w * 0.9, x @ w

    return lax.scan(step, p["square"], xs)


def given_weights(p, xs):
    """Weights that are other ones in each step."""
    ws = jnp.stack([p["square"] * i for i in range(T)])
    return lax.scan(lambda h, w: (jnp.sin(h + w[1][0] @ w[0]), None), zeros(H), (ws, xs))[0]


def element_wise(p, xs):
    """Nothing but work whose results would be stacked for nothing."""
    return lax.scan(lambda h, x: (h + jnp.sin(x) * p["scale"], None), zeros(B, D), xs)[0]


LOOK_ALIKES = {
    f.__name__: f
    for f in (also_read, scaled, returned, swapped, subtracted_from, doubled, varying)
    + (given_weights, element_wise)
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay(name):
    given = Dce()(Cse()(compiled(LOOK_ALIKES[name], parameters(), sequence())))
    given = replace(given, nodes=given.nodes)
    assert EAGER["defer"](EAGER["hoist"](given)) is given


def test_values_of_look_alikes():
    def all_of(grad):
        found = {name: partial(_weighed, fun) for name, fun in LOOK_ALIKES.items()}
        return lambda p, xs: {name: grad(f, (0, 1))(p, xs) for name, f in found.items()}

    args = parameters(), sequence()
    ours = bp.compile(all_of(bp.grad), passes=PASSES, debug=True)(*args)
    assert_close(ours, jax.jit(all_of(jax.grad))(*args))


def test_gradients_of_parts_of_a_batch_are_not_stacked():
    """Accumulation is there to save memory: activations of all parts are never there at once."""

    def step(p, xs):
        def part(total, x):
            grads = bp.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(p["square"])
            return total + grads, None

        return lax.scan(part, jnp.zeros((D, H)), xs)[0]

    final = bp.compile(step).lower(parameters(), sequence()).graph
    (loop,) = [node for node in final.nodes if node.op.name == "scan"]
    assert loop.attrs["num_carry"] == len(loop.outputs) == 1


def test_sums_of_products_are_taken_apart():
    """Two products that are added before they are added to the carry are two sums of the steps."""

    def fun(xs, ys):
        def step(total, given):
            x, y = given
            return total + (x.T @ y + y.T @ x), None

        return lax.scan(step, jnp.zeros((D, D)), (xs, ys))[0]

    args = sequence(), jnp.sin(sequence())
    out = Dce()(EAGER["defer"](compiled(fun, *args)))
    assert [name for name in ops(out) if name in ("scan", "dot_general")] == ["dot_general"] * 2
    assert_close(ir.evaluate(out, *args)[0], jax.jit(fun)(*args))


def test_random_numbers_are_those_of_the_key():
    """A mask of a key that all steps share is drawn once; one of each step's key in each step."""

    def shared(p, xs):
        def step(h, x):
            return jnp.tanh(h + x) * jax.random.bernoulli(jax.random.key(3), 0.5, h.shape), None

        return lax.scan(step, zeros(B, D), xs)[0]

    def own(p, xs):
        def step(h, given):
            x, key = given
            return jnp.tanh(h + x) * jax.random.bernoulli(key, 0.5, h.shape), None

        return lax.scan(step, zeros(B, D), (xs, jax.random.split(jax.random.key(3), T)))[0]

    args = parameters(), sequence()
    ours = bp.compile(lambda *args: (shared(*args), own(*args)), passes=PASSES)(*args)
    assert_close(ours, jax.jit(lambda *args: (shared(*args), own(*args)))(*args))


def test_a_loop_that_prints_stays():
    def fun(p, xs):
        def step(h, x):
            jax.debug.print("{}", x[0, 0])
            return jnp.tanh(x @ p["square"] + h), None

        return lax.scan(step, zeros(), xs)[0]

    given = compiled(fun, parameters(), sequence())
    assert EAGER["defer"](EAGER["hoist"](given)) is given


# Unrolled loops


@pytest.mark.parametrize("length", [64, 65, 67, 130])
def test_unrolled_loops_run_all_their_steps(length):
    def fun(p, xs):
        return lax.scan(lambda h, x: (jnp.sin(h + x), h), zeros(B, D), xs, reverse=True)

    args = parameters(), sequence(length=length)
    program = bp.compile(fun, passes=(*DEFAULT, Unroll()))
    (loop,) = [n for n in program.lower(*args).graph.nodes if n.op.name == "scan"]
    assert loop.attrs["unroll"] == 4
    assert_close(program(*args), jax.jit(fun)(*args))


# Any step: drawn from a few forms for each gate


FORMS = {
    "product": lambda p, h, x: x @ p["square"],
    "state": lambda p, h, x: h @ p["again"],
    "both": lambda p, h, x: jnp.concatenate([h, x], -1) @ p["both"][::-1, :H],
    "sine": lambda p, h, x: jnp.sin(x @ p["square"] + p["bias"]) * h,
    "bias": lambda p, h, x: h * p["bias"],
    "turned": lambda p, h, x: (p["again"] @ (h * x[:, :1]).T).T,
    "narrow": lambda p, h, x: (h @ p["head"] + x) @ p["square"],
    "slices": lambda p, h, x: x[::-1, 1:3] @ p["square"][:2] - h,
    "summed": lambda p, h, x: jnp.tanh(x @ p["square"]).sum(0) + h,
    "cond": lambda p, h, x: lax.cond(x[0, 0] > 0, lambda: x @ p["square"], lambda: h * 2),
    "table": lambda p, h, x: p["again"][jnp.argmax(x, -1)] + h,
}


@given(
    st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
)
@settings(max_examples=8)
def test_any_step(names, length, reverse):
    def fun(p, xs):
        def step(h, x):
            new = sum(FORMS[name](p, h, x) for name in names)
            return jnp.tanh(new), (new, x @ p["square"], h @ p["head"])

        return lax.scan(step, zeros() + p["bias"], xs, reverse=reverse)

    args = parameters(), sequence(length=length)
    expected = jax.jit(jax.value_and_grad(partial(_weighed, fun), (0, 1)))(*args)
    assert_close(joint(fun)(*args), expected)
    forward = joint(fun).lower(*args).stages[1].graph
    for apply in EAGER.values():
        once = apply(forward)
        ir.verify(once)
        assert apply(once) is once
