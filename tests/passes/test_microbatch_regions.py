"""Loops, branches and sums within a part of the batch, and the values that meet the samples there.

The first word of a row's name is the op that has to run part by part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from backpass.ir.errors import BatchError
from backpass.ir.verifier import verify
from backpass.passes import Microbatch
from passes.parts import assert_refused, in_parts, used_much
from passes.texts import assert_same_values, compiled, graph, ops

N, W = np.float32(2), np.zeros((7, 7), np.float32)
V, Y = np.zeros((5, 7), np.float32), np.zeros((6, 5), np.float32)
NUMBERS = np.arange(35, dtype=np.float32).reshape(5, 7)
ROWS = np.array([1, 3, 1])


def over_time(step):
    """The samples are the second dimension of what is sliced."""
    return lambda n, w, x: lax.scan(step, jnp.zeros((6, 7)), x.transpose(1, 0, 2))


REGIONS = {
    "remat2": lambda n, w, x: jax.checkpoint(lambda x: jnp.tanh(x @ w))(x),
    "while": lambda n, w, x: lax.while_loop(
        lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x)
    ),
    "while with a whole carry": lambda n, w, x: lax.while_loop(
        lambda c: c[0] < n,
        lambda c: (c[0] + 1, c[1] + x @ c[2], c[2] @ w),
        (0, jnp.zeros(x.shape), w),
    ),
    "cond with samples in one branch": lambda n, w, x: lax.cond(
        n > 0, lambda x, y: x, lambda x, y: y, x, jnp.cos(jnp.arange(210.0)).reshape(6, 5, 7)
    ),
    "cond with a sum in one branch": lambda n, w, x: lax.cond(
        n > 0, lambda x: jnp.ones((5, 7)), lambda x: x.sum(0), x
    ),
    "cond with a whole": lambda n, w, x: lax.cond(
        n > 0, lambda x, w: (x, w), lambda x, w: (2 * x, w.T), x, w
    ),
    "scan over time": over_time(lambda c, t: (c + t, c * t)),
    "scan over time of sums": lambda n, w, x: lax.scan(
        lambda c, t: (c + t.sum(0), None), jnp.ones(7), x.transpose(1, 0, 2)
    )[0],
    "scan of whole slices": lambda n, w, x: lax.scan(
        lambda c, t: (c @ t, c.sum(1)), x, jnp.stack([w, 2 * w, w])
    ),
    "scan of samples that a step needs": lambda n, w, x: lax.scan(
        lambda c, t: (c + t, None), x, jnp.cos(jnp.arange(630.0)).reshape(3, 6, 5, 7)
    ),
    "scan of a whole carry": lambda n, w, x: lax.scan(
        lambda c, t: ((c[0] @ c[1], c[1] @ w), None), (x, w), jnp.zeros(3)
    ),
    "cos of a whole carry": lambda n, w, x: (
        x @ jnp.cos(lax.scan(lambda c, t: ((c[0] @ c[1], c[1] @ w), None), (x, w), ROWS)[0][1])
    ),
    "scan over samples": lambda n, w, x: lax.scan(
        lambda c, t: ((c[0] + t.sum(), c[1]), 2 * t), (0.0, n), x
    ),
}

LINEAR = {
    "add": lambda s: s + s,
    "sub of a whole": lambda s: s - 1.0,
    "neg": lambda s: -s,
    "mul": lambda s: s * 3.0,
    "mul on the right": lambda s: 3.0 * s,
    "div": lambda s: s / 3.0,
    "dot_general": lambda s: np.ones((3, 5), np.float32) @ s,
    "dot_general on the left": lambda s: s @ np.ones((7, 3), np.float32),
    "convert_element_type": lambda s: lax.real(s.astype(np.complex64)),
    "gather": lambda s: s[ROWS],
    "scatter-add": lambda s: jnp.ones((9, 7)).at[ROWS].add(s[:3]),
    "concatenate with a whole": lambda s: lax.concatenate([s, jnp.ones((2, 7))], 0),
    "stack": lambda s: jnp.stack([s, 2 * s]),
    "select_n": lambda s: lax.select(NUMBERS % 2 == 0, 2 * s, s),
    "select_n of a whole": lambda s: lax.select(NUMBERS % 2 == 0, s, jnp.ones((5, 7))),
    "dynamic_slice": lambda s: lax.dynamic_slice(s, (1, 2), (3, 4)),
    "dynamic_update_slice": lambda s: lax.dynamic_update_slice(s, jnp.ones((2, 3)), (1, 2)),
    "cumsum": lambda s: lax.cumsum(s, 1),
    "pad with a whole": lambda s: lax.pad(s, 2.0, ((1, 1, 0), (0, 0, 1))),
    "optimization_barrier": lambda s: lax.optimization_barrier(s),
}
NOT_LINEAR = {
    "sin": jnp.sin,
    "mul": lambda s: s * s,
    "div": lambda s: NUMBERS / s,
    "max": lambda s: lax.max(s, 0.0),
    "dot_general": lambda s: s @ s.T,
    "gt": lambda s: lax.select(s > 0, s, s),
    "convert_element_type": lambda s: s.astype(np.int32),
    "convert_element_type to an index": lambda s: lax.dynamic_slice(
        NUMBERS, (s.astype(np.int32)[0, 0], 0), (2, 2)
    ),
    "scatter": lambda s: jnp.ones((9, 7)).at[ROWS].set(s[:3]),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_runs_part_by_part(name):
    assert name.split()[0] in ops(in_parts(REGIONS[name], N, W))


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_op_of_a_sum_gives_a_sum(name):
    """In a region, where nothing is put together before its end."""
    body = in_parts(jax.checkpoint(lambda x: LINEAR[name](x.sum(0))))
    assert name.split()[0] in ops(body)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_any_other_op_of_a_sum_is_refused(name):
    why = f"{name.split()[0]} of a sum over the samples is no such sum"
    assert_refused(jax.checkpoint(lambda x: NOT_LINEAR[name](x.sum(0))), why)


TIED = {
    "a carry that is turned": (
        lambda n, w, x: lax.fori_loop(0, 3, lambda i, h: h.T, x[:, 0, :6]),
        "its carry holds the samples otherwise after a step",
    ),
    "a while that adds up": (
        lambda n, w, x: lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] + x.sum(0)), (0, jnp.zeros((5, 7)))
        ),
        "its carry sums over the samples",
    ),
    "a while until all": (
        lambda n, w, x: lax.while_loop(lambda x: jnp.any(x < 3), lambda x: x + 1, x),
        "how often it runs depends on the samples",
    ),
    "along and over": (
        lambda n, w, x: lax.scan(lambda c, t: (c + (t * x).sum(), None), 0.0, x)[0],
        "it runs along the samples and over them",
    ),
    "one after the other": (
        lambda n, w, x: lax.scan(lambda c, t: (c * 2 + t.sum(), None), 0.0, x)[0],
        "its steps, one a sample, depend on each other",
    ),
    "the last": (
        lambda n, w, x: lax.scan(lambda c, t: (t, None), jnp.zeros((5, 7)), x)[0],
        "its steps, one a sample, depend on each other",
    ),
    "a product": (
        lambda n, w, x: lax.scan(lambda c, t: (c * t, None), jnp.ones((5, 7)), x)[0],
        "its steps, one a sample, depend on each other",
    ),
    "added twice": (
        lambda n, w, x: lax.scan(lambda c, t: (c + (t.sum() + c), None), 0.0, x)[0],
        "its steps, one a sample, depend on each other",
    ),
    "a sum that is shown": (
        lambda n, w, x: lax.scan(lambda c, t: (c + t.sum(), c), 0.0, x)[1],
        "its steps, one a sample, depend on each other",
    ),
    "branches that turn": (
        lambda n, w, x: lax.cond(n > 0, lambda x: x, lambda x: x.T, x[:, 0, :6]),
        "its branches hold the samples in different places",
    ),
    "the greatest or a whole": (
        lambda n, w, x: lax.cond(n > 0, lambda x: x.max(0), lambda x: jnp.ones((5, 7)), x),
        "the sum over all samples is needed by each of them",
    ),
    "the greatest and a whole": (
        lambda n, w, x: jax.checkpoint(lambda x: x.max(0) + 1)(x),
        "the sum over all samples is needed by each of them",
    ),
    "a sum that is needed": (
        lambda n, w, x: jax.checkpoint(lambda x: x - x.sum(0))(x),
        "the sum over all samples is needed by each of them",
    ),
    "a whole number": (
        lambda n, w, x: jax.checkpoint(lambda x: x.astype(np.int32).sum(0) + np.arange(7))(x),
        "it adds a whole number to those of the samples",
    ),
    "a whole that is made at once": (
        lambda n, w, x: jax.checkpoint(lambda x: x + lax.cumsum(jnp.ones((6, 5, 7))))(x),
        "f32[6,5,7] is not made sample by sample",
    ),
    "an effect": (
        lambda n, w, x: jax.experimental.io_callback(np.sin, x, x),
        "it has an effect",
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_what_ties_samples_together_is_told(name):
    assert_refused(*TIED[name], N, W)


def test_a_branch_that_the_samples_choose_is_refused():
    chosen = graph(
        "%0: f32[3] y, %1: i32[8] x",
        """
        %2: i32[] = reduce_sum(%1) {axes=(0,)}
        %3: i32[8], %4: f32[3] = remat2(%1, %2, %0)
          graph body(%0: i32[8], %1: i32[], %2: f32[3]) {
            %3: i32[8] = add(%0, %0)
            %4: f32[3] = cond(%1, %2)
              graph one(%0: f32[3]) {
                return %0
              }
              graph two(%0: f32[3]) {
                %1: f32[3] = neg(%0)
                return %1
              }
            return %3, %4
          }
        return %3, %4
        """,
    )
    with pytest.raises(BatchError, match="which branch is taken depends on the samples"):
        Microbatch(2)(chosen)


def test_zeros_are_added_as_they_are():
    """A k-th of them is no whole number; of zeros it is."""
    body = in_parts(
        jax.checkpoint(lambda x: x.astype(np.int32).sum(0) + jnp.zeros((5, 7), np.int32))
    )
    assert "mul" not in ops(body)


def wide(v):
    return jnp.broadcast_to(v, (6, *v.shape))


def second(v):
    return jnp.broadcast_to(v[:, None], (5, 6, 7))


def times(x, y):
    return x * y[:, None]


PULLED = {
    "iota": lambda v, y, x: x * lax.broadcasted_iota(np.float32, x.shape, 2),
    "exp": lambda v, y, x: x * jnp.exp(wide(v)),
    "select_n": lambda v, y, x: x * lax.select(v[0, 0] > 0, wide(v), wide(2 * v)),
    "broadcast_in_dim from one": lambda v, y, x: x * jnp.broadcast_to(v[None], x.shape),
    "broadcast_in_dim from samples": lambda v, y, x: x * lax.broadcast_in_dim(y, x.shape, (0, 1)),
    "transpose": lambda v, y, x: x * second(v).transpose(1, 0, 2),
    "reshape": lambda v, y, x: x * jnp.exp(wide(v.reshape(35)).reshape(x.shape)),
    "reduce_sum": lambda v, y, x: times(x, (second(v)).sum(0)),
    "reduce_max": lambda v, y, x: x * wide(jnp.stack([v, 2 * v])).max(1),
    "concatenate": lambda v, y, x: x * lax.concatenate([wide(v[:1]), wide(2 * v[1:])], 1),
    "dot_general on the left": lambda v, y, x: times(x, wide(v[0, :3]) @ NUMBERS[:3]),
    "dot_general on the right": lambda v, y, x: times(
        x, lax.dot_general(v, wide(v[:, 0]), (((0,), (1,)), ((), ()))).T
    ),
    "dot_general of each": lambda v, y, x: times(
        x, lax.dot_general(second(v), wide(v[:, 0]), (((0,), (1,)), ((1,), (0,))))
    ),
}
SLICED = {
    "iota along the samples": lambda v, y, x: x * lax.broadcasted_iota(np.float32, x.shape, 0),
    "joined along the samples": lambda v, y, x: (
        x * lax.concatenate([wide(v)[:1], wide(2 * v)[1:]], 0)
    ),
    "of another shape": lambda v, y, x: (
        x * ((v[0, 0] + jnp.arange(210.0).reshape(35, 6)).reshape(x.shape))
    ),
    "of no such rule": lambda v, y, x: x * lax.cumsum(wide(v), 1),
}


@pytest.mark.parametrize("name", PULLED)
def test_a_whole_value_is_made_part_by_part(name):
    """Where what it is made of costs less to slice: nothing, as it is repeated."""
    body = in_parts(PULLED[name], V, Y)
    assert name.split()[0] in ops(body)
    assert all(v.shape[:1] != (6,) for v in body.inputs)


@pytest.mark.parametrize("name", SLICED)
def test_a_whole_value_that_is_not_made_by_samples_is_sliced(name):
    body = in_parts(SLICED[name], V, Y)
    assert {"iota", "concatenate", "reshape", "cumsum"}.isdisjoint(ops(body))
    assert [v.shape for v in body.inputs if v.ndim == 3] == [(3, 5, 7)] * 2


def test_one_number_is_made_anew_in_each_part():
    body = in_parts(lambda x: (x @ jnp.full((7, 3), 2.0), x @ jnp.full((7, 3), 2.0)))
    assert ops(body).count("broadcast_in_dim") == 2 and len(body.inputs) == 1


def test_it_is_made_once_for_all_that_read_it():
    def used_twice(x):
        twos = jnp.full((7, 7), 2.0)
        return x @ twos @ twos

    assert ops(in_parts(used_twice)).count("broadcast_in_dim") == 1


def test_a_carry_that_is_handed_on_is_whole():
    """JAX itself makes a constant of it."""
    adds = graph(
        "%0: f32[3] w, %1: f32[8,3] x",
        """
        %2: f32[8,3] = sin(%1)
        %3: f32[3], %4: f32[3], %5: f32[8,3] = scan(%0, %0, %2) {length=8, num_carry=2, num_consts=0}
          graph step(%0: f32[3], %1: f32[3], %2: f32[3]) {
            %3: f32[3] = add(%1, %2)
            %4: f32[3] = mul(%2, %2)
            return %0, %3, %4
          }
        return %3, %4, %5
        """,
    )
    assert_same_values(Microbatch(2)(adds), adds)


def test_a_weak_type_stays_one():
    """The loop divides a branch's result by the number of parts; both branches give one type."""
    weak = jnp.broadcast_to(1.0, (6, 5))
    given = compiled(
        lambda n, w, x: lax.cond(n > 0, lambda w, x: x.sum(0), lambda w, x: w, w, x),
        N,
        weak[0],
        weak,
    )
    found = Microbatch(2)(given)
    verify(found)
    assert_same_values(found, given)


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_needed_of_all_samples_runs_ahead(kept):
    """It is cheap, and what it is made of is there for each part without a second computation."""

    def mean(x):
        keep = x > 0
        chosen = lax.select(keep, x, 2 * x) if kept else x
        return used_much(chosen / jnp.sum(keep, dtype=np.float32))

    body = in_parts(mean, first=lambda x: x)
    assert ops(body)[-1] == "cos" and "reduce_sum" not in ops(body)


@pytest.mark.parametrize("copies, cheap", [(4, True), (5, False)])
def test_what_runs_ahead_takes_no_more_than_four_times_the_samples(copies, cheap):
    def shifted(x):
        return used_much(x - jnp.broadcast_to(x, (copies, *x.shape)).sum((0, 1)))

    if cheap:
        in_parts(shifted, first=lambda x: x)
    else:
        why = "the sum over all samples is needed by each of them"
        assert_refused(shifted, why, first=lambda x: x)


def test_what_runs_ahead_has_no_product():
    why = "the sum over all samples is needed by each of them"
    assert_refused(lambda x: x - (x @ NUMBERS[0]).sum(0)[:, None], why, first=lambda x: x)


def table(x, start):
    rows = (x[:, :, :1] > 0).astype(np.int32)
    numbers = lax.ScatterDimensionNumbers((2,), (0,), (0,))
    return lax.scatter_add(start, rows, x, numbers)


def over_time_from(start, keep=1):
    """The samples are the second dimension."""

    def step(c, t):
        return (c if keep == 1 else keep * c) + t.sum(0), None

    return lambda x: lax.scan(step, start(7), x.transpose(1, 0, 2))[0]


def twice(x):
    found = table(x, jnp.zeros((9, 7)))
    return found, found + x.sum((0, 1))


ADDED = {
    "rows are scattered into the total": (lambda x: table(x, jnp.zeros((9, 7))), "scatter-add"),
    "or into what was there": (lambda x: table(x, jnp.ones((9, 7))), "add"),
    "or into unknown zeros": (lambda x: table(x, np.zeros((9, 7), np.float32)), "add"),
    "or they are read again": (twice, "add"),
    "or in a narrow type": (
        lambda x: table(x.astype(jnp.bfloat16), jnp.zeros((9, 7), jnp.bfloat16)),
        "add",
    ),
    "a loop begins with the total": (over_time_from(jnp.zeros), "scan"),
    "two loops in one": (
        lambda x: lax.scan(
            lambda c, t: ((c[0] + t.sum(0), c[1] + (t * t).sum(0)), None),
            (jnp.zeros(7), jnp.zeros(7)),
            x.transpose(1, 0, 2),
        )[0],
        "scan",
    ),
    "or with what was there": (over_time_from(jnp.ones), "add"),
    "what is made of a total comes later": (lambda x: (-x.sum(0), x.sum(0) + 1), "add"),
    "or makes it smaller": (over_time_from(jnp.zeros, 0.5), "add"),
    "or gives what it sees": (
        lambda x: lax.scan(lambda c, t: (c, t.sum(0)), 0.0, x.transpose(1, 0, 2))[1],
        "add",
    ),
    "another sum": (lambda x: x.sum(0), "add"),
    "the greatest": (lambda x: x.max(0), "max"),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_adds_to_zeros_adds_to_the_total(name):
    """Of the parts before, so that no second array of its size is there."""
    fun, last = ADDED[name]
    first = {"first": lambda x: lax.round(4 * x)} if "narrow" in name else {}
    body = in_parts(fun, **first)
    assert body.nodes[-1].op.name == last and "neg" not in ops(body)
