"""What a loop makes of its constants alone is made once, and its backward loop reads one copy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import backpass as bp
from backpass.ir import evaluate, verify
from backpass.passes import Autodiff, Dce
from backpass.passes.autodiff.invariant import hoist, invariants
from models.comparison import assert_close, batches, draw
from passes.texts import graph, ops


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# The function that cuts a body in two

BODY = graph(
    "%0: f32[4], %1: f32[], %2: f32[4]",
    """
    %3: f32[4] = exp(%0)
    %4: f32[4] = broadcast_in_dim(%1) {broadcast_dimensions=()}
    %5: f32[4] = mul(%3, %4)
    %6: f32[4] = sin(%2)
    %7: f32[4] = add(%6, %4)
    %8: f32[4] = mul(%7, %3)
    %9: f32[4] = mul(%8, %5)
    return %9
    """,
)


def test_invariants_are_what_reads_nothing_that_varies():
    found = invariants(BODY.nodes, set(BODY.inputs[:2]))
    assert found == {node.output for node in BODY.nodes[:3]}


def test_hoist_takes_what_the_wanted_values_need():
    wanted = BODY.nodes[2].output
    parts = hoist("body", BODY.inputs[:2], BODY.nodes, BODY.outputs, [wanted])
    verify(parts.once)
    assert ops(parts.once) == ["exp", "broadcast_in_dim", "mul"]
    assert parts.shared == (BODY.nodes[0].output, wanted) == parts.once.outputs
    kept = [node.op.name for node in parts.nodes]
    assert kept == ["broadcast_in_dim", "sin", "add", "mul", "mul"], "a broadcast is done again"


def test_hoist_leaves_what_nobody_wants():
    parts = hoist("body", BODY.inputs[:2], BODY.nodes, BODY.outputs, [])
    assert parts.nodes == BODY.nodes and parts.shared == () and parts.once.nodes == ()


def test_what_the_backward_part_alone_reads_is_not_shared():
    given = BODY.nodes[0].output
    parts = hoist("body", BODY.inputs[:1], BODY.nodes[:1], BODY.inputs, [given])
    assert parts.nodes == () and parts.shared == () and parts.once.outputs == (given,)


# Text in, text out

GIVEN = """
    %2: f32[], %3: f32[4] = gradients(%0, %1) {wrt=(0,)}
      graph f(%0: f32[4], %1: f32[3,4]) {
        %2: f32[4], %3: f32[3,4] = scan(%0, %0, %1) {length=3, num_carry=1, num_consts=1}
          graph body(%0: f32[4], %1: f32[4], %2: f32[4]) {
            %3: f32[4] = sin(%0)
            %4: f32[4] = mul(%1, %3)
            %5: f32[4] = add(%4, %2)
            return %5, %4
          }
        %4: f32[] = reduce_sum(%2) {axes=(0,)}
        return %4
      }
    return %3
    """
EXPECTED = """
    %2: f32[4] = sin(%0)
    %3: f32[4], %4: f32[3,4] = scan(%2, %0, %1) {length=3, num_carry=1, num_consts=1}
      graph body(%0: f32[4], %1: f32[4], %2: f32[4]) {
        %3: f32[4] = mul(%1, %0)
        %4: f32[4] = add(%3, %2)
        return %4, %1
      }
    backward:
      %5: f32[4] = broadcast_in_dim(1.0:f32) {broadcast_dimensions=()} of %3
      %6: f32[4] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()} of %3
      %7: f32[4], %8: f32[4] = scan(%2, %0, %6, %5, %4) {length=3, num_carry=2, num_consts=2, reverse=True} of %3
        graph body_backward(%0: f32[4], %1: f32[4], %2: f32[4], %3: f32[4], %4: f32[4]) {
          %5: f32[4] = broadcast_in_dim(0.0:f32) {broadcast_dimensions=()}
          %6: f32[4] = add_any(%5, %3)
          %7: f32[4] = mul(%6, %0)
          %8: f32[4] = mul(%4, %6)
          %9: f32[4] = cos(%1)
          %10: f32[4] = mul(%8, %9)
          %11: f32[4] = add_any(%2, %10)
          return %11, %7
        }
      %9: f32[4] = add_any(%7, %8) of %3
    return %9
    """  # noqa: E501


def test_a_residual_of_constants_stands_before_the_loop():
    given = graph("%0: f32[4], %1: f32[3,4]", GIVEN)
    found = Dce()(Autodiff()(given))
    verify(found)
    assert found == graph("%0: f32[4], %1: f32[3,4]", EXPECTED), found


# By value

W, XS, X = draw(1, 3, 3), draw(2, 4, 3), draw(3, 3)
MASK = np.tril(np.ones((3, 3), bool))


def masked(w, xs):
    def step(c, v):
        return jnp.tanh(c @ jnp.where(MASK, w, 0.0).T) + v, None

    return lax.scan(step, jnp.zeros(3), xs)[0]


def scaled(log_std, xs):
    """The deviation is read by the step and by its derivative."""

    def step(c, v):
        return jnp.sin(c) * jnp.exp(log_std) + v * jnp.exp(log_std), c

    return jnp.concatenate(lax.scan(step, jnp.zeros(3), xs, reverse=True)[1:])


def through_carry(w, xs):
    """The weights are carried along, unchanged."""

    def step(carry, v):
        w, c = carry
        return (w, jnp.tanh(c @ jnp.sin(w)) + v), None

    return lax.scan(step, (w, jnp.zeros(3)), xs)[0]


def nested(w, xs):
    def outer(c, row):
        def inner(s, v):
            return jnp.sin(s @ jnp.exp(w)) * jnp.cos(c) + v, None

        return lax.scan(inner, c, jnp.stack([row, 2 * row]))[0], None

    return lax.scan(outer, jnp.zeros(3), xs)[0]


def inner_alone(w, xs):
    """An inner loop of constants alone stands before the outer one, whole."""

    def outer(c, row):
        powers = lax.scan(lambda p, _: (jnp.sin(p @ w), None), w, None, 3)[0]
        return jnp.tanh(c @ powers) + row, None

    return lax.scan(outer, jnp.zeros(3), xs)[0]


def dropped(w, xs):
    """One mask for all steps, drawn in the body."""

    def step(c, v):
        keep = jax.random.bernoulli(jax.random.key(3), 0.5, w.shape)
        return jnp.tanh(c @ jnp.where(keep, w, 0.0)) + v, None

    return lax.scan(step, jnp.ones(3), xs)[0]


def drawn_each_step(w, xs):
    def step(carry, v):
        key, c = carry
        key, mine = jax.random.split(key)
        keep = jax.random.bernoulli(mine, 0.5, w.shape)
        return (key, jnp.tanh(c @ jnp.where(keep, w, 0.0)) + v), None

    return lax.scan(step, (jax.random.key(3), jnp.ones(3)), xs)[0][1]


def looked_up(w, xs):
    """An index that varies keeps its product in the loop."""

    def step(c, i):
        return jnp.tanh(c @ (w * jnp.asarray(XS)[i])), None

    return lax.scan(step, xs[0], jnp.arange(4))[0]


def chosen(w, xs):
    def step(c, v):
        return lax.cond(v[0] > 0, lambda: jnp.sin(c @ jnp.exp(w)), lambda: c * v), None

    return lax.scan(step, jnp.ones(3), xs)[0]


def literal(w, xs):
    """What comes of numbers in the program alone."""

    def step(c, v):
        return jnp.tanh(c @ jnp.sin(jnp.arange(9.0).reshape(3, 3))) * w[0] + v, None

    return lax.scan(step, jnp.ones(3), xs)[0]


def checkpointed(w, xs):
    step = jax.checkpoint(lambda c, v: (jnp.tanh(c @ jnp.exp(w)) + v, None))
    return lax.scan(step, jnp.ones(3), xs)[0]


def checkpoint_around(w, xs):
    return jax.checkpoint(masked)(w, xs)


def one_step(w, xs):
    return masked(w, xs[:1])


def no_step(w, xs):
    return lax.scan(lambda c, v: (c @ jnp.exp(w) + v, None), w[0], xs[:0])[0]


# (function, matrices that it stacks): a matrix is stacked where it differs from step to step
PROGRAMS = {
    "masked": (masked, 0),
    "scaled": (lambda w, xs: scaled(w[0], xs), 0),
    "through carry": (lambda w, xs: through_carry(w, xs)[1], 0),
    "through carry, and read": (lambda w, xs: jnp.sum(through_carry(w, xs)[0]) + through_carry(w, xs)[1], 0),
    "nested": (nested, 0),
    "inner alone": (inner_alone, 2),
    "dropped": (dropped, 0),
    "drawn each step": (drawn_each_step, 2),
    "looked up": (looked_up, 1),
    "chosen": (chosen, 1),
    "literal": (literal, 0),
    "checkpointed": (checkpointed, 0),
    "checkpoint around": (checkpoint_around, 0),
    "one step": (one_step, 1),
    "no step": (no_step, 1),
    "unrolled": (lambda w, xs: lax.scan(
        lambda c, v: (jnp.tanh(c @ jnp.sin(w)) + v, None), jnp.ones(3), xs, unroll=3)[0], 0),
    "in vmap": (lambda w, xs: jax.vmap(masked, (0, None))(jnp.stack([w, 2 * w]), xs), 0),
}  # fmt: skip


def stacked(final):
    """Stacks of whole matrices that forward scans of the program's own level make."""
    return [
        value.shape
        for node in final.nodes
        if node.op.name == "scan" and node.phase == "forward"
        for value in node.outputs[node.attrs["num_carry"] :]
        if value.shape[-2:] == (3, 3) and value.shape[0] == node.attrs["length"]
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_stacks(name):
    fun, count = PROGRAMS[name]
    grad = bp.grad(lambda w, xs: jnp.sum(fun(w, xs)), (0, 1))
    final = bp.compile(grad, passes="canonicalise,autodiff,dce").lower(W, XS).graph
    assert len(stacked(final)) == count, final


@pytest.mark.parametrize("names", batches(PROGRAMS, 6).values(), ids=batches(PROGRAMS, 6))
@pytest.mark.parametrize("order", [1, 2])
def test_values(names, order):
    def slopes(grad):
        def slope(fun, w, xs):
            found = grad(lambda w, xs: jnp.sum(jnp.cos(fun(w, xs))), (0, 1))(w, xs)
            return sum(jnp.sum(jnp.sin(x)) for x in found)

        grads = (
            slope
            if order == 1
            else lambda *args: grad(functools.partial(slope, args[0]), (0, 1))(*args[1:])
        )
        return lambda w, xs: {name: grads(PROGRAMS[name][0], w, xs) for name in names}

    assert_close(bp.compile(slopes(bp.grad), debug=True)(W, XS), jax.jit(slopes(jax.grad))(W, XS))


@pytest.mark.parametrize("name", ["masked", "through carry", "nested", "inner alone", "dropped"])
def test_linear_maps(name):
    """Tracers as constants: inside jit, and at a point."""
    fun = PROGRAMS[name][0]

    @jax.jit
    def both(w, xs, t):
        outs = []
        for by in (bp, jax):
            y, pullback = by.vjp(lambda xs: fun(jnp.sin(w), xs), xs)
            _, linear = by.linearize(lambda w: fun(w, xs), w)
            outs.append((y, pullback(jnp.ones_like(y)), linear(t)))
        return outs

    assert_close(*both(W, XS, draw(5, 3, 3)))


def test_an_effect_happens_in_each_step():
    """What an effect returns is no constant of the loop, whatever it is given."""
    seen = []

    def tell(w):
        seen.append(w)
        return np.asarray(w) * len(seen)

    def fun(factor, w, xs):
        def step(c, v):
            x, i = v
            return jnp.sin(c * jnp.exp(w) * factor(lax.stop_gradient(w), i)) + x, None

        return jnp.sum(lax.scan(step, jnp.ones(3), (xs, jnp.arange(1.0, 5.0)))[0])

    def told(w, i):
        return io_callback(tell, jax.ShapeDtypeStruct((3,), w.dtype), w, ordered=True)

    found = bp.compile(bp.grad(functools.partial(fun, told)))(X, XS)
    jax.effects_barrier()
    assert len(seen) == len(XS)
    expected = jax.grad(functools.partial(fun, lambda w, i: w * i))(X, XS)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_evaluates_as_text():
    given = graph("%0: f32[4], %1: f32[3,4]", GIVEN)
    found = evaluate(Dce()(Autodiff()(given)), X32, XS32)[0]

    def fun(w):
        return jnp.sum(lax.scan(lambda c, v: (c * jnp.sin(w) + v, None), w, XS32)[0])

    np.testing.assert_allclose(found, jax.grad(fun)(X32), rtol=1e-5)


X32, XS32 = draw(1, 4).astype(np.float32), draw(2, 3, 4).astype(np.float32)
