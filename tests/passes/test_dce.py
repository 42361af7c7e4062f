"""What nobody reads goes; what has an effect stays: text in, text out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir import verify
from backpass.passes import Dce
from passes.texts import assert_rewrites, compiled, ops

SCAN = "{length=5, num_carry=%d, num_consts=%d, reverse=False, unroll=1}"

CASES = {
    "unread": (
        "%0: f32[3], %1: f32[3]",
        "%2: f32[3] = sin(%0)\n%3: f32[3] = exp(%2)\n%4: f32[3] = cos(%0)\nreturn %4",
        "%4: f32[3] = cos(%0)\nreturn %4",
    ),
    "all read": ("%0: f32[3]", "%1: f32[3] = sin(%0)\nreturn %1", None),
    "one of several outputs": (
        "%0: f32[4]",
        "%1: f32[2], %2: f32[2] = split(%0) {axis=0, sizes=(2,2)}\nreturn %2",
        None,
    ),
    "barrier": (
        "%0: f32[3], %1: f32[3]",
        """
        %2: f32[3] = sin(%1)
        %3: f32[3], %4: f32[3] = optimization_barrier(%0, %2)
        return %3
        """,
        "%3: f32[3] = optimization_barrier(%0)\nreturn %3",
    ),
    "unread barrier": (
        "%0: f32[3]",
        "%1: f32[3] = optimization_barrier(%0)\nreturn %0",
        "return %0",
    ),
    "inside of a call": (
        "%0: f32[3]",
        """
        %1: f32[3] = jit(%0) {name="a"}
          graph a(%0: f32[3]) {
            %1: f32[3] = sin(%0)
            %2: f32[3] = cos(%0)
            return %2
          }
        return %1
        """,
        """
        %1: f32[3] = jit(%0) {name="a"}
          graph a(%0: f32[3]) {
            %2: f32[3] = cos(%0)
            return %2
          }
        return %1
        """,
    ),
    "scan: stacked output": (
        "%0: f32[], %1: f32[5]",
        f"""
        %2: f32[], %3: f32[5] = scan(%0, %1) {SCAN % (1, 0)}
          graph body(%0: f32[], %1: f32[]) {{
            %2: f32[] = add(%0, %1)
            %3: f32[] = sin(%0)
            return %2, %3
          }}
        return %2
        """,
        f"""
        %2: f32[] = scan(%0, %1) {SCAN % (1, 0)}
          graph body(%0: f32[], %1: f32[]) {{
            %2: f32[] = add(%0, %1)
            return %2
          }}
        return %2
        """,
    ),
    "scan: carry that only feeds itself": (
        "%0: f32[], %1: f32[], %2: f32[5]",
        f"""
        %3: f32[], %4: f32[] = scan(%0, %1, %2) {SCAN % (2, 0)}
          graph body(%0: f32[], %1: f32[], %2: f32[]) {{
            %3: f32[] = add(%0, %2)
            %4: f32[] = sin(%1)
            return %3, %4
          }}
        return %3
        """,
        f"""
        %3: f32[] = scan(%0, %2) {SCAN % (1, 0)}
          graph body(%0: f32[], %1: f32[]) {{
            %2: f32[] = add(%0, %1)
            return %2
          }}
        return %3
        """,
    ),
    "scan: carries that feed each other": (
        "%0: f32[], %1: f32[], %2: f32[5]",
        f"""
        %3: f32[], %4: f32[] = scan(%0, %1, %2) {SCAN % (2, 0)}
          graph body(%0: f32[], %1: f32[], %2: f32[]) {{
            return %1, %0
          }}
        return %3
        """,
        f"""
        %3: f32[], %4: f32[] = scan(%0, %1) {SCAN % (2, 0)}
          graph body(%0: f32[], %1: f32[]) {{
            return %1, %0
          }}
        return %3
        """,
    ),
    "scan: unread constant and slice": (
        "%0: f32[3], %1: f32[], %2: f32[5], %3: f32[5]",
        f"""
        %4: f32[], %5: f32[5] = scan(%0, %1, %2, %3) {SCAN % (1, 1)}
          graph body(%0: f32[3], %1: f32[], %2: f32[], %3: f32[]) {{
            %4: f32[] = reduce_sum(%0) {{axes=(0,)}}
            return %1, %3
          }}
        return %5
        """,
        f"""
        %5: f32[5] = scan(%3) {SCAN % (0, 0)}
          graph body(%0: f32[]) {{
            return %0
          }}
        return %5
        """,
    ),
    "scan: carry that but an unread fence reads": (
        "%0: f32[], %1: i32[]",
        f"""
        %2: f32[], %3: i32[] = scan(%0, %1) {SCAN % (2, 0)}
          graph body(%0: f32[], %1: i32[]) {{
            %2: f32[], %3: i32[] = optimization_barrier(%0, %1)
            %4: i32[] = add(%1, 1:i32)
            return %2, %4
          }}
        return %2
        """,
        f"""
        %2: f32[] = scan(%0) {SCAN % (1, 0)}
          graph body(%0: f32[]) {{
            %1: f32[] = optimization_barrier(%0)
            return %1
          }}
        return %2
        """,
    ),
    "scan: all of it": (
        "%0: f32[], %1: f32[5]",
        f"""
        %2: f32[], %3: f32[5] = scan(%0, %1) {SCAN % (1, 0)}
          graph body(%0: f32[], %1: f32[]) {{
            return %0, %1
          }}
        return %0
        """,
        "return %0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    assert_rewrites(Dce(), *CASES[name])


EFFECTS = {
    "print": lambda x: jax.debug.print("seen {}", x),
    "callback": lambda x: jax.debug.callback(lambda v: print("seen", v), x),
    "io": lambda x: jax.experimental.io_callback(lambda v: print("seen", v), None, x),
    "in a scan": lambda x: jax.lax.scan(
        lambda c, _: (c, jax.debug.print("seen {}", c)), x, None, 1
    )[1],
    "in a cond": lambda x: jax.lax.cond(x > 0, lambda: jax.debug.print("seen {}", x), lambda: None),
    "in a call": lambda x: jax.jit(lambda v: jax.debug.print("seen {}", v))(x),
    "in a loop": lambda x: jax.lax.while_loop(
        lambda c: c < 2, lambda c: (jax.debug.print("seen {}", x), c + 1)[1], x
    ),
    "in a checkpoint": lambda x: jax.checkpoint(lambda v: jax.debug.print("seen {}", v))(x),
    "in a custom rule": lambda x: loud(x),
}


@jax.custom_jvp
def loud(x):
    jax.debug.print("seen {}", x)
    return x


loud.defjvps(lambda t, out, x: t)


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_stay(name, capfd):
    def fun(x):
        EFFECTS[name](x)
        return x * 2

    step = bp.compile(fun, debug=True)
    assert float(step(np.float32(1))) == 2.0
    jax.effects_barrier()
    assert "".join(capfd.readouterr().out.split()) == "seen1.0"


def test_unread_random_state_goes():
    def fun(key):
        a, b = jax.random.split(key)
        jax.random.normal(b, (3,))
        return jax.random.key_data(a)

    final = bp.compile(fun).lower(jax.random.key(0)).graph
    assert "erf_inv" not in ops(final)


def test_gradient_that_is_not_used_costs_nothing():
    def fun(x, w):
        value, grads = bp.value_and_grad(lambda x, w: jnp.sum(jnp.tanh(x @ w)), (0, 1))(x, w)
        return value, grads[1]

    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    both = bp.compile(bp.value_and_grad(lambda x, w: jnp.sum(jnp.tanh(x @ w)), (0, 1)))
    assert ops(both.lower(x, w).graph).count("dot_general") == 3
    assert ops(bp.compile(fun).lower(x, w).graph).count("dot_general") == 2


def test_value_that_is_not_used_costs_nothing():
    graph = bp.compile(bp.grad(lambda x: jnp.sum(jnp.log(x)))).lower(np.ones(3, np.float32)).graph
    assert "log" not in ops(graph) and "reduce_sum" not in ops(graph)


def test_inputs_stay():
    given = compiled(lambda x, y: x, np.float32(1), np.float32(2))
    assert len(Dce()(given).inputs) == 2


def test_scan_is_trimmed_in_scan():
    def fun(x):
        def outer(c, _):
            (kept, _), ys = jax.lax.scan(
                lambda s, _: ((s[0] * 2, jnp.sin(s[1])), jnp.cos(s[1])), (c, c), None, 3
            )
            return kept, ys.sum()

        return jax.lax.scan(outer, x, None, 2)[0]

    given = compiled(fun, np.float32(1))
    lean = Dce()(given)
    verify(lean)
    assert ops(lean) == ["scan", "scan", "mul"]
    assert Dce()(lean) is lean
