"""One node for equal work, and never for what only looks equal: text in, text out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir import OPS, Builder
from backpass.passes import Cse, Dce
from passes.texts import assert_rewrites, compiled, ops

CASES = {
    "repeat": (
        "%0: f32[3]",
        "%1: f32[3] = sin(%0)\n%2: f32[3] = sin(%0)\n%3: f32[3] = add(%1, %2)\nreturn %3, %2",
        "%1: f32[3] = sin(%0)\n%3: f32[3] = add(%1, %1)\nreturn %3, %1",
    ),
    "chain": (
        "%0: f32[3]",
        """
        %1: f32[3] = sin(%0)
        %2: f32[3] = exp(%1)
        %3: f32[3] = sin(%0)
        %4: f32[3] = exp(%3)
        %5: f32[3] = mul(%2, %4)
        return %5
        """,
        """
        %1: f32[3] = sin(%0)
        %2: f32[3] = exp(%1)
        %5: f32[3] = mul(%2, %2)
        return %5
        """,
    ),
    "other attributes": (
        "%0: f32[3,3]",
        """
        %1: f32[3] = reduce_sum(%0) {axes=(0,)}
        %2: f32[3] = reduce_sum(%0) {axes=(1,)}
        return %1, %2
        """,
        None,
    ),
    "other operands": (
        "%0: f32[3], %1: f32[3]",
        "%2: f32[3] = sub(%0, %1)\n%3: f32[3] = sub(%1, %0)\nreturn %2, %3",
        None,
    ),
    "other literals": (
        "%0: f32[3]",
        "%1: f32[3] = add(%0, 0.0:f32)\n%2: f32[3] = add(%0, -0.0:f32)\nreturn %1, %2",
        None,
    ),
    "equal literals": (
        "%0: f32[3]",
        "%1: f32[3] = add(%0, 2.0:f32)\n%2: f32[3] = add(%0, 2.0:f32)\nreturn %1, %2",
        "%1: f32[3] = add(%0, 2.0:f32)\nreturn %1, %1",
    ),
    "literals of other dtypes": (
        "%0: f32[3]",
        """
        %1: f32[3] = broadcast_in_dim(1.0:f32) {broadcast_dimensions=()}
        %2: i32[3] = broadcast_in_dim(1:i32) {broadcast_dimensions=()}
        return %0, %1, %2
        """,
        None,
    ),
    "barriers": (
        "%0: f32[3]",
        """
        %1: f32[3] = optimization_barrier(%0)
        %2: f32[3] = optimization_barrier(%0)
        %3: f32[3] = sin(%0)
        %4: f32[3] = sin(%1)
        %5: f32[3] = sin(%2)
        return %3, %4, %5
        """,
        None,
    ),
    "equal regions": (
        "%0: i32[], %1: f32[]",
        """
        %2: f32[] = cond(%0, %1)
          graph a(%0: f32[]) {
            %1: f32[] = sin(%0)
            %2: f32[] = sin(%0)
            %3: f32[] = add(%1, %2)
            return %3
          }
          graph b(%0: f32[]) {
            return %0
          }
        return %2
        """,
        """
        %2: f32[] = cond(%0, %1)
          graph a(%0: f32[]) {
            %1: f32[] = sin(%0)
            %3: f32[] = add(%1, %1)
            return %3
          }
          graph b(%0: f32[]) {
            return %0
          }
        return %2
        """,
    ),
    "first one's line and phase stay": (
        "%0: f32[3]",
        """
        %1: f32[3] = sin(%0)        @ model.py:1 a
        backward:
          %2: f32[3] = sin(%0)      @ model.py:2 b
          %3: f32[3] = exp(%2)      @ model.py:3
        return %1, %3
        """,
        """
        %1: f32[3] = sin(%0)        @ model.py:1 a
        backward:
          %3: f32[3] = exp(%1)      @ model.py:3
        return %1, %3
        """,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    assert_rewrites(Cse(), *CASES[name])


def test_equal_constants_are_one():
    b = Builder(OPS)
    x, y = (b.constant(np.arange(3.0, dtype=np.float32)) for _ in range(2))
    given = b.graph("f", (), [b.add(x, y), b.mul(x, y)])
    assert ops(given).count("constant") == 2
    assert ops(Dce()(Cse()(given))).count("constant") == 1


@pytest.mark.parametrize("ordered", [False, True])
def test_effects_are_never_merged(ordered, capfd):
    def fun(x):
        for _ in range(2):
            jax.debug.print("seen {}", x, ordered=ordered)
        return x

    given = compiled(fun, np.float32(1))
    assert Cse()(given) is given
    bp.compile(fun)(np.float32(1))
    jax.effects_barrier()
    assert capfd.readouterr().out == "seen 1.0\n" * 2


def test_equal_callbacks_without_effects_may_merge_but_io_may_not():
    seen = []

    def fun(x):
        call = jax.experimental.io_callback
        both = [call(lambda v: seen.append(v) or v, x, x) for _ in range(2)]
        return both[0] + both[1]

    assert float(bp.compile(fun)(np.float32(1))) == 2.0
    assert len(seen) == 2


def test_random_bits_of_one_key_are_drawn_once():
    def fun(key):
        return jax.random.normal(key, (3,)), jax.random.normal(key, (3,))

    given = bp.compile(fun).lower(jax.random.key(0)).graph
    assert given.outputs[0] is given.outputs[1]


def test_checkpoint_keeps_its_recomputation():
    """The second run of a checkpointed block reads fenced values, so nothing is merged away."""

    def block(x):
        return jnp.sin(jnp.sin(x))

    def count(fun):
        graph = (
            bp.compile(bp.value_and_grad(lambda x: fun(x).sum()))
            .lower(np.ones(3, np.float32))
            .graph
        )
        return ops(graph).count("sin")

    assert count(jax.checkpoint(block)) > count(block)
