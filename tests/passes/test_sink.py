"""Picks move in front of element-wise work, and only where that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.passes import Canonicalise, Sink
from fuzz.interpret import run_graph

X = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
LABELS = np.array([[0, 4, 2], [1, 1, 3]])


def pick(x, labels=LABELS, **options):
    return jnp.take_along_axis(x, jnp.asarray(labels)[..., None], axis=-1, **options)


def sunk(fun, x=X):
    """The program after `sink`, and whether the pass changed it."""
    given = Canonicalise()(bp.compile(fun).trace(x).graph)
    found = Sink()(given)
    bp.ir.verify(found)
    assert Sink()(found) is found
    np.testing.assert_array_equal(run_graph(found, x)[0], run_graph(given, x)[0], strict=True)
    return found, found is not given


MOVES = {
    "log_softmax": lambda x: pick(jax.nn.log_softmax(x)),
    "one number for each row": lambda x: pick(x - x.max(-1, keepdims=True)),
    "a number": lambda x: pick(x * 2.0),
    "unary chain": lambda x: pick(jnp.exp(-x)),
    "out of bounds fills NaN": lambda x: pick(x * 2.0, LABELS + 3),
    "clipped": lambda x: pick(x * 2.0, LABELS + 3, mode="clip"),
    "two picks of a row": lambda x: jnp.take_along_axis(
        x + x.sum(-1, keepdims=True), jnp.stack([LABELS, LABELS - 1], -1) % 5, axis=-1
    ),
}

STAYS = {
    "two whole operands": lambda x: pick(x * jnp.cos(x)),
    "differs along the axis": lambda x: pick(x + jnp.arange(5.0)),
    "another fill": lambda x: pick(x * 2.0, LABELS + 3, fill_value=7.0),
    "another axis": lambda x: jnp.take_along_axis(x * 2.0, LABELS[:, :1, None] % 3, axis=1),
    "rows of a table": lambda x: (x[0] * 2.0)[jnp.array([0, 2])],
    "integers": lambda x: pick(x.astype(jnp.int32) + 1),
    "nothing before": pick,
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    found, changed = sunk(MOVES[name])
    picks = [node for node in found.nodes if node.op.name == "gather"]
    assert changed and len(picks) == 1
    assert picks[0].inputs[0] is found.inputs[0]


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    assert not sunk(STAYS[name])[1]


@pytest.mark.parametrize("name", MOVES)
def test_gradient_is_the_same(name):
    def loss(x):
        return jnp.sum(jnp.nan_to_num(MOVES[name](x)) ** 2)

    found = bp.compile(bp.grad(loss))(X)
    np.testing.assert_allclose(found, jax.jit(jax.grad(loss))(X), rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_not_made_for_all_classes():
    """Of whole arrays, a classifier's step makes shifted, exp, and the three of the gradient."""

    def loss(x):
        return -pick(jax.nn.log_softmax(x)).mean()

    graph = bp.compile(bp.value_and_grad(loss)).lower(X).graph
    made = [node.op.name for node in graph.nodes if node.outputs[0].shape == X.shape]
    assert sorted(set(made) & {"sub", "exp", "mul", "select_n", "log"}) == [
        "exp",
        "mul",
        "select_n",
        "sub",
    ]
    assert made.count("sub") == 1
