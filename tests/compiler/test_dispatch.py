"""Calls take JAX's fast path: Python has as little to do for them as for a function of `jax.jit`."""

import gc
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backpass as bp
from backpass.compiler import headroom


def frames(thunk):
    """How many functions of Python run in a call, after two that may have more to do."""
    thunk(), thunk()
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event == "call"

    gc.disable()
    sys.setprofile(profile)
    try:
        thunk()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def step(p):
    return [jnp.sin(x) for x in p]


def leaves(*shape, over=None):
    p = [np.ones(shape, np.float32) for _ in range(40)]
    if over is None:
        return jax.device_put(p)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    return jax.device_put(p, NamedSharding(mesh, over))


@pytest.mark.parametrize("over", [None, P(), P("data")])
def test_a_call(over):
    """Also when another signature came between."""
    ours, args = bp.compile(step), leaves(8, over=over)
    assert frames(lambda: ours(args)) < 10
    more = leaves(16, over=over)
    assert frames(lambda: ours(more)) < 10
    assert frames(lambda: ours(args)) < 10


def test_a_call_under_a_budget():
    ours, args = bp.compile(step, memory_budget="1GiB"), jax.device_put(leaves(8), jax.devices()[0])
    assert frames(lambda: ours(args)) < 200  # how each of 40 leaves lies is looked up


def test_a_call_of_a_program_that_was_weighed(monkeypatch):
    monkeypatch.setattr(headroom, "free_bytes", lambda device=None: 0)
    ours, args = bp.compile(step), leaves(1 << 16)
    with pytest.warns(bp.MemoryWarning):
        ours(args)
    assert frames(lambda: ours(args)) < 10


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1GiB"}], ids=["", "budget"])
def test_errors_of_a_first_call_are_the_users_alone(options):
    """What we raise to look at arguments first is no part of what is told."""

    def fails(p):
        raise LookupError("of the user's")

    with pytest.raises(LookupError) as met:
        bp.compile(fails, **options)(leaves(8, over=P("data")))
    assert met.value.__context__ is None
