"""One node for all trips of a loop gives what the node gives in each trip."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax import lax

from backpass.ir import OPS, ArrayType, Builder, Value, verify
from backpass.passes.loops.trips import has_rule, stacked
from fuzz.interpret import run_graph
from passes.texts import compiled

TRIPS = 3
DRAW = np.random.default_rng(0)


def drawn(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def dot(contract, batch=((), ()), precision=None):
    return partial(lax.dot_general, dimension_numbers=(contract, batch), precision=precision)


def looked_up(table, i):
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    return lax.gather(table, i, numbers, slice_sizes=(1, 5))


def picked(x, i):
    numbers = lax.GatherDimensionNumbers((), (1,), (1,), (0,), (0,))
    return lax.gather(x, i, numbers, slice_sizes=(1, 1))


X, Y, ON = drawn(2, 4), drawn(2, 4), np.array([[True, False, True, False]] * 2)
LESS, INDEX = np.float32(-0.3), np.array([[1], [0]], np.int32)
MIXED = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)

# op: operands of one trip, and which of them are others in each trip
CASES = {
    "element-wise": (lax.add, (X, Y), (1, 1)),
    "with what is the same": (lax.add, (X, Y), (1, 0)),
    "the same first": (lax.sub, (X, Y), (0, 1)),
    "with a number": (lambda x: x * np.float32(2), (X,), (1,)),
    "with one number": (lambda x, y: lax.clamp(y, x, np.float32(0.5)), (X, LESS), (1, 0)),
    "clamped by arrays": (lax.clamp, (X - 1, Y, X + 1), (0, 1, 0)),
    "selected": (lax.select_n, (ON, X, Y), (0, 1, 0)),
    "selected by others": (lax.select_n, (ON, X, Y), (1, 0, 0)),
    "selected by one": (lambda on, x, y: lax.select_n(on, x, y), (ON[0, 0], X, Y), (0, 1, 1)),
    "summed": (partial(lax.reduce_max, axes=(1,)), (X,), (1,)),
    "spread": (lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), (X,), (1,)),
    "joined": (lambda x, y: lax.concatenate([x, y], 1), (X, Y), (1, 0)),
    "reshaped": (lambda x: x.reshape(4, 2), (X,), (1,)),
    "squeezed": (lambda x: lax.squeeze(x, (0,)), (X[:1],), (1,)),
    "padded": (lambda x: lax.pad(x, np.float32(0), [(0, 1, 0), (1, 0, 1)]), (X,), (1,)),
    "reversed": (lambda x: lax.rev(x, (1,)), (X,), (1,)),
    "sliced": (lambda x: lax.slice(x, (0, 1), (2, 4)), (X,), (1,)),
    "each second": (lambda x: lax.slice(x, (0, 0), (2, 4), (1, 2)), (X,), (1,)),
    "split": (lambda x: lax.split(x, (1, 3), 1), (X,), (1,)),
    "transposed": (lambda x: x.T, (X,), (1,)),
    "times all": (dot(((1,), (0,))), (X, drawn(4, 3)), (1, 0)),
    "all times": (dot(((0,), (1,))), (drawn(4, 3), X), (0, 1)),
    "in pairs": (dot(((2,), (1,)), ((0,), (0,))), (drawn(2, 3, 4), drawn(2, 4, 5)), (1, 0)),
    "in pairs from behind": (dot(((2,), (1,)), ((0,), (0,))), (drawn(2, 3, 4), drawn(2, 4, 5)), (0, 1)),
    "both in two dimensions": (dot(((2,), (0,))), (drawn(2, 3, 4), drawn(4, 5, 6)), (0, 1)),
    "in two precisions": (dot(((1,), (0,)), precision=MIXED), (X, drawn(4, 3)), (0, 1)),
    "looked up": (looked_up, (drawn(3, 5), INDEX), (0, 1)),
    "picked": (picked, (X, INDEX), (0, 1)),
}  # fmt: skip
NONE = {
    "two stacks": (dot(((1,), (0,))), (X, drawn(4, 3)), (1, 1)),
    "tables of each trip": (looked_up, (drawn(3, 5), INDEX), (1, 0)),
    "no rule": (lambda x: lax.sort(x), (X,), (1,)),
    "padded with others": (lambda x, y: lax.pad(x, y, [(0, 1, 0)] * 2), (X, LESS), (1, 1)),
}


def emitted(name, table):
    """A graph of all trips, or None, and its arguments."""
    function, args, stacks = table[name]
    one = compiled(function, *args)
    (node,) = one.nodes
    given, values = [], {}
    for value, x, on in zip(one.inputs, args, stacks, strict=True):
        given.append(np.stack([x, x + x, x[::-1] if np.ndim(x) else -x]) if on else np.asarray(x))
        values[value] = Value(ArrayType(given[-1].shape, given[-1].dtype))
    which = dict(zip(one.inputs, map(bool, stacks), strict=True))
    stacks = [which.get(v, False) for v in node.inputs]
    b = Builder(OPS)
    outs = stacked(b, node, [values.get(v, v) for v in node.inputs], stacks)
    assert has_rule(node, stacks, TRIPS) == (outs is not None)
    return outs and b.graph("trips", list(values.values()), list(outs)), given


@pytest.mark.parametrize("name", CASES)
def test_all_trips_at_once(name):
    function, args, stacks = CASES[name]
    graph, given = emitted(name, CASES)
    verify(graph)
    one = compiled(function, *args)
    trips = [
        run_graph(one, *(x[t] if on else x for x, on in zip(given, stacks, strict=True)))
        for t in range(TRIPS)
    ]
    for found, expected in zip(run_graph(graph, *given), zip(*trips, strict=True), strict=True):
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NONE)
def test_no_rule_for_all_trips(name):
    found, _ = emitted(name, NONE)
    assert found is None


def test_precisions_stay_with_their_operands():
    graph, _ = emitted("in two precisions", CASES)
    (product,) = [node for node in graph.nodes if node.op.name == "dot_general"]
    assert product.attrs["precision"] == MIXED[::-1]


def test_what_is_placed_on_devices_stays_in_its_loop():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    b, x = Builder(OPS), Value(ArrayType((2, 4), np.dtype(np.float32)))
    b.broadcast_in_dim(x, (2, 3, 4), (0, 2))
    (node,) = b.nodes
    assert has_rule(node, (True,), TRIPS)
    assert not has_rule(replace(node, attrs={**node.attrs, "sharding": place}), (True,), TRIPS)
