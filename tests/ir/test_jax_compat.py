"""What is asked of JAX where it has no public name, or another in each version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir import parse
from backpass.ir.jax_compat import (
    captured_bytes,
    context_changes,
    policy_saves,
    struct_of,
    trace_context,
)


def test_settings_that_differ_are_named():
    before = trace_context()
    assert context_changes(before, trace_context()) == []
    with jax.enable_x64(True):
        ((name, *values),) = context_changes(before, trace_context())
    assert values == [False, True] and ("x64" in name or name == "a setting of JAX's")


@pytest.mark.parametrize("old, new", [("a", "b"), ((1,), (2,)), ((1,), (1, 2))])
def test_settings_without_names_differ_as_a_whole(old, new):
    assert context_changes(old, new) == [("a setting of JAX's", old, new)]


def test_what_a_function_is_traced_with():
    struct = jax.ShapeDtypeStruct((2, 3), np.float32)
    assert struct_of(struct) is struct
    found = struct_of(jnp.ones((2, 3)))
    assert (found.shape, found.dtype, found.weak_type) == ((2, 3), np.float32, False)


@pytest.mark.parametrize("name, kept", [("everything", [True, True]), ("dots", [False, True])])
def test_a_policy_is_asked_of_what_jax_has(name, kept):
    """Of an op of ours it cannot be: that is made again."""
    x = jnp.ones((2, 2))
    nodes = bp.compile(lambda x: jnp.sin(x) @ x).trace(x).graph.nodes
    own = parse("backpass.ir 1\ngraph f(%0: f32[]) {\n%1: f32[] = offload(%0)\nreturn\n}\n").nodes
    policy = getattr(jax.checkpoint_policies, f"{name}_saveable")
    found = [policy_saves(policy, node) for node in (*nodes, *own)]
    assert found == [*kept, False]


def test_constants_of_which_jax_warns():
    """None unless a user has asked."""
    name = "jax_captured_constants_warn_bytes"
    before = getattr(jax.config, name, None)
    assert captured_bytes() is None
    if before is not None:
        jax.config.update(name, 5)
        try:
            assert captured_bytes() == 5
        finally:
            jax.config.update(name, before)
