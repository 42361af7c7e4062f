"""What each op makes of some of the rows is those rows of what it makes of all."""

from functools import partial

import numpy as np
import pytest
from jax import lax

from backpass.ir import OPS, ArrayType, Builder, Literal, Value, verify
from backpass.passes.fuse.rows import CARRIED, PULLED, Rows, reshaped
from fuzz.interpret import run_graph
from passes.texts import compiled, graph

COUNT = 2  # of the six rows that most arrays here have


def drawn(*shape):
    """Numbers of any sign, none twice."""
    return np.random.default_rng(len(shape)).permutation(np.prod(shape, dtype=int)).reshape(
        shape
    ).astype(np.float32) - np.float32(7)


def index(*shape, below=3):
    return np.random.default_rng(0).integers(0, below, shape).astype(np.int32)


def some(x, rows):
    """The first of the rows, in one dimension."""
    flat = np.asarray(x).reshape(rows.cut(np.shape(x), rows.count(np.shape(x))))
    return flat.take(range(COUNT), rows.start)


def assert_some_rows_are_those_of_all(whole, args, found):
    (node,) = whole.nodes
    given = dict(zip(whole.inputs, args, strict=True))
    outputs = dict(zip(node.outputs, run_graph(whole, *args), strict=True))
    values, parts, operands = [], [], []
    for value, rows in zip(node.inputs, found.operands, strict=True):
        if isinstance(value, Literal):
            operands.append(value)
            continue
        part = given[value] if rows is None else some(given[value], rows)
        values.append(Value(ArrayType(part.shape, part.dtype)))
        parts.append(part)
        operands.append(values[-1])
    b = Builder(OPS)
    made = b.graph("rows", values, list(found.emit(b, operands, COUNT)))
    verify(made)
    for out, rows, part in zip(node.outputs, found.outputs, run_graph(made, *parts), strict=True):
        np.testing.assert_array_equal(part, some(outputs[out], rows))


def ranges(where):
    return [rows and Rows(*rows) for rows in where]


def gathers(offset, collapsed, indexed, batched=((), ()), sizes=()):
    numbers = lax.GatherDimensionNumbers(offset, collapsed, indexed, *batched)
    return partial(lax.gather, dimension_numbers=numbers, slice_sizes=sizes)


def dot(contract, batch=((), ())):
    return partial(lax.dot_general, dimension_numbers=(contract, batch))


def spread(shape, dims):
    return partial(lax.broadcast_in_dim, shape=shape, broadcast_dimensions=dims)


def reshape(*shape):
    return partial(lax.reshape, new_sizes=shape)


def padded(*config):
    return partial(lax.pad, padding_config=config)


X = drawn(2, 3, 5)
BT = (0, 2)  # the rows of X
PICKS = gathers((), (2,), (2,), ((0, 1), (0, 1)), (1, 1, 1))
TURNED = gathers((), (2,), (2,), ((0, 1), (1, 0)), (1, 1, 1))
EACH = gathers((2,), (1,), (1,), ((0,), (0,)), (1, 1, 5))
LOOKED_UP = gathers((2,), (0,), (0,), sizes=(1, 5))

# op: its operands, where their rows are, where those of the output are: None for no rows at all
CARRY = {
    "both": (lax.add, (X, X + 1), (BT, BT), BT),
    "a number": (lambda x: x * np.float32(2), (X,), (BT,), BT),
    "several results": (lambda x, y: lax.sort((x, y)), (X, X[::-1]), (BT, BT), BT),
    "reduced": (partial(lax.reduce_max, axes=(2,)), (X,), (BT,), BT),
    "reduced before": (partial(lax.reduce_max, axes=(0,)), (drawn(5, 2, 3),), ((1, 3),), BT),
    "reduced on both sides": (
        partial(lax.reduce_max, axes=(0, 3)),
        (drawn(5, 2, 3, 4),),
        ((1, 3),),
        BT,
    ),
    "rows reduced": (partial(lax.reduce_max, axes=(1,)), (X,), (BT,), None),
    "index of the greatest": (lambda x: lax.argmax(x, 2, np.int32), (X,), (BT,), BT),
    "index of rows": (lambda x: lax.argmax(x, 1, np.int32), (X,), (BT,), None),
    "cumulative": (partial(lax.cumsum, axis=2), (X,), (BT,), BT),
    "cumulative over rows": (partial(lax.cumsum, axis=1), (X,), (BT,), None),
    "cumulative before": (partial(lax.cumsum, axis=0), (X,), ((1, 3),), (1, 3)),
    "sorted rows": (partial(lax.sort, dimension=0), (X,), (BT,), None),
    "joined": (lambda x, y: lax.concatenate([x, y], 2), (X, X[..., :2]), (BT, BT), BT),
    "joined rows": (lambda x, y: lax.concatenate([x, y], 0), (X, X), (BT, BT), None),
    "reversed": (lambda x: lax.rev(x, (2,)), (X,), (BT,), BT),
    "reversed before": (lambda x: lax.rev(x, (0,)), (X,), ((1, 3),), (1, 3)),
    "reversed rows": (lambda x: lax.rev(x, (1, 2)), (X,), (BT,), None),
    "spread": (spread((2, 3, 7), (0, 1)), (X[..., 0],), (BT,), BT),
    "spread in front": (spread((7, 2, 3, 5), (1, 2, 3)), (X,), (BT,), (1, 3)),
    "spread between": (spread((2, 7, 3), (0, 2)), (X[..., 0],), (BT,), None),
    "rows spread": (spread((6, 4), (0, 1)), (drawn(1, 4),), ((0, 1),), None),
    "columns spread": (spread((2, 3, 4), (0, 1, 2)), (X[..., :1],), (BT,), BT),
    "reshaped": (reshape(6, 5), (X,), (BT,), (0, 1)),
    "reshaped columns": (reshape(2, 3, 1, 5), (X,), (BT,), BT),
    "reshaped behind": (reshape(5, 1, 2, 3, 4), (drawn(5, 6, 4),), ((1, 2),), (1, 4)),
    "rows cut by a shape": (reshape(3, 2, 5), (X,), ((0, 1),), None),
    "rows joined by a shape": (reshape(2, 15), (X,), ((1, 2),), None),
    "rows in columns": (reshape(3, 10), (X,), (BT,), None),
    "squeezed": (lambda x: lax.squeeze(x, (2,)), (X[..., :1],), (BT,), BT),
    "transposed": (lambda x: lax.transpose(x, (2, 0, 1)), (X,), (BT,), (1, 3)),
    "swapped": (lambda x: lax.transpose(x, (1, 0, 2)), (X,), (BT,), None),
    "apart": (lambda x: lax.transpose(x, (0, 2, 1)), (X,), (BT,), None),
    "sliced": (lambda x: lax.slice(x, (0, 0, 1), (2, 3, 4), (1, 1, 2)), (X,), (BT,), BT),
    "sliced by ones": (lambda x: lax.slice(x, (0, 0, 1), (2, 3, 4)), (X,), (BT,), BT),
    "from a row on": (lambda x: lax.slice(x, (0, 1, 0), (2, 3, 5)), (X,), (BT,), None),
    "up to a row": (lambda x: lax.slice(x, (0, 0, 0), (2, 2, 5)), (X,), (BT,), None),
    "each second row": (lambda x: lax.slice(x, (0, 0, 0), (2, 3, 5), (1, 2, 1)), (X,), (BT,), None),
    "padded": (padded((0, 0, 0), (0, 0, 0), (1, 2, 1)), (X, X[0, 0, 0]), (BT, None), BT),
    "padded before": (padded((1, 0, 0), (0, 0, 0), (0, 0, 0)), (X, X[0, 0, 0]), ((1, 3), None), (1, 3)),
    "rows padded": (padded((0, 0, 0), (0, 1, 0), (0, 0, 0)), (X, X[0, 0, 0]), (BT, None), None),
    "times all": (dot(((2,), (0,))), (X, drawn(5, 4)), (BT, None), BT),
    "all times": (dot(((1,), (2,))), (drawn(4, 5), X), (None, BT), (1, 3)),
    "times columns in front": (dot(((0,), (1,))), (drawn(5, 6), drawn(4, 5)), ((1, 2), None), (0, 1)),
    "rows times rows": (dot(((2,), (2,)), ((0, 1), (0, 1))), (X, X + 1), (BT, None), BT),
    "rows times rows behind": (
        dot(((2,), (0,)), ((0, 1), (1, 2))),
        (X, drawn(5, 2, 3)),
        (None, (1, 3)),
        BT,
    ),
    "rows in another order": (dot(((2,), (2,)), ((0, 1), (1, 0))), (X, drawn(3, 2, 5)), (BT, None), None),
    "rows that change places": (dot(((2,), (2,)), ((1, 0), (1, 0))), (X, X + 1), (BT, None), None),
    "each with its own": (dot(((2,), (1,)), ((0,), (0,))), (X, drawn(2, 5, 4)), ((1, 2), None), (1, 2)),
    "its own, from behind": (
        dot(((2,), (1,)), ((0,), (0,))),
        (X, drawn(2, 5, 4)),
        (None, (2, 3)),
        (2, 3),
    ),
    "half of the rows in pairs": (dot(((2,), (1,)), ((0,), (0,))), (X, drawn(2, 5, 4)), (BT, None), None),
    "summed over rows": (dot(((1, 2), (0, 1))), (X, drawn(3, 5, 4)), (BT, None), None),
    "looked up": (LOOKED_UP, (drawn(3, 5), index(2, 3, 1)), (None, BT), BT),
    "looked up behind": (gathers((0,), (0,), (0,), sizes=(1, 5)), (drawn(3, 5), index(2, 3, 1)), (None, BT), (1, 3)),
    "looked up between": (gathers((1,), (0,), (0,), sizes=(1, 5)), (drawn(3, 5), index(2, 3, 1)), (None, BT), None),
    "looked up by a row": (LOOKED_UP, (drawn(3, 5), index(2, 3, 1)), (None, (1, 3)), None),
    "picked": (PICKS, (X, index(2, 3, 1)), (BT, BT), BT),
    "picked of rows": (PICKS, (X, index(2, 3, 1)), (BT, None), BT),
    "picked by rows": (PICKS, (X, index(2, 3, 1)), (None, BT), BT),
    "picked turned": (TURNED, (X, index(3, 2, 1)), (BT, None), None),
    "picked by turned": (TURNED, (X, index(3, 2, 1)), (None, BT), None),
    "looked up in each": (EACH, (drawn(2, 3, 5), index(2, 4, 1)), ((0, 1), None), (0, 1)),
    "looked up in each, behind": (
        gathers((0,), (1,), (1,), ((0,), (0,)), (1, 1, 5)),
        (drawn(2, 3, 5), index(2, 4, 1)),
        (None, (0, 1)),
        (1, 2),
    ),
    "one column": (gathers((0, 1), (2,), (2,), sizes=(2, 3, 1)), (X, index(1)), (BT, None), BT),
    "some columns": (gathers((1, 2), (2,), (2,), sizes=(2, 3, 1)), (X, index(4, 1)), (BT, None), (1, 3)),
    "some columns between": (
        gathers((0, 2), (2,), (2,), sizes=(2, 3, 1)),
        (X, index(4, 1)),
        (BT, None),
        None,
    ),
    "a part of the rows": (gathers((0, 1), (2,), (2,), sizes=(2, 2, 1)), (X, index(1)), (BT, None), None),
    "one of the rows": (gathers((0, 1), (1,), (1,), sizes=(2, 1, 5)), (X, index(1)), (BT, None), None),
    "from some row on": (gathers((0, 1, 2), (), (1,), sizes=(2, 3, 5)), (X, index(1)), (BT, None), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRY)
def test_an_op_on_some_rows(name):
    function, args, known, out = CARRY[name]
    whole = compiled(function, *args)
    (node,) = whole.nodes
    found = CARRIED[node.op.name](node, ranges(known))
    assert (found and found.outputs) == (out and (Rows(*out),) * len(node.outputs))
    if found:
        assert_some_rows_are_those_of_all(whole, args, found)


# The same from an output to its operands; "shared" is what is the same for all rows.
PULL = {
    "of rows": (spread((2, 3, 5), (0, 1)), (X[..., 0],), BT, BT),
    "of the last": (spread((2, 3, 5), (1, 2)), (X[0],), (1, 3), (0, 2)),
    "of columns": (spread((2, 3, 5), (2,)), (X[0, 0],), BT, "shared"),
    "of one row": (spread((2, 3, 5), (0, 1, 2)), (X[:1, :1],), BT, "shared"),
    "of one sequence": (spread((2, 3, 5), (0, 1, 2)), (X[:1],), BT, None),
    "of a part of the rows": (spread((2, 3, 5), (1, 2)), (X[0],), BT, None),
    "of another shape": (reshape(2, 3, 5), (drawn(6, 5),), BT, (0, 1)),
    "of a shape that cuts": (reshape(2, 3, 5), (drawn(3, 10),), BT, None),
    "of a count": (lambda: lax.broadcasted_iota(np.int32, (2, 3, 5), 2), (), BT, ()),
    "of a count before": (lambda: lax.broadcasted_iota(np.int32, (5, 2, 3), 0), (), (1, 3), ()),
    "of a count of rows": (lambda: lax.broadcasted_iota(np.int32, (2, 3, 5), 1), (), BT, None),
}


@pytest.mark.parametrize("name", PULL)
def test_some_rows_of_an_op(name):
    function, args, out, of = PULL[name]
    whole = compiled(function, *args)
    (node,) = whole.nodes
    found = PULLED[node.op.name](node, Rows(*out))
    wanted = {None: None, (): [], "shared": [None]}
    assert (found and [*found.operands]) == (wanted[of] if of in wanted else [Rows(*of)])
    if found:
        assert_some_rows_are_those_of_all(whole, args, found)


@pytest.mark.parametrize(
    ("shape", "shared"), [("2,3,5", False), ("1,1,5", True), ("", True), ("2,1,5", None)]
)
def test_an_operand_of_one_row_is_shared(shape, shared):
    given = f"%0: f32[2,3,5], %1: f32[{shape}]"
    whole = graph(given, "%2: f32[2,3,5] = mul(%0, %1)\nreturn %2")
    found = CARRIED["mul"](whole.nodes[0], [Rows(*BT), None])
    if shared is None:
        assert found is None
    else:
        assert found.operands == [Rows(*BT), None if shared else Rows(*BT)]
        args = (X, drawn(*whole.inputs[1].shape))
        assert_some_rows_are_those_of_all(whole, args, found)


def test_where_rows_are_in_a_part():
    rows = Rows(1, 3)
    assert [rows.place(dim) for dim in range(5)] == [0, 1, 1, 2, 3]
    assert rows.places((4, 2, 0, 1)) == (3, 1, 0)
    assert [dim in rows for dim in range(4)] == [False, True, True, False]
    assert Rows(0, 3).bare((1, 4, 1)) == Rows(1, 2)
    assert Rows(0, 3).bare((1, 1, 1)) == Rows(0, 1)
    assert Rows(0, 3).bare((3, 1, 2)) == Rows(0, 3)


def test_rows_of_nothing_have_no_place():
    assert reshaped(Rows(1, 2), (2, 0), (0,)) is None
    assert reshaped(Rows(0, 1), (1, 5), (5,)) is None
