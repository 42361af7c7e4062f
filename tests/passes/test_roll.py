"""Repeated blocks become one scan: values, gradients, and what is left as it is."""

import jax
import numpy as np
import pytest

import backpass as bp
from backpass.passes import DEFAULT, Roll
from passes.repeats import PART, ROLL, STAY, TIME, B, D, N, dense, rows

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
